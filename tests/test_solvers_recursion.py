r"""Every one-step sampler against its own affine recursion, on a law where all of it is exact.

With x_0 ~ N(MU, S2) under VP the score is affine, :math:`s(x, t) = -(x - m(t))/v(t)`, so a one-step sampler maps the start
and its normals z_j to :math:`A x + c + \sum_j k_j z_j`. The recursions below are written in plain floats from the formulas
of their papers; the library's A, c and k_j are read off by feeding it known starts and known normals. They agree to 1e-10
at every N and stochasticity, which leaves no room for a wrong sign, root, factor or time. A second, statistical test runs
the same samplers on their real random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff.noise import Noise, Stream

MU, S2 = 0.7, 0.09  # the data
T_END = 1e-3


@dataclass(frozen=True)
class Truth:
    """VP with a rate that goes linearly from b0 to b1 over [0, 1], in plain floats."""

    b0: float
    b1: float

    def beta(self, t: float) -> float:
        return self.b0 + (self.b1 - self.b0) * t

    def total(self, t: float) -> float:
        """The integral of beta from 0 to t."""
        return self.b0 * t + (self.b1 - self.b0) * t * t / 2

    def mean(self, t: float) -> float:
        return MU * math.exp(-self.total(t) / 2)

    def var(self, t: float) -> float:
        return 1 + (S2 - 1) * math.exp(-self.total(t))

    def abar(self, t: float) -> float:
        return math.exp(-self.total(t))

    def score(self, x: float, t: float) -> float:
        return -(x - self.mean(t)) / self.var(t)

    def sde(self) -> sd.VP:
        return sd.VP(self.b0, self.b1)

    def torch_score(self, sde: sd.VP) -> sd.FunctionScore:
        """The same score as a user would write it, from formulas of its own."""

        def function(x, t):
            total = self.b0 * t + (self.b1 - self.b0) * t * t / 2
            return -(x - MU * torch.exp(-total / 2)) / (1 + (S2 - 1) * torch.exp(-total))

        return sd.FunctionScore(function, sde)


CONSTANT, LINEAR = Truth(3.0, 3.0), Truth(0.1, 20.0)

# One substep is x -> step(x) + k z with step affine; k is None where no number is drawn.
Substep = tuple[Callable[[float], float], float | None]
Recursion = Callable[[Truth, float, float], Iterator[Substep]]


def euler_maruyama(eta: float) -> Recursion:
    """Anderson's reversal and its relatives: f - ½(1 + η²)g²s, noise ηg, taken at the start of the step."""

    def substeps(p: Truth, t: float, s: float):
        h, b = t - s, p.beta(t)
        yield (
            lambda x: x - h * (-0.5 * b * x - 0.5 * (1 + eta**2) * b * p.score(x, t)),
            (eta * math.sqrt(b) * math.sqrt(h)) or None,
        )

    return substeps


def free_noise(w: Callable[[float], float]) -> Recursion:
    """f - ½g²s - ½w²s, noise w."""

    def substeps(p: Truth, t: float, s: float):
        h, b = t - s, p.beta(t)
        yield lambda x: x + h * (0.5 * b * x + 0.5 * (b + w(t) ** 2) * p.score(x, t)), w(t) * math.sqrt(h)

    return substeps


def reverse_diffusion(eta: float) -> Recursion:
    """(2 - √(1-β_i)) x + ½(1 + η²) β_i s + η√β_i z, with β_i = 1 - ᾱ_i/ᾱ_{i-1}."""

    def substeps(p: Truth, t: float, s: float):
        b = 1 - p.abar(t) / p.abar(s)
        yield (
            lambda x: (2 - math.sqrt(1 - b)) * x + 0.5 * (1 + eta**2) * b * p.score(x, t),
            (eta * math.sqrt(b)) or None,
        )

    return substeps


def ancestral(widest: bool) -> Recursion:
    """(x + β s)/√(1-β) + √β̃ z or √β z, β̃ = β (1-ᾱ_{t-1})/(1-ᾱ_t)."""

    def substeps(p: Truth, t: float, s: float):
        b = 1 - p.abar(t) / p.abar(s)
        variance = b if widest else b * (1 - p.abar(s)) / (1 - p.abar(t))
        yield lambda x: (x + b * p.score(x, t)) / math.sqrt(1 - b), math.sqrt(variance)

    return substeps


def corrected(predictor: Recursion, r: float, times: int) -> Recursion:
    """A predictor, then x + ε s + √(2ε) z at the new time, ε = 2 r² σ²."""

    def substeps(p: Truth, t: float, s: float):
        yield from predictor(p, t, s)
        e = 2 * r**2 * (1 - p.abar(s))
        for _ in range(times):
            yield lambda x: x + e * p.score(x, s), math.sqrt(2 * e)

    return substeps


def flow(p: Truth, x: float, t: float) -> float:
    return -0.5 * p.beta(t) * (x + p.score(x, t))


def heun(p: Truth, t: float, s: float) -> Iterator[Substep]:
    h = s - t

    def step(x: float) -> float:
        k1 = flow(p, x, t)
        k2 = flow(p, x + h * k1, s)
        return x + h * (k1 + k2) / 2

    yield step, None


def midpoint(p: Truth, t: float, s: float) -> Iterator[Substep]:
    h = s - t
    yield lambda x: x + h * flow(p, x + h / 2 * flow(p, x, t), t + h / 2), None


def rk4(p: Truth, t: float, s: float) -> Iterator[Substep]:
    h = s - t

    def step(x: float) -> float:
        k1 = flow(p, x, t)
        k2 = flow(p, x + h / 2 * k1, t + h / 2)
        k3 = flow(p, x + h / 2 * k2, t + h / 2)
        k4 = flow(p, x + h * k3, s)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    yield step, None


def exact_transition(p: Truth, s: float, t: float) -> Iterator[Substep]:
    b = p.total(t) - p.total(s)
    yield lambda x: math.exp(-b / 2) * x, math.sqrt(1 - math.exp(-b))


def euler_maruyama_forward(p: Truth, s: float, t: float) -> Iterator[Substep]:
    h = t - s
    yield lambda x: x - 0.5 * p.beta(s) * x * h, math.sqrt(p.beta(s) * h)


def wave(t):
    """A stochasticity (or a noise coefficient) that changes with t."""
    return 0.5 + t


@dataclass(frozen=True)
class Case:
    """A sampler: the library's solver and process, and the recursion that it must follow."""

    solver: sd.Solver
    process: Callable[[sd.VP, sd.Score], sd.SDE]
    recursion: Recursion
    forward: bool = False


def reverse(eta):
    return lambda sde, score: sde.reverse(score, eta)


def wave_reversal(make: Callable[[float], Recursion]) -> Recursion:
    """A recursion whose stochasticity is taken at the start of each step."""
    return lambda p, t, s: make(wave(t))(p, t, s)


LANGEVIN = sd.Langevin(r=0.3, steps=2)
CASES = {
    **{f"euler-{e}": Case(sd.EulerMaruyama(), reverse(e), euler_maruyama(e)) for e in (0.0, 0.5, 1.0)},
    "euler-eta(t)": Case(sd.EulerMaruyama(), reverse(wave), wave_reversal(euler_maruyama)),
    "euler-w(t)": Case(sd.EulerMaruyama(), lambda sde, s: sde.reverse(s, diffusion=wave), free_noise(wave)),
    **{f"reversediffusion-{e}": Case(sd.ReverseDiffusion(), reverse(e), reverse_diffusion(e)) for e in (0.0, 0.5, 1.0)},
    "reversediffusion-eta(t)": Case(sd.ReverseDiffusion(), reverse(wave), wave_reversal(reverse_diffusion)),
    "ancestral": Case(sd.Ancestral(), reverse(1.0), ancestral(False)),
    "ancestral-widest": Case(sd.Ancestral(widest=True), reverse(1.0), ancestral(True)),
    **{
        f"corrected-euler-{e}": Case(
            sd.PredictorCorrector(sd.EulerMaruyama()), reverse(e), corrected(euler_maruyama(e), 0.16, 1)
        )
        for e in (0.0, 0.5, 1.0)
    },
    "corrected-reversediffusion": Case(
        sd.PredictorCorrector(sd.ReverseDiffusion(), LANGEVIN), reverse(1.0), corrected(reverse_diffusion(1.0), 0.3, 2)
    ),
    "corrected-ancestral": Case(
        sd.PredictorCorrector(sd.Ancestral(), LANGEVIN), reverse(1.0), corrected(ancestral(False), 0.3, 2)
    ),
    "corrected-heun": Case(sd.PredictorCorrector(sd.Heun(), LANGEVIN), reverse(0.0), corrected(heun, 0.3, 2)),
    "heun": Case(sd.Heun(), reverse(0.0), heun),
    "midpoint": Case(sd.Midpoint(), reverse(0.0), midpoint),
    "rk4": Case(sd.RK4(), reverse(0.0), rk4),
    "exact-forward": Case(sd.ExactTransition(), lambda sde, s: sde, exact_transition, forward=True),
    "euler-forward": Case(sd.EulerMaruyama(), lambda sde, s: sde, euler_maruyama_forward, forward=True),
}
TRUTHS = {"constant": CONSTANT, "linear": LINEAR}

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
truths = pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
steps = pytest.mark.parametrize("n", [5, 25, 100, 800])


def uniform(case: Case, n: int) -> list[float]:
    a, b = (0.0, 1.0) if case.forward else (1.0, T_END)
    return [a + (b - a) * k / n for k in range(n + 1)]


def uneven(case: Case, n: int) -> list[float]:
    """Steps of all lengths, so that a coefficient taken from a neighbouring step is seen."""
    a, b = (0.0, 1.0) if case.forward else (1.0, T_END)
    return [a + (b - a) * ((k / n) ** 1.7 + 0.03 * math.sin(math.pi * k / n) ** 2) for k in range(n)] + [b]


def composed(recursion: Recursion, truth: Truth, nodes: list[float]) -> tuple[float, float, np.ndarray]:
    """A, c and all k_j of the whole recursion."""
    scale, shift, gains = 1.0, 0.0, np.zeros(0)
    for s, t in pairwise(nodes):
        for step, k in recursion(truth, s, t):
            c = step(0.0)
            a = step(1.0) - c
            scale, shift, gains = a * scale, a * shift + c, a * gains
            if k is not None:
                gains = np.append(gains, k)
    return scale, shift, gains


class OneHot(Noise):
    """Known normals: draw j is 1 for sample 2 + j and 0 for all others."""

    def __init__(self):
        self.drawn = 0

    def open(self, x):
        noise = self

        class Known(Stream):
            def normal(self, shape=None):
                z = torch.zeros_like(x)
                if 2 + noise.drawn < len(z):
                    z[2 + noise.drawn] = 1
                noise.drawn += 1
                return z

        return Known()

    def initial(self, shape, device, dtype):
        raise AssertionError("no starting states are drawn here")

    def integer(self):
        raise AssertionError("no backend is seeded here")


def read_off(case: Case, truth: Truth, nodes: list[float], draws: int) -> tuple[float, float, np.ndarray]:
    """The same A, c and k_j of the library: it is started at 0 and 1 without noise, and at 0 with one normal at a time."""
    sde = truth.sde()
    process = case.process(sde, truth.torch_score(sde))
    x = torch.zeros(2 + draws, dtype=torch.float64)
    x[1] = 1
    noise = OneHot()
    out = sd.solve(process, x, solver=case.solver, grid=nodes, noise=noise).x
    assert noise.drawn == draws, "the sampler draws one set of normals for each term of its formula"
    out = out.numpy()
    return out[1] - out[0], out[0], out[2:] - out[0]


def assert_same(got, want) -> None:
    size = max(1.0, abs(want[0]), abs(want[1]), *np.abs(want[2])) if len(want[2]) else max(1.0, *map(abs, want[:2]))
    assert abs(got[0] - want[0]) <= 1e-10 * size, "scale"
    assert abs(got[1] - want[1]) <= 1e-10 * size, "shift"
    np.testing.assert_allclose(got[2], want[2], rtol=0, atol=1e-10 * size, err_msg="gains")


@steps
@truths
@cases
def test_affine_map(case, truth, n):
    nodes = uniform(case, n)
    want = composed(case.recursion, truth, nodes)
    assert_same(read_off(case, truth, nodes, len(want[2])), want)


@truths
@cases
def test_affine_map_on_uneven_steps(case, truth):
    nodes = uneven(case, 17)
    want = composed(case.recursion, truth, nodes)
    assert_same(read_off(case, truth, nodes, len(want[2])), want)


@steps
@truths
@cases
def test_law_of_samples(case, truth, n, assert_law):
    """The real random numbers: n samples from the exact start must have the law of the recursion.

    See conftest for level and power: at N = 5 a bias of 0.027 standard deviations or 3.8 % of the variance is seen, at
    N >= 100 of 0.1 or 15 %.
    """
    nodes = uniform(case, n)
    scale, shift, gains = composed(case.recursion, truth, nodes)
    m, v = truth.mean(nodes[0]), truth.var(nodes[0])
    sde = truth.sde()
    process = case.process(sde, truth.torch_score(sde))
    count = min(max(400_000 // n, 6_000), 80_000)
    start = m + math.sqrt(v) * torch.randn(count, generator=torch.Generator().manual_seed(n))
    t0, t1 = nodes[0], nodes[-1]
    x = sd.solve(process, start, solver=case.solver, t0=t0, t1=t1, steps=n, seed=n + 1).x
    assert x.dtype == torch.float32
    assert_law(x, scale * m + shift, scale**2 * v + float((gains**2).sum()))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_recursion_of_moments(eta):
    """The reference itself against the printed recursion M <- aM + hcm, V <- a²V + η²βh for constant β."""
    beta, n = CONSTANT.b0, 25
    nodes = uniform(CASES["euler-1.0"], n)
    mean, var = CONSTANT.mean(1.0), CONSTANT.var(1.0)
    for t, s in pairwise(nodes):
        h, m, v = t - s, CONSTANT.mean(t), CONSTANT.var(t)
        c = (1 + eta**2) * beta / (2 * v)
        a = 1 + h * (beta / 2 - c)
        mean, var = a * mean + h * c * m, a * a * var + eta**2 * beta * h
    scale, shift, gains = composed(euler_maruyama(eta), CONSTANT, nodes)
    assert scale * CONSTANT.mean(1.0) + shift == pytest.approx(mean, rel=1e-12)
    assert scale**2 * CONSTANT.var(1.0) + float((gains**2).sum()) == pytest.approx(var, rel=1e-12)


# ---- the same steps on processes other than VP -----------------------------------------------------------------


def one_step(solver, sde, s, t, x=1.3, z=0.4, score=lambda x, t: -0.8 * x + 0.1):
    """The result of one step from s to t at known x and z."""

    class Fixed(OneHot):
        def open(self, x):
            class Known(Stream):
                def normal(self, shape=None):
                    return torch.full_like(x, z)

            return Known()

    process = sde.reverse(sd.FunctionScore(score, sde))
    state = torch.tensor([x], dtype=torch.float64)
    return float(sd.solve(process, state, solver=solver, grid=[s, t], noise=Fixed()).x)


def ve_variance(t):
    """σ_min²((σ_max/σ_min)^{2t} - 1): the SDE's own variance, not the schedule's square."""
    return 0.01**2 * ((50 / 0.01) ** (2 * t) - 1)


def test_variance_exploding_steps():
    """x + Δσ² s + √Δσ² z and x + Δσ² s + √(Δσ² σ_s²/σ_t²) z."""
    s, t, x, z = 0.7, 0.4, 1.3, 0.4
    delta = ve_variance(s) - ve_variance(t)
    pull = x + delta * (-0.8 * x + 0.1)
    want = pull + math.sqrt(delta) * z
    assert one_step(sd.ReverseDiffusion(), sd.VE(), s, t) == pytest.approx(want, rel=1e-11)
    want = pull + math.sqrt(delta * ve_variance(t) / ve_variance(s)) * z
    assert one_step(sd.Ancestral(), sd.VE(), s, t) == pytest.approx(want, rel=1e-11)


def test_posterior_of_any_linear_process():
    """Ancestral's mean and variance are those of q(x_s | x_t, x_0), from Bayes' rule on sub-VP (σ = 1 - ᾱ)."""
    t, s, x, z, b = 0.6, 0.35, 1.3, 0.4, 4.0
    sde = sd.SubVP(b, b)
    a_t, a_s = math.exp(-b * t / 2), math.exp(-b * s / 2)
    var_t, var_s = (1 - a_t**2) ** 2, (1 - a_s**2) ** 2
    scale = a_t / a_s
    noise = var_t - scale**2 * var_s
    x0 = (x + var_t * (-0.8 * x + 0.1)) / a_t
    precision = 1 / var_s + scale**2 / noise
    mean = (a_s * x0 / var_s + scale * x / noise) / precision
    assert one_step(sd.Ancestral(), sde, t, s) == pytest.approx(mean + math.sqrt(1 / precision) * z, rel=1e-11)
    widest = mean + math.sqrt(noise) * z
    assert one_step(sd.Ancestral(widest=True), sde, t, s) == pytest.approx(widest, rel=1e-11)


@pytest.mark.parametrize("widest", [False, True])
def test_ancestral_ends_in_the_data_prediction(widest):
    """The step to t = 0 is x̂_0 itself, without noise, whichever variance is chosen."""
    sde, t, x = sd.VP(), 0.3, 1.3
    alpha = math.exp(-0.25 * 19.9 * t * t - 0.05 * t)
    x0 = (x + (1 - alpha**2) * (-0.8 * x + 0.1)) / alpha
    got = one_step(sd.Ancestral(widest=widest), sde, t, 0.0, z=1e6)
    assert got == pytest.approx(x0, rel=1e-11)


def test_corrector_does_nothing_at_zero_noise():
    """At t = 0 the Langevin step has length 0; a score that divides by sigma must not turn it into NaN."""
    sde = sd.VP()
    score = sd.FunctionScore(lambda x, t: -x / sde.sigma(t) ** 2, sde)
    x = torch.ones(3, dtype=torch.float64)
    plain = sd.solve(sde.reverse(score, 0.0), x, solver=sd.EulerMaruyama(), t0=0.5, t1=0.0, steps=3, seed=0).x
    solver = sd.PredictorCorrector(sd.EulerMaruyama())
    last_only = sd.solve(sde.reverse(score, 0.0), x, solver=solver, t0=0.5, t1=0.0, steps=1, seed=0).x
    assert torch.isfinite(last_only).all()
    alone = sd.solve(sde.reverse(score, 0.0), x, solver=sd.EulerMaruyama(), t0=0.5, t1=0.0, steps=1, seed=0).x
    assert torch.equal(last_only, alone) and torch.isfinite(plain).all()
