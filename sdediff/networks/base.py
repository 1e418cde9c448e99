r"""What the networks of this package share: the shape of one state, and how time and class come in.

Classes have a null class among them. Time and class become one vector that every block sees,

.. math:: \mathrm{silu}(e(t) + e(c)) ,

with a small perceptron on an embedding of t for :math:`e(t)`, and a table for :math:`e(c)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .embeddings import Sinusoidal


class Network(nn.Module):
    """``net(x, t)`` or ``net(x, t, labels)`` for x (B, *event), t (B,) and labels (B,).

    Args:
        event_shape: the shape of one state; a number d stands for (d,).
        classes: the number of classes, for labels 0 ... classes - 1. One more label, :attr:`null`, means "no class"; it
            is what the network takes where no label is given, and what training with ``DenoisingLoss(...,
            drop_cond=0.1)`` and :class:`~sdediff.ClassifierFree` use.

    Raises:
        ValueError: a size is not positive; on evaluation, x or the labels do not fit.
    """

    def __init__(self, event_shape: int | Sequence[int], *, classes: int | None = None):
        super().__init__()
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if min((*self.event_shape, 1 if classes is None else classes), default=1) < 1:
            raise ValueError(f"event_shape {self.event_shape} and classes {classes} must be positive.")
        self.classes = classes

    def sees(self, width: int, embedding: nn.Module | None) -> None:
        """Make the layers of :meth:`features`; a subclass's constructor calls it.

        Args:
            width: of the features.
            embedding: a module from t (B,) to (B, embedding.dim); :class:`~sdediff.networks.Sinusoidal` by default.
        """
        self.embedding = Sinusoidal() if embedding is None else embedding
        known: Any = self.embedding.dim
        self.time = nn.Sequential(nn.Linear(known, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if self.classes is None else nn.Embedding(self.classes + 1, width)

    def features(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """What the blocks see of time and class, (B, width) in x's dtype, for t (B,) and the labels that :meth:`check` gave."""
        e = self.time(self.embedding(t).to(x.dtype))
        if self.label is not None:
            e = e + self.label(labels)
        return functional.silu(e)

    @property
    def null(self) -> Tensor | None:
        """The label that stands for no class, a 0-d tensor; None for a network without classes."""
        return None if self.classes is None else torch.tensor(self.classes)

    def check(self, x: Tensor, cond: Tensor | None) -> Tensor | None:
        """The labels for x, (B,), with null for those not given; None for a network without classes."""
        name = type(self).__name__
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; this {name} was made for (B, *{self.event_shape}).")
        if self.classes is None:
            if cond is not None:
                raise ValueError(f"This {name} takes no condition: make it with {name}(..., classes=K).")
            return None
        if cond is None:
            return torch.full((len(x),), self.classes, device=x.device)
        if cond.shape != x.shape[:1] or cond.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"cond must hold one integer label per sample, shape ({len(x)},) of torch.int64; got shape "
                f"{tuple(cond.shape)} of {cond.dtype}."
            )
        readable = cond.device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere a look would stall
        if readable and (cond.min() < 0 or cond.max() > self.classes):
            raise ValueError(
                f"Labels run from {int(cond.min())} to {int(cond.max())}; this {name} knows 0 to {self.classes}, where "
                f"{self.classes} means no class."
            )
        return cond.to(x.device)
