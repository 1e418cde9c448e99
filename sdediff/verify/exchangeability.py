r"""Exchangeability: up to a noise level and back again, and nothing tells the first state from the second.

Let :math:`x \sim p_s`, carry it to a time t by the forward process, and back to s by the reverse SDE, which gives
:math:`x'`. With :math:`\eta = 1` the way back samples the posterior of x given :math:`x_t`, so x and x' are two independent
draws of it, and

.. math:: (x, x') \overset{d}{=} (x', x), \qquad \mathrm E\,\bigl[\psi(x, x') - \psi(x', x)\bigr] = 0 \text{ for every } \psi .

Each difference is then symmetric about 0, so its signs may be flipped: a test of that needs no law of the statistic and is
exact at any n. With :math:`S = \sum d_i/\sqrt{\sum d_i^2}` and :math:`\Phi` the normal distribution function,
:math:`P(S \ge z) \le \tfrac{2e^3}9\,(1 - \Phi(z))` whatever the :math:`d_i`.

Another :math:`\eta` carries :math:`p_t` to :math:`p_s` just as well, but its x' is no draw of the posterior: the marginals
are kept, the joint law is not. Functions of one state alone, :math:`a(x) - a(x')`, see the former, products
:math:`a(x)b(x') - b(x)a(x')` the latter.

Source: Pinelis 1994, https://doi.org/10.1214/aos/1176325373 (the bound).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..densities import Density, as_density
from ..grids import LogSNR
from ..linear import LinearSDE
from ..metrics import random_directions
from ..sde import SDE, Coefficient, ScoreLike
from ..solvers import DPMSolverPP2M, Method
from .budget import affordable, check_options
from .features import Features
from .halving import LARGEST_BIAS, solve_halved
from .laws import Diffused, law_of
from .report import Report, judge
from .scalar import scalar
from .statistics import POWER, Outcome, quantile, two_sided, worst

_PINELIS = 2 * math.e**3 / 9
_TURNS = (2.0, 0.0, -2.0)  # log SNR: x' stays near x, and forgets most of it
_CLEAN = 12.0  # log SNR at which to begin if t_min is 0
_DIRECTIONS = 3
_FREQUENCY = 1.5
_LEAST = 1000


def exchangeability(
    sde: SDE,
    density: Density,
    *,
    score: ScoreLike | None = None,
    times: Sequence[float] | None = None,
    solver: Method | None = None,
    steps: int = 100,
    eta: Coefficient = 1.0,
    n: int | None = None,
    budget: float = 10.0,
    level: float = 1e-4,
    seed: int = 0,
) -> Report:
    r"""Check that forward to t and back again by the reverse SDE makes the pair (x, x') exchangeable.

    x is an exact sample of the law at ``sde.t_min``, or at log SNR 12 if that is 0.
    Both rows of each turning time are sign-flip tests, one of functions of
    a single state, one of products of functions of the two. The solver's own error is measured by halving its steps
    (:mod:`~sdediff.verify.halving`) and allowed for.

    Args:
        sde: a linear process, by its type or by its f and g.
        density: the law at t = 0, with a closed form under it.
        score: the score to put to the test; that of the density by default.
        times: where to turn back, inside (t_min, t_max); by default at log SNR 2, 0 and -2.
        solver: of the way back; DPM-Solver++ 2M by default, which takes every stochasticity.
        steps: of the way back, even in number, evenly spread in log SNR.
        eta: the stochasticity of the reversal. With any other than 1 the pair is not exchangeable.
        n: how many pairs at each turning time; by default as many as the budget allows.
        budget: seconds that the check should take, a repetition of tests in doubt not included.
        level: the probability of a false alarm, for all tests together.
        seed: of all random numbers.

    Raises:
        TypeError: the process is not linear, or the density has no closed form under it.
        ValueError: a time lies outside (t_min, t_max), or steps is odd.
    """
    name = type(sde).__name__
    sde, law = _checked_law(sde, density)
    if steps < 2 or steps % 2:
        raise ValueError(f"steps = {steps} must be even: half of them show the solver's own error.")
    check_options(seed, n=n, budget=budget, level=level)
    turns = _turns(sde, times)
    back = sde.reverse(law.score if score is None else score, eta)
    there = _ThereAndBack(sde, law, back, solver or DPMSolverPP2M(), steps)
    if n is None:
        n = affordable(lambda n: there.panel(turns, n, seed), budget, least=_LEAST)
    found = judge(lambda n, seed: there.panel(turns, n, seed), n, seed, level)
    notes = (
        f"law: {law}; {n:,} fresh pairs for each turn, from t = {there.start:.3g} up by the exact transition and back by "
        f"{type(there.solver).__name__} in {steps} steps, whose own error, seen by halving them, is allowed for.",
        "sign flips: exact at any n; the statistic is in standard deviations of ψ(x, x') - ψ(x', x).",
        f"level {level:g} for all tests together, each effect detected with probability {POWER:g}.",
    )
    return Report(f"Exchangeability of {name}, η = {'η(t)' if callable(eta) else f'{eta:g}'}", found, notes)


def symmetry_test(differences: Tensor, margin: float = 0.0) -> Outcome:
    r"""Test that ``differences`` (n,), independent, are symmetric about a point of [-margin, margin].

    The p-value is a bound that holds for every law of the differences and every n (see the module): about four times that of
    the normal approximation, which costs a third of a standard error at a level of 1e-6.
    """
    d = differences.double()
    n, shift = len(d), float(d.mean())
    away = math.copysign(max(abs(shift) - margin, 0.0), shift) if math.isfinite(shift) else math.nan
    centred = d - (shift - away)
    size, scale = float(centred.norm()), float(d.std())
    z = float(centred.sum()) / size if size > 0 else 0.0 * away
    p = min(1.0, _PINELIS * two_sided(z))

    def detectable(level: float) -> float:
        return (quantile(1 - 0.5 * level / _PINELIS) + quantile(POWER)) / math.sqrt(n) + margin / max(scale, 1e-300)

    return Outcome(shift / max(scale, 1e-300), 1 / math.sqrt(n), p, detectable, "sd")


@dataclass(frozen=True)
class _ThereAndBack:
    """Pairs (x, x'), and the tests of them."""

    sde: LinearSDE
    law: Diffused
    back: SDE
    solver: Method
    steps: int

    @property
    def start(self) -> float:
        """t_min, or where there is next to no noise if that is 0."""
        return _start(self.sde)

    def panel(self, turns: Sequence[float], n: int, seed: int) -> dict[str, Outcome]:
        """Two tests for each turning time."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[str, Outcome] = {}
        for t in turns:
            x, coarse, fine = self._pairs(t, n, generator)
            sample = self.law.sample(1000, self.start, generator)
            directions = random_directions(sample[0].numel(), _DIRECTIONS, generator)
            features = Features(self.law, self.start, directions, sample, _FREQUENCY)
            a, rough, b = (features(v).unbind(1) for v in (x, coarse, fine))
            alone = [_tested(a[k] - b[k], a[k] - rough[k]) for k in range(len(a))]
            both = [
                _tested(a[j] * b[k] - a[k] * b[j], a[j] * rough[k] - a[k] * rough[j])
                for j, k in combinations(range(len(a)), 2)
            ]
            found[f"turn at t = {t:.3g}: a(x) - a(x'), {len(alone)} functions"] = worst(alone)
            found[f"turn at t = {t:.3g}: a(x)b(x') - b(x)a(x'), {len(both)} pairs"] = worst(both)
        return found

    def _pairs(self, t: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x, and x' after half of the steps and after all of them, on one path."""
        start = self.start
        x = self.law.sample(n, start, generator)
        kernel = self.sde.transition(start, t)
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        top = kernel.scale * x + kernel.variance.sqrt() * z
        nodes = LogSNR(self.steps).nodes(self.sde, t, start)
        nodes[0], nodes[-1] = t, start
        path = int(torch.randint(2**31, (), generator=generator))
        coarse, fine = solve_halved(self.back, top, self.solver, nodes, path)
        return x, coarse, fine


def _tested(fine: Tensor, coarse: Tensor) -> Outcome:
    bias = abs(float((coarse - fine).mean()))
    return symmetry_test(fine, min(bias, LARGEST_BIAS * float(fine.std())))


def _checked_law(sde: SDE, density: Density) -> tuple[LinearSDE, Diffused]:
    linear = scalar(sde, as_density(density).event_shape)
    law = None if linear is None else law_of(linear, density)
    if linear is None or not isinstance(law, Diffused):
        raise TypeError(
            f"exchangeability goes up by the exact transition from exact samples: it needs a LinearSDE and a density with a "
            f"closed form under it, got {type(sde).__name__} and {type(density).__name__}. duality takes any law."
        )
    return linear, law


def _start(sde: LinearSDE) -> float:
    return sde.t_min if sde.t_min > 0 else float(sde.time_of(_CLEAN))


def _turns(sde: LinearSDE, times: Sequence[float] | None) -> list[float]:
    turns = sde.time_of(torch.tensor(_TURNS, dtype=torch.float64)).tolist() if times is None else list(times)
    for t in turns:
        if not _start(sde) < t < sde.t_max:
            raise ValueError(f"t = {t:g} is not inside ({_start(sde):g}, {sde.t_max:g}), where one can turn back.")
    return turns
