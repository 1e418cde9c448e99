r"""At which times a denoiser is trained, each law written as its quantile function.

The loss draws u in (0, 1), one in each of B equal strata, and a law turns u into t. Where the times go and how evenly
they are spread are then separate matters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..checks import float64
from ..linear import LinearSDE


class Times(ABC):
    """A law of t on the clock of a process."""

    @abstractmethod
    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """The times at the quantiles u (B,) in (0, 1), float64."""

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor | float:
        """By what the error at t is multiplied besides the weighting: 1, unless the law stands in for another."""
        return 1.0


class Uniform(Times):
    """Uniform on [t_min, t_max].

    Args:
        t_min, t_max: the process's own where not given.
    """

    def __init__(self, t_min: float | None = None, t_max: float | None = None):
        self.t_min, self.t_max = t_min, t_max

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """t_min + (t_max - t_min) u."""
        first, last = _interval(sde, self.t_min, self.t_max)
        return first + (last - first) * u


class LogNormal(Times):
    r""":math:`\log(\sigma/\alpha) \sim \mathcal N(mean, std^2)`, held within the process's [t_min, t_max].

    Args:
        mean, std: of the log noise-to-signal ratio; the defaults are EDM's, for data of standard deviation 0.5.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"mean = {mean} must be finite and std = {std} positive.")
        self.mean, self.std = mean, std

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """The times at which log(sigma/alpha) has these quantiles."""
        log_ratio = self.mean + self.std * torch.special.ndtri(u)
        return sde.time_of(-2 * log_ratio).clamp(sde.t_min, sde.t_max)


class Importance(Times):
    r"""Times with density :math:`q \propto g^2/\sigma^2`, in place of uniform ones on [t_min, t_max].

    The errors are multiplied by :math:`p/q`, p uniform, so that the expected loss is that under :class:`Uniform`. It is meant
    for the weighting :class:`~sdediff.training.Likelihood`, whose factor :math:`g^2/\sigma^2` of the noise error it cancels:
    the same loss, with a fraction of the variance. As :math:`g^2/\sigma^2 = -\tfrac{d}{dt}\log\mathrm{SNR}`, these times are
    uniform in the log-SNR.

    Args:
        t_min, t_max: the process's own where not given; :math:`\sigma(t_{min}) > 0` and :math:`\alpha(t_{max}) > 0`.

    Raises:
        ValueError: on use, the log-SNR is infinite at an end.

    Source: Song et al. 2021, https://arxiv.org/abs/2101.09258, section 5.1.
    """

    def __init__(self, t_min: float | None = None, t_max: float | None = None):
        self.t_min, self.t_max = t_min, t_max

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """The times whose log-SNR is uniform."""
        first, last = self._ends(sde)
        high, low = self._range(sde)
        return sde.time_of(high + (low - high) * u).clamp(first, last)

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """p/q."""
        first, last = self._ends(sde)
        high, low = self._range(sde)
        t = float64(t)
        density = sde.diffusion_coefficient(t) ** 2 / sde.variance(t) / (high - low)
        return 1 / (density * (last - first))

    def _ends(self, sde: LinearSDE) -> tuple[float, float]:
        return _interval(sde, self.t_min, self.t_max)

    def _range(self, sde: LinearSDE) -> tuple[float, float]:
        first, last = self._ends(sde)
        high, low = float(sde.log_snr(first)), float(sde.log_snr(last))
        if not (math.isfinite(high) and math.isfinite(low)):
            raise ValueError(
                f"The log-SNR is {high:g} at t = {first:g} and {low:g} at t = {last:g}: times uniform in it need finite "
                "ends. Give t_min= above 0, and t_max= below the end of a process that reaches pure noise."
            )
        return high, low


def _interval(sde: LinearSDE, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    """The ends asked for, or the process's own."""
    first = sde.t_min if t_min is None else t_min
    last = sde.t_max if t_max is None else t_max
    if not 0 <= first < last <= sde.t_max:
        raise ValueError(f"Training times from {first} to {last} do not lie in [0, {sde.t_max:g}], in this order.")
    return first, last
