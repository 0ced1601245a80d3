"""What geoopt and its users expect of `Grassmann` and `GrassmannExact`, and what its own suite would not notice.

The oracle is one n × n matrix exponential: expm(u xᵀ − x uᵀ) carries x to exp_x(u) and tangent vectors along by parallel transport, as matrices.
Every check is also run on eleven classes that are wrong on purpose: each class must fail one, and each check must find one, for a check that cannot fail is none.
"""
import copy, math, pickle

import geoopt, pytest, torch
from geoopt.manifolds import Scaled
from loragrass import karcher
from loragrass.karcher import Grassmann, GrassmannExact, geodesic
from loragrass.plucker import principal_angles

CLASSES, DTYPES, EYE = [Grassmann, GrassmannExact], [torch.float64, torch.float32], torch.eye(12, dtype=torch.float64)
both = lambda f: pytest.mark.parametrize("dtype", DTYPES, ids=str)(pytest.mark.parametrize("cls", CLASSES)(f))

def randn(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
def close(a, b, dtype, factor=1.): return (a - b).detach().abs().max() <= factor * (2e-13 if dtype == torch.float64 else 2e-5)
def apart(a, b): return principal_angles(a.detach().double(), b.detach().double()).max() # as subspaces

def case(dtype=torch.float64, size=1., n=12, k=3, batch=(), seed=0): # x, a turn of its basis, tangent u (spectral norm `size`) and v
    x = torch.linalg.qr(randn(*batch, n, k, seed=seed))[0]
    u, v = (w - x @ (x.mT @ w) for w in (randn(*batch, n, k, seed=seed + 1), randn(*batch, n, k, seed=seed + 2)))
    u = size * u / torch.linalg.matrix_norm(u, 2)[..., None, None]
    return tuple(t.to(dtype) for t in (x, torch.linalg.qr(randn(k, k, seed=seed + 3))[0], u, v))

def carried(x, u, w): # expm(u xᵀ − x uᵀ) w
    x, u, w = x.double(), u.double(), w.double()
    return torch.linalg.matrix_exp(u @ x.mT - x @ u.mT) @ w

# --- the checks: check(manifold, dtype), run on the right classes and on the wrong ones

def check_exp_is_the_group(m, dtype):
    for size in (1e-9, .5, 1.5, 4.):
        x, _, u, _ = case(dtype, size)
        assert close(m.expmap(x, u), carried(x, u, x), dtype, 10)

def check_log_inverts_exp(m, dtype):
    for size in (1e-3, .5, 1.5):
        x, _, u, _ = case(dtype, size)
        assert close(m.logmap(x, carried(x, u, x).to(dtype)), u, dtype, 10)

def check_log_is_exact_at_both_ends(m, dtype):
    eps = torch.finfo(dtype).eps
    for t in (math.pi / 2 - 1e-6, math.pi / 2) if dtype == torch.float64 else (math.pi / 2 - 1e-3, math.pi / 2):
        theta = torch.tensor([t, .7, .1], dtype=torch.float64)
        log = m.logmap(EYE[:, :3].to(dtype), (EYE[:, :3] * theta.cos() + EYE[:, 3:6] * theta.sin()).to(dtype))
        assert (torch.linalg.svdvals(log).double() - theta).abs().max() < 20 * eps
    x, Q, u, _ = case(dtype, 1e-6 if dtype == torch.float64 else 1e-3)
    log = m.logmap(x, carried(x, u, x).to(dtype))
    assert (x.mT @ log).norm() < 10 * eps * log.norm()
    assert m.logmap(x, x @ Q).abs().max() < 10 * eps

def check_transport_is_parallel(m, dtype):
    x, Q, u, v = case(dtype, 1.2)
    y, w = (carried(x, u, z).to(dtype) for z in (x, v))
    assert close(m.transp(x, y, v), w, dtype, 10) and close(m.transp_follow_expmap(x, u, v), w, dtype, 10) and close(m.expmap_transp(x, u, v)[1], w, dtype, 10)
    assert close(m.norm(y, m.transp(x, y, v)), m.norm(x, v), dtype, 10)

def check_equivariance(m, dtype):
    x, Q, u, v = case(dtype, 1.)
    y = carried(x, u, x).to(dtype)
    R = torch.linalg.qr(randn(3, 3, seed=9, dtype=dtype))[0]
    assert close(m.expmap(x @ Q, u @ Q), m.expmap(x, u) @ Q, dtype, 10) and close(m.retr(x @ Q, u @ Q), m.retr(x, u) @ Q, dtype, 10)
    assert close(m.logmap(x @ Q, y @ R), m.logmap(x, y) @ Q, dtype, 10)
    assert close(m.transp(x @ Q, y @ R, v @ Q), m.transp(x, y, v) @ R, dtype, 10)
    assert close(m.dist(x @ Q, y @ R), m.dist(x, y), dtype, 10)

def check_dist(m, dtype):
    for size in (.2, 1.5):
        x, _, u, _ = case(dtype, size)
        assert close(m.dist(x, carried(x, u, x).to(dtype)), m.norm(x, u), dtype, 10)
    x, _, u, _ = case(dtype, 4.) # past the cut locus the way back is shorter
    assert m.dist(x, m.expmap(x, u)) < .9 * m.norm(x, u)
    assert close(m.dist(EYE[:, :3].to(dtype), EYE[:, 3:6].to(dtype)), math.pi / 2 * 3 ** .5, dtype)

def check_dist_is_exact_near_0(m, dtype):
    t = 1e-9 if dtype == torch.float64 else 1e-5
    x, Q, u, _ = case(dtype, t)
    y = (EYE[:, :3] * math.cos(t) + EYE[:, 3:6] * math.sin(t)).to(dtype)
    assert abs(m.dist(EYE[:, :3].to(dtype), y) / (3 ** .5 * t) - 1) < 1e-6
    assert m.dist(x, x @ Q) < 10 * torch.finfo(dtype).eps

def check_tangent_check(m, dtype):
    x, _, u, v = case(dtype)
    vertical = x @ torch.tensor([[0, 1, 0], [-1, 0, 0], [0, 0, 0]], dtype=dtype)
    assert m.check_vector_on_tangent(x, u) and not m.check_vector_on_tangent(x, vertical) and not m.check_vector_on_tangent(x, u + x)
    ok, reason = m.check_vector_on_tangent(x, vertical, explain=True)
    assert ok is False and "proju" in reason and m.check_vector_on_tangent(x, u, explain=True) == (True, None)

def check_point_check(m, dtype):
    x, *_ = case(dtype)
    assert m.check_point_on_manifold(x, explain=True) == (True, None) and not m.check_point_on_manifold(2 * x)
    assert not m.check_point_on_manifold(x.mT) and not m.check_point_on_manifold(x[:, [0, 0, 1]]) # unit columns are not enough
    with pytest.raises(ValueError, match="orthonormalize"): m.assert_check_point_on_manifold(2 * x)

def check_projections(m, dtype):
    x, _, _, _ = case(dtype)
    A = randn(12, 3, seed=5, dtype=dtype)
    assert close(m.projx(x), x, dtype) and close(m.projx(-x), -x, dtype) # the representative stays
    assert m.check_point_on_manifold(m.projx(A)) and apart(m.projx(A), torch.linalg.qr(A)[0]) < 1e-5 and A.equal(randn(12, 3, seed=5, dtype=dtype))
    u = m.proju(x, A)
    assert m.check_vector_on_tangent(x, u) and close(m.proju(x, u), u, dtype) and close(m.egrad2rgrad(x, A), u, dtype)

def check_retraction(m, dtype): # of second order, horizontal or not; transport follows it
    x, _, u, v = case(dtype, 1.)
    h = 1e-3 if dtype == torch.float64 else 3e-2
    assert apart(m.retr(x, h * u), carried(x, h * u, x)) < h ** 3
    y, w = m.retr_transp(x, u, v)
    assert m.check_point_on_manifold(y) and close(y, m.retr(x, u), dtype, 10) and m.check_vector_on_tangent(y, w)
    assert close(w, m.transp(x, y, v), dtype, 20) and close(w, m.transp_follow_retr(x, u, v), dtype)
    vertical = x @ randn(3, 3, dtype=dtype)
    assert close(m.retr(x, u + vertical), y, dtype, 20) and close(m.retr_transp(x, u, v + vertical)[1], w, dtype, 20)

def check_gradient(m, dtype):
    x, _, u, v = case(dtype, 1.)
    y = carried(x, u, x).to(dtype)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    m.dist2(a, b).backward()
    assert close(a.grad, -2 * m.logmap(x, y), dtype, 10) and close(b.grad, -2 * m.logmap(y, x), dtype, 10)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (m.dist(a, b) + m.dist2(a, b)).backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()

CHECKS = [f for name, f in list(globals().items()) if name.startswith("check_")]

@both
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__[6:])
def test_check(check, cls, dtype): check(cls(), dtype)

# --- eleven wrong classes; most of them pass geoopt's suite

class ProjectionTransport(Grassmann):
    def transp(self, x, y, v): return self.proju(y, v)
    def retr_transp(self, x, u, v): y = self.retr(x, u); return y, self.transp(x, y, v)
    def expmap_transp(self, x, u, v): y = self.expmap(x, u); return y, self.transp(x, y, v)

class ArccosDistance(Grassmann):
    def dist(self, x, y, *, keepdim=False): return torch.linalg.svdvals(x.mT @ y).clamp(max=1).acos().norm(dim=-1)

class InverseLog(Grassmann):
    def logmap(self, x, y):
        U, s, Vh = torch.linalg.svd((y - x @ (x.mT @ y)) @ torch.linalg.inv(x.mT @ y), full_matrices=False)
        return (U * s.atan()[..., None, :]) @ Vh

class ExpWithoutV(Grassmann):
    def expmap(self, x, u):
        U, s, Vh = torch.linalg.svd(u, full_matrices=False)
        return x @ Vh.mT * s.cos()[..., None, :] + U * s.sin()[..., None, :]

class FlippedExp(Grassmann):
    def expmap(self, x, u): return torch.linalg.qr(super().expmap(x, u))[0]

class StiefelTangent(Grassmann):
    def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5): return self._small(x.mT @ u + u.mT @ x, atol, "proju")

class ChordalDistance(Grassmann):
    def dist(self, x, y, *, keepdim=False): return torch.linalg.svdvals(y - x @ (x.mT @ y)).norm(dim=-1)

class RetractionAsExp(Grassmann):
    def expmap(self, x, u): return self.retr(x, u)

class ProjectionLog(Grassmann):
    def logmap(self, x, y): return self.proju(x, y)

class UnitColumns(Grassmann):
    def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5): return self._small(x.square().sum(-2) - 1, atol, "orthonormalize")

class QRProjection(Grassmann):
    def projx(self, x): return torch.linalg.qr(x)[0]

WRONG = {ProjectionTransport: check_transport_is_parallel, ArccosDistance: check_dist_is_exact_near_0, InverseLog: check_log_is_exact_at_both_ends,
         ExpWithoutV: check_exp_is_the_group, FlippedExp: check_exp_is_the_group, StiefelTangent: check_tangent_check, ChordalDistance: check_dist,
         RetractionAsExp: check_exp_is_the_group, ProjectionLog: check_log_inverts_exp, UnitColumns: check_point_check, QRProjection: check_projections}

def fails(check, m, dtype): # by what it asserts: any other error is one
    try: check(m, dtype)
    except AssertionError: return True
    return False

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_wrong_class_is_found_out_and_every_check_finds_one(dtype):
    found = {wrong: [check for check in CHECKS if fails(check, wrong(), dtype)] for wrong in WRONG}
    assert all(check in found[wrong] for wrong, check in WRONG.items()) and set(sum(found.values(), [])) == set(CHECKS)

# --- geoopt around the class

@both
def test_batches_and_broadcasting(cls, dtype):
    m, (x, _, u, v) = cls(), case(dtype, batch=(2, 4))
    y = m.expmap(x, u)
    for f, args in ((m.expmap, (x, u)), (m.logmap, (x, y)), (m.retr, (x, u)), (m.transp, (x, y, v)), (m.dist, (x, y)), (m.projx, (x + u,))):
        one = torch.stack([torch.stack([f(*(a[i, j] for a in args)) for j in range(4)]) for i in range(2)])
        assert close(f(*args), one, dtype, 10)
    assert m.dist(x[0, 0], y).shape == (2, 4) and m.dist(x, y, keepdim=True).shape == (2, 4, 1, 1) and m.inner(x, u, keepdim=True).shape == (2, 4, 1, 1)
    empty = x[:0]
    assert m.expmap(empty, empty).shape == empty.shape and m.dist(empty, empty).shape == (0, 4) and m.check_point_on_manifold(empty)

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_exact_class_can_be_reversed(dtype):
    m, (x, _, u, _) = GrassmannExact(), case(dtype, 2.)
    y, w = m.retr_transp(x, u, u)
    back, v = m.retr_transp(y, -w, w)
    assert close(back, x, dtype, 20) and close(v, u, dtype, 20) and m.reversible and not Grassmann().reversible

@both
def test_scaled(cls, dtype):
    m, s, (x, _, u, v) = cls(), Scaled(cls(), 2.), case(dtype, 1.)
    y = m.expmap(x, u)
    assert close(s.dist(x, y), 2 * m.dist(x, y), dtype, 10) and close(s.dist2(x, y), 4 * m.dist2(x, y), dtype, 10)
    assert close(s.expmap(x, 2 * u), y, dtype, 10) and close(s.logmap(x, y), 2 * u, dtype, 20) and close(s.retr(x, 2 * u), m.retr(x, u), dtype, 10)
    for name in ("retr_transp", "expmap_transp"):
        assert all(close(a, b, dtype, 10) for a, b in zip(getattr(s, name)(x, 2 * u, v), getattr(m, name)(x, u, v)))
    assert close(s.transp_follow_retr(x, 2 * u, v), m.transp_follow_retr(x, u, v), dtype, 10) and close(s.transp(x, y, v), m.transp(x, y, v), dtype)

@both
def test_product(cls, dtype):
    m = cls()
    product = geoopt.ProductManifold((m, (8, 2)), (geoopt.Sphere(), (5,)))
    point = product.random(3, product.n_elements, dtype=dtype)
    u = product.proju(point, randn(3, product.n_elements, dtype=dtype)) * .2
    end = product.expmap(point, u)
    assert product.check_point_on_manifold(end) and close(product.dist(point, end), product.norm(point, u), dtype, 20)
    assert close(product.logmap(point, end), u, dtype, 20)

@both
def test_random_and_origin(cls, dtype):
    m = cls()
    for x in (m.random(4, 7, 3, dtype=dtype), m.random((4, 7, 3), dtype=dtype), m.origin(4, 7, 3, dtype=dtype)):
        assert x.shape == (4, 7, 3) and x.dtype == dtype and x.manifold is m and m.check_point_on_manifold(x)
    for f in (m.random, m.origin):
        for size in ((), (5,), (5, 10)):
            with pytest.raises(ValueError): f(size)
    torch.manual_seed(0)
    mean = (lambda x: x @ x.mT)(m.random(4000, 5, 2, dtype=dtype).detach()).mean(0)
    assert (mean - .4 * torch.eye(5, dtype=dtype)).abs().max() < .03 # uniform: E xxᵀ = k/n I

@both
def test_copies_and_pickles(cls, dtype):
    p = geoopt.ManifoldParameter(case(dtype)[0], manifold=cls())
    for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))): assert q.equal(p) and type(q.manifold) is cls
    assert repr(Grassmann()) == "Grassmann manifold" and "exact" in repr(GrassmannExact())

@both
def test_many_steps_stay_orthonormal(cls, dtype):
    m, (x, _, u, _) = cls(), case(dtype, .3)
    for _ in range(500): x, u = m.retr_transp(x, u, u)
    assert (x.mT @ x - torch.eye(3, dtype=dtype)).abs().max() < 20 * torch.finfo(dtype).eps and (x.mT @ u).norm() < 100 * torch.finfo(dtype).eps * u.norm()

def functions(m, x, y, u, v): # of a tangent vector z: every map, at a point that moves with it
    move = lambda z: m.expmap(x, m.proju(x, z))
    return {"expmap": lambda z: m.expmap(x, z), "retr": lambda z: m.retr(x, z), "projx": lambda z: m.projx(x + z), "logmap": lambda z: m.logmap(move(z), y),
            "transp": lambda z: m.transp(move(z), y, v), "expmap_transp": lambda z: m.expmap_transp(x, z, v)[1], "retr_transp": lambda z: m.retr_transp(x, z, v)[1],
            "dist2": lambda z: m.dist2(move(z), y), "dist": lambda z: m.dist(move(z), y), "geodesic": lambda z: geodesic(move(z), y, .3)}

def places(m): # tangent vectors z, and what `functions` takes: anywhere, where all singular values are equal or zero, and where all angles are
    x, _, u, v = case(size=.8, n=5, k=2)
    same = m.expmap(x, .5 * torch.linalg.qr(u)[0])
    return {"anywhere": (.1 * randn(5, 2, seed=7), (x, m.expmap(x, u), u, v)), "zero": (torch.zeros_like(x), (x, m.expmap(x, u), u, v)),
            "equal angles": (torch.zeros_like(x), (x, same, u, v)), "equal values": (.4 * torch.linalg.qr(u)[0], (x, same, u, v))}

@pytest.mark.parametrize("place", ["anywhere", "zero", "equal angles", "equal values"])
def test_derivatives_against_differences(place): # GrassmannExact differs in what it calls a retraction
    m, weights = Grassmann(), randn(5, 2, seed=11)
    z, at = places(m)[place]
    for name, f in functions(m, *at).items():
        mix = 1 if name.startswith("dist") else weights
        value = lambda z, f=f, mix=mix: (f(z) * mix).sum()
        z = z.clone().requires_grad_()
        assert torch.autograd.gradcheck(value, (z,), check_forward_ad=True, fast_mode=True), name
        assert torch.autograd.gradgradcheck(value, (z,), check_fwd_over_rev=True, fast_mode=True), name

@pytest.mark.parametrize("cls", CLASSES)
def test_derivatives_with_respect_to_every_argument(cls):
    m, (x, _, u, v) = cls(), case(size=.8, n=6, k=2)
    y = m.expmap(x, u)
    inputs = [t.clone().requires_grad_() for t in (x, u, v)]
    for f in (m.expmap_transp, m.retr_transp): assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)
    inputs = [t.clone().requires_grad_() for t in (x, y, v)]
    for f in (m.transp, lambda x, y, v: m.logmap(x, y)): assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)

@pytest.mark.parametrize("cls", CLASSES)
def test_second_derivatives_on_the_circle(cls): # Gr(1, 2): exp is (cos t, sin t), dist² is t², the polar retraction has tangent t
    m, x, u = cls(), EYE[:2, :1], EYE[:2, 1:2]
    t = torch.tensor(.3, dtype=torch.float64)
    second = lambda f: torch.func.grad(torch.func.grad(f))(t)
    assert abs(second(lambda t: m.expmap(x, t * u)[1, 0]) + math.sin(.3)) < 1e-14
    assert abs(second(lambda t: m.dist2(x, m.expmap(x, t * u))) - 2) < 1e-14
    assert abs(second(lambda t: m.logmap(x, m.expmap(x, t * t * u))[1, 0]) - 2) < 1e-14
    slope = -math.sin(.3) if cls is GrassmannExact else -3 * .3 * (1 + .09) ** -2.5
    assert abs(second(lambda t: m.retr(x, t * u)[1, 0]) - slope) < 1e-14
    with pytest.raises(NotImplementedError, match="first and second"): torch.func.grad(torch.func.grad(torch.func.grad(lambda t: m.expmap(x, t * u)[1, 0])))(t)

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transforms_of_torch_func(dtype): # each against autograd, one example at a time
    m, z = Grassmann(), .3 * randn(3, 5, 2, seed=3, dtype=dtype)
    at = [t.to(dtype) for t in places(m)["anywhere"][1]]
    at[0], at[1] = m.projx(at[0]), m.projx(at[1])
    close_ = lambda a, b: torch.allclose(a, b, rtol=1e-8 if dtype == torch.float64 else 3e-3, atol=1e-10 if dtype == torch.float64 else 3e-3)
    for name, f in functions(m, *at).items():
        if name == "geodesic": continue # checks the values of its arguments, which a map over them cannot
        value = lambda z, f=f: f(z).square().sum() + f(z).sum()
        one = lambda g: torch.stack([g(e) for e in z])
        moved = [e.clone().requires_grad_() for e in z]
        slopes = torch.stack([torch.autograd.grad(value(e), e)[0] for e in moved])
        assert close_(torch.func.vmap(f)(z), one(f)), name
        assert close_(torch.func.vmap(torch.func.grad(value))(z), slopes), name
        assert close_(torch.func.vmap(lambda e, value=value: torch.func.jvp(value, (e,), (at[3],))[1])(z), (slopes * at[3]).sum((-2, -1))), name
        hessians = torch.func.vmap(torch.func.hessian(value))(z)
        assert close_(hessians, torch.stack([torch.autograd.functional.hessian(value, e) for e in z])), name
        assert close_(torch.func.jacrev(torch.func.grad(value))(z[0]), hessians[0]), name

@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("function", ["cos", "sinc", "versin", "rsqrt", "unwind"])
def test_divided_differences_against_exact_ones(function, k): # of functions, in 40 digits
    mp = pytest.importorskip("mpmath").mp
    mp.dps = 40
    exact = {"cos": lambda w: mp.cos(mp.sqrt(w)), "sinc": lambda w: mp.sin(mp.sqrt(w)) / mp.sqrt(w), "versin": lambda w: (mp.cos(mp.sqrt(w)) - 1) / w,
             "rsqrt": lambda w: 1 / mp.sqrt(w), "unwind": lambda c: mp.acos(c) / mp.sqrt(1 - c * c)}[function]
    ours = {"cos": karcher._COS, "sinc": karcher._SINC}.get(function) or getattr(karcher, f"_{function}")
    shift = {"rsqrt": 1, "unwind": 0}.get(function, .2)
    for gap in (1e-9, 1e-3, .06, .07, .3):
        a, b, c = (torch.tensor(shift + .1 + t * gap, dtype=torch.float64) for t in (0, 1, 2.2))
        A, B, C = (mp.mpf(t.item()) for t in (a, b, c))
        first = lambda p, q: (exact(p) - exact(q)) / (p - q)
        assert abs(karcher._difference(ours, a, b).item() / first(A, B) - 1) < 1e-13
        assert abs(karcher._second_difference(ours, *[(a, b, c), (b, c, a), (c, a, b)][k - 1]).item() / ((first(A, B) - first(B, C)) / (A - C)) - 1) < 1e-11

def test_hessian_of_the_squared_distance():
    m, (x, _, u, v) = Grassmann(), case(size=1.)
    y, g = m.expmap(x, u), lambda z: torch.autograd.grad(m.dist2(z, y), z, create_graph=True)[0]
    z = x.clone().requires_grad_()
    hv = torch.autograd.grad((g(z) * v).sum(), z)[0]
    h = 1e-4 # against a difference of gradients carried back, along the geodesic with velocity v
    ends = [m.transp(e, x, -2 * m.logmap(e, y)) for e in (m.expmap(x, h * v), m.expmap(x, -h * v))]
    assert (m.proju(x, hv) - (ends[0] - ends[1]) / (2 * h)).abs().max() < 1e-5

# --- optimizers and samplers: the minimum of a function of subspaces, known beforehand

def problem(cls, dtype, loss):
    m, x = cls(), case(dtype)[0]
    target = carried(x, case(dtype, .9)[2], x).to(dtype)
    p, P = geoopt.ManifoldParameter(x.contiguous().clone(), manifold=m), target @ target.mT
    losses = {"projector": lambda: (p @ p.mT - P).square().sum(), "dist2": lambda: m.dist2(p, target), "trace": lambda: -(p.mT @ P @ p).trace()}
    return p, target, losses[loss]

def solve(optimizer, loss, steps, p, target, stop):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()
    for i in range(steps):
        if i % 10 == 0 and apart(p, target) < stop: break
        optimizer.step(closure)
    assert apart(p, target) < stop and p.is_contiguous() and p.manifold.check_point_on_manifold(p)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)

STOP = {torch.float64: 1e-5, torch.float32: 1e-3}

@both
@pytest.mark.parametrize("loss", ["projector", "dist2", "trace"])
@pytest.mark.parametrize("params", [dict(lr=.1), dict(lr=.02, momentum=.9), dict(lr=.02, momentum=.9, nesterov=True), dict(lr=.02, momentum=.9, dampening=.1),
                                    dict(lr=.1, weight_decay=.1, stabilize=3)], ids=str)
def test_rsgd_converges(params, loss, cls, dtype):
    p, target, f = problem(cls, dtype, loss)
    solve(geoopt.optim.RiemannianSGD([p], **params), f, 2000, p, target, STOP[dtype])

@both
@pytest.mark.parametrize("stabilize", [None, 1])
@pytest.mark.parametrize("params", [dict(lr=3e-2), dict(lr=.1, amsgrad=True)], ids=str)
def test_adam_converges(params, stabilize, cls, dtype): # stabilize=1 projects the point at every step, as later versions of geoopt do
    p, target, f = problem(cls, dtype, "projector")
    solve(geoopt.optim.RiemannianAdam([p], stabilize=stabilize, **params), f, 3000, p, target, STOP[dtype])

@pytest.mark.filterwarnings("ignore:No suitable step size")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("search", ["armijo", "wolfe"])
@pytest.mark.parametrize("cg", ["steepest", "fr", "pr"])
def test_line_search_converges(cg, search, cls):
    p, target, f = problem(cls, torch.float64, "projector")
    optimizer = geoopt.optim.RiemannianLineSearch([p], line_search_method=search, cg_method=cg)
    def closure():
        optimizer.zero_grad()
        value = f()
        value.backward()
        return value.item()
    for _ in range(200):
        if optimizer.step(closure) < 1e-8 or optimizer.last_step_size is None: break
    assert apart(p, target) < 1e-3

class Density(torch.nn.Module): # log density κ tr(xᵀSx)
    def __init__(self, m, kappa):
        super().__init__()
        self.x, self.S, self.kappa = geoopt.ManifoldParameter(m.origin(6, 2, dtype=torch.float64), manifold=m), torch.diag(torch.arange(6.)).double() / 5, kappa
    def forward(self): return self.kappa * (self.x.mT @ self.S @ self.x).trace()

SAMPLERS = {"RHMC": dict(epsilon=.1, n_steps=4), "RSGLD": dict(epsilon=2e-2), "SGRHMC": dict(epsilon=5e-2, n_steps=2, alpha=.5)}

@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_run_on_the_exact_class_only(name):
    torch.manual_seed(0)
    make = getattr(geoopt.samplers, name)
    with pytest.raises(ValueError): make(Density(Grassmann(), 1.).parameters(), **SAMPLERS[name])
    density = Density(GrassmannExact(), 8.)
    sampler, start = make(density.parameters(), **SAMPLERS[name]), density.x.detach().clone()
    values = []
    for _ in range(200): sampler.step(density); values.append(density().item())
    assert density.x.manifold.check_point_on_manifold(density.x) and apart(density.x, start) > .3
    assert sum(values[50:]) / 150 > 8 * 1.1 # uniform subspaces would have κ tr S · 2/6 = 8

def test_leapfrog_is_reversible():
    torch.manual_seed(1)
    density = Density(GrassmannExact(), 2.)
    sampler, start = geoopt.samplers.RHMC(density.parameters(), epsilon=1e-2, n_steps=1), density.x.detach().clone()
    r = GrassmannExact().proju(start, randn(6, 2))
    for epsilon in [1e-2] * 5: # one leapfrog of geoopt is a half kick and a drift; backwards in the mirrored order
        density().backward()
        with torch.no_grad(): sampler._step(density.x, r, epsilon)
        density.x.grad.zero_()
    for _ in range(5):
        with torch.no_grad():
            x, v = density.x.manifold.retr_transp(density.x, -1e-2 * r, r)
            density.x.copy_(x); r.copy_(v)
        density().backward()
        with torch.no_grad(): r.sub_(1e-2 * density.x.manifold.egrad2rgrad(density.x, density.x.grad))
        density.x.grad.zero_()
    assert close(density.x, start, torch.float64, 10)

@both
def test_raw_starts(cls, dtype): # a basis that is not orthonormal, of singular values 2 to 5: the steps land on the manifold, where the subspace is
    m, x = cls(), randn(12, 3, seed=4, dtype=dtype)
    u = randn(12, 3, seed=5, dtype=dtype)
    for y in (m.retr(x, u), m.expmap(x, u), m.retr_transp(x, u, u)[0], m.expmap_transp(x, u, u)[0], m.projx(x)): assert m.check_point_on_manifold(y)
    assert apart(m.expmap(x, 0 * u), torch.linalg.qr(x)[0]) < STOP[dtype]
    p, target = geoopt.ManifoldParameter(x.clone(), manifold=m), case(dtype)[0]
    P = target @ target.mT
    optimizer = geoopt.optim.RiemannianSGD([p], lr=.1)
    for _ in range(500):
        optimizer.zero_grad()
        (-(p.mT @ P @ p).trace()).backward()
        optimizer.step()
    assert m.check_point_on_manifold(p) and apart(p, target) < STOP[dtype]

@pytest.mark.parametrize("cls", CLASSES)
def test_points_of_two_manifolds_are_refused(cls):
    m, x = cls(), EYE[:, :3]
    for y in (EYE[:, :2], EYE[:8, :3]):
        for f in (m.dist, m.dist2, m.logmap, lambda x, y: m.transp(x, y, x), geodesic if y.shape[-2] == 12 else m.dist):
            with pytest.raises(ValueError, match=r"points of Gr\(3, 12\) and Gr\((2, 12|3, 8)\)"): f(*(x, y, .5) if f is geodesic else (x, y))

# --- the Riemannian Hessian and the curvature

@both
def test_the_hessian_is_the_second_derivative_along_geodesics(cls, dtype):
    m, (x, Q, u, v), S = cls(), case(dtype), torch.diag(torch.arange(12.)).to(dtype)
    def f(x): return (x.mT @ S @ x).det() + (x.mT @ S @ x).trace().square()
    def hess(x, u): return m.ehess2rhess(x, *torch.func.jvp(torch.func.grad(f), (x,), (u,)), u)
    second = torch.func.hessian(lambda t: f(m.expmap(x, t * u)))(torch.zeros((), dtype=dtype))
    size = 1e4 * (1 if dtype == torch.float64 else 1e2)
    assert abs((u * hess(x, u)).sum() - second) < size * torch.finfo(dtype).eps * abs(second)
    assert close((v * hess(x, u)).sum(), (u * hess(x, v)).sum(), dtype, size) and m.check_vector_on_tangent(x, hess(x, u) / second)
    assert close(hess(x @ Q, u @ Q), hess(x, u) @ Q, dtype, size)

def test_the_hessian_is_that_of_pymanopt():
    pymanopt = pytest.importorskip("pymanopt")
    (x, _, u, v), egrad = case(), randn(12, 3, seed=8)
    theirs = pymanopt.manifolds.Grassmann(12, 3).euclidean_to_riemannian_hessian(*(t.numpy() for t in (x, egrad, v, u)))
    assert close(Grassmann().ehess2rhess(x, egrad, v, u), torch.from_numpy(theirs), torch.float64)

@both
def test_curvature(cls, dtype):
    m, eps = cls(), 200 * torch.finfo(dtype).eps
    x, Q, u, v = case(dtype, batch=(50,))
    K = m.sectional_curvature(x, u, v)
    assert K.shape == (50,) and K.min() >= -eps and K.max() <= 2 + eps and m.sectional_curvature(x, u, v, keepdim=True).shape == (50, 1, 1)
    assert close(m.sectional_curvature(x @ Q, u @ Q, (v + 2 * u) @ Q), K, dtype, 100) # of the plane, in any basis
    x, _, u, v = case(dtype, k=1, batch=(9,))
    assert close(m.sectional_curvature(x, u, v), torch.ones(9), dtype, 10) # lines: a sphere
    assert m.sectional_curvature(x[0], u[0], u[0]).isnan()

def test_curvature_is_how_geodesics_approach_each_other():
    x, _, u, v = case(batch=(20,), seed=4)
    u = u / u.norm(dim=(-2, -1), keepdim=True)
    v = v - (u * v).sum((-2, -1), keepdim=True) * u
    v, t, m = v / v.norm(dim=(-2, -1), keepdim=True), 2e-2, Grassmann()
    apart = m.dist2(m.expmap(x, t * u), m.expmap(x, t * v))
    assert ((2 * t ** 2 - apart) * 3 / t ** 4 - m.sectional_curvature(x, u, v)).abs().max() < 2e-3
