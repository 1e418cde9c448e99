"""The exponential family: orders from both sides, its special cases, its noise, its guard rails."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import pytest
import torch

import sdediff as sd
from sdediff.noise import Noise, Stream
from sdediff.solvers.exponential import (
    Adams,
    ExponentialMultistep,
    HeldNoise,
    Polynomial,
    UniPC,
    in_noise_level,
    in_power,
)

F64 = torch.float64


@pytest.fixture(scope="module")
def flow():
    """The flow of an uneven ring under VP: a mixture, where nothing cancels."""
    sde = sd.VP()
    ring = sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8])
    return sde.probability_flow(sd.ExactScore(sde, ring))


@pytest.fixture(scope="module")
def starts():
    return torch.randn(256, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


def end(process, x, solver, grid):
    return sd.solve(process, x, solver=solver, grid=grid, t0=1.0, t1=0.05).x


@pytest.fixture(scope="module")
def exact(flow, starts):
    """The flow's end, by a method of another family, and by Richardson's argument good to 1e-12."""
    fine, finer = (end(flow, starts, sd.RK4(), sd.grids.LogSNR(n)) for n in (2000, 4000))
    assert (fine - finer).abs().max() < 5e-9
    return finer + (finer - fine) / 15


def slope(flow, starts, exact, solver, n, grid=sd.grids.LogSNR):
    """The order between n and 2n steps, and its 99.9 % interval over the starting points (bootstrap)."""
    coarse, fine = ((end(flow, starts, solver, grid(k)) - exact).norm(dim=1) for k in (n, 2 * n))
    rows = torch.randint(len(starts), (2000, len(starts)), generator=torch.Generator().manual_seed(1))
    slopes = torch.log2(coarse[rows].mean(1) / fine[rows].mean(1))
    low, high = slopes.quantile(torch.tensor([0.0005, 0.9995], dtype=F64)).tolist()
    return float(torch.log2(coarse.mean() / fine.mean())), low, high


CLAIMS = [
    (sd.DDIM(), 320),
    (sd.DPMSolver1(), 320),
    (sd.DPMSolver2(), 160),
    (sd.DPMSolver3(), 320),
    (sd.DPMSolverPP2S(), 160),
    (sd.DPMSolverPP2M(), 160),
    (sd.DPMSolverPP3M(), 160),
    (sd.DPMSolverPP3M(published=True), 160),
    (sd.DEIS(2), 160),
    (sd.DEIS(3), 320),
    (sd.DEIS(4), 320),
    (sd.IPNDM(), 160),
    (sd.UniPCSolver(1), 160),
    (sd.UniPCSolver(2), 160),
    (sd.UniPCSolver(2, linear=True), 160),
    (sd.UniPCSolver(3), 320),
    (sd.SASolver(2), 160),
    (sd.SEEDS2(), 160),
    (sd.SEEDS3(), 320),
    (sd.ExponentialAdams(corrector=False), 320),
    (sd.ExponentialAdams(2), 320),
    (sd.ExponentialAdams(3), 640),
    (sd.ExponentialAdams(), 320),
    (sd.EDMHeun(), 320),
]


@pytest.mark.parametrize(
    ("solver", "n"), CLAIMS, ids=lambda v: type(v).__name__ if isinstance(v, sd.Solver) else str(v)
)
def test_the_order_claimed_is_the_order_measured(flow, starts, exact, solver, n):
    order, low, high = slope(flow, starts, exact, solver, n)
    assert abs(order - solver.orders.ode) < 0.2, (order, solver.orders.ode)
    assert high - low < 0.4
    assert low - 0.2 < solver.orders.ode < high + 0.2


def test_a_spoiled_coefficient_loses_the_order(flow, starts, exact):
    class Spoiled(Polynomial):
        def weights(self, *args):
            weights = super().weights(*args)
            if weights.shape[1] == 3:
                weights[:, 2] *= 1.05
                weights[:, 1] -= 0.05 / 1.05 * weights[:, 2]
            return weights

    order, _, _ = slope(flow, starts, exact, ExponentialMultistep(3, rule=Spoiled()), 160)
    assert order < 2.2


def test_ipndm_is_exact_rho_adams_where_steps_are_equal_in_noise_level(starts):
    sde = sd.EDM(t_max=2.0, t_min=0.3)
    flow = sde.probability_flow(sd.ExactScore(sde, sd.densities.ring(8)))
    classical, exact, other = (
        sd.solve(flow, starts, solver=s, steps=12).x
        for s in (sd.IPNDM(), sd.DEIS(4, variable=in_noise_level), sd.DEIS(3, variable=in_noise_level))
    )
    torch.testing.assert_close(classical, exact, rtol=0, atol=1e-10)
    assert (classical - other).abs().max() > 1e-4


# ---- special cases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sde", [sd.VP(), sd.SubVP(), sd.CosineVP(), sd.RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_order_one_without_noise_is_ddim(sde, starts):
    score = sd.ExactScore(sde, sd.densities.ring(8))
    grid = torch.linspace(0.9, 0.1, 7, dtype=F64)
    x = starts
    for s, t in itertools.pairwise(grid):
        data, noise = score.split(x, s)
        x = sde.alpha(t) * data + sde.sigma(t) * noise  # DDIM: the same data and noise, at the next level
    for solver in (sd.DDIM(), sd.DPMSolver1(), sd.ExponentialAdams(1, corrector=False), sd.SEEDS2(r=0.5)):
        got = sd.solve(sde.probability_flow(score), starts, solver=solver, grid=grid).x
        same = (got - x).abs().max() < 1e-10
        assert same if solver.orders.ode == 1 else not same


@pytest.mark.parametrize("sde", [sd.VP(), sd.VE(), sd.SubVP()], ids=lambda s: type(s).__name__)
def test_order_one_with_eta_one_is_the_ancestral_step(sde, starts):
    score = sd.ExactScore(sde, sd.densities.ring(8))
    back, grid = sde.reverse(score), sd.grids.LogSNR(9)
    x = starts * sde.sigma(sde.t_max)
    ancestral, ddim, ddim_own = (
        sd.solve(back, x, solver=s, grid=grid, seed=3).x for s in (sd.Ancestral(), sd.DDIM(), sd.DDIM(1.0))
    )
    torch.testing.assert_close(ddim, ancestral, rtol=0, atol=1e-10)
    torch.testing.assert_close(ddim_own, ancestral, rtol=0, atol=1e-10)


def test_ddims_own_parameter_is_its_paper_formula(starts):
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.ring(8))
    s, t, eta = 0.6, 0.45, 0.5
    z = starts.flip(0)
    a_s, a_t = (float(sde.alpha(u)) ** 2 for u in (s, t))
    std = eta * math.sqrt((1 - a_t) / (1 - a_s) * (1 - a_s / a_t))
    data, noise = score.split(starts, s)
    by_hand = math.sqrt(a_t) * data + math.sqrt(1 - a_t - std**2) * noise + std * z
    got = sd.solve(sde.reverse(score), starts, solver=sd.DDIM(eta), grid=[s, t], noise=Given(z)).x
    torch.testing.assert_close(got, by_hand, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("sde", [sd.RectifiedFlow(), sd.CosineVP()], ids=lambda s: type(s).__name__)
def test_ddims_own_parameter_holds_where_the_step_is_infinite(sde, eta, starts):
    """From alpha = 0 its noise is eta sigma_t: once it was lost there, for eta strictly between 0 and 1."""
    score = sd.ExactScore(sde, sd.densities.ring(8))
    z, solver = starts.flip(0), sd.DDIM(eta)
    data, noise = score.split(starts, 1.0)
    alpha, sigma = float(sde.alpha(0.5)), float(sde.sigma(0.5))
    by_hand = alpha * data + math.sqrt(1 - eta**2) * sigma * noise + eta * sigma * z
    got = sd.solve(sde.reverse(score), starts, solver=solver, grid=[1.0, 0.5], noise=Given(z)).x
    torch.testing.assert_close(got, by_hand, rtol=0, atol=1e-10)
    last = sd.solve(sde.reverse(score), starts, solver=solver, grid=[0.5, 0.0], noise=Given(z)).x
    torch.testing.assert_close(last, score.data(starts, 0.5), rtol=0, atol=1e-10)


def test_two_m_is_its_paper_formula(flow, starts):
    """DPM-Solver++ 2M, algorithm 2 of its paper, written out."""
    sde, grid = flow.sde, sd.grids.resolve(flow, 1.0, 0.1, grid=sd.grids.Karras(6))
    ell = 0.5 * sde.log_snr(grid)
    x, before = starts, None
    for k in range(6):
        data = flow.score.data(x, grid[k])
        h = ell[k + 1] - ell[k]
        d = data
        if before is not None:
            r = (ell[k] - ell[k - 1]) / h
            d = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * before
        x = sde.sigma(grid[k + 1]) / sde.sigma(grid[k]) * x - sde.alpha(grid[k + 1]) * torch.expm1(-h) * d
        before = data
    got = sd.solve(flow, starts, solver=sd.DPMSolverPP2M(), grid=grid).x
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("r", [0.5, 0.7])
def test_two_s_is_its_paper_formula_and_seeds_2(flow, starts, r, eta):
    """DPM-Solver++ 2S, algorithm 1 of its paper, with noise as the process has it; SEEDS-2 is the same solver."""
    sde, score = flow.sde, flow.score
    ell = 0.5 * sde.log_snr(0.6)
    h, k, grid = 0.5 * sde.log_snr(0.4) - ell, 1 + eta**2, [0.6, 0.4]
    m = sde.time_of(2 * (ell + r * h))
    z = [starts.flip(0), starts.roll(1, 0)]

    def reached(s, t, x, data, noise, step):
        x = sde.sigma(t) / sde.sigma(s) * torch.exp(-(eta**2) * step) * x
        return x - sde.alpha(t) * torch.expm1(-k * step) * data + noise

    noise = sde.sigma(m) * torch.sqrt(-torch.expm1(-2 * eta**2 * r * h)) * z[0]
    data = score.data(starts, 0.6)
    mixed = (1 - 1 / (2 * r)) * data + 1 / (2 * r) * score.data(reached(0.6, m, starts, data, noise, r * h), m)
    rest = (1 - r) * h
    noise = sde.sigma(0.4) / sde.sigma(m) * torch.exp(-(eta**2) * rest) * noise
    noise = noise + sde.sigma(0.4) * torch.sqrt(-torch.expm1(-2 * eta**2 * rest)) * z[1]
    x = reached(0.6, 0.4, starts, mixed, noise, h)
    for solver in (sd.DPMSolverPP2S(r), sd.SEEDS2(r)):
        got = sd.solve(sde.reverse(score, eta), starts, solver=solver, grid=grid, noise=Given(*z)).x
        torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [sd.DPMSolver3(), sd.DPMSolver3(0.25, 0.7)], ids=["thirds", "others"])
def test_dpm_solver_3_is_its_paper_formula(flow, starts, solver):
    """Algorithm 2 of its paper, written out, wherever the stages lie."""
    (r1, _), (r2, _) = solver.stages
    assert (r1, r2) in ((1 / 3, 2 / 3), (0.25, 0.7))
    sde, (s, t) = flow.sde, torch.tensor([0.6, 0.4], dtype=F64)
    ell = 0.5 * sde.log_snr(s)
    h = 0.5 * sde.log_snr(t) - ell
    s1, s2 = (sde.time_of(2 * (ell + r * h)) for r in (r1, r2))
    noise, scale = flow.score.noise(starts, s), starts / sde.alpha(s)
    u1 = sde.alpha(s1) * scale - sde.sigma(s1) * torch.expm1(r1 * h) * noise
    d1 = flow.score.noise(u1, s1) - noise
    u2 = sde.alpha(s2) * scale - sde.sigma(s2) * torch.expm1(r2 * h) * noise
    u2 = u2 - sde.sigma(s2) * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = flow.score.noise(u2, s2) - noise
    x = sde.alpha(t) * scale - sde.sigma(t) * torch.expm1(h) * noise
    x = x - sde.sigma(t) / r2 * (torch.expm1(h) / h - 1) * d2
    got = sd.solve(flow, starts, solver=solver, grid=[0.6, 0.4]).x
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("solver", [sd.SEEDS3(), sd.SEEDS3(0.25, 0.7)], ids=["thirds", "others"])
def test_seeds_3_written_out(flow, starts, solver, eta):
    """Stages and step from s on lines through two data predictions, each with all the noise drawn up to there.

    The weight e^{-κv}, κ = 1 + η², of the prediction at a distance v from the end gives α_t(1 - e^{-κh}) in all, and
    α_t(h - (1 - e^{-κh})/κ) per unit of slope.
    """
    (r1, _), (r2, _) = solver.stages
    assert (r1, r2) in ((1 / 3, 2 / 3), (0.25, 0.7))
    sde, score, k = flow.sde, flow.score, 1 + eta**2
    ell = 0.5 * sde.log_snr(0.6)
    h = 0.5 * sde.log_snr(0.4) - ell
    u = [0.6, *(float(sde.time_of(2 * (ell + r * h))) for r in (r1, r2)), 0.4]
    z = [starts.flip(0), starts.roll(1, 0), starts.flip(1)]
    first = score.data(starts, 0.6)

    def reached(i, slope, noise):
        a = 0.5 * sde.log_snr(u[i]) - ell
        x = sde.sigma(u[i]) / sde.sigma(0.6) * torch.exp(-(eta**2) * a) * starts + noise
        return x + sde.alpha(u[i]) * (-torch.expm1(-k * a) * first + (a + torch.expm1(-k * a) / k) * slope)

    def drawn(i, before):
        a = 0.5 * (sde.log_snr(u[i]) - sde.log_snr(u[i - 1]))
        carried = sde.sigma(u[i]) / sde.sigma(u[i - 1]) * torch.exp(-(eta**2) * a) * before
        return carried + sde.sigma(u[i]) * torch.sqrt(-torch.expm1(-2 * eta**2 * a)) * z[i - 1]

    n1 = drawn(1, torch.zeros_like(starts))
    n2 = drawn(2, n1)
    n3 = drawn(3, n2)
    x1 = reached(1, 0.0, n1)
    x2 = reached(2, (score.data(x1, u[1]) - first) / (r1 * h), n2)
    x3 = reached(3, (score.data(x2, u[2]) - first) / (r2 * h), n3)
    back = sde.reverse(score, eta)
    got = sd.solve(back, starts, solver=solver, grid=[0.6, 0.4], noise=Given(*z)).x
    torch.testing.assert_close(got, x3, rtol=0, atol=1e-9)


def test_a_constant_prediction_is_carried_exactly_by_every_member():
    """With one data point the data prediction is constant: every member, at any step, follows the exact flow."""
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.Empirical(torch.tensor([[0.7, -0.3]], dtype=F64)))
    x = torch.randn(5, 2, dtype=F64)
    point = torch.tensor([0.7, -0.3], dtype=F64)
    exact = sde.alpha(0.1) * point + sde.sigma(0.1) / sde.sigma(1.0) * (x - sde.alpha(1.0) * point)
    for solver, _ in CLAIMS:
        if isinstance(solver, sd.EDMHeun):
            continue
        got = sd.solve(sde.probability_flow(score), x, solver=solver, grid=sd.grids.LogSNR(6), t0=1.0, t1=0.1).x
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-9)


def test_steps_from_infinite_and_to_zero_noise_are_finite(starts):
    for sde in (sd.RectifiedFlow(), sd.CosineVP()):
        score = sd.ExactScore(sde, sd.densities.ring(8))
        for process in (sde.probability_flow(score), sde.reverse(score)):
            sol = sd.solve(
                process, starts, solver=sd.ExponentialAdams(), grid=sd.grids.Quadratic(30), t0=1.0, t1=0.0, seed=0
            )
            assert (sol.x.norm(dim=1) - 2).abs().quantile(0.5) < 0.2


# ---- noise: exact laws ---------------------------------------------------------------------------------------------


class Given(Noise):
    """Noise given beforehand: one tensor for all steps, or one per step."""

    def __init__(self, *z):
        self.z = z

    def open(self, x):
        return _GivenStream(self.z)

    def initial(self, shape, device, dtype):
        raise AssertionError

    def integer(self):
        raise AssertionError


class _GivenStream(Stream):
    def __init__(self, z):
        self.z = list(z)

    def normal(self, shape=None):
        return self.z.pop(0) if len(self.z) > 1 else self.z[0]


def law(process, solver, grid, draws, mean, variance):
    """Mean and variance at the end of a solve whose score is affine, exactly: the solve of the basis of its inputs."""
    x = torch.zeros(draws + 2, 1, dtype=F64)
    x[1] = 1
    unit = [torch.zeros(draws + 2, 1, dtype=F64).index_fill_(0, torch.tensor([k + 2]), 1.0) for k in range(draws)]
    y = sd.solve(process, x, solver=solver, grid=grid, noise=Given(*unit)).x[:, 0]
    a, c = y[1] - y[0], y[2:] - y[0]
    return float(a * mean + y[0]), float(a * a * variance + (c * c).sum())


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
def test_every_stochastic_member_tends_to_the_exact_law(eta):
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=0.5))
    back = sde.reverse(score, eta)
    start = score.law(1.0)
    goal = score.law(1e-3)
    for solver, draws in [
        (sd.SASolver(), 1),
        (sd.DPMSolverPP2M(), 1),
        (sd.SEEDS2(), 2),
        (sd.SEEDS3(), 3),
        (sd.DDIM(), 1),
    ]:
        errors = []
        for n in (200, 400):
            grid = sd.grids.LogSNR(n)
            mean, variance = law(back, solver, grid, draws * n, float(start.means), float(start.variances))
            errors.append(abs(math.sqrt(variance / float(goal.variances)) - 1))
            assert abs(mean - float(goal.means)) < 1e-2
        assert errors[1] < 0.03, type(solver).__name__
        assert errors[1] < 0.7 * errors[0] or errors[1] < 1e-5, type(solver).__name__


@pytest.fixture(scope="module")
def line():
    """A reversal on the line whose score is not linear, and starts from its exact law."""
    sde = sd.VP(0.5, 2.0)
    score = sd.ExactScore(sde, sd.densities.Mixture([[-1.0], [1.2]], std=[0.5, 0.7], weights=[0.4, 0.6]).to(dtype=F64))
    return sde.reverse(score), score.sample(150_000, 1.0, seed=1)


def halved(line, solver, steps, count):
    """Ends with ``steps`` and with twice as many on the same Brownian paths."""
    process, x = line
    path = sd.BrownianPath(0.05, 1.0, seed=3, parts=steps)
    return [sd.solve(process, x[:count], solver=solver, t1=0.05, steps=n, noise=path).x for n in (steps, 2 * steps)]


@pytest.mark.parametrize(
    "solver", [sd.DDIM(), sd.DPMSolver1(), sd.SEEDS2(), sd.SEEDS3()], ids=lambda s: type(s).__name__
)
def test_the_strong_order_claimed_is_measured(line, solver):
    errors = []
    for n in (128, 256):
        coarse, fine = halved(line, solver, n, 2000)
        errors.append((coarse - fine).square().flatten())
    rows = torch.randint(2000, (1000, 2000), generator=torch.Generator().manual_seed(0))
    slopes = 0.5 * torch.log2(errors[0][rows].mean(1) / errors[1][rows].mean(1))
    assert float(slopes.std()) * 3.3 < 0.2
    assert abs(float(slopes.mean()) - solver.orders.strong_additive) < 0.2


_MULTISTEP = [
    sd.DDIM(), sd.DPMSolver1(), sd.DPMSolverPP2M(), sd.DPMSolverPP3M(), sd.DPMSolverPP3M(published=True), sd.DEIS(3),
    sd.IPNDM(), sd.UniPCSolver(1), sd.UniPCSolver(2), sd.UniPCSolver(3), sd.SASolver(), sd.ExponentialAdams(),
    sd.ExponentialAdams(corrector=False),
]  # fmt: skip


@pytest.mark.parametrize("solver", _MULTISTEP, ids=lambda s: type(s).__name__)
def test_the_strong_order_claimed_is_measured_exactly_on_gaussian_data(solver):
    """Root mean square of the difference between n and 2n steps on one path, by the basis of the path's increments.

    The noise fades at both ends: at an end with noise the extrapolation adds one term of order 1.5, which for many predictions
    outweighs the sum of order 1 up to some hundred thousand steps.
    """
    sde = sd.VP(0.1, 16.0)
    score = sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=0.5))
    back, start = sde.reverse(score, lambda t: torch.sin(math.pi * (t - 0.05) / 0.95) ** 2), score.law(1.0)
    errors = []
    for n in (512, 1024):
        x = torch.zeros(2 * n + 2, 1, dtype=F64)
        x[1] = 1
        pairs = [x.new_zeros(x.shape).index_fill_(0, torch.tensor([2 * k + 2, 2 * k + 3]), 0.5**0.5) for k in range(n)]
        units = [x.new_zeros(x.shape).index_fill_(0, torch.tensor([k + 2]), 1.0) for k in range(2 * n)]
        ends = [
            sd.solve(back, x, solver=solver, steps=len(z), t1=0.05, noise=Given(*z)).x[:, 0] for z in (pairs, units)
        ]
        d = ends[0] - ends[1]
        a, c = d[1] - d[0], d[2:] - d[0]
        mean = d[0] + a * start.means
        errors.append(float(mean**2 + a * a * start.variances + (c * c).sum()))
    assert abs(0.5 * math.log2(errors[0] / errors[1]) - solver.orders.strong_additive) < 0.2


@pytest.mark.parametrize(("solver", "steps"), [(sd.DDIM(), 16), (sd.DPMSolverPP2M(), 16)], ids=["DDIM", "2M"])
def test_the_weak_order_claimed_is_measured_where_the_score_is_not_linear(line, solver, steps):
    """The second moment; coupled halving takes most of the variance out."""
    means, errors = [], []
    for n in (steps, 2 * steps):
        coarse, fine = (y.square() for y in halved(line, solver, n, 150_000))
        means.append(float((coarse - fine).mean()))
        errors.append(float((coarse - fine).std()) / math.sqrt(150_000))
    order = math.log2(abs(means[0] / means[1]))
    interval = 3.3 * math.hypot(errors[0] / means[0], errors[1] / means[1]) / math.log(2)
    assert interval < 0.2
    assert abs(order - solver.orders.weak) < 0.2


_WEAK = [
    (sd.DDIM(), 1), (sd.DPMSolver1(), 1), (sd.Ancestral(), 1), (sd.DPMSolverPP2M(), 1), (sd.DPMSolverPP3M(), 1),
    (sd.DPMSolverPP3M(published=True), 1), (sd.DEIS(2), 1), (sd.DEIS(3), 1), (sd.IPNDM(), 1), (sd.UniPCSolver(1), 1),
    (sd.UniPCSolver(2), 1), (sd.UniPCSolver(3), 1), (sd.SASolver(), 1), (sd.ExponentialAdams(corrector=False), 1),
    (sd.DPMSolver2(), 2), (sd.DPMSolver3(), 3), (sd.DPMSolverPP2S(), 2), (sd.SEEDS2(), 2), (sd.SEEDS3(), 3),
]  # fmt: skip


@pytest.mark.parametrize(("solver", "draws"), _WEAK, ids=lambda s: type(s).__name__)
def test_the_weak_order_claimed_is_measured_exactly_on_gaussian_data(solver, draws):
    """By the exact law. Many steps: with several predictions errors of higher order outweigh the leading one for long."""
    sde = sd.VP(0.1, 16.0)
    score = sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=0.5))
    start, goal = score.law(1.0), score.law(0.05)
    errors = []
    for n in (1600, 3200):
        grid = sd.grids.resolve(sde.reverse(score), 1.0, 0.05, steps=n)
        _, variance = law(sde.reverse(score), solver, grid, draws * n, float(start.means), float(start.variances))
        errors.append(abs(variance / float(goal.variances) - 1))
    assert abs(math.log2(errors[0] / errors[1]) - solver.orders.weak) < 0.2


def test_stochastic_solvers_need_few_evaluations():
    """N(1, 1/4) between noise levels 157 and 0.01, eta = 1: half the error of SDE-DPM-Solver++ 2M on its usual grid."""
    sde = sd.EDM(t_max=157.0, t_min=0.01)
    score = sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=0.5))
    back = sde.reverse(score)

    def error(solver, grid, draws):
        _, variance = law(back, solver, grid, draws, 1.0, 0.25 + 157.0**2)
        return abs(math.sqrt(variance / (0.25 + 1e-4)) - 1)

    for n in (20, 40):
        usual = error(sd.DPMSolverPP2M(), sd.grids.Karras(n), n)
        assert error(sd.SASolver(), sd.grids.Karras(n), n) < 0.5 * usual


# ---- settings ------------------------------------------------------------------------------------------------------


def test_lower_final_ends_with_a_first_order_step(flow, starts):
    grid = sd.grids.resolve(flow, 1.0, 0.1, grid=sd.grids.LogSNR(6))
    partway = sd.solve(flow, starts, solver=sd.DPMSolverPP2M(lower_final=True), grid=grid, save_at=grid[-2:]).xs
    last = sd.solve(flow, partway[0], solver=sd.DDIM(), grid=grid[-2:]).x
    torch.testing.assert_close(partway[1], last, rtol=0, atol=1e-12)


def guided(sde, weight):
    """The ring's score with a guidance that does nothing but have this weight."""
    plain = sd.ExactScore(sde, sd.densities.ring(8))
    return sd.ClassifierFree(sd.FunctionScore(lambda x, t, cond: plain(x, t), sde), weight, torch.zeros(1))


@pytest.mark.parametrize(
    ("solver", "named", "fallback"),
    [
        (
            sd.ExponentialAdams(),
            4,
            ExponentialMultistep(
                2, rule=Polynomial(in_power(0.62)), corrector=Polynomial(in_power(1.6)), corrector_order=1
            ),
        ),
        (sd.UniPCSolver(3), 4, ExponentialMultistep(2, rule=UniPC(), corrector=UniPC(), corrector_order=1)),
        (sd.UniPCSolver(2), 3, ExponentialMultistep(2, rule=UniPC(), corrector=UniPC(), corrector_order=1)),
        (sd.SASolver(3), 4, ExponentialMultistep(2, corrector=Polynomial(), corrector_order=1)),
        (sd.DEIS(3), 3, sd.DEIS(2)),
        (sd.DPMSolverPP3M(), 3, ExponentialMultistep(2)),
        (sd.DPMSolver3(), 3, sd.DPMSolver3()),
        (sd.SEEDS3(), 3, sd.SEEDS3()),
    ],
    ids=lambda v: type(v).__name__,
)
def test_strong_guidance_lowers_the_order_with_a_warning(starts, solver, named, fallback):
    """To 2, the corrector's included; a method of three stages can only say so."""
    sde = sd.VP()
    cond, grid = torch.zeros(len(starts)), sd.grids.LogSNR(8)
    done = "stays, as .* cannot lower it" if fallback.__class__ in (sd.DPMSolver3, sd.SEEDS3) else "is lowered to 2"
    with pytest.warns(UserWarning, match=f"weight -7.5 .* order {named} {done}") as caught:
        got = sd.solve(sde.probability_flow(guided(sde, -7.5)), starts, solver=solver, grid=grid, cond=cond).x
    assert caught[0].filename == __file__ and len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weight in (2.9, -2.9):
            sd.solve(sde.probability_flow(guided(sde, weight)), starts[:1], solver=solver, grid=grid, cond=cond[:1])
        want = sd.solve(sde.probability_flow(guided(sde, 1.0)), starts, solver=fallback, grid=grid, cond=cond).x
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "solver",
    [sd.DDIM(), sd.DPMSolverPP2M(), sd.DPMSolver2(), sd.SEEDS2(), sd.UniPCSolver(1), sd.ExponentialAdams(2)],
    ids=lambda v: type(v).__name__,
)
def test_order_two_under_guidance_is_let_be(starts, solver):
    sde = sd.VP()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = sde.probability_flow(guided(sde, 7.5))
        sd.solve(process, starts[:1], solver=solver, grid=sd.grids.LogSNR(8), cond=torch.zeros(1))


def test_what_strong_guidance_leaves_has_order_two(flow, starts, exact):
    """Flow orders of 3 and more were left where a corrector was."""
    score = sd.ExactScore(flow.sde, sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8]))
    score.guidance = 7.5
    for solver in (sd.UniPCSolver(2), sd.SASolver(3), sd.ExponentialAdams()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, low, high = slope(flow.sde.probability_flow(score), starts, exact, solver, 640)
        assert 1.8 < low < high < 2.2, (solver, low, high)


def test_thresholding_keeps_the_data_prediction_in_range(starts):
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.ring(8, radius=3.0))
    clipped = sd.Thresholded(score, 1.0)
    assert clipped.data(starts, 0.3).abs().max() == 1.0
    torch.testing.assert_close(clipped.data(starts, 0.3), score.data(starts, 0.3).clamp(-1, 1))
    dynamic = sd.Thresholded(score, 1.0, quantile=1.0).data(starts, 0.3)
    data = score.data(starts, 0.3)
    scale = data.abs().amax(1, keepdim=True).clamp_min(1.0)
    torch.testing.assert_close(dynamic, data / scale)
    kept, free = (
        sd.solve(sde.probability_flow(s), starts, solver=sd.DDIM(), grid=sd.grids.LogSNR(20)).x
        for s in (clipped, score)
    )
    assert kept.abs().max() < 1.1 < 2.5 < free.abs().max()


def test_denoise_ends_with_the_posterior_mean_and_counts_it(flow, starts):
    plain = sd.solve(flow, starts, solver=sd.DDIM(), steps=5, t1=0.2)
    denoised = sd.solve(flow, starts, solver=sd.DDIM(), steps=5, t1=0.2, denoise=True)
    torch.testing.assert_close(denoised.x, flow.score.data(plain.x, 0.2), rtol=0, atol=1e-12)
    assert denoised.stats["nfe"] == plain.stats["nfe"] + 1 == 6


def test_restart_goes_up_and_down_again(flow, starts):
    solver = sd.Restart(sd.DDIM(), low=0.2, high=0.5, inner=sd.grids.LogSNR(4), repeats=3)
    sol = sd.solve(flow, starts, solver=solver, grid=sd.grids.LogSNR(10), seed=0)
    assert sol.stats["nfe"] == 10 + 3 * 4
    exact = sd.Restart(sd.ExponentialAdams(), low=0.2, high=0.5, inner=sd.grids.LogSNR(60), repeats=2)
    start = flow.score.sample(4000, 1.0, seed=5)
    x = sd.solve(flow, start, solver=exact, grid=sd.grids.LogSNR(120), seed=1).x
    # exact steps keep the marginal: radius and spread of the ring, to 5 standard errors of 4,000 samples
    radius = x.norm(dim=1)
    fresh = flow.score.sample(4000, 1e-3, seed=6).norm(dim=1)
    assert abs(radius.mean() - fresh.mean()) < 5 * 0.1 * math.sqrt(2 / 4000)
    assert abs(radius.std() / fresh.std() - 1) < 5 / math.sqrt(4000)


@pytest.mark.parametrize("inflate", [1.0, 1.3])
@pytest.mark.parametrize("sde", [sd.EDM(t_max=2.0), sd.VP()], ids=["EDM", "VP"])
def test_edm_s_sampler_is_algorithm_2_of_its_paper(sde, starts, inflate):
    """In y = x/α and τ = σ/α, written out: churn within [S_tmin, S_tmax] alone, S_noise times the noise."""
    score = sd.ExactScore(sde, sd.densities.ring(8))
    flow, taus = sde.probability_flow(score), [1.5, 1.0, 0.4, 0.2, 0.1]
    churn, low, high = 1.2, 0.3, 1.2  # S_churn/N = 0.3; the first step and the last start outside the range
    times = [float(sde.time_of(torch.tensor(-2 * math.log(tau), dtype=F64))) for tau in taus]
    z, y = [starts.flip(0), starts.roll(1, 0)], starts / sde.alpha(times[0])

    def slope(y, tau):
        t = sde.time_of(torch.tensor(-2 * math.log(tau), dtype=F64))
        return (y - score.data(sde.alpha(t) * y, t)) / tau

    for tau, end in itertools.pairwise(taus):
        raised = 1.3 * tau if low <= tau <= high else tau
        if raised > tau:
            y = y + math.sqrt(raised**2 - tau**2) * inflate * z[0 if tau == 1.0 else 1]
        d = slope(y, raised)
        euler = y + (end - raised) * d
        y = y + (end - raised) * (0.5 * d + 0.5 * slope(euler, end))
    solver = sd.EDMHeun(churn, low=low, high=high, inflate=inflate)
    got = sd.solve(flow, starts, solver=solver, grid=times, noise=Given(*z)).x
    torch.testing.assert_close(got, sde.alpha(times[-1]) * y, rtol=0, atol=1e-9)


def test_churn_keeps_the_marginal(flow):
    start = flow.score.sample(4000, 1.0, seed=5)
    x = sd.solve(flow, start, solver=sd.EDMHeun(churn=20.0), grid=sd.grids.Karras(200), seed=1).x
    fresh = flow.score.sample(4000, 1e-3, seed=6)
    assert abs(x.norm(dim=1).mean() - fresh.norm(dim=1).mean()) < 5 * 0.1 * math.sqrt(2 / 4000)
    assert abs(x.norm(dim=1).std() / fresh.norm(dim=1).std() - 1) < 5 / math.sqrt(4000)
    still = sd.solve(flow, start, solver=sd.EDMHeun(), grid=sd.grids.Karras(200)).x
    assert (x - still).norm(dim=1).mean() > 0.1  # the churn moved them


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialMultistep(5), "must be 1, 2, 3 or 4"),
        (lambda: sd.DDIM(1.5), r"must lie in \[0, 1\]"),
        (lambda: sd.EDMHeun(-1.0), "none may be negative"),
        (lambda: sd.Restart(sd.DDIM(), low=0.5, high=0.2, inner=sd.grids.LogSNR(3)), "must lie below"),
        (lambda: sd.Thresholded(None, 0.0), "must be positive"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sd.DDIM("a"), TypeError, "^eta must be a number, got 'a'"),
        (lambda: sd.DDIM(lambda t: t), TypeError, "^eta must be a number, got"),
        (lambda: sd.DDIM(math.nan), ValueError, "^eta = nan must be a number"),
        (lambda: ExponentialMultistep(2.0), TypeError, "^order must be a positive whole number, got 2.0"),
        (lambda: ExponentialMultistep(True), TypeError, "^order must be a positive whole number, got True"),
        (lambda: ExponentialMultistep(0), ValueError, "^order = 0: ask for 1, 2, 3 or 4"),
        (lambda: ExponentialMultistep(corrector_order=0), ValueError, "^corrector_order = 0: ask for 1, 2, 3 or 4"),
        (
            lambda: ExponentialMultistep(corrector_order=2.0),
            TypeError,
            "^corrector_order must be a positive whole number",
        ),
        (lambda: sd.ExponentialAdams("4"), TypeError, "^order must be a positive whole number, got '4'"),
        (lambda: sd.CoupledMultistep(2.0), TypeError, "^order must be a positive whole number, got 2.0"),
        (
            lambda: sd.SEEDS2(r=1.0),
            ValueError,
            r"^The stages lie at r = \[1.0\]: they must rise and stay between 0 and 1",
        ),
        (lambda: sd.SEEDS2(r=-0.5), ValueError, "^The stages lie at r"),
        (lambda: sd.SEEDS3(0.7, 0.3), ValueError, r"^The stages lie at r = \[0.7, 0.3\]: they must rise"),
        (lambda: sd.DPMSolver2(r=0.0), ValueError, "^The stages lie at r"),
        (lambda: sd.DPMSolver2(r=2.0), ValueError, "^The stages lie at r"),
        (lambda: sd.DPMSolver3(0.5, 0.5), ValueError, "^The stages lie at r"),
        (lambda: sd.DPMSolver2(r=math.nan), ValueError, "^r = nan must be a number"),
        (lambda: sd.EDMHeun(churn=math.nan), ValueError, "^churn = nan must be a number"),
        (lambda: sd.EDMHeun(churn="1"), TypeError, "^churn must be a number, got '1'"),
        (lambda: sd.EDMHeun(low=2.0, high=1.0), ValueError, "nor high below low"),
    ],
)
def test_bad_settings_are_named_where_they_are_given(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["SASolver", "CoupledMultistep"])
def test_a_stochasticity_that_is_no_number_is_blamed(starts, name):
    sde = sd.VP() if name == "SASolver" else sd.CLD()
    back = sde.reverse(sd.ExactScore(sde, sd.densities.ring(8)))
    x = starts if name == "SASolver" else torch.cat([starts, starts], 1)
    solver = getattr(sd, name)(stochasticity=lambda t: torch.sqrt(t - 0.5))
    with pytest.raises(ValueError, match=r"^stochasticity is nan at t = 0.4\d*: it must be a finite number"):
        sd.solve(back, x, solver=solver, grid=[1.0, 0.8, 0.5, 0.3, 0.1])


def test_bad_processes_are_named(flow, starts):
    back = flow.sde.reverse(flow.score)
    with pytest.raises(ValueError, match=r"solve sde.reverse\(score\)"):
        sd.solve(flow, starts, solver=sd.DDIM(0.5), steps=3)
    with pytest.raises(ValueError, match="adds its own noise to the flow"):
        sd.solve(back, starts, solver=sd.EDMHeun(), steps=3)
    with pytest.raises(TypeError, match="needs the reversal of a linear SDE"):
        sd.solve(sd.OU(), starts, solver=sd.ExponentialAdams(), steps=3)
    with pytest.raises(
        TypeError, match="needs the reversal of an affine SDE with matrix coefficients, got LinearReverse"
    ):
        sd.solve(back, starts, solver=sd.CoupledMultistep(), steps=3)

    class OnlyVP(sd.EulerMaruyama):
        requires = sd.VP  # has no words of its own, and is no mere "linear SDE"

    with pytest.raises(TypeError, match="OnlyVP needs a process of type VP, got EDM"):
        sd.solve(sd.EDM(), starts, solver=OnlyVP(), steps=3)
    rf = sd.RectifiedFlow()
    process = rf.probability_flow(sd.ExactScore(rf, sd.densities.ring(8)))
    with pytest.raises(ValueError, match="infinite"):
        sd.solve(process, starts, solver=sd.DPMSolver3(), grid=sd.grids.LogSNR(5))
    with pytest.raises(ValueError, match="at most 4 nodes"):
        Adams().weights(HeldNoise(), None, torch.zeros(1, 5), None)


# ---- adapted grids ---------------------------------------------------------------------------------------------------


def test_an_adapted_grid_halves_the_error_on_new_starts_and_reports_its_cost(tmp_path):
    sde = sd.EDM(t_max=157.0, t_min=0.01)
    ring = sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8])
    score = sd.ExactScore(sde, ring.to(dtype=F64))
    flow, solver = sde.probability_flow(score), sd.ExponentialAdams()
    seen, unseen = score.sample(256, 157.0, seed=0), score.sample(1024, 157.0, seed=1)
    grid = sd.grids.adapt(flow, solver, 20, seen, solves=300)
    truth = sd.solve(flow, unseen, solver=solver, grid=sd.grids.LogSNR(1500)).x
    fixed, adapted = (
        (sd.solve(flow, unseen, solver=solver, grid=g).x - truth).norm(dim=1).median()
        for g in (sd.grids.LogSNR(20), grid)
    )
    assert adapted < 0.5 * fixed
    assert grid.pilot.rows == grid.pilot.calls * 256 and grid.pilot.solves <= 320
    assert grid.pilot.error_after < grid.pilot.error_before
    grid.save(tmp_path / "grid.json")
    again = sd.grids.Adapted.load(tmp_path / "grid.json")
    assert torch.equal(again.times, grid.times) and again.pilot == grid.pilot
    with pytest.raises(ValueError, match="adapt another"):
        sd.solve(flow, unseen, solver=solver, grid=again, t1=0.1)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="holds no adapted grid"):
        sd.grids.Adapted.load(tmp_path / "bad.json")
    with pytest.raises(TypeError, match="paths without noise"):
        sd.grids.adapt(sde.reverse(score), solver, 20, seen)


def test_a_warp_has_as_many_knots_as_asked_for(flow, starts):
    """Log steps are a line through two knots, and bend with three; a base grid of equal steps shows them as they are."""
    for knots, straight in ((2, True), (3, False)):
        grid = sd.grids.adapt(flow, sd.Heun(), 10, starts[:64], t1=0.05, base=sd.grids.Uniform, knots=knots, solves=60)
        bend = grid.times.diff().abs().log().diff().diff()
        assert float(grid.times.diff().abs().log().diff().abs().max()) > 0.05  # it did warp
        assert (float(bend.abs().max()) < 1e-9) == straight


def test_the_reference_of_an_adapted_grid_has_as_many_steps_as_asked_for(flow, starts):
    """The error before is the geometric mean distance to a solve with that many steps, 50 times as many by default."""
    for reference_steps, used in ((7, 7), (None, 200)):
        grid = sd.grids.adapt(
            flow, sd.Heun(), 4, starts, t1=0.05, base=sd.grids.Uniform, solves=5, reference_steps=reference_steps
        )
        ends = [sd.solve(flow, starts, solver=sd.Heun(), steps=n, t1=0.05).x for n in (4, used)]
        want = (ends[0] - ends[1]).norm(dim=1).log().mean().exp()
        assert grid.pilot.error_before == pytest.approx(float(want), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "^steps = 0: a solve needs at least one step"),
        ({"knots": 0}, ValueError, "^knots = 0: a warp needs at least 2"),
        ({"knots": 1}, ValueError, "^knots = 1: a warp needs at least 2"),
        ({"knots": 2.5}, TypeError, "^knots must be a whole number, got 2.5"),
        ({"knots": 10**9}, ValueError, "^knots = 1000000000 is more than 1,000,000"),
        ({"solves": 0}, ValueError, "^solves = 0: ask for a positive whole number"),
        ({"solves": True}, TypeError, "^solves must be a positive whole number, got True"),
        ({"reference_steps": 0}, ValueError, "^reference_steps = 0: ask for a positive whole number"),
        ({"reference_steps": -3}, ValueError, "^reference_steps = -3: ask for a positive whole number"),
        ({"reference_steps": 4}, ValueError, "^reference_steps = 4 must lie above steps = 4"),
        ({"reference_steps": 10**8}, ValueError, "^reference_steps = 100,000,000 must .* be at most 10,000,000"),
        ({"t0": 2.0}, ValueError, r"^t0 = 2 is outside \[0, 1\]"),
        ({"t0": 0.05}, ValueError, "^t0 = t1 = 0.05: there is nothing to solve"),
        ({"x": [[1.0, 2.0]]}, TypeError, r"^x must be a torch.Tensor of shape \(B, \*event\), got list"),
        ({"x": torch.ones(3, 2, dtype=torch.int64)}, TypeError, r"^x must be a real floating-point .* use x.float\(\)"),
        ({"x": torch.full((3, 2), math.inf)}, ValueError, "^x has NaN or infinite entries in 3 of 3"),
        ({"base": "LogSNR"}, TypeError, "^base must be a kind of grid such as grids.Karras, got 'LogSNR'"),
        ({"base": sd.grids.LogSNR(5)}, TypeError, "^base must be a kind of grid such as grids.Karras"),
        ({"base": lambda n: n}, TypeError, "^base must make a grid .* it made int"),
        (
            {"solver": sd.DormandPrince()},
            TypeError,
            "that steps along a grid, such as ExponentialAdams.*, got DormandPrince",
        ),
        ({"solver": sd.Heun}, TypeError, "^solver must be an object .* got the class Heun"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_an_adapted_grid_are_named(flow, starts, settings, error, message):
    with pytest.raises(error, match=message):
        sd.grids.adapt(flow, **({"solver": sd.Heun(), "steps": 4, "x": starts, "t1": 0.05} | settings))


@pytest.mark.parametrize("times", [[[1.0, 0.5], [0.3, 0.1]], [1.0], 1.0])
def test_an_adapted_grid_is_a_line_of_nodes(tmp_path, times):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"times": times, "pilot": None}))
    with pytest.raises(ValueError, match=r"^grid must be a 1-D sequence of at least 2 nodes, got shape"):
        sd.grids.Adapted.load(path)
