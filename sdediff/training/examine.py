"""The loss on data kept out of the training, always with the same times and noise, as a whole and by time."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .draws import KeyedDraws
from .losses import Loss

_DRAWS, _CHUNK, _BINS = 1024, 256, 8  # at least so many draws; so many at once; parts of the law of times
_SEED = 0


@dataclass(frozen=True)
class Examined:
    """The loss of a score on data it never saw.

    Attributes:
        step: updates done before.
        loss: the mean loss.
        by_time: (t, mean loss) for equal parts of the law of times, t the middle one of each.
    """

    step: int
    loss: float
    by_time: tuple[tuple[float, float], ...]


class Examiner:
    """Measures a loss on held-out data.

    Args:
        loss: of the score to be examined; conditions are not dropped.
        data, cond: kept from the training, (N, *event) and (N, ...). Each sample is seen several times where they are few.
        autocast: a context to evaluate in.
    """

    def __init__(self, loss: Loss, data: Tensor, cond: Tensor | None, autocast: Any = None):
        self.loss: Any = replace(loss, drop_cond=0.0) if hasattr(loss, "drop_cond") else loss  # type: ignore[type-var]
        self.data, self.cond = data, cond
        self.autocast = autocast or contextlib.nullcontext()
        count = len(data) * -(-_DRAWS // max(1, len(data)))
        self.rows = torch.arange(count) % max(1, len(data))

    @torch.no_grad()
    def __call__(self, step: int) -> Examined | None:
        """The loss after this many updates; None where no data were kept."""
        count, score = len(self.rows), self.loss.score
        if count == 0:
            return None
        score.eval()
        values, quantiles = [], []
        for first in range(0, count, _CHUNK):
            x0, cond = batch(score, self.data, self.cond, self.rows[first : first + _CHUNK])
            # Each chunk has its own places in one batch of them all: strata of the whole law of times.
            draws = KeyedDraws(_SEED, count, first, first + len(x0), stratified=self.loss.stratified).at(0, x0)
            with self.autocast:
                values.append(self.loss.per_sample(x0, cond, draws=draws).double().cpu())
            quantiles.append(draws.quantile.cpu())
        value, u = torch.cat(values), torch.cat(quantiles).double()
        return Examined(step, float(value.mean()), self._by_time(value, u))

    def _by_time(self, value: Tensor, u: Tensor) -> tuple[tuple[float, float], ...]:
        """The mean in equal parts of the law of times; nothing for a loss without such a law."""
        times, sde = getattr(self.loss, "times", None), self.loss.score.sde
        if times is None:
            return ()
        middles = times(sde, (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS).tolist()
        part = (u * _BINS).long().clamp(0, _BINS - 1)
        return tuple((t, float(value[part == k].mean())) for k, t in enumerate(middles) if bool((part == k).any()))


def batch(score: Any, data: Tensor, cond: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """These rows on the score's device, in its dtype."""
    x0 = data[rows.to(data.device)].to(getattr(score, "device", None), getattr(score, "dtype", None))
    return x0, None if cond is None else cond[rows.to(cond.device)].to(x0.device)
