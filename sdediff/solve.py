"""Solving a process from a state, and sampling one from its prior.

:func:`solve` follows a process from given states; :func:`sample` draws the starting states too, and works through any
number of samples in batches of bounded memory.
"""

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
from .checks import check_finite, check_state
from .errors import NonFiniteError
from .grids import Grid, check_steps, resolve, saved_times
from .noise import Noise, PerSample, Seeded, as_noise
from .sde import SDE, Reversal
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
        differentiable: keep the graph.

    Returns:
        A :class:`~sdediff.Solution`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names the cure.
        NonFiniteError: a state became NaN or infinite; it says at which step, which time and for which samples.
        SolveError: a backend gave up.
    """
    check_finite(check_state(x))
    _check_solver(solver, process)
    t0, t1 = _ends(process, t0, t1, grid)
    recipe = as_noise(x.device, seed, generator, noise)
    recipe.check(x.shape[0])
    _check_coupling(solver, recipe)
    if cond is not None:
        process = _given(process, cond, x.shape[0])
    run = _Run(process, x, t0, t1, recipe, save_at, progress, callback, differentiable)
    started = time.perf_counter()
    with torch.set_grad_enabled(differentiable), counting.count() as tally:
        if isinstance(solver, Integrator):
            times, states, stats = run.integrate(solver, steps, dt, grid)
        else:
            times, states, stats = run.fixed(
                solver, resolve(process, t0, t1, steps=steps, dt=dt, grid=grid, save_at=save_at)
            )
    nfe = stats.pop("nfe", None)
    counts = {"nfe": _per_sample(tally.rows, x.shape[0]) if nfe is None else nfe, "score_calls": tally.calls}
    stats = counts | stats | {"seconds": time.perf_counter() - started}
    return Solution(states[-1], times, torch.stack(states), stats)


def sample(
    process: SDE,
    n: int,
    *,
    solver: Method,
    x: Tensor | None = None,
    event_shape: tuple[int, ...] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
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
    differentiable: bool = False,
) -> Solution:
    """Draw ``n`` samples of ``process``: starting states from its prior, then :func:`solve`, batch by batch.

    Args:
        n: how many.
        x: starting states (n, *event) instead of draws from the prior; required where the process has none.
        event_shape, device, dtype: of the states; by default those that the score knows.
        batch_size: the most samples solved at once, which bounds memory; by default all n.

    All other arguments are those of :func:`solve`. Ctrl-C returns the batches that are finished, with
    ``stats["interrupted"]`` true; within the first batch it raises as usual.

    Raises:
        ValueError: n or batch_size is not positive, the event shape is unknown, or x has another length than n.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} = {value!r} must be a positive whole number.")
    _check_solver(solver, process)
    space = _Space.of(process, x, event_shape, device, dtype)
    if x is not None and x.shape[0] != n:
        raise ValueError(f"n = {n}, but x holds {x.shape[0]} starting states.")
    recipe = as_noise(space.device, seed, generator, noise)
    recipe.check(n)
    begin = _ends(process, t0, t1, grid)[0]
    if x is None and begin != process.t_max:
        raise ValueError(f"The prior is the law at t_max = {process.t_max:g}, not at t0 = {begin:g}: give x=.")
    prior = None if x is not None else process.prior(space.event_shape)
    size = batch_size or n
    done: list[Solution] = []
    interrupted = False
    bar = tqdm(total=n, desc="sampling", unit=" samples", delay=2, disable=not progress or size >= n, leave=False)
    try:
        for start in range(0, n, size):
            stop = min(start + size, n)
            part = recipe.rows(start, stop)
            if prior is None:
                assert x is not None
                states = x[start:stop]
            else:
                states = prior.from_noise(part.initial((stop - start, *space.event_shape), space.device, space.dtype))
            solution = solve(
                process, states, solver=solver, t0=t0, t1=t1, steps=steps, dt=dt, grid=grid, save_at=save_at, noise=part,
                cond=_rows(cond, n, start, stop), progress=progress and size >= n, callback=callback,
                differentiable=differentiable,
            )  # fmt: skip
            done.append(solution)
            bar.update(stop - start)
    except KeyboardInterrupt:
        if not done:
            raise
        interrupted = True
    finally:
        bar.close()
    return _joined(done, interrupted)


@dataclass(frozen=True)
class _Space:
    """Where states live."""

    event_shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def of(process: SDE, x: Tensor | None, event_shape: Any, device: Any, dtype: Any) -> _Space:
        if x is not None:
            check_state(x)
            return _Space(tuple(x.shape[1:]), x.device, x.dtype)
        score = getattr(process, "score", None)
        shape = event_shape if event_shape is not None else getattr(score, "event_shape", None)
        if shape is None:
            raise ValueError("The shape of one sample is unknown: pass event_shape=, e.g. event_shape=(2,).")
        device = device or getattr(score, "device", None) or "cpu"
        return _Space(tuple(shape), torch.device(device), dtype or getattr(score, "dtype", None) or torch.float32)


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
        times, start = nodes.tolist(), _rewindable(self.noise)
        advance = solver.prepare(self.process, nodes, start().open(self.x))
        x, kept = self.x, [self.x] if times[0] in keep else []
        for k in self._steps(len(times) - 1):
            x = advance(k, x)
            if times[k + 1] in keep:
                kept.append(x)
            if self.callback is not None:
                self.callback(k, times[k + 1], x)
        last = kept[-1] if kept and times[-1] in keep else x
        if not _finite(x):
            self._replay(solver, nodes, start())
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
        ends = torch.tensor([self.t0, self.t1], dtype=torch.float64)
        wanted = ends[1:] if self.save_at is None else saved_times(self.save_at, self.t0, self.t1)
        every = torch.unique(torch.cat([ends, wanted]))
        every = every.flip(0) if self.t1 < self.t0 else every
        seed = int(_rewindable(self.noise)().generator.initial_seed()) % 2**31 if isinstance(self.noise, Seeded) else 0
        out = solver.integrate(self.process, self.x, Interval(every, step, seed, self.differentiable))
        for t, state in zip(every.tolist(), out.states, strict=True):
            if not _finite(state):
                _raise_non_finite(None, t, state, None)
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
                if not _finite(new):
                    _raise_non_finite(k, times[k + 1], new, x, times[k])
                x = new
        raise NonFiniteError(
            "The final state was NaN or infinite, yet a repetition from the same start with the same noise is finite: the "
            "score or the drift does not give the same value twice (dropout? put the network in eval mode).",
            step=None, t=times[-1], samples=[], state=x,
        )  # fmt: skip


def _rewindable(noise: Noise) -> Callable[[], Noise]:
    """The recipe for the solve first; when asked again, one that repeats the same numbers."""
    if not isinstance(noise, Seeded):
        return lambda: noise
    state = noise.generator.get_state()
    used = False

    def get() -> Noise:
        nonlocal used
        if not used:
            used = True
            return noise
        twin = torch.Generator(noise.generator.device)
        twin.set_state(state)
        return Seeded(twin)

    return get


def _finite(x: Tensor) -> bool:
    return x.device.type == "meta" or bool(torch.isfinite(x).all())


def _raise_non_finite(k: int | None, t: float, bad: Tensor, good: Tensor | None, s: float | None = None) -> None:
    rows = torch.nonzero(~torch.isfinite(bad).reshape(bad.shape[0], -1).all(1)).flatten().tolist()
    where = f"at t = {t:g}" if k is None else f"in step {k}, from t = {s:g} to t = {t:g},"
    raise NonFiniteError(
        f"The state became NaN or infinite {where} for {len(rows)} of {bad.shape[0]} samples (first: {rows[:5]}). Check the "
        "score there; take smaller steps, or end the solve further from t = 0. The last finite state is in .state.",
        step=k, t=t, samples=rows, state=good,
    )  # fmt: skip


def _ends(process: SDE, t0: float | None, t1: float | None, grid: Any) -> tuple[float, float]:
    """Where the solve starts and stops, checked against the domain and the direction of the process."""
    if grid is not None and not isinstance(grid, Grid):
        nodes = torch.as_tensor(grid, dtype=torch.float64).reshape(-1)
        if len(nodes) > 1:
            t0, t1 = float(nodes[0]) if t0 is None else t0, float(nodes[-1]) if t1 is None else t1
    default = (0.0, process.t_max) if process.direction > 0 else (process.t_max, process.t_min)
    t0, t1 = float(default[0] if t0 is None else t0), float(default[1] if t1 is None else t1)
    for name, t in (("t0", t0), ("t1", t1)):
        if not 0 <= t <= process.t_max:
            raise ValueError(
                f"{name} = {t:g} is outside [0, {process.t_max:g}], the domain of {type(process).__name__}."
            )
    if not math.isfinite(t1 - t0):
        raise ValueError(f"The clock of {type(process).__name__} does not end: give t0 and t1.")
    if t0 == t1:
        raise ValueError(f"t0 = t1 = {t0:g}: there is nothing to solve.")
    if process.direction * (t1 - t0) < 0:
        way = "rising" if process.direction > 0 else "falling"
        cure = "sde.reverse(score)" if process.direction > 0 else "the forward process"
        raise ValueError(
            f"{type(process).__name__} has noise that flows with {way} t and cannot be solved from {t0:g} to {t1:g}: "
            f"exchange t0 and t1, or use {cure}."
        )
    return t0, t1


def _check_solver(solver: object, process: SDE) -> None:
    if not isinstance(process, SDE):
        raise TypeError(f"process must be an SDE, got {type(process).__name__}.")
    if not isinstance(solver, Method):
        hint = f": write {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"solver must be a solver object such as EulerMaruyama(), got {solver!r}{hint}.")
    solver.check(process)


def _check_coupling(solver: Method, noise: Noise) -> None:
    if noise.independent and solver.couples_samples:
        raise ValueError(
            f"{type(solver).__name__} couples the samples of a batch, so PerSample noise cannot make them independent of it: "
            "use a fixed-step solver, or seed=."
        )


def _given(process: SDE, cond: Any, batch: int) -> SDE:
    if not isinstance(process, Reversal):
        raise ValueError(f"cond= goes to a score, and {type(process).__name__} has none.")
    if isinstance(cond, Tensor) and cond.ndim > 0 and cond.shape[0] != batch:
        raise ValueError(f"cond has shape {tuple(cond.shape)} for a batch of {batch}: give one condition per sample.")
    return process.given(cond)


def _rows(cond: Any, n: int, start: int, stop: int) -> Any:
    """The part of a condition that belongs to these samples: tensors with n rows are sliced, in containers too."""
    if isinstance(cond, Tensor):
        return cond[start:stop] if cond.ndim > 0 and cond.shape[0] == n else cond
    if isinstance(cond, dict):
        return {key: _rows(value, n, start, stop) for key, value in cond.items()}
    if isinstance(cond, (list, tuple)):
        return type(cond)(_rows(value, n, start, stop) for value in cond)
    return cond


def _per_sample(rows: int, batch: int) -> int | float:
    return rows // batch if rows % batch == 0 else rows / batch


def _joined(parts: list[Solution], interrupted: bool) -> Solution:
    """One solution from those of the batches."""
    stats = dict(parts[0].stats)
    if len(parts) > 1:
        sizes = [part.x.shape[0] for part in parts]
        each = [part.stats["nfe"] for part in parts]
        if isinstance(each[0], Tensor):
            stats["nfe"] = torch.cat(each)
        else:
            stats["nfe"] = (
                each[0] if len(set(each)) == 1 else sum(e * s for e, s in zip(each, sizes, strict=True)) / sum(sizes)
            )
        for key in ("score_calls", "seconds"):
            stats[key] = sum(part.stats[key] for part in parts)
        for key in ("steps", "rejected"):
            values = [part.stats[key] for part in parts]
            stats[key] = torch.cat(values) if isinstance(values[0], Tensor) else max(values)
    if interrupted:
        stats["interrupted"] = True
    xs = torch.cat([part.xs for part in parts], 1) if len(parts) > 1 else parts[0].xs
    return Solution(xs[-1], parts[0].ts, xs, stats)


__all__ = ["PerSample", "sample", "solve"]
