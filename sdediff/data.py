r"""Data before and after training: checked, brought to mean 0 and standard deviation 1, and back.

Processes and networks are made for data of about unit size. :math:`z = (x - m)/s` per coordinate gives that; generated z
go back by :math:`x = m + sz`, and log-densities lose :math:`\sum\log s`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_state
from .linear import LinearSDE


@dataclass(frozen=True)
class Standardisation:
    """An affine map to mean 0 and standard deviation 1.

    Args:
        mean: m, of shape event or ().
        std: s, likewise; positive.

    Raises:
        ValueError: the shapes differ, or an entry is not finite or ``std`` not positive.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape:
            raise ValueError(
                f"mean has shape {tuple(self.mean.shape)} and std {tuple(self.std.shape)}: they must agree."
            )
        if not bool((self.mean.isfinite() & self.std.isfinite() & (self.std > 0)).all()):
            raise ValueError(
                "mean and std must be finite and std positive; Standardisation.fit(data) takes care of it."
            )

    @classmethod
    def fit(cls, data: Tensor, *, shared: bool = False) -> Standardisation:
        """The map for these data (N, *event), found in float64.

        Args:
            data: the training data.
            shared: one mean and one standard deviation for all coordinates, as is usual for images.

        A constant coordinate keeps its scale (s = 1), so that it becomes 0 and returns to its value.
        """
        x = check_finite(check_state(data, "data"), "data").detach().cpu().double()
        x = x.reshape(-1) if shared else x
        mean = x.mean(0)
        std = torch.where(_constant(x), 1.0, (x - mean).square().mean(0).sqrt())
        return cls(mean, std)

    def apply(self, x: Tensor) -> Tensor:
        """z = (x - m)/s, in x's dtype."""
        return (x - self.mean.to(x.device, x.dtype)) / self.std.to(x.device, x.dtype)

    def undo(self, z: Tensor) -> Tensor:
        """x = m + s z, in z's dtype."""
        return self.mean.to(z.device, z.dtype) + self.std.to(z.device, z.dtype) * z


@dataclass(frozen=True)
class Scales:
    r"""The sizes that matter for the noise levels of a training, in units of the data given to it.

    Attributes:
        sigma_data: the standard deviation of all entries of the data: the one :class:`~sdediff.Preconditioned` wants.
        sigma_min: a noise that hides nothing: a tenth of the median distance to the nearest other sample, per coordinate.
        sigma_max: a noise that hides all: the largest distance between two samples.

    Source: Song and Ermon 2020, https://arxiv.org/abs/2006.09011, technique 1 for sigma_max.
    """

    sigma_data: float
    sigma_min: float
    sigma_max: float

    @classmethod
    def of(cls, data: Tensor, *, most: int = 4000) -> Scales:
        """The scales of these data (N, *event), N >= 2; distances from the first ``most`` samples."""
        x = check_finite(check_state(data, "data"), "data").detach().cpu().double()
        x = x.reshape(len(x), -1)
        if len(x) < 2:
            raise ValueError("One sample has no scales: give at least two.")
        spread = float((x - x.mean()).square().mean().sqrt())
        if bool(_constant(x).all()):
            raise ValueError("All samples are equal: such data have no scales.")
        apart = torch.cdist(x[:most], x[:most])
        largest = float(apart.max()) or spread
        nearest = apart.fill_diagonal_(math.inf).min(1).values
        nearest = nearest[nearest > 0]  # repeated samples say nothing of how close is close
        close = float(nearest.median()) / math.sqrt(x.shape[1]) if len(nearest) else spread
        return cls(spread, max(0.1 * close, 1e-3 * spread), largest)

    def times(self, sde: LinearSDE) -> tuple[float, float]:
        r"""(t_min, t_max) of the process at which :math:`\sigma/\alpha` is sigma_min and sigma_max, within its domain."""
        first, last = (float(sde.time_of(-2 * math.log(s))) for s in (self.sigma_min, self.sigma_max))
        return first, last


def check_data(data: Tensor, cond: Any = None) -> Tensor:
    """Return ``data`` (N, *event) if a score can be trained on them; warn of coordinates that never change.

    Args:
        data: the training data.
        cond: their conditions, a tensor (N, ...).

    Raises:
        TypeError, ValueError: data are no floating-point tensor, empty, or not finite, or cond does not fit them.
    """
    if isinstance(data, Tensor) and not data.dtype.is_floating_point and not data.dtype.is_complex:
        raise TypeError(f"data are {data.dtype}: use data.float(), scaled to a standard deviation of about 1.")
    for name, value in (("data", data), ("cond", cond)):
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise TypeError(f"{name} are a sparse tensor ({value.layout}): use {name}.to_dense().")
    check_finite(check_state(data, "data"), "data")
    if cond is not None:
        if not isinstance(cond, Tensor):
            raise TypeError(f"cond must be a tensor with one entry per sample, got {type(cond).__name__}.")
        if cond.ndim == 0 or len(cond) != len(data):
            raise ValueError(f"cond has shape {tuple(cond.shape)} for {len(data)} samples: give one condition each.")
        if cond.dtype.is_floating_point:
            check_finite(cond, "cond")
    fixed = torch.nonzero(_constant(data).flatten()).flatten().tolist()
    if fixed and len(data) > 1:
        shown = ", ".join(map(str, fixed[:10])) + (", ..." if len(fixed) > 10 else "")
        warnings.warn(
            f"{len(fixed)} of {data[0].numel()} coordinates of the data never change (flattened: {shown}). A diffusion "
            "model has to learn a spike there; leave them out if you can.",
            stacklevel=3,
        )
    return data


def _constant(x: Tensor) -> Tensor:
    """Which coordinates of x (N, ...) never change."""
    return x.amax(0) == x.amin(0)
