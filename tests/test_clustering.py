"What is no lesson about groups of subspaces: scikit-learn's manners, scaling, order, copies, refusals"
import warnings

import numpy as np
import pytest
import torch
from loragrass import clustering
from loragrass.clustering import CLUSTERINGS, Clustering, GrassmannKMeans, KernelKMeans, cluster_kernel
from loragrass.karcher import GrassmannExact
from loragrass.kernels import GrassmannKernel, KernelDegenerateWarning, gram
from loragrass.plucker import orthonormalize
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

def kernel(N=30, d=4, seed=0):
    P = np.random.default_rng(seed).normal(size=(N, d))
    return P @ P.T

def J(K, labels): return sum(K[l := labels == c][:, l].trace() - K[l][:, l].sum() / l.sum() for c in set(labels))

@pytest.mark.filterwarnings("ignore::loragrass.kernels.KernelDegenerateWarning")
@pytest.mark.parametrize("init", ["random", "k-means++"])
class TestFit:
    def test_no_single_move_is_better(self, init):
        K = kernel()
        fitted = KernelKMeans(4, init, n_init=1).fit(K)
        assert np.isclose(fitted.inertia_, J(K, fitted.labels_))
        for x in range(30):
            for c in range(4):
                moved = fitted.labels_.copy(); moved[x] = c
                assert J(K, moved) >= fitted.inertia_ - 1e-9
    def test_scale_and_order(self, init):
        K, p = kernel(), np.random.default_rng(1).permutation(30)
        labels = KernelKMeans(3, init).fit_predict(K)
        assert (KernelKMeans(3, init).fit_predict(1e6 * K) == labels).all()
        assert adjusted_rand_score(KernelKMeans(3, init, n_init=40).fit_predict(K[np.ix_(p, p)]), KernelKMeans(3, init, n_init=40).fit_predict(K)[p]) == 1
    def test_no_kernel_keeps_its_books(self, init): # a negative diagonal: staying is no move
        fitted = KernelKMeans(3, init).fit(K := -np.eye(8))
        assert np.isclose(fitted.inertia_, J(K, fitted.labels_))
    def test_copies_fill_every_group(self, init): # more starts than distinct points: no group may divide by zero
        fitted = KernelKMeans(3, init).fit(np.ones((5, 5)))
        assert np.isfinite(fitted.inertia_) and abs(fitted.inertia_) < 1e-9

def test_new_points_go_where_their_copies_are():
    K = kernel()
    fitted = KernelKMeans(3).fit(K)
    assert (fitted.predict(K[::3]) == fitted.predict(K)[::3]).all() and clone(fitted).n_clusters == 3

def test_kernel_weights_are_repetitions():
    K, w = kernel(), np.arange(30) % 4
    many = np.repeat(np.arange(30), w)
    a, b = KernelKMeans(4, n_init=60).fit(K, sample_weight=w), KernelKMeans(4, n_init=60).fit(K[np.ix_(many, many)])
    assert np.isclose(a.inertia_, b.inertia_) and adjusted_rand_score(a.labels_[many], b.labels_) == 1 and (a.predict(K) == a.labels_).all()
    assert np.isclose(a.inertia_, J(K[np.ix_(many, many)], a.labels_[many])) and np.isclose(KernelKMeans(4).fit(K, sample_weight=np.full(30, 2.5)).inertia_, 2.5 * KernelKMeans(4).fit(K).inertia_)
    for x in np.flatnonzero(w): # no move of one point, with all that it weighs, is better
        for c in range(4):
            moved = a.labels_.copy(); moved[x] = c
            assert J(K[np.ix_(many, many)], moved[many]) >= a.inertia_ - 1e-9

@pytest.mark.parametrize("K, params", [(np.ones((2, 3)), {}), (np.triu(np.ones((3, 3))), {}), (np.eye(3), {"n_clusters": 4}), (np.eye(9), {"init": "best"}), (np.eye(9), {"n_clusters": 2.5}), (np.eye(9), {"n_init": 0}), (np.eye(9), {"max_iter": 0})])
def test_refuses(K, params):
    with pytest.raises(ValueError, match="shape|n_clusters|init|max_iter"): KernelKMeans(**params).fit(K)

# check_clustering hands over points, and what takes a matrix of all pairs must refuse them
@parametrize_with_checks([KernelKMeans(2)], expected_failed_checks=lambda _: {"check_clustering": "fits points (50, 2), not a kernel matrix"})
def test_manners_of_scikit_learn(estimator, check): check(estimator)

# ---- subspaces with centres

def planted(dims=(3, 3, 3), n=20, N=30, seed=0):
    "Three groups of subspaces, smaller ones filled up with zero columns"
    g = torch.Generator().manual_seed(seed)
    centres = [torch.linalg.qr(torch.randn(n, max(dims), generator=g)).Q for _ in range(3)]
    X = torch.stack([torch.linalg.qr(centres[i % 3] + 0.15 * torch.randn(n, max(dims), generator=g)).Q for i in range(N)])
    for i in range(N): X[i, :, dims[i % 3]:] = 0
    return X

TRUTH = np.arange(30) % 3

@pytest.mark.parametrize("params", [{}, {"centers": "karcher"}, {"init": "random", "n_init": 10}, {"batch_size": 8, "max_iter": 20}, {"batch_size": 8, "max_iter": 20, "centers": "karcher"},
                                    {"assign": "kernel"}, {"assign": "kernel", "kernel": "binet_cauchy", "centers": "karcher"}], ids=str)
class TestGrassmannKMeans:
    def test_another_default_device_changes_nothing(self, params):
        if params.get("centers") == "karcher": return # whose means are 02's
        X = planted()
        with torch.device("meta"): model = GrassmannKMeans(3, **params).fit(X, sample_weight=np.ones(30)) # what is made without the input's device fails to mix
        assert (model.labels_ == GrassmannKMeans(3, **params).fit(X).labels_).all() and isinstance(model.labels_, np.ndarray)
        with torch.device("meta"): assert (model.predict(X) == model.labels_).all() and model.transform(X).shape == (30, 3)
    def test_weights_are_repetitions(self, params):
        if "batch_size" in params: return # other batches
        X, w = planted(), np.arange(30) % 4
        model = GrassmannKMeans(3, **params).fit(X, sample_weight=w)
        again = GrassmannKMeans(3, init=model.cluster_centers_, **{k: v for k, v in params.items() if k not in ("init", "n_init")}).fit(X.repeat_interleave(torch.tensor(w), 0))
        assert (model.labels_.repeat(w) == again.labels_).all() and again.inertia_ == pytest.approx(model.inertia_, rel=1e-4) and again.n_iter_ <= 2
        assert adjusted_rand_score(TRUTH, model.labels_) == 1
    def test_planted_groups(self, params):
        X = planted()
        model = GrassmannKMeans(3, **params).fit(X)
        assert adjusted_rand_score(TRUTH, model.labels_) == 1 and clone(model).get_params() == model.get_params()
        assert (clone(model).fit_predict(X) == model.labels_).all() and (model.predict(X) == model.labels_).all() and model.fit_transform(X).shape == (30, 3)
        assert model.inertia_ == pytest.approx(float((model.transform(X).min(1) ** 2).sum()), rel=1e-4)
    def test_a_product_of_two(self, params):
        X = [planted(), planted(n=14, seed=1)]
        model = GrassmannKMeans(3, **params).fit(X)
        assert adjusted_rand_score(TRUTH, model.labels_) == 1 and [c.shape for c in model.cluster_centers_] == [(3, 20, 3), (3, 14, 3)]

def simulated(sizes, theta, n=64, k=8, seed=0):
    g, labels = torch.Generator().manual_seed(seed), np.repeat(np.arange(len(sizes)), sizes)
    x = orthonormalize(torch.randn(len(sizes), n, k, dtype=torch.float64, generator=g))[labels]
    v = torch.randn(len(labels), n, k, dtype=torch.float64, generator=g)
    v = v - x @ (x.mT @ v)
    return GrassmannExact().expmap(x, theta * v / torch.linalg.matrix_norm(v, 2)[:, None, None]), labels

@pytest.mark.parametrize("sizes, theta, n, k, least", [((60, 6, 6), 1., 64, 8, 1), ((60, 6, 6), 1., 32, 4, .98), ((20,) * 4, 1.4, 64, 8, .88), ((20,) * 4, 1.4, 256, 16, .98), ((50, 10, 5, 5), 1.1, 64, 8, .98)])
def test_reaches_what_spectral_reaches(sizes, theta, n, k, least):
    for seed in range(3):
        X, truth = simulated(sizes, theta, n, k, seed)
        found, spectral = GrassmannKMeans(len(sizes)).fit(X), cluster_kernel(gram(X), len(sizes)).labels
        assert adjusted_rand_score(truth, found.labels_) >= min(least, adjusted_rand_score(truth, spectral)) - 1e-9

def test_labels_are_those_of_the_last_centres_and_a_stop_is_said():
    X, _ = simulated((20,) * 4, 1.4)
    with pytest.warns(ConvergenceWarning, match="GrassmannKMeans stopped at max_iter=1") as seen: model = GrassmannKMeans(4, init="random", n_init=1, max_iter=1).fit(X)
    assert (model.labels_ == model.predict(X)).all() and seen[0].filename == __file__ and model.inertia_ == pytest.approx((model.transform(X) ** 2).min(1).sum())
    K = kernel(200)
    with pytest.warns(ConvergenceWarning, match="KernelKMeans stopped at max_iter=1"): KernelKMeans(8, n_init=1, max_iter=1).fit(K)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        GrassmannKMeans(4).fit(X), GrassmannKMeans(4, batch_size=20, max_iter=2).fit(X), KernelKMeans(8).fit(K) # batches have no end

def test_a_spectral_start_from_a_sample(monkeypatch):
    monkeypatch.setattr(clustering, "SAMPLE", 40)
    X, truth = simulated((60, 50, 40), 1.)
    assert adjusted_rand_score(truth, GrassmannKMeans(3).fit_predict(X)) == 1

def test_kernel_of_the_fit_is_the_kernel_of_new_points(): # its default follows the largest dimension
    X = [x[:, :3 - i % 3] for i, x in enumerate(planted((3, 2, 1)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GrassmannKMeans(3, assign="kernel", kernel="projection_rbf").fit(X)
        assert [int(model.predict([x])[0]) for x in X] == model.labels_.tolist()

def test_other_devices_get_their_labels_there(): # no second device here: what is said of one
    labels = torch.arange(3)
    assert clustering._as_input(labels, [torch.empty(3, device="meta")]).device.type == "meta" and clustering._as_input(labels.numpy(), torch.empty(3, device="meta")).device.type == "meta"
    assert isinstance(clustering._as_input(labels, labels), np.ndarray) and isinstance(clustering._as_input(labels, np.ones(3)), np.ndarray)

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    X, truth = simulated((20,) * 3, 1.)
    for params in ({}, {"centers": "karcher"}, {"batch_size": 20, "max_iter": 20}, {"init": "k-means++"}, {"assign": "kernel"}):
        model = GrassmannKMeans(3, **params).fit(X.cuda(), sample_weight=np.ones(60))
        assert model.labels_.is_cuda and model.predict(X.cuda()).is_cuda and model.transform(X.cuda()).is_cuda and adjusted_rand_score(truth, model.labels_.cpu()) == 1
    model = KernelKMeans(3).fit(gram(X.cuda()))
    assert model.labels_.is_cuda and model.predict(gram(X.cuda())).equal(model.labels_) and adjusted_rand_score(truth, model.labels_.cpu()) == 1

@pytest.mark.parametrize("w, message", [(np.ones(29), "shape .29"), (-np.ones(30), "≥ 0"), (np.zeros(30), "at least one non-zero"), (np.full(30, np.nan), "finite"), (["a"] * 30, "expected numbers"), (np.eye(30)[0] + np.eye(30)[1], "n_clusters=3: expected 1 … 2")])
def test_weights_that_are_none(w, message):
    for model, X in ((GrassmannKMeans(3), planted()), (KernelKMeans(3), kernel())):
        with pytest.raises(ValueError, match=message): model.fit(X, sample_weight=w)

def test_different_dimensions(): assert adjusted_rand_score(TRUTH, GrassmannKMeans(3).fit_predict(planted((3, 2, 1)))) == 1

def test_given_centres_name_the_groups():
    X = planted()
    centres = GrassmannKMeans(3).fit(X).cluster_centers_[0][[2, 0, 1]]
    kept = centres.clone()
    model = GrassmannKMeans(3, init=centres, batch_size=10).fit(X)
    assert (model.labels_ == GrassmannKMeans(3, init=centres).fit_predict(X)).all() and torch.equal(centres, kept)

def test_what_is_not_fitted_says_so():
    for model in (KernelKMeans(), GrassmannKMeans()):
        with pytest.raises(ValueError, match="not fitted yet"): model.predict(np.eye(3))

@pytest.mark.parametrize("params, message", [({"centers": "mean"}, "'chordal' or 'karcher'"), ({"assign": "angle"}, "'distance' or 'kernel'"), ({"init": "best"}, "'random' or centres"),
                                             ({"n_clusters": 31}, "1 … 30"), ({"n_clusters": None}, "n_clusters=None"), ({"max_iter": 0}, "max_iter=0: expected 1 or more"), ({"n_init": 0}, "n_init=0"),
                                             ({"batch_size": 0}, "batch_size=0"), ({"assign": "kernel", "kernel": "rbf"}, "kernel 'rbf' is unknown"),
                                             ({"init": planted()[:2]}, "init has shapes"), ({"init": planted(n=9)[:3]}, "init has shapes"), ({"init": planted(dims=(2, 2, 2))[:3]}, "init has shapes")])
def test_grassmann_kmeans_refuses(params, message):
    with pytest.raises(ValueError, match=message): GrassmannKMeans(**{"n_clusters": 3, **params}).fit(planted())

@pytest.mark.parametrize("X, message", [(planted() * np.nan, "not orthonormal"), (2 * planted(), "not orthonormal"), (.3 * planted(), "not orthonormal"), (planted()[0], "expected a stack"), ([], "expected a stack"),
                                        ([planted(), planted(N=29)], "one N"), (planted(n=9), "fitted to spaces"), ([planted(), planted()], "fitted to spaces"), (["a"], "expected numbers")])
def test_points_that_are_none(X, message):
    model = GrassmannKMeans(3).fit(planted())
    for f in (model.predict, model.transform, model.score): # `fit` cannot know the space
        with pytest.raises(ValueError, match=message): f(X)
    if "fitted" not in message:
        with pytest.raises(ValueError, match=message): GrassmannKMeans(1).fit(X)

def test_forms_of_points():
    X, mixed = planted(), planted((3, 2, 1))
    model, read_only = GrassmannKMeans(3).fit(X), X.numpy().copy()
    read_only.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for Z in (X.double(), X.half(), read_only, list(X), X.clone().requires_grad_()): assert (GrassmannKMeans(3).fit_predict(Z) == model.labels_).all() and (model.predict(Z) == model.labels_).all()
    assert (GrassmannKMeans(3).fit_predict([x[:, :3 - i % 3] for i, x in enumerate(mixed)]) == GrassmannKMeans(3).fit_predict(mixed)).all()
    assert list(model.set_output(transform="pandas").transform(X).columns) == [f"grassmannkmeans{c}" for c in range(3)] and model.score(X) == pytest.approx(-model.inertia_)

def test_every_empty_group_takes_a_point_of_its_own():
    X = planted(N=5)
    model = GrassmannKMeans(4, init=X[[0, 0, 0, 0]], max_iter=1).fit(X) # one step: three groups are empty
    assert sorted(np.bincount(model.labels_)) == [1, 1, 1, 2]

# ---- any kernel matrix

@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_every_clustering_finds_plain_blocks_in_any_order(clustering):
    truth = np.repeat([0, 1, 2], 5)
    order = np.random.default_rng(0).permutation(15)
    K = (0.05 + 0.6 * np.equal.outer(truth, truth) + 0.35 * np.eye(15))[np.ix_(order, order)]
    for k in (3, "auto"): assert adjusted_rand_score(truth[order], cluster_kernel(K, k, clustering).labels) == 1

@pytest.mark.filterwarnings("ignore::loragrass.kernels.KernelDegenerateWarning")
@pytest.mark.parametrize("N, says", [(1, ""), (2, "too few"), (3, "too few"), (8, "stands out")])
def test_auto_says_why_all_are_in_one(N, says):
    K = np.full((N, N), 0.2) + 0.8 * np.eye(N)
    assert says in cluster_kernel(K).note and not cluster_kernel(K, min(N, 2)).note

@pytest.mark.parametrize("K, params, message", [
    (np.zeros((0, 0)), {}, "shape"), (np.ones((2, 3)), {}, "shape"), (-np.ones((3, 3)), {}, "≥ 0"), (np.triu(np.ones((3, 3))), {}, "not symmetric"), (np.full((5, 5), np.nan), {}, "NaN"),
    (np.full((5, 5), np.inf), {}, "infinite"), (np.eye(9), {"max_clusters": 1}, "max_clusters=1: expected 2 or more"),
    *((np.eye(9), {"n_clusters": k}, "expected 'auto' or 1 … 9") for k in (2.7, 0, 10, "abc", None))])
def test_cluster_kernel_refuses(K, params, message):
    with pytest.raises(ValueError, match=message): cluster_kernel(K, **params)

def test_hdbscan_says_that_it_was_not_asked():
    assert "n_clusters=3 was not used" in cluster_kernel(PLAIN, 3, "hdbscan").note and not cluster_kernel(PLAIN, clustering="hdbscan").note

def test_a_way_of_grouping_is_a_row(monkeypatch):
    monkeypatch.setitem(CLUSTERINGS, "halves", Clustering(lambda M, **_: lambda k, n_init=1: np.arange(len(M)) * k // len(M)))
    assert (cluster_kernel(PLAIN, 2, "halves").labels == np.repeat([0, 1], 15)).all() and cluster_kernel(PLAIN, clustering="halves").silhouette is not None
    with pytest.raises(ValueError, match="expected one of spectral, agglomerative, kernel_kmeans, hdbscan, halves"): cluster_kernel(PLAIN, 2, "none")

def test_the_old_keyword_is_taken_and_warned_of():
    with pytest.warns(FutureWarning, match="method= of cluster_kernel.. is now clustering=") as seen: found = cluster_kernel(PLAIN, 3, method="agglomerative")
    assert (found.labels == cluster_kernel(PLAIN, 3, clustering="agglomerative").labels).all() and seen[0].filename == __file__

@pytest.mark.filterwarnings("ignore::loragrass.kernels.KernelDegenerateWarning")
@pytest.mark.parametrize("normalized", [True, False])
def test_some_eigenvectors_group_as_all_do(normalized):
    rng = np.random.default_rng(0)
    P = rng.normal(size=(6, 40))[rng.permutation(np.arange(600) % 6)] + .8 * rng.normal(size=(600, 40))
    K = np.exp(-((P[:, None] - P) ** 2).sum(-1) / 80)
    few, all_of_them = clustering._eigenvectors(K, normalized, 6), clustering._eigenvectors(K, normalized)
    assert few.shape == (600, 6) and all_of_them.shape == (600, 600) and np.linalg.norm(few.T @ all_of_them[:, :6], ord=-2) > 1 - 1e-9
    assert (cluster_kernel(K, 6, normalized=normalized).labels == clustering.first_seen(clustering._spectral(K, normalized)(6))).all()

def test_weighted_eigenvectors_are_those_of_repetitions(): # rows up to a rotation
    w, K = 1 + np.arange(30) % 4, kernel() ** 2
    many = np.repeat(np.arange(30), w)
    def cosines(V): return V @ V.T / np.outer(n := np.linalg.norm(V, axis=1), n)
    weighted, repeated = clustering._eigenvectors(K, w=w)[:, :3], clustering._eigenvectors(K[np.ix_(many, many)])[:, :3]
    assert np.allclose(cosines(weighted)[np.ix_(many, many)], cosines(repeated))

@pytest.mark.parametrize("odd", [lambda K: K[::-1, ::-1], lambda K: K.astype(">f8"), lambda K: K.astype(np.longdouble), lambda K: K.tolist()], ids=["backwards", "big-endian", "longdouble", "list"])
def test_arrays_as_people_have_them(odd):
    K, X = kernel() ** 2, planted().double().numpy()
    same = lambda A: np.array(odd(A), dtype=float)
    for f in (lambda K: cluster_kernel(K, 3).labels, lambda K: KernelKMeans(3).fit(K).labels_, lambda K: KernelKMeans(3).fit(K, sample_weight=odd(np.ones((30, 30)))[0]).predict(K)):
        assert (f(odd(K)) == f(same(K))).all()
    if not isinstance(odd(K), list):
        A = X[::-1, ::-1] if odd(K).strides[0] < 0 else odd(X)
        model = GrassmannKMeans(3).fit(A)
        assert adjusted_rand_score(TRUTH[::-1] if odd(K).strides[0] < 0 else TRUTH, model.labels_) == 1 and (model.predict(A) == model.labels_).all()

def test_tensors_of_any_precision():
    K = gram(planted())
    for Z in (K.clone().requires_grad_(), K.bfloat16(), K.double()): assert (cluster_kernel(Z, 3).labels == TRUTH).all() and adjusted_rand_score(KernelKMeans(3).fit_predict(Z), TRUTH) == 1

# ---- a kernel that says nothing, or is none

T = torch.arange(24, dtype=torch.float64) * np.pi / 24
LINES = torch.stack([T.cos(), T.sin()], -1)[..., None]
NONE = gram(LINES, kernel=GrassmannKernel("linear", "plucker", abs_det=True))
NOTHING = torch.eye(24) + .2
PLAIN = gram(planted())

@pytest.mark.parametrize("group", [lambda K: cluster_kernel(K), lambda K: cluster_kernel(K, 3), lambda K: cluster_kernel(K, 3, "kernel_kmeans"), lambda K: cluster_kernel(K, clustering="hdbscan"),
                                   lambda K: KernelKMeans(3).fit(K), lambda K: KernelKMeans(3).fit_predict(K), lambda K: cluster_kernel(torch.block_diag(torch.zeros(1, 1), K), 3)])
@pytest.mark.parametrize("K, said", [(NONE, "indefinite"), (NOTHING, "degenerate"), (PLAIN, None), (torch.eye(30) + .03 * PLAIN, None), (torch.eye(2), None)], ids=["none", "nothing", "plain", "diagonal", "two"])
def test_warns_once_at_the_line_that_asked(group, K, said):
    if len(K) == 2: group = lambda K: cluster_kernel(K, 2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        group(K)
    assert [w.category for w in seen] == [KernelDegenerateWarning] * bool(said) and all(said in str(w.message) and w.filename == __file__ for w in seen)

def test_centres_by_a_kernel_that_says_nothing():
    X = torch.linalg.qr(torch.randn(12, 300, 12, generator=torch.Generator().manual_seed(0))).Q
    with pytest.warns(KernelDegenerateWarning, match="degenerate kernel matrix") as seen: GrassmannKMeans(2, assign="kernel", kernel="binet_cauchy", max_iter=2, n_init=1).fit(X)
    assert seen[0].filename == __file__

@pytest.mark.parametrize("way", CLUSTERINGS)
def test_one_point_and_copies_are_one_group(way):
    assert cluster_kernel(np.ones((1, 1)), 1, way).labels.tolist() == [0]
    three = np.kron(np.eye(3), np.ones((4, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelDegenerateWarning)
        if way == "hdbscan": assert cluster_kernel(np.ones((5, 5)), clustering=way).labels.tolist() == [0] * 5
        if way != "hdbscan": assert cluster_kernel(three, 3, way).labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4

def test_weights_beyond_what_a_number_holds():
    X = orthonormalize(torch.randn(20, 12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    for model in (GrassmannKMeans(2), KernelKMeans(2)):
        with pytest.raises(ValueError, match="adds up to more than a number holds"): model.fit(X if isinstance(model, GrassmannKMeans) else gram(X), sample_weight=np.full(20, 1e308))
    torch.testing.assert_close(gram(X, weights=np.full((20, 2), 1e308)), gram(X))
