"""check_sde: right processes pass, what fails or is left out is told with reasons, and false alarms are as rare as it says."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from scipy import stats
from torch.distributions import Independent, LogNormal

import sdediff as sd
from sdediff.cli import main
from sdediff.testing import check_sde as assert_sde
from sdediff.testing import passes
from sdediff.threads import one_thread
from sdediff.verify import budget, chains, halving, moments, particles, report, statistics
from sdediff.verify.check_sde import _case
from sdediff.verify.contract import contract
from sdediff.verify.differences import slope
from sdediff.verify.page import page
from sdediff.verify.particles import merged

D = sd.densities


class Custom(sd.SDE):
    """Three lines, as in the documentation."""

    def f(self, x, t):
        return -(1 + t) * x + 0.5

    def g(self, x, t):
        return 1.0


class Cubic(sd.SDE):
    """No kernel: a double well with noise that depends on all of the state."""

    def f(self, x, t):
        return x - x**3

    def g(self, x, t):
        return 0.5 + 0.2 * x.reshape(len(x), -1).sum(1).tanh().reshape(-1, *[1] * (x.ndim - 1))


def positive(d=2):
    mean = torch.zeros(d, dtype=torch.float64)
    return D.as_density(Independent(LogNormal(mean, mean + 0.5), 1))


PROCESSES = {
    "OU": sd.OU,
    "VP": sd.VP,
    "SubVP": sd.SubVP,
    "CustomVP": lambda: sd.CustomVP(lambda t: 1 + 5 * t**2),
    "CosineVP": sd.CosineVP,
    "VE": sd.VE,
    "EDM": sd.EDM,
    "RectifiedFlow": sd.RectifiedFlow,
}
COUPLED = {
    "CLD": sd.CLD,
    "CorrelatedOU": lambda: sd.CorrelatedOU(torch.tensor([[1.0, 0.0], [0.6, 0.8]])),
    "Blurring": lambda: sd.Blurring((2, 2)),
}
DENSITIES = {
    "ring": lambda: D.ring(8),
    "moons": D.moons,
    "full": lambda: D.anisotropic(3, weights=[1.0, 2.0, 3.0]),
    "line": D.bimodal,
    "pair": lambda: D.Mixture([[-1.0], [1.5]], std=0.3),
    "image": lambda: D.gaussian(torch.zeros(1, 2, 2), 0.7),
    "checkerboard": D.Checkerboard,
    "banana": D.Banana,
    "funnel": lambda: D.Funnel(2, 1.0),
    "samples": lambda: D.Empirical(D.ring(8).sample(64, seed=0)),
}
COVERING = [
    ("OU", "full"), ("VP", "ring"), ("SubVP", "line"), ("CustomVP", "image"), ("CosineVP", "checkerboard"),
    ("VE", "banana"), ("EDM", "samples"), ("RectifiedFlow", "moons"),
]  # fmt: skip
OTHERS = {
    "custom": (Custom, lambda: None),
    "cubic": (Cubic, D.Banana),
    "geometric": (sd.GeometricBrownianMotion, positive),
    "CIR": (lambda: sd.CIR(xi=0.7), lambda: None),
    "Jacobi": (lambda: sd.Jacobi(2.0, 3.0), lambda: None),
    "overdamped": (lambda: sd.Overdamped(D.ring(8)), lambda: D.ring(8)),
    "underdamped": (lambda: sd.Underdamped(D.ring(8)), lambda: sd.Phase(D.ring(8))),
}


# ---- right processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "density"), COVERING)
def test_every_shipped_process_passes(process, density):
    found = assert_sde(PROCESSES[process](), DENSITIES[density](), n=1_000)
    assert len(found.rows) >= 27 and sum(row.p is not None for row in found.rows) == 3


@pytest.mark.parametrize("other", OTHERS)
def test_other_processes_pass(other):
    make, density = OTHERS[other]
    found = assert_sde(make(), density(), n=1_000)
    kernel = any(row.what.startswith("kernel") for row in found.rows)
    assert kernel == (other == "custom")
    moving = any(row.what.startswith("Fokker-Planck") for row in found.rows)
    assert moving == (other in ("custom", "geometric", "CIR", "Jacobi"))


def test_the_clock_may_end_in_the_middle_of_things():
    """A process that is far from pure noise at t_max = 3, where exp(log 3) is not 3."""

    class Short(Custom):
        t_max = 3.0

        def f(self, x, t):
            return -0.1 * x

    found = assert_sde(Short(), n=1_000)
    assert any(r.what.startswith("reverse: from t = 3 to") for r in found.rows)


class Jumping(sd.SDE):
    """Coefficients that jump in t: no kernel is derived, and no grid meets the jump."""

    def f(self, x, t):
        return -torch.where(t < 0.31, 1.0, 5.0).to(x) * x

    def g(self, x, t):
        return torch.where(t < 0.31, 1.0, 2.0).to(x) * torch.ones(1, *[1] * (x.ndim - 1), dtype=x.dtype)


class Tiny(sd.SDE):
    """So little noise that the data are never drowned in it."""

    def f(self, x, t):
        return torch.zeros_like(x)

    def g(self, x, t):
        return 1e-3


def with_zeros():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    return D.Empirical(torch.cat([torch.zeros(10, 2), x]))


@pytest.mark.parametrize(
    ("process", "density"),
    [
        (Jumping, lambda: None),
        (Tiny, lambda: None),
        (sd.VP, with_zeros),  # derivatives by differences at x = 0
        (Cubic, with_zeros),  # no score at t = 0
        (sd.VP, lambda: D.Mixture([[100.0, -30.0], [-50.0, 200.0]], std=10.0)),  # far from unit size
        (sd.EDM, lambda: D.Mixture([[1e-3, 0.0], [0.0, 2e-3]], std=1e-4)),
    ],
    ids=["jumping", "tiny noise", "zeros", "points", "large data", "small data"],
)
def test_no_false_alarm_in_odd_but_right_cases(process, density):
    assert_sde(process(), density(), n=1_000)


def test_coupled_processes_pass():
    """Matrix kernels, of full states and of states that are more than data."""
    for process, density in (("CorrelatedOU", "ring"), ("CLD", "pair")):
        found = assert_sde(COUPLED[process](), DENSITIES[density](), n=1_000)
        assert len(found.rows) >= 25


@pytest.mark.soak
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("process", [*PROCESSES, *COUPLED])
def test_every_process_and_density(process, density):
    """At budgets of 3 s check_sde, and langevin_identity, pass within 30 s together."""
    sde, law = {**PROCESSES, **COUPLED}[process](), DENSITIES[density]()
    if process == "Blurring":  # which has a shape of its own
        law = D.Mixture(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)), std=0.4)
    elif process in COUPLED and (law.event_shape != (2,) or not isinstance(law, D.Mixture)):
        law = D.gaussian((1.0, -2.0), 0.5)  # matrix kernels take mixtures
    started = time.perf_counter()
    assert_sde(sde, law, budget=3)
    t = float(sde.time_of(0.0))
    passes(sd.verify.langevin_identity(sde, law, t, budget=3))
    assert time.perf_counter() - started < 30


@pytest.mark.soak
@pytest.mark.parametrize("other", OTHERS)
def test_other_processes_at_length(other):
    make, density = OTHERS[other]
    assert_sde(make(), density(), budget=3)


# ---- what is told -----------------------------------------------------------------------------------------------------


def row(found, start):
    (only,) = [r for r in found.rows if r.what.startswith(start)]
    return only


class Raising(Custom):
    def f(self, x, t):
        if t.ndim == 0 and float(t) > 0.5:
            raise RuntimeError("no drift past\nthe middle")
        return super().f(x, t)


def test_an_error_in_f_is_a_row_with_its_place():
    found = sd.verify.check_sde(Raising(), n=1_000)
    told = row(found, "f, g: finite").detail
    line = (
        Path(__file__).read_text().splitlines().index('            raise RuntimeError("no drift past\\nthe middle")')
        + 1
    )
    assert told == f"RuntimeError: no drift past the middle (test_check_sde.py, line {line}, in f)"
    assert not found.passed and told in " ".join(str(found).split())


class Unusable(sd.SDE):
    def f(self, x, t):
        return x @ torch.ones(3, 3)

    def g(self, x, t):
        return torch.ones(x.shape[-1])


def test_where_f_and_g_cannot_be_called_nothing_else_is_judged():
    found = sd.verify.check_sde(Unusable(), n=1_000)
    assert [r.passed for r in found.rows] == [False, False] and "all the rest" in found.unchecked[0]
    assert "test_check_sde.py" in found.rows[0].detail and "g.reshape(1, ..., d)" in found.rows[1].detail


def test_states_outside_the_domain_ask_for_a_density():
    class Root(sd.SDE):
        def f(self, x, t):
            return 1 - x

        def g(self, x, t):
            return 0.3 * x.sqrt()

    found = sd.verify.check_sde(Root(), n=1_000)
    assert "density=" in row(found, "f, g: finite").detail
    inside = sd.verify.check_sde(Root(), positive(), n=1_000)
    assert inside.passed, inside


def test_what_is_not_checked_is_named_with_its_reason():
    found = sd.verify.check_sde(Cubic(), n=1_000)
    assert any("Gaussian" in text and "Cubic" in text for text in found.unchecked)
    assert "Not checked: kernel" in str(found) and "Not checked" in found.to_html()
    large = sd.verify.check_sde(sd.VP(), event_shape=(5, 5), n=1_000)
    assert large.passed and any("25 coordinates" in text for text in large.unchecked)
    assert not any(r.what.startswith("reverse, η") for r in large.rows)
    ode = sd.verify.check_sde(Decay(), n=1_000)
    assert any("an ODE" in text for text in ode.unchecked)


class Decay(sd.ODE):
    def f(self, x, t):
        return -x


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: sd.verify.check_sde(Custom), TypeError, r"write Custom\(\.\.\.\)"),
        (lambda: sd.verify.check_sde(3), TypeError, "got int"),
        (lambda: sd.verify.check_sde(sd.VP().reverse(lambda x, t: -x)), ValueError, "before its reversal"),
        (lambda: sd.verify.check_sde(sd.VP(), D.ring(), event_shape=(3,)), ValueError, "give one of the two"),
        (lambda: sd.verify.check_sde(sd.VP(), budget=0), ValueError, "positive number of seconds"),
        (lambda: sd.verify.check_sde(sd.VP(), n=10), ValueError, "at least 1000"),
        (lambda: sd.verify.check_sde(sd.VP(), level=2), ValueError, "between 0 and 1"),
        (lambda: sd.verify.langevin_identity(sd.VP(), D.ring(), 0.3, budget=-1), ValueError, "budget"),
        (lambda: sd.verify.duality(sd.VP(), D.ring(), budget="5"), ValueError, "budget"),
        (lambda: sd.verify.fokker_planck(sd.VP(), D.ring(), 2.0), ValueError, "outside"),
        (lambda: sd.verify.fokker_planck(sd.VP().reverse(lambda x, t: -x), D.ring(), 0.2), ValueError, "before it"),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


VP, RING = sd.VP(), D.ring()
CHECKS = {
    "check_sde": lambda **o: sd.verify.check_sde(VP, **o),
    "check_score": lambda **o: sd.verify.check_score(sd.ExactScore(VP, RING), VP, RING, **o),
    "check_solver": lambda **o: sd.verify.check_solver(sd.EulerMaruyama(), **o),
    "duality": lambda **o: sd.verify.duality(VP, RING, **o),
    "exchangeability": lambda **o: sd.verify.exchangeability(VP, RING, **o),
    "langevin_identity": lambda **o: sd.verify.langevin_identity(VP, RING, 0.3, **o),
}


@pytest.mark.parametrize("check", CHECKS)
def test_options_are_checked_before_any_work(check):
    """The same in every check: a bad seed, n, budget or level is the caller's mistake, and no fault of what is checked."""
    call = CHECKS[check]
    for seed in ("a", 1.5, None, True):
        with pytest.raises(TypeError, match="seed must be an integer"):
            call(seed=seed)
    for level in (0, -1, 1, 2, "a", None, math.nan):
        with pytest.raises(ValueError, match=r"level = .* must lie between 0 and 1"):
            call(level=level)
    for n in ("a", 0, 1.5, True):
        with pytest.raises(ValueError, match=r"n = .* must be a whole number of at least"):
            call(n=n)
    for amount in ("5", -1, 0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"budget = .* must be a positive number"):
            call(budget=amount)
    if check not in ("duality", "langevin_identity"):  # which have an n without being told
        with pytest.raises(ValueError, match="budget = None must be"):
            call(budget=None)


def test_options_of_the_others():
    budget_of = lambda **o: sd.verify.error_budget(sd.ExactScore(VP, RING), VP, RING, sd.EulerMaruyama(), steps=9, **o)  # noqa: E731
    for bad in ({"n": 0}, {"n": "a"}, {"budget": None}, {"budget": "5"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} = .* must be"):
            budget_of(**bad)
    for call in (budget_of, lambda seed: sd.verify.fokker_planck(VP, RING, 0.3, seed=seed)):
        with pytest.raises(TypeError, match="seed must be an integer"):
            call(seed="a")
    with pytest.raises(TypeError, match="seed must be an integer"):
        sd.verify.stationary(sd.Overdamped(RING), RING, seed=1.5)


def test_assertion_holds_the_report():
    class Wrong(sd.VP):
        def variance(self, t):
            return 1.01 * super().variance(t)

    with pytest.raises(AssertionError, match="kernel: its covariance as f and g say") as caught:
        assert_sde(Wrong(), n=1_000)
    assert "asks for a GGᵀ that is 1.01 times that of g" in " ".join(str(caught.value).split())


# ---- the parts ---------------------------------------------------------------------------------------------------------


def test_slopes_by_differences():
    at = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    for function, derivative in (
        (lambda e: torch.sin(3 * (at + e)), 3 * torch.cos(3 * at)),
        (lambda e: torch.exp(-5 * (at + e) ** 2), -10 * at * torch.exp(-5 * at**2)),
        (lambda e: (at + e - 0.29).abs(), torch.ones(3)),  # a kink within reach of the largest steps
    ):
        assert torch.allclose(slope(function, 0.2), derivative.double(), rtol=1e-8, atol=1e-11)


def test_moments_are_read_off():
    """x + 2 flipped noise + 1 has map I, shift 1, covariance 4 I."""
    found = moments.read_off(lambda x, z: x + 2 * z.flip(1) + 1, (3,))
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.equal(found.map, eye) and torch.equal(found.shift, torch.ones(3).double())
    assert torch.allclose(found.covariance, 4 * eye)
    vp = moments.Kernel(sd.VP(), (2,)).at(0.3)
    assert torch.allclose(vp.map, float(sd.VP().alpha(0.3)) * eye[:2, :2])
    assert torch.allclose(vp.covariance, float(sd.VP().sigma(0.3)) ** 2 * eye[:2, :2])


def test_coefficients_are_read_off():
    class Turning(sd.SDE):
        def f(self, x, t):
            return torch.stack([x[:, 1] + 2, -3 * x[:, 0]], 1)

        def g(self, x, t):
            return sd.Dense(torch.tensor([[[1.0, 0.0], [2.0, 1.0]]], dtype=x.dtype))

    found = moments.coefficients(Turning(), (2,), 0.5)
    assert found.rate.tolist() == [[0, 1], [-3, 0]] and found.push.tolist() == [2, 0]
    assert found.gram.tolist() == [[1, 2], [2, 5]]


@pytest.mark.parametrize("wrong", ["g at t + 1e-6", "a tenth of a per mille"])
def test_moment_equations_see_small_errors(wrong):
    class Off(sd.VP):
        def diffusion_coefficient(self, t):
            good = super().diffusion_coefficient
            return good(t + 1e-6) if wrong.startswith("g") else 1.00001 * good(t)

    found = sd.verify.check_sde(Off(), n=1_000)
    assert not row(found, "kernel: its covariance").passed
    assert all(r.passed for r in found.rows if r.p is not None)  # particles cannot see that


def first(t):
    """The time of the first sample for all of them."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return t if t.ndim == 0 else t.flatten()[0]


class OneTimePerturb(sd.VP):
    def perturb(self, x0, t, noise):
        return super().perturb(x0, first(t), noise)


class OneTimeMatrices(sd.CorrelatedOU):
    def perturb(self, x0, t, noise):
        return super().perturb(x0, first(t), noise)


class OneTimeMarginal(sd.VP):
    def marginal(self, x0, t):
        return super().marginal(x0, first(t))

    def perturb(self, x0, t, noise):
        return sd.VP().perturb(x0, t, noise)


class BatchedLogSNR(sd.VP):
    def log_snr(self, t):
        return super().log_snr(t) + (torch.as_tensor(t).ndim > 0)


class EarlyNoise(sd.VP):
    def diffusion_coefficient(self, t):
        return super().diffusion_coefficient(t) * torch.where(t < 0.05, 1.3, 1.0)


class OtherGamma(sd.CIR):
    def invariant(self, event_shape):
        return sd.CIR(self.kappa, 1.3 * self.theta, self.xi).invariant(event_shape)


class OtherBeta(sd.Jacobi):
    def invariant(self, event_shape):
        return sd.Jacobi(1.1 * self.a, self.b).invariant(event_shape)

    def marginal(self, x0, t):
        return sd.Jacobi(self.a, self.b, self.speed).marginal(x0, t)


class NoKernel(sd.CIR):
    def marginal(self, x0, t):
        raise RuntimeError("out of order")


OWN_TIME, SETTLES = "kernel: each sample at its own time", "Fokker-Planck: the invariant law stays"
OVERLOOKED = {
    "perturb": (OneTimePerturb, OWN_TIME, "perturb"),
    "matrices": (lambda: OneTimeMatrices(torch.eye(2)), OWN_TIME, "perturb"),
    "marginal": (OneTimeMarginal, OWN_TIME, "marginal"),
    "log_snr": (BatchedLogSNR, OWN_TIME, "log_snr"),
    "early": (EarlyNoise, "kernel: its covariance as f and g say", "GGᵀ"),
    "Gamma": (OtherGamma, SETTLES, "f and g carry"),
    "Beta": (lambda: OtherBeta(2.0, 3.0), SETTLES, "f and g carry"),
    "no kernel": (NoKernel, "kernel: marginal(x0, t)", "RuntimeError: out of order"),
}


@pytest.mark.parametrize("name", OVERLOOKED)
def test_faults_that_only_show_where_one_looks(name):
    """With a time for each sample; before the first interior time; in the law that a process settles in."""
    make, what, told = OVERLOOKED[name]
    failed = {r.what: r.detail for r in sd.verify.check_sde(make(), n=1_000).rows if not r.passed}
    assert told in failed[what] and len(failed) == 1, failed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [lambda: sd.CIR(0.5, 0.1, 1.0), lambda: sd.Jacobi(0.5, 0.5)], ids=["CIR", "Jacobi"])
def test_walls_that_are_reached_are_no_fault(make, seed):
    """Most states of these lie so near to a wall that f and g are those of a point further in."""
    case = _case(make(), None, None)
    rows = (*contract(case.probe, seed), *case.exact(seed))
    assert len(rows) > 15 and all(r.passed for r in rows), [r for r in rows if not r.passed]


class Exploding(sd.SDE):
    def f(self, x, t):
        return x**3

    def g(self, x, t):
        return 1.0


class InfiniteStart(sd.SDE):
    def f(self, x, t):
        return -x / t

    def g(self, x, t):
        return t.sqrt()


@pytest.mark.parametrize(
    ("make", "told"),
    [(Exploding, "grows faster than linearly"), (InfiniteStart, "infinite at t = 0, where they start: set t_min")],
)
def test_chains_that_become_infinite_say_where_and_why(make, told):
    found = sd.verify.check_sde(make(), D.gaussian((3.0, 3.0), 1.0), n=1_000)
    detail = row(found, "steps: order").detail
    assert told in detail and "of the particles are NaN or infinite after step" in detail
    assert ("after step 1 of 64, from t = 0:" in detail) == (make is InfiniteStart)


def test_the_cure_for_an_infinite_start_is_one():
    """With t_min set particles start there, and the report says from where f and g were looked at."""
    sde = InfiniteStart()
    assert "f and g from 0.167 to 1" in sd.verify.check_sde(sde, n=1_000).notes[0]
    sde.t_min = 0.1
    found = assert_sde(sde, n=1_000)
    assert row(found, "steps: order").passed and "f and g from 0.1 to 1" in found.notes[0]


def test_data_that_cannot_be_lifted():
    """A message that a caller of check_sde can act on."""
    with pytest.raises(ValueError, match=r"CLD appends coordinates .* states of shape \(1,\)"):
        sd.verify.check_sde(sd.CLD(), D.bimodal(), n=1_000)


class OneNoise(sd.SDE):
    """Noise reaches the first coordinate alone."""

    strength = 1.0

    def f(self, x, t):
        return -x

    def g(self, x, t):
        return self.strength * torch.tensor([[1.0, 0.0]], dtype=x.dtype)


def test_a_direction_without_noise_is_no_fault():
    """Particles are held against the kernel in the range of its covariance; a kernel that has no root is not checked."""
    found = assert_sde(OneNoise(), n=1_000)
    assert row(found, "forward: x_t given x_0").unit == "sd"
    flat = assert_sde(sd.CorrelatedOU(torch.tensor([[1.0], [0.5]])), n=1_000)
    assert any("kernel, and the law" in text and "receives no noise" in text for text in flat.unchecked)


def test_particles_see_the_range_of_a_singular_covariance():
    """20 % more noise than the kernel says."""
    kernel = moments.Kernel(sd.as_linear(OneNoise(), (2,)), (2,))
    for strength, passed in ((1.0, True), (1.2, False)):
        sde = OneNoise()
        sde.strength = strength
        (outcome,) = particles.forward_test(sde, kernel, 1.0, *STARTS).panel(0, math.inf)(2_000, 0).values()
        assert (outcome.p > 1e-4) == passed, outcome


@pytest.mark.parametrize("k", [1, 2, 4])
def test_joint_test_level_and_power(k):
    """4,000 repetitions of k correlated functions: uniform p-values, the far end too; the claimed effect is seen."""
    n, level = 200, 0.02
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(k, k, generator=generator, dtype=torch.float64)
    values = torch.randn(4_000, n, k, generator=generator, dtype=torch.float64) @ mix
    p = [statistics.joint_test(v).p for v in values]
    assert stats.kstest(p, "uniform").pvalue > 1e-4
    assert stats.binomtest(sum(v <= 0.01 for v in p), len(p), 0.01).pvalue > 1e-4
    effect = statistics.joint_test(values[0]).detectable(level)
    direction = torch.randn(k, generator=generator, dtype=torch.float64)
    shift = effect * (direction / direction.norm()) @ mix
    seen = sum(statistics.joint_test(v + shift).p <= level for v in values[:1_000])
    assert abs(seen - 990) < 15  # the effect is that of large samples
    sizes = [statistics.joint_test(v + shift).statistic for v in values[:200]]
    assert sum(sizes) / 200 == pytest.approx(math.hypot(effect, math.sqrt((k - 1) / n)), rel=0.06)


def test_joint_test_of_what_does_not_vary():
    """A function that is constant, or a copy of another, has no say; NaN fails."""
    v = torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    doubled = torch.cat([v, v[:, :1], 0 * v[:, :1]], 1)
    assert statistics.joint_test(doubled).p == pytest.approx(statistics.joint_test(v).p, rel=1e-6)
    assert statistics.joint_test(torch.zeros(10, 2)).p == 1.0 and statistics.joint_test(torch.ones(10, 2)).p == 0.0
    v[3] = math.nan
    assert statistics.joint_test(v).p == 0.0


class Turning(sd.SDE):
    """A rotation, which Euler-Maruyama steps wind outwards."""

    def __init__(self, speed=10.0):
        self.speed = speed

    def f(self, x, t):
        return self.speed * torch.stack([x[:, 1], -x[:, 0]], 1)

    def g(self, x, t):
        return 1.0


class Growing(sd.SDE):
    t_max = 3.0

    def f(self, x, t):
        return 1.5 * x

    def g(self, x, t):
        return 1.0


class Stiff(sd.SDE):
    def f(self, x, t):
        return -x * torch.tensor([[1.0, 50.0]], dtype=x.dtype)

    def g(self, x, t):
        return 1.0


class Waving(sd.SDE):
    def f(self, x, t):
        return -(1 + torch.sin(20 * t)) * x

    def g(self, x, t):
        return 1.2 + torch.cos(9 * t)


FAST = {
    "turning": Turning,
    "growing": Growing,
    "stiff": Stiff,
    "waving": Waving,
    "noisy velocities": lambda: sd.CLD(gamma=1.0),
    "overdamped": lambda: sd.CLD(friction=4.0),
    "underdamped": lambda: sd.CLD(friction=0.3),
    "blurring VE": lambda: sd.Blurring((4,), base=sd.VE()),
    "blurring": lambda: sd.Blurring((8, 8)),
    "turning OU": lambda: sd.CorrelatedOU(torch.eye(2), torch.tensor([[1.0, 30.0], [-30.0, 1.0]])),
}
QUICK = ["turning", "growing", "stiff", "noisy velocities", "blurring VE"]


@pytest.mark.parametrize("name", QUICK)
def test_steps_follow_the_rates_of_the_process(name):
    """Processes that turn, stretch or damp states far faster than they noise them: all three rows are there, and pass."""
    found = assert_sde(FAST[name](), n=1_000)
    assert sum(row.p is not None for row in found.rows) == 3


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAST)
def test_steps_follow_the_rates_at_length(name, seed):
    assert_sde(FAST[name](), n=2_000, seed=seed)


def test_what_no_steps_settle_is_not_checked(monkeypatch):
    """And is no fault: with 48 steps at most what they leave would have a p-value of 0."""
    monkeypatch.setattr(chains, "MOST", 48)
    found = sd.verify.check_sde(Turning(), n=1_000)
    assert found.passed and [r.what.split(":")[0] for r in found.rows if r.p is not None] == ["flow"]
    told = " ".join(found.unchecked)
    assert "forward by particles" in told and "reverse by particles: from t = 1 to" in told and "48 steps" in told


class Runaway(sd.VP):
    """Right, but for a reversal of its own making that leaves every bound."""

    def _reverse(self, score, stochasticity):
        return super()._reverse(lambda x, t: score(x, t) * (1 + 0.1 * x**4), stochasticity)


def test_states_that_steps_alone_drive_to_infinity_are_no_fault(monkeypatch):
    """A blur that shrinks its finest detail by e^-700 on the way is too fast for 96 steps, and gets a reason, not a FAIL.

    Other rows are there; and a reversal that does run away fails at the same number of steps.
    """
    monkeypatch.setattr(chains, "MOST", 96)
    found = sd.verify.check_sde(sd.Blurring((3,), width=40.0), n=1_000)
    assert found.passed and [r.what.split(":")[0] for r in found.rows if r.p is not None] == ["flow"]
    assert any(r.what == "transition: composes to the kernel" for r in found.rows)
    assert any("reverse by particles" in reason and "96 steps" in reason for reason in found.unchecked)
    away = sd.verify.check_sde(Runaway(), n=1_000)
    (row,) = [row for row in away.rows if row.what == "particles"]
    assert not row.passed and "NonFiniteError" in row.detail


class Watching(sd.OU):
    """Notes how many threads its kernels are given."""

    seen: ClassVar[set[int]] = set()

    def drift_coefficient(self, t):
        self.seen.add(torch.get_num_threads())
        return super().drift_coefficient(t)


def test_small_kernels_get_one_thread(monkeypatch):
    """A second one waits for whatever else the machine does; large batches, and who sets OMP_NUM_THREADS, keep theirs."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        for small, threads in ((2**17, {1}), (1_000, {1, 2})):
            monkeypatch.setattr("sdediff.threads._SMALL", small)
            torch.set_num_threads(2)
            Watching.seen.clear()
            assert sd.verify.check_sde(Watching(), n=1_000).passed
            assert Watching.seen == threads and torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with one_thread():  # without a check: all of it with two threads takes long on a busy machine
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_budget_ends_the_search_for_steps():
    test = particles.forward_test(Turning(), moments.Kernel(sd.as_linear(Turning(), (2,)), (2,)), 0.5, *STARTS)
    with pytest.raises(chains.UnsettledError, match="budget"):
        test.panel(0, 1e-6)
    assert test.panel(0, math.inf)(1_000, 0)


STARTS = (lambda n, g: 2 + 0.1 * torch.randn(n, 2, generator=g, dtype=torch.float64), lambda x, g: x)


def test_the_error_of_the_steps_is_taken_out():
    """In 24 steps Heun's method is off; extrapolated it is off by a fraction of that."""
    test = particles.forward_test(Turning(), moments.Kernel(sd.as_linear(Turning(), (2,)), (2,)), 0.5, *STARTS)
    trial = test.draw(20_000, torch.Generator().manual_seed(0))
    ends = halving.solve_nested(Turning(), trial.start, sd.StochasticHeun(), test.chains.nodes(24), 1, 2)
    fine = trial.look(ends[1])
    (better,) = test.chains._extrapolated(trial, 24, 1, 2)
    (outcome,) = test.panel(0, math.inf)(20_000, 0).values()
    off, left = (float((v - trial.expected).mean(0).norm()) for v in (fine, better))
    assert off > 0.04 and left < 0.4 * off and outcome.p > 1e-3, (off, left, outcome)


def test_nested_steps_follow_one_path():
    """Brownian motion ends alike at every level; a drift tells the levels apart."""
    nodes = torch.tensor([0.0, 0.1, 0.3, 0.4, 1.0], dtype=torch.float64)
    x = torch.zeros(5, 2, dtype=torch.float64)

    class Free(Turning):
        def f(self, x, t):
            return self.speed * x

    ends = halving.solve_nested(Free(0.0), x, sd.EulerMaruyama(), nodes, 3, 3)
    assert len(ends) == 3 and all(torch.allclose(end, ends[0], rtol=0, atol=1e-14) for end in ends)
    apart = halving.solve_nested(Free(1.0), x + 1, sd.EulerMaruyama(), nodes, 3, 3)
    assert all((a - b).abs().min() > 1e-3 for a, b in pairwise(apart))


def test_nodes_spread_a_mass_evenly():
    times = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    nodes = chains.spread(times, torch.tensor([3.0, 1.0], dtype=torch.float64))(4)
    torch.testing.assert_close(nodes, torch.tensor([2, 5 / 3, 4 / 3, 1, 0], dtype=torch.float64))


def test_steps_that_do_not_converge_are_seen():
    """Differences that shrink at order 1/2 pass, at order 1/4 they do not; nor does a drift that explodes."""
    a, b = (torch.randn(20_000, generator=torch.Generator().manual_seed(k), dtype=torch.float64).abs() for k in (0, 1))
    assert particles._order_test(a, b / 2**0.5).p > 0.01 and particles._order_test(a, b / 2**0.25).p < 1e-5

    class Explosive(sd.SDE):
        def f(self, x, t):
            return 30 * x**3

        def g(self, x, t):
            return 1 + 0.5 * x.tanh()

    found = sd.verify.check_sde(Explosive(), D.gaussian((3.0, 3.0), 1.0), n=1_000)
    assert next(r.what for r in found.rows if not r.passed).startswith("steps")


def test_more_time_buys_more_particles():
    """Work of 20 µs a particle: 0.5 s are about 25,000; and never fewer than the least."""

    def work(n):
        until = time.perf_counter() + 2e-5 * n
        while time.perf_counter() < until:
            pass

    assert 8_000 < budget.affordable(work, 0.5) < 40_000
    assert budget.affordable(work, 1e-3) == budget.FEWEST


def test_a_hiccup_does_not_blow_the_budget():
    """A short run that something else held up says nothing of what a sample costs."""
    assert budget.affordable(lambda n: time.sleep(2e-6 * n + (0.02 if n == 500 else 0)), 0.3) < 150_000


def test_a_budget_is_kept_and_reported():
    started = time.process_time()
    found = sd.verify.check_sde(sd.VP(), budget=1.5)
    assert time.process_time() - started < 4.5  # no more than three times what was asked for
    assert any("particles, which" in note for note in found.notes)
    few = sd.verify.check_sde(sd.VP(), n=1_000)
    first = [next(r.detectable for r in report.rows if r.p is not None) for report in (found, few)]
    assert first[0] < first[1]
    assert sd.verify.langevin_identity(sd.VP(), D.ring(), 0.3, budget=0.3).passed
    assert sd.verify.duality(sd.VP(), D.ring(), times=[0.3], steps=50, budget=0.3).passed


def test_reports_repeat():
    """The same n and seed give the same report; another seed another one, with the same verdict."""
    one, same, other = (sd.verify.check_sde(sd.VP(), n=1_000, seed=s) for s in (0, 0, 1))
    assert one == same and one.rows[-1].p != other.rows[-1].p and other.passed


def test_contract_rows_alone():
    """Rows of the contract, and nothing that was not asked for: no random number but one's own."""
    state = torch.get_rng_state()
    rows = contract(_case(Custom(), None, None).probe, 0)
    assert len(rows) == 10 and all(r.passed for r in rows)
    assert torch.equal(state, torch.get_rng_state())


# ---- Fokker-Planck, pointwise ---------------------------------------------------------------------------------------------


def test_fokker_planck_equation():
    for sde in (sd.VP(), sd.CLD()):
        found = sd.verify.fokker_planck(sde, D.ring(8), 0.3)
        assert found.passed and len(found.rows) == 3 and max(r.statistic for r in found.rows) < 1e-11, found
    score = sd.ExactScore(sd.VP(), D.ring(8))
    wrong = sd.verify.fokker_planck(sd.VP(), D.ring(8), 0.3, score=lambda x, t: 1.01 * score(x, t))
    assert [r.passed for r in wrong.rows] == [True, False, False]
    still = sd.verify.fokker_planck(sd.Overdamped(D.Banana()), D.Banana(), 0.0)
    assert still.passed and "stationary" in still.notes[0]
    assert not sd.verify.fokker_planck(sd.Overdamped(D.Banana()), D.Funnel(2, 1.0), 0.0).passed


# ---- false alarms -----------------------------------------------------------------------------------------------------------

CASES = [
    ("VP", "ring"),
    ("EDM", "moons"),
    ("CosineVP", "line"),
    ("RectifiedFlow", "full"),
    ("VE", "line"),
    ("OU", "image"),
]
RUN = 1e-4
"""The false-alarm rate of a whole run, half of it for "none fails" and half for the uniformity."""


def calibrated(repetitions):
    """No p-value falls below its share of the level, and all of them together are uniform (Kolmogorov-Smirnov).

    With 18 p-values a repetition, a distribution function off by 2.8/√(18 repetitions) is seen with probability 0.99.
    """
    pooled = []
    for process, density in CASES:
        panel = merged(_case(PROCESSES[process](), DENSITIES[density](), None).panels(0))
        for k in range(repetitions):
            pooled += [outcome.p for outcome in panel(1_000, 10_000 + k).values()]
    assert len(pooled) == 3 * repetitions * len(CASES)
    assert min(pooled) > 0.5 * RUN / len(pooled)
    assert stats.kstest(pooled, "uniform").pvalue > 0.5 * RUN


def test_p_values_are_uniform():
    calibrated(8)


@pytest.mark.soak
def test_p_values_are_uniform_at_length():
    calibrated(200)


@pytest.mark.soak
def test_no_false_alarm_in_200_repetitions():
    """Whole reports, the retry rule included; level RUN for all of them together."""
    for k in range(200):
        process, density = CASES[k % len(CASES)]
        assert_sde(PROCESSES[process](), DENSITIES[density](), n=1_000, seed=k, level=RUN / 200)


# ---- pages and the command line -------------------------------------------------------------------------------------------


def test_facts_in_a_report():
    found = sd.verify.Report("t", (report.fact_row("good"), report.fact_row("bad", "<why>")), (), ("the <rest>.",))
    lines = str(found).splitlines()
    assert "holds" in lines[4] and "broken" in lines[5] and not found.passed
    assert "bad: <why>" in str(found) and "Not checked: the <rest>." in str(found)
    content = json.loads(found.to_json())
    assert content["unchecked"] == ["the <rest>."] and content["rows"][1]["detail"] == "<why>"
    ends = [bar.get_x() + bar.get_width() for bar in found.plot().axes[0].patches]
    assert ends[0] < 0 < ends[1]
    whole = page([found], "a & b")
    assert (
        whole.startswith("<!doctype html>") and "<svg" in whole and "bad: &lt;why&gt;" in whole and "a &amp; b" in whole
    )
    assert found.to_page().count("<tr") == 3


OWN = """
import torch
import sdediff as sd

class Good(sd.SDE):
    def __init__(self, speed=1.0):
        self.speed = speed
    def f(self, x, t):
        return -self.speed * x
    def g(self, x, t):
        return 1.0

class Bad(sd.VP):
    def variance(self, t):
        return 1.1 * super().variance(t)

ready = sd.VP()
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_sde.py").write_text(OWN)
    Path("one.py").write_text(OWN.split("class Bad")[0])
    Path("syntax.py").write_text("def (:")
    Path("missing.py").write_text("import there_is_no_such_module")
    Path("leaves.py").write_text("import sys\nsys.exit(3)")
    Path("raises.py").write_text("1 / 0")
    Path("seeks.py").write_text("raise ValueError('There is no file data.csv')")


def test_a_process_of_ones_own_on_the_command_line(own, capsys):
    assert main(["verify", "my_sde.py:Good(speed=2)", "--n", "1000", "--out", "out", "--html", "r.html"]) == 0
    assert "PASS: my_sde.py:Good(speed=2)" in capsys.readouterr().out
    assert json.loads(Path("out/check_sde.json").read_text())["passed"]
    assert Path("out/check_sde.png").stat().st_size > 5000 and "<svg" in Path("r.html").read_text()
    assert main(["verify", "my_sde.py:Bad", "--n", "1000", "--out", "out"]) == 1
    assert "asks for a GGᵀ that is 1.1 times that of g" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", "one.py", "--n", "1000", "--shape", "1,3", "--out", "out"]) == 0
    assert "(1, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none.py:X", "no file none.py"),
        ("my_sde.py:Nope", "It has Good, Bad, ready"),
        ("my_sde.py", "several processes: Good, Bad"),
        ("my_sde.py:number", "no SDE"),
        ("my_sde.py:Good(1,2,3)", "cannot be made"),
        ("my_sde.py:Good(torch)", "literal arguments"),
        ("syntax.py:X", "line 1"),
        ("missing.py:X", "there_is_no_such_module"),
        ("leaves.py:X", "sys.exit"),
        ("raises.py:X", "ZeroDivisionError"),
        ("seeks.py:X", "seeks.py cannot be imported: ValueError: There is no file data.csv"),
        ("no_module_of_this_name:X", "cannot be imported"),
        ("plain", "my_sde.py:MySDE"),
        ("my_sde.py:Good --shape two", "--shape"),
        ("my_sde.py:Good --budget 1 --n 2000", "--n and --budget"),
        ("my_sde.py:Good --html page.txt", "--html page.txt must end in .html"),
        ("my_sde.py:Good -p VP", "--process"),
        ("my_sde.py:Good -d nothing", "no density"),
        ("--shape 2", "--shape"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(own, capsys, words, message):
    assert main(["verify", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
