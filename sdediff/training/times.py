r"""At which times a denoiser is trained, each law written as its quantile function.

The loss draws u in (0, 1), one in each of B equal strata, and a law turns u into t. Where the times go and how evenly
they are spread are then separate matters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..linear import LinearSDE


class Times(ABC):
    """A law of t on the clock of a process."""

    @abstractmethod
    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """The times at the quantiles u (B,) in (0, 1), float64."""


class Uniform(Times):
    """Uniform on [t_min, t_max].

    Args:
        t_min, t_max: the process's own where not given.
    """

    def __init__(self, t_min: float | None = None, t_max: float | None = None):
        self.t_min, self.t_max = t_min, t_max

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """t_min + (t_max - t_min) u."""
        first = sde.t_min if self.t_min is None else self.t_min
        last = sde.t_max if self.t_max is None else self.t_max
        if not 0 <= first < last <= sde.t_max:
            raise ValueError(f"Training times from {first} to {last} do not lie in [0, {sde.t_max:g}], in this order.")
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
