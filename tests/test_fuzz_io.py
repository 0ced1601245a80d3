"""Mutated files: only LoRAFormatError, no crash, no hang, no memory, no wrong silent read.

A quick run by default, the same each time; LORAGRASS_FUZZ=5000 (`make fuzz`) for so many examples of each kind, with other seeds each time."""
import json, os, re, resource, shutil, struct, time, warnings
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save, save_file

import loragrass as lg
from loragrass import formats
from loragrass.lora_io import computable
from loragrass.scales import by_pattern
from lora_files import LISTS, kohya, peft_folder, tensors

EXAMPLES = int(os.environ.get("LORAGRASS_FUZZ", 300))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize="LORAGRASS_FUZZ" not in os.environ, database=None)
SEEN, START = Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]

def seeds():
    some = lambda name, n: tensors({k: [min(d, 6) if d != "r" else d for d in s] for k, s in list(LISTS[name].items())[:n]})  # noqa: E731
    lokr = {"lora_unet_x.lokr_w1": torch.ones(2, 2), "lora_unet_x.lokr_w2_a": torch.ones(3, 2), "lora_unet_x.lokr_w2_b": torch.ones(2, 4),
        "lora_unet_x.alpha": torch.tensor(1.0)}
    loha = {f"lora_unet_y.hada_{w}": torch.ones(9, 2) if w.endswith("a") else torch.ones(2, 9) for w in ("w1_a", "w1_b", "w2_a", "w2_b")}
    eight = [{k: t.to(dtype) for k, t in kohya((9, 8)).items()} for dtype in FP8]
    return [save(t) for t in (kohya((9, 8), (6, 7)), some("sd15_diffusers_new", 8), some("sd15_diffusers_old", 8), lokr | loha, *eight)]

SEEDS = seeds()
HEADER = json.loads(SEEDS[0][8:8 + struct.unpack("<Q", SEEDS[0][:8])[0]])

def attempt(path, **options):
    "Read everything; what comes back must be finite and of the shape it claims"
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: lora = lg.load(path, **options)
        except lg.LoRAFormatError as e:
            assert e.code and len(str(e)) < 2000
            lora = {}
            SEEN[e.code] += 1
        else: SEEN["read"] += 1
    for module in lora:
        u = lora[module]
        assert torch.isfinite(u.up.float()).all() and torch.isfinite(u.down.float()).all() and u.dense().isfinite().all() and u.dense().shape == u.weight_shape
        r, seen = lora.updates.recipes[module], lora.peek(module) # a part loses zero columns, an approximation singular values of zero
        assert r.part or r.approx or (seen.up.shape, seen.down.shape) == (u.up.shape, u.down.shape)
    assert time.process_time() - start < 5
    return lora

@pytest.fixture(scope="module")
def path(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")/"a.safetensors"

@fuzz
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=4), st.integers(0, 4)), min_size=1, max_size=4))
def test_bytes_changed_anywhere(path, data, edits):
    for at, new, drop in edits:
        i = int(at * len(data))
        data = data[:i] + new + data[i + drop:]
    path.write_bytes(data)
    if lora := attempt(path): # what is read is what the library reads
        theirs = load_file(path)
        for m, r in lora.updates.recipes.items():
            assert all(key in theirs for key in r.keys.values())
            if r.kind == "lora" and not r.part: assert all(torch.equal(getattr(lora[m], role), computable(theirs[r.keys[role]]).flatten(1)) for role in ("up", "down"))

json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=3)
    | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=8)
entries = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "BOOL", "X"]) | json_values,
    "shape": st.lists(st.integers(-1, 9) | st.integers(0, 2**64), max_size=6) | json_values,
                                 "data_offsets": st.lists(st.integers(0, 600) | st.integers(-2**64, 2**64), min_size=1, max_size=3) | json_values})
keys = st.sampled_from([k for k in HEADER] + ["q.alpha", "q.hada_w1_a", "q.lokr_w1", "base_model.vera_A", "../x", "__metadata__"]) | st.text(max_size=30)

@fuzz
@given(st.dictionaries(keys, entries | json_values, max_size=6), st.booleans())
def test_headers_of_any_json(path, header, keep):
    text = json.dumps(header | (HEADER if keep else {})).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + SEEDS[0][8 + struct.unpack("<Q", SEEDS[0][:8])[0]:])
    attempt(path)

roles = st.sampled_from(["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scale", "dora_scale", "lora_A", "lora_B", "lora_E",
    "lora_embedding_A", "lora_embedding_B", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
                         "hada_t1", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lora_a",
                         "lora_b", "diff", "vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"])
modules = st.sampled_from(["lora_unet_x", "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1", "unet.x", "base_model.model.q",
    "base_model"])

@fuzz
@given(st.dictionaries(st.tuples(modules, roles), st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=8),
    st.sampled_from([torch.float32, torch.float16, *FP8, torch.int64]))
def test_roles_and_shapes_of_any_kind(path, shapes, dtype):
    save_file({f"{m}.{role}": torch.ones(s).to(dtype) for (m, role), s in shapes.items()}, path)
    attempt(path)

CONFIG = st.dictionaries(st.sampled_from(["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "target_parameters", "init_lora_weights", "lora_parameters", "layer_replication"]), json_values, max_size=5)

@fuzz
@given(CONFIG)
def test_configs_of_any_json(tmp_path_factory, config):
    folder = tmp_path_factory.getbasetemp()/"fuzz_config"
    if not folder.exists(): peft_folder(folder, {f"base_model.model.q.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 6)), ("B", (9, 2)))})
    (folder/"adapter_config.json").write_text(json.dumps(config))
    attempt(folder)

# one module of each kind as it should be, and one thing about it changed: what the strategies above never reach

Q, FLUX, CONV = "base_model.model.q", "diffusion_model.%s_blocks.0.%s", "lora_unet_mid_block_resnets_0_conv1"
def named(module, **shapes): return {f"{module}.{role.replace('__', '.')}": shape for role, shape in shapes.items()}
def pair(module, n=6, m=6): return named(module, lora_A__weight=(2, n), lora_B__weight=(m, 2))
HADA, LOKR = dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (2, 6)), dict(lokr_w1=(2, 2), lokr_w2_b=(2, 3))
WELL = { # shape by key, config
    "kohya": (named("lora_unet_x", lora_down__weight=(2, 6), lora_up__weight=(6, 2), alpha=()), {}),
    "conv": (named(CONV, lora_down__weight=(2, 4, 3, 3), lora_up__weight=(6, 2, 1, 1), alpha=(1,)), {}),
    "tucker": (named("q", lora_down__weight=(2, 4, 1, 1), lora_up__weight=(6, 2, 1, 1), lora_mid__weight=(2, 2, 3, 3)), {}),
    "loha": (named(CONV, hada_w1_a=(8, 2), hada_w1_b=(2, 9), hada_w2_a=(8, 2), hada_w2_b=(2, 9), alpha=()), {}),
    "loha tucker": (named("q", **HADA, hada_t1=(2, 2, 2, 2), hada_t2=(2, 2, 2, 2)), {}),
    "lokr": (named("q", **LOKR, lokr_w2_a=(3, 2)), {}), "lokr tucker": (named("q", **LOKR, lokr_w2_a=(2, 3), lokr_t2=(2, 2, 2, 2)), {}),
    "lokr apart": (named("q", lokr_w1_a=(2, 1), lokr_w1_b=(1, 3), lokr_w2=(3, 2, 3, 3)), {}),
    "fused": (pair(FLUX % ("double", "img_attn.qkv"), 6, 9), {}), "fused with mlp": (pair(FLUX % ("single", "linear1"), 3, 15), {}),
    "peft": (pair(Q), dict(r=2, lora_alpha=4)), "gpt2": (pair("base_model.model.h.0.attn.c_attn"), dict(r=2, lora_alpha=4, fan_in_fan_out=True)),
    "embedding": (named(Q, lora_embedding_A=(2, 6), lora_embedding_B=(6, 2)), dict(r=2, lora_alpha=4, use_rslora=True)),
    "experts": (pair(Q) | pair(f"{Q}.experts", 4, 4), dict(r=1, lora_alpha=4, target_parameters=["w"], rank_pattern={"q": 2})),
    "adalora": (named(Q, lora_A=(2, 6), lora_B=(6, 2), lora_E=(2, 1)), dict(peft_type="ADALORA", lora_alpha=4, rank_pattern={"q": [True, False]})),
    "vera": (named(Q, vera_lambda_b=(6,), vera_lambda_d=(2,)) | named("base_model", vera_A=(2, 6), vera_B=(6, 2)), dict(peft_type="VERA", r=2)),
    "peft loha": (named(Q, **HADA | dict(hada_w1_a=(6, 2), hada_w2_a=(6, 2))), dict(peft_type="LOHA", r=2, alpha=4)),
    "peft lokr": (named(Q, lokr_w1=(2, 2), lokr_w2=(3, 3)), dict(peft_type="LOKR", r=2, alpha=4)),
    "mlx": (named("q", lora_a=(6, 2), lora_b=(2, 6)), dict(lora_parameters={"rank": 2, "scale": 20.0})),
}
ROLES = sorted({key.partition("q.")[2] for shapes, _ in WELL.values() for key in shapes if "q." in key})
FIELDS = ["peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "target_parameters", "lora_parameters"]
SHAPES = {"turned": lambda s, i: s[::-1], "flat": lambda s, i: (max(1, int(torch.Size(s).numel())),), "one more": lambda s, i: (*s[:i], 1, *s[i:]),
    "one less": lambda s, i: s[:i] + s[i + 1:], "larger": lambda s, i: (*s[:i], *(d + 1 for d in s[i:i + 1]), *s[i + 1:]), "split": lambda s, i: (*s[:-1], 1, *s[-1:], 1),
    "none": lambda s, i: (), "kernel": lambda s, i: (*s[:2], 3, 3)}
DTYPES = [torch.float16, torch.bfloat16, *FP8, torch.float64, torch.int8, torch.int64, torch.uint16, torch.bool, torch.complex64]
odd_values = st.sampled_from([None, 0, -1, 1e300, True, "x", "ADALORA", "LORA", [], {}, [[1]], [4], {"q": 0}, {"q": None}, {"q": [True]}, {"(": 1}, {"scale": 0}, {"scale": "x"}])

@settings(fuzz, max_examples=2 * EXAMPLES)
@given(st.sampled_from(sorted(WELL)), st.integers(0, 9), st.integers(0, 4), st.sampled_from([None, 2]), st.one_of(
    st.tuples(st.just("shape"), st.sampled_from(sorted(SHAPES))), st.tuples(st.just("dtype"), st.sampled_from(DTYPES)), st.tuples(st.just("role"), st.sampled_from(ROLES)),
    st.tuples(st.just("value"), st.sampled_from([float("nan"), float("-inf"), 1e30, 1e200, 0.0])), st.tuples(st.just("gone"), st.none()),
    st.tuples(st.just("beside"), st.sampled_from(["alpha", "scale", "dora_scale", "diff", "lora_A.other.weight", "lora_mid.weight"])),
    st.tuples(st.just("config"), st.tuples(st.sampled_from(FIELDS), odd_values | json_values))))
def test_one_thing_changed_in_a_module_of_each_kind(tmp_path_factory, kind, which, i, approx_rank, change):
    (shapes, config), (what, to) = WELL[kind], change
    key = sorted(shapes)[which % len(shapes)]
    t = {k: torch.linspace(-1, 2, max(1, torch.Size(s).numel())).reshape(s) for k, s in shapes.items()}
    if what == "shape": t[key] = torch.ones(SHAPES[to](shapes[key], i))
    elif what == "dtype": t[key] = t[key].to(to)
    elif what == "value": t[key] = torch.full_like(t[key], to, dtype=torch.float64)
    elif what == "role": t[key.rpartition("q.")[0] + "q." + to if "q." in key else f"{key}.{to}"] = t.pop(key)
    elif what == "beside": t[f"{next(iter(shapes)).rpartition('.lora')[0] or 'q'}.{to}"] = torch.ones([2] * (i % 3))
    elif what == "gone": del t[key]
    else: config = config | {to[0]: to[1]}
    folder = tmp_path_factory.getbasetemp()/"fuzz_kinds"; folder.mkdir(exist_ok=True)
    (folder/"adapter_model.safetensors").write_bytes(save(t))
    (folder/"adapter_config.json").write_text(json.dumps(config)) if config else (folder/"adapter_config.json").unlink(missing_ok=True)
    attempt(folder, approx_rank=approx_rank)

@pytest.mark.parametrize("kind", WELL)
def test_the_module_of_each_kind_is_read_unchanged(tmp_path, kind):
    shapes, config = WELL[kind]
    save_file({k: torch.ones(s) for k, s in shapes.items()}, tmp_path/"adapter_model.safetensors")
    if config: (tmp_path/"adapter_config.json").write_text(json.dumps(config))
    assert attempt(tmp_path, approx_rank=2)

# folders: what lies there is an adapter that is read, or it is named with a reason

def adapter_files():
    pair = {f"base_model.model.q.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 6)), ("B", (9, 2)))}
    wide = {k: torch.ones([d + 1 for d in t.shape]) for k, t in pair.items()}
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}).encode()
    weights = [save(pair), save(wide), save({k: t.to(FP8[0]) for k, t in pair.items()}), SEEDS[0], b"", b"<html>", save(pair)[:-3]]
    return {"adapter_model.safetensors": weights, "adapter_config.json": [config, config, b"{", b"[]", b'{"peft_type": "IA3"}'], "adapters.safetensors": weights,
        "0000100_adapters.safetensors": weights, "pytorch_lora_weights.safetensors": weights, "style.safetensors": weights, "model.safetensors": weights, "random_states_0.pkl": [b"\x80\x02"], "optimizer.safetensors": weights, "a.gguf": [b"GGUF"], "b.ggml": [b"ggla"],
        "adapters.npz": [b"PK"], "adapter_model.bin": [b"\x80\x02"], "optimizer.pt": [b"\x80\x02"], "training_args.bin": [b"\x80\x02"], "epoch.ckpt": [b"\x80\x02"],
        "README.md": [b"# me"], "trainer_state.json": [b"{}"], "new\nline.safetensors": weights}

LYING = adapter_files()
WHERE = st.lists(st.sampled_from(["a", "checkpoint-100", "default", "pissa_init", "x.safetensors", "lora_ga_init"]), max_size=3).map("/".join)
LINKS = st.dictionaries(st.tuples(WHERE, st.sampled_from(["link", "link.safetensors"])), st.sampled_from(["..", ".", "/etc", "nowhere", "a/style.safetensors"]), max_size=2)
one_file = st.sampled_from(sorted(LYING)).flatmap(lambda name: st.tuples(WHERE, st.just(name), st.sampled_from(LYING[name])))

@fuzz
@given(st.lists(one_file, max_size=9), LINKS, st.booleans())
def test_nothing_in_a_folder_is_passed_over_in_silence(tmp_path_factory, files, links, drop_bad):
    folder = tmp_path_factory.getbasetemp()/"fuzz_folder"
    shutil.rmtree(folder, ignore_errors=True); folder.mkdir()
    for where, name, data in files:
        (folder/where).mkdir(parents=True, exist_ok=True)
        (folder/where/name).write_bytes(data)
    for (where, name), to in links.items():
        if (folder/where).is_dir() and not (folder/where/name).exists(): (folder/where/name).symlink_to(to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loras = lg.load_all(folder, drop_bad=drop_bad)
    SEEN["folders"] += 1
    assert all(isinstance(e, lg.LoRAFormatError) and e.code and str(e).isprintable() for e in loras.skipped)
    named = [path for path in told(loras) if path.name != "adapter_config.json"] # a broken one is named for each file that it speaks of
    assert len(named) == len({*named})
    for path in folder.rglob("*"):
        if path.suffix in {".safetensors", ".gguf", ".ggml", ".npz", ".bin", ".ckpt"} and path.is_file() and not path.is_symlink() and not formats._STATE.search(path.name):
            weights = next((name for name in (*formats._WEIGHTS, "adapter_model.bin") if (path.parent/name).exists()), "")
            same = path.name == weights or (path.name, weights) == ("adapter_model.bin", "adapter_model.safetensors") # which the folder's name stands for
            assert {path} & {*named} or same and {path.parent, path.parent/weights} & {*named} or path.parent/"adapter_config.json" in told(loras), path
        if path.name == "adapter_config.json": assert any(p.is_relative_to(path.parent) for p in told(loras)), path
    for lora in loras: assert all(lora[m].dense().isfinite().all() for m in lora)

def told(loras): return [lora.path for lora in loras] + [e.path for e in loras.skipped]

def test_the_fuzz_got_past_the_first_check():
    print(f"\n{sum(SEEN.values()):,} mutated files: " + ", ".join(f"{code} {n:,}" for code, n in SEEN.most_common()))
    assert sum(SEEN.values()) > 3 * EXAMPLES and SEEN["read"] > EXAMPLES / 10 and {f"E{i}" for i in (1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14)} <= set(SEEN)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - START < 1 << 20 # kB

# hostile on purpose

def raw(text, data=b""): return struct.pack("<Q", len(text)) + text + data
PAIR = b'"%s.lora_A.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HOSTILE = {
    "100 MB header": lambda: raw(b'{"a":"' + b"x" * (100 << 20) + b'"}'),
    "a million tensors": lambda: raw(b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' % i for i in range(10**6)) + b"}"),
    "a hundred thousand tensors": lambda: raw(b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' % i for i in range(10**5 + 1)) + b"}"),
    "overlapping in part": lambda: raw(b"{" + PAIR % b"a" + b"," + PAIR.replace(b"[0,4]", b"[2,6]") % b"b" + b"}", bytes(6)),
    "ten million objects": lambda: raw(b'{"a":[' + b"{}," * 10_000_000 + b"{}]}"),
    "ten million lists": lambda: raw(b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"),
    "deep": lambda: raw(b'{"a":' + b"[" * (1 << 20) + b"}"),
    "2**63 bytes": lambda: raw(b'{"a.lora_A.weight":{"dtype":"F32","shape":[2305843009213693952],"data_offsets":[0,9223372036854775808]}}'),
    "2**63 header": lambda: struct.pack("<Q", 1 << 63) + b"{" + bytes(100),
    "overlapping": lambda: raw(b"{" + PAIR % b"a" + b"," + PAIR % b"b" + b"}", bytes(4)),
    "a path": lambda: raw(b"{" + PAIR % b"../../../etc/passwd" + b"}", bytes(4)),
    "a long name": lambda: raw(b"{" + PAIR % (b"a." * 10**6) + b"}", bytes(4)),
    "a huge integer": lambda: raw(b'{"a":' + b"9" * 10**6 + b"}"),
    "a kronecker bomb": lambda: save({"q.lokr_w1": torch.ones(1024, 1024), "q.lokr_w2_a": torch.ones(1024, 4), "q.lokr_w2_b": torch.ones(4, 1024)}),
    "a tucker bomb": lambda: save({"q.lora_mid.weight": torch.ones(1, 1, 1024, 1024), "q.lora_down.weight": torch.ones(1, 1 << 20, 1, 1),
        "q.lora_up.weight": torch.ones(8, 1, 1, 1)}),
}

@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_quickly_and_in_little_memory(tmp_path, name):
    path = tmp_path/"a.safetensors"
    path.write_bytes(HOSTILE[name]())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(lg.LoRAFormatError): lg.load(path)
    assert time.process_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20 # kB

BOMBS = ["(ab|ab)" * 40 + "c", "(|a)" * 60 + "c", "(a|a?)+$", "(a+)+b", "((a*)*)*b", "a?" * 40 + "a" * 40, ".*.*.*.*b", "(a{1,99999}){1,99999}b",
    "(?=(a+)+b)a*", "[" + "".join(chr(0x100 + 3 * i) for i in range(1900)) + "]", "(" * 49 + "a" + "+)" * 49 + "b"]

@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
def test_patterns_that_re_never_ends_are_matched_at_once(tmp_path, field):
    t = {f"base_model.model.{'a' * 60}.{i}.lora_{x}.weight": torch.ones(s) for i in range(8) for x, s in (("A", (2, 6)), ("B", (9, 2)))}
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = lg.load(peft_folder(tmp_path/"a", t, r=2, lora_alpha=4, **{field: {p: 2 for p in BOMBS} | {"a+.1|a+.2": 8}}))
    assert time.process_time() - start < 5 # hours, by re
    assert [lora[f"{'a' * 60}.{i}"].scale for i in range(4)] == ([2, 4, 4, 2] if field == "alpha_pattern" else [2] * 4)

@pytest.mark.parametrize("pattern", [r"(a)\1*b", "(?<=a)b", "(?P<x>a)", "(?i:a)", "a++", "a)|(b", "(a", "[a", "[b-a]", "a{3,2}", "*a", "a\\", r"\x41", "(" * 60 + ")" * 60, "a" * 3000])
def test_patterns_that_are_not_read_are_refused(tmp_path, pattern):
    t = {"base_model.model.q.lora_A.weight": torch.ones(2, 6), "base_model.model.q.lora_B.weight": torch.ones(9, 2)}
    with pytest.raises(lg.LoRAFormatError, match="pattern.*Correct it in the config") as e: lg.load(peft_folder(tmp_path/"a", t, r=2, alpha_pattern={pattern: 3}))
    assert e.value.code == "E14"

@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
def test_patterns_have_little_time_in_all(tmp_path, monkeypatch, field):
    monkeypatch.setattr(formats, "_PATIENCE", 0.3)
    t = {f"base_model.model.{'a.' * 100}{i}.lora_{x}.weight": torch.ones(s) for i in range(50) for x, s in (("A", (2, 4)), ("B", (4, 2)))}
    start = time.process_time()
    with pytest.raises(lg.LoRAFormatError, match="0.3 s to match") as e: lg.load(peft_folder(tmp_path/"a", t, r=2, lora_alpha=2, **{field: {f".*a.*a.*c{i}": 2 for i in range(9000)}}))
    assert e.value.code == "E14" and e.value.path == tmp_path/"a" and time.process_time() - start < 5

ATOMS = ["a", "b", ".", r"\.", "_", "1", r"\d", r"\w", r"\W", r"\S", r"\D", "[ab]", "[^a]", "[a-b_]", "[.1-]", "[]a]", "[^]a]", r"[\d.]", r"[^\w]", "-", "{", "}", "]", "{a}",
    "[--1]", r"[\.\-]", "^", "$", r"\b", r"\Z", r"\A", "/"]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?", "+?", "??", "{0}", "{0,1}?"]

def grown(inner):
    group = st.builds(lambda kind, parts: f"({kind}{'|'.join(parts)})", st.sampled_from(["", "?:", "?=", "?!"]), st.lists(inner, min_size=1, max_size=3))
    one = st.one_of(inner, group)
    return st.one_of(group, st.lists(st.one_of(one, st.builds(str.__add__, one, st.sampled_from(REPEATS))), max_size=4).map("".join))

@fuzz
@given(st.recursive(st.sampled_from(ATOMS), grown, max_leaves=8), st.text("ab._1-", max_size=9))
def test_patterns_match_as_re_matches_them(pattern, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: expected = bool(re.match(rf"(.*\.)?({pattern})$", name)) # as PEFT's get_pattern_key
        except re.error: return
    try: found = by_pattern({pattern: True}, name, False)
    except ValueError: assert re.search(r"[*+?}]\+", pattern) # possessive: the one thing that these can be made of and that is not read
    else: assert found == expected

WRITTEN = ["q_proj", "model.layers.1.self_attn.q_proj", "^model.decoder.layers.0.encoder_attn.k_proj", r"layers\.\d+\.self_attn\.(q|v)_proj", "layers.[0-9]+.mlp.*", r".*\.(to_k|to_v)",
    r"(?!.*lm_head).*_proj", r"model\.layers\.(1[0-9]|2[0-3])\..*", "down_blocks.0.*", r"down_blocks\.[01]\.attentions\.\d\..*to_q$", ".*attn.*", "lm_head", "k_proj|v_proj",
    "layers.{1,2}1.*", r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_(out|mlp))", r"\b0\b.*", "mid_block", "to_out.0", r"ff\.net\.[02](\.proj)?"]

def test_patterns_as_people_write_them():
    names = [key.rsplit(".lora", 1)[0] for shapes in LISTS.values() for key in list(shapes)[:400]]
    names += [f"model.layers.{i}.self_attn.{x}_proj" for i in range(30) for x in "qkvo"] + [f"model.layers.{i}.mlp.up_proj" for i in range(30)] + ["lm_head"]
    found = Counter()
    for pattern in WRITTEN:
        compiled = re.compile(rf"(.*\.)?({pattern})$")
        for name in names:
            matches = by_pattern({pattern: True}, name, False)
            assert matches == bool(compiled.match(name)), (pattern, name)
            found[pattern] += matches
    assert sum(n > 0 for n in found.values()) > 10

# ---- texts

EVIL = "\x1b[2J\x9b31m\u202egnp\u2066\n\r\x07\u2028"

def evil_config(path): return peft_folder(path/"a", {"base_model.model.q.lora_A.weight": torch.ones(2, 6), "base_model.model.q.lora_B.weight": torch.ones(9, 2)},
    r=2, peft_type=f"OFT{EVIL}")
def evil_pattern(path): return peft_folder(path/"a", {"base_model.model.q.lora_A.weight": torch.ones(2, 6)}, r=2, alpha_pattern={f"({EVIL}": 2})
def evil_value(path): return peft_folder(path/"a", {"base_model.model.q.lora_A.weight": torch.ones(2, 6)}, r=2, alpha_pattern={f"q{EVIL}": EVIL})
def evil_file(path):
    (path/f"a{EVIL}.safetensors").write_text("<!DOCTYPE html>")
    return path/f"a{EVIL}.safetensors"
def evil_key(path):
    save_file({f"q{EVIL}.lora_B.weight": torch.ones(2, 2)}, path/"a.safetensors")
    return path/"a.safetensors"
def evil_module(path): # no ASCII control character among them, which older readers looked for
    save_file({"q\x9b31m\u202e.lora_B.weight": torch.ones(2, 2), "q\x9b31m\u202e.lora_A.weight": torch.ones(2, 2)}, path/"a.safetensors")
    return path/"a.safetensors"
def evil_dtype(path):
    header = json.dumps({"q.lora_up.weight": {"dtype": EVIL, "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path/"a.safetensors").write_bytes(raw(header, bytes(8)))
    return path/"a.safetensors"

@pytest.mark.parametrize("build", [evil_config, evil_pattern, evil_value, evil_file, evil_key, evil_module, evil_dtype])
def test_errors_hold_no_control_characters(tmp_path, build):
    path = build(tmp_path)
    with pytest.raises(lg.LoRAFormatError) as e: lg.load(path)
    assert str(e.value).isprintable() and e.value.text.isprintable()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert repr(lg.load_all(tmp_path)).replace("\n", "").isprintable()
    assert said and all(str(w.message).isprintable() for w in said)

def test_warnings_and_names_hold_no_control_characters(tmp_path):
    t = kohya((9, 8))
    save_file(t | {"other": torch.ones(1)}, tmp_path/f"a{EVIL}.safetensors", metadata={f"long{EVIL}": "x" * (1 << 21)})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lora = lg.load(tmp_path/f"a{EVIL}.safetensors")
    assert len(said) >= 2 and all(str(w.message).isprintable() for w in said)
    assert lora.name.isprintable() and repr(lora).isprintable() and all(issue.text.isprintable() for issue in lora.issues)

# ---- small files of large updates

def test_a_table_leaves_out_what_a_small_file_makes_large(tmp_path):
    from typer.testing import CliRunner
    from loragrass.cli import app
    def lokr(name, m, r): return {f"{name}.lokr_{w}_{x}": torch.eye(*s).half() for w, k in (("w1", r), ("w2", 64)) for x, s in (("a", (m, k)), ("b", (k, m)))}
    path = tmp_path/"a.safetensors"
    save_file(lokr("lora_unet_x", 64, 32) | lokr("lora_unet_y", 64, 32) | kohya((9, 8)), path) # rank 2048 of 50 kB
    start = time.process_time()
    said = CliRunner().invoke(app, ["--alpha", "1", "inspect", "--json", str(path)])
    assert time.process_time() - start < 20 and said.exit_code == 0, said.output
    adapter = json.loads(said.stdout)["adapters"][0]
    dear = [row for row in adapter["modules"] if row["rank"] == 2048]
    assert len(dear) == 2 and len(adapter["modules"]) == 3 and adapter["norm"] is None
    for row in adapter["modules"]: assert (row["norm"] is None) == (row["effective_rank"] is None) == (row["numerical_rank"] is None) == (row in dear)
    assert any(remark["code"] == "W7" and "2 modules are not measured" in remark["text"] for remark in adapter["remarks"])
    assert "2 modules are not measured" in CliRunner().invoke(app, ["--alpha", "1", "inspect", str(path)]).stdout
    lora = lg.load(path, alpha=1)
    lora.to_frame(), lora.to_frame()
    assert [issue.code for issue in lora.issues].count("W7") == 1

