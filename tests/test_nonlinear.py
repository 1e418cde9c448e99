"""Processes with kernels that are not Gaussian: each kernel against its own SDE, its sampler, and special cases by hand."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import sdediff as sd
from sdediff.bessel import log_bessel
from sdediff.lineages import lineages
from sdediff.verify.operator import fokker_planck as operator

LEVEL = 1e-7
"""False-alarm rate of one statistical check; this file makes fewer than 60."""

GBM, CIR, JACOBI = sd.GeometricBrownianMotion(0.3, 0.6, t_max=2.0), sd.CIR(1.2, 0.8, 0.7), sd.Jacobi(1.5, 2.5, 0.8)
CASES = {  # process, a start, times, points inside
    "gbm": (GBM, 1.3, (0.01, 0.4, 1.0), np.linspace(0.4, 4.0, 9)),
    "cir": (CIR, 0.5, (0.01, 0.4, 5.0), np.linspace(0.2, 2.0, 9)),
    "cir that reaches 0": (sd.CIR(0.5, 0.8, 1.2), 0.5, (0.2, 2.0), np.linspace(0.1, 2.0, 9)),
    "jacobi": (JACOBI, 0.3, (0.02, 0.4, 5.0), np.linspace(0.1, 0.9, 9)),
    "jacobi that reaches both": (sd.Jacobi(0.5, 0.7), 0.6, (0.1, 1.0), np.linspace(0.1, 0.9, 9)),
}
cases = pytest.mark.parametrize("name", CASES)


def nodes(name, count):
    """Points over the domain, closest at the walls, where a density may grow like a power."""
    u = np.linspace(0, 1, count)
    if "jacobi" in name:
        return np.unique(np.clip(special.betainc(5, 5, u), 1e-14, 1 - 1e-14))
    return np.unique(np.clip(50.0 * u**8, 1e-14, None))


def column(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64).reshape(-1, 1)


# ---- kernels ------------------------------------------------------------------------------------------------------


@cases
def test_a_kernel_solves_the_equation_of_its_own_process(name):
    r"""∂_t log p = L*p/p at every point: the drift and diffusion that f and g give, and no other."""
    sde, x0, times, points = CASES[name]
    start = column([x0])
    for t in times:
        x = column(points)
        h = 1e-4 * t

        def log_p(u, start=start):
            return sde.marginal(start, u)

        rate = sum(w * log_p(t + k * h).log_prob(x) for k, w in ((-2, 1), (-1, -8), (1, 8), (2, -1))) / (12 * h)
        step = 1e-3 * x * (1 - x) if "jacobi" in name else 1e-3 * x
        flux_rate = numeric_operator(sde, log_p(t), x, step)
        keep = log_p(t).log_prob(x) > -12
        assert keep.sum() >= 2
        scale = 1 + flux_rate.abs()
        assert ((rate - flux_rate) / scale)[keep].abs().max() < 2e-4


def numeric_operator(sde, kernel, x, h):
    """L*p/p on the line by central differences of fourth order, of fp and of ½ D p."""
    p0 = kernel.log_prob(x)

    def ratio(y):
        return (kernel.log_prob(y) - p0).exp()

    def drift(y):
        return sde.drift(y, 0.0)[:, 0] * ratio(y)

    def spread(y):
        return 0.5 * sde.diffusion(y, 0.0).gram(torch.ones_like(y))[:, 0] * ratio(y)

    step = h[:, 0]
    first = (drift(x - 2 * h) - 8 * drift(x - h) + 8 * drift(x + h) - drift(x + 2 * h)) / (12 * step)
    second = (-spread(x - 2 * h) + 16 * spread(x - h) - 30 * spread(x) + 16 * spread(x + h) - spread(x + 2 * h)) / (
        12 * step**2
    )
    return second - first


@cases
def test_a_kernel_has_unit_mass_the_right_mean_and_composes(name):
    sde, x0, times, _ = CASES[name]
    t = times[-2]
    start = column([x0])
    x = nodes(name, 20001)
    p = np.exp(sde.marginal(start, t).log_prob(column(x)).numpy())
    assert abs(integrate.simpson(p, x=x) - 1) < 2e-3
    drift = {"gbm": x0 * math.exp(0.3 * t)}
    if isinstance(sde, sd.CIR):
        drift[name] = sde.theta + (x0 - sde.theta) * math.exp(-sde.kappa * t)
    if isinstance(sde, sd.Jacobi):
        rest = sde.a / (sde.a + sde.b)
        drift[name] = rest + (x0 - rest) * math.exp(-0.5 * sde.speed * (sde.a + sde.b) * t)
    assert abs(integrate.simpson(p * x, x=x) - drift[name]) < 1e-3 * max(1, drift[name])
    # Chapman-Kolmogorov, with the middle state at the nodes
    ends = column(np.linspace(0.3, 0.7, 3))
    direct = sde.marginal(start, 1.5 * t if 1.5 * t <= sde.t_max else sde.t_max).log_prob(ends).exp().numpy()
    rest_of_it = min(1.5 * t, sde.t_max) - t
    middle = column(x[1:-1])
    for end, wanted in zip(ends, direct, strict=True):
        onward = sde.marginal(middle, rest_of_it).log_prob(end.reshape(1, 1).expand_as(middle)).exp().numpy()
        found = integrate.simpson(p[1:-1] * onward, x=x[1:-1])
        assert abs(found - wanted) < 3e-3 * wanted + 1e-6


@cases
def test_scores_are_the_gradients_of_kernels(name):
    sde, x0, times, points = CASES[name]
    for t in times:
        kernel, x = sde.marginal(column([x0]), t), column(points)
        h = 1e-5 * x
        rise = (kernel.log_prob(x + h) - kernel.log_prob(x - h)) / (2 * h[:, 0])
        keep = kernel.log_prob(x) > -12
        assert torch.allclose(kernel.score(x)[keep, 0], rise[keep], rtol=1e-6, atol=1e-5)


@contextlib.contextmanager
def warned():
    """Warnings are errors, those too that torch gives once a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        torch.set_warn_always(before)


@cases
def test_kernels_have_derivatives_in_time(name):
    """By autograd and by differences; and a time that wants a gradient is no cause for a warning."""
    sde, x0, times, points = CASES[name]
    x, t = column(points), times[1]
    time, h = torch.tensor(t, dtype=torch.float64, requires_grad=True), 1e-5 * t
    with warned():
        kernel = sde.marginal(column([x0]), time)
        (rate,) = torch.autograd.grad(kernel.log_prob(x).sum(), time)
        drawn = kernel.sample(seed=0)
    early, late = (sde.marginal(column([x0]), s).log_prob(x).sum() for s in (t - h, t + h))
    assert float(rate) == pytest.approx(float(late - early) / (2 * h), rel=1e-5)
    assert torch.equal(drawn, sde.marginal(column([x0]), t).sample(seed=0))


def test_the_shortest_times_are_named():
    """Also where they want a gradient."""
    for sde, t, said in ((sd.Jacobi(), 2e-5, "not 2e-05"), (sd.CIR(), 1e-14, "t = 1e-14 is too short")):
        with warned(), pytest.raises(ValueError, match=said):
            sde.marginal(column([0.5]), torch.tensor(t, dtype=torch.float64, requires_grad=True))


@cases
def test_samples_have_the_law_of_the_kernel(name):
    """20,000 of them: Kolmogorov-Smirnov at LEVEL sees a distance of 0.025."""
    sde, x0, times, _ = CASES[name]
    n = 20_000
    for t in times[1:]:
        kernel = sde.marginal(torch.full((n, 1), x0, dtype=torch.float64), t)
        x = kernel.sample(seed=1)[:, 0].numpy()
        one = sde.marginal(column([x0]), t)
        at = nodes(name, 8001)
        cdf = integrate.cumulative_simpson(np.exp(one.log_prob(column(at)).numpy()), x=at, initial=0)
        assert stats.kstest(x, lambda v, at=at, cdf=cdf: np.interp(v, at, cdf / cdf[-1])).pvalue > LEVEL
        assert torch.equal(kernel.sample(seed=1), kernel.sample(seed=1))


def test_kernels_by_hand():
    t = 0.7
    x = column([0.3, 1.0, 2.5])
    lognormal = sd.GeometricBrownianMotion(0.2, 0.5).marginal(column([1.5]), t)
    scale = 1.5 * math.exp((0.2 - 0.125) * t)
    assert np.allclose(
        lognormal.log_prob(x), stats.lognorm.logpdf(x[:, 0], 0.5 * math.sqrt(t), scale=scale), atol=1e-12
    )
    c = CIR.xi**2 * -math.expm1(-CIR.kappa * t) / (4 * CIR.kappa)
    chi = stats.ncx2(4 * CIR.kappa * CIR.theta / CIR.xi**2, 0.5 * math.exp(-CIR.kappa * t) / c)
    assert np.allclose(CIR.marginal(column([0.5]), t).log_prob(x), chi.logpdf(x[:, 0] / c) - math.log(c), atol=1e-10)
    from_zero = CIR.marginal(column([0.0]), t)
    gamma = stats.gamma(2 * CIR.kappa * CIR.theta / CIR.xi**2, scale=2 * c)
    assert np.allclose(from_zero.log_prob(x), gamma.logpdf(x[:, 0]), atol=1e-10)
    # Legendre: a = b = 1, and two terms by hand where the others are below 1e-12
    p = sd.Jacobi(1.0, 1.0).marginal(column([0.2]), 9.0).log_prob(column([0.7])).exp()
    assert abs(float(p) - (1 + 3 * math.exp(-9.0) * (-0.6) * 0.4)) < 1e-10
    long = sd.Jacobi(1.5, 2.5, 1.0, t_max=50.0).marginal(column([0.9]), 50.0)
    y = column([0.1, 0.5])
    assert np.allclose(long.log_prob(y), stats.beta(1.5, 2.5).logpdf(y[:, 0]), atol=1e-12)


def test_log_bessel():
    z = torch.logspace(-8, 4, 25, dtype=torch.float64)
    for nu in (-0.7, 0.0, 2.5, 49.9):
        scaled = special.ive(nu, z.numpy())
        known = scaled > 1e-280
        assert np.allclose(log_bessel(nu, z)[known], np.log(scaled[known]) + z.numpy()[known], rtol=1e-12, atol=1e-12)
    # across the two changes of method: from the series, and to the uniform expansion
    tiny = log_bessel(49.9, torch.tensor([1e-5, 2e-5], dtype=torch.float64))
    assert abs(float(tiny[1] - tiny[0]) - 49.9 * math.log(2)) < 1e-10
    for at in (20.0, 60.0, 400.0):
        with np.errstate(divide="ignore"):
            exact = math.log(special.ive(60.0, at)) + at
        assert abs(float(log_bessel(60.0, torch.tensor([at], dtype=torch.float64))) - exact) < 1e-9
    at = torch.tensor([0.3, 5.0, 80.0], dtype=torch.float64, requires_grad=True)
    for nu in (0.4, 70.0):
        (slope,) = torch.autograd.grad(log_bessel(nu, at).sum(), at)
        h = 1e-5
        rise = (log_bessel(nu, at.detach() + h) - log_bessel(nu, at.detach() - h)) / (2 * h)
        assert torch.allclose(slope, rise, rtol=1e-6)


def test_lineages():
    """Against the equations of the death process: dq_m/dτ = λ_{m+1} q_{m+1} - λ_m q_m; and E[x] decays at its known rate."""
    theta, tau, h = 2.3, 0.3, 1e-4
    q, after, before = (lineages(theta, tau + d)[:40] for d in (0.0, h, -h))
    m = np.arange(40)
    death = 0.5 * m * (m - 1 + theta)
    inflow = np.append(death[1:] * q[1:], 0.0)
    assert np.allclose((after - before) / (2 * h), inflow - death * q, atol=1e-5)
    assert abs(lineages(theta, tau).sum() - 1) < 1e-12
    # E[M/(M + θ)] = e^{-θτ/2}: what is left of x_0 in the mean
    whole = lineages(theta, tau)
    n = np.arange(len(whole))
    assert abs((whole * n / (n + theta)).sum() - math.exp(-0.5 * theta * tau)) < 1e-12


# ---- the SDEs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [GBM, CIR, JACOBI], ids=lambda s: type(s).__name__)
def test_the_divergence_is_that_of_the_diffusion(sde):
    x = column(np.linspace(0.05, 0.95, 7)).requires_grad_()
    square = sde.diffusion(x, 0.1).gram(torch.ones_like(x))
    (expected,) = torch.autograd.grad(square.sum(), x)
    assert torch.allclose(sde.gram_divergence(x.detach(), 0.1), expected, atol=1e-12)


@pytest.mark.parametrize("sde", [CIR, JACOBI], ids=lambda s: type(s).__name__)
def test_invariant_laws(sde):
    """The Fokker-Planck operator annihilates them; the flow stands still there; quantiles of normals give samples."""
    law = sde.invariant((2,))
    x = law.sample(200, seed=0).clamp(0.02, 0.97)
    terms = operator(lambda x: sde.drift(x, 0.0), lambda x: sde.diffusion(x, 0.0), law.log_prob, x)
    assert (terms.sum(0).abs() / terms.abs().max(0).values).max() < 1e-10
    assert sde.probability_flow(lambda x, t: law.score(x)).drift(x, 0.5).abs().max() < 1e-10
    frozen = stats.beta(1.5, 2.5) if sde is JACOBI else stats.gamma(2 * 1.2 * 0.8 / 0.49, scale=0.49 / 2.4)
    assert np.allclose(law.log_prob(x), frozen.logpdf(x.numpy()).sum(1), atol=1e-12)
    assert stats.kstest(law.sample(20_000, seed=3).flatten().numpy(), frozen.cdf).pvalue > LEVEL


def test_solving_forward_gives_the_kernel():
    """Euler-Maruyama with 400 steps of 40,000 paths against exact samples: two-sample tests that see a distance of 0.02."""
    for sde, x0, t in ((GBM, 1.3, 1.0), (CIR, 0.5, 1.0), (JACOBI, 0.3, 1.0)):
        start = torch.full((40_000, 1), x0, dtype=torch.float64)
        x = sd.solve(sde, start, t0=0.0, t1=t, solver=sd.EulerMaruyama(), steps=400, seed=0).x
        exact = sde.marginal(start, t).sample(seed=1)
        assert stats.ks_2samp(x[:, 0].numpy(), exact[:, 0].numpy()).pvalue > LEVEL


def test_strong_order_of_milstein_on_geometric_brownian_motion():
    path = sd.BrownianPath(0.0, 1.0, seed=0)
    sde, x0 = sd.GeometricBrownianMotion(1.01, 0.87), torch.full((500, 1), 0.5, dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        ends = [sd.solve(sde, x0, t0=0.0, t1=1.0, solver=sd.Milstein(), steps=n, noise=path).x for n in (steps, 1024)]
        errors.append(float((ends[0] - ends[1]).abs().mean()))
    assert 0.85 < math.log2(errors[1] / errors[2]) < 1.15


@pytest.mark.parametrize("sde", [sd.CIR(0.5, 0.4, 1.5), sd.Jacobi(0.5, 0.7)], ids=lambda s: type(s).__name__)
def test_past_the_walls_nothing_is_nan(sde):
    """Coefficients, scores and reversals at, near and beyond the walls; the forward drift leads back inside."""
    x = column([-0.5, -1e-9, 0.0, 1e-12, 0.5, 1.0, 1.0 + 1e-9, 1.5])
    exact = sd.KernelScore(sde, column([0.3, 0.6]))
    for t in (0.2, torch.full((8,), 0.2)):
        for value in (
            sde.drift(x, t), sde.diffusion(x, t) @ x, sde.gram_divergence(x, t), exact(x, t),
            sde.reverse(exact).drift(x, t), sde.probability_flow(exact).drift(x, t),
        ):  # fmt: skip
            assert bool(value.isfinite().all())
    assert float(sde.drift(x[:1], 0.2)) > 0
    # falling clock: minus the drift is the way it goes
    assert float(sde.reverse(exact).drift(x[:1], 0.2)) < 0
    outside = x[:2] if isinstance(sde, sd.CIR) else x[[0, 1, 6, 7]]
    assert bool((exact.log_prob(outside, 0.2) == -math.inf).all())
    assert bool((sde.marginal(column([0.3]), 0.2).log_prob(outside) == -math.inf).all())
    end = sd.solve(sde, x.clamp(0, 1).repeat(200, 1), t0=0.0, t1=2.0, solver=sd.EulerMaruyama(), steps=40, seed=0).x
    assert bool(end.isfinite().all()) and float(end.min()) > -1


# ---- backwards ----------------------------------------------------------------------------------------------------


class WithoutDivergence(sd.Jacobi):
    def gram_divergence(self, x, t):
        return torch.zeros_like(x)


def backwards(sde, exact, s, t, eta=1.0, n=4000):
    """p-value of particles taken from p_t back to p_s against exact samples: sees a Kolmogorov distance of 0.08."""
    start = exact.sample(n, t, seed=1)
    process = sde.reverse(exact, eta)
    solver = sd.EulerMaruyama() if eta else sd.Heun()
    x = sd.solve(process, start, t0=t, t1=s, solver=solver, steps=100 if eta else 30, seed=2).x
    return stats.ks_2samp(x[:, 0].numpy(), exact.sample(n, s, seed=3)[:, 0].numpy()).pvalue


REVERSALS = {
    "gbm": (sd.GeometricBrownianMotion(0.3, 0.6), column([0.5, 2.0]), 0.05, 1.0),
    "cir": (sd.CIR(1.0, 1.0, 0.8), column([0.4, 2.0]), 0.1, 1.0),
    "jacobi": (sd.Jacobi(2.0, 3.0), column([0.2, 0.8]), 0.1, 0.8),
}


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("name", REVERSALS)
def test_reversal_recovers_the_law(name, eta):
    sde, points, s, t = REVERSALS[name]
    assert backwards(sde, sd.KernelScore(sde, points), s, t, eta) > LEVEL


@pytest.mark.parametrize("name", REVERSALS)
def test_reversal_without_the_divergence_does_not(name):
    sde, points, s, t = REVERSALS[name]
    wrong = copy.copy(sde)
    wrong.__class__ = type("Forgetful", (type(sde),), {"gram_divergence": lambda self, x, t: torch.zeros_like(x)})
    assert backwards(wrong, sd.KernelScore(sde, points), s, t) < LEVEL


def test_from_the_invariant_law_by_sample():
    """``sample`` starts from the invariant law, here where 2e-4 of the start is left; per-sample seeds do what they promise."""
    sde = sd.Jacobi(2.0, 3.0, 2.0, t_max=1.7)
    exact = sd.KernelScore(sde, column([0.25]))
    back = sde.reverse(exact)
    sol = sd.sample(back, 5000, solver=sd.EulerMaruyama(), steps=150, t1=0.1, seed=0)
    assert stats.ks_2samp(sol.x[:, 0].numpy(), exact.sample(5000, 0.1, seed=1)[:, 0].numpy()).pvalue > LEVEL
    few = [
        sd.sample(
            back, n, solver=sd.EulerMaruyama(), steps=5, t1=0.1, noise=sd.PerSample(range(8)), batch_size=n // k
        ).x
        for n, k in ((8, 1), (8, 2))
    ]
    assert torch.allclose(*few, atol=1e-12)


# ---- mixtures of kernels ------------------------------------------------------------------------------------------


def test_kernel_score_by_hand():
    weights = torch.tensor([1.0, 3.0])
    points = torch.tensor([[0.5, 1.0], [2.0, 0.7]], dtype=torch.float64)
    exact = sd.KernelScore(GBM, points, weights)
    x = torch.tensor([[0.8, 0.9], [1.5, 1.1], [0.4, 2.0]], dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    each = torch.stack([GBM.marginal(points[k : k + 1].expand(3, 2), t).log_prob(x) for k in (0, 1)], 1)
    mixed = torch.logsumexp(each + (weights / 4).log(), 1)
    assert torch.allclose(exact.log_prob(x, t), mixed, atol=1e-12)
    share = torch.softmax(each + (weights / 4).log(), 1)
    parts = torch.stack([GBM.marginal(points[k : k + 1].expand(3, 2), t).score(x) for k in (0, 1)], 1)
    assert torch.allclose(exact(x, t), (share[:, :, None] * parts).sum(1), atol=1e-10)
    assert torch.allclose(exact(x[1:2], 0.5), exact(x, t)[1:2], atol=1e-12)
    drawn = exact.sample(40_000, 0.01, seed=0)
    near = (drawn[:, 0] > 1.0).double().mean()
    assert abs(float(near) - 0.75) < stats.norm.isf(LEVEL / 2) * math.sqrt(0.75 * 0.25 / 40_000)
    assert exact(x.float(), 0.5).dtype == torch.float32


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sd.CIR(kappa=0.0), ValueError, r"kappa = 0.0 must be a positive finite number"),
        (lambda: sd.CIR(xi=math.nan), ValueError, "xi = nan must be a number, not NaN"),
        (lambda: sd.Jacobi(a=-1.0), ValueError, r"a = -1.0 must be a positive finite number"),
        (lambda: sd.Jacobi(b=True), TypeError, "b must be a number, got True"),
        (lambda: sd.GeometricBrownianMotion(mu=math.inf), ValueError, "mu = inf must be finite"),
        (lambda: sd.GeometricBrownianMotion("0.1"), TypeError, "mu must be a number, got '0.1'"),
        (lambda: GBM.marginal(column([-1.0]), 0.5), ValueError, "lives on x > 0, and x0 holds -1"),
        (lambda: JACOBI.marginal(column([0.5, 1.5]), 0.5), ValueError, "lives on 0 <= x <= 1, and x0 holds 1.5"),
        (lambda: CIR.marginal(column([math.nan]), 0.5), ValueError, "NaN or infinite"),
        (lambda: CIR.marginal(column([1.0]), 0.0), ValueError, "At t = 0 the law of x_t is x0 itself"),
        (lambda: CIR.marginal(column([1.0]), 20.0), ValueError, r"t = 20 is outside \[0, 10\]"),
        (lambda: CIR.marginal([1.0], 0.5), TypeError, "x0 must be a torch.Tensor"),
        (lambda: JACOBI.marginal(column([0.5]), 1e-6).log_prob(column([0.5])), ValueError, "speed \\* t >= 1e-4"),
        (lambda: JACOBI.marginal(column([0.5]), 1e-3).sample(), ValueError, r"speed \* t >= 0.02, not 0.0008"),
        (lambda: CIR.marginal(column([0.5, 1.0]), 0.5).log_prob(column([1.0])), ValueError, "give one each"),
        (lambda: GBM.invariant((1,)), NotImplementedError, "settles in no law"),
        (
            lambda: sd.sample(GBM.reverse(lambda x, t: -x), 3, solver=sd.EulerMaruyama(), steps=2, event_shape=(1,)),
            NotImplementedError,
            "has no known law at t_max = 2: give the starting states yourself",
        ),
        (lambda: sd.KernelScore(sd.VP(), column([0.5])), TypeError, r"got VP. For a LinearSDE there is ExactScore"),
        (lambda: sd.KernelScore(CIR, column([0.5]), torch.ones(2)), ValueError, r"weights must be \(1,\) numbers"),
        (lambda: sd.KernelScore(CIR, column([0.5]))(torch.ones(3, 2), 0.5), ValueError, r"this score needs \(B, 1\)"),
        (lambda: sd.KernelScore(CIR, column([0.5]))(column([1.0]), 0.5, cond=1), ValueError, "takes no condition"),
        (lambda: sd.ExactScore(CIR, sd.densities.ring(3)), TypeError, "The drift of CIR is not affine"),
        (lambda: sd.NoisePrediction(CIR, torch.nn.Identity(), event_shape=(1,)), TypeError, "CIR is not affine"),
        (lambda: CIR.perturb(column([1.0]), 0.5, column([0.0])), TypeError, "CIR has no perturb: its kernel is not"),
        (lambda: JACOBI.alpha(0.5), AttributeError, r"Jacobi has no alpha.*marginal\(x0, t\).sample.*ImplicitLoss"),
        (lambda: JACOBI.transition(0.1, 0.5), AttributeError, "Jacobi has no transition"),
        (lambda: JACOBI.speeed, AttributeError, "'Jacobi' object has no attribute 'speeed'"),
        (
            lambda: sd.solve(CIR, column([1.0]), t1=1.0, solver=sd.ExactTransition(), steps=3),
            TypeError,
            "ExactTransition",
        ),
        (lambda: sd.solve(CIR.reverse(lambda x, t: -x), column([1.0]), solver=sd.DDIM(), steps=3), TypeError, "DDIM"),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_processes_are_plain_objects():
    for sde in (GBM, CIR, JACOBI):
        again = pickle.loads(pickle.dumps(copy.deepcopy(sde)))
        assert vars(again) == vars(sde)
        assert not hasattr(sde, "alpha")


def test_whatever_a_linear_process_has_beyond_an_sde_is_refused_with_a_cure():
    """Read from LinearSDE itself, so that a method added there is known here."""
    for name in ("alpha_rate", "sigma_rate", "drift_coefficient", "steps", "posterior", "reaches_pure_noise"):
        assert hasattr(sd.VP(), name)
        with pytest.raises(AttributeError, match=rf"CIR has no {name}: its kernel is not Gaussian"):
            getattr(CIR, name)
