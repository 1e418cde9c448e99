r"""Duality: the backward process, started from :math:`p_T`, has law :math:`p_{T-t'}` at every t'.

Reverse samples at interior times are held against the exact law there. One statistic is blind to most defects, so each time
has a panel: projections see where the mass lies, the occupancy of the modes their weights, and the log density what
happens inside a mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..densities import Density
from ..grids import LogSNR, Uniform
from ..linear import LinearSDE
from ..metrics import random_directions
from ..sde import SDE, Coefficient, ScoreLike
from ..solvers import EulerMaruyama, Method
from .budget import affordable, check_options
from .halving import LARGEST_BIAS, mean_test, projections_test, solve_halved
from .laws import Law, law_of
from .operator import rows
from .report import Report, judge
from .statistics import Outcome, worst

_DIRECTIONS = 8
_HIGHEST, _LOWEST = 8.0, -12.0  # log SNR: the interior times lie between


def duality(
    sde: SDE,
    density: Density | Law,
    *,
    score: ScoreLike | None = None,
    times: Sequence[float] | None = None,
    solver: Method | None = None,
    steps: int = 400,
    n: int = 10_000,
    budget: float | None = None,
    eta: Coefficient = 1.0,
    level: float = 1e-4,
    seed: int = 0,
) -> Report:
    r"""Check that the reversal carries the exact :math:`p_T` through the exact :math:`p_t` at interior times.

    At each time fresh particles start from exact samples of p_T, are solved down to t, and are tested against p_t: the
    distribution functions of projections (Kolmogorov-Smirnov), their mean and variance, the mean log density, and the
    occupancy of the modes of a mixture.

    A solver has an error of its own: it is measured by halving the number of steps (:mod:`~sdediff.verify.halving`), and
    that much, up to 0.1 standard deviations or 0.1 in a distribution function, is allowed in every test.

    Args:
        sde: the forward process.
        density: the law at t = 0 of a linear SDE, where it has a closed form under it; else a stationary law, or a
            :class:`~sdediff.verify.Law`.
        score: the score to put to the test; that of the law by default.
        times: where to look, inside (0, T); six by default, evenly spread in log SNR for a linear SDE.
        solver: Euler-Maruyama by default.
        steps: from T down to each of the times, even in number; for a linear SDE evenly spread in log SNR. An adaptive
            solver takes its own, and its tolerances must be small beside what the report says it can see.
        n: particles for each time.
        budget: seconds, instead of n: as many particles as they allow.
        eta: the stochasticity of the reversal; 0 is the flow.
        level: the probability of a false alarm, for all tests together.
        seed: of all random numbers.

    Raises:
        ValueError: a time lies outside (0, T), steps is odd, or the process is itself a reversal.
    """
    if sde.direction != 1:
        raise ValueError(f"{type(sde).__name__} is no forward SDE with noise: give the process before its reversal.")
    check_options(seed, n=n, budget=budget, level=level)
    if steps < 2 or steps % 2:
        raise ValueError(f"steps = {steps} must be even: half of them show the solver's own error.")
    law = law_of(sde, density)
    start = _start(sde)
    back = sde.reverse(law.score if score is None else score, eta)
    run = _Run(sde, law, back, start, solver or EulerMaruyama(), steps)
    times = _interior(sde, start) if times is None else _checked(times, start)
    if budget is not None:
        n = affordable(lambda n: run.panel(times, n, seed + 1), budget)
    rows = judge(lambda n, seed: run.panel(times, n, seed), n, seed, level)
    notes = (
        f"law: {law}.",
        f"{n:,} fresh particles for each time, from the exact law at t = {start:.4g}; {type(run.solver).__name__}, {steps} "
        f"steps. Its own error, seen by halving them, is allowed for up to {LARGEST_BIAS:g}: a failure that goes away with "
        "more steps was the solver's.",
        f"level {level:g} for all tests together, each effect detected with probability 0.99.",
    )
    return Report(f"Duality of {type(sde).__name__}, η = {'η(t)' if callable(eta) else f'{eta:g}'}", rows, notes)


@dataclass(frozen=True)
class _Run:
    """Reverse runs from the exact p_T, and the tests of where they arrive."""

    sde: SDE
    law: Law
    back: SDE
    start: float
    solver: Method
    steps: int

    def panel(self, times: Sequence[float], n: int, seed: int) -> dict[str, Outcome]:
        """All tests at all times."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for t in times:
            for what, outcome in self._tests(t, n, generator).items():
                found[f"t = {t:.3g}: {what}"] = outcome
        return found

    def _tests(self, t: float, n: int, generator: torch.Generator) -> dict[str, Outcome]:
        law, path = self.law, int(torch.randint(2**31, (), generator=generator))
        grid = (LogSNR if isinstance(self.sde, LinearSDE) else Uniform)(self.steps)
        nodes = grid.nodes(self.sde, self.start, t)
        nodes[0], nodes[-1] = self.start, t
        coarse, fine = solve_halved(self.back, law.sample(n, self.start, generator), self.solver, nodes, path)
        fresh = law.sample(4 * n, t, generator)
        directions = random_directions(fresh[0].numel(), _DIRECTIONS, generator)
        sets = (fine, coarse, fresh)
        levels = [law.log_prob(x, t) for x in sets]
        what, projected = projections_test(law, t, directions, *sets)
        found = {
            what: projected,
            "their means and variances": worst([o for u in directions for o in _moment_tests(law, t, u, *sets)]),
            "log density": _fresh_test(*levels),
        }
        modes, rough = law.modes(fine, t), law.modes(coarse, t)
        if modes is not None and rough is not None:
            shares = [(share / weights).unbind(1) for share, weights in (modes, rough)]
            tests = [mean_test(a, b, 1.0, 1.0, "of a weight") for a, b in zip(*shares, strict=True)]
            found[f"occupancy of {len(tests)} modes"] = worst(tests)
        return found


def _moment_tests(law: Law, t: float, u: Tensor, fine: Tensor, coarse: Tensor, fresh: Tensor) -> list[Outcome]:
    """Mean and variance of the projection on u: exact, or against a fresh sample."""
    y, line = [rows(x) @ u for x in (fine, coarse, fresh)], law.shadow(u, t)
    centre = float(y[2].mean()) if line is None else line.mean
    squares = [(v - centre) ** 2 for v in y]
    if line is None:
        return [_fresh_test(*y), _fresh_test(*squares)]
    cases = ((y, line.mean), (squares, line.variance))
    return [mean_test(a, b, claimed, float(c.std())) for (a, b, c), claimed in cases]


def _fresh_test(fine: Tensor, coarse: Tensor, fresh: Tensor) -> Outcome:
    """The mean of values against that of a fresh sample four times as large, in standard deviations."""
    return mean_test(fine, coarse, fresh.reshape(len(fine), -1).mean(1), float(fresh.std()))


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
