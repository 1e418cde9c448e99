"""Sampling a process from its prior, any number of samples in batches of bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .checks import check_count, check_event, check_state
from .errors import NonFiniteError
from .grids import Grid, ends
from .noise import Noise, as_noise
from .score import condition_rows
from .sde import SDE
from .solution import Solution
from .solve import Callback, Times, check_solver, solve
from .solvers import Method


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
    denoise: bool = False,
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
        TypeError, ValueError: n or batch_size is no positive whole number, the event shape is unknown, or x has another
            length than n.
    """
    check_count(n, "n")
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    check_solver(solver, process)
    space = _Space.of(process, x, event_shape, device, dtype)
    if x is not None and x.shape[0] != n:
        raise ValueError(f"n = {n}, but x holds {x.shape[0]} starting states.")
    if isinstance(cond, Tensor) and cond.ndim > 0 and cond.shape[0] != n:
        raise ValueError(f"cond has shape {tuple(cond.shape)} for {n} samples: give one condition per sample.")
    recipe = as_noise(space.device, seed, generator, noise)
    recipe.check(n)
    begin = ends(process, t0, t1, grid)[0]
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
                cond=condition_rows(cond, slice(start, stop), n), progress=progress and size >= n, callback=callback,
                denoise=denoise, differentiable=differentiable,
            )  # fmt: skip
            done.append(solution)
            bar.update(stop - start)
    except KeyboardInterrupt:
        if not done:
            raise
        interrupted = True
    except NonFiniteError as error:
        if size < n:
            error.samples = [start + i for i in error.samples]
            error.add_note(
                f"Counted through all batches of {size}, as in .samples: samples {error.samples[:5]} of {n}."
            )
        raise
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
            if (event_shape, device, dtype) != (None, None, None):
                raise ValueError(
                    "x= fixes the shape, device and dtype of states: leave out event_shape, device and dtype."
                )
            check_state(x)
            return _Space(tuple(x.shape[1:]), x.device, x.dtype)
        score = getattr(process, "score", None)
        shape = event_shape if event_shape is not None else getattr(score, "event_shape", None)
        if shape is None:
            raise ValueError("The shape of one sample is unknown: pass event_shape=, e.g. event_shape=(2,).")
        shape = check_event(shape)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype = {dtype} must be a real floating-point dtype, such as torch.float32.")
        device = device or getattr(score, "device", None) or "cpu"
        return _Space(shape, torch.device(device), dtype or getattr(score, "dtype", None) or torch.float32)


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
    x = torch.cat([part.x for part in parts]) if len(parts) > 1 else parts[0].x
    return Solution(x, parts[0].ts, xs, stats)
