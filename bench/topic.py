"""TopicLoRA: what it costs beside PEFT's LoRA and Poly, and what its vectors hold on SmolLM2 and the texts of Python's library

    python bench/topic.py             the speed, and the study where the model's files are (see smollm.py)
    python bench/topic.py --seeds 3   with three draws of the random factors; each seed's numbers are kept under _bench/topic
"""
import argparse, copy, datetime, hashlib, json, sys, time, warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import smollm
from common import machine, table
from loragrass import TopicLoRA
from loragrass.documents import Reader, cut, find_modules, gradients, linear_shape, losses
from loragrass.topic_fitting import Steps, _Round
from loragrass.topic_lora import TopicUpdate

warnings.filterwarnings("ignore")
TOKENS, SEEN, LATER = 128, 3, 2 # of a window; windows that are learned from, and that are held out
TOPICS = ("asyncio", "distutils", "email", "importlib", "multiprocessing", "tkinter", "unittest", "xml")
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
KEPT = Path("_bench/topic")

# the texts: modules of Python's library, whose packages are topics; others of it for choosing; and Perl and C

def mixed(paths): return sorted(paths, key=lambda p: hashlib.sha256(p.name.encode()).hexdigest())

def library(topic, least=3500):
    root = Path(sys.modules["os"].__file__).parent
    found = (root / topic).glob("*.py") if topic == "." else (root / topic).rglob("*.py")
    return [p.read_text(errors="ignore") for p in mixed(found) if p.stat().st_size > least and not {"test", "tests"} & set(p.parts)]

def foreign(each, least=6000):
    for kind, paths in {"perl": Path("/usr/share/perl").rglob("*.pm"), "C": Path("/usr/include").glob("*.h")}.items():
        texts = [p.read_text(errors="ignore") for p in mixed({q.resolve() for q in paths}) if p.is_file() and p.stat().st_size > least]
        yield from ((kind, t) for t in texts[:each])

def corpus(fits, each=8, n_validation=24):
    "(topic, text) of the corpus, of validation documents and of foreign ones"
    of_topics = [(t, text) for t in TOPICS for text in [x for x in library(t) if fits(x)][:each]]
    validation = [(".", text) for text in [x for x in library(".") if fits(x)][:n_validation]]
    return of_topics, validation, [(kind, text) for kind, text in foreign(2 * each) if fits(text)][:3 * each]

class Recalled(nn.Module):
    "The last layers as a model of token ids: what reaches them is looked up by the window"
    def __init__(self, text):
        super().__init__()
        self.tail, self.hidden = text.model(), text.hidden
        self.place = {row.numpy().tobytes(): i for i, row in enumerate(text.labels)}

    def forward(self, input_ids):
        rows = [self.place[row.numpy().tobytes()] for row in input_ids]
        return self.tail(inputs_embeds=self.hidden[rows])

class Corpus:
    "Documents of a part, what they learn from and what is held out"
    def __init__(self, text, documents, topics):
        labels = text.labels.view(-1, SEEN + LATER, TOKENS)[documents]
        self.ids, self.later = [d[:SEEN].flatten() for d in labels], cut([d[SEEN:].flatten() for d in labels], TOKENS)
        self.windows, self.topics = cut(self.ids, TOKENS), np.array(topics)
        self.hidden = text.hidden.view(len(text.hidden) // (SEEN + LATER), SEEN + LATER, TOKENS, -1)[documents, :SEEN].mean((1, 2)).numpy()

def read():
    tokenizer, _ = smollm.load(smollm.model_path())
    windows = SEEN + LATER
    parts = corpus(lambda t: len(tokenizer(t[: 40 * windows * TOKENS])["input_ids"]) >= windows * TOKENS)
    texts = [t for part in parts for _, t in part]
    text, at, out = smollm.Text(len(texts), TOKENS, windows, 4, texts), 0, []
    for part in parts:
        out.append(Corpus(text, list(range(at, at + len(part))), [kind for kind, _ in part]))
        at += len(part)
    return text, *out

# a LoRA for each document, and PEFT's Poly, in the same reader

class OwnLoRA(nn.Module):
    "U_i V_i for each document i; x is the number of the document"
    numbers = 1
    def __init__(self, m, n, N, rank, seed):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.U, self.V = nn.Parameter(torch.zeros(N, m, rank)), nn.Parameter(torch.randn(N, rank, n, generator=gen) / n ** .5)
    def forward(self, h, x):
        i = x[:, 0].long()
        return h @ self.V[i].mT @ self.U[i].mT

class Skills(nn.Module):
    "PEFT's Poly: skills A_s B_s, mixed by each document's own sigmoid weights, on both sides apart"
    numbers = 1
    def __init__(self, m, n, N, rank, skills, seed):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.A, self.B = nn.Parameter(torch.randn(skills, n, rank, generator=gen) / n ** .5), nn.Parameter(torch.zeros(skills, rank, m))
        self.U, self.routes = self.B, nn.Parameter(1e-3 * torch.randn(N, skills, generator=gen))
    def forward(self, h, x):
        w = self.routes[x[:, 0].long()].sigmoid()
        w = w / (w.sum(1, keepdim=True) + 1e-12)
        A, B = (torch.einsum("bs,sxy->bxy", w, t) for t in (self.A, self.B))
        return h @ A @ B / A.shape[-1]

def train_own(reader, part, lr, epochs):
    "Adam on what documents have of their own; the round that is best on the held-out quarters stays"
    N, params = part.windows.N, list({id(p): p for u in reader.updates.values() for p in u.parameters() if p.requires_grad}.values())
    x, optimizer, best = torch.arange(N)[:, None].float(), torch.optim.Adam(params, lr), (np.inf, None, 0)
    reader.starts = dict.fromkeys(reader.updates, 0)
    mask, counts = part.windows.predicted("seen"), part.windows.predicted("seen").sum(1)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(mask), generator=torch.Generator().manual_seed(epoch)).split(reader.batch_size):
            with torch.enable_grad():
                logits = reader.logits(part.windows.ids[rows], x[part.windows.document[rows]])[:, :-1]
                cost = cross_entropy(logits.flatten(0, 1), part.windows.ids[rows, 1:].flatten(), reduction="none").view(len(rows), -1)
                # each document's own mean: the batch's size is not a learning rate
                loss = ((cost * mask[rows]).sum(1) / counts[rows].clamp(min=1)).sum()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        held = losses(reader, part.windows, x, "held").nanmean().item()
        if held < best[0]: best = held, [p.detach().clone() for p in params], epoch
        elif epoch > best[2] + 1: break
    for p, q in zip(params, best[1]): p.data = q
    return losses(reader, part.later, x), best[2]

class Sum(nn.Module):
    "The shared update, and a document's own beside it"
    numbers = 1
    def __init__(self, shared, own):
        super().__init__()
        self.shared, self.own = shared, own
        self.U = own.U
        for p in shared.parameters(): p.requires_grad = False
    def forward(self, h, x): return self.shared(h) + self.own(h, x)

# the study

def auc(inside, outside): return float((outside[:, None] > inside).mean() + (outside[:, None] == inside).mean() / 2)
def pair(a, b): return f"{(a - b).mean():+.3f}"
def unit(X): return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)

def others(topics, same, seed):
    "For each document another one, of the same topic or of a different one"
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero((topics == t) == same)[np.flatnonzero((topics == t) == same) != i]) for i, t in enumerate(topics)])

SETTINGS = {"down, r 64": dict(rank=64), "scale, r 16": dict(rank=16, form="scale"), "down, r 16": dict(rank=16), "up, r 64": dict(rank=64, form="up"),
            "both, r 32": dict(rank=32, form="both"), "down, r 64, one x": dict(rank=64, x="shared"), "down, r 64, A learned": dict(rank=64, A="learned")}

def fit(base, part, seed, epochs=6, **kwargs):
    model = TopicLoRA(base, TARGETS, window=TOKENS, random_state=seed, epochs=epochs, lr=1e-3, **kwargs)
    start = time.process_time()
    model.fit(part.ids)
    print(f"  fitted {kwargs} in {time.process_time() - start:.0f} CPU s", file=sys.stderr)
    return model

def choose(base, train, validation, seed, few):
    "Settings by what the own x of validation documents brings on their later windows"
    rows, best = [], None
    for name, kwargs in list(SETTINGS.items())[:few]:
        model = fit(base, train, seed, **kwargs)
        zero, own = losses(model.reader_, validation.later), losses(model.reader_, validation.later, torch.as_tensor(model.transform(validation.ids)))
        rows.append({"form": name, "numbers a document": model.vectors_.shape[1], "shared part": zero.mean().item(), "own x − x = 0": (own - zero).mean().item(),
                     "better in": f"{(own < zero).float().mean():.0%}", "steps": model.how_.steps, "shrink": model.how_.shrink})
        if best is None or rows[-1]["own x − x = 0"] < best[0]: best = rows[-1]["own x − x = 0"], name, model
    return rows, best[1], best[2]

def promises(base, model, train, validation, strange, seed):
    "T1 to T8 on one fitted model"
    reader, x = model.reader_, torch.as_tensor(model.vectors_)
    nothing, zero, own = losses(Reader(base, {}), train.later), losses(reader, train.later), losses(reader, train.later, x)
    another, alike = (losses(reader, train.later, x[others(train.topics, same, seed)]) for same in (False, True))
    out = {"base": nothing.mean().item(), "shared − base (T8)": (zero - nothing).mean().item(), "own x − x = 0": (own - zero).mean().item(), "better in": (own < zero).float().mean().item(),
           "another topic's x − x = 0": (another - zero).mean().item(), "same topic's x − x = 0": (alike - zero).mean().item(),
           "mean x of its topic − x = 0": (losses(reader, train.later, torch.stack([x[torch.as_tensor(train.topics == t)].mean(0) for t in train.topics])) - zero).mean().item()}
    many = x.sum(0, keepdim=True).expand_as(x)
    out |= {"sum of all x − x = 0 (T4)": (losses(reader, train.later, many) - zero).mean().item(), "mean of all x − x = 0": (losses(reader, train.later, many / len(x)) - zero).mean().item()}
    s = np.linalg.svd(unit(model.vectors_), compute_uv=False) ** 2
    out |= {"directions of x, of 63 (T5)": float(s.sum() ** 2 / (s ** 2).sum())}
    known, new = model.transform(validation.ids), model.transform(strange.ids)
    start = [gradients(reader, part.windows, torch.zeros(part.windows.N, reader.numbers))[0] for part in (validation, strange)]
    scaled = [(G / model.how_.rms.clamp(min=1e-30)).norm(dim=1).numpy() for G in start]
    bases = [losses(Reader(base, {}), part.windows).numpy() for part in (validation, strange)]
    out |= {"foreign, AUC of ‖x‖ (T1)": auc(*(np.linalg.norm(v, axis=1) for v in (known, new))), "… of its gradient": auc(*scaled), "… of raw gradient": auc(*(G.norm(dim=1).numpy() for G in start)),
            "… of base loss": auc(*bases), "… of TF–IDF distance": auc(*(1 - nearest_tfidf(train, part) for part in (validation, strange)))}
    return out, zero, own

def nearest_tfidf(train, part):
    from sklearn.feature_extraction.text import TfidfVectorizer
    tfidf = TfidfVectorizer(analyzer=lambda ids: ids.tolist()).fit(train.ids)
    return np.asarray((tfidf.transform(part.ids) @ tfidf.transform(train.ids).T).todense()).max(1)

def clusters(model, train, seed):
    "T2: do groups of vectors follow the packages?"
    from sklearn.cluster import KMeans
    from sklearn.decomposition import NMF, LatentDirichletAllocation, TruncatedSVD
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    words = dict(analyzer=lambda ids: ids.tolist(), min_df=2)
    counts, tfidf, k = CountVectorizer(**words).fit_transform(train.ids), TfidfVectorizer(**words).fit_transform(train.ids), len(TOPICS)
    ways = {"x": model.vectors_, "x, centred": model.vectors_ - model.vectors_.mean(0), "TF–IDF": tfidf.toarray(), "LSA": TruncatedSVD(16, random_state=seed).fit_transform(tfidf),
            "LDA": LatentDirichletAllocation(k, random_state=seed).fit_transform(counts), "NMF": NMF(k, random_state=seed, max_iter=500).fit_transform(tfidf), "hidden states": train.hidden - train.hidden.mean(0)}
    rows = []
    for name, X in ways.items():
        X = unit(np.asarray(X, float))
        found, C = KMeans(k, n_init=10, random_state=seed).fit_predict(X), X @ X.T - 2 * np.eye(len(X))
        rows.append({"vectors": name, "ARI": adjusted_rand_score(train.topics, found), "NMI": normalized_mutual_info_score(train.topics, found), "nearest is of the topic": float((train.topics[C.argmax(1)] == train.topics).mean())})
    return rows

def compositions(model, train, seed, k=5):
    "T3: an adapter for a query (a document's first later window) against the shared part, on its second later window"
    labels = train.later.ids.view(-1, LATER, TOKENS)
    target, reader = cut(list(labels[:, 1]), TOKENS), model.reader_
    queries = list(labels[:, 0])
    x, q = torch.as_tensor(model.vectors_), torch.as_tensor(model.transform(queries))
    zero, rng = losses(reader, target), np.random.default_rng(seed)
    def blend(of): return torch.stack([sum(w * x[i] for i, w in of(n).items()) for n in range(len(queries))])
    def by(how): return blend(lambda n: model.nearest(queries[n], k, how))
    ways = {"the query's own x": q, "its document's x": x, f"{k} nearest by TF–IDF": by("tfidf"), f"{k} nearest by x": blend(lambda n: dict(zip(*_top(unit(q[n:n + 1].numpy()) @ unit(x.numpy()).T, k)))),
            f"{k} at random": blend(lambda n: dict.fromkeys(rng.choice(len(x), k, replace=False), 1 / k)), "its document's x and the query's, mean": (q + x) / 2}
    return [{"adapter": name, "− x = 0": (losses(reader, target, v) - zero).mean().item(), "better in": f"{(losses(reader, target, v) < zero).float().mean():.0%}"} for name, v in ways.items()]

def _top(cosines, k):
    best = np.argsort(-cosines[0])[:k]
    w = np.maximum(cosines[0][best], 1e-9)
    return best.tolist(), (w / w.sum()).tolist()

def plugins(base, model, train, zero, own, seed, epochs=8):
    "What others bring to the same documents, on their later windows, beside the same shared part"
    N, rows = train.windows.N, []
    def row(name, cost, numbers, rounds=""): rows.append({"a document's own": name, "numbers": numbers, "− x = 0": (cost - zero).mean().item(), "better in": f"{(cost < zero).float().mean():.0%}", "rounds": rounds})
    row("x", own, model.vectors_.shape[1], model.how_.steps)
    shared = {name: copy.deepcopy(u) for name, u in model.reader_.updates.items()}
    def reader(make): return Reader(base, {name: Sum(u, make(*u_shape(u), i)) for i, (name, u) in enumerate(shared.items())}, True)
    for rank in (1, 4):
        r = reader(lambda m, n, i, rank=rank: OwnLoRA(m, n, N, rank, 100 * seed + i))
        cost, rounds = train_own(r, train, 1e-3, epochs)
        row(f"LoRA of rank {rank}", cost, sum(rank * sum(u_shape(u)) for u in shared.values()), rounds)
    skills = Reader(base, {name: Skills(*u_shape(u), N, 16, 8, 100 * seed + i) for i, (name, u) in enumerate(shared.items())}, True)
    cost, rounds = train_own(skills, train, 1e-3, epochs)
    row("Poly, 8 skills of rank 16 (no shared part beside)", cost, 8 * len(shared), rounds)
    bound = fit(base, train, seed, rank=64, init="zero")
    cost = losses(bound.reader_, train.later, torch.as_tensor(bound.vectors_))
    row("a vector in a frozen random subspace, no shared part (VeRA, UniLoRA)", cost, bound.vectors_.shape[1], bound.how_.steps)
    return rows

def u_shape(u): return u.U.shape[0], u.V.shape[1]

def sides(base, train, seed):
    "T6, T7: both sides, and the pull"
    rows = []
    for form, rank in (("down", 32), ("up", 32), ("both", 16)):
        for l2 in (0., 0.1, 1.):
            model = fit(base, train, seed, epochs=3, form=form, rank=rank, l2=l2)
            x = torch.as_tensor(model.vectors_)
            rows.append({"form": form, "λ": l2, "numbers": x.shape[1], **{name: (losses(model.reader_, w, x) - losses(model.reader_, w)).mean().item() for name, w in (("text of x", train.windows), ("later text", train.later))}})
    return rows

def study(seeds, few):
    torch.set_float32_matmul_precision("medium") # products in bfloat16, for all alike
    text, train, validation, strange = read()
    base = Recalled(text).eval()
    print(f"\nSmolLM2-135M, last 4 layers; {train.windows.N} documents of {SEEN * TOKENS} tokens of {len(TOPICS)} packages, {LATER * TOKENS} held out; settings chosen on {validation.windows.N} others; "
          f"{strange.windows.N} foreign ones (Perl, C); {datetime.date.today()}, {seeds} seeds", flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    sections, found = {}, []
    for seed in range(seeds):
        start = time.process_time()
        rows, name, model = choose(base, train, validation, seed, few)
        _print(f"Which form: on validation documents, nats a token (seed {seed})", rows)
        out, zero, own = promises(base, model, train, validation, strange, seed)
        found.append(out)
        _print(f"The promises, {name} (seed {seed})", [{"": key, "nats, share or AUC": value} for key, value in out.items()])
        asks = {"Groups (T2)": partial(clusters, model, train, seed), "An adapter for a query (T3)": partial(compositions, model, train, seed),
                "Beside others": partial(plugins, base, model, train, zero, own, seed), "Both sides, and the pull (T6, T7)": partial(sides, base, train, seed)}
        for title, ask in asks.items():
            sections[title] = ask()
            _print(f"{title} (seed {seed})", sections[title])
        (KEPT / f"seed_{seed}.json").write_text(json.dumps({"form": name, "promises": out} | sections))
        print(f"  seed {seed}: {time.process_time() - start:.0f} CPU s", file=sys.stderr)
    if len(found) > 1: _print(f"The promises, mean and spread of {seeds} seeds", [{"": key, "mean": float(np.mean(v)), "standard deviation": float(np.std(v, ddof=1))} for key in found[0] for v in [[f[key] for f in found]]])

def _print(title, rows):
    table(title, rows)
    sys.stdout.flush()

# speed

def small(layers=4, hidden=576, vocabulary=1000):
    import transformers
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=8, max_position_embeddings=256)
    return transformers.LlamaForCausalLM(config).requires_grad_(False)

def speed(B=16, T=64, rank=16):
    import peft
    from common import medians
    base, targets, ids = small(), ["q_proj", "v_proj"], torch.randint(1000, (B, T))
    reader = Reader(base, {name: TopicUpdate(*linear_shape(m), rank) for name, m in find_modules(base, targets).items()})
    x = torch.zeros(B, reader.numbers, requires_grad=True)
    lora = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets, lora_alpha=rank))
    poly = peft.get_peft_model(copy.deepcopy(base), peft.PolyConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets, n_tasks=B, n_skills=4))
    calls = {"TopicLoRA": lambda: reader.logits(ids, x), "PEFT LoRA, one for all": lambda: lora(input_ids=ids).logits, "PEFT Poly, 4 skills": lambda: poly(input_ids=ids, task_ids=torch.arange(B)).logits}
    forward = medians({name: partial(_forward, f) for name, f in calls.items()})
    backward = medians({name: partial(_backward, f) for name, f in calls.items()})
    table(f"A batch of {B} rows of {T} tokens, rank {rank} on {' and '.join(targets)}, 4 layers of width 576: × PEFT's LoRA (aims: ≤ 1.2, and ≤ 0.8 of Poly)",
          [{"by": name, "forward": forward[name] / forward["PEFT LoRA, one for all"], "forward and backward": backward[name] / backward["PEFT LoRA, one for all"]} for name in calls])

    rows = []
    for N in (1000, 100_000):
        windows = cut(list(torch.randint(1000, (N, 32))), 32)
        here = _Round(reader, windows, 1e-3, Steps(torch.ones(reader.numbers), 0.01))
        row = torch.arange(0, N, N // B)[:B]
        took = medians({"step": partial(here.step, reader, windows, row, "in the bench")})["step"]
        rows.append({"documents": N, "numbers of x": N * reader.numbers, "CPU ms a step": 1e3 * took})
    table(f"A step of joint training, {B} documents in the batch", rows)

    model = TopicLoRA(base, targets, rank=rank)
    model.reader_, model.vectors_ = reader, np.random.default_rng(0).normal(size=(1000, reader.numbers)).astype(np.float32)
    took = medians({k: partial(model.compose, dict.fromkeys(range(k), 1 / k)) for k in (10, 1000)}, 21)
    table("Composing (aim: 1 000 documents ≤ 2 × 10 documents)", [{"documents": k, "CPU ms": 1e3 * t, "×": t / took[10]} for k, t in took.items()])

def _forward(f):
    with torch.no_grad(): f()

def _backward(f): f().sum().backward()

if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--study-only", action="store_true")
    options.add_argument("--speed-only", action="store_true")
    options.add_argument("--settings", type=int, default=len(SETTINGS), help="only so many of the settings")
    asked = options.parse_args()
    machine("peft", "transformers")
    if not asked.study_only: speed()
    if not asked.speed_only and smollm.model_path(): study(asked.seeds, asked.settings)
