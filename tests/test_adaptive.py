"""The native adaptive ODE solvers: order and tolerance from both sides, steps per sample, exact counts, no quiet failure."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff.solvers import EmbeddedRungeKutta, walk
from sdediff.solvers.adaptive import _Slopes

PAIRS = [sd.Tsitouras, sd.DormandPrince, sd.BogackiShampine]
pairs = pytest.mark.parametrize("pair", PAIRS)
MU, BETA = 0.7, 3.0


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ring_flow():
    """The flow of eight narrow modes: nothing cancels, and samples near a boundary need more steps than others."""
    sde = sd.VP()
    return sde.probability_flow(sd.ExactScore(sde, sd.densities.ring(8)))


class Gaussians:
    """VP with x_0 ~ N(MU, s²), s given per sample as the condition; keeps a count of the rows it was asked for."""

    def __init__(self, batch: int = 0):
        self.rows = torch.zeros(batch, dtype=torch.long)
        self.calls = 0
        self.flow = sd.VP(BETA, BETA).probability_flow(self.score)

    def score(self, x, t, cond):
        std, ids = cond["std"], cond["id"]
        assert std.shape == ids.shape == x.shape[:1], "the condition must belong to the rows asked for"
        self.calls += 1
        self.rows += torch.bincount(ids, minlength=len(self.rows))
        variance = 1 + (std.square().reshape(-1, *[1] * (x.ndim - 1)) - 1) * torch.exp(-BETA * t)
        return -(x - MU * torch.exp(-BETA * t / 2)) / variance

    def solve(self, x, std, solver, ids=None, **kw):
        cond = {"std": std, "id": torch.arange(len(x)) if ids is None else ids, "note": "kept as it is"}
        return sd.solve(self.flow, x, solver=solver, cond=cond, **kw)


def transported(x, s, t, std=0.3):
    """The flow of a Gaussian, exactly: m(t) + √(v(t)/v(s)) (x - m(s))."""
    variances = [1 + (std**2 - 1) * math.exp(-BETA * u) for u in (s, t)]
    means = [MU * math.exp(-BETA * u / 2) for u in (s, t)]
    return means[1] + math.sqrt(variances[1] / variances[0]) * (x - means[0])


def gaussian_flow(std=0.3):
    sde = sd.VP(BETA, BETA)
    return sde.probability_flow(sd.ExactScore(sde, sd.densities.Mixture([[MU]], std=std)))


# ---- the pairs --------------------------------------------------------------------------------------------------------------


def trees(order: int):
    """The rooted trees with this many vertices, each the sorted tuple of its branches."""
    if order == 1:
        return {()}
    found = set()
    for sizes in partitions(order - 1):
        for branches in itertools.product(*(trees(size) for size in sizes)):
            found.add(tuple(sorted(branches)))
    return found


def partitions(n: int, most: int | None = None):
    if n == 0:
        yield ()
    for first in range(min(n, most or n), 0, -1):
        for rest in partitions(n - first, first):
            yield (first, *rest)


def size(tree) -> int:
    return 1 + sum(map(size, tree))


def density(tree) -> int:
    return size(tree) * math.prod(map(density, tree))


def stage_weights(tree, a: np.ndarray) -> np.ndarray:
    product = np.ones(len(a))
    for branch in tree:
        product = product * (a @ stage_weights(branch, a))
    return product


def defect(weights: np.ndarray, a: np.ndarray, order: int) -> float:
    """The largest violation of an order condition of exactly this order."""
    return max(abs(weights @ stage_weights(tree, a) - 1 / density(tree)) for tree in trees(order))


@pairs
def test_coefficients_satisfy_every_order_condition_and_no_more(pair):
    """The solution up to its order, the companion up to one less; neither beyond."""
    solver = pair()
    order = int(solver.orders.ode)
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    a = np.array([row + [0.0] * (len(solver.a) - len(row)) for row in solver.a])
    solution = np.array([*solver.a[-1], 0.0])
    companion = solution - np.array(solver.error)
    for weights, claimed in ((solution, order), (companion, order - 1)):
        for n in range(1, claimed + 1):
            assert defect(weights, a, n) < 1e-13
        assert defect(weights, a, claimed + 1) > 1e-5


@pairs
def test_order_of_the_step_and_of_its_error_estimate(pair):
    """With equal steps on the ring's flow: the solution within 0.2 of its order; the estimate, of one step, of h^order."""
    solver, flow = pair(), ring_flow()
    order = solver.orders.ode
    x = randn(32, 2)
    s, t = 0.55, 0.15  # where modes part, and nothing is stiff yet
    reference = scipy_flow(flow, x, s, t)
    errors, estimates = [], []
    counts = [24, 48, 96] if order == 5 else [96, 192, 384]
    for n in counts:
        times = torch.linspace(s, t, n + 1, dtype=torch.float64)
        y, slope, largest = x, flow.drift(x, s), []
        for u, v in itertools.pairwise(times):
            y, error, slope = solver.step(flow.drift, y, u.expand(len(x)), v.expand(len(x)), slope)
            largest.append(error.abs().max(1).values)
        errors.append((y - reference).norm(dim=1))
        estimates.append(torch.stack(largest).max(0).values)
    for values, claimed in ((errors, order), (estimates, order)):
        table = torch.stack(values).log2()
        slopes = (table[0] - table[-1]) / 2
        assert abs(float(slopes.median()) - claimed) < 0.2


def scipy_flow(flow, x, s, t):
    return sd.solve(flow, x, solver=sd.Scipy("DOP853", rtol=1e-13, atol=1e-13), t0=s, t1=t).x


@pytest.fixture(scope="module")
def ring():
    """Starts and where the exact flow takes them."""
    flow, x = ring_flow(), randn(16, 2)
    return flow, x, scipy_flow(flow, x, 1.0, 0.0)


TOLERANCES = [1e-4, 1e-6, 1e-8, 1e-10]


def keeps_its_tolerance(solver_of, flow, x, exact, tolerances=TOLERANCES):
    """The median error is proportional to the tolerance: within a factor 10 above it and 30 below, and with a slope near 1."""
    errors = []
    for tol in tolerances:
        out = sd.solve(flow, x, solver=solver_of(rtol=tol, atol=tol), t0=1.0, t1=0.0)
        errors.append(float((out.x - exact).norm(dim=1).median()))
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    ratios = [e / tol for e, tol in zip(errors, tolerances, strict=True)]
    return 0.8 < slope < 1.3 and max(ratios) < 10 and min(ratios) > 1 / 30


@pytest.mark.parametrize("pair", PAIRS[:2])
def test_error_is_proportional_to_the_tolerance(pair, ring):
    assert keeps_its_tolerance(pair, *ring)


def test_error_is_proportional_to_the_tolerance_at_low_order(ring):
    assert keeps_its_tolerance(sd.BogackiShampine, *ring, tolerances=[1e-3, 1e-4, 1e-5, 1e-6, 1e-7])


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_a_wrong_error_estimate_is_seen(ring, factor):
    def spoiled(**kw):
        solver = sd.DormandPrince(**kw)
        solver.error = [factor * e for e in solver.error]
        return solver

    assert not keeps_its_tolerance(spoiled, *ring)


def test_a_stale_first_slope_is_seen(ring, monkeypatch):
    monkeypatch.setattr(_Slopes, "settle", lambda self, x, t, accepted: None)

    def patient(**kw):
        return sd.DormandPrince(max_steps=200, **kw)

    with pytest.raises((AssertionError, sd.SolveError)):
        assert keeps_its_tolerance(patient, *ring, tolerances=[1e-3, 1e-4])


# ---- cost -------------------------------------------------------------------------------------------------------------------


def test_as_cheap_as_scipys_at_equal_tolerance(ring):
    """The same pair, one sample at a time: no more evaluations, no larger error than twice."""
    flow, x, exact = ring
    for tol in (1e-3, 1e-6):
        ours = sd.solve(flow, x, solver=sd.DormandPrince(rtol=tol, atol=tol), t0=1.0, t1=0.0)
        theirs = [
            sd.solve(flow, x[i : i + 1], solver=sd.Scipy("RK45", rtol=tol, atol=tol), t0=1.0, t1=0.0) for i in range(16)
        ]
        assert float(ours.stats["nfe"].double().mean()) < 1.02 * np.mean([s.stats["nfe"] for s in theirs])
        error = (ours.x - exact).norm(dim=1).median()
        assert float(error) < 2 * np.median([float((s.x - e).norm()) for s, e in zip(theirs, exact, strict=True)])


def rejected_share(controller):
    """On a pendulum, whose best step goes slowly up and down: a good controller is hardly ever refused."""
    solver = sd.DormandPrince(rtol=1e-8, atol=1e-8)
    solver.controller = controller
    pendulum = Plain(lambda x, t: torch.stack([x[:, 1], -torch.sin(x[:, 0])], 1))
    pendulum.t_max = 20.0
    out = sd.solve(pendulum, torch.tensor([[1.0, 0.0], [2.0, 0.0]]).double(), solver=solver, t0=0.0, t1=20.0)
    return float(out.stats["rejected"].sum() / out.stats["steps"].sum())


def test_controller():
    """Few rejections; without its margin of safety many."""
    assert rejected_share(walk.Controller(5)) < 0.02
    assert rejected_share(walk.Controller(5, safety=1.0)) > 0.1


def test_controller_by_hand():
    """θ r^-α r_prev^β after acceptance, θ r^(-1/k) after rejection, no growth straight after one, bounds."""
    ratio = torch.tensor([0.5, 4.0, 0.1, 0.0, math.inf, 1e-9], dtype=torch.float64)
    previous = torch.full_like(ratio, 0.25)
    refused = torch.tensor([False, False, True, False, False, False])
    factor = walk.Controller(5).factor(ratio, previous, ratio <= 1, refused)
    by_hand = [0.9 * 0.5**-0.14 * 0.25**0.08, 0.9 * 4.0**-0.2, 1.0, 10.0, 0.2, 10.0]
    assert torch.allclose(factor, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12)


def test_one_stiff_sample_costs_the_others_nothing():
    """Of 64 samples one has a thousandth of the others' width: the others are asked for not once more than without it."""
    std = torch.full((64,), 0.5, dtype=torch.float64)
    std[17] = 5e-4
    x, others = randn(64, 2), torch.arange(64) != 17
    solver = sd.Tsitouras(rtol=1e-6, atol=1e-6)
    together, apart = Gaussians(64), Gaussians(64)
    out = together.solve(x, std, solver, t0=1.0, t1=0.0)
    apart.solve(x[others], std[others], solver, ids=torch.arange(64)[others], t0=1.0, t1=0.0)
    assert together.rows[17] > 4 * together.rows[others].max()
    rise = together.rows[others].double() / apart.rows[others].double()
    assert float(rise.max()) <= 1.01
    exact = torch.stack([transported(row, 1.0, 0.0, float(s)) for row, s in zip(x, std, strict=True)])
    assert float((out.x - exact).abs().max()) < 1e-4


def test_counts_are_those_of_a_counting_score():
    """Per sample, in total, and the calls; first the slope, a probe for the first step, then six for each attempt."""
    std = torch.linspace(0.01, 1.5, 12, dtype=torch.float64)
    problem = Gaussians(12)
    out = problem.solve(randn(12, 3), std, sd.DormandPrince(rtol=1e-5, atol=1e-5), t0=1.0, t1=0.0)
    stats = out.stats
    assert stats["nfe"].dtype == torch.long and torch.equal(stats["nfe"], problem.rows)
    assert stats["score_calls"] == problem.calls == int(problem.rows.max())
    assert torch.equal(stats["nfe"], 2 + 6 * (stats["steps"] + stats["rejected"]))
    assert int(stats["rejected"].sum()) > 0 and len(set(stats["nfe"].tolist())) > 3
    sampled = sd.sample(
        problem.flow, 12, solver=sd.DormandPrince(), x=randn(12, 3), t1=0.0, batch_size=5,
        cond={"std": std, "id": torch.arange(12)},
    )  # fmt: skip
    assert sampled.stats["nfe"].shape == sampled.stats["steps"].shape == (12,)


def test_guidance_counts_its_two_evaluations():
    sde = sd.VP(BETA, BETA)
    score = sd.FunctionScore(lambda x, t, cond: -(x - cond) / (1 - 0.5 * torch.exp(-BETA * t)), sde)
    flow = sde.probability_flow(sd.ClassifierFree(score, 2.0, torch.zeros(1, 1)))
    out = sd.solve(flow, randn(4, 1), solver=sd.Tsitouras(), cond=randn(4, 1), t0=1.0, t1=0.0)
    assert torch.equal(out.stats["nfe"], 2 * (2 + 6 * (out.stats["steps"] + out.stats["rejected"])))


# ---- what it gives ----------------------------------------------------------------------------------------------------------


@pairs
def test_saved_times_both_clocks_and_shapes(pair):
    """To within the tolerance of the exact flow at every saved time, from noise to data and back, for any event shape."""
    tol = 1e-7 if pair is sd.BogackiShampine else 1e-9
    flow = sd.VP(BETA, BETA).probability_flow(
        lambda x, t: -(x - MU * torch.exp(-BETA * t / 2)) / (1 + (0.09 - 1) * torch.exp(-BETA * t))
    )
    wanted = [0.9, 0.6123, 0.6122, 0.05]
    for shape in ((5,), (4, 3), (3, 2, 2, 1)):
        x = randn(*shape)
        out = sd.solve(flow, x, solver=pair(rtol=tol, atol=tol), t0=1.0, t1=0.0, save_at=wanted)
        assert out.ts.tolist() == [*wanted, 0.0] and out.xs.shape == (5, *shape)
        for t, state in zip(out.ts.tolist(), out.xs, strict=True):
            assert float((state - transported(x, 1.0, t)).abs().max()) < 10 * tol
        back = sd.solve(flow, out.x, solver=pair(rtol=tol, atol=tol), t0=0.0, t1=1.0)
        assert float((back.x - x).abs().max()) < 100 * tol


def test_saving_does_not_interpolate():
    """The state at a saved time is a step's end: as good as the end of a solve that stops there, at loose tolerance too."""
    flow, x = ring_flow(), randn(64, 2, seed=1)
    exact = scipy_flow(flow, x, 1.0, 0.3)
    solver = sd.Tsitouras(rtol=1e-4, atol=1e-4)
    saved = sd.solve(flow, x, solver=solver, t0=1.0, t1=0.0, save_at=[0.3]).xs[0]
    stopped = sd.solve(flow, x, solver=solver, t0=1.0, t1=0.3).x
    assert float((saved - exact).norm(dim=1).median()) < 2 * float((stopped - exact).norm(dim=1).median())


def test_a_sample_does_not_depend_on_its_batch():
    """Alone or among others: the same steps, the same state (to rounding, which reaches it through the step sizes)."""
    flow, x = ring_flow(), randn(9, 2, seed=2)
    solver = sd.Tsitouras(rtol=1e-6, atol=1e-6)
    together = sd.solve(flow, x, solver=solver, t0=1.0, t1=0.0, noise=sd.PerSample(range(9)))
    for i in (0, 4, 8):
        alone = sd.solve(flow, x[i : i + 1], solver=solver, t0=1.0, t1=0.0)
        assert alone.stats["steps"] == together.stats["steps"][i]
        assert torch.allclose(alone.x[0], together.x[i], rtol=0, atol=1e-9)


PROCESSES = [sd.VP(), sd.SubVP(), sd.VE(), sd.EDM(), sd.RectifiedFlow(), sd.CosineVP(), sd.OU()]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_process_from_pure_noise_to_the_data(sde):
    """From t_max, where alpha may vanish, to t = 0 where the flow is finite there: against the exact flow of a Gaussian."""
    m0, s0 = 0.7, 0.3
    flow = sde.probability_flow(sd.ExactScore(sde, sd.densities.Mixture([[m0]], std=s0)))
    start, end = sde.t_max, sde.t_min if isinstance(sde, sd.CosineVP) else 0.0

    def law(t):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        return alpha * m0, math.hypot(alpha * s0, sigma)

    (ms, ss), (mt, st) = law(start), law(end)
    x = ms + ss * randn(6, 1)
    out = sd.solve(flow, x, solver=sd.Tsitouras(rtol=1e-8, atol=1e-8), t0=start, t1=end)
    assert float((out.x - (mt + st / ss * (x - ms))).abs().max()) < 1e-6


def test_float32():
    """Stays float32 at float32's accuracy; a tolerance that float32 cannot tell is named."""
    flow, x = gaussian_flow(), randn(8, 1, dtype=torch.float32)
    out = sd.solve(flow, x, solver=sd.Tsitouras(), t0=1.0, t1=0.0)
    assert out.x.dtype == torch.float32
    assert float((out.x - transported(x, 1.0, 0.0)).abs().max()) < 5e-5
    with pytest.warns(UserWarning, match="finer than a torch.float32") as caught:
        sd.solve(flow, x, solver=sd.Tsitouras(rtol=1e-8), t0=1.0, t1=0.9)
    assert caught[0].filename == __file__  # the line that called solve


# ---- how it fails -----------------------------------------------------------------------------------------------------------


class Plain(sd.ODE):
    """An ODE from a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def f(self, x, t):
        self.calls += 1
        assert self.calls < 20_000, "loops for ever"
        return self.function(x, t)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["after", "from the start", "at the end"])
def test_a_drift_that_is_not_finite_is_named(bad, where):
    """Samples, step and time; the last finite states are handed over."""
    hit = {"after": lambda t: t > 0.5, "from the start": lambda t: t >= 0, "at the end": lambda t: t == 1.0}[where]
    concerned = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)

    def drift(x, t):
        rows = x[:, 1:] > 0.5
        return torch.where(rows & hit(t), bad, torch.cat([-x[:, :1], 0 * x[:, 1:]], 1))

    x = torch.stack([torch.ones(5, dtype=torch.float64), concerned], 1)
    with pytest.raises(sd.NonFiniteError) as caught:
        sd.solve(Plain(drift), x, solver=sd.Tsitouras(), t0=0.0, t1=1.0)
    error = caught.value
    assert error.samples and set(error.samples) <= {2, 4}
    assert error.t == pytest.approx({"after": 0.5, "from the start": 0.0, "at the end": 1.0}[where], abs=1e-9)
    assert error.step == 0 if where == "from the start" else error.step > 0
    assert bool(error.state.isfinite().all()) and error.state.shape == x.shape
    assert "sample" in str(error) and str(error.samples[0]) in str(error)


def test_an_overflow_is_survived_or_named():
    """A step that overshoots into overflow is rejected; an exponential that really overflows is named."""
    careful = Plain(lambda x, t: -torch.exp(5 * x))  # e^(-5x) grows by 5 a unit of time: large steps overflow
    out = sd.solve(careful, torch.full((1, 1), 4.0, dtype=torch.float64), solver=sd.Tsitouras(), t0=0.0, t1=1.0)
    assert float(out.x) == pytest.approx(-math.log(math.exp(-20) + 5) / 5, abs=1e-4)
    with pytest.raises(sd.SolveError, match="sample 0 after"):
        sd.solve(
            Plain(lambda x, t: 1e4 * x), torch.ones(1, 1, dtype=torch.float64), solver=sd.Tsitouras(), t0=0.0, t1=1.0
        )


def test_a_state_that_overflows_is_named():
    """A constant slope has no error, yet x = 1e307 t leaves float64 at t = 17.98: found there, not at the end."""
    flow = Plain(lambda x, t: torch.full_like(x, 1e307))
    flow.t_max = 30.0
    with pytest.raises(sd.NonFiniteError, match="2 of 2 samples") as caught:
        sd.solve(flow, torch.zeros(2, 1).double(), solver=sd.Tsitouras(), t0=0.0, t1=30.0)
    assert caught.value.t == pytest.approx(17.9769, abs=1e-3) and caught.value.step > 0


def test_a_singularity_is_named():
    """x' = x² from 2 is infinite at t = 1/2; samples from 1/4 get through."""
    x = torch.tensor([[0.25], [2.0], [0.25]], dtype=torch.float64)
    with pytest.raises(sd.SolveError, match=r"1 of 3 samples \(first: \[1\]\): sample 1 after \d+ steps at t = 0\.5"):
        sd.solve(Plain(lambda x, t: x * x), x, solver=sd.Tsitouras(), t0=0.0, t1=1.0)


def test_a_jump_that_cannot_be_resolved_is_stepped_over():
    """A discontinuous drift costs rejections, not the solve."""
    out = sd.solve(
        Plain(lambda x, t: torch.where(t < 1 / 3, torch.ones_like(x), -2 * torch.ones_like(x))),
        torch.zeros(2, 1, dtype=torch.float64), solver=sd.Tsitouras(rtol=1e-8, atol=1e-8), t0=0.0, t1=1.0,
    )  # fmt: skip
    assert torch.allclose(out.x, torch.full_like(out.x, -1.0), atol=1e-6)


def test_max_steps_is_named():
    with pytest.raises(sd.SolveError, match=r"max_steps = 5 for 3 of 3 samples .*steps at t = .*raise max_steps"):
        sd.solve(ring_flow(), randn(3, 2), solver=sd.Tsitouras(rtol=1e-9, max_steps=5), t0=1.0, t1=0.0)


def test_what_it_refuses():
    sde = sd.VP()
    back = sde.reverse(lambda x, t: -x)
    with pytest.raises(TypeError, match="AdaptiveHeun for an SDE"):
        sd.solve(back, randn(2, 1), solver=sd.Tsitouras())
    with pytest.raises(ValueError, match="steps="):
        sd.solve(ring_flow(), randn(2, 2), solver=sd.Tsitouras(), steps=10)
    for bad in ({"rtol": 0.0}, {"atol": -1.0}, {"max_steps": 0}, {"rtol": math.inf}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            sd.Tsitouras(**bad)
    with pytest.raises(ValueError, match="need 1, 0"):
        EmbeddedRungeKutta([[], [0.5]], [0.5, -0.5], 1)
    with pytest.raises(ValueError, match="row i of length i"):
        EmbeddedRungeKutta([[], [0.5, 0.5]], [0.5, -0.5], 1)


def test_a_pair_of_ones_own():
    """Heun's method with Euler's as companion, first same as last, keeps its tolerance too."""
    out = sd.solve(
        gaussian_flow(), randn(4, 1), t0=1.0, t1=0.0,
        solver=EmbeddedRungeKutta([[], [1.0], [0.5, 0.5]], [-0.5, 0.5, 0.0], 2, rtol=1e-6, atol=1e-6),
    )  # fmt: skip
    assert float((out.x - transported(randn(4, 1), 1.0, 0.0)).abs().max()) < 1e-4
