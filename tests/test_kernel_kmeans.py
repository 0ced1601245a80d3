"What is no lesson about k-means on a kernel: scaling, order, copies, refusals"
import numpy as np
import pytest
from loragrass.kernel_kmeans import KernelKMeans
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

def kernel(N=30, d=4, seed=0):
    P = np.random.default_rng(seed).normal(size=(N, d))
    return P @ P.T

def J(K, labels): return sum(K[l := labels == c][:, l].trace() - K[l][:, l].sum() / l.sum() for c in set(labels))

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
    def test_copies_fill_every_group(self, init): # more starts than distinct points: no group may divide by zero
        fitted = KernelKMeans(3, init).fit(np.ones((5, 5)))
        assert np.isfinite(fitted.inertia_) and abs(fitted.inertia_) < 1e-9

def test_new_points_go_where_their_copies_are():
    K = kernel()
    fitted = KernelKMeans(3).fit(K)
    assert (fitted.predict(K[::3]) == fitted.predict(K)[::3]).all() and clone(fitted).n_clusters == 3

@pytest.mark.parametrize("K, params", [(np.ones((2, 3)), {}), (np.triu(np.ones((3, 3))), {}), (np.eye(3), {"n_clusters": 4}), (np.eye(9), {"init": "best"})])
def test_refuses(K, params):
    with pytest.raises(ValueError): KernelKMeans(**params).fit(K)
