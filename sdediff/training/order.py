"""Which rows of the data a step sees, as a function of the seed and the step: nothing to remember, nothing to lose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..keyed import label

_EPOCH, _SPLIT = 21, 22  # what a label begins with


def split(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows to train on and the rows kept out, of n; at least one is trained on."""
    kept = min(int(n * fraction), n - 1)
    rows = _permutation(n, label(_SPLIT, seed))
    return rows[kept:], rows[:kept]


class Order:
    """Batches cut from one permutation of the rows after another.

    Args:
        rows: the rows to train on, (N,).
        size: of a batch, which may exceed N.
        seed: of the permutations.
    """

    def __init__(self, rows: Tensor, size: int, seed: int):
        self.rows, self.size, self.seed = rows, size, seed
        self._held: dict[int, Tensor] = {}

    def at(self, step: int) -> Tensor:
        """The rows of this step, (size,)."""
        n, first, last = len(self.rows), step * self.size, (step + 1) * self.size
        epochs = range(first // n, (last - 1) // n + 1)
        self._held = {epoch: self._epoch(epoch) for epoch in epochs}
        parts = [self._held[k][max(0, first - k * n) : last - k * n] for k in epochs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch in self._held:
            return self._held[epoch]
        return self.rows[_permutation(len(self.rows), label(_EPOCH, self.seed, epoch))]


def _permutation(n: int, key: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(key % 2**63))
