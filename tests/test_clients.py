"Real clients as oracles: what PEFT and diffusers apply is what we read and write, scale · B · A to 1e-5, in both directions"
import copy, json, logging, re, warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import loragrass as lg

peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
TOL = 1e-5

def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lg.load(path, **options)

def close(applied, expected):
    assert set(applied) == set(expected), (sorted(set(applied) ^ set(expected))[:4])
    for name, delta in applied.items(): assert (delta - expected[name]).abs().max() < TOL, name

def random_lora(shapes, ranks=(3,), scales=(0.5,), seed=0, **options):
    "A LoRA of canonical module → weight shape (and whether it is turned), cycling through ranks and scales"
    g, updates = torch.Generator().manual_seed(seed), {}
    for i, (module, (shape, turned)) in enumerate(shapes.items()):
        flat = (shape[0], shape[1:].numel())
        m, n = flat[::-1] if turned else flat
        r = min(ranks[i % len(ranks)], m, n)
        updates[module] = lg.LoRAUpdate(torch.randn(m, r, generator=g) / 4, torch.randn(r, n, generator=g) / 4, scales[i % len(scales)], tuple(shape), turned)
    return lg.LoRA(updates, "random", **options)

# PEFT

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)

def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False))
def bert(): return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, max_position_embeddings=32))
def vit():
    c = {k: v for k, v in SMALL.items() if k != "vocab_size"}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**c, image_size=16, patch_size=4))
def gpt2(): return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32))

CASES = { # model, LoraConfig
    "llama": (llama, dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])),
    "rslora": (llama, dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "patterns": (llama, dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"], rank_pattern={"q_proj": 2, r"layers\.1\..*v_proj": 6},
        alpha_pattern={"k_proj": 3, "^model.layers.0.self_attn.q_proj": 16})),
    "embedding": (llama, dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "bert": (bert, dict(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS")),
    "vit": (vit, dict(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj", "fc1", "projection"])),
    "gpt2": (gpt2, dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True)),
}

def peft_deltas(base, folder):
    "What PEFT adds to each weight of the base"
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        merged = peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
    deltas = {n: p.detach() - before[n] for n, p in merged.named_parameters() if n in before}
    return {n.removesuffix(".weight"): d for n, d in deltas.items() if d.abs().max() > 0}

def trained(case, folder):
    "An adapter of random numbers, saved by PEFT; the deltas that PEFT applies"
    make, config = CASES[case]
    torch.manual_seed(0)
    base = make().eval()
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**config))
    for name, p in model.named_parameters():
        if "lora_" in name: torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    return base, peft_deltas(copy.deepcopy(base), folder)

@pytest.mark.parametrize("case", CASES)
def test_peft_and_we_read_one_delta_and_write_it_back(tmp_path, case):
    base, applied = trained(case, tmp_path/"theirs")
    lora = quiet(tmp_path/"theirs")
    close(applied, {m: u.dense() for m, u in lora.items()})
    for name, ragged in (("ours", False), ("ragged", True)):
        lg.save(lora, tmp_path/name, ragged=ragged)
        close(peft_deltas(copy.deepcopy(base), tmp_path/name), applied)
        close({m: u.dense() for m, u in quiet(tmp_path/name).items()}, applied)
    config = json.loads((tmp_path/"ours"/"adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and not config["rank_pattern"]

def test_peft_reads_what_we_compute_in_half_precision(tmp_path):
    base = llama().eval()
    shapes = {n.removesuffix(".weight"): (p.shape, False) for n, p in base.named_parameters() if n.endswith("proj.weight")}
    lora = random_lora(shapes, ranks=(1, 2, 5), scales=(0.3, 2.0, -1.0))
    for dtype in (torch.bfloat16, torch.float16):
        saved = lg.save(lora, tmp_path/str(dtype), format="peft", dtype=dtype)
        close(peft_deltas(copy.deepcopy(base), tmp_path/str(dtype)), {m: u.dense() for m, u in quiet(tmp_path/str(dtype)).items()})
        assert saved.rel_error < 4 * torch.finfo(dtype).eps

BESIDE = { # what PEFT tunes beside scale · B · A
    "bias of lora": (bert, dict(lora_bias=True, target_modules=["query"])), "all biases": (bert, dict(bias="all", target_modules=["query"], task_type="SEQ_CLS")),
    "tokens": (llama, dict(trainable_token_indices={"embed_tokens": [1, 2]}, target_modules=["q_proj"])),
}

@pytest.mark.parametrize("made", [lambda lora: lora, lambda lora: lg.resize(lora, rank=4).lora], ids=["as read", "resized"])
@pytest.mark.parametrize("case", BESIDE)
def test_peft_applies_what_stands_beside_an_update_as_before(tmp_path, case, made):
    make, config = BESIDE[case]
    torch.manual_seed(0)
    base = make().eval()
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=8, **config))
    for p in model.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(tmp_path/"theirs")
    with pytest.warns(UserWarning, match="W6"): lora = lg.load(tmp_path/"theirs")
    assert not lg.save(made(lora), tmp_path/"ours").left_out
    close(peft_deltas(copy.deepcopy(base), tmp_path/"ours"), peft_deltas(copy.deepcopy(base), tmp_path/"theirs"))

def test_peft_tells_conv1d_from_embeddings_where_no_config_does(tmp_path):
    base, applied = trained("gpt2", tmp_path/"theirs")
    lora = lg.LoRA(dict(quiet(tmp_path/"theirs")), format="peft")
    lg.save(lora, tmp_path/"ours")
    close(peft_deltas(base, tmp_path/"ours"), applied)

@pytest.mark.parametrize("kind", ["AdaLoraConfig", "LoHaConfig", "LoKrConfig", "VeraConfig"])
def test_other_kinds_of_peft(tmp_path, kind):
    torch.manual_seed(0)
    base = llama().eval()
    config = {"AdaLoraConfig": dict(total_step=10, init_r=4, lora_alpha=8), "LoHaConfig": dict(r=3, alpha=6), "LoKrConfig": dict(r=2, alpha=6),
        "VeraConfig": dict(r=4)}[kind]
    model = peft.get_peft_model(copy.deepcopy(base), getattr(peft, kind)(target_modules=["q_proj", "o_proj"], **config))
    for p in model.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(tmp_path/"theirs")
    lora, applied = quiet(tmp_path/"theirs"), peft_deltas(copy.deepcopy(base), tmp_path/"theirs")
    close(applied, {m: u.dense() for m, u in lora.items()})
    lg.save(lora, tmp_path/"ours")
    close(peft_deltas(copy.deepcopy(base), tmp_path/"ours"), applied)

# diffusers

def text_encoder(seed=0):
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=16))

def sd15():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4,
                                          down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    return diffusers.StableDiffusionPipeline(vae=None, text_encoder=text_encoder(), tokenizer=None, unet=unet, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None,
                                             image_encoder=None, requires_safety_checker=False)

def sdxl():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16, 16), norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4,
                                          down_block_types=("DownBlock2D", "CrossAttnDownBlock2D",
                                              "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                                          transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, addition_embed_type="text_time",
                                          addition_time_embed_dim=4, projection_class_embeddings_input_dim=40)
    return diffusers.StableDiffusionXLPipeline(vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=diffusers.DDIMScheduler())

def flux():
    diffusers = pytest.importorskip("diffusers")
    transformer = diffusers.FluxTransformer2DModel(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16,
                                                   axes_dims_rope=(4, 4, 8), guidance_embeds=True)
    return diffusers.FluxPipeline(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer)

COMPONENTS = ("unet", "transformer", "text_encoder")
WANTED = {"unet": r"attn[12]\.to_|\.ff\.net|proj_(?:in|out)$|resnets\.\d\.conv|samplers", "transformer": r"transformer_blocks\..*(?:attn\.|ff|proj_)",
    "text_encoder": r"self_attn\.\w+_proj$|fc[12]$"}

def weights(pipe): return {f"{c}.{n}": p for c in COMPONENTS if (model := getattr(pipe, c, None)) is not None for n, p in model.named_parameters()}

def canonical_modules(pipe):
    "Canonical module → (weight shape, False), of everything that trainers tune"
    shapes = {}
    for c in COMPONENTS:
        for n, module in (getattr(pipe, c, None) or torch.nn.Module()).named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and re.search(WANTED[c], n):
                shapes[f"{c}.{n}" if c != "text_encoder" or n.startswith("text_model") else f"{c}.text_model.{n}"] = (module.weight.shape, False)
    return shapes

@pytest.fixture(scope="module")
def pipes():
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    return {make.__name__: make() for make in (sd15, sdxl, flux)}

def diffusers_deltas(pipe, path):
    "What diffusers adds to each weight; the pipeline is left as it was"
    before = {n: p.detach().clone() for n, p in weights(pipe).items()}
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="a")
    pipe.fuse_lora(components=[c for c in COMPONENTS if getattr(pipe, c, None) is not None and c in pipe._lora_loadable_modules])
    pipe.unload_lora_weights()
    after = weights(pipe)
    deltas = {n.removesuffix(".weight"): after[n].detach() - before[n] for n in before}
    with torch.no_grad():
        for n, p in after.items(): p.copy_(before[n])
    return {n if not n.startswith("text_encoder.encoder") else n.replace("text_encoder.", "text_encoder.text_model."): d for n,
        d in deltas.items() if d.abs().max() > 0}

RANKS = {"uniform": ((4,), (0.5,)), "alpha = rank": ((1, 2, 4), (1.0,)), "every scale": ((1, 3, 4), (0.5, 2.0, 0.7))}

@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("model", ["sd15", "sdxl", "flux"])
def test_diffusers_applies_what_we_write(tmp_path, pipes, model, format, ranks):
    shapes = canonical_modules(pipes[model])
    # diffusers hard-codes the true width of single blocks
    if model == "flux" and format == "kohya": shapes = {m: s for m, s in shapes.items() if "single" not in m}
    arch = {"sdxl": "unknown", "flux": "flux1"}.get(model, model) # a tiny SDXL has no block of the true one's count
    lora = random_lora(shapes, *RANKS[ranks], format=format, arch=arch)
    lg.save(lora, tmp_path/"a.safetensors")
    close(diffusers_deltas(pipes[model], tmp_path/"a.safetensors"), {m: u.dense() for m, u in lora.items()})

@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("model, turn", [("sd15", lambda shape: shape[:2]), ("sdxl", lambda shape: (*shape, 1, 1))])
def test_point_convolutions_have_the_dimensions_of_their_model(tmp_path, pipes, model, turn, format):
    shapes = {m: s for m, (s, _) in canonical_modules(pipes[model]).items() if re.search(r"proj_(?:in|out)$", m)}
    lora = random_lora({m: (torch.Size(turn(s)), False) for m, s in shapes.items()}, format=format, arch=model)
    lg.save(lora, tmp_path/"a.safetensors")
    close(diffusers_deltas(pipes[model], tmp_path/"a.safetensors"), {m: u.dense().reshape(shapes[m]) for m, u in lora.items()})

def test_peft_applies_what_we_write_for_a_transformer_of_diffusers(tmp_path, pipes):
    lora = random_lora(canonical_modules(pipes["flux"]), (1, 3), (0.5, 2.0), format="diffusers", arch="flux1")
    lg.save(lora, tmp_path/"a", format="peft")
    close(peft_deltas(copy.deepcopy(pipes["flux"].transformer), tmp_path/"a"), {m.removeprefix("transformer."): u.dense() for m, u in lora.items()})

@pytest.mark.parametrize("model, part", [("sd15", "unet"), ("flux", "transformer")])
def test_a_peft_folder_of_a_part_of_a_pipeline_has_the_names_of_its_files(tmp_path, pipes, model, part):
    base = getattr(pipes[model], part)
    blocks = "^down_blocks.0" if part == "unet" else "^transformer_blocks.0"
    tuned = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, lora_alpha=3, target_modules=r".*blocks.*to_q",
        rank_pattern={rf"{blocks}\..*": 3}, alpha_pattern={rf"{blocks}\..*": 7}))
    for name, p in tuned.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p)
    tuned.save_pretrained(tmp_path/"theirs")
    applied, lora = peft_deltas(copy.deepcopy(base), tmp_path/"theirs"), quiet(tmp_path/"theirs")
    assert not lora.issues and {u.rank for u in lora.values()} == {2, 3}
    close({m: u.dense() for m, u in lora.items()}, {f"{part}.{m}": d for m, d in applied.items()})
    lg.save(lora, tmp_path/"ours")
    close(peft_deltas(copy.deepcopy(base), tmp_path/"ours"), applied)
    lg.save(lora, tmp_path/"a.safetensors", format="diffusers")
    close(diffusers_deltas(pipes[model], tmp_path/"a.safetensors"), {m: u.dense() for m, u in lora.items()})

def test_diffusers_reads_the_original_names_of_sdxl(tmp_path, pipes):
    shapes = {m: s for m, s in canonical_modules(pipes["sdxl"]).items() if m.startswith("unet.")}
    lora = random_lora(shapes, (3,), format="kohya", arch="sdxl")
    lg.save(lora, tmp_path/"a.safetensors", dtype=torch.float32)
    from loragrass.lora_io import TensorFile
    assert any("input_blocks_4_1" in k for k in TensorFile(tmp_path/"a.safetensors"))
    close(diffusers_deltas(pipes["sdxl"], tmp_path/"a.safetensors"), {m: u.dense() for m, u in lora.items()})

@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("what", ["mean", "ties", "clusters"])
def test_diffusers_applies_what_the_formula_of_a_merge_says(tmp_path, pipes, what, format):
    shapes = canonical_modules(pipes["sd15"])
    loras = [random_lora(shapes, (1, 3), (0.5, 2.0), seed, format=format, arch="sd15") for seed in (1, 2, 3)]
    if what == "mean":
        merged = lg.mean_lora(loras, [1, 2, 1], rank="sum").lora
        expected = {m: (u.dense() + 2 * loras[1][m].dense() + loras[2][m].dense()) / 4 for m, u in loras[0].items()}
    elif what == "ties": # against dense toys in test_merging
        merged = lg.merge(loras, [1, 1, 1], "ties", rank="sum", density=0.5).lora
        expected = {m: u.dense() for m, u in merged.items()}
    else: # the third stands alone, and the mean of the other two is theirs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = lg.cluster_merge([loras[0], loras[0], loras[2]], 2).means[0]
        expected = {m: u.dense() for m, u in loras[0].items()}
    lg.save(merged, tmp_path/"a.safetensors", dtype=torch.float32)
    close(diffusers_deltas(pipes["sd15"], tmp_path/"a.safetensors"), expected)

@pytest.mark.parametrize("model", ["sd15", "flux"])
def test_diffusers_saves_and_we_read_one_delta(tmp_path, pipes, model):
    pipe = pipes[model]
    layers, metadata = {}, {}
    for c in COMPONENTS:
        if (part := getattr(pipe, c, None)) is None: continue
        torch.manual_seed(1)
        tuned = peft.get_peft_model(copy.deepcopy(part), peft.LoraConfig(r=3, lora_alpha=6, target_modules=r".*(?:to_q|to_v|to_out\.0|q_proj|v_proj|proj_mlp)"))
        for n, p in tuned.named_parameters():
            if "lora_" in n: torch.nn.init.normal_(p, std=0.3)
        layers[f"{c}_lora_layers"] = {k.removeprefix("base_model.model."): v for k, v in peft.get_peft_model_state_dict(tuned).items()}
        metadata[f"{c}_lora_adapter_metadata"] = tuned.peft_config["default"].to_dict()
    type(pipe).save_lora_weights(tmp_path, weight_name="a.safetensors", **layers, **metadata)
    lora = quiet(tmp_path/"a.safetensors")
    assert {u.scale for u in lora.values()} == {2.0} # from the header
    close(diffusers_deltas(pipe, tmp_path/"a.safetensors"), {m: u.dense() for m, u in lora.items()})

@pytest.mark.parametrize("alpha", ["tensor", "none"])
def test_a_fused_kohya_file_of_flux_means_the_same_to_diffusers(tmp_path, pipes, alpha):
    t = {}
    for i, (raw, m, n) in enumerate([("img_attn_qkv", 96, 32), ("txt_attn_qkv", 96, 32), ("img_mlp_0", 128, 32), ("img_mlp_2", 32, 128),
        ("txt_attn_proj", 32, 32)]):
        torch.manual_seed(i)
        name, r = f"lora_unet_double_blocks_0_{raw}", 2 + i % 2
        t |= {f"{name}.lora_up.weight": torch.randn(m, r) / 4, f"{name}.lora_down.weight": torch.randn(r,
            n) / 4} | ({f"{name}.alpha": torch.tensor(float(r))} if alpha == "tensor" else {})
    save_file(t, tmp_path/"a.safetensors")
    lora = quiet(tmp_path/"a.safetensors")
    applied = diffusers_deltas(pipes["flux"], tmp_path/"a.safetensors")
    close(applied, {m: u.dense() for m, u in lora.items()})
    lg.save(lora, tmp_path/"b.safetensors")
    close(diffusers_deltas(pipes["flux"], tmp_path/"b.safetensors"), applied)

# Flux.2: what diffusers' own converters make of a file

FLUX2 = {"double_blocks.0.img_attn.qkv": (96, 32), "double_blocks.0.txt_attn.qkv": (96, 32), "double_blocks.0.img_attn.proj": (32, 32), "double_blocks.0.img_mlp.0": (192, 32),
    "double_blocks.0.img_mlp.2": (32, 96), "double_blocks.0.txt_mlp.0": (192, 32), "double_blocks.0.txt_mlp.2": (32, 96), "single_blocks.0.linear1": (288, 32),
    "single_blocks.0.linear2": (32, 128), "img_in": (32, 4), "txt_in": (32, 32), "time_in.in_layer": (32, 16), "final_layer.linear": (4, 32)}
ONLY_BFL = {"guidance_in.out_layer": (32, 32), "double_stream_modulation_img.lin": (192, 32), "single_stream_modulation.lin": (96, 32)}

@pytest.mark.parametrize("naming", ["bfl", "kohya"])
def test_flux_2_has_the_names_that_diffusers_gives_it(tmp_path, naming):
    convert = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    torch.manual_seed(0)
    t = {}
    for module, (m, n) in (FLUX2 if naming == "kohya" else FLUX2 | ONLY_BFL).items():
        raw, down, up = (f"lora_unet_{module.replace('.', '_')}", "lora_down", "lora_up") if naming == "kohya" else (f"diffusion_model.{module}", "lora_A", "lora_B")
        t |= {f"{raw}.{down}.weight": torch.randn(2, n), f"{raw}.{up}.weight": torch.randn(m, 2)}
        if naming == "kohya": t[f"{raw}.alpha"] = torch.tensor(1.0)
    save_file(t, tmp_path/"a.safetensors")
    theirs = getattr(convert, "_convert_non_diffusers_flux2_lora_to_diffusers" if naming == "bfl" else "_convert_kohya_flux2_lora_to_diffusers")(dict(t))
    wanted = {k.removesuffix(".lora_A.weight"): theirs[k.replace("lora_A", "lora_B")] @ a for k, a in theirs.items() if "lora_A" in k}
    lora = quiet(tmp_path/"a.safetensors")
    assert lora.arch == "flux2"
    close({m: u.dense() for m, u in lora.items()}, wanted)
    saved = lg.save(lora, tmp_path/"b.safetensors", format="diffusers")
    close({m: u.dense() for m, u in quiet(saved.path).items()}, wanted)
    back = lg.save(quiet(saved.path), tmp_path/"c.safetensors", format=naming) # and back under the names that it came with
    assert set(load_file(back.path)) == set(t)
    close({m: u.dense() for m, u in quiet(back.path).items()}, wanted)

# convolutions with groups

class Grouped(torch.nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.plain, self.conv = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 12, 3, groups=groups)
    def forward(self, x): return self.conv(self.plain(x))

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made", [lambda lora: lora, lambda lora: lg.LoRA(dict(lora), "copy", format="peft", config=lora.config)], ids=["as read", "copied"])
@pytest.mark.parametrize("groups", [2, 4])
def test_a_convolution_with_groups_is_what_peft_computes(tmp_path, groups, made):
    torch.manual_seed(0)
    base = Grouped(groups)
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["plain", "conv"], rank_pattern={"plain": 6}, init_lora_weights=False))
    model.save_pretrained(tmp_path/"a")
    lora, x = quiet(tmp_path/"a"), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        inner = base.plain(x) + torch.conv2d(x, lora["plain"].dense())
        wanted = model(x)
        assert (base.conv(inner) + torch.conv2d(inner, lora["conv"].dense()) - wanted).abs().max() < TOL * 10
        lg.save(made(lora), tmp_path/"b")
        assert (peft.PeftModel.from_pretrained(base, tmp_path/"b")(x) - wanted).abs().max() < TOL * 10

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("make", [lambda a, b: lg.merge([a, b], [0.5, 0.5], "cat").lora, lambda a, b: lg.merge([a, b], [1, 1], "ties").lora, lambda a, b: lg.resize(a, rank=4).lora,
    lambda a, b: lg.resize(a, energy=0.6).lora, lambda a, b: lg.resize(a, rank=1).lora, lambda a, b: lg.mean_lora([a, b], [1, 0]).lora], ids=["cat", "ties", "resize", "energy", "one", "a"])
def test_what_is_made_of_convolutions_with_groups_is_what_peft_computes(tmp_path, groups, make):
    torch.manual_seed(0)
    base = Grouped(groups)
    for name in "ab":
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=8, lora_alpha=8, target_modules=["plain", "conv"], init_lora_weights=False))
        model.save_pretrained(tmp_path/name)
    made, x = make(*(quiet(tmp_path/name) for name in "ab")), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        inner = base.plain(x) + torch.conv2d(x, made["plain"].dense())
        wanted = base.conv(inner) + torch.conv2d(inner, made["conv"].dense())
        lg.save(made, tmp_path/"c")
        assert (peft.PeftModel.from_pretrained(base, tmp_path/"c")(x) - wanted).abs().max() < TOL * 10

@pytest.mark.filterwarnings("ignore")
def test_resize_of_a_convolution_with_groups_keeps_the_strongest_of_each(tmp_path):
    model = peft.get_peft_model(Grouped(2), peft.LoraConfig(r=8, lora_alpha=8, target_modules=["conv"], init_lora_weights=False))
    model.save_pretrained(tmp_path/"a")
    lora = quiet(tmp_path/"a")
    small, W = lg.resize(lora, rank=4), lora["conv"].dense().flatten(1).double()
    best = torch.cat([(U[:, :2] * S[:2]) @ Vh[:2] for U, S, Vh in map(torch.linalg.svd, W.chunk(2))])
    assert small.lora["conv"].rank == 4 and small.lora["conv"].groups == 2
    assert (small.lora["conv"].dense().flatten(1) - best).abs().max() < TOL and abs(small.rel_errors["conv"] - (W - best).norm() / W.norm()) < TOL
    with pytest.raises(ValueError, match="conv: PEFT shares the ranks .* save it as peft"): lg.save(lg.LoRA({"lora_unet_conv": lora["conv"]}), tmp_path/"k.safetensors", format="kohya")

def test_mlx_goes_to_peft_with_its_embedding(tmp_path):
    torch.manual_seed(0)
    (tmp_path/"mlx").mkdir()
    t = {f"{m}.lora_{x}": torch.randn(s) / 4 for m, i, o in (("model.embed_tokens", 64, 32), ("model.layers.0.self_attn.q_proj", 32, 32)) for x, s in (("a", (i, 4)), ("b", (4, o)))}
    save_file(t, tmp_path/"mlx"/"adapters.safetensors")
    (tmp_path/"mlx"/"adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 5.0}}))
    lg.save(quiet(tmp_path/"mlx"), tmp_path/"peft")
    deltas = peft_deltas(llama(), tmp_path/"peft")
    for m, turned in (("model.embed_tokens", False), ("model.layers.0.self_attn.q_proj", True)):
        W = 5 * t[f"{m}.lora_a"] @ t[f"{m}.lora_b"]
        assert (deltas[m] - (W.T if turned else W)).abs().max() < TOL

# LyCORIS

LINEAR = ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", lambda: torch.nn.Linear(24, 36))
CONV = ("lora_unet_mid_block_resnets_0_conv1", lambda: torch.nn.Conv2d(24, 36, 3, padding=1))
GROUPS = ("lora_unet_mid_block_resnets_0_conv1", lambda: torch.nn.Conv2d(24, 36, 3, padding=1, groups=3))
POINT = ("lora_unet_mid_block_attentions_0_proj_in", lambda: torch.nn.Conv2d(24, 36, 1))
LYCORIS = { # layer, class in lycoris.modules, options beyond lora_dim=4, alpha=2; options of `load`
    "locon": (LINEAR, "locon.LoConModule", {}, {}), "locon conv": (CONV, "locon.LoConModule", {}, {}), "locon point": (POINT, "locon.LoConModule", {}, {}),
    "locon tucker": (CONV, "locon.LoConModule", dict(use_tucker=True), {}), "locon rs": (LINEAR, "locon.LoConModule", dict(rs_lora=True), {}),
    "locon scalar": (LINEAR, "locon.LoConModule", dict(use_scalar=True), {}),
    "locon groups": (GROUPS, "locon.LoConModule", {}, {}), "loha groups": (GROUPS, "loha.LohaModule", {}, {}),
    "loha": (LINEAR, "loha.LohaModule", {}, {}), "loha conv": (CONV, "loha.LohaModule", {}, {}), "loha point": (POINT, "loha.LohaModule", {}, {}),
    "loha tucker": (CONV, "loha.LohaModule", dict(use_tucker=True), {}), "loha scalar": (LINEAR, "loha.LohaModule", dict(use_scalar=True), {}),
    "loha rs": (LINEAR, "loha.LohaModule", dict(rs_lora=True), {}),
    "lokr": (LINEAR, "lokr.LokrModule", dict(lora_dim=1), {}), "lokr both": (LINEAR, "lokr.LokrModule", dict(lora_dim=2, decompose_both=True), {}),
    "lokr factor": (LINEAR, "lokr.LokrModule", dict(lora_dim=2, factor=3), {}), "lokr scalar": (LINEAR, "lokr.LokrModule", dict(lora_dim=1, use_scalar=True), {}),
    "lokr conv": (CONV, "lokr.LokrModule", dict(lora_dim=1), {}), "lokr tucker": (CONV, "lokr.LokrModule", dict(lora_dim=2, use_tucker=True), {}),
    "lokr rs": (LINEAR, "lokr.LokrModule", dict(lora_dim=2, rs_lora=True, factor=3), {}),
    "lokr whole": (LINEAR, "lokr.LokrModule", dict(full_matrix=True), dict(approx_rank=24)), "lokr whole conv": (CONV, "lokr.LokrModule", dict(full_matrix=True), dict(approx_rank=36)),
}

@pytest.mark.parametrize("case", LYCORIS)
def test_lycoris_computes_what_we_read(tmp_path, case):
    import importlib
    pytest.importorskip("lycoris")
    (name, make), where, options, reading = LYCORIS[case]
    file, _, cls = where.partition(".")
    torch.manual_seed(0)
    layer = make()
    module = getattr(importlib.import_module(f"lycoris.modules.{file}"), cls)(name, layer, 1.0, **dict(lora_dim=4, alpha=2) | options)
    with torch.no_grad():
        for p in module.parameters(): p.copy_(torch.randn(p.shape) / 4)
    save_file({f"{name}.{k}": v.contiguous() for k, v in module.state_dict().items()}, tmp_path/"a.safetensors")
    lora = quiet(tmp_path/"a.safetensors", **reading)
    ((_, u),) = lora.items()
    x = torch.randn(5, getattr(layer, "in_channels", layer.weight.shape[1]), *([7, 7] if layer.weight.ndim == 4 else []))
    with torch.no_grad():
        alone = layer(x)
        module.apply_to()
        theirs, ours = layer(x), torch.func.functional_call(make(), {"weight": layer.weight + u.dense().reshape(layer.weight.shape), "bias": layer.bias}, (x,))
    assert (theirs - alone).abs().max() > 0.01 and (theirs - ours).abs().max() < TOL
