r"""A residual multilayer perceptron for states of any shape.

.. math:: h \leftarrow h + W_2\,\mathrm{silu}\bigl((1+a)\odot\mathrm{norm}(W_1 h) + b\bigr), \qquad
          (a, b) = A\,\mathrm{silu}(e(t) + e(c)) ,

so time and class scale and shift every block (FiLM). The last layer starts at zero: a fresh network predicts 0, and its
first gradients are those of the output alone.

Sources: Perez et al. 2018, https://arxiv.org/abs/1709.07871; Ho and Salimans 2022, https://arxiv.org/abs/2207.12598 for
the null class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .base import Network


class MLP(Network):
    """``net(x, t)`` or ``net(x, t, labels)`` for x (B, *event), flattened inside.

    Args:
        event_shape, classes: as in :class:`~sdediff.networks.Network`.
        width: of the hidden layers.
        depth: the number of residual blocks.
        embedding: a module from t (B,) to (B, embedding.dim); :class:`~sdediff.networks.Sinusoidal` by default.

    Raises:
        ValueError: a size is not positive; on evaluation, x or the labels do not fit.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        width: int = 256,
        depth: int = 4,
        embedding: nn.Module | None = None,
        classes: int | None = None,
    ):
        super().__init__(event_shape, classes=classes)
        if min(width, depth) < 1:
            raise ValueError(f"width {width} and depth {depth} must be positive.")
        d = math.prod(self.event_shape)
        self.width, self.depth = width, depth
        self.sees(width, embedding)
        self.inward = nn.Linear(d, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, d)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The output, of x's shape, for x (B, *event), t (B,) and labels (B,)."""
        e = self.features(x, t, self.check(x, cond))
        h = self.inward(x.reshape(len(x), -1))
        for block in self.blocks:
            h = block(h, e)
        return self.outward(functional.silu(self.norm(h))).reshape(x.shape)


class Block(nn.Module):
    """One residual block of :class:`MLP`."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h (B, width) under the features e (B, width) of time and class."""
        scale, shift = self.film(e).chunk(2, -1)
        return h + self.second(functional.silu((1 + scale) * self.norm(self.first(h)) + shift))
