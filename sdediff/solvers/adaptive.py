r"""Adaptive Runge-Kutta methods for ODEs, each sample with its own steps.

An embedded pair gives, from the same slopes, a solution and an estimate of its error:

.. math:: k_i = f\Bigl(x_s + h\sum_{j<i}a_{ij}k_j,\; s + c_ih\Bigr), \qquad x_t = x_s + h\sum_j a_{mj}k_j, \qquad
          e = h\sum_i e_ik_i .

The last stage is taken at the solution itself, so its slope is the first one of the next step. A pair is its coefficients;
who steps how far is the business of :mod:`~sdediff.solvers.walk`.

Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, chapter II.4 and II.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..noise import Noise
from ..sde import ODE
from .base import Orders
from .walk import Adaptive, Attempts, Controller, Drift, Samples, Taken, rms


class EmbeddedRungeKutta(Adaptive):
    """An explicit pair whose last stage is the solution (first same as last).

    Args:
        a: the strictly lower triangle of the tableau, row i of length i; the last row holds the weights of the solution.
        error: the weights e of the error estimate: those of the solution less those of the companion.
        order: of the solution; the companion is of one order less.
        rtol, atol, max_steps: as in :class:`~sdediff.solvers.walk.Adaptive`.

    Raises:
        ValueError: the rows do not form a lower triangle, or the weights are not consistent.
    """

    requires = ODE
    instead = "solve sde.probability_flow(score), or use AdaptiveHeun for an SDE with noise"

    def __init__(
        self,
        a: Sequence[Sequence[float]],
        error: Sequence[float],
        order: int,
        *,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_steps: int = 10_000,
    ):
        super().__init__(rtol=rtol, atol=atol, max_steps=max_steps)
        if len(a) != len(error) or any(len(row) != i for i, row in enumerate(a)):
            raise ValueError("a must have one row per stage, row i of length i; error one weight per stage.")
        if abs(sum(a[-1]) - 1) > 1e-12 or abs(sum(error)) > 1e-12:
            raise ValueError(
                f"The weights of the solution sum to {sum(a[-1]):g} and those of its error to {sum(error):g}; they need 1, 0."
            )
        self.a, self.error = [list(row) for row in a], list(error)
        self.c = [sum(row) for row in a]
        self.orders = Orders(ode=order)
        self.controller = Controller(order)

    def open(self, samples: Samples, x: Tensor, t: Tensor, noise: Noise) -> Attempts:
        """The slopes of each sample."""
        return _Slopes(self, samples, x, t)

    def kept(self, samples: Samples, x: Tensor, t: Tensor) -> Tensor:
        """The slope."""
        return samples.drift(x, t)

    def retake(self, samples: Samples, taken: Taken, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The step again."""
        new, _, slope = self.step(samples.drift, x, taken.t, taken.t_new, kept)
        return new, slope

    def step(self, drift: Drift, x: Tensor, t: Tensor, t_new: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From x (n, *event) at t (n,) to t_new, given the slope at x: the new state, its error, the slope there."""
        h = t_new - t
        length = h.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        slopes, new = [slope], x
        for row, c in zip(self.a[1:], self.c[1:], strict=True):
            new = torch.addcmul(x, length, _weighted(row, slopes))
            slopes.append(drift(new, t_new if abs(c - 1) < 1e-12 else t + c * h))
        return new, length * _weighted(self.error, slopes), slopes[-1]


class _Slopes(Attempts):
    """The slope at each sample's state, kept from step to step."""

    def __init__(self, method: EmbeddedRungeKutta, samples: Samples, x: Tensor, t: Tensor):
        self.method, self.samples, self.x, self.t = method, samples, x, t
        self.slope = self.last = samples.drift(x, t)
        bad = torch.nonzero(~torch.isfinite(self.slope).reshape(len(x), -1).all(1)).flatten().tolist()
        if bad:
            raise NonFiniteError(
                f"The drift is NaN or infinite at the start, t = {float(t[0]):g}, for {len(bad)} of {len(x)} samples (first: "
                f"{bad[:5]}). Check the score there, or start a little nearer to the data.",
                step=0,
                t=float(t[0]),
                samples=bad,
                state=x,
            )

    def first(self, span: float) -> Tensor:
        """A guess from the slope and its change."""
        method = self.method
        return first_length(
            self.samples.drift, self.x, self.t, self.slope, span, method.rtol, method.atol, method.orders
        )

    def attempt(self, x: Tensor, t: Tensor, t_new: Tensor) -> tuple[Tensor, Tensor]:
        """A step of the pair."""
        new, error, self.last = self.method.step(self.samples.drift, x, t, t_new, self.slope)
        return new, error

    def settle(self, x: Tensor, t: Tensor, accepted: Tensor) -> None:
        """The last slope becomes the first, where the step was accepted."""
        self.slope = torch.where(accepted.reshape(-1, *[1] * (x.ndim - 1)), self.last, self.slope)

    def keep(self, rows: Tensor) -> None:
        """Only these slopes."""
        self.slope = self.slope[rows]


def first_length(
    drift: Drift, x: Tensor, t: Tensor, slope: Tensor, span: float, rtol: float, atol: float, orders: Orders
) -> Tensor:
    """Hairer's guess at the first step of each sample, (n,): one whose derivatives promise an error well below the tolerance.

    Args:
        drift, x, t, slope: the drift, the states (n, *event) and times (n,) at the start, and the drift there.
        span: the signed length of the interval.
        rtol, atol, orders: of the method.
    """
    assert orders.ode is not None
    reach, scale = abs(span), atol + rtol * x.abs()
    size, speed = rms(x / scale), rms(slope / scale)
    h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6 * reach, 0.01 * size / speed).clamp_max(reach)
    signed = math.copysign(1.0, span) * h
    ahead = x + slope * signed.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    bend = rms((drift(ahead, t + signed) - slope) / scale) / h
    guess = (0.01 / torch.maximum(speed, bend)).pow(1 / orders.ode)
    guess = torch.where(torch.isfinite(guess), guess, 1e-3 * h)  # also where the step ahead met a NaN
    return torch.minimum(100 * h, guess).clamp_max(reach)


class Tsitouras(EmbeddedRungeKutta):
    """Tsitouras' pair of orders 5 and 4: six evaluations a step, with smaller errors than :class:`DormandPrince`.

    Args:
        rtol, atol: the error allowed in one step, relative to the state and in its units.
        max_steps: the most steps tried for one sample.

    Source: Tsitouras 2011, https://doi.org/10.1016/j.camwa.2011.06.002, table 1.
    """

    def __init__(self, *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000):
        a = [
            [],
            [0.161],
            [-0.008480655492356989, 0.335480655492357],
            [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
            [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
            [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
            [0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774],
        ]
        error = [
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ]
        super().__init__(a, error, 5, rtol=rtol, atol=atol, max_steps=max_steps)


class DormandPrince(EmbeddedRungeKutta):
    """Dormand and Prince's pair of orders 5 and 4, the one of SciPy's RK45: six evaluations a step.

    Args:
        rtol, atol: the error allowed in one step, relative to the state and in its units.
        max_steps: the most steps tried for one sample.

    Source: Dormand and Prince 1980, https://doi.org/10.1016/0771-050X(80)90013-3.
    """

    def __init__(self, *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000):
        a = [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
            [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        ]
        error = [71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]
        super().__init__(a, error, 5, rtol=rtol, atol=atol, max_steps=max_steps)


class BogackiShampine(EmbeddedRungeKutta):
    """Bogacki and Shampine's pair of orders 3 and 2: three evaluations a step, for loose tolerances.

    Args:
        rtol, atol: the error allowed in one step, relative to the state and in its units.
        max_steps: the most steps tried for one sample.

    Source: Bogacki and Shampine 1989, https://doi.org/10.1016/0893-9659(89)90079-7.
    """

    def __init__(self, *, rtol: float = 1e-3, atol: float = 1e-3, max_steps: int = 10_000):
        a = [[], [1 / 2], [0.0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]]
        error = [-5 / 72, 1 / 12, 1 / 9, -1 / 8]
        super().__init__(a, error, 3, rtol=rtol, atol=atol, max_steps=max_steps)


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The sum of the slopes with these weights."""
    total = slopes[0] * weights[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total
