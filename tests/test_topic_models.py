"TopicLoRA: bad input by name, what is saved, what is resumed, other families, PEFT, and what a batch may cost"
import json
import warnings
from copy import deepcopy

import numpy as np
import peft
import pytest
import torch
import transformers

import loragrass as lg
from loragrass import topic_fitting
from loragrass.documents import Reader, cut, fingerprint, losses

TARGETS = ["q_proj", "v_proj"]

def llama(seed=0, **kwargs):
    torch.manual_seed(seed)
    config = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | kwargs)).requires_grad_(False)

def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64))

GEN = torch.Generator().manual_seed(0)
DOCUMENTS = [torch.randint(40, (n,), generator=GEN).tolist() for n in (60, 30, 90, 12, 45, 33)]

def new(base=None, targets=TARGETS, **kwargs):
    return lg.TopicLoRA(base or llama(), targets, **dict(rank=4, window=32, epochs=2, steps=2, lr=5e-3) | kwargs)

def fitted(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "on the held-out quarters") # random tokens: nothing to know
        return new(*args, **kwargs).fit(DOCUMENTS)

@pytest.fixture(scope="module")
def model(): return fitted()

class Letters: # a tokenizer
    def __init__(self, letters="abcdefghijklmnopqrstuvwxyz "): self.letters = letters
    def __call__(self, text, add_special_tokens=True): return {"input_ids": [self.letters.index(c) for c in text]}
    def get_vocab(self): return {c: i for i, c in enumerate(self.letters)}
    def decode(self, ids): return "".join(self.letters[i] for i in ids)

TEXTS = ["the cat sat on the mat and the cat slept", "rain and wind and rain again all day long", "a cat and a dog and a cat in the house", "wind from the sea and rain from the west"]

@pytest.mark.parametrize("documents, message", [
    ([[1, 2, 3], []], "document 1 has 0 tokens; expected two or more"), ([[1, 2, 3], [4]], "document 1 has 1 tokens"),
    ([[1, 2, 3], [4, 40]], "document 1 has token 40; the base knows 0 … 39: take the tokenizer of this base"), ([[1, 2], [3, -1]], "document 1 has token -1"),
    ([[1, 2, 3]], "1 documents; .*takes two or more"), ([], "0 documents"), ("one text", "documents is one text"), (["a text", "another"], "document 0 is a text and there is no tokenizer"),
    ([[1, 2], [[3, 4]]], r"document 1 has shape \(1, 2\)"), ([[1, 2], [3.5, 4.]], "document 1 has shape .2,. and torch.float32")])
def test_documents_that_are_none(documents, message):
    with pytest.raises(ValueError, match=message): new().fit(documents)

@pytest.mark.parametrize("kwargs, message", [
    (dict(targets=["query"]), "matches no linear layer; the base has down_proj"), (dict(targets=r".*\.9\..*"), "matches no linear layer"), (dict(rank=33), "rank=33 for model.layers.0.self_attn.q_proj, a layer 32 → 32"),
    (dict(form="down-up"), "form='down-up'; expected one of down, up"), (dict(A="fixed"), "A='fixed'"), (dict(x="own"), "x='own'; expected one of module, shared"), (dict(init="svd"), "init='svd'"), (dict(prior="gauss"), "prior='gauss'"),
    (dict(prior="orthogonal"), "is for form='both'"), (dict(form="scale", init="zero"), "x has no gradient"), (dict(window=65), "the base reads 64 tokens at most"), (dict(window=1), "window=1"), (dict(rank="four"), "rank is 'four'; expected a whole number")])
def test_settings_that_are_none(kwargs, message):
    with pytest.raises(ValueError, match=message): new(**kwargs).fit(DOCUMENTS)

def test_copies_are_said():
    with pytest.warns(UserWarning, match="1 documents are copies of others, 6 of 1 first"): new(epochs=1, steps=1).fit([*DOCUMENTS, DOCUMENTS[1]])

def test_before_fit():
    for call in (lambda m: m.transform(DOCUMENTS), lambda m: m.compose({}), lambda m: m.topics(), lambda m: m.similarity(), lambda m: m.uniqueness(), lambda m: m.save("nowhere")):
        with pytest.raises(ValueError, match="has no vectors yet; call fit"): call(new())

@pytest.mark.parametrize("documents, message", [
    ({6: 1.}, "document 6 is not in the corpus, which has 0 … 5"), ({-1: 1.}, "document -1 is not"), ({"a": 1.}, "document 'a' is not"), ({0: float("nan")}, "the weight of document 0 is nan"), ({0: float("inf")}, "weight of document 0 is inf"),
    ([1., 2.], "those of this model have 16 numbers: are they of another model"), ([float("nan")] * 16, "vector 0 has NaN")])
def test_compositions_that_are_none(model, documents, message):
    with pytest.raises(ValueError, match=message): model.compose(documents)

def test_compose_takes_one_of_two(model):
    for kwargs in ({}, dict(documents={}, query=[1, 2, 3])):
        with pytest.raises(ValueError, match="compose takes documents={number: weight}, or a query="): model.compose(**kwargs)
    with pytest.raises(ValueError, match="by='hidden'"): model.compose(query=[1, 2, 3], by="hidden")

def test_another_tokenizer():
    model = new(epochs=1, steps=1).fit(TEXTS, tokenizer=Letters())
    with pytest.raises(ValueError, match="another tokenizer than that of fit"): model.transform(TEXTS, tokenizer=Letters("zyxwvutsrqponmlkjihgfedcba "))
    assert np.array_equal(model.transform(TEXTS), model.transform(TEXTS, tokenizer=Letters()))

def test_a_loss_that_is_no_number():
    base = llama()
    base.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="the loss is NaN or infinite in batch 0 of round 1 of the shared part; take a smaller lr"): new(base).fit(DOCUMENTS)
    with pytest.raises(ValueError, match="the loss is NaN or infinite where x is fitted"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new(base, init="zero").fit(DOCUMENTS)

def test_the_base_is_as_it_was():
    base = llama().requires_grad_(True).train()
    before = fingerprint(base)
    fitted(base)
    assert fingerprint(base) == before and base.training and all(p.requires_grad and p.grad is None for p in base.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())

@pytest.mark.parametrize("form", ["down", "up", "both", "scale"])
@pytest.mark.parametrize("x", ["module", "shared"])
def test_forms_and_files(form, x, tmp_path):
    model = fitted(form=form, x=x)
    assert model.vectors_.shape == (6, 4 * (1 + (form == "both")) * (4 if x == "module" else 1)) and np.abs(model.vectors_).min() > 0
    model.save(tmp_path/"m")
    model.save(tmp_path/"m") # over itself
    again = lg.TopicLoRA.load(tmp_path/"m", llama())
    assert np.array_equal(again.transform(DOCUMENTS[:3]), model.transform(DOCUMENTS[:3])) and np.array_equal(again.vectors_, model.vectors_)
    a, b = (m.compose({0: 1., 2: -.5}) for m in (model, again))
    assert all(torch.equal(a[name].up, b[name].up) and torch.equal(a[name].down, b[name].down) and a[name].rank == 4 for name in a)

def peft_logits(base, lora, ids, path):
    lg.save(lora, path, format="peft")
    with torch.no_grad(): return peft.PeftModel.from_pretrained(deepcopy(base), path).eval()(ids).logits

@pytest.mark.parametrize("make, targets", [(llama, TARGETS), (gpt2, ["c_attn", "c_proj"])])
@pytest.mark.parametrize("form", ["down", "both"])
def test_peft_gives_the_same_logits(make, targets, form, tmp_path):
    base, ids = make(), torch.tensor([DOCUMENTS[0][:30]])
    model = fitted(base, targets, form=form)
    x = torch.as_tensor(model.vectors_)
    with torch.no_grad(): ours = model.reader_.logits(ids, (x[1] - 2 * x[4])[None])
    assert (peft_logits(base, model.compose({1: 1., 4: -2.}), ids, tmp_path/"a") - ours).abs().max() < 1e-5
    with torch.no_grad(): shared = model.reader_.logits(ids)
    assert (peft_logits(base, model.compose({}), ids, tmp_path/"b") - shared).abs().max() < 1e-5 < (ours - shared).abs().max()

@pytest.mark.parametrize("kwargs", [{}, dict(A="learned"), dict(form="both", joint=True, x="shared")])
@pytest.mark.parametrize("stop_at", [7, 30, 45])
def test_resumed_is_straight_bit_for_bit(kwargs, stop_at, tmp_path, monkeypatch):
    settings, calls, step = dict(batch_size=2, epochs=3) | kwargs, [], topic_fitting._Round.step
    straight = fitted(**settings)
    def stepping(*args):
        calls.append(1)
        if len(calls) == stop_at: raise KeyboardInterrupt
        return step(*args)
    monkeypatch.setattr(topic_fitting._Round, "step", stepping)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: new(**settings).fit(DOCUMENTS, checkpoint=tmp_path/"state.pt")
        except KeyboardInterrupt: assert not stop_at > 12 or (tmp_path/"state.pt").exists()
        resumed = new(**settings).fit(DOCUMENTS, checkpoint=tmp_path/"state.pt")
    assert np.array_equal(resumed.vectors_, straight.vectors_)
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]

def test_a_checkpoint_of_another_fit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new(epochs=1).fit(DOCUMENTS, checkpoint=tmp_path/"state.pt")
    for other, documents in ((new(epochs=1, rank=3), DOCUMENTS), (new(epochs=1), DOCUMENTS[1:]), (new(llama(1), epochs=1), DOCUMENTS)):
        with pytest.raises(ValueError, match="is the checkpoint of another fit"): other.fit(documents, checkpoint=tmp_path/"state.pt")

def test_files_that_are_none(model, tmp_path):
    with pytest.raises(lg.LoRAFormatError, match="expected a folder that TopicLoRA.save wrote"): lg.TopicLoRA.load(tmp_path, llama())
    model.save(tmp_path/"m")
    with pytest.raises(ValueError, match="is of another base than this one"): lg.TopicLoRA.load(tmp_path/"m", llama(1))
    about = json.loads((tmp_path/"m"/"topic_lora.json").read_text())
    for wrong in (about | {"settings": {}}, {}, about | {"scale": None, "how": {}}, []):
        (tmp_path/"m"/"topic_lora.json").write_text(json.dumps(wrong))
        with pytest.raises(lg.LoRAFormatError, match="not readable"): lg.TopicLoRA.load(tmp_path/"m", llama())
    (tmp_path/"m"/"topic_lora.json").write_text(json.dumps(about))
    (tmp_path/"m"/"topic_lora.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(lg.LoRAFormatError, match="not readable"): lg.TopicLoRA.load(tmp_path/"m", llama())

def test_partial_fit_adds_and_moves_nothing(model):
    more = deepcopy(model).partial_fit(DOCUMENTS[:2])
    assert np.array_equal(more.vectors_[:6], model.vectors_) and np.array_equal(more.vectors_[6:], model.transform(DOCUMENTS[:2]))
    assert more.compose({7: 1.})["model.layers.0.self_attn.q_proj"].difference(model.compose({1: 1.})["model.layers.0.self_attn.q_proj"]) < .05

def test_transform_is_fit(model):
    cosines = torch.nn.functional.cosine_similarity(torch.as_tensor(model.vectors_), torch.as_tensor(model.transform(DOCUMENTS)))
    assert cosines.min() > .999

def test_topics_of_ids_and_of_texts(model):
    found = model.topics(2, min_documents=1)
    assert found.sizes.sum() == 6 and all(word.isdigit() for word in found.vocabulary) and all(token.isdigit() for token in found.raised[0])
    of_texts = new(llama(vocab_size=27), epochs=1, steps=1).fit(TEXTS, tokenizer=Letters()).topics(2)
    assert "cat" in of_texts.get_vocab() and of_texts.transform(TEXTS).shape == (4, 2) and set(of_texts.raised[0]) <= {c.strip() for c in Letters().letters}

def test_what_a_topic_raises_is_what_the_model_says(model):
    x = torch.as_tensor(model.vectors_[:1]) * 50
    rows = model.reader_.keep(cut(model.ids_, 32))
    with torch.no_grad():
        p, q = (torch.cat([model.reader_.logits(rows.ids[i:i + 1, :rows.length[i]], v)[0] for i in range(len(rows.ids))]).softmax(-1).mean(0) for v in (x, None))
    assert model.raised(x[0], 3, few=1000) == [str(t) for t in (p * (p / q).log()).argsort(descending=True)[:3].tolist()]

def test_lower_layers_are_read_once():
    base, seen = llama(num_hidden_layers=3), []
    base.model.layers[0].mlp.register_forward_hook(lambda *args: seen.append(1)) # inside of what is left out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = new(base, r".*layers\.2.*q_proj").fit(DOCUMENTS)
        few, _ = len(seen), seen.clear()
        whole = new(base, r".*layers\.2.*q_proj", memory=0).fit(DOCUMENTS)
    assert few <= 3 < 10 < len(seen)
    np.testing.assert_allclose(kept.vectors_, whole.vectors_, rtol=1e-2, atol=1e-4)

def test_bos_and_windows():
    windows = cut([torch.arange(1, 10)], 4, bos=0)
    assert windows.ids.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9]] and windows.predicted().sum() == 9 and windows.predicted("held").sum() == 2
    model = fitted(bos=7)
    assert np.isfinite(model.vectors_).all()

def test_padding_changes_nothing():
    reader = Reader(llama(), {}, batch_size=4)
    together = losses(reader, cut([torch.tensor(d) for d in DOCUMENTS], 32))
    alone = torch.cat([losses(reader, cut([torch.tensor(d)], 32)) for d in DOCUMENTS])
    assert torch.allclose(together, alone, atol=1e-5)
