"""Isotropic Gaussians: the laws that a linear SDE hands out (marginals, transitions, priors)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std² I) over states of shape ``event_shape``.

    Args:
        mean: broadcastable to ``(B, *event)``.
        std: a number, or a tensor broadcastable to ``(B, *event)``.
        event_shape: the shape of one state.
    """

    mean: Tensor
    std: Tensor
    event_shape: tuple[int, ...]

    def from_noise(self, z: Tensor) -> Tensor:
        """``mean + std * z`` for standard normal z of shape (B, *event)."""
        return _like(self.mean, z) + _like(self.std, z) * z

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """``n`` samples, (n, *event)."""
        return self.from_noise(normals((n, *self.event_shape), generator, device, dtype))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density at x (B, *event), in nats, shape (B,)."""
        std = _like(self.std, x)
        z = (x - _like(self.mean, x)) / std
        terms = -0.5 * z * z - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return terms.reshape(x.shape[0], -1).sum(1)


def normals(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Standard normals, on the host by default; on the meta device, where nothing is drawn, whatever the generator."""
    place = torch.device("cpu" if device is None else device)
    return torch.randn(shape, generator=None if place.type == "meta" else generator, device=place, dtype=dtype)


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value if value.ndim == 0 and value.device.type == "cpu" else value.to(x.device, x.dtype)
