"What is written: the same bytes, nothing lost without a word, and never half a file"
import os, signal, subprocess, sys, time, warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import loragrass as lg
from loragrass import writers
from loragrass.factors import parse_key
from loragrass.lora_io import LoRAUpdate, TensorFile
from lora_files import LISTS, kohya
from test_formats import NAME, quiet

def same(a, b, tol=1e-6):
    assert set(a) == set(b)
    for m in a: assert (a[m].dense() - b[m].dense()).norm() <= tol * b[m].dense().norm(), m

ROUND = [(n, f) for n in ("sd15_kohya", "sd15_diffusers_old", "sd15_kohya_locon_extra", "flux_kohya", "flux_comfy_bfl",
    "flux_diffusers_dreambooth") for f in ("kohya", "diffusers")] + [("flux_kohya", "bfl"), ("flux_diffusers_dreambooth", "bfl"), ("flux_comfy_bfl", "bfl")]

def some_modules(name, n=8):
    "The first and the last modules of a list, Flux at a 96th of its width"
    groups, width = {}, 96 if "flux" in name else 1
    for key, shape in LISTS[name].items(): groups.setdefault(parse_key(key)[0], {})[key] = [4 if d == "r" else d // width for d in shape]
    picked = [*groups.values()][:n] + [*groups.values()][-n:]
    return {k: torch.tensor(2.0) if k.endswith("alpha") else torch.randn(s) for g in picked for k, s in g.items()}

@pytest.mark.parametrize("name, format", ROUND)
def test_conversion_is_exact(tmp_path, name, format):
    save_file(some_modules(name), tmp_path/"a.safetensors")
    lora = quiet(tmp_path/"a.safetensors")
    saved = lg.save(lora, tmp_path/"b.safetensors", format=format)
    back = quiet(tmp_path/"b.safetensors")
    assert all(not back[m].up.any() for m in set(back) - set(lora)) # parts of a fused module that the input had not
    same({m: back[m] for m in lora}, lora)
    assert saved.format == format and saved.rel_error < 1e-6

def test_a_kohya_file_keeps_its_bits(tmp_path):
    t = {k: v.half() for k, v in kohya((12, 10), (8, 6)).items()}
    save_file(t, tmp_path/"a.safetensors")
    lg.save(lg.load(tmp_path/"a.safetensors"), tmp_path/"b.safetensors")
    back = load_file(tmp_path/"b.safetensors")
    assert set(back) == set(t) and all(torch.equal(back[k], t[k]) for k in t)

@pytest.mark.parametrize("dtype, rank, alpha", [(torch.float16, 3, 3), (torch.bfloat16, 257, 258), (torch.float8_e4m3fn, 17, 18)])
def test_alpha_is_a_number_of_the_files_dtype(tmp_path, dtype, rank, alpha):
    lora = lg.LoRA({NAME: lg.LoRAUpdate(torch.ones(300, rank), torch.eye(rank, 260 + rank), 1.0, (300, 260 + rank))}, format="kohya")
    lg.save(lora, tmp_path/"a.safetensors", dtype=dtype)
    file = TensorFile(tmp_path/"a.safetensors")
    assert {k.rpartition(".")[2]: float(file[k]) for k in file if k.endswith("alpha")} == {"alpha": alpha}

def test_ragged_kohya_files_have_one_alpha(tmp_path):
    lora = lg.LoRA({f"{NAME}{i}": lg.LoRAUpdate(torch.randn(12, r), torch.randn(r, 10), 0.7, (12, 10)) for i, r in enumerate((1, 3, 4))}, format="diffusers")
    lora = lg.LoRA({f"unet.mid_block.attentions.{i}.proj_in": u for i, u in enumerate(lora.values())})
    lg.save(lora, tmp_path/"a.safetensors", format="kohya", ragged=True)
    t = load_file(tmp_path/"a.safetensors")
    assert {float(v) for k, v in t.items() if k.endswith("alpha")} == {4.0} and sorted(len(v) for k, v in t.items() if "down" in k) == [1, 3, 4]
    same(quiet(tmp_path/"a.safetensors"), lora)

def test_modules_of_one_rank_by_zeros(tmp_path):
    lora = lg.LoRA({f"m.{i}": lg.LoRAUpdate(torch.randn(12, r), torch.randn(r, 10), 0.7, (12, 10)) for i, r in enumerate((1, 3, 0))})
    assert lg.save(lora, tmp_path/"a").rank == 3
    back = lg.load(tmp_path/"a")
    assert [u.rank for u in back.values()] == [3, 3] and "m.2" not in back # rank 0 is left out
    assert [len(u.svd().S) for u in back.values()] == [1, 3]

@pytest.mark.parametrize("arch, metadata, wanted", [("sdxl", {}, "sdxl_base_v1-0"),
    ("sd15", {"ss_base_model_version": "sd_v1.5x", "sshs_model_hash": "1", "modelspec.hash_sha256": "2", "ss_network_args": '{"algo": "lokr"}'}, "sd_v1.5x"), ("unknown", {"modelspec.title": "x"}, None)])
def test_metadata_does_not_misfile(tmp_path, arch, metadata, wanted):
    lora = lg.LoRA({NAME: lg.LoRAUpdate(torch.ones(4, 1), torch.ones(1, 4), 1.0, (4, 4))}, format="kohya", arch=arch, metadata=metadata)
    lg.save(lora, tmp_path/"a.safetensors")
    written = TensorFile(tmp_path/"a.safetensors").metadata
    assert written.get("ss_base_model_version") == wanted and not {"sshs_model_hash", "modelspec.hash_sha256", "ss_network_args"} & set(written) and (wanted or not written)

def test_the_same_bytes_whatever_the_order(tmp_path):
    save_file(kohya((12, 10), (8, 6)), tmp_path/"a.safetensors", metadata={f"ss_{c}": c for c in "abcdef"} | {"ss_base_model_version": "sd_v1"})
    lora = lg.load(tmp_path/"a.safetensors")
    turned = lg.LoRA(dict(reversed(list(lora.items()))), format="kohya", arch=lora.arch, metadata=dict(reversed(list(lora.metadata.items()))))
    for x, name in ((lora, "b"), (turned, "c")): lg.save(x, tmp_path/f"{name}.safetensors")
    assert (tmp_path/"b.safetensors").read_bytes() == (tmp_path/"c.safetensors").read_bytes()
    assert set(load_file(tmp_path/"b.safetensors")) == set(TensorFile(tmp_path/"a.safetensors"))

def test_what_is_not_low_rank_is_carried_or_named(tmp_path):
    save_file(kohya((12, 10)) | {"lora_unet_mid_block_attentions_0_norm.diff_b": torch.ones(12)}, tmp_path/"a.safetensors")
    lora = quiet(tmp_path/"a.safetensors")
    assert lg.save(lora, tmp_path/"b.safetensors").left_out == [] and list(quiet(tmp_path/"b.safetensors").passthrough) == list(lora.passthrough)
    with pytest.warns(UserWarning, match="W6"): assert lg.save(lora, tmp_path/"c.safetensors", format="diffusers").left_out == list(lora.passthrough)
    lora.passthrough = {k: t / 0 for k, t in lora.passthrough.items()}
    with pytest.raises(ValueError, match="norm.diff_b holds NaN"): lg.save(lora, tmp_path/"d.safetensors")

REFUSED = {
    "format": (dict(format="ckpt"), "cannot be written"), "folder": (dict(format="peft"), "is a folder"), "overflow": (dict(dtype=torch.float16),
        "dtype=torch.float32"),
    "fp8": (dict(dtype=torch.float8_e5m2), "dtype=torch.float32"),
}

@pytest.mark.parametrize("options, text", REFUSED.values(), ids=REFUSED)
def test_refusals_leave_nothing_behind(tmp_path, options, text):
    lora = lg.LoRA({NAME: lg.LoRAUpdate(torch.full((4, 1), 1e6), torch.full((1, 4), 1e6), 1.0, (4, 4))}, format="kohya")
    with pytest.raises(ValueError, match=text): lg.save(lora, tmp_path/"a.safetensors", **options)
    assert not list(tmp_path.iterdir())

# names

def pairs(*modules, tails=("lora_A.weight", "lora_B.weight"), m=48, n=16, rank=2):
    "Tensors of some modules, by the tails of their keys"
    torch.manual_seed(0)
    return {f"{module}.{tail}": torch.randn(s) for module in modules for tail, s in zip(tails, ((rank, n), (m, rank)))}

OWN = { # modules as a file for ComfyUI or kohya's clients spells them
    "wan": ["diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.ffn.0"],
    "z-image": ["diffusion_model.layers.0.attention.to_q", "diffusion_model.layers.0.feed_forward.w1"],
    "ltx": ["diffusion_model.transformer_blocks.0.attn1.to_q", "diffusion_model.adaln_single.linear"],
    "qwen": ["diffusion_model.transformer_blocks.0.attn.add_q_proj", "diffusion_model.transformer_blocks.0.img_mod.1"],
    "hunyuan": ["diffusion_model.double_blocks.0.img_attn_qkv", "diffusion_model.double_blocks.0.img_mlp.fc1"],
    "flux": ["diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.img_in", "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"],
    "flux 2": ["diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_stream_modulation_img.lin"],
    "sd 3": ["diffusion_model.joint_blocks.0.x_block.attn.qkv", "diffusion_model.joint_blocks.23.context_block.adaLN_modulation.1",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1"],
    "kohya wan": ["lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_0_ffn_0"],
    "kohya qwen": ["lora_unet_transformer_blocks_0_attn_to_q", "lora_unet_transformer_blocks_0_img_mlp_net_0_proj"],
    "kohya hunyuan": ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_39_linear2"],
    "onetrainer": ["lora_transformer_transformer_blocks_0_attn_to_q", "lora_transformer_transformer_blocks_0_attn_add_q_proj"],
}

@pytest.mark.parametrize("resized", [False, True])
@pytest.mark.parametrize("case", OWN)
def test_files_of_other_models_go_back_under_their_own_names(tmp_path, case, resized):
    tails = ("lora_A.weight", "lora_B.weight") if "." in OWN[case][0] else ("lora_down.weight", "lora_up.weight")
    save_file(t := pairs(*OWN[case], tails=tails), tmp_path/"a.safetensors")
    lora = quiet(tmp_path/"a.safetensors")
    lg.save(lg.resize(lora, rank=2).lora if resized else lora, tmp_path/"b.safetensors")
    assert set(load_file(tmp_path/"b.safetensors")) - {f"{m}.alpha" for m in OWN[case]} == set(t)
    assert "flux1" not in TensorFile(tmp_path/"b.safetensors").metadata.values()
    same(quiet(tmp_path/"b.safetensors"), lora, 1e-5)

def test_a_part_of_rank_0_keeps_its_rows_in_a_fused_module(tmp_path):
    sizes = {"attn.to_q": (16, 2), "attn.to_k": (16, 2), "attn.to_v": (16, 0), "proj_mlp": (80, 0)} # an MLP five times as wide, which is neither Flux
    lora = lg.LoRA({f"transformer.single_transformer_blocks.0.{p}": lg.LoRAUpdate(torch.randn(m, r), torch.randn(r, 16), 1.0, (m, 16)) for p, (m, r) in sizes.items()},
        format="bfl", arch="flux-like")
    lg.save(lora, tmp_path/"a.safetensors")
    assert load_file(tmp_path/"a.safetensors")["diffusion_model.single_blocks.0.linear1.lora_B.weight"].shape == (128, 4)

TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
NOWHERE = { # modules, format that they came in, format that has no name for them, what the error says
    "qwen": (["transformer.transformer_blocks.0.attn.to_q"], "diffusers", "kohya", "not certain"), "qwen comfy": (["transformer.transformer_blocks.0.attn.to_q"], "diffusers", "bfl", "not certain"),
    "animatediff": (["unet.down_blocks.0.motion_modules.0.attn1.to_q"], "diffusers", "kohya", "read back"), "ip": (["unet.mid_block.attn1.processor.to_q_ip"], "diffusers", "kohya", "read back"),
    "one name for two": (["unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj.in"], "diffusers", "kohya", "read back"),
    "wan": (["diffusion_model.blocks.0.q"], "bfl", "diffusers", "came from, bfl"), "wan peft": (["diffusion_model.blocks.0.q"], "bfl", "peft", "came from, bfl"),
    "kohya wan": (["lora_unet_blocks_0_q"], "kohya", "peft", "came from, kohya"), "wan kohya": (["diffusion_model.blocks.0.odd_q"], "bfl", "kohya", "came from"),
    "flux-like": (["transformer.single_transformer_blocks.99.attn.to_q"], "bfl", "diffusers", "of another model"), "flux-like peft": (["transformer.single_transformer_blocks.99.attn.to_q"], "bfl", "peft", "of another model"),
    "flux and text": (["transformer.single_transformer_blocks.0.attn.to_q", TEXT], "diffusers", "peft", "for one model"),
    "unet and text": (["unet.mid_block.attentions.0.proj_in", TEXT], "kohya", "peft", "for one model"),
}

@pytest.mark.parametrize("modules, source, format, text", NOWHERE.values(), ids=NOWHERE)
def test_what_a_format_cannot_name_is_refused(tmp_path, modules, source, format, text):
    lora = lg.LoRA({m: lg.LoRAUpdate(torch.ones(4, 1), (i + 1) * torch.ones(1, 4), 1.0, (4, 4)) for i, m in enumerate(modules)}, format=source,
        arch="flux-like" if "99" in modules[0] else "unknown")
    with pytest.raises(ValueError, match=text): lg.save(lora, tmp_path/("a" if format == "peft" else "a.safetensors"), format=format)
    assert not list(tmp_path.iterdir())

def test_names_that_a_format_lacks(tmp_path):
    llm = lg.LoRA({"model.layers.0.q": lg.LoRAUpdate(torch.ones(4, 1), torch.ones(1, 4), 1.0, (4, 4))})
    for format in ("kohya", "diffusers"):
        with pytest.raises(ValueError, match="model.layers.0.q"): lg.save(llm, tmp_path/"a.safetensors", format=format)

# inputs

def folder(path):
    "A PEFT folder of one module"
    lg.save(lg.LoRA({"q": lg.LoRAUpdate(torch.ones(4, 2), torch.ones(2, 4), 1.0, (4, 4))}), path)
    return path

INPUTS = { # where it is read, what is made of it, where it would go
    "itself": ("a.safetensors", lambda l: l, "a.safetensors"), "resized": ("a.safetensors", lambda l: lg.resize(l, rank=1).lora, "a.safetensors"),
    "by another path": ("a.safetensors", lambda l: l, "p/../a.safetensors"), "by a link": ("link.safetensors", lambda l: l, "a.safetensors"),
    "still read from it": ("a.safetensors", lambda l: lg.LoRA(l.updates, format="kohya"), "a.safetensors"),
    "folder by its file": ("p/adapter_model.safetensors", lambda l: l, "p"), "file by its folder": ("p", lambda l: lg.LoRA({"unet." + m: u for m, u in l.items()}, path=l.path,
        format="diffusers"), "p/adapter_model.safetensors"),
    "resized folder": ("p", lambda l: lg.resize(l, rank=1).lora, "p"),
}

@pytest.mark.parametrize("read, made, target", INPUTS.values(), ids=INPUTS)
def test_an_input_is_never_overwritten(tmp_path, read, made, target):
    save_file(kohya((12, 10)), tmp_path/"a.safetensors"); folder(tmp_path/"p"); (tmp_path/"link.safetensors").symlink_to("a.safetensors")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="another name"): lg.save(made(quiet(tmp_path/read)), tmp_path/target)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before

def test_a_file_beside_an_input_may_be_overwritten(tmp_path):
    lora = quiet(folder(tmp_path/"p"))
    for _ in range(2): lg.save(lora, tmp_path/"q"); lg.save(lora, tmp_path/"p"/"deeper")

# numbers

def one(norm, dtype=torch.float32, **options):
    "A large module and one of this norm"
    torch.manual_seed(0)
    made = {NAME: norm, NAME.replace("to_q", "to_k"): 100.0}
    return lg.LoRA({m: lg.LoRAUpdate((torch.randn(64, 4) * x ** 0.5 / 16).to(dtype), (torch.randn(4, 64) * x ** 0.5).to(dtype), 0.3, (64, 64)) for m, x in made.items()}, format="diffusers", **options)

def test_a_dtype_that_would_change_a_module_is_refused_or_named(tmp_path):
    with pytest.raises(ValueError, match="to_q: torch.float8_e4m3fn"): lg.save(one(1e-6), tmp_path/"a.safetensors", dtype=torch.float8_e4m3fn)
    with pytest.warns(UserWarning, match="changes a module by"): error = lg.save(one(100.0), tmp_path/"a.safetensors", dtype=torch.float8_e4m3fn).rel_error
    assert 0.01 < error < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lg.save(one(1e-6), tmp_path/"a.safetensors", dtype=torch.bfloat16).rel_error < 0.01
        lg.save(one(1e-12), tmp_path/"a.safetensors", dtype=torch.float16) # nothing beside the other

def test_what_is_computed_from_8_bits_is_not_rounded_to_8(tmp_path):
    lora = one(1.0, torch.float8_e4m3fn)
    lg.save(lora, tmp_path/"a.safetensors", format="kohya")
    assert {e.dtype for e in TensorFile(tmp_path/"a.safetensors").entries.values()} == {torch.float16}
    assert lg.save(lora, tmp_path/"b.safetensors").rel_error < 1e-3

def test_zeros_and_ranks_without_use(tmp_path):
    zero = lg.LoRA({"unet.x": lg.LoRAUpdate(torch.zeros(4, 2), torch.randn(2, 4), 1.0, (4, 4))}, format="diffusers")
    assert lg.save(zero, tmp_path/"a.safetensors", ragged=True, dtype=torch.float16).rank == 1
    wide = lg.LoRA({"unet.x": lg.LoRAUpdate(torch.randn(8, 30), torch.randn(30, 6), 1.0, (8, 6))}, format="diffusers")
    assert lg.save(wide, tmp_path/"b.safetensors").rank == 6
    same(quiet(tmp_path/"b.safetensors"), wide)
    many = lg.LoRA({"unet.x": lg.LoRAUpdate(torch.eye(1025), torch.eye(1025), 1.0, (1025, 1025))}, format="diffusers")
    with pytest.warns(UserWarning, match="rank 1025"): lg.save(many, tmp_path/"c.safetensors")

def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    lg.save(one(1.0), tmp_path/("u" * 243 + ".safetensors"))

def test_the_bias_of_a_module_left_out_is_named(tmp_path):
    a = {m: lg.LoRAUpdate(torch.ones(4, 2), torch.ones(2, 4), 2.0, (4, 4)) for m in ("q", "k")}
    bias = {f"base_model.model.{m}.lora_B.bias": torch.ones(4) for m in a}
    lora = lg.LoRA({"q": a["q"]}, format="peft", config={"lora_bias": True}, passthrough=bias)
    with pytest.warns(UserWarning, match="W6"): assert lg.save(lora, tmp_path/"a").left_out == ["base_model.model.k.lora_B.bias"]
    assert load_file(tmp_path/"a"/"adapter_model.safetensors")["base_model.model.q.lora_B.bias"][0] == 2
    lg.save(lg.LoRA({"q": a["q"]}, config={"lora_bias": True}), tmp_path/"b") # as a merge leaves it
    assert "lora_bias" not in (tmp_path/"b"/"adapter_config.json").read_text()

def test_resize_of_zero_and_of_small_updates():
    lora = lg.LoRA({"zero": lg.LoRAUpdate(torch.zeros(6, 2), torch.ones(2, 5), 1.0, (6, 5)),
        "one": lg.LoRAUpdate(torch.ones(6, 2), torch.ones(2, 5), 1.0, (6, 5))})
    small = lg.resize(lora, rank=8)
    assert {m: u.rank for m, u in small.lora.items()} == {"zero": 0, "one": 1} and small.rel_error < 1e-6
    with pytest.raises(ValueError, match="rank"): lg.resize(lora)

@pytest.mark.parametrize("scale", [-0.7, 3.0, 0.0])
def test_resize_keeps_scale_and_update(scale):
    lora = lg.LoRA({"q": lg.LoRAUpdate(torch.randn(6, 2), torch.randn(2, 5), scale, (6, 5))})
    small = lg.resize(lora, rank=2).lora
    assert small["q"].scale == scale
    same(small, lora, 1e-5)

# faults

CHILD = """
import sys, torch, loragrass as lg
a = lg.LoRA({f"m.{i}": lg.LoRAUpdate(torch.full((400, 8), float(sys.argv[2])), torch.ones(8, 400), 1.0, (400, 400)) for i in range(4)})
if len(sys.argv) > 3:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
b = lg.LoRA({"unet." + m: u for m, u in a.items()}, format="kohya")
x = 0
while True:
    x += 1
    scaled = lambda l: lg.LoRA({m: lg.LoRAUpdate(u.up * x, u.down, 1.0, u.weight_shape) for m, u in l.items()}, format=l.format)
    lg.save(scaled(a), sys.argv[1] + "/peft", format="peft"); lg.save(scaled(b), sys.argv[1] + "/a.safetensors", format="diffusers")
    print(x, flush=True)
"""

def child(folder, *args): return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True, env=os.environ)

@pytest.mark.parametrize("after", [0.004, 0.023])
def test_kill_9_leaves_the_old_file_or_the_new(tmp_path, after):
    p = child(tmp_path, "1")
    p.stdout.readline()
    time.sleep(after)
    p.send_signal(signal.SIGKILL); p.wait()
    for path in (tmp_path/"peft", tmp_path/"a.safetensors"):
        values = {float((u.scale * u.up).flatten()[0] * u.down.flatten()[0]) for u in quiet(path).values()}
        assert len(values) == 1 and values.pop() >= 1 # whole: all modules of one save

def test_a_full_disk_leaves_the_old_file(tmp_path):
    small = lg.LoRA({"unet.m.0": lg.LoRAUpdate(torch.ones(4, 1), torch.ones(1, 4), 1.0, (4, 4))}, format="diffusers")
    lg.save(small, tmp_path/"a.safetensors"); lg.save(lg.LoRA({"m.0": small["unet.m.0"]}), tmp_path/"peft")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    p = child(tmp_path, "1", "full")
    assert "File too large" in p.communicate()[1] and p.returncode == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before # and no leftovers beside it

def test_what_else_is_in_a_folder_stays(tmp_path):
    lora = lg.LoRA({"m": lg.LoRAUpdate(torch.ones(4, 2), torch.ones(2, 4), 1.0, (4, 4))})
    lg.save(lora, tmp_path/"a")
    (tmp_path/"a"/"README.md").write_text("mine"); (tmp_path/"a"/"deep").mkdir(); (tmp_path/"a"/"deep"/"x").write_text("too")
    lg.save(lg.LoRA({"m": lg.LoRAUpdate(2 * torch.ones(4, 2), torch.ones(2, 4), 1.0, (4, 4))}), tmp_path/"a")
    assert (tmp_path/"a"/"README.md").read_text() == "mine" and (tmp_path/"a"/"deep"/"x").read_text() == "too"
    assert lg.load(tmp_path/"a")["m"].dense()[0, 0] == 4 and os.listdir(tmp_path) == ["a"]

def test_where_folders_cannot_change_places_no_client_reads_a_mixture(tmp_path, monkeypatch):
    lora = lg.LoRA({"m": lg.LoRAUpdate(torch.ones(4, 2), torch.ones(2, 4), 1.0, (4, 4))})
    lg.save(lora, tmp_path/"a")
    real, calls = os.replace, []
    def replace(*args):
        calls.append(args)
        if len(calls) == 3: raise KeyboardInterrupt # new weights are there, their config is not
        real(*args)
    monkeypatch.setattr(writers, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt): lg.save(lora, tmp_path/"a")
    with pytest.raises(lg.LoRAFormatError, match="adapter_config.json missing"): lg.load(tmp_path/"a")

@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_8_bits_are_padded_where_torch_cannot_join_them(tmp_path, monkeypatch, format): # as torch 2.4
    cat = torch.cat
    def old(tensors, *args, **kwargs):
        if any(t.dtype.itemsize == 1 for t in tensors): raise RuntimeError("cat of 8 bits")
        return cat(tensors, *args, **kwargs)
    updates = {f"unet.{m}": LoRAUpdate(torch.ones(8, r), torch.ones(r, 6), 1.0, (8, 6)) for m, r in (("mid_block.attentions.0.proj_in", 1), ("mid_block.attentions.0.proj_out", 2))}
    updates["unet.mid_block.resnets.0.conv1"] = LoRAUpdate(torch.ones(8, 2), torch.ones(2, 54), 1.0, (8, 6, 3, 3))
    lora = lg.LoRA(updates, name="a", format="kohya", arch="sd15")
    path = tmp_path/("a" if format == "peft" else "a.safetensors")
    with monkeypatch.context() as m:
        m.setattr(torch, "cat", old)
        lg.save(lora, path, format, dtype=torch.float8_e4m3fn)
    back = lg.load(path)
    for m, u in updates.items(): torch.testing.assert_close(back[m].dense().flatten(1), u.dense().flatten(1))
