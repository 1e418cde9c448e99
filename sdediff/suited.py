"""What to give a solver when the user names only the solver: the process that suits it, and where to start it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gaussian import Gaussian
from .grids import Grid
from .linear import LinearSDE
from .score import Score
from .sde import ODE, SDE
from .solvers import Integrator, Method


def process_for(solver: Method, sde: LinearSDE, score: Score, eta: float = 1.0) -> SDE:
    """What to give a solver: the flow if it takes ODEs only, else the reversal with stochasticity ``eta``."""
    return sde.probability_flow(score) if issubclass(solver.requires, ODE) else sde.reverse(score, eta)


def stepping(solver: Method, steps: int | None, grid: Callable[[int], Grid]) -> dict[str, Any]:
    """What to tell ``solve`` of the steps: a grid of so many; their number, if a backend takes equal ones; or nothing."""
    if steps is None or solver.chooses_steps:
        return {}
    return {"steps": steps} if isinstance(solver, Integrator) else {"grid": grid(steps)}


def start_time(sde: LinearSDE) -> float:
    """t_max, or a little below where f and g are infinite there."""
    return 0.999 * sde.t_max if sde.reaches_pure_noise else sde.t_max


def start_law(sde: LinearSDE, event_shape: tuple[int, ...], *, std: float) -> Gaussian:
    """The law at :func:`start_time` of data of mean 0 and this standard deviation (1 where they are standardised)."""
    t = start_time(sde)
    return Gaussian(torch.zeros(()), torch.hypot(std * sde.alpha(t), sde.sigma(t)), event_shape)


def start(sde: LinearSDE, n: int, event_shape: tuple[int, ...], *, std: float, seed: int) -> Tensor:
    """``n`` starting states in the :func:`start_law`.

    Args:
        n: how many.
        event_shape: of one state.
        std: of the data.
        seed: of the states.
    """
    return start_law(sde, event_shape, std=std).sample(n, generator=torch.Generator().manual_seed(seed))
