"""What a solve gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """The result of :func:`~sdediff.solve` or :func:`~sdediff.sample`.

    Attributes:
        x: the final state, (B, *event).
        ts: the saved times, float64, in the order of the solve, shape (S,); without ``save_at`` the end alone.
        xs: the states at these times, (S, B, *event).
        stats: ``nfe``, score evaluations per sample (a (B,) tensor where they differ between samples); ``score_calls``,
            calls of the score; ``steps`` and ``rejected``; ``seconds``; and ``interrupted`` where Ctrl-C cut it short.
    """

    x: Tensor
    ts: Tensor
    xs: Tensor
    stats: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = ", ".join(f"{key} {value}" for key, value in self.stats.items() if not isinstance(value, Tensor))
        return f"Solution of {self.x.shape[0]} samples, shape {tuple(self.x.shape[1:])} ({counts})"
