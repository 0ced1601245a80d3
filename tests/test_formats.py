"Every key list is read completely, names agree with the tables, and every refusal is made from a really bad file"
import json, os, re, struct, warnings

import pytest
import torch
from safetensors.torch import save, save_file

import loragrass as lg
from loragrass.factors import READERS, parse_key
from loragrass.lora_io import TensorFile
from loragrass.module_names import canonical, kohya_modules, split_rows
from lora_files import LISTS, MAPS, PEFT_TYPES, adapter, kohya, peft_folder, tensors

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lg.load(path, **options)

# names

@pytest.mark.parametrize("table, arch", [("sd15", "sd15"), ("sdxl", "sdxl"), ("sdxl_text_encoders", "sdxl")])
def test_names_agree_with_the_table_in_both_directions(table, arch):
    for kohya_name, name in MAPS[table].items():
        assert canonical(kohya_name) == ("kohya", [name])
        assert kohya_modules([name], arch) == {kohya_name: [name]}

def test_flux_modules_split_and_fuse_as_the_table_says():
    for kohya_name, parts in MAPS["flux"].items():
        names, rows = [name for name, _ in parts], [m for _, m in parts]
        assert canonical(kohya_name)[1] == canonical(kohya_name.replace("lora_unet_", "diffusion_model.", 1).replace("blocks_", "blocks."))[1] == names
        assert split_rows(len(names), sum(rows), 3072) == rows
        assert all(kohya_modules([name], "flux1") == {kohya_name: names} for name in names)

# what is read

SHARED = {**dict.fromkeys(("sd15_diffusers_peft", "sd15_diffusers_new", "sd15_diffusers_old", "sd15_diffusers_attnprocs"), "sd15_kohya"),
    "sdxl_diffusers_peft": "sdxl_kohya",
          "flux_diffusers_peft": "flux_kohya", "flux_diffusers_dreambooth": "flux_kohya", "flux_kohya": "flux_comfy_bfl"}

@pytest.fixture(scope="module")
def names(tmp_path_factory):
    "List → canonical names, from the list's keys alone"
    return {name: {n for key in keys if (parsed := parse_key(key)) for n in canonical(parsed[0])[1]} for name, keys in LISTS.items()}

@pytest.mark.parametrize("a, b", SHARED.items())
def test_lists_of_one_model_align(names, a, b): assert names[a] <= names[b]

@pytest.mark.parametrize("name", [n for n in LISTS if n != "peft_llama_dora"])
def test_every_tensor_of_a_list_is_used_or_reported(tmp_path, name):
    keys, moe = LISTS[name], "moe" in name
    config = {"target_parameters": ["gate_up_proj"]} if moe else {"fan_in_fan_out": True} if "gpt2" in name else {}
    lora = quiet(adapter(tmp_path, name, **config))
    used = {key for r in lora.updates.recipes.values() for key in r.keys.values()}
    kept, alphas = set(lora.passthrough), {key for key in keys if key.endswith(".alpha")}
    assert used | kept | alphas == set(keys) and not used & kept
    assert bool(kept) == any(i.code == "W6" and "kept" in i.text for i in lora.issues)
    plain = {key for key in keys if parse_key(key) is None}
    assert kept == plain | ({k for k in keys if "experts" in k} if moe else set())
    for module in list(lora)[:3] + list(lora)[-3:]:
        u, alpha = lora[module], 8 if name.startswith("peft_") else 1
        r = next(iter(tensors({"x": ["r"]}, 4).values())).shape[0]
        expected = {"ADALORA": 8 / (4 + 1e-5), "VERA": 1.0}.get(PEFT_TYPES.get(name, ""), alpha / r if alphas or name.startswith("peft_") else 1.0)
        assert u.scale == pytest.approx(expected)

def test_updates_of_a_list_are_scale_up_down(tmp_path):
    path = adapter(tmp_path, "sd15_kohya_locon_extra")
    lora, file = quiet(path), TensorFile(path)
    for raw in ("lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_1_resnets_0_conv_shortcut"):
        u = lora[MAPS["sd15"][raw]]
        up, down = file[f"{raw}.lora_up.weight"].float(), file[f"{raw}.lora_down.weight"].float()
        torch.testing.assert_close(u.dense(), 0.25 * torch.einsum("or,rihw->oihw", up.flatten(1), down))

def test_bfl_and_kohya_slices_are_rows_of_the_fused_update(tmp_path):
    lora, raw = quiet(adapter(tmp_path, "flux_kohya")), "lora_unet_single_blocks_3_linear1"
    file = TensorFile(tmp_path/"flux_kohya.safetensors")
    fused, at = file[f"{raw}.lora_up.weight"].float(), 0
    for name, rows in MAPS["flux"][raw]:
        assert torch.equal(lora[name].up.float(), fused[at:at + rows])
        at += rows

def test_block_diagonal_fused_updates_lose_their_zero_columns(tmp_path):
    up = torch.block_diag(*[torch.randn(8, 2) for _ in range(3)])
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": up, "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.randn(6, 8),
               "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(6.0)}, tmp_path/"a.safetensors")
    assert [u.rank for u in lg.load(tmp_path/"a.safetensors").values()] == [2, 2, 2]

def test_peft_linear_layers_of_a_conv1d_model_are_not_turned(tmp_path):
    t = {f"base_model.model.{m}.lora_{x}.weight": torch.randn(s) for m in ("transformer.h.0.attn.c_attn", "lm_head") for x, s in (("A", (2, 6)), ("B", (9, 2)))}
    lora = lg.load(peft_folder(tmp_path/"a", t, r=2, lora_alpha=2, fan_in_fan_out=True))
    assert [u.weight_shape for u in lora.values()] == [(9, 6), (6, 9)] if list(lora)[0] == "lm_head" else [(6, 9), (9, 6)]

@pytest.mark.parametrize("alpha", [torch.tensor(3), torch.tensor([3.0]), torch.tensor(3.0, dtype=torch.float16), torch.tensor(3.0, dtype=torch.bfloat16)])
def test_alpha_of_any_dtype_and_of_shape_one(tmp_path, alpha):
    t = kohya((12, 10))
    save_file(t | {next(k for k in t if k.endswith("alpha")): alpha}, tmp_path/"a.safetensors")
    assert lg.load(tmp_path/"a.safetensors")[NAME].scale == 0.75

@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(tmp_path, dtype):
    t = {k: v.to(dtype) for k, v in kohya((12, 10)).items()}
    save_file(t, tmp_path/"a.safetensors")
    lora = lg.load(tmp_path/"a.safetensors")
    u, prefix = lora[NAME], next(iter(t)).partition(".")[0]
    assert u.up.dtype == lora.peek(NAME).up.dtype == (torch.float16 if dtype.itemsize == 1 else dtype) # 8 bits are no numbers to compute with
    assert lora.to_frame().dtype.item() == str(dtype).removeprefix("torch.")
    torch.testing.assert_close(u.dense().double(), 0.5 * t[f"{prefix}.lora_up.weight"].double() @ t[f"{prefix}.lora_down.weight"].double(), atol=1e-5,
        rtol=1e-4)

def test_mixed_ranks_and_dtypes_across_a_collection(tmp_path):
    save_file(kohya((12, 10), (8, 10), rank=2), tmp_path/"a.safetensors")
    save_file({k: v.half() for k, v in kohya((12, 10), rank=6).items()}, tmp_path/"b.safetensors")
    with pytest.warns(UserWarning, match="W1"): loras = lg.load_all(tmp_path)
    assert [u.rank for _, us in loras.stream() for u in us] == [2, 6]
    ((_, full),) = [(m, us) for m, us in loras.stream(loras.coverage) if None in us]
    assert full[1] is None and loras.to_frame().isna().sum().sum() == 1

@pytest.mark.parametrize("scale", ["header", "config", "rslora", "pattern"])
def test_scale_rules(tmp_path, scale):
    pair = {f"{NAME}.lora_A.weight": torch.randn(4, 10), f"{NAME}.lora_B.weight": torch.randn(12, 4)}
    if scale == "header":
        save_file(pair, path := tmp_path/"a.safetensors", metadata={"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8,
            "unet.alpha_pattern": {"attn2.to_k": 1}})})
        assert lg.load(path)[NAME].scale == 2
        return
    config = {"config": {}, "rslora": {"use_rslora": True}, "pattern": {"alpha_pattern": {"attn1.to_q": 6}}}[scale]
    path = peft_folder(tmp_path/"a", {f"base_model.model.{k}": v for k, v in pair.items()}, r=4, lora_alpha=8, **config)
    assert lg.load(path)[NAME].scale == {"config": 2.0, "rslora": 4.0, "pattern": 1.5}[scale]

def test_peft_finds_the_first_pattern_that_ends_the_name(tmp_path):
    t = {f"base_model.model.m.{i}.q.lora_{x}.weight": torch.randn(s) for i in range(2) for x, s in (("A", (4, 6)), ("B", (9, 4)))}
    lora = lg.load(peft_folder(tmp_path/"a", t, r=4, lora_alpha=4, alpha_pattern={r"^m\.1\.q": 8, "q": 16}))
    assert [lora[f"m.{i}.q"].scale for i in range(2)] == [4, 2]

def test_the_callers_scale_is_used_only_where_the_file_names_none(tmp_path):
    save_file(kohya((12, 10)), tmp_path/"told.safetensors")
    save_file({k: v for k, v in kohya((12, 10)).items() if "alpha" not in k}, tmp_path/"untold.safetensors")
    assert [lg.load(tmp_path/f"{n}.safetensors", scale=3)[NAME].scale for n in ("told", "untold")] == [0.5, 3]
    assert lg.load(tmp_path/"untold.safetensors", alpha=6)[NAME].scale == 1.5

@pytest.mark.parametrize("name, shapes, formula", [
    ("loha", {"w1_a": (12, 2), "w1_b": (2, 10), "w2_a": (12, 2), "w2_b": (2, 10)}, lambda t: (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])),
    ("lokr", {"w1": (3, 2), "w2_a": (4, 2), "w2_b": (2, 5)}, lambda t: torch.kron(t["w1"], t["w2_a"] @ t["w2_b"])),
    ("lokr", {"w1_a": (6, 1), "w1_b": (1, 5), "w2": (2, 2)}, lambda t: torch.kron(t["w1_a"] @ t["w1_b"], t["w2"]))])
def test_lycoris(tmp_path, name, shapes, formula):
    raw = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    t = {role: torch.randn(s, dtype=torch.float64) for role, s in shapes.items()}
    rank = t["w2_b" if "w2_b" in t else "w1_b"].shape[0] if name == "lokr" else 2
    save_file({f"{raw}.{'hada' if name == 'loha' else 'lokr'}_{role}": v.float() for role, v in t.items()} | {f"{raw}.alpha": torch.tensor(1.0)},
        tmp_path/"a.safetensors")
    torch.testing.assert_close(lg.load(tmp_path/"a.safetensors")[NAME].dense().double(), formula(t) / rank, atol=1e-5, rtol=1e-4)

def test_flat_kernels_of_lycoris_get_their_shape_back(tmp_path):
    raw, r = "lora_unet_mid_block_resnets_0_conv1", 2
    save_file({f"{raw}.hada_{w}": torch.randn(12, r) if w.endswith("a") else torch.randn(r, 10 * 9) for w in ("w1_a", "w1_b", "w2_a", "w2_b")},
        tmp_path/"a.safetensors")
    assert quiet(tmp_path/"a.safetensors")["unet.mid_block.resnets.0.conv1"].dense().shape == (12, 10, 3, 3)

@pytest.mark.parametrize("arch, name, kernel", [("sd15", "mid_block_attentions_0_proj_in", (1, 1)), ("sd2", "mid_block_attentions_0_proj_in", ()),
    ("sd15", "mid_block_resnets_0_conv_shortcut", (1, 1)), ("sd2", "mid_block_resnets_0_conv_shortcut", (1, 1)), ("sd15", "mid_block_attentions_0_transformer_blocks_0_attn1_to_q", ())])
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_kernels_of_one_get_their_shape_back(tmp_path, arch, name, kernel, kind):
    t = {"lokr_w1": (2, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 3)} if kind == "lokr" else {f"hada_{w}": (6, 2) if w.endswith("a") else (2, 6) for w in ("w1_a", "w1_b", "w2_a", "w2_b")}
    context = kohya((8, {"sd15": 768, "sd2": 1024}[arch]), prefix="lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k")
    (u,) = [u for m, u in quiet(_st(tmp_path, context | {f"lora_unet_{name}.{k}": torch.ones(s) for k, s in t.items()})).items() if not m.endswith("to_k")]
    assert u.weight_shape == u.dense().shape == (6, 6, *kernel)

@pytest.mark.parametrize("config, turned", [({}, True), ({"fan_in_fan_out": True}, True), ({"fan_in_fan_out": False}, False),
    ({"fan_in_fan_out": False, "base_model_name_or_path": "openai-community/gpt2"}, True)])
def test_layers_of_gpt2_with_and_without_the_flag(tmp_path, config, turned):
    t = {f"base_model.model.transformer.h.0.attn.c_attn.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 6)), ("B", (9, 2)))}
    u = lg.load(peft_folder(tmp_path/"a", t, r=2, lora_alpha=2, **config))["transformer.h.0.attn.c_attn"]
    assert u.dense().shape == ((6, 9) if turned else (9, 6))

def test_vera_adalora_and_mlx(tmp_path):
    g = torch.Generator().manual_seed(0)
    A, B, b, d, E = (torch.randn(s, generator=g) for s in ((4, 10), (12, 4), (8,), (4,), (4, 1)))
    vera = quiet(peft_folder(tmp_path/"vera", {"base_model.vera_A": A, "base_model.vera_B": B, "base_model.model.q.vera_lambda_b": b,
        "base_model.model.q.vera_lambda_d": d}, peft_type="VERA", r=4))
    torch.testing.assert_close(vera["q"].dense(), torch.diag(b) @ B[:8] @ torch.diag(d) @ A)
    ada = lg.load(peft_folder(tmp_path/"ada", {"base_model.model.q.lora_A": A, "base_model.model.q.lora_B": B, "base_model.model.q.lora_E": E},
        peft_type="ADALORA", lora_alpha=8))
    torch.testing.assert_close(ada["q"].dense(), 8 / (4 + 1e-5) * B @ (A * E))
    mlx = tmp_path/"mlx"; mlx.mkdir()
    save_file({"model.layers.0.self_attn.q_proj.lora_a": A.mT.contiguous(), "model.layers.0.self_attn.q_proj.lora_b": B.mT.contiguous()},
        mlx/"adapters.safetensors")
    (mlx/"adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 4, "scale": 20.0}}))
    torch.testing.assert_close(lg.load(mlx)["model.layers.0.self_attn.q_proj"].dense(), 20 * B @ A)

def test_equal_duplicates_are_dropped_with_a_remark(tmp_path):
    t = kohya((12, 10))
    up, down, alpha = t.values()
    save_file(t | {f"{NAME}.lora_B.weight": up / 2, f"{NAME}.lora_A.weight": down.clone()}, tmp_path/"a.safetensors")
    lora = quiet(tmp_path/"a.safetensors")
    assert list(lora) == [NAME] and [i.code for i in lora.issues] == ["W6"]

# what is refused: E1 … E14, each from a really bad file

def _raw(header, data=b""): text = header if isinstance(header, bytes) else json.dumps(header).encode(); return struct.pack("<Q", len(text)) + text + data
def _st(tmp, t, **meta): save_file(t, tmp/"a.safetensors", **meta); return tmp/"a.safetensors"
def _bytes(tmp, data, name="a.safetensors"): (tmp/name).write_bytes(data); return tmp/name
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PAIR = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.ones(9, 2)}
PEFT = {f"base_model.model.{k}": v for k, v in PAIR.items()}
LOKR = {"q.lokr_w1": torch.ones(4, 4), "q.lokr_w2": torch.ones(3, 3)}
LOHA = {f"q.hada_{w}": torch.ones(6, 3) if w.endswith("a") else torch.ones(3, 6) for w in ("w1_a", "w1_b", "w2_a", "w2_b")}
ADALORA = {f"base_model.model.q.lora_{x}": torch.ones(s) for x, s in (("A", (2, 6)), ("B", (9, 2)), ("E", (2, 1)))}
VERA = {"base_model.vera_A": torch.ones(2, 6), "base_model.vera_B": torch.ones(9, 2), "base_model.model.q.vera_lambda_b": torch.ones(9),
    "base_model.model.q.vera_lambda_d": torch.ones(2)}
TE = "lora_te%d_encoder_block_0_layer_0_SelfAttention_q"
MLX = {"q.lora_a": torch.ones(6, 2), "q.lora_b": torch.ones(2, 9)}
GOOD = lambda tmp: _st(tmp, kohya((12, 10))).read_bytes()  # noqa: E731

BAD = {
    "empty": ("E1", lambda p: _bytes(p, b""), "0 bytes"),
    "html": ("E1", lambda p: _bytes(p, b"<!DOCTYPE html><html></html>"), "login"),
    "lfs": ("E1", lambda p: _bytes(p, b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "zip": ("E1", lambda p: _bytes(p, b"PK\x03\x04" + bytes(50)), "pickle"),
    "json": ("E1", lambda p: _bytes(p, b'{"error": "Unauthorized"}'), "JSON"),
    "text": ("E1", lambda p: _bytes(p, b"some text that is no adapter at all"), "not a safetensors file"),
    "header json": ("E1", lambda p: _bytes(p, _raw(b'{"a": ')), "not valid"),
    "header nested": ("E1", lambda p: _bytes(p, _raw(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}")), "not valid"),
    "twice": ("E1", lambda p: _bytes(p, _raw(b'{"a":%s,"a":%s}' % (json.dumps(F32).encode(), json.dumps(F32).encode()), bytes(4))), "twice"),
    "overlap": ("E1", lambda p: _bytes(p, _raw({"a": F32, "b": F32}, bytes(8))), "overlap"),
    "gap": ("E1", lambda p: _bytes(p, _raw({"a": F32, "b": F32 | {"data_offsets": [8, 12]}}, bytes(12))), "gap"),
    "no dtype": ("E1", lambda p: _bytes(p, _raw({"a": F32 | {"dtype": "F31"}}, bytes(4))), "save it anew in one of those"),
    "half a character": ("E1", lambda p: _bytes(p, _raw(b'{"unet.\\ud800x":%s}' % json.dumps(F32).encode(), bytes(4))), "surrogates not allowed"),
    "half in metadata": ("E1", lambda p: _bytes(p, _raw(b'{"__metadata__":{"a":"\\udfff"},"b":%s}' % json.dumps(F32).encode(), bytes(4))), "surrogates not allowed"),
    "delete": ("E1", lambda p: _bytes(p, _raw({"a\x7f": F32}, bytes(4))), "control characters"),
    "pipe": ("E1", lambda p: os.mkfifo(p/"a.safetensors") or p/"a.safetensors", "not a regular file"),
    "device": ("E1", lambda p: (p/"a.safetensors").symlink_to("/dev/zero") or p/"a.safetensors", "not a regular file"),
    "zero size": ("E1", lambda p: _bytes(p, _raw({"a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}})), "no numbers"),
    "negative": ("E1", lambda p: _bytes(p, _raw({"a": F32 | {"shape": [-1]}}, bytes(4))), "no numbers"),
    "bool shape": ("E1", lambda p: _bytes(p, _raw({"a": F32 | {"shape": [True]}}, bytes(4))), "expected dtype"),
    "sizes": ("E1", lambda p: _bytes(p, _raw({"a": F32 | {"shape": [2]}}, bytes(4))), "takes 8 bytes"),
    "path": ("E1", lambda p: _bytes(p, _raw({"../../etc/passwd": F32}, bytes(4))), "no name of a tensor"),
    "metadata": ("E1", lambda p: _bytes(p, _raw({"__metadata__": {"a": 1}, "b": F32}, bytes(4))), "must map names to text"),
    "truncated": ("E2", lambda p: _bytes(p, GOOD(p)[:-7]), "header promises"),
    "short header": ("E2", lambda p: _bytes(p, GOOD(p)[:30]), "truncated"),
    "trailing": ("E2", lambda p: _bytes(p, GOOD(p) + b"more"), "belongs to no tensor"),
    "pickle": ("E3", lambda p: _bytes(p, b"\x80\x02", "a.pt"), "weights_only"),
    "pickle in folder": ("E3", lambda p: _bytes(p, b"\x80\x02", "adapter_model.bin").parent, "weights_only"),
    "nan": ("E4", lambda p: _st(p, PAIR | {"q.lora_B.weight": torch.full((9, 2), torch.nan)}), "18 NaN or infinite values"),
    "inf": ("E4", lambda p: _st(p, PAIR | {"q.lora_B.weight": torch.full((9, 2), torch.inf)}), "1 of 1 modules"),
    "huge": ("E4", lambda p: _st(p, {k: torch.full(v.shape, 1e200, dtype=torch.float64) for k, v in PAIR.items()}), "values up to 1e+200"),
    "half": ("E5", lambda p: _st(p, {"q.lora_A.weight": torch.ones(2, 6)}), "q has down but no up"),
    "half lokr": ("E5", lambda p: _st(p, {"q.lokr_w1": torch.ones(2, 6), "q.lokr_w2_a": torch.ones(2, 6)}), "w2_b"),
    "vera": ("E5", lambda p: peft_folder(p/"a", {k: t for k, t in VERA.items() if "lambda" in k}, peft_type="VERA", r=2), "save_projection=True"),
    "ranks": ("E6", lambda p: _st(p, PAIR | {"q.lora_B.weight": torch.ones(9, 3)}), "ranks 2 and 3 differ"),
    "dims": ("E6", lambda p: _st(p, PAIR | {"q.lora_A.weight": torch.ones(2)}), "down has 1 dimensions, expected 2"),
    "up 1-D": ("E6", lambda p: _st(p, {"q.lora_A.weight": torch.ones(1, 6), "q.lora_B.weight": torch.ones(9)}), "up has 1 dimensions"),
    "up with a kernel": ("E6", lambda p: _st(p, PAIR | {"q.lora_B.weight": torch.ones(9, 2, 2, 2)}), "up has a kernel"),
    "two kernels": ("E6", lambda p: _st(p, {"q.lora_A.weight": torch.ones(2, 6, 3, 3), "q.lora_B.weight": torch.ones(9, 2, 1, 1), "q.lora_mid.weight": torch.ones(2, 2, 3, 3)}),
        "a kernel of its own"),
    "loha kernels": ("E6", lambda p: _st(p, {f"q.hada_{w}": torch.ones(2, 9) for w in ("w1_a", "w1_b", "w2_a", "w2_b")} | {"q.hada_t1": torch.ones(2, 2, 3, 1),
        "q.hada_t2": torch.ones(2, 2, 1, 3)}), "kernels (3, 1) and (1, 3)"),
    "vera 2-D": ("E6", lambda p: peft_folder(p/"a", VERA | {"base_model.model.q.vera_lambda_b": torch.ones(9, 1)}, peft_type="VERA", r=2), "expected 1"),
    "experts 0-D": ("E6", lambda p: peft_folder(p/"a", PEFT | {"base_model.model.q.lora_A.weight": torch.ones(())}, r=2, target_parameters=["w"]), "0 dimensions"),
    "ints": ("E6", lambda p: _st(p, {k: v.long() for k, v in PAIR.items()}), "floating-point"),
    "flux rows": ("E6", lambda p: _st(p, {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 6),
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(10, 2)}), "10 rows"),
    "both": ("E8", lambda p: _st(p, kohya((9, 6)) | {f"{NAME}.lora_A.weight": torch.ones(2, 6), f"{NAME}.lora_B.weight": torch.ones(9, 2)}),
        "different values"),
    "adapters": ("E8", lambda p: _st(p, PAIR | {"q.lora_A.default.weight": torch.ones(2, 6)}), "claim to be"),
    "adapters' halves": ("E8", lambda p: _st(p, {"q.lora_A.default.weight": torch.ones(2, 6), "q.lora_B.other.weight": torch.ones(9, 2)}), "two adapters in one file"),
    "adapters apart": ("E8", lambda p: _st(p, {f"{m}.lora_{x}.{m}.weight": t for m in "ab" for x, t in (("A", torch.ones(2, 6)), ("B", torch.ones(9, 2)))}), "two adapters in one file"),
    "flux encoders": ("E8", lambda p: _st(p, kohya((9, 6), prefix="lora_unet_double_blocks_0_img_attn_proj") | kohya((9, 6), prefix=TE % 2) | kohya((9, 6), prefix=TE % 3)),
        "there twice"),
    "dora": ("E9", lambda p: _st(p, PAIR | {"q.dora_scale": torch.ones(9, 1)}), "ignore_magnitude"),
    "peft dora": ("E9", lambda p: peft_folder(p/"a", PEFT | {"base_model.model.q.lora_magnitude_vector": torch.ones(9)}, r=2, use_dora=True),
        "ignore_magnitude"),
    "lokr": ("E10", lambda p: _st(p, LOKR), "approx_rank"),
    "loha": ("E10", lambda p: _st(p, LOHA), "approx_rank"),
    "oft": ("E10", lambda p: _st(p, {"lora_unet_x.oft_blocks": torch.ones(2, 3, 3)}), "OFT"),
    "diff": ("E10", lambda p: _st(p, {"lora_unet_x.diff": torch.ones(3, 3), "lora_unet_x.alpha": torch.ones(())}), "full difference"),
    "boft": ("E10", lambda p: peft_folder(p/"a", {"base_model.model.q.boft_R": torch.ones(2, 2)}, peft_type="BOFT"), "BOFT"),
    "no config": ("E11", lambda p: _st(p, PEFT), "scale"),
    "config text": ("E11", lambda p: (_bytes(peft_folder(p/"a", PEFT), b"{", "adapter_config.json").parent), "JSON"),
    "config type": ("E11", lambda p: peft_folder(p/"a", PEFT, lora_alpha="eight"), "should be a number"),
    "header config": ("E11", lambda p: _st(p, PAIR, metadata={"lora_adapter_metadata": "[1"}), "not valid JSON"),
    "rank 0": ("E11", lambda p: peft_folder(p/"a", PEFT, r=0), "at least 1"),
    "rank pattern": ("E11", lambda p: peft_folder(p/"a", PEFT, rank_pattern={"q": -2}), "at least 1"),
    "alpha list": ("E11", lambda p: peft_folder(p/"a", ADALORA, peft_type="ADALORA", lora_alpha=[4]), "should be a number"),
    "alpha masks": ("E11", lambda p: peft_folder(p/"a", ADALORA, peft_type="ADALORA", alpha_pattern={"q": [True]}), "should be a number"),
    "mlx": ("E11", lambda p: (peft_folder(p/"a", MLX, num_layers=16)/"adapter_model.safetensors").rename(p/"a"/"adapters.safetensors").parent, "names no scale"),
    "fixed scale": ("E11", lambda p: _st(p, kohya((12, 10)) | {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.scale": torch.tensor(3.0)}),
        "ignored by others"),
    "pissa": ("E12", lambda p: peft_folder(p/"a", PEFT, init_lora_weights="pissa_niter_4"), "changes the base model"),
    "replication": ("E12", lambda p: peft_folder(p/"a", PEFT, layer_replication=[[0, 2]]), "layer_replication"),
    "model": ("E13", lambda p: _st(p, {"model.embed.weight": torch.ones(3, 3)}), "no LoRA tensors found; 1 keys"),
    "empty folder": ("E13", lambda p: p, "found nothing"),
    "header size": ("E14", lambda p: _bytes(p, struct.pack("<Q", 1 << 63) + b"{" + bytes(99)), "over the limit"),
    "ndim": ("E14", lambda p: _st(p, PAIR | {"x": torch.ones(1, 1, 1, 1, 1, 1)}), "6 dimensions"),
    "dim": ("E14", lambda p: _st(p, PAIR | {"x": torch.ones((1 << 20) + 1, dtype=torch.uint8)}), "'dim'"),
    "rank": ("E14", lambda p: _st(p, {"q.lora_A.weight": torch.ones(4097, 2), "q.lora_B.weight": torch.ones(3, 4097)}), "'rank'"),
    "expansion": ("E14", lambda p: _st(p, {"q.lokr_w1": torch.ones(1, 300), "q.lokr_w2_a": torch.ones(512, 512), "q.lokr_w2_b": torch.ones(512, 600)}),
        "'numbers'"),
    "alpha": ("E14", lambda p: _st(p, kohya((12, 10), alpha=-1.0)), "from 0 to"),
    "scale": ("E14", lambda p: peft_folder(p/"a", PEFT, lora_alpha=1e8), "10,000"),
    "header config size": ("E14", lambda p: _st(p, PAIR, metadata={"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.x": "x" * (1 << 20)})}), "'metadata'"),
    "pattern": ("E14", lambda p: peft_folder(p/"a", PEFT, alpha_pattern={r"(a)\1": 3}), "not read here"),
}

TO_DO = r"(?i)download|convert|git lfs pull|=\w|=\{|needs both|expected|save |remove one|ask whoever|known (are|formats)|reads LoRA|load it again|cannot be (right|used|read)|is for another|correct (it|them)|fewer repetitions|merge it"

@pytest.mark.parametrize("code, make, text", BAD.values(), ids=BAD)
def test_bad_files(tmp_path, code, make, text):
    path = make(tmp_path)
    with pytest.raises(lg.LoRAFormatError) as e: lg.load(path)
    assert e.value.code == code and text in str(e.value) and str(e.value.path).startswith(str(tmp_path)) and len(str(e.value)) < 600
    assert re.search(TO_DO, e.value.text), "says what is wrong and not what to do"

def test_shapes_that_differ_between_files(tmp_path): # E7
    for name, n in (("a", 10), ("b", 10), ("c", 16)): save_file(kohya((12, n)), tmp_path/f"{name}.safetensors")
    with pytest.warns(UserWarning, match="1 files skipped"): loras = lg.load_all(tmp_path)
    assert [x.name for x in loras] == ["a", "b"] and loras.skipped[0].code == "E7" and "12 × 16" in str(loras.skipped[0])
    with pytest.raises(lg.LoRAFormatError, match="different base models"): lg.load_all(tmp_path, strict=True)

def test_a_file_that_changes_while_it_is_read(tmp_path):
    lora = lg.load(_st(tmp_path, kohya((12, 10))))
    _st(tmp_path, kohya((12, 10), rank=5))
    with pytest.raises(lg.LoRAFormatError, match="changed"): lora[NAME]

# options

def test_options_make_an_exception_explicit(tmp_path):
    dora = quiet(_st(tmp_path, PAIR | {"q.dora_scale": torch.ones(9, 1)}), ignore_magnitude=True)
    assert list(dora.passthrough) == ["q.dora_scale"] and dora.issues[0].code == "W6"
    w1, w2 = torch.randn(4, 4), torch.randn(3, 3)
    lokr = quiet(_st(tmp_path, {"q.lokr_w1": w1, "q.lokr_w2": w2, "q.alpha": torch.tensor(7.0)}), approx_rank=2)
    U, S, Vh = torch.linalg.svd(torch.kron(w1, w2))
    torch.testing.assert_close(lokr["q"].dense(), U[:, :2] * S[:2] @ Vh[:2], atol=1e-5, rtol=1e-4)
    assert lokr["q"].scale == 1 and f"{(S[:2]**2).sum() / (S**2).sum():.1%}" in lokr.issues[-1].text
    loha = quiet(_st(tmp_path, {k: torch.randn(v.shape) for k, v in LOHA.items()}), approx_rank=2)
    assert loha["q"].rank == loha.peek("q").rank == 2
    assert lg.load(_st(tmp_path, PEFT), scale=2.0)["q"].scale == 2
    assert quiet(_st(tmp_path, PAIR | {"x": torch.ones(1, 1, 1, 1, 1, 1)}), limits={"ndim": 6})["q"].rank == 2

def test_messages_can_be_printed_and_are_short(tmp_path):
    long = _bytes(tmp_path, _raw({"a": F32 | {"data_offsets": [0, 10**4000]}}, bytes(4)))
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")
    for path in (long, _bytes(tmp_path, b"", name)):
        with pytest.raises(lg.LoRAFormatError) as e: lg.load(path)
        assert len(str(e.value)) < 2000 and str(e.value).encode() and "Download it again" in e.value.text

@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "float8_e8m0fnu", "complex64"])
def test_dtypes_of_other_tensors(tmp_path, dtype):
    if not hasattr(torch, dtype): pytest.skip(f"this torch has no {dtype}")
    t = torch.ones(3).to(getattr(torch, dtype))
    lora = quiet(_st(tmp_path, PAIR | {"x": t}))
    assert torch.equal(lora.passthrough["x"].view(torch.uint8), t.view(torch.uint8)) and [i.code for i in lora.issues] == ["W6"]
    with pytest.raises(lg.LoRAFormatError, match="E14" if dtype == "complex64" else "E6"):
        lg.load(_st(tmp_path, PAIR | ({"q.alpha": torch.tensor(1j)} if dtype == "complex64" else {"q.lora_A.weight": t})))

def test_metadata_that_is_too_long_is_dropped_with_a_remark(tmp_path):
    path = _st(tmp_path, PAIR, metadata={"ss_tag_frequency": "x" * (1 << 20) + "x"})
    lora = quiet(path)
    assert not lora.metadata and [i.text.partition(",")[0] for i in lora.issues] == ["metadata dropped: ss_tag_frequency"]
    assert list(quiet(path, limits={"metadata": 1 << 21}).metadata) == ["ss_tag_frequency"]

def test_a_rank_below_one_is_the_callers_mistake(tmp_path):
    for rank in (0, -1):
        with pytest.raises(ValueError, match="at least 1"): lg.load(_st(tmp_path, LOKR), approx_rank=rank)

def test_the_callers_scale_of_mlx(tmp_path):
    path = (peft_folder(tmp_path/"a", MLX, num_layers=16)/"adapter_model.safetensors").rename(tmp_path/"a"/"adapters.safetensors")
    assert (lg.load(path, scale=20)["q"].scale, lg.load(path, alpha=6)["q"].scale) == (20, 3)

@pytest.mark.parametrize("one", ["A", "B"])
def test_one_factor_in_float64(tmp_path, one):
    u = lg.load(_st(tmp_path, PAIR | {f"q.lora_{one}.weight": PAIR[f"q.lora_{one}.weight"].double()}))["q"]
    assert torch.equal(u.dense(), torch.full((9, 6), 2.0, dtype=torch.float64))

def test_cores_of_other_convolutions_than_2_d(tmp_path): # Tucker form in one dimension
    down, mid, up = torch.randn(2, 5, 1), torch.randn(2, 2, 3), torch.randn(7, 2, 1)
    W = lg.load(_st(tmp_path, {"q.lora_down.weight": down, "q.lora_mid.weight": mid, "q.lora_up.weight": up}))["q"].dense()
    x = torch.randn(1, 5, 9)
    torch.testing.assert_close(torch.conv1d(x, W), torch.conv1d(torch.conv1d(torch.conv1d(x, down), mid), up), atol=1e-4, rtol=1e-4)

def test_what_a_kind_of_update_raises_is_the_files_fault(tmp_path, monkeypatch): # a reader of tomorrow may overlook something
    def build(down, up): raise RuntimeError("expected another shape")
    monkeypatch.setitem(READERS, "lora", READERS["lora"]._replace(build=build))
    with pytest.raises(lg.LoRAFormatError, match="q: no update comes of its tensors .expected another shape") as e: lg.load(_st(tmp_path, PAIR))
    assert (e.value.code, e.value.key, e.value.path) == ("E6", "q", tmp_path/"a.safetensors")
    monkeypatch.setitem(READERS, "lora", READERS["lora"]._replace(size=build))
    with pytest.raises(lg.LoRAFormatError, match="expected another shape"): lg.load(tmp_path/"a.safetensors")

def test_one_bad_file_does_not_end_a_folder(tmp_path):
    for name in ("up 1-D", "mlx"): BAD[name][1](tmp_path)
    save_file(kohya((12, 10)), tmp_path/"good.safetensors")
    with pytest.warns(UserWarning, match="2 files skipped"): loras = lg.load_all(tmp_path)
    assert [x.name for x in loras] == ["good"] and sorted(e.code for e in loras.skipped) == ["E11", "E6"]

def test_a_file_without_a_good_module_is_left_out_once(tmp_path):
    save_file(PAIR | {"q.lora_B.weight": torch.full((9, 2), torch.nan)}, tmp_path/"nan.safetensors")
    with pytest.warns(UserWarning, match="1 files skipped"): loras = lg.load_all(tmp_path, drop_bad=True)
    assert not len(loras) and [e.code for e in loras.skipped] == ["E4"]

def test_drop_bad_leaves_modules_out(tmp_path):
    path = _st(tmp_path, PAIR | {"p.lora_A.weight": torch.ones(2, 6), "p.lora_B.weight": torch.full((9, 2), torch.nan)})
    with pytest.warns(UserWarning, match="E4"): assert list(lg.load(path, drop_bad=True)) == ["q"]
    with pytest.warns(UserWarning, match="remarks"): assert list(lg.load_all([path], drop_bad=True)[0]) == ["q"]

# warnings

WARN = {
    "E15": lambda p: _st(p, PAIR | {"q.lora_B.weight": torch.zeros(9, 2)}),
    "W3": lambda p: _st(p, kohya((12, 10)) | {"lora_unet_x.lora_up.weight": torch.ones(9, 2), "lora_unet_x.lora_down.weight": torch.ones(2, 9)}),
    "W4": lambda p: _st(p, {f"{m}.lora_{x}.weight": torch.ones(s) for m in ("transformer.single_transformer_blocks.0.attn.to_q",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q") for x, s in (("A", (2, 6)), ("B", (9, 2)))}),
    "W5": lambda p: _st(p, {"q.lora_A.weight": torch.ones(513, 6), "q.lora_B.weight": torch.ones(9, 513)}),
    "W6": lambda p: _st(p, PAIR | {"q.diff_b": torch.ones(9)}),
    "W6 E4": lambda p: _st(p, PAIR | {"q.diff_b": torch.full((9,), torch.nan)}),
    "E6": lambda p: peft_folder(p/"a", PEFT, r=8, lora_alpha=8),
}

@pytest.mark.parametrize("code", WARN)
def test_warnings(tmp_path, code):
    with pytest.warns(UserWarning) as caught: lora = lg.load(WARN[code](tmp_path))
    assert [i.code for i in lora.issues] == [str(w.message).rpartition("[")[2][:-1] for w in caught] == code.split()

def test_warnings_of_collections(tmp_path):
    for name, base, extra in (("a", "sd_v1", 1), ("b", "sdxl_base_v1-0", 2)):
        save_file(kohya(*[(12, 10)] * extra), tmp_path/f"{name}.safetensors", metadata={"ss_base_model_version": base})
    (tmp_path/"c.pt").write_bytes(b"\x80\x02")
    (tmp_path/"optimizer.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning) as caught: loras = lg.load_all(tmp_path)
    text = " ".join(str(w.message) for w in caught)
    assert all(x in text for x in ("[W1]", "[W2]", "c.pt", "optimizer")) and len(loras.skipped) == 2 and "2 files skipped" in repr(loras)
    with pytest.raises(lg.LoRAFormatError): lg.load_all([tmp_path/"optimizer.safetensors"], strict=True)

def test_bases_of_any_json(tmp_path):
    for name, base in (("a", ["x"]), ("b", {"y": "z" * 9999})): peft_folder(tmp_path/name, PEFT, r=2, lora_alpha=2, base_model_name_or_path=base)
    with pytest.warns(UserWarning, match="W2") as caught: lg.load_all(tmp_path)
    assert len(str(caught[0].message)) < 300

def test_a_folder_finds_adapters_below_it_and_no_link_out_of_it(tmp_path):
    deep = tmp_path/"all"/"deep"; deep.mkdir(parents=True)
    save_file(kohya((12, 10)), tmp_path/"outside.safetensors")
    (deep/"link.safetensors").symlink_to(tmp_path/"outside.safetensors")
    save_file(kohya((12, 10)), deep/"b.safetensors")
    peft_folder(deep/"peft", {f"base_model.model.{NAME}.lora_A.weight": torch.ones(2, 10), f"base_model.model.{NAME}.lora_B.weight": torch.ones(12, 2)}, r=2,
        lora_alpha=2)
    with pytest.warns(UserWarning, match="link"): loras = lg.load_all(tmp_path/"all")
    assert sorted(x.name for x in loras) == ["b", "peft"] and loras.modules == [NAME]
    assert len(loras[:1].skipped) == len(loras[[True, False]].skipped) == 1

def test_links_in_a_folder(tmp_path):
    pair = {f"base_model.model.{NAME}.lora_A.weight": torch.ones(2, 10), f"base_model.model.{NAME}.lora_B.weight": torch.ones(12, 2)}
    peft_folder(tmp_path/"elsewhere", pair, r=2, lora_alpha=2)
    (top := tmp_path/"all").mkdir()
    save_file(kohya((12, 10)), top/"A.SAFETENSORS")
    for name, to in {"folder": tmp_path/"elsewhere", "loop": top, "round.safetensors": top/"round.safetensors"}.items(): (top/name).symlink_to(to)
    for name in ("snapshot", ".a.safetensors.0123abcd"): (top/name).mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"): (top/"snapshot"/name).symlink_to(tmp_path/"elsewhere"/name)
    save_file(kohya((12, 10)), top/".a.safetensors.0123abcd"/"a.safetensors")
    with pytest.warns(UserWarning, match="4 files skipped"): loras = lg.load_all(top)
    assert [x.name for x in loras] == ["A"]
    assert {e.path.name: e.text.partition(";")[0] for e in loras.skipped} == {"folder": "a link to a folder elsewhere is not followed", "snapshot": "its files are links that leave the folder",
        "round.safetensors": "Too many levels of symbolic links", ".a.safetensors.0123abcd": "left behind by a save that was cut off"}
    for name in ("folder", "snapshot"): assert len(lg.load_all(top/name)) == 1 # named: the caller vouches for it

# at size

@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    "1 000 good files, some lacking a module, and four bad ones, in folders"
    folder, whole = tmp_path_factory.mktemp("thousand"), save(kohya((12, 10), (8, 10)))
    for i in range(1000):
        path = folder/f"{i // 100}"/f"{i:03d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(save(kohya((12, 10))) if i % 100 == 7 else whole)
    for name, data in (("half.safetensors", whole[:-4]), ("login.safetensors", b"<!DOCTYPE html>"), ("old.ckpt", b"\x80\x02"), ("other.safetensors", save(kohya((12, 16))))):
        (folder/"3"/name).write_bytes(data)
    return folder

def test_a_folder_of_a_thousand_files(thousand, capfd, monkeypatch):
    import resource, tqdm.auto
    bar, soft, hard = tqdm.auto.tqdm, *resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda items, **options: bar(items, **options | {"delay": 0})) # however quick this machine is
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard)) # no handle stays open
    try:
        with pytest.warns(UserWarning) as caught: loras = lg.load_all(thousand)
        assert [len(updates) for _, updates in loras.stream()] == [1000]
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(loras) == 1000 and loras.coverage == {NAME: 1000, NAME.replace("blocks.0", "blocks.1"): 990}
    assert {e.path.name: e.code for e in loras.skipped} == {"half.safetensors": "E2", "login.safetensors": "E1", "old.ckpt": "E3", "other.safetensors": "E7"}
    told = " ".join(str(w.message) for w in caught)
    assert all(e.path.name in told and e.code in told for e in loras.skipped) and "W1" in told
    assert "1000 adapters, 1 modules shared of 2, 4 files skipped" in repr(loras) and "old.ckpt: .ckpt is a pickle" in repr(loras) and len(repr(loras)) < 2000
    out, err = capfd.readouterr()
    assert out == "" and "reading headers: 100%" in err

def test_a_collection_holds_one_module_at_a_time(thousand):
    import gc, weakref
    with pytest.warns(UserWarning, match="W1"): loras = lg.load_all(sorted(thousand.glob("0/*")))
    stream = loras.stream(list(loras.coverage))
    _, updates = next(stream)
    tensors = [weakref.ref(u.up) for u in updates]
    assert all(t() is not None for t in tensors) # held by `updates` only
    _, updates = next(stream); gc.collect()
    assert all(t() is None for t in tensors) and len(updates) == 100

def test_lora_is_picklable_and_lazy(tmp_path):
    import pickle
    lora = lg.load(_st(tmp_path, kohya((1200, 1000), rank=64)))
    data = pickle.dumps(lora)
    assert len(data) < 10_000 and torch.equal(pickle.loads(data)[NAME].up, lora[NAME].up)

# data sets of the hub: one adapter a row

SIZES = {f"unet.{block}.attentions.{j}.transformer_blocks.0.{a}.{p}": (m, 768 if (a, p) == ("attn2", "to_v") else m)
    for block, m, js in (*((f"down_blocks.{i}", (320, 640, 1280)[i], 2) for i in range(3)), ("mid_block", 1280, 1), *((f"up_blocks.{i}", (1280, 1280, 640, 320)[i], 3) for i in (1, 2, 3)))
    for j in range(js) for a in ("attn1", "attn2") for p in ("to_q", "to_v")} # the 64 modules of lora-ws-1k
LABELS = {"category_label": "cat", "folder": "f/1", "leaf_id": 3, "num_images": 7, "rank": 1, "step_loss": [[0.1, 0.2]]}

def rows_of_adapters(n, rank=1):
    "Module → (up, down), as drawn and as the cells of a row"
    g = torch.Generator().manual_seed(0)
    return [{m: (torch.randn(s[0], rank, generator=g), torch.randn(rank, s[1], generator=g)) for m, s in SIZES.items()} for _ in range(n)]

def table(rows, flat=False, **broken):
    "An Arrow table of the schema; broken: column → row → cell"
    pa = pytest.importorskip("pyarrow")
    columns = {f"{m}.lora.{x}.weight": [(row[m][j].double().flatten() if flat else row[m][j]).tolist() for row in rows] for m in SIZES for j, x in ((1, "down"), (0, "up"))}
    for i, change in broken.items():
        for key, cell in change.items(): columns[key][int(i[1:])] = cell
    return pa.table(columns | {k: [v] * len(rows) for k, v in LABELS.items()})

def put(table, path):
    "As the hub has it, as an Arrow stream, or as `save_to_disk` writes it"
    import pyarrow as pa, pyarrow.parquet as pq
    if path.suffix == ".parquet": pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(str(path), table.schema) as f: f.write_table(table)
    else: pytest.importorskip("datasets").Dataset(table).save_to_disk(path)
    return path

@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("file", ["a.parquet", "a.arrow", "saved"])
def test_rows_of_a_data_set(tmp_path, file, flat):
    pytest.importorskip("datasets")
    rows = rows_of_adapters(3, rank=1 + 3 * flat)
    path = put(table(rows, flat), tmp_path/file)
    stream = lg.load_lora_dataset(path, batch_size=2)
    for row, lora in zip(rows, stream, strict=True):
        assert set(lora) == set(SIZES) and lora.arch == "sd15" and lora.metadata["category_label"] == "cat" and lora.metadata["step_loss"] == "[[0.1, 0.2]]"
        for m, (up, down) in row.items(): assert torch.equal(lora[m].up, up) and torch.equal(lora[m].down, down) and lora[m].scale == 1
    loras = lg.load_lora_dataset(path, streaming=False)
    assert len(loras) == 3 and len(loras.modules) == 64 and not stream.skipped and not loras.skipped

def test_a_data_set_of_several_files_streams_no_further_than_asked(tmp_path):
    pytest.importorskip("datasets")
    for i in range(2): put(table(rows_of_adapters(2)), tmp_path/f"{i}.parquet")
    stream = lg.load_lora_dataset(tmp_path, batch_size=1)
    next(stream)
    (tmp_path/"1.parquet").write_bytes(b"") # not opened yet
    assert next(stream)["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"].rank == 1

KEY, LAST = (f"{list(SIZES)[i]}.lora.%s.weight" for i in (0, -1))
BROKEN = { # row → column → cell; what is said
    "null": ({KEY % "up": None}, "E6", "is empty"), "no rows": ({KEY % "down": []}, "E6", "is empty"), "ragged": ({KEY % "up": [[1.0]] * 319 + [[1.0, 2.0]]}, "E6", "differ in length"),
    "nan": ({LAST % "down": [[float("nan")] * 768]}, "E4", "768 NaN"), "null inside": ({LAST % "down": [[None] + [1.0] * 767]}, "E4", "1 NaN"), "ranks": ({KEY % "up": [[1.0, 2.0]] * 320}, "E6", "one rank r"),
}

@pytest.mark.parametrize("cells, code, text", BROKEN.values(), ids=BROKEN)
def test_bad_rows_are_left_out_and_named(tmp_path, cells, code, text):
    pytest.importorskip("datasets")
    rows = rows_of_adapters(4)
    path = put(table(rows, _1=cells), tmp_path/"a.parquet")
    stream = lg.load_lora_dataset(path, batch_size=3)
    with pytest.warns(UserWarning, match=r"skipped .*row 1"): loras = list(stream)
    (error,) = stream.skipped
    assert (error.code, "row 1:" in error.text, text in error.text) == (code, True, True) and next(iter(cells)) in error.text + KEY % "up"
    for lora, row in zip(loras, [rows[0], rows[2], rows[3]], strict=True): assert all(torch.equal(lora[m].up, up) for m, (up, _) in row.items())
    with pytest.warns(UserWarning): assert "1 files skipped" in repr(lg.load_lora_dataset(path, streaming=False))

def test_a_table_that_holds_no_adapters(tmp_path):
    pa, _ = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    flat = {KEY % "up": [[1.0] * 321], KEY % "down": [[1.0] * 320]}
    for columns, text in (({"text": ["a"]}, "no LoRA columns found"), ({KEY % "up": [[[1.0]]]}, "no down"), (flat, "no multiples")):
        path = put(pa.table(columns), tmp_path/"a.parquet")
        if "text" in columns:
            with pytest.raises(lg.LoRAFormatError, match=text): next(lg.load_lora_dataset(path))
        else:
            with pytest.warns(UserWarning, match=text): assert list(lg.load_lora_dataset(path)) == []
    (tmp_path/"none").mkdir()
    with pytest.raises(lg.LoRAFormatError, match="no .parquet or .arrow"): lg.load_lora_dataset(tmp_path/"none")
