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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .embeddings import Sinusoidal


class MLP(nn.Module):
    """``net(x, t)`` or ``net(x, t, labels)`` for x (B, *event), flattened inside.

    Args:
        event_shape: the shape of one state; a number d stands for (d,).
        width: of the hidden layers.
        depth: the number of residual blocks.
        embedding: a module from t (B,) to (B, embedding.dim); :class:`~sdediff.networks.Sinusoidal` by default.
        classes: the number of classes, for labels 0 ... classes - 1 of shape (B,). One more label, :attr:`null`, means
            "no class"; it is what the network takes where no label is given, and what training with
            ``DenoisingLoss(..., drop_cond=0.1)`` and :class:`~sdediff.ClassifierFree` use.

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
        super().__init__()
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        d = math.prod(self.event_shape)
        if min(d, width, depth, 1 if classes is None else classes) < 1:
            raise ValueError(
                f"event_shape {self.event_shape}, width {width}, depth {depth} and classes {classes} must be positive."
            )
        self.width, self.depth, self.classes = width, depth, classes
        self.embedding = Sinusoidal() if embedding is None else embedding
        features: Any = self.embedding.dim
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.inward = nn.Linear(d, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, d)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    @property
    def null(self) -> Tensor | None:
        """The label that stands for no class, a 0-d tensor; None for a network without classes."""
        return None if self.classes is None else torch.tensor(self.classes)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The output, of x's shape, for x (B, *event), t (B,) and labels (B,)."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; this MLP was made for (B, *{self.event_shape}).")
        e = self.time(self.embedding(t).to(x.dtype))
        if self.label is not None and self.classes is not None:
            e = e + self.label(self._labels(cond, x, self.classes))
        elif cond is not None:
            raise ValueError("This MLP takes no condition: make it with MLP(..., classes=K).")
        h = self.inward(x.reshape(len(x), -1))
        e = functional.silu(e)
        for block in self.blocks:
            h = block(h, e)
        return self.outward(functional.silu(self.norm(h))).reshape(x.shape)

    def _labels(self, cond: Tensor | None, x: Tensor, null: int) -> Tensor:
        if cond is None:
            return torch.full((len(x),), null, device=x.device)
        if cond.shape != x.shape[:1] or cond.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"cond must hold one integer label per sample, shape ({len(x)},) of torch.int64; got shape "
                f"{tuple(cond.shape)} of {cond.dtype}."
            )
        if cond.device.type == "cpu" and (cond.min() < 0 or cond.max() > null):
            raise ValueError(
                f"Labels run from {int(cond.min())} to {int(cond.max())}; this MLP knows 0 to {null}, where {null} "
                "means no class."
            )
        return cond.to(x.device)


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
