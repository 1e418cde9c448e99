"""Solving a process from given states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import counting
from .checks import all_finite, check_finite, check_state
from .errors import NonFiniteError, non_finite
from .grids import Grid, check_steps, ends, resolve, saved_times
from .noise import Noise, as_noise
from .sde import SDE, CoupledSemilinear, Reversal, Semilinear
from .solution import Solution
from .solvers import Integrator, Interval, Method, Solver

Times = Tensor | Sequence[float]
Callback = Callable[[int, float, Tensor], None]


def solve(
    process: SDE,
    x: Tensor,
    *,
    solver: Method,
    t0: float | None = None,
    t1: float | None = None,
    steps: int | None = None,
    dt: float | None = None,
    grid: Grid | Times | None = None,
    save_at: Times | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise: Noise | None = None,
    cond: Any = None,
    progress: bool = False,
    callback: Callback | None = None,
    denoise: bool = False,
    differentiable: bool = False,
) -> Solution:
    """Follow ``process`` from ``x`` at ``t0`` to ``t1``.

    Args:
        process: an SDE or ODE.
        x: starting states (B, *event), on any device, in any real dtype.
        solver: a solver object, such as ``EulerMaruyama()``.
        t0, t1: where to start and stop. By default the ends of a grid given as nodes; else a forward process runs from 0 to
            t_max and a reversal or an ODE from t_max down to t_min.
        steps, dt, grid: exactly one for a fixed-step solver; none for an adaptive one. ``dt`` is positive, the last step is
            shortened; ``grid`` is a :class:`~sdediff.grids.Grid` or the nodes themselves.
        save_at: times to save states at. They become nodes and are hit exactly.
        seed, generator, noise: at most one: an integer, a torch generator on x's device, or a
            :class:`~sdediff.noise.Noise` such as ``PerSample(seeds)``.
        cond: a condition for the score: a tensor (B, ...) or anything the score understands.
        progress: show a bar once the solve has taken two seconds.
        callback: called as ``callback(k, t, x)`` after each step of a fixed-step solver.
        denoise: end with the data prediction E[x_0 | x] at ``t1``, at one more evaluation. That is a mean, not a sample: it
            takes out the last noise of an image, and spread that belongs to a distribution.
        differentiable: keep the graph.

    Returns:
        A :class:`~sdediff.Solution`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names the cure.
        NonFiniteError: a state became NaN or infinite; it says at which step, which time and for which samples.
        SolveError: a backend gave up.
    """
    check_finite(check_state(x))
    check_solver(solver, process)
    t0, t1 = ends(process, t0, t1, grid)
    recipe = as_noise(x.device, seed, generator, noise)
    recipe.check(x.shape[0])
    _check_coupling(solver, recipe)
    if cond is not None:
        process = _given(process, cond, x.shape[0])
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable as callback(k, t, x), got {type(callback).__name__}.")
    last = _denoiser(process) if denoise else None
    run = _Run(process, x, t0, t1, recipe, save_at, progress, callback, differentiable)
    started = time.perf_counter()
    with torch.set_grad_enabled(differentiable), counting.count() as tally:
        if isinstance(solver, Integrator):
            times, states, stats = run.integrate(solver, steps, dt, grid)
        else:
            assert isinstance(solver, Solver)
            times, states, stats = run.fixed(
                solver, resolve(process, t0, t1, steps=steps, dt=dt, grid=grid, save_at=save_at)
            )
        x = states[-1] if last is None else last(states[-1], t1)
    nfe = stats.pop("nfe", None)
    counts = {"nfe": _per_sample(tally.rows, x.shape[0]) if nfe is None else nfe, "score_calls": tally.calls}
    stats = counts | stats | {"seconds": time.perf_counter() - started}
    return Solution(x, times, torch.stack(states), stats)


@dataclass(frozen=True)
class _Run:
    """One solve, its arguments checked."""

    process: SDE
    x: Tensor
    t0: float
    t1: float
    noise: Noise
    save_at: Times | None
    progress: bool
    callback: Callback | None
    differentiable: bool

    def fixed(self, solver: Solver, nodes: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Step along the nodes, keeping the states that were asked for."""
        wanted = torch.tensor([self.t1], dtype=torch.float64)
        if self.save_at is not None:
            wanted = saved_times(self.save_at, self.t0, self.t1)
        keep = set(wanted.tolist())
        times, again = nodes.tolist(), self.noise.frozen()
        advance = solver.prepare(self.process, nodes, self.noise.open(self.x))
        x, kept = self.x, [self.x] if times[0] in keep else []
        for k in self._steps(len(times) - 1):
            x = advance(k, x)
            if times[k + 1] in keep:
                kept.append(x)
            if self.callback is not None:
                self.callback(k, times[k + 1], x)
        last = kept[-1] if kept and times[-1] in keep else x
        if not all_finite(x):
            self._replay(solver, nodes, again)
        if times[-1] not in keep:  # the end is always given
            kept, wanted = [*kept, last], torch.cat([wanted, nodes[-1:]])
        return wanted, kept, {"steps": len(times) - 1, "rejected": 0}

    def integrate(
        self, solver: Integrator, steps: Any, dt: Any, grid: Any
    ) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Hand the interval to an integrator, landing on every time to save at."""
        span = abs(self.t1 - self.t0)
        if solver.fixed:
            if grid is not None or (steps is None) == (dt is None):
                raise ValueError(f"{type(solver).__name__} steps uniformly: give exactly one of steps= and dt=.")
            step = span / check_steps(steps) if steps is not None else float(dt)
            if not 0 < step < math.inf:
                raise ValueError(f"dt = {dt!r} must be a positive number.")
        else:
            given = [name for name, value in (("steps", steps), ("dt", dt), ("grid", grid)) if value is not None]
            if given:
                raise ValueError(
                    f"{type(solver).__name__} chooses its own steps: leave out {', '.join(given)}= and set its "
                    "tolerances."
                )
            step = None
        outer = torch.tensor([self.t0, self.t1], dtype=torch.float64)
        wanted = outer[1:] if self.save_at is None else saved_times(self.save_at, self.t0, self.t1)
        every = torch.unique(torch.cat([outer, wanted]))
        every = every.flip(0) if self.t1 < self.t0 else every
        out = solver.integrate(self.process, self.x, Interval(every, step, self.noise, self.differentiable))
        for t, state in zip(every.tolist(), out.states, strict=True):
            if not all_finite(state):
                raise non_finite(state, t)
        keep = set(wanted.tolist()) | {self.t1}
        kept = [(t, state) for t, state in zip(every.tolist(), out.states, strict=True) if t in keep]
        stats = {"steps": out.steps, "rejected": out.rejected} | ({} if out.nfe is None else {"nfe": out.nfe})
        return torch.tensor([t for t, _ in kept], dtype=torch.float64), [state for _, state in kept], stats

    def _steps(self, count: int) -> Any:
        return (
            tqdm(range(count), desc="solving", unit=" steps", delay=2, leave=False) if self.progress else range(count)
        )

    def _replay(self, solver: Solver, nodes: Tensor, noise: Noise) -> None:
        """Go the same way again, looking at every step, and say where it went wrong."""
        times, x = nodes.tolist(), self.x.detach()
        with torch.no_grad(), counting.count():
            advance = solver.prepare(self.process, nodes, noise.open(x))
            for k in range(len(times) - 1):
                new = advance(k, x)
                if not all_finite(new):
                    raise non_finite(new, times[k + 1], step=k, s=times[k], state=x)
                x = new
        raise NonFiniteError(
            "The final state was NaN or infinite, yet a repetition from the same start with the same noise is finite: the "
            "score or the drift does not give the same value twice (dropout? put the network in eval mode).",
            step=None, t=times[-1], samples=[], state=x,
        )  # fmt: skip


def check_solver(solver: object, process: SDE) -> None:
    if not isinstance(process, SDE):
        is_class = isinstance(process, type)
        seen = f"the class {process.__name__}: write {process.__name__}(...)" if is_class else type(process).__name__
        raise TypeError(f"process must be an SDE, got {seen}.")
    if not isinstance(solver, Method):
        hint = f": write {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"solver must be a solver object such as EulerMaruyama(), got {solver!r}{hint}.")
    solver.check(process)


def _check_coupling(solver: Method, noise: Noise) -> None:
    if noise.independent and solver.couples_samples:
        raise ValueError(
            f"{type(solver).__name__} couples the samples of a batch, so {type(noise).__name__} cannot make "
            "them independent of it: use a fixed-step solver, or seed=."
        )


def _denoiser(process: SDE) -> Callable[[Tensor, float], Tensor]:
    if not isinstance(process, (Semilinear, CoupledSemilinear)):
        raise ValueError(
            "denoise=True needs the reversal of a linear process: only there is E[x_0 | x] known from a score."
        )
    return process.score.data


def _given(process: SDE, cond: Any, batch: int) -> SDE:
    if not isinstance(process, Reversal):
        raise ValueError(f"cond= goes to a score, and {type(process).__name__} has none.")
    if isinstance(cond, Tensor) and cond.ndim > 0 and cond.shape[0] != batch:
        raise ValueError(f"cond has shape {tuple(cond.shape)} for a batch of {batch}: give one condition per sample.")
    return process.given(cond)


def _per_sample(rows: int, batch: int) -> int | float:
    return rows // batch if rows % batch == 0 else rows / batch
