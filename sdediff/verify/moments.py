r"""A Gaussian kernel against the f and g that it claims to solve.

For a process with affine drift :math:`f = Ax + b` and noise G that ignores the state, x_t given x_0 is
:math:`\mathcal N(Mx_0 + m, C)` with

.. math:: \dot M = AM, \qquad \dot m = Am + b, \qquad \dot C = AC + CA^\top + GG^\top, \qquad M(0) = I,\; m(0) = C(0) = 0 .

M, m and C are read off from what ``perturb`` makes of unit vectors, A and b from what ``drift`` makes of them, G from what the
diffusion makes of unit noise, and d/dt is taken by differences: nothing here uses the package's own calculus, and it is
the same for a scalar kernel as for one with matrices.

Source: Särkkä and Solin 2019, https://doi.org/10.1017/9781108186735, section 6.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..blocks import act
from ..sde import SDE
from .attempt import attempt
from .differences import slope
from .operator import gram, rows
from .report import Row, exact_row
from .worst import Worst

RATE = 1e-7
"""The largest relative error of a rate of change: d/dt by differences is good to about 1e-10."""
_FEW = 64  # coordinates, up to which an eigenvalue costs nothing
_PURE = 700.0  # stands for the log of signal over no noise

SAME = 1e-9
"""The largest relative difference between two ways to one number in float64."""


@dataclass(frozen=True)
class Moments:
    """The kernel at one time: x_t given x_0 is N(map x_0 + shift, covariance), over flattened states."""

    map: Tensor  # (D, D)
    shift: Tensor  # (D,)
    covariance: Tensor  # (D, D)


def read_off(kernel: Callable[[Tensor, Tensor], Tensor], event_shape: tuple[int, ...]) -> Moments:
    """The moments of a kernel given as (x, noise) -> state: what it makes of unit vectors."""
    size = math.prod(event_shape)
    unit, nothing = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    x, noise = torch.cat([nothing[:1], unit, nothing]), torch.cat([nothing[:1], nothing, unit])
    shape = (len(x), *event_shape)
    moved = rows(kernel(x.reshape(shape), noise.reshape(shape))).detach().double()
    shift, moved = moved[0], moved[1:] - moved[0]
    root = moved[size:].T
    return Moments(moved[:size].T, shift, root @ root.T)


class Kernel:
    """The kernel of a process as its ``perturb(x0, t, noise)`` has it.

    Args:
        sde: anything with ``perturb``.
        event_shape: of its states.
    """

    def __init__(self, sde: Any, event_shape: tuple[int, ...]):
        self.sde, self.event_shape = sde, event_shape
        self.size = math.prod(event_shape)

    def at(self, t: float) -> Moments:
        """The moments at t."""
        return read_off(lambda x0, noise: self.sde.perturb(x0, t, noise), self.event_shape)

    def log_ratio(self, t: float) -> float:
        """log of signal over noise, as power, in the direction where it is largest: of the eigenvalues of C⁻¹ M Mᵀ.

        With many coordinates, as total power.
        """
        moments = self.at(t)
        root, singular = torch.linalg.cholesky_ex(moments.covariance)
        if self.size > _FEW:
            signal, noise = float(moments.map.square().sum()), float(moments.covariance.trace())
        elif int(singular):
            return _PURE
        else:
            seen = torch.linalg.solve_triangular(root, moments.map, upper=False)
            signal, noise = float(torch.linalg.matrix_norm(seen, 2)) ** 2, 1.0
        return min(math.log(max(signal, 1e-300) / max(noise, 1e-300)), _PURE)

    def time_of(self, log_ratio: float, t_max: float) -> float:
        """Where signal over noise has this value, by bisection in log t."""
        low, high = 1e-9 * t_max, t_max
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.log_ratio(middle) > log_ratio else (low, middle)
        return high


@dataclass(frozen=True)
class Coefficients:
    """f = rate x + push and GGᵀ = gram at one time, over flattened states."""

    rate: Tensor  # (D, D)
    push: Tensor  # (D,)
    gram: Tensor  # (D, D)


def coefficients(sde: SDE, event_shape: tuple[int, ...], t: float) -> Coefficients:
    """What an affine drift makes of unit vectors, and the diffusion of unit noise."""
    x = torch.zeros(1, *event_shape, dtype=torch.float64)
    return Coefficients(*drift_coefficients(sde, event_shape, t), gram(sde.diffusion(x, t), x)[0])


def drift_coefficients(sde: SDE, event_shape: tuple[int, ...], t: float) -> tuple[Tensor, Tensor]:
    """Rate (D, D) and push (D,) of an affine drift."""
    size = math.prod(event_shape)
    x = torch.cat([torch.zeros(1, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)])
    moved = rows(sde.drift(x.reshape(-1, *event_shape), t))
    return (moved[1:] - moved[0]).T, moved[0]


def kernel_rows(sde: SDE, kernel: Kernel, times: Sequence[float], x: Tensor) -> Iterable[Row]:
    """The kernel against f and g at these times, and at 0; x are states at which f must be the affine one.

    Rows: f affine and G blind to x; the start; the mean; the covariance.
    """
    yield from attempt("kernel: f is affine in x, g ignores x", lambda: [_affine(sde, kernel.event_shape, times, x)])
    yield from attempt("kernel: x_0 at t = 0", lambda: [_start(kernel)])
    yield from attempt("kernel: its mean moves as f says", lambda: [_mean(sde, kernel, times)])
    yield from attempt("kernel: its covariance as f and g say", lambda: [_covariance(sde, kernel, times)])


def _affine(sde: SDE, event_shape: tuple[int, ...], times: Sequence[float], x: Tensor) -> Row:
    worst = Worst()
    for t in times:
        c, noise = coefficients(sde, event_shape, t), gram(sde.diffusion(x, t), x)
        drift, claimed = rows(sde.drift(x, t)), rows(x) @ c.rate.T + c.push
        for name, seen, expected in (("f", drift, claimed), ("g gᵀ", noise, c.gram.expand_as(noise))):
            where = f"{name} at t = {t:.3g}; a process with a Gaussian kernel has f = A(t) x + b(t), g(t)."
            worst.seen(relative(seen - expected, expected), where)
    return worst.row("kernel: f is affine in x, g ignores x", SAME)


def start_errors(kernel: Kernel) -> tuple[float, float]:
    """By how much the kernel at t = 0 misses the identity: in its map and shift, and in its covariance."""
    start = kernel.at(0.0)
    off = (start.map - torch.eye(kernel.size, dtype=torch.float64)).abs().max() + start.shift.abs().max()
    return float(off), float((start.covariance - _noise_of_start(kernel)).abs().max())


def _start(kernel: Kernel) -> Row:
    off, spread = start_errors(kernel)
    detail = f"at t = 0 its map is off the identity by {off:.2g} and its covariance off by {spread:.2g}."
    return exact_row("kernel: x_0 at t = 0", off + spread, SAME, detail)


def _noise_of_start(kernel: Kernel) -> Tensor:
    """The covariance with which a process says that it starts: 0 but for those whose states are more than data."""
    declared = getattr(kernel.sde, "start_covariance", None)
    blocks = declared() if callable(declared) else None
    units = torch.eye(kernel.size, dtype=torch.float64).reshape(-1, *kernel.event_shape)
    if blocks is None:
        return torch.zeros(kernel.size, kernel.size, dtype=torch.float64)
    return rows(kernel.sde.join(act(blocks, kernel.sde.split(units)), units.shape)).T


def _mean(sde: SDE, kernel: Kernel, times: Sequence[float]) -> Row:
    worst = Worst()
    for t in times:
        c, now = coefficients(sde, kernel.event_shape, t), kernel.at(t)
        there = torch.cat([now.map, now.shift.unsqueeze(1)], 1)  # (D, D + 1)
        wanted = c.rate @ there
        wanted[:, -1] += c.push
        rate = slope(lambda e, t=t: _joined(kernel.at(t + e)), _room(t, sde.t_max))  # type: ignore[misc]
        error = relative(rate - wanted, torch.cat([rate, wanted]), there / sde.t_max)
        worst.seen(error, f"at t = {t:.3g} the kernel's mean moves {_times(rate, wanted)} what f says.")
    return worst.row("kernel: its mean moves as f says", RATE)


def _covariance(sde: SDE, kernel: Kernel, times: Sequence[float]) -> Row:
    worst = Worst()
    for t in times:
        c, now = coefficients(sde, kernel.event_shape, t), kernel.at(t).covariance
        pulled = c.rate @ now
        wanted = pulled + pulled.T + c.gram
        rate = slope(lambda e, t=t: kernel.at(t + e).covariance, _room(t, sde.t_max))  # type: ignore[misc]
        error = relative(rate - wanted, torch.cat([rate, pulled, c.gram]))
        asked = _times(rate - pulled - pulled.T, c.gram)
        worst.seen(error, f"at t = {t:.3g} the kernel asks for a GGᵀ that is {asked} that of g.")
    return worst.row("kernel: its covariance as f and g say", RATE)


def relative(difference: Tensor, *beside: Tensor) -> float:
    """The largest entry of a difference relative to the largest of what it is the difference of; NaN stays NaN."""
    size, scale = (max(float(v.detach().abs().max()) for v in values) for values in ((difference,), beside))
    return size / scale if scale > 0 else size


def _joined(moments: Moments) -> Tensor:
    return torch.cat([moments.map, moments.shift.unsqueeze(1)], 1)


def _room(t: float, t_max: float) -> float:
    return 0.25 * min(t, t_max - t)


def _times(seen: Tensor, wanted: Tensor) -> str:
    """The factor between two tensors in words, where there is one."""
    power = float(wanted.square().sum())
    factor = float((seen * wanted).sum()) / power if power > 0 else math.nan
    return f"{factor:.4g} times" if math.isfinite(factor) else "unlike"
