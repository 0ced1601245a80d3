"Which model a file is for, and that its names lead back to it"
import pytest

from loragrass.factors import parse_key
from loragrass.module_names import bfl_modules, canonical, guess_arch, kohya_modules, split_rows
from lora_files import LISTS

def shapes(raw, m=3072, n=3072):
    "Canonical name → (m, n), as a reader of these modules gives it"
    return {name: (rows, n) for module in raw for names in [canonical(module)[1]] for name, rows in zip(names, split_rows(len(names), m * len(names), n))}

def listed(name):
    "The modules of a key list as it spells them, and their canonical names with shapes"
    sizes, found = {}, {}
    for key, shape in LISTS[name].items():
        if (parsed := parse_key(key)) and parsed[2] in ("up", "down"): sizes.setdefault(parsed[0], {})[parsed[2]] = shape
    for raw, s in sizes.items():
        names, n = canonical(raw)[1], s["down"][1]
        found |= {name: (rows, n) for name, rows in zip(names, split_rows(len(names), s["up"][0], n))}
    return list(sizes), found

def test_sd3_names_and_shapes_align_but_for_the_last_modulation():
    kohya, diffusers = (listed(name)[1] for name in ("sd3_kohya", "sd3_diffusers_peft"))
    assert set(kohya) - set(diffusers) == {"lora_unet_joint_blocks_23_context_block_adaLN_modulation_1"}
    assert set(diffusers) - set(kohya) == {"transformer.transformer_blocks.23.norm1_context.linear"}
    assert all(kohya[name] == diffusers[name] for name in set(kohya) & set(diffusers))

@pytest.mark.parametrize("name, arch", [("sd3_kohya", "sd3"), ("flux_kohya", "flux1"), ("flux_comfy_bfl", "flux1"), ("sdxl_kohya", "sdxl"), ("sd15_kohya", "sd15")])
def test_every_module_of_a_list_goes_back_to_its_name(name, arch):
    raw, found = listed(name)
    assert guess_arch(found, raw) == arch
    assert set((bfl_modules if "bfl" in name else kohya_modules)(found, arch)) == set(raw)

@pytest.mark.parametrize("name, arch", [("flux_diffusers_peft", "flux1"), ("flux_diffusers_dreambooth", "flux1"), ("sd3_diffusers_peft", "sd3")])
def test_diffusers_names_of_a_transformer(name, arch): assert guess_arch(listed(name)[1]) == arch

ATTENTION = ["attn.to_q", "attn.add_q_proj", "attn.to_out.0"]
OTHERS = { # modules, m (rows of each), arch
    "qwen": ([f"transformer.transformer_blocks.0.{x}" for x in (*ATTENTION, "img_mlp.net.0.proj")], 3072, "unknown"),
    "qwen, attention of 60": ([f"transformer.transformer_blocks.{i}.{x}" for i in range(60) for x in ATTENTION], 3072, "unknown"),
    "qwen, kohya": ([f"lora_unet_transformer_blocks_0_{x}" for x in ("attn_to_q", "attn_add_q_proj", "img_mod_1", "txt_mlp_net_2")], 3072, "unknown"),
    "qwen, comfy": ([f"diffusion_model.transformer_blocks.0.{x}" for x in ("attn.to_q", "attn.add_q_proj", "img_mod.1")], 3072, "unknown"),
    "ltx, comfy": (["diffusion_model.transformer_blocks.0.attn1.to_q"], 2048, "unknown"),
    "wan, comfy": (["diffusion_model.blocks.0.self_attn.q"], 2048, "unknown"),
    "auraflow": (["transformer.joint_transformer_blocks.0.attn.to_q", "transformer.single_transformer_blocks.0.attn.to_q"], 3072, "unknown"),
    "hunyuan": ([f"transformer.single_transformer_blocks.{i}.proj_out" for i in range(40)], 3072, "unknown"),
    "hunyuan, kohya": ([f"lora_unet_double_blocks_0_{x}" for x in ("img_attn_qkv", "img_mlp_fc1")], 3072, "hunyuan_video"),
    "hunyuan, comfy": (["diffusion_model.double_blocks.0.img_attn_qkv", "diffusion_model.single_blocks.0.linear1"], 3072, "hunyuan_video"),
    "flux 2, comfy": (["diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.img_mlp.0"], 6 * 3072, "flux-like"),
    "flux, and what it has not": (["diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.img_new.0"], 3072, "flux-like"),
    "flux, comfy": (["diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.img_in"], 3072, "flux1"),
    "flux": (["transformer.single_transformer_blocks.37.attn.to_q"], 3072, "flux1"),
}

@pytest.mark.parametrize("raw, m, arch", OTHERS.values(), ids=OTHERS)
def test_only_flux_is_flux_and_names_go_back(raw, m, arch):
    found = shapes(raw, m)
    assert guess_arch(found, raw) == arch
    for prefix, back in (("lora_unet", kohya_modules), ("diffusion_model", bfl_modules)):
        if raw[0].startswith(prefix): assert list(back(found, arch)) == raw

@pytest.mark.parametrize("back, name", [(kohya_modules, "transformer.proj_out.odd"), (kohya_modules, "transformer.transformer_blocks.0.attn.odd"), (bfl_modules, "unet.conv_in")])
def test_names_that_have_no_spelling(back, name):
    with pytest.raises(ValueError, match=name): back([name], "flux1")
