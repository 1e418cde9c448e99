r"""The law of x_t given x_0 under an affine process.

.. math:: x_t = \Phi_t x_0 + c_t + R_t\epsilon , \qquad R_tR_t^\top = C_t ,

with R lower triangular. What :math:`\alpha` and :math:`\sigma` are to a linear process with one scale, :math:`\Phi` and R
are here; a matrix and its transpose are no longer the same:

.. math:: s = -R^{-\top}\hat\epsilon = -C^{-1}(x - \Phi\hat x_0 - c) .
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import blocks
from ..blocks import like
from ..gaussian import normals
from .moments import Kernel


@dataclass(frozen=True)
class Scales:
    """The kernel from x_0 to x_t, acting on states.

    Args:
        sde: the process, which knows how states are split into blocks.
        kernel: :math:`\\Phi`, c and C, with batch axes () or (B,).
    """

    sde: Any
    kernel: Kernel

    @cached_property
    def root(self) -> Tensor:
        """R, (..., m, k, k), float64."""
        return blocks.root(self.kernel.covariance)

    def mean(self, x0: Tensor) -> Tensor:
        """:math:`\\Phi x_0 + c` for states x_0 (B, *event)."""
        y = self.sde.split(x0)
        return self.sde.join(blocks.act(like(self.kernel.scale, y), y) + like(self.kernel.shift, y), x0.shape)

    def data(self, mean: Tensor) -> Tensor:
        """x_0 from its mean: :math:`\\Phi^{-1}(x - c)`."""
        y = self.sde.split(mean)
        y = y - like(self.kernel.shift, y)
        return self.sde.join(blocks.solve(like(self.kernel.scale, y), y), mean.shape)

    def spread(self, z: Tensor) -> Tensor:
        """R z."""
        return self._through(blocks.act, self.root, z)

    def whiten(self, y: Tensor) -> Tensor:
        """:math:`R^{-1}y`."""
        return self._through(blocks.solve_lower, self._invertible(), y)

    def pull(self, z: Tensor) -> Tensor:
        """:math:`R^{-\\top}z`."""
        return self._through(blocks.solve_lower_transposed, self._invertible(), z)

    def push(self, s: Tensor) -> Tensor:
        """:math:`R^\\top s`."""
        return self._through(lambda r, y: blocks.act(r.mT, y), self.root, s)

    def _through(self, operation: Any, matrix: Tensor, x: Tensor) -> Tensor:
        y = self.sde.split(x)
        return self.sde.join(operation(like(matrix, y), y), x.shape)

    def _invertible(self) -> Tensor:
        if self.root.device.type == "cpu" and bool((torch.diagonal(self.root, dim1=-2, dim2=-1) == 0).any()):
            raise ValueError(
                "At this time some coordinate has had no noise yet, so the law of x_t given x_0 has no density and no score: "
                "ask at a later t. A solver stops at t_min: give your class t_min = 1e-3, or the solve t1=1e-3."
            )
        return self.root


@dataclass(frozen=True)
class CoupledGaussian:
    """N(mean, C) over states of shape ``event_shape``, with C from the blocks of a process.

    Args:
        mean: (B, *event) or (1, *event).
        scales: whose R is a root of C.
        event_shape: the shape of one state.
    """

    mean: Tensor
    scales: Scales
    event_shape: tuple[int, ...]

    def from_noise(self, z: Tensor) -> Tensor:
        """mean + R z for standard normal z (B, *event)."""
        return like(self.mean, z) + self.scales.spread(z)

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
        """The log density at x (B, *event), in nats, (B,)."""
        z = self.scales.whiten(x - like(self.mean, x)).reshape(len(x), -1)
        root = self.scales.root
        share = z.shape[1] / (root.shape[-1] * root.shape[-3])  # blocks that share one matrix
        log_det = share * torch.diagonal(root, dim1=-2, dim2=-1).log().sum((-2, -1))
        return (-0.5 * z.square().sum(1) - log_det - 0.5 * z.shape[1] * math.log(2 * math.pi)).to(x.dtype)
