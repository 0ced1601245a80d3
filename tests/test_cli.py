"The command as scripts and people meet it: exit codes, one line for an error, pipes, odd names, and nothing half-written"
import contextlib, json, os, re, shutil, signal, subprocess, sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import loragrass as lg
from loragrass.cli import app

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]

def adapter(seed, group, prefix="unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_", names="qk"):
    g = torch.Generator().manual_seed(group)
    ups = {n: torch.randn(24, 2, generator=g) for n in names}
    g.manual_seed(100 + seed)
    return lg.LoRA({prefix + n: lg.LoRAUpdate(up + 0.1 * torch.randn(24, 2, generator=g), torch.randn(2, 16, generator=g), 1.0, (24, 16)) for n, up in ups.items()})

@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    "Six adapters of two groups, in a folder"
    folder = tmp_path_factory.mktemp("shelf")
    for i in range(6): lg.save(adapter(i, i % 2), folder / "adapters" / f"a{i}.safetensors", format="diffusers")
    return folder

@pytest.fixture
def here(shelf, tmp_path, monkeypatch):
    "A folder of its own to work in"
    shutil.copytree(shelf / "adapters", tmp_path / "adapters")
    monkeypatch.chdir(tmp_path)
    return tmp_path

def run(*args):
    result = CliRunner().invoke(app, [str(a) for a in args], prog_name="loragrass")
    if result.exception and not isinstance(result.exception, SystemExit): raise result.exception
    assert "\x1b" not in result.output and "Traceback" not in result.output
    return result

def shell(code, *args, **kwargs):
    "`loragrass args…` in a process of its own, after some Python"
    return subprocess.Popen([sys.executable, "-c", f"from loragrass.cli import app\n{code}\napp(prog_name='loragrass')", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)

def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}

# ---- what is wrong is said in one line

def junk(folder):
    (folder / "junk").mkdir()
    (folder / "junk/login.safetensors").write_bytes(b"<!DOCTYPE html>")
    (folder / "junk/old.ckpt").write_bytes(b"\x80\x02")
    (folder / "junk/notes.txt").write_text("no adapter")
    whole = (folder / "adapters/a0.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[:-8])
    for name in ("folder", "folder.safetensors", "notes"): (folder / name).mkdir()
    (folder / "notes/notes.txt").write_text("no adapter")
    (folder / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    (folder / "locked.safetensors").write_bytes(whole)
    (folder / "empty.safetensors").write_bytes(b"")
    save_file({"q.lokr_w1": torch.ones(4, 4), "q.lokr_w2": torch.ones(3, 3)}, folder / "whole.safetensors")

@pytest.mark.parametrize("line, says", [
    ("inspect missing", "missing"), ("inspect half.safetensors", "truncated"), ("inspect junk", "HTML page"), ("inspect junk/old.ckpt", "pickle"),
    ("inspect adapters missing", "skipped missing"), ("inspect folder", "found nothing"), ("inspect folder.safetensors", "no adapter in this folder"), ("inspect notes", "found notes.txt"),
    ("inspect lfs.safetensors", "git lfs pull"), ("inspect locked.safetensors", "Permission denied"), ("convert locked.safetensors out.safetensors", "Permission denied"),
    ("inspect empty.safetensors", "0 bytes"), ("convert adapters/a0.safetensors notes/notes.txt/out.safetensors", "notes.txt"), ("inspect whole.safetensors", "--approx-rank N"),
    ("compare adapters/a0.safetensors half.safetensors", "truncated"), ("compare adapters/a0.safetensors adapters/a1.safetensors --kernel cosine", "--kernel cosine is unknown"),
    ("compare adapters/a0.safetensors adapters/a1.safetensors --side up", "--side up: expected"), ("compare folder adapters/a1.safetensors", "folder"),
    ("merge junk -o out", "no adapter to read in junk"), ("merge missing -o out", "missing"), ("merge adapters -o out -k 7", "--n-clusters 7: expected 'auto' or 1 … 6"), ("merge adapters -o out --method mean", "--method mean: expected one of svd, cat, karcher, chordal, chordal_s"),
    ("merge adapters -o out --side up", "--side up"), ("merge adapters -o out --weights 1,2", "2 weights for 6 adapters; they are, in this order: a0, a1, a2, a3, a4, a5"), ("merge adapters -o out --weights much", "numbers separated by commas"),
    ("merge adapters -o out --method cat --rank 2", "--method cat is exact"), ("merge adapters -o out --clustering ward", "--clustering ward"), ("merge adapters -o out --rescale max", "--rescale max"),
    *((f"merge adapters -o out {option}{dry}", says) for dry in ("", " --dry-run") for option, says in (("--format zip", "--format zip: expected one of kohya, diffusers, peft"), ("--dtype int8", "--dtype int8: expected one of float32"), ("--report notes", "notes is a folder"), ("--report out", "for the means"), ("--report none/r.html", "no folder none"))),
    ("merge adapters -o adapters/means", "adapters/means is or lies in adapters, which is searched for inputs"), ("merge . -o means", "means is or lies in ., which is searched for inputs"),
    ("merge adapters -o /proc/means", "/proc"), ("merge adapters -o adapters/a0.safetensors/means", "input"), ("merge adapters -o half.safetensors --force", "half.safetensors is a file"),
    ("convert half.safetensors out.safetensors", "truncated"), ("convert adapters/a0.safetensors out", "out"), ("convert adapters/a0.safetensors out --format zip", "--format zip"), ("convert half.safetensors out --dtype int8", "--dtype int8"), ("resize half.safetensors out --rank 1 --format zip", "--format zip"),
    ("resize adapters/a0.safetensors out.safetensors --rank 0", "rank"), ("resize adapters/a0.safetensors out.safetensors --energy 2", "energy"),
])
def test_bad_input_is_a_line_and_1(line, says, here, monkeypatch):
    junk(here)
    before, real = contents(here), open
    def locked(path, *args, **kwargs): # root may read everything: the file system cannot refuse
        if str(path).endswith("locked.safetensors"): raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)
    monkeypatch.setattr("builtins.open", locked)
    result = run(*line.split())
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and says in result.stderr and last.startswith(("error: ", "skipped ")) and sum(l.startswith("error: ") for l in result.stderr.splitlines()) <= 1
    assert contents(here) == before and not list(here.glob(".*"))

@pytest.mark.parametrize("line", ["", "inspct adapters", "inspect", "compare a", "merge adapters", "merge adapters -o out -k two", "merge adapters -o out -k 0", "merge adapters -o out --rank 0",
                                  "resize adapters/a0.safetensors out.safetensors", "resize adapters/a0.safetensors out.safetensors --rank 1 --energy 0.5", "inspect adapters --colour"])
def test_a_wrong_command_line_is_2(line, here): assert run(*line.split()).exit_code == 2

def test_help_shows_an_example_and_version_a_number():
    for command in COMMANDS: assert f"Example:  loragrass {command}" in run(command, "--help").stdout
    assert run("--version").stdout == f"loragrass {lg.__version__}\n"
    assert all(command in run("--help").stdout for command in COMMANDS)

# ---- inspect and compare

def test_inspect_lists_every_adapter_whatever_its_base(here):
    lg.save(adapter(0, 0, prefix="unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_"), here / "adapters/other.safetensors", format="diffusers")
    wide = {m: lg.LoRAUpdate(torch.randn(48, 1), torch.randn(1, 16), 1.0, (48, 16)) for m in adapter(0, 0)}
    lg.save(lg.LoRA(wide), here / "adapters/wide.safetensors", format="diffusers")
    (here / "adapters/login.safetensors").write_bytes(b"<html>")
    result = run("inspect", "adapters")
    assert result.exit_code == 0 and result.stdout.count("diffusers") == 8 and "wide" in result.stdout and "skipped adapters/login.safetensors" in result.stderr

def test_inspect_json(here):
    lora = adapter(0, 0)
    lora = lg.LoRA(dict(lora) | {next(iter(lora)): lg.LoRAUpdate(torch.zeros(24, 2), torch.ones(2, 16), 1.0, (24, 16))})
    lg.save(lora, here / "one.safetensors", format="diffusers")
    data = json.loads(run("inspect", "one.safetensors", "adapters", "--json").stdout)
    one, rows = data["adapters"][0], {row["module"][-1]: row for row in data["adapters"][0]["modules"]}
    assert len(data["adapters"]) == 7 and data["skipped"] == []
    assert (rows["q"]["numerical_rank"], rows["k"]["numerical_rank"], rows["q"]["shape"]) == (0, 2, [24, 16])
    assert one["norm"] == pytest.approx((lora.to_frame().norm ** 2).sum() ** 0.5, rel=1e-5)

def test_remarks_are_shown(here):
    lora = lg.LoRA({m: lg.LoRAUpdate(torch.zeros(24, 2), u.down, 1.0, (24, 16)) for m, u in adapter(0, 0).items()})
    lg.save(lora, here / "zero.safetensors", format="diffusers")
    result = run("inspect", "zero.safetensors")
    assert result.exit_code == 0 and "[E15]" in result.stdout and result.stderr == ""

def test_compare_json_has_null_where_there_is_no_number(here):
    lg.save(adapter(9, 0, names="q"), here / "part.safetensors", format="diffusers")
    rows = json.loads(run("compare", "adapters/a0.safetensors", "part.safetensors", "--json").stdout)
    shared, alone = sorted(rows, key=lambda row: row["similarity"] is None)
    expected = lg.compare(lg.load("adapters/a0.safetensors"), lg.load("part.safetensors")).loc[shared["module"], "similarity"]
    assert shared["similarity"] == pytest.approx(expected) and alone["similarity"] is None and alone["only_in"] == "a0"

# ---- names

def test_odd_names_are_text_and_nothing_is_cut(here, monkeypatch):
    names = ["[bold]x[bold]", ":smile:", "\x1b[31mred", "Ж" * 70, "$x$"]
    for name in names: shutil.copy("adapters/a0.safetensors", f"{name}.safetensors")
    for width in (None, "40"): # off a terminal, and on a narrow one
        if width: monkeypatch.setenv("TTY_COMPATIBLE", "1"); monkeypatch.setenv("COLUMNS", width)
        out = run("inspect", *here.glob("*.safetensors")).stdout
        assert not width or max(map(len, out.splitlines())) <= 40
        squeezed = "".join(out.split())
        assert out.count("Ж") == 70 and (width or "Ж" * 70 in out)
        if not width: assert "\n[bold]x[bold]\n" in run("inspect", "[bold]x[bold].safetensors").stdout # its title
        if not width: assert all(text in squeezed for text in ("[bold]x[bold].safe", ":smile:.safe", r"\x1b[31mred.safe", "$x$.safe"))

def test_same_names_are_told_apart(here):
    for i in range(6): (here / f"d{i}").mkdir(); shutil.move(here / f"adapters/a{i}.safetensors", here / f"d{i}/lora.safetensors")
    assert "d0/lora.safetensors, d2/lora.safetensors, d4/lora.safetensors" in run("merge", *(f"d{i}" for i in range(6)), "-k", 2, "-o", "out", "--dry-run").stdout

# ---- merge

def test_merge_writes_what_the_library_computes(here):
    shutil.copy("adapters/a0.safetensors", "half.safetensors"); Path("adapters/half.safetensors").write_bytes(Path("half.safetensors").read_bytes()[:-8])
    result = run("merge", "adapters", "-k", 2, "-o", "deep/out", "--report", "deep/r.html")
    expected = lg.cluster_merge([lg.load(f"adapters/a{i}.safetensors") for i in range(6)], 2)
    assert result.exit_code == 0 and "skipped adapters/half.safetensors" in result.stderr and sorted(os.listdir("deep")) == ["out", "r.html"]
    assert sorted(os.listdir("deep/out")) == ["mean_0.safetensors", "mean_1.safetensors"] and "half.safetensors" in Path("deep/r.html").read_text() and "truncated" in Path("deep/r.html").read_text()
    for i, mean in enumerate(expected.means):
        for m, u in lg.load(f"deep/out/mean_{i}.safetensors").items(): torch.testing.assert_close(u.dense(), mean[m].dense(), rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize("format, names", [("kohya", ["mean_0.safetensors", "mean_1.safetensors"]), ("peft", ["mean_0", "mean_1"])])
def test_merge_format_and_dtype(format, names, here):
    assert run("merge", "adapters", "-k", 2, "-o", "out", "--format", format, "--dtype", "float16", "--rank", 1).exit_code == 0
    written = [lg.load(f"out/{name}") for name in names]
    assert sorted(os.listdir("out")) == names and all(lora.format == format and {(u.up.dtype, u.rank) for u in lora.values()} == {(torch.float16, 1)} for lora in written)

def test_merge_passes_every_choice_on(here):
    Path("r").mkdir()
    result = run("merge", "adapters", "-k", 2, "-o", "out", "--weights", "agreement", "--per-layer", "--method", "chordal", "--side", "both", "--kernel", "det_regularized", "--rank", 2, "--report", "r/r.html")
    expected = lg.cluster_merge([lg.load(f"adapters/a{i}.safetensors") for i in range(6)], 2, "chordal", side="both", kernel="det_regularized", sqrt_weighted=False, rank=2, weights="agreement", per_layer=True)
    for i, mean in enumerate(expected.means):
        for m, u in lg.load(f"out/mean_{i}.safetensors").items(): torch.testing.assert_close(u.dense(), mean[m].dense(), rtol=1e-5, atol=1e-6)
    assert result.exit_code == 0 and all(f"<code>{value}</code>" in Path("r/r.html").read_text() for value in ("agreement", "chordal", "det_regularized"))

def test_a_medoid_stands_in(here):
    assert run("merge", "adapters", "-k", 2, "-o", "out").exit_code == 0
    result = run("merge", "adapters", "-k", 2, "-o", "out", "--stand-in", "medoid", "--force", "--report", "r.html")
    expected = lg.cluster_merge([lg.load(f"adapters/a{i}.safetensors") for i in range(6)], 2, stand_in="medoid")
    assert result.exit_code == 0 and sorted(os.listdir("out")) == ["medoid_0.safetensors", "medoid_1.safetensors"] # means of the run before are gone
    for i, one in enumerate(expected.medoids_):
        for m, u in lg.load(f"out/medoid_{i}.safetensors").items(): torch.testing.assert_close(u.dense(), lg.load(f"adapters/a{one}.safetensors")[m].dense())
    assert "its medoid" in Path("r.html").read_text()
    result = run("merge", "adapters", "-k", 2, "-o", "new", "--stand-in", "median")
    assert result.exit_code == 1 and "--stand-in median: expected one of mean, medoid" in result.stderr and not Path("new").exists()

def test_two_adapters_without_a_common_module(here):
    lg.save(adapter(0, 0, prefix="unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_"), here / "other.safetensors", format="diffusers")
    result = run("compare", "adapters/a0.safetensors", "other.safetensors")
    assert result.exit_code == 0 and "no module is in both" in result.stderr and result.stdout.count("a0") == 2

@pytest.mark.parametrize("zero, says", [(["a0"], "a0.safetensors is zero"), (["a0", "a1"], "a0.safetensors and adapters/a1.safetensors is zero")])
def test_a_zero_adapter_has_nothing_to_compare(zero, says, here):
    for name in zero:
        lora = lg.load(f"adapters/{name}.safetensors")
        lg.save(lg.LoRA({m: lg.LoRAUpdate(torch.zeros_like(u.up), u.down, 1.0, u.weight_shape) for m, u in lora.items()}), f"adapters/{name}.safetensors", format="diffusers")
    result = run("compare", "adapters/a0.safetensors", "adapters/a1.safetensors")
    assert result.exit_code == 0 and says in result.stderr and "no module is in both" not in result.stderr

def test_compare_both_sides(here):
    pair = ("adapters/a0.safetensors", "adapters/a2.safetensors")
    text, rows = run("compare", *pair, "--side", "both").stdout, json.loads(run("compare", *pair, "--side", "both", "--json").stdout)
    for side in ("left", "right"):
        part = lg.compare(*map(lg.load, pair), side=side)
        assert [row["similarity"] for row in rows if row["side"] == side] == pytest.approx(part.similarity.tolist())
        assert f"mean similarity, {side} {part.similarity.mean():.3f}, by chance {part.chance.mean():.3f}, over 2 modules" in text

@pytest.mark.parametrize("side", ["left", "both"])
def test_rounding_is_printed_as_0(side, here):
    assert "e-1" not in run("compare", "adapters/a0.safetensors", "adapters/a0.safetensors", "--side", side).stdout
    assert "e-1" not in run("merge", "adapters", "-k", 6, "-o", "out", "--dry-run").stdout

def test_rules_weights_and_clusterings_reach_the_library(here):
    from loragrass.merging import RULES
    assert set(RULES) <= set(re.findall(r"\w+", run("merge", "--help").stdout))
    assert run("merge", "adapters", "-k", 2, "-o", "out", "--method", "ties", "--clustering", "agglomerative", "--rescale", "norm", "--weights", "3,1,1,1,1,2").exit_code == 0
    expected = lg.cluster_merge([lg.load(f"adapters/a{i}.safetensors") for i in range(6)], 2, "ties", "agglomerative", rescale="norm", weights=[3, 1, 1, 1, 1, 2])
    for i, mean in enumerate(expected.means):
        for m, u in lg.load(f"out/mean_{i}.safetensors").items(): torch.testing.assert_close(u.dense(), mean[m].dense(), rtol=1e-5, atol=1e-6)

def test_a_heavy_diagonal_is_no_warning_where_it_does_no_harm(here):
    result = lg.cluster_merge([lg.load(f"adapters/a{i}.safetensors") for i in range(6)], 6)
    assert result.health.verdict == "diagonal-dominated" and "diagonal" not in run("merge", "adapters", "-k", 6, "-o", "out", "--dry-run").stderr
    assert "diagonal-dominated" in run("merge", "adapters", "-k", 6, "-o", "out", "--dry-run", "--clustering", "grassmann_kmeans").stderr

@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_format_without_names_is_refused(dry, here):
    for i in range(2): lg.save(adapter(i, 0, prefix="odd.layer."), f"odd/a{i}", format="peft")
    before = contents(here)
    result = run("merge", "odd", "-k", 1, "-o", "out", "--format", "diffusers", *dry)
    assert result.exit_code == 1 and "save the adapter in the format that it came from, peft" in result.stderr and contents(here) == before and not Path("out").exists()

def test_dry_run_writes_nothing(here):
    before = contents(here)
    result = run("merge", "adapters", "-k", 2, "-o", "out", "--report", "r.html", "--dry-run")
    assert result.exit_code == 0 and "would write out/mean_1.safetensors" in result.stdout and "would write r.html" in result.stdout and contents(here) == before and not Path("out").exists()

def test_a_report_alone_writes_one_file(here):
    junk(here)
    before = contents(here)
    result = run("report", "adapters", "junk", "-k", 2)
    written = {name: text for name, text in contents(here).items() if name not in before}
    assert result.exit_code == 0 and list(written) == ["report.html"] and "wrote report.html" in result.stdout
    page = written["report.html"].decode()
    assert "login.safetensors" in page and "HTML page" in page and "6 adapters in 2 groups" in page and "This page was made without writing" in page
    assert "--force" in run("report", "adapters").stderr and run("report", "adapters", "--force").exit_code == 0

@pytest.mark.parametrize("line, says", [("report adapters -o notes", "notes is a folder"), ("report adapters -o none/r.html", "no folder none"), ("report missing", "missing"),
                                        ("report adapters -o adapters/a0.safetensors --force", "is, holds or lies in the input"), ("report adapters --clustering ward", "--clustering ward")])
def test_a_report_is_refused_before_anything_is_written(line, says, here):
    junk(here)
    before, result = contents(here), run(*line.split())
    assert result.exit_code == 1 and says in result.stderr and contents(here) == before

def test_the_report_says_where_the_means_went(here):
    junk(here)
    run("merge", "adapters", "junk", "-k", 2, "-o", "out", "--format", "peft", "--report", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert all(f"<bdi>{Path('out', name)}</bdi>" in page for name in ("mean_0", "mean_1")) and "PeftModel.from_pretrained" in page and "<bdi>peft</bdi>" in page and "old.ckpt" in page

def test_force_replaces_what_has_the_same_name_only(here):
    Path("out").mkdir()
    for name in ("mean_0.safetensors", "mine.txt"): Path("out", name).write_text("mine")
    assert "--force" in run("merge", "adapters", "-k", 2, "-o", "out").stderr and Path("out/mean_0.safetensors").read_text() == "mine"
    for _ in range(2): assert run("merge", "adapters", "-k", 2, "-o", "out", "--force").exit_code == 0
    assert sorted(os.listdir("out")) == ["mean_0.safetensors", "mean_1.safetensors", "mine.txt"] and Path("out/mine.txt").read_text() == "mine" and lg.load("out/mean_0.safetensors")
    for _ in range(2): assert run("merge", "adapters", "-k", 2, "-o", "folders", "--format", "peft", "--force").exit_code == 0
    for name in ("mean_2", "mean_3", "mean_x.safetensors"): Path("folders", name).mkdir()
    Path("folders/mean_2/mine.txt").write_text("mine")
    assert run("merge", "adapters", "-k", 3, "-o", "folders", "--force").exit_code == 0 # kohya's single files take the place of PEFT's folders
    assert sorted(os.listdir("folders")) == ["mean_0.safetensors", "mean_1.safetensors", "mean_2", "mean_2.safetensors", "mean_3", "mean_x.safetensors"] and Path("folders/mean_2/mine.txt").exists()
    assert run("merge", "adapters", "-k", 2, "-o", "folders", "--format", "peft", "--force").exit_code == 0
    assert sorted(os.listdir("folders")) == ["mean_0", "mean_1", "mean_2", "mean_3", "mean_x.safetensors"]
    assert sorted(os.listdir("folders/mean_1")) == ["adapter_config.json", "adapter_model.safetensors"] and not list(here.glob(".*"))

@pytest.mark.parametrize("line", ["merge adapters -o adapters", "merge adapters -o .", "merge adapters -o adapters/a0.safetensors", "merge adapters -o adapters/p/means", "merge adapters -o out --report adapters/a0.safetensors",
                                  "convert adapters/a0.safetensors adapters/a0.safetensors", "convert link.safetensors adapters/a0.safetensors", "resize adapters/a0.safetensors ./adapters/../adapters/a0.safetensors --rank 1"])
def test_no_input_is_written_over(line, here):
    Path("link.safetensors").symlink_to("adapters/a0.safetensors")
    lg.save(adapter(0, 0), "adapters/p", format="peft")
    before = contents(here)
    result = run(*line.split(), "--force")
    assert result.exit_code == 1 and "input" in result.stderr and contents(here) == before

@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("what", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_merge_leaves_what_was_there(existing, what, here, monkeypatch):
    if existing: run("merge", "adapters", "-k", 2, "-o", "out")
    before, save, calls = contents(here), lg.save, []
    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2: raise what
        return save(*args)
    monkeypatch.setattr(lg, "save", second_fails)
    result = run("merge", "adapters", "-k", 2, "-o", "out", "--force", "--method", "cat")
    assert result.exit_code == (130 if isinstance(what, KeyboardInterrupt) else 1) and len(calls) == 2 and contents(here) == before and Path("out").exists() == existing and not list(here.glob(".*"))

def test_ctrl_c_is_silent(here):
    code = "import os, signal, loragrass as lg\nsave = lg.save\nlg.save = lambda *args: (save(*args), os.kill(os.getpid(), signal.SIGINT))"
    process = shell(code, "merge", "adapters", "-k", "2", "-o", "out")
    out, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT) and out == "" and "Traceback" not in err and os.listdir() == ["adapters"]

# ---- two base models, a named file that cannot be read, weights as they are meant

def wide(path):
    "An adapter for another base model"
    lg.save(lg.LoRA({m: lg.LoRAUpdate(torch.ones(48, 1), torch.ones(1, 16), 1.0, (48, 16)) for m in adapter(0, 0)}), path, format="diffusers")

def same(path, dense):
    for m, u in lg.load(path).items(): torch.testing.assert_close(u.dense(), dense(m), rtol=1e-4, atol=1e-5)

def test_a_named_file_that_cannot_be_read_is_1_and_the_rest_is_done(here):
    Path("half.safetensors").write_bytes(Path("adapters/a0.safetensors").read_bytes()[:-8])
    result = run("merge", "adapters", "half.safetensors", "-k", 2, "-o", "out")
    assert result.exit_code == 1 and "done without half.safetensors" in result.stderr.splitlines()[-1] and sorted(os.listdir("out")) == ["mean_0.safetensors", "mean_1.safetensors"]
    shutil.copy("half.safetensors", "adapters/half.safetensors") # in a folder it is no adapter, and named only as skipped
    result = run("cluster", "adapters", "-k", 2)
    assert result.exit_code == 0 and "skipped adapters/half.safetensors" in result.stderr and "done without" not in result.stderr

@pytest.mark.parametrize("line", ["merge adapters -o out", "cluster adapters", "compare adapters/a0.safetensors adapters/wide.safetensors", "nearest adapters adapters/a0.safetensors"])
def test_two_base_models_are_refused_by_name(line, here):
    wide("adapters/wide.safetensors")
    before, result = contents(here), run(*line.split())
    assert result.exit_code == 1 and "different base models: unknown-1: adapters/a0.safetensors" in result.stderr and "unknown-2: adapters/wide.safetensors" in result.stderr
    assert "(24, 16) and (48, 16)" in result.stderr and "--mixed-bases" in result.stderr and contents(here) == before

def test_mixed_bases_are_merged_each_by_itself(here):
    wide("adapters/wide.safetensors")
    result = run("merge", "adapters", "-k", 2, "-o", "out", "--mixed-bases", "--report", "r.html")
    assert result.exit_code == 0 and sorted(os.listdir("out")) == [f"mean_{i}.safetensors" for i in range(3)] and Path("r-unknown-1.html").exists() and Path("r-unknown-2.html").exists()
    assert "base model unknown-1: mean_0, mean_1\n" in result.stdout and "base model unknown-2: mean_2\n" in result.stdout
    same("out/mean_2.safetensors", lambda m: torch.ones(48, 16))
    first = lg.mean_lora([lg.load(f"adapters/a{i}.safetensors") for i in (0, 2, 4)], method="median").lora
    same("out/mean_0.safetensors", lambda m: first[m].dense())
    assert json.loads(run("cluster", "adapters", "-k", 2, "--mixed-bases", "--json").stdout)["groups"] == [["a0", "a2", "a4"], ["a1", "a3", "a5"], ["wide"]]
    assert run("compare", "adapters/a0.safetensors", "adapters/wide.safetensors", "--mixed-bases").exit_code == 0
    found = json.loads(run("nearest", "adapters", "adapters/wide.safetensors", "--mixed-bases", "--json").stdout)
    assert [row["adapter"] for row in found] == ["wide"] and found[0]["similarity"] == pytest.approx(1, abs=1e-5)

@pytest.mark.parametrize("weights", ["1,-0.5", "b=-0.5,a=1"])
def test_one_group_is_a_plain_sum(weights, here):
    a, b = (lg.load(f"adapters/a{i}.safetensors") for i in (0, 1))
    shutil.copy("adapters/a0.safetensors", "a.safetensors"); shutil.copy("adapters/a1.safetensors", "b.safetensors")
    for strength in (1, 0.5):
        result = run("merge", "a.safetensors", "b.safetensors", "-k", 1, "--method", "cat", "--weights", weights, "--strength", strength, "-o", "out", "--force")
        assert result.exit_code == 0 and "weights as they are" in result.stderr and "in common" not in result.stderr
        same("out/mean_0.safetensors", lambda m: strength * (a[m].dense() - b[m].dense() / 2)) # noqa: B023
    run("merge", "a.safetensors", "b.safetensors", "-k", 1, "--method", "cat", "--weights", "0.7", "-o", "out", "--force")
    same("out/mean_0.safetensors", lambda m: 0.7 * (a[m].dense() + b[m].dense()))

def test_in_groups_weights_are_divided_by_their_sum_and_that_is_said(here):
    result = run("merge", "adapters", "-k", 2, "-o", "out", "--weights", "2,1,2,1,2,1")
    assert "divided by their sum in each group; one group, --n-clusters 1, sums" in result.stderr
    first = lg.mean_lora([lg.load(f"adapters/a{i}.safetensors") for i in (0, 2, 4)]).lora
    same("out/mean_0.safetensors", lambda m: first[m].dense())

# ---- cluster and nearest

def test_cluster_writes_nothing(here):
    before, result = contents(here), run("cluster", "adapters", "-k", 2)
    assert result.exit_code == 0 and [line.split() for line in result.stdout.splitlines()[-6:]] == [[str(i % 2), f"a{i}"] for i in (0, 2, 4, 1, 3, 5)] and contents(here) == before

def test_nearest_of_a_folder_and_of_an_index(here):
    loras = [lg.load(f"adapters/a{i}.safetensors") for i in range(6)]
    expected = lg.similarity(loras, side="right").joint[1].sort(descending=True)
    lg.SubspaceIndex("index", side="right").add(loras)
    for line in ("nearest adapters adapters/a1.safetensors --side right -n 4 --json", "nearest index adapters/a1.safetensors -n 4 --json"):
        found = json.loads(run(*line.split()).stdout)
        assert [row["adapter"] for row in found] == [f"a{i}" for i in expected.indices[:4]]
        assert [row["similarity"] for row in found] == pytest.approx(expected.values[:4].tolist(), abs=1e-5)
    Path("other").mkdir(); Path("other/index.json").write_text("[]")
    assert "is not that of a SubspaceIndex" in run("nearest", "other", "adapters/a1.safetensors").stderr

# ---- convert and resize

def test_convert_keeps_the_update(here):
    assert run("convert", "adapters/a0.safetensors", "k.safetensors", "--format", "kohya").stdout == "wrote k.safetensors (kohya, rank 2)\n"
    a, b = lg.load("adapters/a0.safetensors"), lg.load("k.safetensors")
    for m in a: torch.testing.assert_close(a[m].dense(), b[m].dense())
    assert "--force" in run("convert", "adapters/a1.safetensors", "k.safetensors").stderr
    assert run("convert", "adapters/a1.safetensors", "k.safetensors", "--force").exit_code == 0

def test_convert_says_what_a_small_dtype_rounds(here):
    out = run("convert", "adapters/a0.safetensors", "half.safetensors", "--dtype", "float16").stdout
    assert 1e-5 < float(out.partition("rounded by ")[2].rstrip(")\n")) < 1e-3

def test_ranks_are_padded_unless_ragged(here):
    lora = adapter(0, 0)
    names = list(lora)
    lg.save(lg.LoRA({names[0]: lora[names[0]], names[1]: lg.LoRAUpdate(torch.ones(24, 1), torch.ones(1, 16), 1.0, (24, 16))}), "mixed.safetensors", format="diffusers", ragged=True)
    for command in (["convert"], ["resize", "--energy", "1"]):
        for options, ranks in (([], [2, 2]), (["--ragged"], [1, 2])):
            assert run(*command, "mixed.safetensors", "out.safetensors", "--force", *options).exit_code == 0
            assert sorted(u.rank for u in lg.load("out.safetensors").values()) == ranks

def test_a_full_disk_is_a_line_and_leaves_what_was_there(here):
    run("convert", "adapters/a0.safetensors", "out.safetensors")
    before = contents(here)
    code = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"
    process = shell(code, "convert", "adapters/a1.safetensors", "out.safetensors", "--force")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.startswith("error: ") and "File too large" in err and err.count("\n") == 1
    assert contents(here) == before and not list(here.glob(".*"))

def test_resize_says_what_it_lost(here):
    out = run("resize", "adapters/a0.safetensors", "small.safetensors", "--rank", 1).stdout
    assert "rank 1" in out and f"{lg.resize(lg.load('adapters/a0.safetensors'), rank=1).rel_error:.3g}" in out

# ---- files that need a decision

def test_reading_options_reach_the_reader(here):
    from safetensors.torch import load_file
    tensors = load_file("adapters/a0.safetensors")
    first = next(iter(tensors))
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, "bad.safetensors")
    refused = run("inspect", "bad.safetensors")
    assert refused.exit_code == 1 and "--drop-bad leaves" in refused.stderr and "[E4]" in refused.stderr
    for line in ("--drop-bad inspect bad.safetensors --json", "inspect --drop-bad bad.safetensors --json", "inspect bad.safetensors --json --drop-bad"):
        assert len(json.loads(run(*line.split()).stdout)["adapters"][0]["modules"]) == 1
    save_file({"q.lora_A.weight": torch.ones(5000, 4), "q.lora_B.weight": torch.ones(3, 5000)}, "wide.safetensors")
    assert "--limit rank=N" in run("inspect", "wide.safetensors").stderr
    for option in (["--limit", "rank=5000"], ["--limit=rank=5000"]): assert run("inspect", "wide.safetensors", *option).exit_code == 0
    assert run("inspect", "wide.safetensors", "--limit", "size=5000").exit_code == 2
    assert run("--scale", 3, "inspect", "adapters/a0.safetensors").stdout.count(" 3 ") >= 1

def test_switches_have_no_type_and_completion_is_offered():
    assert "<bool>" not in run("merge", "--help").stdout + run("--help").stdout
    assert "--install-completion" in run("--help").stdout and "_loragrass_completion" in run("--show-completion", "bash").stdout

# ---- a process of its own

def test_help_is_quick():
    "Heavy packages are for the commands that need them"
    code = "import sys, loragrass.cli\nprint([m for m in ('torch', 'sklearn', 'pandas', 'matplotlib', 'scipy', 'rich.console') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

def test_a_reader_that_goes_away_is_no_error(here):
    process = shell("", "inspect", "adapters")
    with contextlib.suppress(BrokenPipeError): process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=120) == 0

def test_a_terminal_gets_what_it_can_show(here):
    shutil.copy("adapters/a0.safetensors", "Ж.safetensors")
    process = shell("", "inspect", "Ж.safetensors", env=os.environ | {"PYTHONIOENCODING": "latin-1", "NO_COLOR": "1"}, encoding="latin-1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and r"\u0416.safetensors" in out and "24 × 16" in out and err == ""

# ---- features and subspaces

def test_features_of_a_folder_are_those_of_the_library(here):
    import pandas as pd
    loras = lg.load_all("adapters")
    result = run("features", "adapters", "--representation", "spectral", "-o", "f.csv")
    assert result.exit_code == 0 and "6 adapters, 64 numbers each" in result.stdout
    frame, t = pd.read_csv("f.csv", index_col="adapter"), lg.Features(["spectral"])
    rows = t.fit_transform(loras)
    assert list(frame.columns) == list(t.get_feature_names_out()) and (frame.to_numpy(dtype="float32") == rows).all()
    assert list(frame.index) == [lora.name for lora in loras]
    run("features", "adapters", "--representation", "norms", "--representation", "flat", "--on", "canonical", "-o", "f.parquet")
    t = lg.Features(["norms", "flat"], "canonical")
    assert (pd.read_parquet("f.parquet").to_numpy() == t.fit_transform(loras)).all()
    assert "depend on the basis" in run("features", "adapters", "--representation", "flat", "-o", "g.csv").stdout

@pytest.mark.parametrize("line, says", [
    ("features adapters -o f.txt", "expected a name that ends in .csv or .parquet"), ("features adapters -o none/f.csv", "there is no folder none"),
    ("features adapters -o f.csv --representation spectra", "--representation spectra: expected one of flat, spectral"),
    ("features adapters -o old.csv", "old.csv is there already"), ("features adapters -o f.csv --on left", "on='left'; expected one of update"),
    ("features adapters -o f.csv --modules nothing", "keeps none"), ("features adapters -o f.csv --modules (", "modules='('"),
    ("subspaces adapters --base adapters/a0.safetensors", "the base has no weight for it"), ("subspaces adapters --base nowhere", "nowhere"),
    ("subspaces adapters --base old.csv", "old.csv: ")])
def test_what_features_and_subspaces_refuse(line, says, here):
    Path("old.csv").write_text("mine")
    result = run(*line.split())
    assert result.exit_code == 1 and says in result.stderr and len(result.stderr.splitlines()) == 1
    assert Path("old.csv").read_text() == "mine" and {p.name for p in here.iterdir()} == {"adapters", "old.csv"}

def test_parquet_without_pyarrow_names_the_extra(here, monkeypatch):
    import importlib.util
    whole = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "pyarrow" else whole(name, *a))
    result = run("features", "adapters", "-o", "f.parquet")
    assert result.exit_code == 1 and "pip install 'loragrass[hub]'; or write a .csv" in result.stderr

def test_features_without_a_named_file_are_written_and_1(here):
    Path("adapters/half.safetensors").write_bytes(Path("adapters/a0.safetensors").read_bytes()[:-8])
    assert run("features", "adapters", "-o", "f.csv").exit_code == 0 and Path("f.csv").exists()
    result = run("features", "adapters", "adapters/half.safetensors", "-o", "f.csv", "--force")
    assert result.exit_code == 1 and "done without adapters/half.safetensors" in result.stderr and Path("f.csv").exists()

def test_subspaces_of_a_folder(here):
    base = {m + ".weight": torch.randn(24, 16, generator=torch.Generator().manual_seed(5)) for m in adapter(0, 0)}
    Path("base").mkdir()
    for i, (key, w) in enumerate(base.items()): save_file({key.removeprefix("unet."): w}, f"base/{i}.safetensors")
    rows = json.loads(run("subspaces", "adapters", "--base", "base", "--json").stdout)
    reports = lg.subspace_report(lg.load_all("adapters"), base)
    assert [row["adapter"] for row in rows] == [r.name for r in reports]
    for row, r in zip(rows, reports):
        assert row["intruders"] == r.summary().intruders and [m["verdict"] for m in row["modules"]] == list(r.table.verdict)
    assert "chance" in run("subspaces", "adapters/a0.safetensors", "--base", "base").stdout

@pytest.fixture(scope="module")
def language(tmp_path_factory):
    "A small causal language model with its tokenizer, in a folder"
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    folder = tmp_path_factory.mktemp("language")
    letters = {c: i for i, c in enumerate("\nabcdefghijklmnopqrstuvwxyz .")}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(letters), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    (folder / "texts").mkdir()
    for i in range(6): (folder / "texts" / f"{i}.txt").write_text(("bake the bread with flour and knead the dough. " if i % 2 else "rain and wind bring clouds to the sky all day. ") * 3)
    (folder / "texts" / "picture.bin").write_bytes(bytes(range(256)))
    (folder / "texts" / "empty.txt").write_text("")
    return folder

def test_topics_of_a_folder(language, tmp_path):
    import peft, transformers
    out = tmp_path / "corpus"
    result = run("topics", language / "texts", "--model", language / "model", "-o", out, "-k", 2, "--rank", 4, "--window", 64)
    assert result.exit_code == 0 and "6 documents, 2 topics" in result.stdout and "picture.bin" in result.stderr and "empty.txt" in result.stderr
    assert {p.name for p in out.iterdir()} == {"topic_lora.json", "topic_lora.safetensors", "topics.csv", "documents.csv", "map.png", "plugin_0", "plugin_1"}
    base, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(language / "model"), transformers.AutoTokenizer.from_pretrained(language / "model")
    assert lg.TopicLoRA.load(out, base, tokenizer).vectors_.shape[0] == 6
    peft.PeftModel.from_pretrained(base, out / "plugin_1")
    again = run("topics", language / "texts", "--model", language / "model", "-o", out)
    assert again.exit_code == 1 and "holds a corpus already" in again.stderr
    forced = run("topics", language / "texts", "--model", language / "model", "-o", out, "-k", 2, "--rank", 4, "--window", 64, "--force", "--json")
    assert forced.exit_code == 0 and len(json.loads(forced.stdout)["documents"]) == 6

def test_topics_says_what_is_missing(language, tmp_path):
    for args, message in ((["nowhere", "--model", language / "model"], "No such file"), ([language / "texts", "--model", tmp_path / "nowhere"], "there is no"), ([language / "texts" / "0.txt", "--model", language / "model"], "1 texts"),
                          ([language / "texts", "--model", language / "model", "--target-modules", "query", "--window", "64"], "matches no linear layer")):
        result = run("topics", *args, "-o", tmp_path / "out")
        assert result.exit_code == 1 and message in result.stderr and not (tmp_path / "out").exists()

# ---- ablate

def labelled(folder, rows, head="name,label"): (folder / "labels.csv").write_text("\n".join([head, *rows]) + "\n")

def test_ablate_says_what_tells_the_label(here):
    labelled(here, [f"adapters/a{i}.safetensors,{'ink' if i % 2 else 'wash'}" for i in range(6)], "file,label")
    result = run("ablate", "adapters", "--labels", "labels.csv", "--cv", 3, "--representation", "kernel_pca", "-o", "table.csv")
    rows = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert result.exit_code == 0 and {"majority", "flat", "permuted labels", "kernel_pca"} <= set(rows) and " 1 " in rows["kernel_pca"]
    assert len(Path("table.csv").read_text().splitlines()) == 1 + 3 * (1 + 1 + 2 * 5)
    found = json.loads(run("ablate", "adapters", "--labels", "labels.csv", "--cv", 3, "--representation", "norms", "--json").stdout)
    assert [row["representation"] for row in found] == ["majority", "flat", "permuted labels", "norms"]

def test_ablate_leaves_out_what_has_no_label_and_says_so(here):
    labelled(here, [f"a{i},{i % 2},{i // 2}" for i in range(5)], "adapter,style,author")
    result = run("ablate", "adapters", "--labels", "labels.csv", "--column", "style", "--groups", "author", "--cv", 2, "--representation", "norms")
    assert result.exit_code == 0 and "no label for 1 adapters, which are left out: a5" in result.stderr

def test_ablate_reads_labels_from_metadata(here):
    (here / "marked").mkdir()
    for i in range(6):
        tensors = load_file(here / f"adapters/a{i}.safetensors")
        save_file(tensors, here / f"marked/a{i}.safetensors", {"style": "ink" if i % 2 else "wash"})
    assert run("ablate", "marked", "--labels", "metadata:style", "--cv", 3, "--representation", "norms").exit_code == 0

@pytest.mark.parametrize("rows, head, line, says", [
    (["a0,ink", "b7,wash"], "name,label", "", "labels.csv names 1 adapters that are not there, b7 first"), (["a0,ink,x"], "name,style,author", "", "several columns; choose by --column one of style, author"),
    (["a0,ink"], "name,label", "--column style", "no column 'style'"), ([f"a{i},ink" for i in range(6)], "name,label", "", "two classes at least"),
    ([f"a{i},{i % 2}" for i in range(6)], "name,label", "", "cv=5 for 6 adapters, 3 in the largest class"), (["a0,ink"], "name,label", "--representation colours", "--representation colours: expected one of flat"),
    (["a0,ink"], "name,label", "--classifier oracle", "--classifier oracle: expected one of linear"), (["a0,ink"], "name,label", "-o table.xlsx", "ends in .csv or .parquet"),
    (["a0,ink"], "name,label", "--labels metadata:style", "no adapter has 'style' in its metadata"), (["a0,ink"], "name,label", "--labels none.csv", "none.csv")])
def test_ablate_refuses_in_one_line(rows, head, line, says, here):
    labelled(here, rows, head)
    result = run("ablate", "adapters", *([] if "--labels" in line else ["--labels", "labels.csv"]), *line.split())
    assert result.exit_code == 1 and says in result.stderr.strip().splitlines()[-1] and not Path("table.csv").exists()
