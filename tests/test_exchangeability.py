"""Exchangeability of there and back, and the error of a sampler in parts."""

from __future__ import annotations

import inspect
import json
import math
from typing import get_type_hints

import matplotlib.figure
import pytest
import torch
from scipy import stats

import sdediff as sd
from sdediff import testing
from sdediff.verify.error_budget import PARTS, error_budget
from sdediff.verify.exchangeability import symmetry_test

D = sd.densities
VP = sd.VP()
RING = D.ring(8)
EXACT = sd.ExactScore(VP, RING)
LINE = D.bimodal(weight=0.9)


def check(density=RING, sde=VP, n=4000, **options):
    return sd.verify.exchangeability(sde, density, n=n, **options)


def failed(report) -> list[str]:
    return [row.what for row in report.rows if not row.passed]


# ---- the sign-flip test --------------------------------------------------------------------------------------------


def test_the_bound_holds_where_all_signs_can_be_enumerated():
    """All 2^12 choices of sign of given sizes, even or very uneven: the p-value is at least the true tail."""
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 12) - 1
    for power in (0.0, 1.0, 4.0):
        sizes = torch.rand(12, generator=generator, dtype=torch.float64) ** power
        sums = (signs @ sizes).abs()
        for k in range(0, len(signs), 37):
            p = symmetry_test(signs[k] * sizes).p
            tail = float((sums >= sums[k] - 1e-12).double().mean())
            assert p >= tail - 1e-12
    assert symmetry_test(torch.ones(50)).p < 1e-10


def test_level_and_power_of_the_sign_flips():
    """Heavy tails do not cost the level; an effect of the size stated is seen."""
    generator = torch.Generator().manual_seed(1)
    n, level = 400, 0.01
    heavy = [torch.randn(n, generator=generator) / torch.randn(n, generator=generator) for _ in range(2000)]
    assert sum(symmetry_test(d).p <= level for d in heavy) <= stats.binom.isf(1e-4, 2000, level)
    effect = symmetry_test(torch.randn(n, generator=generator)).detectable(level)
    missed = sum(symmetry_test(effect + torch.randn(n, generator=generator)).p > level for _ in range(1000))
    assert missed <= stats.binom.isf(1e-4, 1000, 0.01)
    assert effect < 1.2 * (stats.norm.isf(level / 2) + stats.norm.isf(0.01)) / math.sqrt(n)  # and it costs little


def test_a_margin_is_a_margin():
    d = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 0.5
    assert symmetry_test(d).p < 1e-10 and symmetry_test(d, 0.6).p == 1.0
    assert symmetry_test(torch.full((10,), math.nan)).p == 0.0
    assert symmetry_test(torch.zeros(10)).p == 1.0


# ---- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sde",
    [VP, sd.OU(), sd.SubVP(), sd.CosineVP(), sd.VE(), sd.EDM(), sd.RectifiedFlow()],
    ids=lambda sde: type(sde).__name__,
)
def test_anderson_s_reversal_is_exchangeable(sde):
    for density in (RING, LINE):
        report = check(density, sde)
        assert report.passed, failed(report)
        assert len(report.rows) == 6 and all(row.detectable < 0.15 for row in report.rows)


MUTANTS = {
    "x 1.1": lambda x, t: 1.1 * EXACT(x, t),
    "minus": lambda x, t: -EXACT(x, t),
    "dropped mode": sd.ExactScore(VP, D.Mixture(RING.means[:7], std=0.1)),
    "stale": lambda x, t: EXACT(x, (t + 0.02).clamp(max=1.0)),
    "wide modes": sd.ExactScore(VP, D.ring(8, std=0.12)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_scores_are_rejected(name):
    assert not check(score=MUTANTS[name]).passed


def test_a_wrong_solver_is_rejected():
    class TooLoud(sd.EulerMaruyama):
        def prepare(self, process, grid, noise):
            return sd.Solver.prepare(self, process, grid, noise)

        def step(self, process, x, s, t, noise):
            return x + process.drift(x, s) * (t - s) + 2**0.5 * (process.diffusion(x, s) @ noise.increment(s, t))

    assert check(solver=sd.EulerMaruyama(), steps=100, n=1000).passed
    assert not check(solver=TooLoud(), steps=100, n=1000).passed


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_another_stochasticity_keeps_the_marginals_and_not_the_pair(eta):
    report = check(LINE, n=100_000, eta=eta, times=[0.33], steps=60)
    assert failed(report) and all("b(x)" in what for what in failed(report)), failed(report)
    assert check(LINE, n=100_000, times=[0.33], steps=60).passed


def test_as_an_assertion():
    """The report where it passes; with a flow for the way back, an error that holds the report."""
    options = {"n": 2000, "times": [0.33], "steps": 40}
    assert testing.exchangeability(VP, LINE, **options) == check(LINE, **options)
    with pytest.raises(AssertionError, match=r"(?s)Exchangeability of VP, η = 0.*turn at t = 0\.33.*FAIL"):
        testing.exchangeability(VP, RING, score=MUTANTS["minus"], eta=0.0, **options)


def test_every_check_is_an_assertion_too():
    checks = [name for name in sd.verify.__all__ if inspect.isfunction(vars(sd.verify)[name])]
    reports = {n for n in checks if issubclass(get_type_hints(vars(sd.verify)[n])["return"], sd.verify.Report)}
    assert len(reports) == 8 and reports <= set(testing.__all__)
    for name in reports:
        assert inspect.unwrap(getattr(testing, name)) is vars(sd.verify)[name]
        assert getattr(testing, name) is not vars(sd.verify)[name]


def test_what_exchangeability_refuses():
    with pytest.raises(TypeError, match=r"LinearSDE.*duality"):
        sd.verify.exchangeability(sd.Overdamped(RING), RING)
    with pytest.raises(TypeError, match="Banana"):
        sd.verify.exchangeability(VP, D.Banana())
    with pytest.raises(ValueError, match="not inside"):
        check(times=[1.0])
    with pytest.raises(ValueError, match="must be even"):
        check(steps=11)
    with pytest.raises(ValueError, match="budget"):
        check(budget=0.0)


# ---- the error in parts --------------------------------------------------------------------------------------------


def parts(score=EXACT, sde=VP, density=RING, solver=None, n=1000, **options):
    if not options.keys() & {"steps", "grid"}:
        options["steps"] = 60
    return error_budget(score, sde, density, solver or sd.DPMSolverPP2M(), n=n, **options)


def test_the_parts_add_up():
    found = parts(lambda x, t: 1.1 * EXACT(x, t), solver=sd.EulerMaruyama(), repeats=3)
    assert [part.name for part in found.parts] == list(PARTS)
    for what, total in found.total.items():
        assert sum(part.adds[what].value for part in found.parts) == pytest.approx(total.value, abs=1e-12)


def test_nothing_is_blamed_where_nothing_is_wrong():
    found = parts(solver=sd.Heun(), grid=sd.grids.LogSNR(60))
    assert set(found.largest.values()) == {"none"}, str(found)
    assert all(not total.seen for total in found.total.values())
    score = next(part for part in found.parts if part.name == "score")
    assert all(add.value == add.error == 0 for add in score.adds.values())


SHIFTED = D.Mixture([[2.0, 2.0], [4.0, 2.5]], std=0.2)
SHORT, LATE = sd.VP(0.1, 3.0), sd.VP(t_min=0.08)
FINE = {"solver": sd.Heun(), "grid": sd.grids.LogSNR(40)}
WORLDS = {
    "early stop": {"sde": LATE, "score": sd.ExactScore(LATE, RING), **FINE},
    "steps": {"solver": sd.EulerMaruyama(), "steps": 12},
    "score": {"score": lambda x, t: 1.1 * EXACT(x, t), **FINE},
    "prior": {"sde": SHORT, "density": SHIFTED, "score": sd.ExactScore(SHORT, SHIFTED), **FINE},
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_guilty_part_is_named(name):
    found = parts(**WORLDS[name])
    assert set(found.largest.values()) == {name}, str(found)
    guilty = next(part for part in found.parts if part.name == name)
    for part in found.parts:
        if part.name != name:
            assert part.alone.value < 0.2 * guilty.alone.value + 3 * part.alone.error, str(found)


def test_the_numbers_are_those_of_gaussians():
    """Gaussian data and the flow, all in closed form: the prior's, the stop's and a scaled score's errors of variance."""
    sde, s = sd.VP(0.1, 4.0, t_min=0.05), 0.6
    data = D.gaussian((0.0, 0.0), s)
    exact = sd.ExactScore(sde, data)
    found = parts(exact, sde, data, sd.RK4(), n=20_000, steps=30, repeats=6)
    adds = {part.name: part.adds["variance"] for part in found.parts}

    def variance(t):
        return float(sde.alpha(t)) ** 2 * s**2 + float(sde.sigma(t)) ** 2

    stop = variance(0.05) / s**2 - 1
    prior = (float(sde.sigma(1.0)) ** 2 / variance(1.0) - 1) * variance(0.05) / s**2
    assert abs(adds["early stop"].value - stop) < 5 * adds["early stop"].error < 0.05
    assert abs(adds["prior"].value - prior) < 5 * adds["prior"].error + 5e-3 and abs(prior) > 0.05
    assert abs(adds["steps"].value) < 5 * adds["steps"].error < 0.05 and adds["score"].value == 0


def test_the_distance_across_coupled_samples_is_unbiased():
    """Neighbours share their random numbers. For N(0, I) and N(0, 1.2² I) in the plane, E|X - Y| is known."""
    from sdediff.verify.error_budget import _distance_of_neighbours

    generator = torch.Generator().manual_seed(0)
    pairs, free = [], []
    for _ in range(60):
        x, y = (torch.randn(300, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        pairs.append(_distance_of_neighbours(x, 1.2 * x))
        free.append(sd.metrics.energy_distance(x, 1.2 * y))
    exact = math.sqrt(math.pi / 2) * (2 * math.sqrt(1 + 1.44) - math.sqrt(2) * 2.2)
    found, spread = torch.tensor(pairs), torch.tensor(free).std()
    assert abs(float(found.mean()) - exact) < 5 * float(found.std()) / math.sqrt(60) < 0.05 * exact
    assert float(found.std()) < 0.2 * float(spread)  # that is what the coupling is for


def test_adaptive_solvers_atoms_and_priors_of_ones_own():
    found = parts(solver=sd.DormandPrince(rtol=1e-4, atol=1e-4), repeats=2, n=300, steps=None)
    assert "its own steps" in found.title
    atoms = D.Empirical(RING.sample(40, seed=0).double())
    found = parts(sd.ExactScore(VP, atoms), VP, atoms, repeats=2, n=300, steps=30)
    assert list(found.total) == ["energy distance", "variance"]

    class Far:
        def from_noise(self, z):
            return z + 6

    assert parts(prior=Far(), n=500, steps=30).largest["energy distance alone"] == "prior"


def test_table_figure_and_json():
    found = parts(repeats=2, n=300, steps=20)
    figure = found.plot()
    assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) == 3
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [*PARTS, "total"]
    lengths = [patch.get_width() for patch in figure.axes[1].patches[:5]]
    assert lengths[4] == pytest.approx(found.total["variance"].value)
    content = json.loads(found.to_json())
    assert content["parts"][0]["name"] == "early stop" and content["largest"] == found.largest
    text = str(found)
    assert "total" in text and text.count("±") > 20


def test_what_error_budget_refuses():
    with pytest.raises(TypeError, match="LinearSDE"):
        error_budget(EXACT, sd.Overdamped(RING), RING, sd.EulerMaruyama(), steps=5)
    with pytest.raises(NotImplementedError, match="closed form"):
        error_budget(EXACT, VP, D.Banana(), sd.EulerMaruyama(), steps=5)
    with pytest.raises(ValueError, match="repeats"):
        parts(repeats=1)
    with pytest.raises(ValueError, match="exactly one"):
        error_budget(EXACT, VP, RING, sd.EulerMaruyama(), n=500)
    with pytest.raises(sd.SolveError) as caught:
        parts(lambda x, t: EXACT(x, t) * math.inf, steps=10, repeats=2)
    assert "score under test" in "".join(caught.value.__notes__)


@pytest.mark.soak
def test_false_alarms_of_exchangeability():
    """100 repetitions of the true case at level 1e-4."""
    assert not [seed for seed in range(100) if not check(n=1000, seed=seed).passed]
