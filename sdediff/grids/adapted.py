r"""A grid fitted to one score, one solver and one number of steps, from a pilot run.

A fixed grid serves every score; where the score's features lie is known only to the score. :func:`adapt` warps a grid so
that a batch of pilot starts ends as near as possible to where a much finer solve takes them. The warp is smooth, a monotone
map of [0, 1] with a few knots, so that it does not learn the pilot by heart, and is found by Powell's method on the mean
logarithm of the error.

Source: the idea of optimising the nodes is that of Xue et al. 2024, https://arxiv.org/abs/2402.17376.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize
from torch import Tensor
from tqdm.auto import tqdm

from .. import counting
from ..checks import check_count, check_finite, check_state, check_whole
from ..noise import Seeded
from ..sde import SDE
from ..whole import write_whole
from .fixed import MOST_STEPS, Grid, LogSNR, Uniform, check_monotone, check_steps, ends, own_nodes


class Prepares(Protocol):
    """A fixed-step solver."""

    def check(self, process: SDE) -> None: ...
    def prepare(self, process: SDE, grid: Tensor, noise: Any) -> Callable[[int, Tensor], Tensor]: ...


@dataclass(frozen=True)
class Pilot:
    """What it took to adapt a grid, and what it gained on the pilot's starts.

    Attributes:
        rows: evaluations of the score, summed over samples.
        calls: calls of the score.
        solves: trial solves.
        seconds: the time it took.
        error_before, error_after: the geometric mean of the pilot's errors on the grid to start from and on this one.
    """

    rows: int
    calls: int
    solves: int
    seconds: float
    error_before: float
    error_after: float


class Adapted(Grid):
    """A grid of given nodes, from :func:`adapt` or :meth:`load`; serves solves between its own ends.

    Attributes:
        pilot: the cost and gain of the adaptation.
    """

    def __init__(self, times: Tensor, pilot: Pilot | None = None):
        self.times = check_monotone(own_nodes(times))
        super().__init__(len(self.times) - 1)
        self.pilot = pilot

    def nodes(self, process: SDE, t0: float, t1: float) -> Tensor:
        """The nodes, if the solve has their ends."""
        own = (float(self.times[0]), float(self.times[-1]))
        if max(abs(own[0] - t0), abs(own[1] - t1)) > 1e-9 * abs(own[1] - own[0]):
            raise ValueError(
                f"This grid was adapted to solves from t = {own[0]:g} to {own[1]:g}, not from {t0:g} to {t1:g}: adapt another."
            )
        return self.times.clone()

    def save(self, path: str | Path) -> None:
        """Write the grid to a JSON file, whole or not at all."""
        text = json.dumps({"times": self.times.tolist(), "pilot": None if self.pilot is None else asdict(self.pilot)})
        write_whole(Path(path), text.encode())

    @staticmethod
    def load(path: str | Path) -> Adapted:
        """Read a grid that :meth:`save` wrote.

        Raises:
            ValueError: the file holds no grid.
        """
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            return Adapted(torch.tensor(held["times"], dtype=torch.float64), held["pilot"] and Pilot(**held["pilot"]))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} holds no adapted grid ({type(error).__name__}: {error}); save one first."
            ) from error


def adapt(
    process: SDE,
    solver: Prepares,
    steps: int,
    x: Tensor,
    *,
    t0: float | None = None,
    t1: float | None = None,
    base: Callable[[int], Grid] | None = None,
    knots: int = 8,
    solves: int = 800,
    reference_steps: int | None = None,
    progress: bool = False,
) -> Adapted:
    """Fit a grid of ``steps`` steps to the score of a probability flow.

    Args:
        process: the flow, or another ODE.
        solver: the fixed-step solver that the grid is for.
        steps: the number of steps.
        x: pilot starts at ``t0`` (n, *event); some hundreds, in float64 if errors below 1e-5 matter.
        t0, t1: the ends of the solve, by default t_max and t_min.
        base: the kind of grid to start from, ``LogSNR`` for a linear process and ``Uniform`` for others.
        knots: how flexible the warp is.
        solves: about how many trial solves of the pilot to spend.
        reference_steps: steps of the reference solve, by default 50 times ``steps``.
        progress: show a bar.

    Returns:
        The grid, its cost in ``.pilot``.

    Raises:
        TypeError: the process has noise: adapt on its flow and use the grid for both. The solver chooses its own steps. A
            number is no whole number, or another argument not what it should be.
        ValueError: a number is too small or too large, the starts or the reference solve are not finite, or the ends lie
            outside the domain or coincide.
    """
    if isinstance(solver, type) or not callable(getattr(solver, "prepare", None)):
        raise TypeError(
            f"solver must be an object that steps along a grid, such as ExponentialAdams(), got {_named(solver)}."
        )
    solver.check(process)
    if process.direction != 0:
        raise TypeError("adapt needs paths without noise: give sde.probability_flow(score), and use the grid for both.")
    check_steps(steps)
    if check_whole(knots, "knots") < 2:
        raise ValueError(f"knots = {knots}: a warp needs at least 2.")
    check_count(solves, "solves")
    reference_steps = 50 * steps if reference_steps is None else check_count(reference_steps, "reference_steps")
    if not steps < reference_steps <= MOST_STEPS:
        raise ValueError(
            f"reference_steps = {reference_steps:,} must lie above steps = {steps:,}, as errors are distances to that solve, "
            f"and be at most {MOST_STEPS:,}."
        )
    t0, t1 = ends(process, t0, t1)
    if not (base is None or callable(base)):
        raise TypeError(f"base must be a kind of grid such as grids.Karras, got {base!r}.")
    check_finite(check_state(x))
    kind = base or (LogSNR if hasattr(getattr(process, "sde", process), "time_of") else Uniform)
    started = time.perf_counter()
    with torch.no_grad(), counting.count() as tally:
        fit = _Fit(process, solver, steps, x, _Base(kind, process, t0, t1), reference_steps)
        with tqdm(total=solves, desc="adapting", unit=" solves", delay=2, disable=not progress, leave=False) as bar:
            warp, before = fit.search(knots, solves, bar.update)
    pilot = Pilot(
        tally.rows, tally.calls, fit.tried, time.perf_counter() - started, math.exp(before), math.exp(fit.best)
    )
    return Adapted(fit.base.warped(warp, steps), pilot)


def _named(solver: object) -> str:
    return f"the class {solver.__name__}" if isinstance(solver, type) else type(solver).__name__


class _Base:
    """A family of grids as one map from [0, 1] to times."""

    def __init__(self, kind: Callable[[int], Grid], process: SDE, t0: float, t1: float):
        grid = kind(4096)
        if not isinstance(grid, Grid):
            raise TypeError(
                f"base must make a grid of a number of steps, as grids.Karras does; it made {type(grid).__name__}."
            )
        self.fine = grid.nodes(process, t0, t1).numpy()
        self.fine[0], self.fine[-1] = t0, t1
        self.ramp = np.linspace(0, 1, len(self.fine))

    def warped(self, warp: np.ndarray, steps: int) -> Tensor:
        """The grid whose steps are in the ratios exp(warp), interpolated between knots."""
        middles = (np.arange(steps) + 0.5) / steps
        sizes = np.exp(PchipInterpolator(np.linspace(0, 1, len(warp)), warp)(middles))
        ends = np.concatenate([[0.0], np.cumsum(sizes / sizes.sum())])
        ends[-1] = 1.0
        return torch.from_numpy(np.interp(ends, self.ramp, self.fine))


class _Fit:
    """The search for a warp."""

    def __init__(self, process: SDE, solver: Prepares, steps: int, x: Tensor, base: _Base, reference_steps: int):
        self.process, self.solver, self.steps, self.x, self.base = process, solver, steps, x, base
        self.noise = Seeded(torch.Generator()).open(x)  # drawn from by no solver of an ODE
        self.floor = 4 * torch.finfo(x.dtype).eps
        self.tried, self.best = 0, math.inf
        self.target = self._end(base.warped(np.zeros(2), reference_steps))
        if not bool(torch.isfinite(self.target).all()):
            raise ValueError(
                "The reference solve of the pilot is not finite: raise reference_steps, or end it earlier."
            )

    def _end(self, grid: Tensor) -> Tensor:
        advance, x = self.solver.prepare(self.process, grid, self.noise), self.x
        for k in range(len(grid) - 1):
            x = advance(k, x)
        return x

    def error(self, warp: np.ndarray) -> float:
        """The mean logarithm of the pilot's errors."""
        grid = self.base.warped(warp, self.steps)
        self.tried += 1
        if not bool((grid.diff().sign() == (grid[-1] - grid[0]).sign()).all()):
            return 1e3
        distance = (self._end(grid) - self.target).reshape(len(self.x), -1).double().norm(dim=1)
        value = float((distance + self.floor).log().mean())
        self.best = min(self.best, value) if math.isfinite(value) else self.best
        return value if math.isfinite(value) else 1e3

    def search(self, knots: int, solves: int, tick: Callable[[int], Any]) -> tuple[np.ndarray, float]:
        """The best warp, found with few knots first, and the error to start with."""

        def objective(warp: np.ndarray) -> float:
            tick(1)
            return self.error(warp)

        warp = np.zeros(2)
        before = found = self.error(warp)
        for count in sorted({min(3, knots), knots}):
            warp = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(warp)), warp)
            budget = max(1, (solves - self.tried) if count == knots else solves // 4)
            options = {"maxfev": budget, "xtol": 1e-2, "ftol": 1e-3}
            result = minimize(objective, warp, method="Powell", options=options)
            if result.fun < found:
                warp, found = result.x, float(result.fun)
        self.best = found
        return warp, before
