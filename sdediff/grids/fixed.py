r"""Time grids: where a fixed-step solver puts its nodes.

A grid of N steps is N + 1 nodes, computed once in float64, strictly monotone, with exact end points. Give a solver
``steps=N`` for a uniform grid, ``dt=h`` for a uniform one with a shorter last step, or ``grid=`` one of these objects or a
tensor of nodes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number, check_parameter, check_positive
from ..sde import SDE


class Grid(ABC):
    """A rule for N + 1 nodes from t0 to t1. Subclasses say how far along each node lies.

    Args:
        steps: N, at least 1.
    """

    def __init__(self, steps: int):
        self.steps = check_steps(steps)

    @abstractmethod
    def nodes(self, process: SDE, t0: float, t1: float) -> Tensor:
        """The N + 1 nodes, float64 on the host; end points are set exactly by the caller."""

    def _ramp(self) -> Tensor:
        return torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)


class Uniform(Grid):
    """Equal steps in t."""

    def nodes(self, process: SDE, t0: float, t1: float) -> Tensor:
        """t0 + (t1 - t0) k/N."""
        return t0 + (t1 - t0) * self._ramp()


class Power(Grid):
    r"""Equal steps in :math:`t^{1/p}`, finer near t = 0; p = 2 is the quadratic grid.

    Args:
        steps: N.
        power: p > 0.
    """

    def __init__(self, steps: int, power: float):
        super().__init__(steps)
        self.power = check_positive(power, "power")

    def nodes(self, process: SDE, t0: float, t1: float) -> Tensor:
        """Uniform in t^(1/p)."""
        a, b = t0 ** (1 / self.power), t1 ** (1 / self.power)
        return (a + (b - a) * self._ramp()) ** self.power


class Quadratic(Power):
    """Equal steps in the square root of t."""

    def __init__(self, steps: int):
        super().__init__(steps, 2.0)


class LogSNR(Grid):
    """Equal steps in the log signal-to-noise ratio of a linear process.

    Where alpha vanishes at the noise end, the first step leads to sigma/alpha = ``top`` and the others follow from there.

    Args:
        steps: N.
        top: the noise level after the first step, where that at its start is infinite.
    """

    def __init__(self, steps: int, *, top: float = 100.0):
        super().__init__(steps)
        self.top = check_positive(top, "top")

    def nodes(self, process: SDE, t0: float, t1: float) -> Tensor:
        """Uniform in log SNR."""
        return _in_level(process, t0, t1, self.steps, self.top, torch.log, torch.exp)


class Karras(Grid):
    r"""Equal steps in :math:`(\sigma/\alpha)^{1/\rho}`, for any linear process.

    Where alpha vanishes at the noise end, the first step leads to sigma/alpha = ``top`` and the others follow from there.

    Args:
        steps: N.
        rho: 7 in the source.
        top: the noise level after the first step, where that at its start is infinite.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 5.
    """

    def __init__(self, steps: int, rho: float = 7.0, *, top: float = 100.0):
        super().__init__(steps)
        self.rho, self.top = check_positive(rho, "rho"), check_positive(top, "top")

    def nodes(self, process: SDE, t0: float, t1: float) -> Tensor:
        """Uniform in (sigma/alpha)^(1/rho)."""
        return _in_level(process, t0, t1, self.steps, self.top, lambda u: u ** (1 / self.rho), lambda v: v**self.rho)


def _in_level(
    process: SDE,
    t0: float,
    t1: float,
    steps: int,
    top: float,
    to: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Tensor:
    """Nodes uniform in ``to(sigma/alpha)``."""
    schedule = linear_schedule(process, "A grid in the noise level")
    ends = torch.tensor([t0, t1], dtype=torch.float64)
    level = torch.exp(-0.5 * schedule.log_snr(ends))
    infinite = torch.isinf(level).tolist()
    level[level.isinf()] = top
    values, count = to(level), steps - sum(infinite)
    if count < 1:
        raise ValueError(f"steps = {steps}: with alpha = 0 at an end of the solve this grid needs at least 2 steps.")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"The noise level is 0 at t = {min(t0, t1):g}, where this grid has no end: stop earlier, e.g. at "
            f"t = {max(schedule.t_min, 1e-3 * schedule.t_max):g}, or use Karras."
        )
    ramp = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    inner = schedule.time_of(-2 * torch.log(back(values[0] + (values[1] - values[0]) * ramp)))
    return torch.cat([*([ends[:1]] if infinite[0] else []), inner, *([ends[1:]] if infinite[1] else [])])


def linear_schedule(process: SDE, what: str) -> Any:
    """The log-SNR clock of a linear process or of a reversal of one."""
    schedule = getattr(process, "sde", process)
    if not hasattr(schedule, "time_of"):
        raise TypeError(f"{what} needs a linear process or its reversal, got {type(process).__name__}: use Uniform.")
    return schedule


MOST_STEPS = 10_000_000
"""Beyond it the nodes alone fill the memory."""


def check_steps(steps: object) -> int:
    """A positive number of steps."""
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps must be a whole number, got {steps!r}.")
    if steps < 1:
        raise ValueError(f"steps = {steps}: a solve needs at least one step.")
    if steps > MOST_STEPS:
        raise ValueError(f"steps = {steps:,}: a solve takes at most {MOST_STEPS:,}.")
    return steps


def ends(process: SDE, t0: float | None, t1: float | None, grid: Any = None) -> tuple[float, float]:
    """Where the solve starts and stops, checked against the domain and the direction of the process."""
    if grid is not None and not isinstance(grid, Grid):
        nodes = check_parameter(grid, "grid").reshape(-1)
        if len(nodes) > 1:
            t0, t1 = float(nodes[0]) if t0 is None else t0, float(nodes[-1]) if t1 is None else t1
    default = (0.0, process.t_max) if process.direction > 0 else (process.t_max, process.t_min)
    t0, t1 = default[0] if t0 is None else t0, default[1] if t1 is None else t1
    t0, t1 = (t if isinstance(t, float) else check_number(t, name) for t, name in ((t0, "t0"), (t1, "t1")))
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


def resolve(
    process: SDE,
    t0: float,
    t1: float,
    *,
    steps: int | None = None,
    dt: float | None = None,
    grid: Grid | Tensor | Sequence[float] | None = None,
    save_at: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """The nodes of a solve from t0 to t1, ``save_at`` among them: float64, on the host, strictly monotone.

    Raises:
        ValueError: not exactly one of steps, dt and grid; a grid that is not strictly monotone, leaves the domain or
            does not run from t0 to t1; a time to save at outside [t0, t1].
    """
    if sum(given is not None for given in (steps, dt, grid)) != 1:
        raise ValueError("A fixed-step solver needs exactly one of steps=, dt= and grid=.")
    if steps is not None:
        nodes = Uniform(steps).nodes(process, t0, t1)
    elif dt is not None:
        nodes = _spaced(t0, t1, dt)
    elif isinstance(grid, Grid):
        nodes = own_nodes(grid.nodes(process, t0, t1))
    else:
        nodes = _custom(grid, t0, t1)
    nodes[0], nodes[-1] = t0, t1
    if save_at is not None:
        nodes = _merge(nodes, saved_times(save_at, t0, t1))
    return check_monotone(nodes)


def saved_times(save_at: Tensor | Sequence[float], t0: float, t1: float) -> Tensor:
    """The times to save at, float64, in the order of the solve, each inside [t0, t1]; an end up to rounding is that end."""
    times = check_parameter(save_at, "save_at").reshape(-1)
    low, high = min(t0, t1), max(t0, t1)
    slack = 1e-6 * (high - low)  # a float32 end may round to just outside
    if len(times) == 0 or not bool(((times >= low - slack) & (times <= high + slack)).all()):
        raise ValueError(f"save_at must hold times inside the solve [{low:g}, {high:g}], got {times.tolist()[:8]}.")
    times = times.clamp(low, high)
    for end in (low, high):
        times = torch.where((times - end).abs() <= 1e-12 * (high - low), end, times)
    return torch.unique(times).flip(0) if t1 < t0 else torch.unique(times)


def check_monotone(nodes: Tensor) -> Tensor:
    """Return nodes that are finite and strictly monotone."""
    if not bool(torch.isfinite(nodes).all()):
        raise ValueError("The grid has a node that is NaN or infinite.")
    h = nodes.diff()
    if not (bool((h > 0).all()) or bool((h < 0).all())):
        bad = int(torch.nonzero(h.sign() != (nodes[-1] - nodes[0]).sign())[0])
        raise ValueError(
            f"The grid is not strictly monotone: nodes {bad} and {bad + 1} are {nodes[bad]:g} and {nodes[bad + 1]:g}. "
            "Sort it and remove repeated nodes."
        )
    return nodes


def _spaced(t0: float, t1: float, dt: float) -> Tensor:
    if isinstance(dt, bool) or not (isinstance(dt, (int, float)) and 0 < dt < math.inf):
        raise ValueError(f"dt = {dt!r} must be a positive number; its sign follows from t0 and t1.")
    steps = abs(t1 - t0) / dt
    if steps > MOST_STEPS:
        raise ValueError(f"dt = {dt:g} would be {steps:.3g} steps; a solve takes at most {MOST_STEPS:,}.")
    count = max(1, math.ceil(steps * (1 - 1e-12)))
    nodes = t0 + math.copysign(dt, t1 - t0) * torch.arange(count + 1, dtype=torch.float64)
    nodes[-1] = t1
    return nodes


def _custom(grid: Any, t0: float, t1: float) -> Tensor:
    nodes = check_monotone(own_nodes(grid))
    span = abs(t1 - t0)
    if abs(float(nodes[0]) - t0) > 1e-6 * span or abs(float(nodes[-1]) - t1) > 1e-6 * span:
        raise ValueError(
            f"grid runs from {nodes[0]:g} to {nodes[-1]:g}, the solve from t0 = {t0:g} to t1 = {t1:g}: let them agree, or "
            "leave t0 and t1 out."
        )
    return nodes


def own_nodes(grid: Any) -> Tensor:
    """Nodes as a float64 tensor of ours on the host."""
    nodes = check_parameter(grid, "grid")
    if nodes.ndim != 1 or len(nodes) < 2:
        raise ValueError(f"grid must be a 1-D sequence of at least 2 nodes, got shape {tuple(nodes.shape)}.")
    return nodes


def _merge(nodes: Tensor, times: Tensor) -> Tensor:
    """Nodes with the times among them; a node within rounding of a time gives way to it."""
    span = float((nodes[-1] - nodes[0]).abs())
    near = (nodes.unsqueeze(1) - times).abs().min(1).values <= 1e-12 * span
    merged = torch.unique(torch.cat([nodes[~near], times]))
    return merged.flip(0) if nodes[-1] < nodes[0] else merged
