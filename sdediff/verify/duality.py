r"""Duality: the backward process, started from :math:`p_T`, has law :math:`p_{T-t'}` at every t'.

Reverse samples at interior times are held against the exact law there. One statistic is blind to most defects, so each time
has a panel: projections see where the mass lies, the occupancy of the modes their weights, and the log density what
happens inside a mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..densities import Density
from ..grids import LogSNR
from ..linear import LinearSDE
from ..sde import SDE, Coefficient, ScoreLike
from ..solve import solve
from ..solvers import EulerMaruyama, Method, Solver
from .laws import Law, Line, law_of
from .report import Report, judge
from .statistics import Outcome, ks_test, ks_two_sample, worst, z_test

_DIRECTIONS = 8
_HIGHEST, _LOWEST = 8.0, -12.0  # log SNR: the interior times lie between


def duality(
    sde: SDE,
    density: Density | Law,
    *,
    score: ScoreLike | None = None,
    times: Sequence[float] | None = None,
    solver: Method | None = None,
    steps: int | None = 400,
    n: int = 10_000,
    eta: Coefficient = 1.0,
    margin: float = 0.01,
    level: float = 1e-4,
    seed: int = 0,
) -> Report:
    r"""Check that the reversal carries the exact :math:`p_T` through the exact :math:`p_t` at interior times.

    At each time fresh particles start from exact samples of p_T, are solved down to t, and are tested against p_t: the
    distribution functions of projections (Kolmogorov-Smirnov), their mean and variance, the mean log density, and the
    occupancy of the modes of a mixture.

    A solver has an error of its own. The hypothesis is therefore that each deviation is at most ``margin``: in the
    distribution function, in standard deviations of the quantity averaged, or in the weight of a mode.

    Args:
        sde: the forward process.
        density: the law at t = 0 of a linear SDE, where it has a closed form under it; else a stationary law, or a
            :class:`~sdediff.verify.Law`.
        score: the score to put to the test; that of the law by default.
        times: where to look, inside (0, T); six by default, evenly spread in log SNR for a linear SDE.
        solver: Euler-Maruyama by default.
        steps: from T down to each of the times, for a linear SDE evenly spread in log SNR; None for an adaptive solver.
        n: particles for each time.
        eta: the stochasticity of the reversal; 0 is the flow.
        margin: the deviation that is the solver's to make; 0 for an exact solver.
        level: the probability of a false alarm, for all tests together.
        seed: of all random numbers.

    Raises:
        ValueError: a time lies outside (0, T), or the process is itself a reversal.
    """
    if sde.direction != 1:
        raise ValueError(f"{type(sde).__name__} is no forward SDE with noise: give the process before its reversal.")
    law = law_of(sde, density)
    start = _start(sde)
    back = sde.reverse(law.score if score is None else score, eta)
    run = _Run(sde, law, back, start, solver or EulerMaruyama(), steps, margin)
    times = _interior(sde, start) if times is None else _checked(times, start)
    rows = judge(lambda n, seed: run.panel(times, n, seed), n, seed, level)
    notes = (
        f"law: {law}.",
        f"{n:,} fresh particles for each time, from the exact law at t = {start:.4g}, by {type(run.solver).__name__}; level "
        f"{level:g} for all tests together, each effect detected with probability 0.99; a deviation of {margin:g} is left to "
        "the solver.",
    )
    return Report(f"Duality of {type(sde).__name__}, η = {'η(t)' if callable(eta) else eta}", rows, notes)


@dataclass(frozen=True)
class _Run:
    """Reverse runs from the exact p_T, and the tests of where they arrive."""

    sde: SDE
    law: Law
    back: SDE
    start: float
    solver: Method
    steps: int | None
    margin: float

    def panel(self, times: Sequence[float], n: int, seed: int) -> dict[str, Outcome]:
        """All tests at all times."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for t in times:
            x = self._solve(self.law.sample(n, self.start, generator), t, generator)
            for what, outcome in self._tests(x, t, generator).items():
                found[f"t = {t:.3g}: {what}"] = outcome
        return found

    def _solve(self, x: Tensor, t: float, generator: torch.Generator) -> Tensor:
        options: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
        if self.steps is not None and isinstance(self.sde, LinearSDE) and isinstance(self.solver, Solver):
            options = {"grid": LogSNR(self.steps).nodes(self.sde, self.start, t)}
        return solve(self.back, x, solver=self.solver, t0=self.start, t1=t, generator=generator, **options).x

    def _tests(self, x: Tensor, t: float, generator: torch.Generator) -> dict[str, Outcome]:
        fresh = self.law.sample(4 * len(x), t, generator)
        directions = torch.randn(_DIRECTIONS, fresh[0].numel(), generator=generator, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        pairs = [(x.flatten(1) @ u, fresh.flatten(1) @ u, self.law.shadow(u, t)) for u in directions]
        found = {
            f"law of {_DIRECTIONS} projections": worst([_law_test(*pair, self.margin) for pair in pairs]),
            "their means and variances": worst([o for pair in pairs for o in _moment_tests(*pair, self.margin)]),
            "log density": _mean_test(self.law.log_prob(x, t), self.law.log_prob(fresh, t), self.margin),
        }
        modes = self.law.modes(x, t)
        if modes is not None:
            found[f"occupancy of {len(modes[1])} modes"] = worst(_occupancy_tests(*modes, self.margin))
        return found


def _law_test(y: Tensor, fresh: Tensor, line: Line | None, margin: float) -> Outcome:
    """A projection against its exact distribution function, or a fresh sample."""
    return ks_two_sample(y, fresh, margin=margin) if line is None else ks_test(line.cdf(y), margin=margin)


def _moment_tests(y: Tensor, fresh: Tensor, line: Line | None, margin: float) -> list[Outcome]:
    """Mean and variance of a projection, exact or against a fresh sample."""
    centre = float(fresh.mean()) if line is None else line.mean
    squares, fresh_squares = (y - centre) ** 2, (fresh - centre) ** 2
    if line is None:
        return [_mean_test(y, fresh, margin), _mean_test(squares, fresh_squares, margin)]
    exact = ((y, fresh, line.mean), (squares, fresh_squares, line.variance))
    return [z_test(v, mean, margin=margin * float(w.std()), scale=float(w.std()), unit="sd") for v, w, mean in exact]


def _occupancy_tests(shares: Tensor, weights: Tensor, margin: float) -> list[Outcome]:
    """The mean share of each mode against its weight, relative to it."""
    return [z_test(share, 1.0, margin=margin, unit="of a weight") for share in (shares / weights).unbind(1)]


def _mean_test(values: Tensor, fresh: Tensor, margin: float) -> Outcome:
    """The mean of independent values against that of fresh ones, four times as many, in their standard deviations."""
    scale = float(fresh.std())
    blocks = fresh.reshape(len(values), -1).mean(1)
    return z_test(values - blocks, margin=margin * scale, scale=scale, unit="sd")


def _start(sde: SDE) -> float:
    """Where to start: t_max, or just below where f and g are infinite there."""
    if isinstance(sde, LinearSDE) and sde.reaches_pure_noise:
        return float(sde.time_of(_LOWEST))
    if not math.isfinite(sde.t_max):
        raise ValueError(f"The clock of {type(sde).__name__} does not end: set its t_max.")
    return sde.t_max


def _interior(sde: SDE, start: float) -> list[float]:
    """Six interior times."""
    ramp = torch.arange(1, 7, dtype=torch.float64) / 7
    if not isinstance(sde, LinearSDE):
        return (start * ramp).tolist()
    low, high = float(sde.log_snr(start)), min(_HIGHEST, float(sde.log_snr(max(sde.t_min, 1e-6 * start))))
    return sde.time_of(low + (high - low) * ramp).tolist()


def _checked(times: Sequence[float], start: float) -> list[float]:
    for t in times:
        if not 0 < t < start:
            raise ValueError(
                f"t = {t} is not inside (0, {start:g}): the times of a duality check lie between its ends."
            )
    return list(times)
