"The encoders of 05d at the edges: manners of scikit-learn, seeds, interruptions, few adapters, other inputs, adapters that are none"
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

import loragrass.encoders as encoders
from loragrass.encoders import ContrastiveFeatures, DenoisingFeatures, GLNet, VAEFeatures
from loragrass.features import Features
from loragrass.lora_io import LoRA, LoRACollection, LoRAUpdate

AUTOENCODERS = {VAEFeatures: 64, ContrastiveFeatures: 128, DenoisingFeatures: 64}
SHORT = {"n_epochs": 2, "random_state": 0}
Y = np.arange(20) % 2


def update(m, n, r, seed):
    gen = torch.Generator().manual_seed(seed)
    return LoRAUpdate(torch.randn(m, r, generator=gen), torch.randn(r, n, generator=gen), 0.7, (m, n))

def adapters(N=20, ranks=(1, 2, 4)):
    def one(r, seed): return {"a.q": update(12, 9, r, seed), "a.v": update(7, 20, r, seed + 1)}
    return [LoRA(one(ranks[i % len(ranks)], 10 * i), name=f"#{i}") for i in range(N)]

def small(kind, **kwargs): return kind(**({} if kind is GLNet else {"n_components": 5}), **SHORT, **kwargs)

def linear_layers(net): return [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, torch.nn.Linear)]

@pytest.mark.parametrize("kind, inner, code, head", [
    (VAEFeatures, (512, 256), 128, []), (ContrastiveFeatures, (512, 512), 128, [(128, 64), (64, 64)]), (DenoisingFeatures, (512, 256), 64, [])])
@pytest.mark.filterwarnings("ignore:20 adapters for codes")
def test_sizes_are_those_of_the_guide(kind, inner, code, head):
    t = kind(**SHORT).fit(adapters())
    d, k, (a, b) = len(t.mean_), AUTOENCODERS[kind], inner
    assert d == 4 * (12 + 9 + 7 + 20)
    assert linear_layers(t.net_) == [(d, a), (a, b), (b, code), (k, b), (b, a), (a, d), *head]
    rows, names = t.transform(adapters()), t.get_feature_names_out()
    assert rows.shape == (20, k) == (20, len(set(names))) and rows.dtype == np.float32 and np.isfinite(rows).all() and t.gauge_invariant_

def test_the_losses_are_those_of_the_guide():
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    vae, net = VAEFeatures(3, beta=0.7), encoders._Nets(10, (8, 4), 3, 6).eval()
    mu, log_variance = net.encoder(x).chunk(2, 1)
    torch.manual_seed(0)
    parts = vae._losses(net, x)
    torch.manual_seed(0)
    z = torch.distributions.Normal(mu, (log_variance / 2).exp()).rsample()
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (log_variance / 2).exp()), torch.distributions.Normal(0., 1.)).sum(1).mean()
    assert torch.isclose(parts["reconstruction"], ((net.decoder(z) - x) ** 2).sum(1).mean()) and torch.isclose(parts["divergence"], 0.7 * kl, atol=1e-6)
    torch.manual_seed(1)
    parts = DenoisingFeatures(3)._losses(plain := encoders._Nets(10, (8, 4), 3).eval(), x)
    torch.manual_seed(1)
    assert torch.isclose(parts["reconstruction"], ((plain.decoder(plain.encoder(x + 0.2 * torch.randn_like(x))) - x) ** 2).mean(), rtol=1e-3)

def test_partners_are_the_two_views_of_a_row():
    p = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, slow = torch.nn.functional.normalize(p, dim=1), 0.
    for i in range(10):
        likeness = [float(q[i] @ q[j] / 0.5) for j in range(10) if j != i]
        slow -= float(q[i] @ q[(i + 5) % 10] / 0.5) - np.log(np.exp(likeness).sum())
    assert float(encoders.nt_xent(p)) == pytest.approx(slow / 10)

@pytest.mark.parametrize("kind", [*AUTOENCODERS, GLNet])
def test_scikit_learn_manners(kind):
    X, t = adapters(), small(kind)
    rows = clone(t).fit(X, Y).transform(X)
    assert np.array_equal(rows, clone(t).fit(X, Y).transform(X)) # same seed, same bits
    assert not np.array_equal(rows, clone(t).set_params(random_state=1).fit(X, Y).transform(X))
    fitted = pickle.loads(pickle.dumps(t.fit(LoRACollection(X), Y)))
    assert np.array_equal(fitted.transform(X), rows) and fitted.history_ == t.history_ and len(t.history_["loss"]) == 2
    assert np.allclose(t.transform(X[3:4]), rows[3:4], atol=1e-5) and np.allclose(t.transform(X[::-1]), rows[::-1], atol=1e-5)
    union = make_pipeline(FeatureUnion([("codes", clone(t)), ("spectra", Features("spectral", k=2))]), StandardScaler(), LogisticRegression())
    search = GridSearchCV(union, {"featureunion__codes__n_epochs": [1, 2]}, cv=2).fit(X, Y)
    assert search.predict(X).shape == (20,)
    frame = clone(t).set_output(transform="pandas").fit(X, Y).transform(X)
    assert frame.columns.tolist() == list(t.get_feature_names_out()) and frame.shape == rows.shape

@pytest.mark.parametrize("kind", [*AUTOENCODERS, GLNet])
def test_what_else_draws_is_not_disturbed(kind):
    def drawn(fit):
        torch.manual_seed(5)
        if fit: small(kind).fit(adapters(), Y)
        return torch.rand(3)
    assert torch.equal(drawn(True), drawn(False))

@pytest.mark.parametrize("kind", [*AUTOENCODERS, GLNet])
def test_an_interruption_leaves_what_is_fitted(kind, monkeypatch):
    whole, calls = encoders._epoch, []
    def epoch(*args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return whole(*args)
    monkeypatch.setattr(encoders, "_epoch", epoch)
    t = small(kind).set_params(n_epochs=50)
    with pytest.raises(KeyboardInterrupt): t.fit(adapters(), Y)
    rows = t.transform(adapters())
    assert np.isfinite(rows).all() and len(t.history_["loss"]) == 2 and not t.net_.training
    monkeypatch.setattr(encoders, "_epoch", whole)
    if kind is not VAEFeatures: return # the noise of two epochs decides which of them is kept
    assert t.inverse_transform(rows)[0].shapes == adapters()[0].shapes

def test_the_best_epoch_is_kept_and_patience_ends():
    X = adapters(40)
    t = DenoisingFeatures(5, n_epochs=400, patience=3, validation_fraction=0.25, random_state=0).fit(X)
    held = t.history_["held_out"]
    assert len(held) < 400 and np.argmin(held) >= len(held) - 4 - 3
    with encoders.seeded(0, torch.device("cpu")): t._net(len(t.mean_)), (order := torch.randperm(40))
    x = t._standardised(t.input_.transform(X))[order[30:]]
    with torch.no_grad(): errors = [(t.net_.decoder(t.net_.encoder(x + 0.2 * torch.randn(x.shape))) - x).square().mean() for _ in range(20)]
    assert float(torch.stack(errors).mean()) == pytest.approx(min(held), rel=0.05)
    assert len(DenoisingFeatures(5, n_epochs=40, patience=None, random_state=0).fit(X).history_["loss"]) == 40

def test_codes_decode_to_adapters_of_the_same_kind():
    X = adapters(30, ranks=(1, 2))
    t = DenoisingFeatures(25, noise=0., n_epochs=300, learning_rate=3e-3, patience=None, batch_size=30, random_state=0).fit(X)
    back = t.inverse_transform(t.transform(X))
    assert back[3].shapes == X[3].shapes and {u.rank for u in back[3].values()} == {2} and back[3]["a.q"].weight_shape == (12, 9)
    error = np.mean([float((b[m].dense() - a[m].dense()).norm() / a[m].dense().norm()) for a, b in zip(X, back) for m in a])
    assert error < 0.3
    with pytest.raises(ValueError, match="codes of 3 numbers; expected 25"): t.inverse_transform(np.zeros((2, 3)))

def test_rows_of_a_pipeline_are_coded_as_they_come():
    X = adapters()
    rows = Features("spectral", k=4).fit_transform(X)
    one = VAEFeatures(4, **SHORT).fit(rows)
    other = VAEFeatures(4, input=Features("spectral", k=4), **SHORT).fit(X)
    assert np.array_equal(one.transform(rows), other.transform(X))
    assert one.inverse_transform(one.transform(rows)).shape == rows.shape and one.gauge_invariant_ is None and other.gauge_invariant_
    with pytest.raises(ValueError, match="rows of 27 numbers; fit has seen 28"): one.transform(rows[:, 1:])
    assert make_pipeline(Features("spectral", k=4), VAEFeatures(4, **SHORT), LogisticRegression()).fit(X, Y).score(X, Y) > 0.4

def test_columns_that_never_change_and_zero_updates_are_taken():
    X = adapters()
    X[3] = LoRA({"a.q": LoRAUpdate(torch.zeros(12, 2), torch.ones(2, 9), 1., (12, 9)), "a.v": LoRAUpdate(torch.zeros(7, 0), torch.zeros(0, 20), 1., (7, 20))})
    for kind in (*AUTOENCODERS, GLNet): assert np.isfinite(small(kind).fit(X, Y).transform(X)).all()
    rows = np.ones((20, 8)) * np.arange(8) + 1e-9
    assert np.isfinite(VAEFeatures(4, **SHORT).fit_transform(rows)).all()

@pytest.mark.parametrize("kind", AUTOENCODERS)
@pytest.mark.parametrize("kwargs, X, message", [
    (dict(n_components=400), 20, "n_components=400 and rows of 192 numbers; choose n_components=192 or less"),
    (dict(), 1, "fit on 1 adapters.*two at least"), (dict(), 0, "fit on 0 adapters"),
    (dict(n_epochs=0), 20, "n_epochs=0; expected a number above 0"), (dict(batch_size=2.5), 20, "batch_size is 2.5; expected a whole number"),
    (dict(validation_fraction=1.), 20, "validation_fraction=1.0; expected a share"), (dict(device="gpu0"), 20, "device='gpu0' cannot be used here"),
    (dict(learning_rate=1e30, n_epochs=20), 20, "the loss is .* in epoch")])
def test_settings_that_cannot_be(kind, kwargs, X, message):
    with pytest.raises(ValueError, match=message): small(kind).set_params(**kwargs).fit(adapters(X))

@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("kind", [*AUTOENCODERS, GLNet])
def test_a_device_that_is_not_there_is_said_before_any_work(kind, monkeypatch):
    monkeypatch.setattr(LoRAUpdate, "svd", None)
    with pytest.raises(ValueError, match="device='cuda' cannot be used here.*choose device='cpu'"): small(kind, device="cuda").fit(adapters(), Y)

@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_few_adapters_are_allowed_and_said(kind):
    with pytest.warns(UserWarning, match="4 adapters for codes of 5 numbers"): assert small(kind).fit_transform(adapters(4)).shape == (4, 5)

@pytest.mark.parametrize("kind", [*AUTOENCODERS, GLNet])
def test_numbers_that_are_none_are_named(kind):
    X = adapters()
    X[2] = LoRA(X[2].updates | {"a.v": LoRAUpdate(X[2]["a.v"].up * torch.nan, X[2]["a.v"].down, 1., (7, 20))}, name="odd")
    with pytest.raises(ValueError, match="odd: NaN or infinite numbers in a.v"): small(kind).fit(X, Y)
    if kind is GLNet: return
    rows = np.ones((20, 8))
    rows[3, 2] = np.nan
    with pytest.raises(ValueError, match="row 3 has NaN or an infinite number in column 2"): small(kind).fit(rows)

@pytest.mark.parametrize("gates", [False, True])
def test_products_do_not_see_the_gauge(gates):
    X = adapters()
    t = GLNet(gates=gates, **SHORT).fit(X, Y)
    def rescaled(u): return LoRAUpdate(-3 * u.up.flip(1), 5 * u.down.flip(0), 1e-3, u.weight_shape)
    other = [LoRA({m: rescaled(u) for m, u in lora.items()}) for lora in X] # -15 / 700 of the update: its sign is told, its size is not
    assert np.allclose(t.transform(other), t.transform([LoRA({m: LoRAUpdate(-u.up, u.down, 1., u.weight_shape) for m, u in lora.items()}) for lora in X]), atol=1e-5)

@pytest.mark.parametrize("y, message", [
    (None, r"GLNet learns from labels: fit\(X, y\)"), (np.arange(19), r"y of shape \(19,\) for 20 adapters"), (["ink"] * 20, "y holds one class, 'ink'"),
    ([0.5, np.nan] * 10, "y holds NaN or infinite numbers"), ([0.5] * 20, "y holds one class, 0.5")])
def test_labels_that_cannot_be(y, message):
    with pytest.raises(ValueError, match=message): GLNet(**SHORT).fit(adapters(), y)

def test_a_number_can_be_learned_as_well():
    X = adapters(60, ranks=(2,))
    y = np.array([float(lora["a.q"].dense()[0].sum() / lora["a.q"].norm()) for lora in X])
    t = GLNet(n_epochs=80, random_state=0).fit(X, y)
    with torch.no_grad(): guess = t.net_.head(torch.from_numpy(t.transform(X)))[:, 0].numpy()
    assert np.corrcoef(guess, y)[0, 1] > 0.9
