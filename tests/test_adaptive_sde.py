"""Adaptive steps for SDEs: rejection does not bend the noise, orders from both sides, laws, counts, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sdediff as sd
from sdediff.solvers import adaptive_sde, walk
from sdediff.solvers.adaptive_sde import BridgedPath, _Steps

LEVEL = 1e-6
MU, S2, BETA = 0.7, 0.09, 3.0
CLOCKS = pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Clock(sd.SDE):
    """An SDE in its own time u, which rises along the solve: u = t on a rising clock, 1 - t on a falling one."""

    def __init__(self, drift, noise, sign: int = 1):
        self.drift_at, self.noise_at, self.direction = drift, noise, sign
        self.ends = (0.0, 1.0) if sign > 0 else (1.0, 0.0)

    def f(self, x, t):
        return self.direction * self.drift_at(x, t if self.direction > 0 else 1 - t)

    def g(self, x, t):
        return self.noise_at(x, t if self.direction > 0 else 1 - t)

    def solve(self, x, solver, save_at=None, **kw):
        t0, t1 = self.ends
        if save_at is not None:
            kw["save_at"] = save_at if self.direction > 0 else [1 - t for t in save_at]
        return sd.solve(self, x, solver=solver, t0=t0, t1=t1, **kw)


class Redrawing(BridgedPath):
    """The mutant: what was rejected is forgotten, and the shorter step gets fresh noise."""

    def settle(self, accepted):
        pass


# ---- the path is a Brownian motion, whatever is rejected --------------------------------------------------------------------


def picky(monkeypatch):
    """Rejects every step whose increment is large: the hardest case for the path's law."""

    def attempt(self, x, t, t_new):
        self.dw = self.path.increment(t, t_new)
        return x + self.dw, self.dw

    monkeypatch.setattr(_Steps, "attempt", attempt)


def brownian_p_values(sign: int, n: int = 20_000) -> tuple[list[float], float]:
    """Tests that W has independent increments N(0, h) over uneven intervals: Kolmogorov-Smirnov, and correlations."""
    times = [0.0, 0.1, 0.37, 0.4, 1.0]
    process = Clock(lambda x, u: 0 * x, lambda x, u: 1.0, sign)
    solver = sd.AdaptiveHeun(rtol=1e-12, atol=0.3)
    solver.controller = walk.Controller(1.5, memory=0.0, safety=0.99)  # often asks for too much
    out = process.solve(torch.zeros(n, 1, dtype=torch.float64), solver, save_at=times, seed=1)
    share = float(out.stats["rejected"].double().mean() / out.stats["steps"].double().mean())
    parts = (out.xs.diff(dim=0)[..., 0].T / torch.tensor(times, dtype=torch.float64).diff().sqrt()).numpy()  # (n, 4)
    p = [float(stats.kstest(part, "norm").pvalue) for part in parts.T]
    p += [float(2 * min(stats.chi2.cdf(q, n), stats.chi2.sf(q, n))) for q in (parts**2).sum(0)]
    for products in (parts[:, i] * parts[:, j] for i in range(4) for j in range(i)):
        p.append(float(2 * stats.norm.sf(abs(products.mean()) * math.sqrt(n))))
    return p, share


@CLOCKS
def test_the_path_is_brownian_though_large_increments_are_rejected(sign, monkeypatch):
    """14 tests at level LEVEL; with n = 20,000 they see a variance that is off by 8 % (chance of missing it 1 %)."""
    picky(monkeypatch)
    p, share = brownian_p_values(sign)
    assert share > 0.3
    assert min(p) > LEVEL


def test_redrawing_would_be_seen(monkeypatch):
    picky(monkeypatch)
    monkeypatch.setattr(adaptive_sde, "BridgedPath", Redrawing)
    p, _ = brownian_p_values(1, n=2000)
    assert min(p) < 1e-30


class Pushing(BridgedPath):
    """Another mutant: the bridge forgets to take what has been used from what is known ahead."""

    def settle(self, accepted):
        before = self.gains.clone()
        super().settle(accepted)
        if before.shape == self.gains.shape:
            self.gains = before


def test_a_bridge_that_double_counts_would_be_seen(monkeypatch):
    """Its path jumps, and no step is short enough for a jump; the right path is walked to its end with the same numbers."""
    picky(monkeypatch)
    p, _ = brownian_p_values(1, n=2000)
    assert min(p) > LEVEL
    monkeypatch.setattr(adaptive_sde, "BridgedPath", Pushing)
    with pytest.raises(sd.SolveError, match=r"became too small to go on for \d+ of 2000 samples"):
        brownian_p_values(1, n=2000)


# ---- strong order, by the sum of the increments that were used --------------------------------------------------------------


class Recording(BridgedPath):
    """Adds up the increments of accepted steps: the path's end."""

    total: torch.Tensor

    def __init__(self, noise, x, t, shape, samples):
        super().__init__(noise, x, t, shape, samples)
        Recording.total = x.new_zeros(shape)

    def settle(self, accepted):
        used = torch.where(accepted.reshape(-1, *[1] * (self.dw.ndim - 1)), self.dw, 0.0)
        Recording.total[self.samples.ids] += used
        super().settle(accepted)


A, B, X0 = 1.01, 0.6, 0.5
GBM = (lambda x, u: A * x, lambda x, u: B * x, lambda w: X0 * torch.exp((A - B * B / 2) + B * w))
SINH = (
    lambda x, u: 0.125 * x + 0.5 * torch.sqrt(1 + x * x),
    lambda x, u: 0.5 * torch.sqrt(1 + x * x),
    lambda w: torch.sinh(0.5 + 0.5 * w + math.asinh(X0)),
)


def strong_errors(monkeypatch, problem, sign, tolerances, n):
    """(L, n) errors of the end of each path against the exact solution on it, and the mean numbers of steps."""
    monkeypatch.setattr(adaptive_sde, "BridgedPath", Recording)
    drift, noise, exact = problem
    errors, steps = [], []
    for tol in tolerances:
        out = Clock(drift, noise, sign).solve(
            torch.full((n, 1), X0, dtype=torch.float64), sd.AdaptiveHeun(rtol=1e-9, atol=tol), seed=5
        )
        errors.append((out.x - exact(Recording.total)).abs()[:, 0])
        steps.append(float(out.stats["steps"].double().mean()))
    return torch.stack(errors), steps


@pytest.mark.parametrize("problem, n", [(GBM, 3200), (SINH, 4800)], ids=["gbm", "sinh"])
def test_strong_order_with_multiplicative_noise(problem, n, monkeypatch):
    """Against closed forms on the path that was used: order 1 ± 0.2 in the number of steps, the interval within it."""
    errors, steps = strong_errors(monkeypatch, problem, 1, [4e-3, 1e-3, 2.5e-4], n)
    slopes = []
    for group in errors.reshape(3, 40, -1).mean(2).T.numpy():  # 40 groups of paths
        slopes.append(-np.polyfit(np.log(steps), np.log(group), 1)[0])
    half = stats.t.isf(LEVEL / 2, 39) * np.std(slopes, ddof=1) / math.sqrt(40)
    print(f"order {np.mean(slopes):.3f} ± {half:.3f}, steps {steps}")
    assert abs(np.mean(slopes) - 1) + half < 0.2, f"order {np.mean(slopes):.3f} ± {half:.3f}"


@pytest.mark.parametrize("problem", [GBM, SINH], ids=["gbm", "sinh"])
def test_a_falling_clock_gives_the_same_paths(problem, monkeypatch):
    """The same process on a falling clock, with the same numbers: the same errors to rounding."""
    rising, falling = (strong_errors(monkeypatch, problem, sign, [4e-3], 200)[0] for sign in (1, -1))
    assert torch.allclose(rising, falling, rtol=1e-6, atol=1e-9)


def test_a_wrong_conversion_would_be_seen(monkeypatch):
    def wrong(process, slope, c):
        return slope + process.direction * c

    monkeypatch.setattr(adaptive_sde, "_stratonovich", wrong)
    errors, _ = strong_errors(monkeypatch, GBM, 1, [1e-2, 2.5e-3], 200)
    assert float(errors[1].mean()) > 0.5 * float(errors[0].mean())


# ---- laws -------------------------------------------------------------------------------------------------------------------


def mean(t):
    return MU * math.exp(-BETA * t / 2)


def var(t):
    return 1 + (S2 - 1) * math.exp(-BETA * t)


def linear_gaussian(eta=1.0):
    sde = sd.VP(BETA, BETA)

    def score(x, t):
        return -(x - MU * torch.exp(-BETA * t / 2)) / (1 + (S2 - 1) * torch.exp(-BETA * t))

    return sde.reverse(sd.FunctionScore(score, sde), eta)


def reverse_samples(tol, n, seed, eta=1.0):
    x = mean(1.0) + math.sqrt(var(1.0)) * randn(n, 1, seed=seed)
    return sd.solve(
        linear_gaussian(eta), x, solver=sd.AdaptiveHeun(rtol=1e-9, atol=tol), t0=1.0, t1=1e-3, seed=seed
    )  # fmt: skip


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_the_law_of_a_reversal(eta, assert_law):
    """Mean and variance of the reversed linear-Gaussian process; with n = 30,000 it sees a variance off by 6 %.

    Redrawing after rejection takes 40 % off it, at any tolerance.
    """
    out = reverse_samples(0.01, 30_000, 3, eta)
    assert float(out.stats["rejected"].double().mean()) > 5
    assert_law(out.x, mean(1e-3), var(1e-3))


def test_redrawing_would_bend_the_law_of_a_reversal(assert_law, monkeypatch):
    monkeypatch.setattr(adaptive_sde, "BridgedPath", Redrawing)
    with pytest.raises(AssertionError):
        assert_law(reverse_samples(0.01, 3000, 3).x, mean(1e-3), var(1e-3))


def test_fewer_evaluations_than_euler_maruyama_on_the_ring():
    """Within-mode variance of the ring: at 85 evaluations closer than 100 uniform Euler-Maruyama steps, by a factor 1.7."""
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.ring(8))
    back, law = sde.reverse(score), score.law(1e-3)
    x = score.law(1.0).sample(8000, seed=1).double()

    def error(out):
        residual = out.x.unsqueeze(1) - law.means
        nearest = residual.square().sum(2).min(1).values
        return abs(float(nearest.mean()) / (2 * float(law.variances[0, 0])) - 1)

    adaptive = sd.solve(back, x, solver=sd.AdaptiveHeun(rtol=1e-3, atol=0.1), t0=1.0, t1=1e-3, seed=2)
    fixed = sd.solve(back, x, solver=sd.EulerMaruyama(), t0=1.0, t1=1e-3, steps=100, seed=2)
    assert float(adaptive.stats["nfe"].double().mean()) < 100
    assert error(adaptive) < error(fixed) / 1.7


class Turning(sd.SDE):
    """A two-dimensional Ornstein-Uhlenbeck process with a rotation and correlated noise."""

    def f(self, x, t):
        return -x + 2 * torch.stack([x[:, 1], -x[:, 0]], 1)

    def g(self, x, t):
        return sd.Dense(torch.tensor([[[1.0, 0.0, 0.4], [0.5, 0.7, 0.0]]], dtype=x.dtype))


def test_additive_matrix_noise(assert_law):
    """Two coordinates driven by three noises: the covariance of the exact solution, by quadrature."""
    g = np.array([[1.0, 0.0, 0.4], [0.5, 0.7, 0.0]])
    u = np.linspace(0, 1, 2001)
    rotation = np.stack([np.cos(2 * u), np.sin(2 * u), -np.sin(2 * u), np.cos(2 * u)], 1).reshape(-1, 2, 2)
    turn = np.exp(-u)[:, None, None] * rotation
    covariance = np.trapezoid(turn @ (g @ g.T) @ turn.transpose(0, 2, 1), u, axis=0)
    x = torch.zeros(20_000, 2, dtype=torch.float64)
    out = sd.solve(Turning(), x, solver=sd.AdaptiveHeun(rtol=1e-9, atol=0.01), t0=0.0, t1=1.0, seed=4)
    for direction in (np.array([1.0, 0.0]), np.array([0.6, 0.8]), np.array([0.6, -0.8])):
        assert_law(out.x @ torch.from_numpy(direction), 0.0, float(direction @ covariance @ direction))


# ---- per sample -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [sd.PerSample, sd.Keyed], ids=["PerSample", "Keyed"])
def test_a_sample_does_not_depend_on_its_batch(recipe):
    """With a seed per sample: alone or among others, the same path and steps, the same state to rounding."""
    sde = sd.VP()
    back = sde.reverse(sd.ExactScore(sde, sd.densities.ring(8)))
    x, solver = randn(6, 2), sd.AdaptiveHeun(rtol=1e-3, atol=0.05)
    seeds = [11, 5, 7, 3, 2, 9]
    together = sd.solve(back, x, solver=solver, t0=1.0, t1=1e-3, noise=recipe(seeds))
    assert int(together.stats["rejected"].min()) > 0 and len(set(together.stats["steps"].tolist())) > 1
    for i in (0, 3, 5):
        alone = sd.solve(back, x[i : i + 1], solver=solver, t0=1.0, t1=1e-3, noise=recipe([seeds[i]]))
        assert alone.stats["steps"] == together.stats["steps"][i]
        assert torch.allclose(alone.x[0], together.x[i], rtol=0, atol=1e-8)


def test_seeds_repeat_and_differ():
    one, two, other = (reverse_samples(0.05, 10, 3), reverse_samples(0.05, 10, 3), reverse_samples(0.05, 10, 4))
    assert torch.equal(one.x, two.x) and not torch.allclose(one.x, other.x)


def test_counts_and_conditions():
    """Two evaluations for a step that is accepted, one for one that is not; the condition goes with its rows."""
    rows = torch.zeros(12, dtype=torch.long)
    sde = sd.VP(BETA, BETA)

    def score(x, t, cond):
        std, ids = cond
        assert len(std) == len(ids) == len(x) == len(t)
        rows.add_(torch.bincount(ids, minlength=12))
        return -x / (1 + (std.square() - 1) * torch.exp(-BETA * t))

    cond = (torch.linspace(0.02, 1.5, 12, dtype=torch.float64).reshape(12, 1), torch.arange(12))
    out = sd.solve(
        sde.reverse(sd.FunctionScore(score, sde)), randn(12, 1), solver=sd.AdaptiveHeun(), cond=cond, t0=1.0, t1=0.0, seed=0
    )  # fmt: skip
    assert torch.equal(out.stats["nfe"], rows)
    assert torch.equal(rows, 2 * out.stats["steps"] + out.stats["rejected"])
    assert int(out.stats["rejected"].sum()) > 0


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2)], ids=str)
def test_shapes_and_dtypes(shape):
    """One sample's law does not depend on how its coordinates are laid out: the same seed, the same numbers."""
    for dtype in (torch.float64, torch.float32):
        flat = randn(7, math.prod(shape[1:]), dtype=dtype)
        out, plain = (
            sd.solve(linear_gaussian(), x, solver=sd.AdaptiveHeun(), t0=1.0, t1=0.0, noise=sd.PerSample(range(7)))
            for x in (flat.reshape(shape), flat)
        )
        assert out.x.shape == shape and out.x.dtype == dtype
        assert torch.allclose(out.x.reshape(flat.shape), plain.x, atol=1e-5 if dtype == torch.float32 else 1e-12)


# ---- failures and refusals --------------------------------------------------------------------------------------------------


def test_failures_are_named():
    nan_late = Clock(lambda x, u: torch.where((u > 0.5) & (x > -50), math.nan, -x), lambda x, u: 1.0)
    with pytest.raises(sd.NonFiniteError, match=r"4 of 4 samples|of 4 samples") as caught:
        nan_late.solve(randn(4, 1), sd.AdaptiveHeun(), seed=0)
    assert caught.value.t == pytest.approx(0.5, abs=1e-9) and bool(caught.value.state.isfinite().all())
    with pytest.raises(sd.SolveError, match="max_steps = 3 for"):
        Clock(lambda x, u: -x, lambda x, u: 1.0).solve(randn(4, 1), sd.AdaptiveHeun(max_steps=3), seed=0)
    flow = sd.RectifiedFlow()
    back = flow.reverse(sd.ExactScore(flow, sd.densities.Mixture([[0.0]], std=1.0)))
    with pytest.raises(sd.NonFiniteError, match="a little inside"):
        sd.solve(back, randn(3, 1), solver=sd.AdaptiveHeun(), t0=1.0, t1=0.1, seed=0)


@CLOCKS
@pytest.mark.parametrize("rtol", [2e-2, 1e-4])
def test_it_refuses_what_does_not_show_where_all_start(sign, rtol):
    """At 0 these derivatives vanish: it went on, with a standard deviation of 5 where .5 is right."""
    solver, matrix = sd.AdaptiveHeun(rtol=rtol, atol=rtol), torch.tensor([[0.6, 0.3], [0.0, 0.5]], dtype=torch.float64)
    dense = Clock(lambda x, u: -x, lambda x, u: sd.Dense(matrix * (1 + x[:, :1, None] ** 2)), sign)
    with pytest.raises(ValueError, match="AdaptiveHeun needs additive noise"):
        dense.solve(torch.zeros(5, 2, dtype=torch.float64), solver, seed=0)
    crossed = Clock(lambda x, u: -x, lambda x, u: 0.5 + x.flip(-1) ** 2, sign)
    with pytest.raises(ValueError, match=r"g_[01] depends on x_[01]"):
        crossed.solve(torch.zeros(5, 2, dtype=torch.float64), solver, seed=0)
    own = Clock(lambda x, u: -x, lambda x, u: 0.5 + 0.1 * x**2, sign)
    assert own.solve(torch.zeros(5, 2, dtype=torch.float64), solver, seed=0).stats["steps"].min() > 1


def test_what_it_refuses():
    mixed = Clock(lambda x, u: -x, lambda x, u: 1 + 0.1 * x.flip(1))
    with pytest.raises(ValueError, match="depends on x_"):
        mixed.solve(randn(4, 2), sd.AdaptiveHeun())
    matrix = Clock(lambda x, u: -x, lambda x, u: sd.Dense(torch.diag_embed(1 + 0.1 * x)))
    with pytest.raises(ValueError, match="additive"):
        matrix.solve(randn(4, 2), sd.AdaptiveHeun())
    plain = Clock(lambda x, u: -x, lambda x, u: 1.0)
    path = sd.BrownianPath(0.0, 1.0, 3)
    for noise in (path, sd.Antithetic(path)):
        with pytest.raises(ValueError, match="cannot follow a BrownianPath"):
            plain.solve(randn(4, 2), sd.AdaptiveHeun(), noise=noise)
