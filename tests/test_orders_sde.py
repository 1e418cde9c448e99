"""Strong and weak orders of the SDE solvers, measured from both sides, on rising and falling clocks.

Strong orders come with a confidence interval (jackknife over groups of paths, level 1e-6 a test) that must lie within 0.2 of
the order claimed. Weak orders are measured without sampling: the noise of a step is replaced by Gauss-Hermite nodes and the
expectation carried back from step to step, so that nothing but the method's error is left.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.interpolate import make_interp_spline
from torch import Tensor

import sdediff as sd
from sdediff.noise import Stream
from sdediff.solvers import Orders, stochastic_heun
from sdediff.solvers.diffusions import with_correction, with_derivative

LEVEL = 1e-6
TOLERANCE = 0.2
CLOCKS = pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
SOLVERS = [sd.EulerMaruyama(), sd.Milstein(), sd.StochasticHeun(), sd.SRIW1(), sd.SRI2(), sd.Weak2()]


def named(value) -> str:
    return type(value).__name__


class Clock(sd.SDE):
    """An SDE in its own time u, which rises along the solve: u = t on a rising clock, 1 - t on a falling one."""

    def __init__(self, sign: int = 1):
        self.direction = sign
        self.ends = (0.0, 1.0) if sign > 0 else (1.0, 0.0)

    def f(self, x, t):
        return self.direction * self.drift_at(x, t if self.direction > 0 else 1 - t)

    def g(self, x, t):
        return self.noise_at(x, t if self.direction > 0 else 1 - t)


def solved(process, solver, x, steps, noise):
    t0, t1 = process.ends
    return sd.solve(process, x, solver=solver, t0=t0, t1=t1, steps=steps, noise=noise).x


# ---- slopes, and whether they are the order claimed -------------------------------------------------------------------------


def slope_of(errors: Tensor) -> Tensor:
    """The order from errors (..., L) at step sizes that halve, by least squares."""
    k = torch.arange(errors.shape[-1], dtype=torch.float64)
    k = k - k.mean()
    return -(errors.log2() * k).sum(-1) / (k * k).sum()


def measured(errors: Tensor, groups: int = 64) -> tuple[float, float]:
    """The order from the errors (L, M) of M paths, and the half-width of its confidence interval (jackknife)."""
    by_group = errors.reshape(len(errors), groups, -1).mean(2).T  # (groups, L)
    whole = slope_of(by_group.mean(0))
    left_out = slope_of((by_group.sum(0) - by_group) / (groups - 1))
    error = float(((groups - 1) / groups * (left_out - left_out.mean()).square().sum()).sqrt())
    return float(whole), error * float(stats.t.isf(LEVEL / 2, groups - 1))


def agrees(errors: Tensor, claimed: float) -> bool:
    """True where the whole interval lies within the tolerance of the claim."""
    order, half = measured(errors)
    print(f"order {order:.3f} ± {half:.3f}, claimed {claimed}")
    return abs(order - claimed) + half < TOLERANCE


def test_the_measure_of_an_order():
    """On errors of known order it says so; the interval holds the truth and shrinks as the root of the paths."""
    generator = torch.Generator().manual_seed(0)
    size = 1 + torch.rand(4, 25_600, generator=generator, dtype=torch.float64)
    errors = size * torch.tensor([[2.0**-k] for k in range(4)], dtype=torch.float64) ** 1.5
    order, half = measured(errors)
    assert abs(order - 1.5) < half < 0.05
    assert 0.35 < half / measured(errors[:, :6400])[1] < 0.7
    assert agrees(errors, 1.5) and not agrees(errors, 1.25) and not agrees(errors, 1.75)


# ---- strong orders: closed forms, multiplicative noise -----------------------------------------------------------------------


class Closed(Clock):
    """Three coordinates, each a closed form in its own W: geometric, cubic, and hyperbolic with a g that depends on time.

    dx = a x dt + b x dW; dx = -x(1 - x²)/4 dt + (1 - x²)/2 dW; x = exp(t) sinh(W + c): dx = 3x/2 dt + √(exp(2t) + x²) dW.
    """

    a, b = 1.01, 0.87
    start = (0.5, 0.5, math.sinh(0.3))

    def drift_at(self, x, t):
        p, q, r = x.unbind(1)
        return torch.stack([self.a * p, -0.25 * q * (1 - q * q), 1.5 * r], 1)

    def noise_at(self, x, t):
        p, q, r = x.unbind(1)
        return torch.stack([self.b * p, 0.5 * (1 - q * q), torch.sqrt(torch.exp(2 * t) + r * r)], 1)

    def exact(self, w):
        p, q, _ = self.start
        up, down = (1 + q) * torch.exp(w[:, 1]) + q - 1, (1 + q) * torch.exp(w[:, 1]) + 1 - q
        geometric = p * torch.exp(self.a - 0.5 * self.b**2 + self.b * w[:, 0])
        return torch.stack([geometric, up / down, math.e * torch.sinh(w[:, 2] + 0.3)], 1)


def closed_errors(solver, sign: int, paths: int = 2048, levels=(32, 64, 128, 256)) -> list[Tensor]:
    """For each coordinate the errors (L, M) at the end."""
    process, path = Closed(sign), sd.BrownianPath(0, 1, 10)
    x = torch.tensor([process.start], dtype=torch.float64).repeat(paths, 1)
    exact = process.exact(path.open(x).increment(*process.ends))
    errors = torch.stack([(solved(process, solver, x, n, path) - exact).abs() for n in levels])
    return list(errors.unbind(2))


@CLOCKS
@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_strong_order(solver, sign):
    """Each of three closed forms, to within 0.2 with its interval."""
    assert all(agrees(errors, solver.orders.strong) for errors in closed_errors(solver, sign))


def spoil(**changes) -> sd.SRK:
    """SRIW1 with some coefficients changed, claiming the same orders."""
    good = sd.SRIW1()
    fields = {name: getattr(good.tableau, name) for name in ("a", "b", "alpha", "c1", "beta", "a1", "b1")}
    return sd.SRK(sd.Tableau(**(fields | changes)), good.orders)


class WrongMilstein(sd.Milstein):
    """The correction with h in place of |h|: right on a rising clock, wrong on a falling one."""

    def step(self, process, x, s, t, noise):
        g, slope = with_derivative(lambda y: process.diffusion(y, s), x)
        dw = noise.increment(s, t)
        return x + process.drift(x, s) * (t - s) + g @ (dw + 0.5 * slope * (dw * dw - (t - s)))

    def prepare(self, process, grid, noise):
        return sd.Solver.prepare(self, process, grid, noise)


class Unconverted(sd.StochasticHeun):
    """Heun's method on the Itô drift."""

    def prepare(self, process, grid, noise):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stochastic_heun, "with_correction", lambda diffusion, x: (diffusion(x), None))
            return super().prepare(process, grid, noise)


BETA = sd.SRIW1().tableau.beta
STRONG_MUTANTS = {
    "no space-time integral": (spoil(beta=[*BETA[:2], [0, 0, 0, 0], BETA[3]]), 1),
    "no triple integral": (spoil(beta=[*BETA[:3], [0, 0, 0, 0]]), 1),
    "one stage spoiled": (spoil(b1=[[], [1 / 2], [-1, 0], [-5, 3, 1]]), 1),
    "drift at the wrong place": (spoil(a=[[], [1 / 2]]), 1),
    "Milstein's sign of h": (WrongMilstein(), -1),
    "Itô drift in Heun's method": (Unconverted(), 1),
    "Euler-Maruyama as Milstein": (sd.EulerMaruyama(), 1),
}


@pytest.mark.parametrize("name", STRONG_MUTANTS)
def test_strong_mutants_are_rejected(name):
    solver, sign = STRONG_MUTANTS[name]
    claimed = 1.0 if isinstance(solver, sd.EulerMaruyama) else solver.orders.strong
    assert not all(agrees(errors, claimed) for errors in closed_errors(solver, sign, levels=(32, 64, 128)))


def test_wrong_milstein_is_right_on_a_rising_clock():
    assert all(agrees(errors, 1.0) for errors in closed_errors(WrongMilstein(), 1, levels=(32, 64, 128)))


# ---- strong orders: additive noise that does not flatter ---------------------------------------------------------------------


class Coupled(Clock):
    """dx = (sin 2y - x, cos 2x - y/2 + u) du + G(u) dW, G diagonal or 2 × 3. Its strong Taylor scheme is written out below."""

    def __init__(self, sign: int = 1, dense: bool = False):
        super().__init__(sign)
        self.dense = dense

    def drift_at(self, x, u):
        p, q = x.unbind(1)
        return torch.stack([torch.sin(2 * q) - p, torch.cos(2 * p) - 0.5 * q + u], 1)

    def matrix(self, u):
        u = torch.as_tensor(u, dtype=torch.float64)
        if self.dense:
            rows = [[1 + u, 0.5 * torch.ones_like(u), -u], [torch.sin(u), 1 - 0.5 * u, 0.6 * torch.ones_like(u)]]
        else:
            rows = [[1 + u, torch.zeros_like(u)], [torch.zeros_like(u), torch.cos(u)]]
        return torch.stack([torch.stack(row) for row in rows])

    def noise_at(self, x, u):
        matrix = self.matrix(u)
        return sd.Dense(matrix[None]) if self.dense else matrix.diagonal()[None]

    def taylor(self, x: Tensor, steps: int, stream: Stream) -> Tensor:
        """The strong Taylor scheme of order 1.5 for additive noise (Kloeden and Platen 1992, section 10.4), in time u."""
        h, m = 1 / steps, 3 if self.dense else 2
        for k in range(steps):
            u = k * h
            s, t = (u, u + h) if self.direction > 0 else (1 - u, 1 - u - h)
            dw, dz = stream.with_integral(s, t, torch.Size((len(x), m)))
            g, later = self.matrix(u), self.matrix(u + 1e-6)
            rate, gram = (later - g) / 1e-6, g @ g.T
            p, q = x.unbind(1)
            f = self.drift_at(x, u)

            def along(v, p=p, q=q):  # the Jacobian of f times v
                return torch.stack(
                    [2 * torch.cos(2 * q) * v[:, 1] - v[:, 0], -2 * torch.sin(2 * p) * v[:, 0] - 0.5 * v[:, 1]], 1
                )

            curved = torch.stack([-4 * torch.sin(2 * q) * gram[1, 1], -4 * torch.cos(2 * p) * gram[0, 0] + 0 * q], 1)
            second = along(f) + 0.5 * curved + torch.tensor([0.0, 1.0], dtype=torch.float64)
            x = x + f * h + dw @ g.T + along(dz @ g.T) + 0.5 * h * h * second + (h * dw - dz) @ rate.T
        return x


_known: dict = {}


def coupled_errors(solver, sign: int, dense: bool, paths: int = 1024) -> Tensor:
    """The errors (L, M) at the end against the Taylor scheme with 16 times as many steps."""
    process, path = Coupled(sign, dense), sd.BrownianPath(0, 1, 12)
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64).repeat(paths, 1)
    if (sign, dense) not in _known:
        _known[sign, dense] = process.taylor(x, 1024, path.open(x))
    return torch.stack(
        [(solved(process, solver, x, n, path) - _known[sign, dense]).norm(dim=1) for n in (8, 16, 32, 64)]
    )


ADDITIVE = [*SOLVERS, sd.SRA1()]


@CLOCKS
@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_strong_order_for_additive_noise(solver, sign):
    """Two coupled coordinates, G(t) diagonal, against a scheme of another kind with steps 16 times finer."""
    assert agrees(coupled_errors(solver, sign, dense=False), solver.orders.strong_additive)


@CLOCKS
@pytest.mark.parametrize("solver", [sd.EulerMaruyama(), sd.StochasticHeun(), sd.SRA1()], ids=named)
def test_strong_order_for_additive_dense_noise(solver, sign):
    """The same with G(t) a 2 × 3 matrix."""
    assert agrees(coupled_errors(solver, sign, dense=True), solver.orders.strong_additive)


class Decaying(Clock):
    """dx = (b/√(1+u) - x/(2(1+u))) du + ab/√(1+u) dW, whose solution is (x_0 + b(u + aW))/√(1+u)."""

    a, b = 0.1, 0.05

    def drift_at(self, x, u):
        return self.b / torch.sqrt(1 + u) - x / (2 * (1 + u))

    def noise_at(self, x, u):
        return self.a * self.b / torch.sqrt(1 + u)


@CLOCKS
@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_strong_order_on_an_additive_closed_form(solver, sign):
    """Linear, with next to no noise: it flatters orders by up to 1, so one side only; but the errors are small ones."""
    process, path, x = Decaying(sign), sd.BrownianPath(0, 1, 3), torch.ones(256, 1, dtype=torch.float64)
    w = path.open(x).increment(*process.ends)
    exact = (x + process.b * (1 + process.a * w)) / 2**0.5
    errors = torch.stack([(solved(process, solver, x, n, path) - exact).abs().mean() for n in (16, 32, 64)])
    assert float(slope_of(errors)) > solver.orders.strong_additive - 0.05
    assert float(errors[-1]) < (3e-3 if solver.orders.ode == 1 else 3e-5)


def spoil_additive(**changes) -> sd.SRK:
    good = sd.SRA1()
    fields = {name: getattr(good.tableau, name) for name in ("a", "b", "alpha", "c1", "beta")}
    return sd.SRK(sd.Tableau(**(fields | changes)), good.orders)


ADDITIVE_MUTANTS = {
    "no noise in the stage": spoil_additive(b=[[], [0]]),
    "half of the noise in the stage": spoil_additive(b=[[], [3 / 4]]),
    "no integral of g": spoil_additive(beta=[[1, 0], [0, 0], [0, 0], [0, 0]]),
    "stage times exchanged": spoil_additive(c1=[0, 1]),
}


@pytest.mark.parametrize("name", ADDITIVE_MUTANTS)
def test_additive_mutants_are_rejected(name):
    solver = ADDITIVE_MUTANTS[name]
    assert not agrees(coupled_errors(solver, 1, dense=False), 1.5)


def test_integrals_that_are_not_those_of_the_path_are_rejected(monkeypatch):
    """Strong order 1.5 needs integrals that levels share: with fresh ones it is lost."""
    from sdediff.brownian import _PathStream

    assert agrees(coupled_errors(sd.SRA1(), 1, dense=False), 1.5)
    monkeypatch.setattr(_PathStream, "with_integral", Stream.with_integral)
    assert not agrees(coupled_errors(sd.SRA1(), 1, dense=False), 1.5)


PLANE = sd.densities.Mixture(
    2 * torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]], dtype=torch.float64),
    std=0.7,
    weights=torch.tensor([0.3, 0.3, 0.4]),
).to(dtype=torch.float64)


@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_strong_order_on_a_reversal(solver):
    """The reverse SDE of a three-mode mixture, exact score, against another method of order 1.5 with 16 times the steps."""
    sde = sd.VP(1.0, 3.0)
    score = sd.ExactScore(sde, PLANE)
    path, x = sd.BrownianPath(0.3, 1, 14), score.sample(2048, 1.0, seed=0)

    def end(method, steps):
        return sd.solve(sde.reverse(score), x, solver=method, t0=1.0, t1=0.3, steps=steps, noise=path).x

    finer = sd.SRI2() if isinstance(solver, (sd.SRA1, sd.SRIW1)) else sd.SRA1()
    if named(finer) not in _known:
        _known[named(finer)] = end(finer, 1024)
    errors = torch.stack([(end(solver, n) - _known[named(finer)]).norm(dim=1) for n in (16, 32, 64)])
    assert agrees(errors, solver.orders.strong_additive)


# ---- weak orders, without sampling -------------------------------------------------------------------------------------------


class Quadrature(Stream):
    """In place of a step's normals, the nodes of a Gauss-Hermite rule, for every state: 8 for the increment, 3 for H."""

    def __init__(self, states: int):
        (z1, w1), (z2, w2) = (np.polynomial.hermite_e.hermegauss(n) for n in (8, 3))
        self.weights = torch.from_numpy(np.outer(w1 / w1.sum(), w2 / w2.sum()).ravel())
        self.z1 = torch.from_numpy(np.repeat(z1, 3)).repeat(states).reshape(-1, 1)
        self.z2 = torch.from_numpy(np.tile(z2, 8)).repeat(states).reshape(-1, 1)

    def normal(self, shape=None):
        return self.z2

    def unit(self, s, t, shape=None):
        return self.z1


def expectation(process, solver, grid: Tensor, nodes: Tensor, values, to=lambda y: y, back=lambda x: x):
    """y -> E[values(x_N) | x_0 = to(y)], a column each: quadrature in every step, quintic splines in y between the steps."""
    noise = Quadrature(len(nodes))
    start = to(nodes).repeat_interleave(len(noise.weights)).reshape(-1, 1)
    u = values(to(nodes))  # (S, functionals)
    for k in range(len(grid) - 2, -1, -1):
        with torch.no_grad():
            x = solver.prepare(process, grid[k : k + 2], noise)(0, start).reshape(-1)
        spline = make_interp_spline(nodes.numpy(), u.numpy(), k=5)
        at = back(x).clamp(nodes[0], nodes[-1])
        carried = torch.from_numpy(spline(at.numpy())).reshape(len(nodes), len(noise.weights), -1)
        u = (carried * noise.weights[:, None]).sum(1)
    return make_interp_spline(nodes.numpy(), u.numpy(), k=5)


class Hyperbolic(Clock):
    """x = sinh(Y) with dY = -Y du + exp(-u/2) dW: a Gaussian in disguise, with a g of state and time."""

    def drift_at(self, x, u):
        return -torch.asinh(x) * torch.sqrt(1 + x * x) + 0.5 * torch.exp(-u) * x

    def noise_at(self, x, u):
        return torch.exp(-0.5 * u) * torch.sqrt(1 + x * x)

    @staticmethod
    def exact(y: float, values) -> Tensor:
        z, w = np.polynomial.hermite_e.hermegauss(80)
        mean, std = y * math.exp(-1), math.sqrt(math.exp(-1) - math.exp(-2))
        return torch.from_numpy(w / w.sum()) @ values(torch.sinh(mean + std * torch.from_numpy(z)))


def functionals(x: Tensor) -> Tensor:
    y = torch.asinh(x)
    return torch.stack([y * y, 4 * torch.tanh(y), torch.cos(2 * y)], -1)  # tanh feels a half-integer order the most


def hyperbolic_errors(solver, sign: int = 1, levels=(32, 64, 128)) -> list[Tensor]:
    """The errors of the three functionals' expectations at each number of steps."""
    process, nodes, start = Hyperbolic(sign), torch.linspace(-6, 6, 200, dtype=torch.float64), 0.6
    errors = []
    for n in levels:
        grid = torch.linspace(*process.ends, n + 1, dtype=torch.float64)
        mean = expectation(process, solver, grid, nodes, functionals, torch.sinh, torch.asinh)(start)
        errors.append(torch.from_numpy(mean) - process.exact(start, functionals))
    return errors


def agrees_weakly(errors: list[Tensor], claimed: float) -> bool:
    """The order of the largest of several errors, at each halving of the step: one alone may change its sign on the way."""
    sizes = torch.stack([e.abs().max() for e in errors])
    orders = (sizes[:-1] / sizes[1:]).log2()
    print(f"orders {[round(v, 3) for v in orders.tolist()]}, claimed {claimed}")
    return bool(((orders - claimed).abs() < TOLERANCE).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_weak_order(solver):
    """Three functionals of a nonlinear SDE with an exact law; what is measured is the method's error and nothing else.

    The SRI methods converge with order 1.5 here, though they are often said to have weak order 2.
    """
    assert agrees_weakly(hyperbolic_errors(solver), solver.orders.weak)


class Unspread(sd.Weak2):
    """Platen's method without its last term."""

    def step(self, process, x, s, t, noise):
        h, root, dw = t - s, abs(t - s) ** 0.5, noise.increment(s, t)
        f, g = process.drift(x, s), process.diffusion(x, s)
        ahead, drifted, spread = x + f * h + g @ dw, x + f * h, g @ torch.full_like(x, root)
        outer = process.diffusion(drifted + spread, t) @ dw + process.diffusion(drifted - spread, t) @ dw
        return x + 0.5 * h * (f + process.drift(ahead, t)) + 0.25 * (outer + 2 * (g @ dw))

    def prepare(self, process, grid, noise):
        return sd.Solver.prepare(self, process, grid, noise)


WEAK_MUTANTS = {
    "no last term in Platen's method": (Unspread(), 2.0),
    "Milstein as order 2": (sd.Milstein(), 2.0),
    "stochastic Heun as order 2": (sd.StochasticHeun(), 2.0),
    "SRIW1 as order 2": (sd.SRIW1(), 2.0),
    "Weak2 as order 1.5": (sd.Weak2(), 1.5),
    "Itô drift in Heun's method": (Unconverted(), 1.0),
}


@pytest.mark.parametrize("name", WEAK_MUTANTS)
def test_weak_mutants_are_rejected(name):
    solver, claimed = WEAK_MUTANTS[name]
    assert not agrees_weakly(hyperbolic_errors(solver, levels=(32, 64)), claimed)


class Geometric(Clock):
    """dx = a x du + b x dW: E x_N^k is (E R^k)^N, with R the factor of one step."""

    a, b = 1.01, 0.87

    def drift_at(self, x, u):
        return self.a * x

    def noise_at(self, x, u):
        return self.b * x


@CLOCKS
@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_weak_order_of_moments(solver, sign):
    """The first two moments of geometric Brownian motion, exactly; a linear problem may flatter, so one side only."""
    process, one, errors = Geometric(sign), torch.ones(24, 1, dtype=torch.float64), []
    for n in (256, 512):
        grid = torch.linspace(*process.ends, n + 1, dtype=torch.float64)[:2]
        noise = Quadrature(1)
        with torch.no_grad():
            factor = solver.prepare(process, grid, noise)(0, one).reshape(-1)
        moments = torch.stack([noise.weights @ factor, noise.weights @ factor**2]) ** n
        exact = torch.tensor([math.exp(process.a), math.exp(2 * process.a + process.b**2)], dtype=torch.float64)
        errors.append((moments - exact).abs())
    orders = (errors[0] / errors[1]).log2()
    assert float(orders.min()) > solver.orders.weak - 0.1


LINE = sd.densities.Mixture(
    torch.tensor([[-1.0], [1.2]], dtype=torch.float64), std=0.6, weights=torch.tensor([0.4, 0.6])
)


def reversal_errors(solver, levels=(16, 32, 64)) -> list[Tensor]:
    """Errors of three expectations under the law that a reversal ends in, started from the exact law at t = 1."""
    sde = sd.VP(1.0, 3.0)
    score = sd.ExactScore(sde, LINE.to(dtype=torch.float64))
    back, nodes = sde.reverse(score), torch.linspace(-8, 8, 300, dtype=torch.float64)

    def values(x):
        return torch.stack([torch.cos(2 * x), torch.sin(2 * x), 0.1 * x**4], -1)

    def mean(t, at):
        fine = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        return score.log_prob(fine[:, None], t).exp() * (fine[1] - fine[0]) @ at(fine)

    out = []
    for n in levels:
        grid = torch.linspace(1.0, 0.2, n + 1, dtype=torch.float64)
        carried = expectation(back, solver, grid, nodes, values)
        out.append(mean(1.0, lambda x, c=carried: torch.from_numpy(c(x.numpy()))) - mean(0.2, values))
    return out


@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_weak_order_on_a_reversal(solver):
    """The reverse SDE of a mixture with its exact score: from the exact law at t = 1 to the exact law at t = 0.2."""
    claimed = solver.orders.weak_additive
    assert agrees_weakly(reversal_errors(solver), solver.orders.weak if claimed is None else claimed)


# ---- exact relations ---------------------------------------------------------------------------------------------------------


class Matrix(Clock):
    """Dense noise that depends on state and time."""

    def drift_at(self, x, u):
        return torch.sin(x) + u

    def noise_at(self, x, u):
        p, q = x.unbind(1)
        rows = torch.stack([torch.cos(p), u * torch.sin(q), torch.sin(p) * torch.cos(q)], 1)
        return sd.Dense(torch.stack([rows, 1 + 0.1 * rows.flip(1)], 1))


class Crossed(Clock):
    """Diagonal noise in which g_0 depends on x_1."""

    def drift_at(self, x, u):
        return -x

    def noise_at(self, x, u):
        return torch.stack([1 + 0.1 * x[:, 1] ** 2, 0.3 * torch.ones_like(x[:, 1])], 1)


@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_a_mirrored_process_takes_the_mirrored_steps(solver):
    """The same process told on a falling clock, with the same numbers, gives the same states: signs of h, |h|, stage times."""
    takes = {"EulerMaruyama": (Closed, Coupled, Matrix, Crossed), "StochasticHeun": (Closed, Coupled, Matrix, Crossed)}
    for kind in takes.get(named(solver), (Coupled,) if isinstance(solver, sd.SRA1) else (Closed, Coupled)):
        x = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)[:, : 3 if kind is Closed else 2].repeat(20, 1)
        up, down = (solved(kind(sign), solver, x, 7, sd.PerSample(range(20))) for sign in (1, -1))
        assert float((up - down).abs().max()) < 1e-13
        assert float((up - x).abs().min()) > 1e-6


def test_corrections_and_derivatives_are_those_of_the_formula():
    """Σ G_jk ∂_j G_ik by hand, for a matrix and for a diagonal that crosses; and g' where it does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    for process in (Matrix(), Crossed(), Coupled(dense=True), Coupled()):
        with torch.no_grad():
            g, correction = with_correction(lambda y, p=process: p.diffusion(y, 0.3), x)
        assert not any(isinstance(v, Tensor) and v.requires_grad for v in vars(g).values())
        for i, state in enumerate(x):

            def matrix(y, p=process):
                noise = p.diffusion(y[None], 0.3)
                return noise.matrix[0] if isinstance(noise, sd.Dense) else torch.diag(noise.value.expand(1, 2)[0])

            jacobian = torch.autograd.functional.jacobian(matrix, state)  # (d, m, d)
            expected = torch.einsum("jk,ikj->i", matrix(state), jacobian)
            seen = torch.zeros(2, dtype=torch.float64) if correction is None else correction[i]
            assert float((seen - expected).abs().max()) < 1e-13
    y = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        _, slope = with_derivative(lambda y: Closed().diffusion(y, 0.5), y)
    by_hand = torch.stack([0.87 + 0 * y[:, 0], -y[:, 1], y[:, 2] / torch.sqrt(math.e + y[:, 2] ** 2)], 1)
    assert float((slope - by_hand).abs().max()) < 1e-14


def rows(entries, count: int, width: int) -> Tensor:
    return torch.tensor(
        [[*row, *[0.0] * (width - len(row))] for row in entries] or [[0.0] * width] * count, dtype=torch.float64
    )


def conditions(solver: sd.SRK) -> dict[str, float]:
    """How far a tableau is from each condition for strong order 1.5 (Rößler 2010), named by what it multiplies e = 1 with."""
    tab, n, m = solver.tableau, len(solver.tableau.alpha), len(solver.tableau.c1)
    a, b = rows(tab.a, n, n), rows(tab.b, n, m)
    alpha, c1 = torch.tensor(tab.alpha, dtype=torch.float64), torch.tensor(tab.c1, dtype=torch.float64)
    beta = torch.tensor(tab.beta, dtype=torch.float64)
    out = {"alpha": alpha.sum() - 1, "alpha a": alpha @ a.sum(1) - 0.5, "alpha b": alpha @ b.sum(1) - 1}
    out |= {"alpha b²": alpha @ b.sum(1) ** 2 - 1.5}

    def each(name, vector, targets):
        for k, target in enumerate(targets):
            out[f"beta{k + 1} {name}"] = beta[k] @ vector - target

    each("1", torch.ones(m, dtype=torch.float64), (1, 0, 0, 0))
    each("c1", c1, (1, 0, -1, 0))
    if not tab.additive:
        a1, b1 = rows(tab.a1, m, n), rows(tab.b1, m, m)
        each("a1", a1.sum(1), (1, 0, -1, 0))
        each("b1", b1.sum(1), (0, 1, 0, 0))
        each("b1²", b1.sum(1) ** 2, (1, 0, -1, 2))
        each("b1 b1", b1 @ b1.sum(1), (0, 0, 0, 1))
        out["a1 b"] = 0.5 * beta[0] @ (a1 @ b.sum(1)) + beta[2] @ (a1 @ b.sum(1)) / 3
    return {name: abs(float(value)) for name, value in out.items()}


@pytest.mark.parametrize("solver", [sd.SRA1(), sd.SRIW1(), sd.SRI2()], ids=named)
def test_tableaus_meet_the_order_conditions(solver):
    """All of them, and no coefficient can be changed without breaking one (or the method's consistency)."""
    assert max(conditions(solver).values()) < 1e-14
    fields = {name: getattr(solver.tableau, name) for name in ("a", "b", "alpha", "c1", "beta", "a1", "b1")}
    changed = 0
    for name, value in fields.items():
        table = value if name not in ("alpha", "c1") else [value]
        for i, row in enumerate(table):
            for j in range(len(row)):
                spoiled = [list(r) for r in table]
                spoiled[i][j] += 0.1
                changed += 1
                try:
                    tableau = sd.Tableau(**(fields | {name: spoiled if name not in ("alpha", "c1") else spoiled[0]}))
                except ValueError:
                    continue
                assert max(conditions(sd.SRK(tableau, Orders())).values()) > 1e-3, f"{name}[{i}][{j}]"
    assert changed == {"SRA1": 14, "SRIW1": 33, "SRI2": 41}[named(solver)]


def test_methods_coincide_where_they_should():
    """Constant additive noise: SRIW1 is SRA1, Milstein is Euler-Maruyama, Platen's method is Heun's."""
    sde = sd.VP(2.0, 2.0)
    back = sde.reverse(sd.ExactScore(sde, PLANE))
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    twins = [(sd.SRIW1(), sd.SRA1()), (sd.Milstein(), sd.EulerMaruyama()), (sd.Weak2(), sd.StochasticHeun())]
    for one, other in twins:
        a, b = (sd.solve(back, x, solver=s, t1=0.1, steps=9, noise=sd.BrownianPath(0, 1, 3)).x for s in (one, other))
        assert float((a - b).abs().max()) < 1e-12
    flow = sde.probability_flow(sd.ExactScore(sde, PLANE))
    ralston = sd.RungeKutta([[], [3 / 4]], [1 / 3, 2 / 3], order=2)
    same = [(sd.SRA1(), ralston), (sd.SRIW1(), ralston), (sd.StochasticHeun(), sd.Heun()), (sd.Weak2(), sd.Heun())]
    for one, other in same:
        a, b = (sd.solve(flow, x, solver=s, t1=0.1, steps=9).x for s in (one, other))
        assert torch.equal(a, b)


@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_ode_order(solver):
    """On the flow of the mixture, from both sides, against the classical method of order 4 with 32 times the steps."""
    sde = sd.VP(1.0, 3.0)
    flow = sde.probability_flow(sd.ExactScore(sde, PLANE))
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = sd.solve(flow, x, solver=sd.RK4(), t0=1.0, t1=0.2, steps=2048).x
    errors = torch.stack(
        [
            (sd.solve(flow, x, solver=solver, t0=1.0, t1=0.2, steps=n).x - fine).norm(dim=1).mean()
            for n in (64, 128, 256)
        ]
    )
    assert abs(float(slope_of(errors)) - solver.orders.ode) < 0.1


EVALUATIONS = {"EulerMaruyama": 1, "Milstein": 1, "StochasticHeun": 2, "SRA1": 2, "SRIW1": 2, "SRI2": 3, "Weak2": 2}


@pytest.mark.parametrize("solver", ADDITIVE, ids=named)
def test_evaluations(solver):
    """As many a step as the docstring says, counted where they happen, on a linear and on a general reversal."""

    class General(sd.SDE):
        def f(self, x, t):
            return -0.5 * x

        def g(self, x, t):
            return torch.ones_like(x)

    calls = 0

    def score(x, t):
        nonlocal calls
        calls += 1
        return -x

    x = torch.zeros(6, 2)
    for process in (sd.VP(), General()):
        calls = 0
        stats_ = sd.solve(process.reverse(score), x, solver=solver, t1=0.1, steps=5, seed=0).stats
        assert stats_["nfe"] == stats_["score_calls"] == calls == 5 * EVALUATIONS[named(solver)]


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_gradients_flow_through_the_steps(solver):
    """Geometric Brownian motion: every step multiplies, so dx_T/dx_0 = x_T/x_0, and the derivative by b by differences."""
    x = torch.linspace(0.5, 2, 8, dtype=torch.float64).reshape(8, 1).requires_grad_()

    def end(b: Tensor, start: Tensor) -> Tensor:
        process = Geometric()
        process.b = b
        return sd.solve(
            process, start, solver=solver, t0=0.0, t1=1.0, steps=6, noise=sd.BrownianPath(0, 1, 0), differentiable=True
        ).x

    b = torch.tensor(0.87, dtype=torch.float64, requires_grad=True)
    final = end(b, x)
    by_x, by_b = torch.autograd.grad(final.sum(), (x, b))
    with torch.no_grad():
        assert float((by_x - final / x).abs().max()) < 1e-12 * float(by_x.abs().max())
        difference = (end(b + 1e-6, x) - end(b - 1e-6, x)).sum() / 2e-6
    assert abs(float(by_b - difference)) < 1e-7 * abs(float(difference))


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_inference_mode_gives_the_same(solver):
    x = torch.tensor([Closed.start], dtype=torch.float64).repeat(5, 1)
    expected = solved(Closed(), solver, x, 4, sd.BrownianPath(0, 1, 0))
    with torch.inference_mode():
        assert torch.equal(solved(Closed(), solver, x.clone(), 4, sd.BrownianPath(0, 1, 0)), expected)


# ---- what they refuse --------------------------------------------------------------------------------------------------------


class Norm(Clock):
    """g is one number per sample that depends on all coordinates, and on none of them at 0."""

    def drift_at(self, x, u):
        return 1 + 0 * x

    def noise_at(self, x, u):
        return torch.sqrt(1 + x.square().sum(1, keepdim=True))


class Batch(Clock):
    """g depends on the other samples."""

    def drift_at(self, x, u):
        return 0 * x

    def noise_at(self, x, u):
        return 1 + x.mean(0, keepdim=True) ** 2 + 0 * x


OWN = [sd.Milstein(), sd.SRIW1(), sd.SRI2(), sd.Weak2()]


@pytest.mark.parametrize("solver", OWN, ids=named)
def test_what_needs_its_own_noise_refuses_other(solver):
    """Named with the coordinates, at entry or, where the start hides it, after the first step; in float32 too."""
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(4, 2, dtype=dtype)
        with pytest.raises(ValueError, match=r"g_0 depends on x_1.*StochasticHeun"):
            solved(Crossed(), solver, x, 3, sd.Keyed(0))
        for start in (x, 0 * x):
            with pytest.raises(ValueError, match=r"g_\d depends on x_\d"):
                solved(Norm(), solver, start, 3, sd.Keyed(0))
        with pytest.raises(ValueError, match="other samples"):
            solved(Batch(), solver, x, 3, sd.Keyed(0))
        with pytest.raises(TypeError, match=r"diagonal noise.*Dense.*\(4, 2, 3\).*EulerMaruyama"):
            solved(Matrix(), solver, x, 3, sd.Keyed(0))
    image = torch.rand(3, 2, 4, 4)
    assert bool(torch.isfinite(solved(Geometric(), solver, image, 3, sd.Keyed(0))).all())


def test_additive_methods_refuse_multiplicative_noise():
    x = torch.ones(4, 2, dtype=torch.float64)
    for process in (Crossed(), Matrix(), Geometric()):
        with pytest.raises(ValueError, match=r"SRA1 needs additive noise.*SRIW1"):
            solved(process, sd.SRA1(), x, 3, sd.Keyed(0))


class Cube(Stream):
    """The nodes of a Gauss-Hermite rule in m dimensions, for one step from one state."""

    def __init__(self, m: int):
        z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(6))
        self.z = torch.cartesian_prod(*[z] * m)
        self.weights = torch.cartesian_prod(*[w / w.sum()] * m).prod(1)

    def normal(self, shape=None):
        return self.z


@CLOCKS
@pytest.mark.parametrize("kind", [Crossed, Matrix])
def test_heun_takes_any_noise(kind, sign):
    """One step's mean and covariance are f|h| and GG'|h| of the Itô process up to O(h²), by quadrature over its noise.

    Without the conversion the mean would be off by O(h).
    """
    process, noise = kind(sign), Cube(3 if kind is Matrix else 2)
    start = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    x, u = start.expand(len(noise.weights), -1), 0.25
    g = process.diffusion(start, process.ends[0] + sign * u)
    gram = torch.stack([g.gram(v[None])[0] for v in torch.eye(2, dtype=torch.float64)])
    f = process.drift_at(start, torch.tensor(u, dtype=torch.float64))[0]
    errors = []
    for h in (2**-7, 2**-8):
        grid = process.ends[0] + sign * torch.tensor([u, u + h], dtype=torch.float64)
        with torch.no_grad():
            step = sd.StochasticHeun().prepare(process, grid, noise)(0, x) - start
        mean = noise.weights @ step
        second = torch.einsum("b,bi,bj->ij", noise.weights, step, step)
        errors.append(torch.cat([mean - f * h, (second - gram * h).flatten()]).abs())
    ratio = errors[0].max() / errors[1].max()
    assert 3.7 < float(ratio) < 4.3 and float(errors[0].max()) < 10 * 2**-14


def test_bad_tableaus():
    good = {name: getattr(sd.SRIW1().tableau, name) for name in ("a", "b", "alpha", "c1", "beta", "a1", "b1")}
    for change, message in (
        ({"alpha": [0.5, 0.6]}, "alpha sum to 1.1; a consistent method needs 1"),
        ({"beta": [[0, 0.5, 0, 0], *[[0] * 4] * 3]}, "beta 1 sum to 0.5"),
        ({"a": [[1], [1]]}, "a is not explicit"),
        ({"b1": [[], [1]]}, "b1 has 2 rows; it needs 4"),
        ({"beta": [[1, 0, 0, 0]] * 3}, "four rows of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            sd.Tableau(**(good | change))
