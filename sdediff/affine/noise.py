"""The noise L dW of a coupled process on states of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..blocks import act
from ..diffusion import Applied


@dataclass(frozen=True)
class BlockNoise(Applied):
    """Additive noise that mixes the coordinates of each block, or of a basis other than the state's own.

    Args:
        sde: the process, which knows how states are split into blocks.
        factor: L, (m, k, k) or (B, m, k, k), square.
    """

    sde: Any
    factor: Tensor

    def __matmul__(self, z: Tensor) -> Tensor:
        y = self.sde.split(z)
        return self.sde.join(act(self.factor, y), z.shape)

    def __rmul__(self, c: float | Tensor) -> BlockNoise:
        if isinstance(c, Tensor) and c.ndim > 0:
            c = c.reshape(-1, 1, 1, 1)  # one per sample
        return BlockNoise(self.sde, c * self.factor)

    def gram(self, v: Tensor) -> Tensor:
        """L Lᵀ v."""
        y = self.sde.split(v)
        return self.sde.join(act(self.factor, act(self.factor.mT, y)), v.shape)

    def detached(self) -> BlockNoise:
        """The same without gradients."""
        return BlockNoise(self.sde, self.factor.detach())

    @property
    def requires_grad(self) -> bool:
        """True where L was made of something that wants a gradient."""
        return self.factor.requires_grad

    def noise_shape(self, x: Tensor) -> torch.Size:
        """x's own shape."""
        return x.shape
