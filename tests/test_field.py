"Files as trainers really write them, of which public reports say that a tool read them wrong, or not at all"
import json, math, warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import loragrass as lg
from loragrass.formats import find_adapters
from loragrass.lora_io import TensorFile
from loragrass.module_names import canonical, is_language_model, kohya_modules
from lora_files import kohya, peft_folder

Q = "model.layers.0.self_attn.q_proj"

def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lg.load(path, **options)

def pair(name, m=10, n=12, r=4, tails="AB"):
    a, b = ("lora_A.weight", "lora_B.weight") if tails == "AB" else ("lora_down.weight", "lora_up.weight")
    return {f"{name}.{a}": torch.randn(r, n), f"{name}.{b}": torch.randn(m, r)}

def file(path, tensors, **metadata):
    save_file(tensors, path, metadata=metadata or None)
    return path

def mlx(path, tensors, **config):
    path.mkdir(exist_ok=True)
    save_file(tensors, path/"adapters.safetensors")
    (path/"adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 5.0}} | config))
    return path

# what training put around a module

WRAPPED = {
    f"_orig_mod.base_model.model.{Q}": Q, f"base_model.model._orig_mod.{Q}": Q, f"module.base_model.model.{Q}": Q, f"base_model.model.module.{Q}": Q,
    f"module._orig_mod.base_model.model.{Q}": Q, f"_forward_module.base_model.model.{Q}": Q, f"pretrained_model.base_model.model.{Q}": Q,
    "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn.q_proj": Q,
    "base_model.model.model.layers.0._fsdp_wrapped_module._fpw_module.self_attn.q_proj": Q,
    "unet.module.mid_block.attentions.0.proj_in": "unet.mid_block.attentions.0.proj_in",
    "transformer._orig_mod.transformer_blocks.0.attn.to_q": "transformer.transformer_blocks.0.attn.to_q",
    "diffusion_model._orig_mod.blocks.0.self_attn.q": "diffusion_model.blocks.0.self_attn.q",
    "model.diffusion_model.blocks.0.self_attn.q": "diffusion_model.blocks.0.self_attn.q",
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet__orig_mod_mid_block_attentions_0_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_mid_block_attentions_0__checkpoint_wrapped_module_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_module_mid_block_attentions_0_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_te1__orig_mod_text_model_encoder_layers_0_mlp_fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
}

@pytest.mark.parametrize("raw", WRAPPED)
def test_a_wrapped_name_is_the_name_without(tmp_path, raw):
    t = pair(raw, tails="du" if raw.startswith("lora_") else "AB")
    path = peft_folder(tmp_path/"a", t, r=4, lora_alpha=8) if "base_model" in raw else file(tmp_path/"a.safetensors", t)
    with pytest.warns(UserWarning, match="wrapped the modules") as caught: lora = lg.load(path)
    assert list(lora) == [WRAPPED[raw]] and any("[W6]" in str(w.message) for w in caught)
    out = lg.save(lora, tmp_path/("b" if lora.format == "peft" else "b.safetensors")).path
    assert list(lg.load(out)) == list(lora) and not any("mod" in i.text and i.code == "W6" for i in lg.load(out).issues)

def test_a_wrapper_inside_the_tail_and_around_what_is_passed_on(tmp_path):
    t = {f"_orig_mod.base_model.model.{Q}.lora_{x}.default._fsdp_wrapped_module.weight": v for x, v in zip("AB", pair("q").values())}
    head = torch.randn(3, 10)
    lora = quiet(peft_folder(tmp_path/"a", t | {"_orig_mod.base_model.model.classifier.weight": head}, r=4, lora_alpha=8))
    assert list(lora) == [Q]
    saved = lg.save(lora, tmp_path/"b")
    assert not saved.left_out and torch.equal(load_file(tmp_path/"b"/"adapter_model.safetensors")["base_model.model.classifier.weight"], head)

@pytest.mark.parametrize("name", ["module.lora_A", "encoder.module_list.0.q", "unet.mid_block.submodule.q", "model.layers.0.q_module"])
def test_words_of_a_model_are_no_wrappers(name): assert canonical(name)[1] == [name]

def test_two_copies_of_an_adapter_have_one_list_of_names(tmp_path):
    t = pair(f"base_model.model.{Q}")
    for name, front in (("a", ""), ("b", "_orig_mod.")): peft_folder(tmp_path/name, {front + k: v for k, v in t.items()}, r=4, lora_alpha=8)
    with pytest.warns(UserWarning, match="W6"): loras = lg.load_all(tmp_path)
    assert loras.modules == [Q] and len(loras) == 2
    torch.testing.assert_close(lg.mean_lora(loras).lora[Q].dense(), loras[0][Q].dense(), atol=1e-4, rtol=1e-4)

def test_two_names_that_may_be_one_module_are_said(tmp_path):
    for name, front in (("a", "model.language_model."), ("b", "language_model.model.")):
        peft_folder(tmp_path/name, pair(f"base_model.model.{front}layers.0.self_attn.q_proj"), r=4, lora_alpha=8)
    with pytest.warns(UserWarning, match="look like one module under two names"): lg.load_all(tmp_path)

@pytest.mark.parametrize("spellings", [
    ["lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q", "blocks.0.self_attn.q"],
    ["lora_unet_layers_0_attention_qkv", "diffusion_model.layers.0.attention.qkv"],
    ["lora_unet_context_refiner_1_feed_forward_w2", "diffusion_model.context_refiner.1.feed_forward.w2"]])
def test_models_with_names_of_their_own_only(spellings):
    (name,) = {canonical(s)[1][0] for s in spellings}
    assert list(kohya_modules([name])) == [spellings[0]]

# text encoders

@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_"])
@pytest.mark.parametrize("unet", ["lora_unet_layers_0_attention_qkv", "lora_unet_blocks_0_self_attn_q_proj", "lora_unet_somebody_elses_0_layer"])
def test_a_text_encoder_keeps_its_prefix(tmp_path, prefix, unet):
    names = [unet] + [prefix + rest for rest in ("layers_0_self_attn_q_proj", "layers_0_mlp_gate_proj", "text_model_encoder_layers_0_mlp_fc1", "odd_0_x")]
    t = {k: v for name in names for k, v in (pair(name, tails="du") | {f"{name}.alpha": torch.tensor(2.0)}).items()}
    lora = quiet(file(tmp_path/"a.safetensors", t))
    for made in (lora, lg.resize(lora, rank=2).lora):
        lg.save(made, tmp_path/"b.safetensors")
        assert set(load_file(tmp_path/"b.safetensors")) == set(t)
        assert set(quiet(tmp_path/"b.safetensors")) == set(lora)

@pytest.mark.parametrize("number", [2, 3]) # OneTrainer's and sd-scripts' for T5
@pytest.mark.parametrize("unet", ["lora_unet_double_blocks_0_img_attn_proj", "lora_transformer_single_transformer_blocks_0_proj_mlp"])
def test_the_second_text_encoder_of_flux_keeps_its_number(tmp_path, number, unet):
    t = pair(unet, 48, 12, tails="du") | pair(f"lora_te{number}_encoder_block_0_layer_0_SelfAttention_q", tails="du")
    lora = quiet(file(tmp_path/"a.safetensors", t))
    assert lora.arch == "flux1" and "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q" in lora
    lg.save(lg.mean_lora([lora, lora]).lora, tmp_path/"b.safetensors")
    assert {k for k in t if "te" in k.split("_")[1]} <= set(load_file(tmp_path/"b.safetensors"))

# scales that are lost, nowhere, or nonsense

LANGUAGE = [Q, "transformer.h.0.attn.c_attn", "bert.encoder.layer.0.attention.self.query", "gpt_neox.layers.0.attention.query_key_value", "model.layers.3.mlp.gate_proj",
    "encoder.block.0.layer.0.SelfAttention.q", "model.decoder.layers.0.self_attn.v_proj", "transformer.h.0.self_attention.query_key_value", "language_model.model.layers.0.mlp.up_proj",
    "layers.0.attn.q_proj", "layers.3.attn.output_proj", "transformer.blocks.0.attn.Wqkv", "model.layers.0.self_attn.W_pack", "model.layers.0.self_attn.dense", "backbone.layers.0.mixer.in_proj",
    "model.decoder.layers.0.encoder_attn.q_proj", "model.layers.0.linear_attn.in_proj_qkvz", "model.layers.0.block_sparse_moe.gate"]

@pytest.mark.parametrize("tail", ["", ".default"])
@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_without_its_config_has_no_scale(tmp_path, name, tail):
    t = {k.replace(".weight", f"{tail}.weight"): v for k, v in pair(name).items()}
    with pytest.raises(lg.LoRAFormatError, match="adapter_config.json missing") as e: lg.load(file(tmp_path/"a.safetensors", t))
    assert e.value.code == "E11"
    lora = quiet(tmp_path/"a.safetensors", alpha=8)
    assert lora[name].scale == 2
    assert quiet(lg.save(lora, tmp_path/"b").path)[name].norm() == pytest.approx(lora[name].norm(), rel=1e-5)

@pytest.mark.parametrize("name", ["transformer.blocks.0.attn1.to_q", "transformer.layers.0.attn.to_q", "blocks.0.attn.qkv", "unet.mid_block.attentions.0.proj_in"])
def test_names_of_pictures_models_are_no_language_models(name): assert not is_language_model(name)

def test_torchtunes_names_are_read(tmp_path):
    A, B = torch.randn(4, 12), torch.randn(10, 4)
    path = file(tmp_path/"a.safetensors", {"layers.0.attn.q_proj.lora_a.weight": A, "layers.0.attn.q_proj.lora_b.weight": B})
    torch.testing.assert_close(quiet(path, alpha=8)["layers.0.attn.q_proj"].dense(), 2 * B @ A)

def test_bare_numbered_names_say_that_scale_1_is_assumed(tmp_path):
    with pytest.warns(UserWarning, match="scale 1 assumed"): lg.load(file(tmp_path/"a.safetensors", pair("backbone.0.mixer")))

@pytest.mark.parametrize("header", [False, True])
def test_a_lora_alpha_of_zero_says_nothing(tmp_path, header):
    name = "unet.mid_block.attentions.0.proj_in" if header else f"base_model.model.{Q}"
    if header: path = file(tmp_path/"a.safetensors", pair(name), lora_adapter_metadata=json.dumps({"unet.r": 4, "unet.lora_alpha": 0}))
    else: path = peft_folder(tmp_path/"a", pair(name), r=4, lora_alpha=0)
    with pytest.raises(lg.LoRAFormatError, match="lora_alpha is 0") as e: lg.load(path)
    assert e.value.code == "E11"
    (u,), (v,) = lg.load(path, alpha=8).values(), lg.load(path, scale=0.5).values()
    assert (u.scale, v.scale) == (2, 0.5)

def test_one_module_may_be_switched_off(tmp_path):
    t = pair(f"base_model.model.{Q}") | pair(f"base_model.model.{Q.replace('q_proj', 'v_proj')}")
    path = peft_folder(tmp_path/"a", t, r=4, lora_alpha=8, alpha_pattern={"v_proj": 0})
    with pytest.warns(UserWarning, match="alpha is 0 in 1 of 2 modules"): lora = lg.load(path)
    assert sorted(u.scale for u in lora.values()) == [0, 2]

def test_an_alpha_of_zero_is_not_called_an_untrained_adapter(tmp_path):
    with pytest.warns(UserWarning) as caught: lg.load(file(tmp_path/"a.safetensors", kohya((12, 10), alpha=0.0)))
    assert "alpha is 0 in 1 of 1 modules" in str(caught[0].message) and not any("lora_up" in str(w.message) for w in caught)

@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_alpha_that_diverged_is_left_out_on_request(tmp_path, bad):
    t = kohya((12, 10), (8, 10)) # the second module is good
    path = file(tmp_path/"a.safetensors", t | {next(k for k in t if k.endswith("alpha")): torch.tensor(bad)})
    with pytest.raises(lg.LoRAFormatError, match="drop_bad") as e: lg.load(path)
    assert e.value.code == "E4"
    with pytest.warns(UserWarning, match="1 modules whose alpha is NaN or infinite left out"): lora = lg.load(path, drop_bad=True)
    assert [u.weight_shape for u in lora.values()] == [(8, 10)]
    with pytest.warns(UserWarning, match="E4: 1"): assert len(lg.load_all([path], drop_bad=True)[0]) == 1
    file(path, {k: v if "alpha" not in k else torch.tensor(bad) for k, v in t.items()})
    with pytest.raises(lg.LoRAFormatError, match="all of 2 modules"): lg.load(path, drop_bad=True)

SAID = [({"lora_alpha": "8"}, 8), ({"network_alpha": "8.0"}, 8), ({"alpha": "8", "rank": "4"}, 8), ({"transformer.lora_alpha": "8", "transformer.r": "4"}, 8), ({"ss_network_alpha": "8"}, 8),
    ({"LoRA_alpha": "8"}, 8), ({"networkAlpha": "8"}, 8), ({"lora_config": '{"r": 4, "lora_alpha": 8}'}, 8), ({"training": '{"network": {"linear_alpha": 8.0, "linear": 4}}'}, 8),
    ({"a": '{"alpha": {"alpha": 8}}', "b": '{"alpha'}, 8), ({"a": '{"alpha": 8}', "lora_alpha": "4"}, None), ({"a": '{"alpha": true}'}, None), ({"a": '{"a":' * 5000}, None),
    ({"alpha": "Dynamic"}, None), ({"a.lora_alpha": "8", "b.lora_alpha": "4"}, None), ({"alpha": "nan"}, None), ({"alpha": "1" * 5000}, None)]

@pytest.mark.parametrize("metadata, alpha", SAID)
def test_an_alpha_that_only_the_header_has(tmp_path, metadata, alpha):
    path = file(tmp_path/"a.safetensors", pair(f"base_model.model.{Q}"), **metadata)
    if alpha is None:
        with pytest.raises(lg.LoRAFormatError, match="cannot be known"): lg.load(path)
        return
    with pytest.warns(UserWarning, match="alpha 8 stands in the header only.*read with scale 2"): assert lg.load(path)[Q].scale == 2 # refused otherwise
    path = file(tmp_path/"b.safetensors", pair("diffusion_model.blocks.0.self_attn.q"), **metadata)
    with pytest.warns(UserWarning, match="alpha 8 stands in the header only.*read with scale 1"): (u,) = lg.load(path).values() # as ComfyUI applies it
    assert u.scale == 1 and next(iter(quiet(path, alpha=8).values())).scale == 2

@pytest.mark.parametrize("alpha", [1.0, 0.0, 9999999999.0, math.nan, math.inf, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lokr_of_two_whole_factors_has_no_use_for_alpha(tmp_path, alpha, dtype):
    w1, w2 = torch.randn(4, 4).to(dtype), torch.randn(8, 8).to(dtype)
    name = "diffusion_model.layers.0.attention.to_q"
    path = file(tmp_path/"a.safetensors", {f"{name}.lokr_w1": w1, f"{name}.lokr_w2": w2, f"{name}.alpha": torch.tensor(alpha).to(dtype)})
    for options in ({}, {"drop_bad": True}):
        torch.testing.assert_close(quiet(path, approx_rank=32, **options)[name].dense(), torch.kron(w1.float(), w2.float()), atol=1e-4, rtol=1e-4)
    with pytest.raises(lg.LoRAFormatError, match="approx_rank"): lg.load(path)

# DoRA and its kin, by every name

@pytest.mark.parametrize("tail", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.default", "lora_magnitude_vector.default.weight", "magnitude", "magnitude.weight", "m",
    "weight_m_wdecomp.weight", "weight_decomp", "dora_magnitude", "lora_magnitude"])
def test_dora_by_every_name(tmp_path, tail):
    name = "diffusion_model.blocks.0.self_attn.q"
    path = file(tmp_path/"a.safetensors", pair(name) | {f"{name}.{tail}": torch.rand(10) + 1})
    with pytest.raises(lg.LoRAFormatError, match="DoRA") as e: lg.load(path)
    assert e.value.code == "E9" and list(quiet(path, ignore_magnitude=True)) == [name]

def test_dora_that_only_a_config_tells(tmp_path):
    folders = [peft_folder(tmp_path/"a", pair(f"base_model.model.{Q}"), r=4, lora_alpha=8, use_dora=True),
        mlx(tmp_path/"b", {f"{Q}.lora_a": torch.randn(12, 4), f"{Q}.lora_b": torch.randn(4, 10)}, fine_tune_type="dora")]
    for path in folders:
        with pytest.raises(lg.LoRAFormatError, match="without its magnitudes") as e: lg.load(path)
        assert e.value.code == "E9" and list(quiet(path, ignore_magnitude=True)) == [Q]

OTHERS = {"oft_unet_single_blocks_6_linear2.oft_blocks.0": "OFT", "lora_unet_mid.oft_blocks": "OFT", "base_model.model.q.oft_R.default.weight": "OFT", "base_model.model.q.oft_r": "OFT",
    "lora_unet_mid.oft_blocks_3": "OFT", "lora_unet_mid.oft_block.0": "OFT", "base_model.model.q.oft_R.0.weight": "OFT", "lora_unet_mid.oft_diag.0": "BOFT", "base_model.model.q.boft_R.default.0": "BOFT",
    "base_model.model.q.boft_R": "BOFT", "base_model.model.q.ia3_l.default": "IA3"}

@pytest.mark.parametrize("key", OTHERS)
def test_what_is_not_low_rank_is_called_by_its_name(tmp_path, key):
    path = file(tmp_path/"a.safetensors", {key: torch.ones(2, 2), "oft_unet_single_blocks_6_linear2.alpha": torch.tensor(1.0)})
    with pytest.raises(lg.LoRAFormatError, match=f"^.*: {OTHERS[key]} is not low rank") as e: lg.load(path)
    assert e.value.code == "E10"

@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq", "LoRA-GA", "OLoRA", "InitLoraWeights.PISSA", "milora"])
def test_an_adapter_that_changed_its_base_says_how_to_convert_it(tmp_path, start):
    with pytest.raises(lg.LoRAFormatError) as e: lg.load(peft_folder(tmp_path/"a", pair(f"base_model.model.{Q}"), r=4, lora_alpha=8, init_lora_weights=start))
    assert e.value.code == "E12" and ("merge it into that base" if start == "loftq" else "path_initial_model_for_weight_conversion") in e.value.text

# experts and embeddings

def test_mlx_embeddings_are_not_turned(tmp_path):
    a, b = torch.randn(40, 4), torch.randn(4, 16)
    for name in ("model.embed_tokens", "transformer.wte"):
        u = lg.load(mlx(tmp_path/"a", {f"{name}.lora_a": a, f"{name}.lora_b": b}))[name]
        torch.testing.assert_close(u.dense(), 5 * a @ b)
    u = lg.load(mlx(tmp_path/"a", {"lm_head.lora_a": a, "lm_head.lora_b": b}))["lm_head"]
    torch.testing.assert_close(u.dense(), 5 * (a @ b).T)

EXPERTS = {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": torch.ones(3, 2, 12), "model.layers.0.mlp.switch_mlp.up_proj.lora_b": torch.ones(3, 10, 2)}

def test_mlx_experts_are_left_aside_or_named(tmp_path):
    good = {f"{Q}.lora_a": torch.randn(12, 2), f"{Q}.lora_b": torch.randn(2, 10)}
    with pytest.warns(UserWarning, match="1 stacks of experts"): lora = lg.load(mlx(tmp_path/"a", EXPERTS | good))
    assert list(lora) == [Q] and set(lora.passthrough) == set(EXPERTS)
    with pytest.raises(lg.LoRAFormatError, match="stacks of experts") as e: lg.load(mlx(tmp_path/"a", EXPERTS))
    assert e.value.code == "E10"

@pytest.mark.parametrize("config", [{"target_parameters": ["mlp.experts.gate_up_proj"]}, {}])
def test_peft_experts_only(tmp_path, config):
    name = "base_model.model.model.layers.0.mlp.experts.base_layer"
    with pytest.raises(lg.LoRAFormatError, match="stacks of experts") as e: lg.load(peft_folder(tmp_path/"a", pair(name, r=24), r=8, lora_alpha=8, **config))
    assert e.value.code == "E10"

STACKS = { # (E, r, in) and (E, out, r), or turned, or flat; E of 8, r of 4
    "as MLX": {"lora_a": (8, 4, 16), "lora_b": (8, 24, 4)}, "of r experts": {"lora_a": (4, 4, 16), "lora_b": (4, 24, 4)}, "turned": {"lora_a": (8, 16, 4), "lora_b": (8, 4, 24)},
    "half flat": {"lora_a": (32, 16), "lora_b": (8, 24, 4)}, "of PEFT": {"lora_A.weight": (8, 4, 16), "lora_B.weight": (8, 24, 4)},
    "of PEFT, turned": {"lora_A.weight": (8, 16, 4), "lora_B.weight": (8, 4, 24)}, "in one name": {"lora_gate_a": (8, 16, 4), "lora_gate_b": (8, 4, 24)}, "parameters": {"lora_A": (8, 16, 4), "lora_B": (8, 4, 24)}}

@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("module", ["model.layers.0.mlp.experts", "model.layers.0.mlp.switch_mlp.up_proj"])
def test_stacks_of_experts_by_any_order(tmp_path, stack, module):
    t = {f"{module}.{role}": torch.ones(shape) for role, shape in STACKS[stack].items()}
    with pytest.raises(lg.LoRAFormatError, match="stacks of experts") as e: lg.load(file(tmp_path/"a.safetensors", t), alpha=8)
    assert e.value.code == "E10"
    lora = quiet(file(tmp_path/"b.safetensors", t | pair(Q)), alpha=8)
    assert list(lora) == [Q] and set(lora.passthrough) == set(t)

@pytest.mark.parametrize("down, up", [((4, 16, 3), (8, 4, 1)), ((8, 16, 3), (8, 4, 1)), ((12, 12, 3), (12, 1, 1))])
def test_convolutions_in_one_dimension_are_no_experts(tmp_path, down, up):
    u = quiet(peft_folder(tmp_path/"a", {"base_model.model.c.lora_A.weight": torch.ones(down), "base_model.model.c.lora_B.weight": torch.ones(up)}, r=down[0], lora_alpha=8))["c"]
    assert u.weight_shape == (up[0], *down[1:]) and u.groups == down[0] // up[1]

def test_two_words_for_the_scale_of_mlx_are_said(tmp_path):
    path = mlx(tmp_path/"a", {f"{Q}.lora_a": torch.randn(12, 4), f"{Q}.lora_b": torch.randn(4, 10)}, lora_parameters={"rank": 4, "alpha": 16, "scale": 10.0})
    with pytest.warns(UserWarning, match="alpha 16 beside scale 10.0"): assert lg.load(path)[Q].scale == 10

# bare names go back as they came

@pytest.mark.parametrize("tails", ["AB", "du"])
@pytest.mark.parametrize("name", ["blocks.{}.self_attn.q", "foo.{}.bar_baz", "blocks.{}.ffn.0"])
def test_bare_names_go_back_bare(tmp_path, name, tails):
    t = {k: v for i in range(2) for k, v in pair(name.format(i), tails=tails).items()}
    if tails == "du": t |= {f"{name.format(i)}.alpha": torch.tensor(2.0) for i in range(2)}
    lora = quiet(file(tmp_path/"a.safetensors", t))
    for made in (lora, lg.resize(lora, rank=2).lora, lg.mean_lora([lora, lora]).lora):
        assert lg.save(made, tmp_path/"b.safetensors").format == "bare" and set(load_file(tmp_path/"b.safetensors")) == set(t)
    back = quiet(lg.save(lora, tmp_path/"c.safetensors").path)
    for m in lora: torch.testing.assert_close(back[m].dense(), lora[m].dense())

BESIDE = { # names that no table has, beside those of a format
    "diffusion_model.layers.0.attention.qkv": ["text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj", "vae.decoder.conv_in", "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"],
    "transformer.transformer_blocks.0.attn.to_q": ["transformer_2.blocks.0.attn1.to_q", "text_encoder_4.model.layers.0.self_attn.q_proj", "connectors.video.0.to_q"],
    "lora_unet_double_blocks_0_img_attn_proj": ["lora_llm_adapter_blocks_0_self_attn_q_proj", "lora_vae_decoder_conv_in", "lora_te4_layers_0_x", "somebody.elses"],
    "base_model.model.model.layers.0.self_attn.q_proj": ["base_model.model.diffusion_model.double_blocks.0.img_attn.qkv", "base_model.model.lora_unet_x"]}

@pytest.mark.parametrize("more", [1, 2])
@pytest.mark.parametrize("known, other", [(known, other) for known, others in BESIDE.items() for other in others])
def test_names_that_no_table_has_go_back_beside_others(tmp_path, known, other, more):
    tails = "du" if known.startswith("lora_") else "AB"
    t = pair(known, tails=tails) | {k: v for i in range(more) for k, v in pair(other.replace("0", str(i)) if more > 1 else other, tails=tails).items()}
    t |= {k.rpartition(".lora_")[0] + ".alpha": torch.tensor(2.0) for k in t if tails == "du"}
    peft = known.startswith("base_model")
    lora = quiet(peft_folder(tmp_path/"a", t, r=4, lora_alpha=8) if peft else file(tmp_path/"a.safetensors", t))
    for made in (lora, lg.mean_lora([lora, lora]).lora):
        saved = lg.save(made, tmp_path/("b" if peft else "b.safetensors")).path
        assert set(load_file(saved/"adapter_model.safetensors" if peft else saved)) == set(t)
        back = quiet(saved)
        for m in lora: torch.testing.assert_close(back[m].dense(), lora[m].dense(), atol=1e-4, rtol=1e-4)

def test_only_bare_adapters_go_back_bare(tmp_path):
    with pytest.raises(ValueError, match="save this one as kohya"): lg.save(quiet(file(tmp_path/"a.safetensors", kohya((12, 10)))), tmp_path/"b.safetensors", format="bare")

@pytest.mark.parametrize("block, h, arch, embedder", [("single_blocks.0.linear2", (12, 60), "flux1", "transformer.x_embedder"),
    ("single_blocks.0.linear2", (12, 48), "flux2", "transformer.x_embedder"), ("double_blocks.0.img_attn.qkv", (36, 12), "flux1", "diffusion_model.img_in")])
@pytest.mark.parametrize("front", ["", "diffusion_model."])
def test_flux_embedders_go_back(tmp_path, block, h, arch, embedder, front):
    t = pair(front + block, *h) | pair(f"{front}img_in", 12, 4)
    lora = quiet(file(tmp_path/"a.safetensors", t))
    assert lora.arch == arch and embedder in lora
    lg.save(lora, tmp_path/"b.safetensors")
    assert {k.removeprefix("diffusion_model.") for k in load_file(tmp_path/"b.safetensors")} == {k.removeprefix(front) for k in t}
    if arch in embedder or "x_" in embedder: assert embedder in lg.load(lg.save(lora, tmp_path/"c.safetensors", format="diffusers").path)

H = 12
FLUX2 = {"transformer_blocks.0.attn.to_q": (H, H), "transformer_blocks.0.ff.linear_in": (6 * H, H), "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (9 * H, H),
    "single_transformer_blocks.0.attn.to_out": (H, 4 * H), "double_stream_modulation_img.linear": (6 * H, H), "x_embedder": (H, 8), "time_guidance_embed.timestep_embedder.linear_1": (H, 16)}
FLUX1 = {"transformer_blocks.0.attn.to_q": (H, H), "single_transformer_blocks.0.proj_mlp": (4 * H, H), "x_embedder": (H, 8), "time_text_embed.text_embedder.linear_2": (H, H)}

@pytest.mark.parametrize("arch, modules", [("flux1", FLUX1), ("flux2", FLUX2)])
@pytest.mark.parametrize("front", ["transformer.", "", "lora_transformer_", "lycoris_", "lora_unet_", "diffusion_model."])
def test_diffusers_names_of_flux_behind_any_prefix(tmp_path, arch, modules, front):
    flat = front.endswith("_")
    t = {k: v for m, (rows, columns) in modules.items() for k, v in pair(front + (m.replace(".", "_") if flat else m), rows, columns, tails="du" if flat else "AB").items()}
    lora = quiet(file(tmp_path/"a.safetensors", t))
    assert lora.arch == arch and set(lora) == {f"transformer.{m}" for m in modules}
    for format in ("diffusers", "kohya", "bfl"):
        back = quiet(lg.save(lora, tmp_path/f"{format}.safetensors", format=format).path)
        for m in lora: torch.testing.assert_close(back[m].dense(), lora[m].dense(), atol=1e-4, rtol=1e-4)

# folders

def names(found): return [p.name for p in found[0]], {e.path.name: e.text for e in found[1]}

def test_checkpoints_second_adapters_and_what_lies_beside_them(tmp_path):
    run, t = tmp_path/"run", pair(f"base_model.model.{Q}")
    peft_folder(run, t, r=4, lora_alpha=8)
    for name in ("checkpoint-100", "checkpoint-200", "other", "pissa_init"): peft_folder(run/name, t, r=4, lora_alpha=8)
    (run/"checkpoint-100"/"global_step100").mkdir()
    for name in ("optimizer.pt", "rng_state.pth", "global_step100/mp_rank_00_model_states.pt"): (run/"checkpoint-100"/name).write_bytes(b"\x80\x02")
    for name in ("adapter.gguf", "model.safetensors", "adapters.npz"): (run/name).write_bytes(b"GGUF")
    (run/"deep").mkdir()
    (run/"deep"/"old.ckpt").write_bytes(b"\x80\x02")
    found, left = names(find_adapters(run))
    assert found == ["run", "checkpoint-100", "checkpoint-200", "other"]
    assert {k: v.partition(",")[0].partition(":")[0] for k, v in left.items()} == {"adapter.gguf": "a GGUF file of llama.cpp", "adapters.npz": "a NumPy archive", "pissa_init": "an adapter before its training",
        "model.safetensors": "lies beside the weights of an adapter and is not read with them; name the file itself to read it", "old.ckpt": ".ckpt is a pickle"}

def test_a_root_with_a_config_only(tmp_path):
    peft_folder(tmp_path/"run", pair(f"base_model.model.{Q}"), r=4, lora_alpha=8)
    peft_folder(tmp_path/"run"/"checkpoint-10", pair(f"base_model.model.{Q}"), r=4, lora_alpha=8)
    (tmp_path/"run"/"adapter_model.safetensors").unlink()
    with pytest.warns(UserWarning, match="adapter_config.json without weights"): loras = lg.load_all(tmp_path/"run")
    assert [x.name for x in loras] == ["checkpoint-10"] and len(loras.skipped) == 1
    with pytest.raises(lg.LoRAFormatError, match="adapters below it .checkpoint-10."): lg.load(tmp_path/"run")

def test_checkpoints_of_mlx_and_by_file_name(tmp_path):
    t = {f"{Q}.lora_a": torch.randn(12, 4), f"{Q}.lora_b": torch.randn(4, 10)}
    mlx(tmp_path/"mlx", t)
    save_file(t, tmp_path/"mlx"/"0000100_adapters.safetensors")
    save_file(kohya((12, 10)), tmp_path/"ink-checkpoint-100.safetensors")
    loras = lg.load_all(tmp_path/"mlx")
    assert [x.name for x in loras] == ["mlx", "0000100_adapters"] and [x[Q].scale for x in loras] == [5, 5]
    assert "ink-checkpoint-100.safetensors" in names(find_adapters(tmp_path))[0]

def test_what_a_training_goes_on_from_is_no_second_adapter(tmp_path):
    "accelerate writes the adapter again as model.safetensors, beside the state of its optimizer"
    (state := tmp_path/"style-000002-state").mkdir()
    for path in (tmp_path/"style-000002.safetensors", state/"model.safetensors", tmp_path/"model.safetensors"): save_file(kohya((9, 8)), path)
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"): (state/name).write_bytes(b"PK")
    found, skipped = names(find_adapters(tmp_path))
    assert found == ["model.safetensors", "style-000002.safetensors"] and list(skipped) == ["model.safetensors"] and "training state" in skipped["model.safetensors"]
    assert list(lg.load(state/"model.safetensors"))

def test_files_of_llama_cpp_are_named(tmp_path):
    peft_folder(tmp_path/"a", pair(f"base_model.model.{Q}"), r=4, lora_alpha=8)
    lying = ["a.gguf", "A.GGUF", "ggml-adapter-model.bin", "lora.ggml"]
    for name in lying: (tmp_path/"a"/name).write_bytes(b"GGUF")
    file(tmp_path/"ggml-style.safetensors", kohya((9, 8)))
    found, skipped = names(find_adapters(tmp_path))
    assert found == ["ggml-style.safetensors", "a"] and set(skipped) == set(lying) and all("llama.cpp" in text for text in skipped.values())

def test_folders_that_are_named_beside_others_mean_themselves(tmp_path):
    for run in "ab":
        peft_folder(tmp_path/run, pair(f"base_model.model.{Q}"), r=4, lora_alpha=8)
        peft_folder(tmp_path/run/"checkpoint-10", pair(f"base_model.model.{Q}"), r=4, lora_alpha=8)
    found, left = names(find_adapters([tmp_path/"a", tmp_path/"b"]))
    assert found == ["a", "b"] and "was named as an adapter" in left["checkpoint-10"]
    assert names(find_adapters([tmp_path/"a", tmp_path/"a"/"checkpoint-10"]))[0] == ["a", "checkpoint-10"]
    assert names(find_adapters([tmp_path, tmp_path/"a"]))[0].count("checkpoint-10") == 2

# what is passed on

def test_what_is_passed_on_is_compared_too(tmp_path, monkeypatch):
    from loragrass import writers
    lora = quiet(peft_folder(tmp_path/"a", pair(f"base_model.model.{Q}") | {"base_model.model.classifier.weight": torch.randn(3, 10)}, r=4, lora_alpha=8))
    real = writers._write
    def wrong(path, tensors, metadata):
        real(path, tensors, metadata)
        e = TensorFile(path).entries["base_model.model.classifier.weight"]
        with open(path, "r+b") as f: f.seek(e.end - 4); f.write(bytes(4))
    monkeypatch.setattr(writers, "_write", wrong)
    with pytest.raises(ValueError, match="classifier.weight was read back with other numbers"): lg.save(lora, tmp_path/"b")
    assert not (tmp_path/"b").exists()
