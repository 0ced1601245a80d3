"What stands beside the low-rank updates is averaged with them: the model that PEFT makes of a mean is the mean of its members' models"
import copy, json, warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import loragrass as lg
from loragrass.combining import average_beside
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.merging import RULES, merge, mean_lora
from loragrass.selection import search_combinations

HEAD = "base_model.model.head.weight"

def adapter(seed, head=None, bias=None, **beside):
    g = torch.Generator().manual_seed(seed)
    updates = {m: LoRAUpdate(torch.randn(6, 2, generator=g), torch.randn(2, 5, generator=g), 0.5 * (seed + 1), (6, 5)) for m in ("q", "v")}
    tensors = ({HEAD: torch.full((3, 4), float(head))} if head is not None else {}) | ({"base_model.model.q.lora_B.bias": torch.full((6,), float(bias))} if bias else {})
    return LoRA(updates, f"a{seed}", format="peft", config={"modules_to_save": ["head"]}, passthrough=tensors | beside)

def quiet(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lg.load(path)

@pytest.mark.parametrize("method", RULES)
def test_every_rule_averages_heads_by_the_weights(method):
    merged = merge([adapter(0, 1), adapter(1, 5), adapter(2, 100)], [1, 3, 0], method)
    torch.testing.assert_close(merged.lora.passthrough[HEAD], torch.full((3, 4), 4.0)) # (1 + 3 · 5) / 4: a mean, also of a sum
    assert any(f"1 tensors beside the updates are averaged, with the same weights, first {HEAD}" in note for note in merged.notes)
    assert merged.lora.config["modules_to_save"] == ["head"]

def test_one_weight_gives_that_adapters_head_and_no_note():
    merged = mean_lora([adapter(0, 1), adapter(1, 5)], [0, 2])
    assert (merged.lora.passthrough[HEAD] == 5).all() and not any("beside" in note for note in merged.notes)

def test_heads_follow_the_weights_of_a_plain_sum():
    key = "base_model.model.classifier.weight"
    loras = [LoRA({"q": LoRAUpdate(torch.ones(4, 2), torch.ones(2, 6), 1.0, (4, 6))}, name=str(v), format="peft", passthrough={key: torch.full((2, 4), float(v))}) for v in (1, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for weights, head in (([2, -1], -3.0), ([1, -0.5], -3.0), ([1, 1], 3.0), ([3, 1], 2.0)): # a head takes the place of another: weights of sum 1
            assert torch.allclose(lg.cluster_merge(loras, 1, weights=weights).means[0].passthrough[key], torch.tensor(head))
        for weights in ([1, -1], [1, -0.9], [-1, -2]):
            with pytest.raises(ValueError, match=f"{key} takes the place.* no mean where weights nearly cancel; leave it out"): lg.cluster_merge(loras, 1, weights=weights)

def test_agreement_weights_go_to_the_heads():
    a = adapter(0, 1)
    same, other = LoRA(a.updates, "b", passthrough={HEAD: torch.full((3, 4), 3.0)}), adapter(5, 100)
    merged = mean_lora([a, same, other], "agreement")
    w = torch.tensor(merged.per_module.weights.tolist()).mean(0)
    torch.testing.assert_close(merged.lora.passthrough[HEAD][0, 0], w @ torch.tensor([1.0, 3.0, 100.0]), rtol=0.02, atol=0)
    assert merged.lora.passthrough[HEAD][0, 0] < 10

def test_layer_means_weight_a_head_by_the_modules_an_adapter_gives():
    loras = [adapter(0, 1), adapter(1, 5)]
    merged = mean_lora(loras, only={"q": [True, True], "v": [True, False]})
    assert (merged.lora.passthrough[HEAD] == 0.75 * 1 + 0.25 * 5).all()

def test_a_bias_of_an_update_adds_up_with_its_scale():
    merged = merge([adapter(0, bias=1), adapter(1, bias=2), adapter(2)], [1, -2, 1])
    assert (merged.lora.passthrough["base_model.model.q.lora_B.bias"] == 1 * 0.5 - 2 * 1.0 * 2).all() # who has none has zero

def test_differences_add_up_and_who_has_none_has_zero():
    a, b = adapter(0, **{"n.diff_b": torch.ones(3)}), adapter(1)
    assert (mean_lora([a, b]).lora.passthrough["n.diff_b"] == 0.5).all()

@pytest.mark.parametrize("head, words", [(None, "has the base model's"), (torch.ones(5, 4), r"shapes differ: a0 \(3, 4\), a1 \(5, 4\)")])
def test_heads_without_a_mean_are_refused_with_advice(head, words):
    b = adapter(1, **({HEAD: head} if head is not None else {}))
    with pytest.raises(ValueError, match=f"{HEAD}.*{words}.*stand_in='medoid'"): mean_lora([adapter(0, 1), b])
    plain = [LoRA(lora.updates, lora.name) for lora in (adapter(0, 1), b)] # what the advice says
    assert not mean_lora(plain).lora.passthrough

def test_trained_tokens_must_be_the_same():
    key = "base_model.model.embed.token_adapter.trainable_tokens_delta"
    a, b = adapter(0, **{key: torch.ones(2, 4)}), adapter(1, **{key: torch.ones(2, 4)})
    assert (mean_lora([a, b]).lora.passthrough[key] == 1).all()
    b.config["trainable_token_indices"] = [7, 8]
    with pytest.raises(ValueError, match=r"other tokens.*\[7, 8\]"): mean_lora([a, b])

def test_what_other_formats_bundle_is_left_out_by_name():
    a = adapter(0, **{"bundle_emb.x.string_to_param.*": torch.ones(2, 4)})
    merged = mean_lora([a, adapter(1)])
    assert not merged.lora.passthrough and any("left out: 1 tensors" in n and "bundle_emb.x" in n for n in merged.notes)

def test_numbers_that_are_no_floats_are_kept_where_all_have_them():
    steps = [adapter(i, **{"steps": torch.tensor([i])}) for i in (0, 1)]
    assert "steps" not in mean_lora(steps).lora.passthrough and mean_lora([steps[0], steps[0]]).lora.passthrough["steps"] == 0

def test_a_combination_of_means_has_a_head_too():
    means = [adapter(0, 1), adapter(1, 5)]
    found = search_combinations(means, lambda lora: float(lora["q"].scale - lora["v"].scale)) # q of the second, v of the first
    assert found.choices[0] == (1, 0) and (found.lora().passthrough[HEAD] == 3).all()

def test_average_beside_of_half_precision_is_computed_in_more():
    big = adapter(0, **{HEAD: torch.full((3, 4), 60000.0, dtype=torch.float16)})
    tensors, _ = average_beside([big, big], {"q": torch.tensor([0.5, 0.5])})
    assert tensors[HEAD].dtype == torch.float32 and (tensors[HEAD] == 60000).all()

@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_heads_of_few_bits_have_the_mean_of_their_numbers(dtype):
    torch.manual_seed(0)
    heads = [torch.randn(3, 4).to(dtype) for _ in range(3)]
    made = mean_lora([adapter(i, **{HEAD: t}) for i, t in enumerate(heads)], [0.5, 0.3, 0.2]).lora.passthrough[HEAD]
    torch.testing.assert_close(made.double(), sum(w * t.double() for w, t in zip([0.5, 0.3, 0.2], heads)), atol=0, rtol=1e-7)

# PEFT

peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=16)
CONFIGS = {
    "classifier": dict(task_type="SEQ_CLS"),
    "classifier, norm and embedding": dict(task_type="SEQ_CLS", modules_to_save=["word_embeddings", "LayerNorm"]),
    "biases": dict(task_type="SEQ_CLS", bias="all"),
    "biases of the updates": dict(lora_bias=True, lora_alpha=6),
    "tokens": dict(trainable_token_indices={"word_embeddings": [3, 5]}),
}

def bert(state=None):
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=3))
    if state: model.load_state_dict(state)
    return model.eval()

@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_makes_of_a_mean_the_mean_of_the_models(kind, tmp_path):
    torch.manual_seed(0)
    base, models = bert().state_dict(), []
    for name in "ab":
        model = peft.get_peft_model(bert(base), peft.LoraConfig(r=2, target_modules=["query", "value"], **CONFIGS[kind]))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad: p += 0.1 * torch.randn(p.shape)
        model.save_pretrained(tmp_path/name)
        models.append(model.merge_and_unload().state_dict())
    merged = mean_lora([quiet(tmp_path/name) for name in "ab"], [1, 3], "cat")
    lg.save(merged.lora, tmp_path/"mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        made = peft.PeftModel.from_pretrained(bert(base), tmp_path/"mean").merge_and_unload().state_dict()
    assert set(made) == set(models[0])
    changed = [key for key in made if not torch.equal(models[0][key], base[key])]
    assert len(changed) > 2
    for key in made: torch.testing.assert_close(made[key], (models[0][key] + 3 * models[1][key]) / 4, rtol=1e-4, atol=1e-5, msg=key)

def test_the_mean_of_adapters_with_classifiers_classifies(tmp_path):
    zoo = lg.load_zoo()
    from loragrass.zoo import TASKS, digits
    def shown(split):
        x, y = digits(split)
        return TASKS["rot90"](x).flatten(1), (y + 3) % 10 # other classes than the base model's
    def accuracy(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(copy.deepcopy(zoo.base), folder)
        x, y = shown("test")
        with torch.no_grad(): return float((model(x).argmax(-1) == y).float().mean())
    x, y = shown("tune")
    for seed in range(3):
        torch.manual_seed(seed)
        model = copy.deepcopy(zoo.base)
        model.head.reset_parameters()
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=zoo.base.adapted, modules_to_save=["head"]))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
        for _ in range(60):
            i = torch.randint(len(x), (64,))
            optimizer.zero_grad(); F.cross_entropy(model(x[i]), y[i]).backward(); optimizer.step()
        model.save_pretrained(tmp_path/f"a{seed}")
    merged = mean_lora([quiet(tmp_path/f"a{seed}") for seed in range(3)])
    lg.save(merged.lora, tmp_path/"mean")
    lg.save(LoRA(merged.lora.updates, config={}), tmp_path/"headless", format="peft")
    assert json.loads((tmp_path/"mean"/"adapter_config.json").read_text())["modules_to_save"] == ["head"]
    assert set(load_file(tmp_path/"mean"/"adapter_model.safetensors")) >= {"base_model.model.head.weight", "base_model.model.head.bias"}
    members = sum(accuracy(tmp_path/f"a{seed}") for seed in range(3)) / 3
    assert members > 0.7 and accuracy(tmp_path/"mean") > 0.95 * members and accuracy(tmp_path/"headless") < 0.5 * members
