r"""Data before and after training: checked, brought to mean 0 and standard deviation 1, and back.

Processes and networks are made for data of about unit size. :math:`z = (x - m)/s` per coordinate gives that; generated z
go back by :math:`x = m + sz`, and log-densities lose :math:`\sum\log s`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_state


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
