r"""A short training loop: Adam with warm-up and cosine decay, clipped gradients, averaged weights.

It is meant for scores that train in minutes on one device. For more, write your own loop around
:class:`~sdediff.training.DenoisingLoss`, which is an ordinary differentiable loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data import check_data
from ..predictions import NetworkScore
from .ema import averaged
from .losses import DenoisingLoss


@dataclass(frozen=True)
class Fit:
    """What training gave.

    Attributes:
        score: the score with averaged weights, in evaluation mode. The score that was passed in holds the last ones.
        losses: the loss of each step, (steps done,), on the host.
        held_out: (step, loss) of the averaged score on data kept from the training, with the same times and noise
            each time.
        seconds: wall time.
    """

    score: NetworkScore
    losses: Tensor
    held_out: tuple[tuple[int, float], ...]
    seconds: float


class TrainingError(RuntimeError):
    """Training met a loss or gradient that is not finite. ``fit`` holds what was reached before that step."""

    def __init__(self, message: str, fit: Fit):
        super().__init__(message)
        self.fit = fit


def fit(
    score: NetworkScore,
    data: Tensor,
    *,
    cond: Tensor | None = None,
    loss: DenoisingLoss | None = None,
    steps: int = 2000,
    batch_size: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    clip: float = 1.0,
    ema: float = 0.999,
    held_out: float = 0.05,
    seed: int | None = None,
    progress: bool = True,
    callback: Callable[[int, float], None] | None = None,
) -> Fit:
    """Train ``score`` in place on ``data`` and return it with averaged weights.

    Args:
        score: a network in one of :mod:`~sdediff.predictions`.
        data: (N, *event), of about unit size (:class:`~sdediff.Standardisation`); converted to the score's dtype.
        cond: conditions, (N, ...).
        loss: a :class:`DenoisingLoss` of this score; by default the plain one.
        steps: how many updates.
        batch_size: samples a step. They come from permutations of the data, one after another, so that small data
            sets are repeated with fresh noise.
        lr: the largest rate, reached after ``warmup`` steps and falling to 0 by half a cosine.
        warmup: steps of linear rise.
        clip: the largest norm of the gradient.
        ema: the decay of the averaged weights.
        held_out: the fraction of the data kept out to measure the loss on; 0 for none.
        seed: of batches, times, noise and the held-out part; the network's own start is the caller's.
        progress: show a progress bar, on a terminal.
        callback: called as ``callback(step, loss)`` after each step.

    Returns:
        What was reached; after Ctrl-C, what was reached until then.

    Raises:
        TypeError, ValueError: the data or an argument cannot be right; said before the first step.
        TrainingError: a loss or gradient became NaN or infinite; weights are those before that step.
    """
    loss = _checked_loss(score, loss)
    _check_sizes(steps=steps, batch_size=batch_size, lr=lr, clip=clip)
    data = check_data(data, cond).detach()
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    train, kept = _split(len(data), held_out, generator)
    average = averaged(score, ema)
    mean: Any = average.module  # typed as a bare Module
    examine = _Examiner(replace(loss, score=mean), data[kept], None if cond is None else cond[kept])
    optimiser = torch.optim.Adam(score.parameters(), lr=lr, fused=True)
    parameters = list(score.parameters())
    losses: list[float] = []
    started = time.perf_counter()

    def reached() -> Fit:
        return Fit(mean.eval(), torch.tensor(losses), tuple(examine.seen), time.perf_counter() - started)

    score.train()
    try:
        with tqdm(total=steps, disable=None if progress else True, desc="training") as bar, torch.enable_grad():
            for step, rows in zip(range(steps), _batches(train, batch_size, generator), strict=False):
                for group in optimiser.param_groups:
                    group["lr"] = lr * min(1.0, (step + 1) / max(warmup, 1)) * _cosine(step / steps)
                optimiser.zero_grad()
                value = loss(*_batch(score, data, cond, rows), generator=generator)
                value.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
                if not (math.isfinite(value.item()) and math.isfinite(norm.item())):
                    raise TrainingError(_diverged(step, value.item(), norm.item(), losses), reached())
                optimiser.step()
                average.update_parameters(score)
                losses.append(value.item())
                if (step + 1) % max(1, steps // 20) == 0:
                    examine(step + 1)
                    bar.set_postfix_str(f"loss {sum(losses[-100:]) / len(losses[-100:]):.4f}", refresh=False)
                bar.update()
                if callback is not None:
                    callback(step, losses[-1])
    except KeyboardInterrupt:
        pass  # what is reached is worth keeping
    finally:
        score.eval()
    return reached()


class _Examiner:
    """The loss on data kept out, always with the same times and noise, at least about 1,024 draws of them."""

    def __init__(self, loss: DenoisingLoss, data: Tensor, cond: Tensor | None):
        self.loss, self.data, self.cond = replace(loss, drop_cond=0.0), data, cond
        self.rows = torch.arange(len(data)).repeat(max(1, 1024 // max(1, len(data))))
        self.seen: list[tuple[int, float]] = []

    def __call__(self, step: int) -> None:
        if len(self.data) == 0:
            return
        score, generator, total = self.loss.score, torch.Generator().manual_seed(0), 0.0
        score.eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            for rows in self.rows.split(1024):
                values = self.loss.per_sample(*_batch(score, self.data, self.cond, rows), generator=generator)
                total += values.sum().item()
        self.seen.append((step, total / len(self.rows)))


def _batch(score: object, data: Tensor, cond: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """These rows on the score's device, in its dtype."""
    device, dtype = getattr(score, "device", None), getattr(score, "dtype", None)
    x0 = data[rows.to(data.device)].to(device, dtype)
    return x0, None if cond is None else cond[rows.to(cond.device)].to(x0.device)


def _batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of exactly ``size`` rows, cut from one permutation of the rows after another."""
    left = rows[:0]
    while True:
        while len(left) < size:
            left = torch.cat([left, rows[torch.randperm(len(rows), generator=generator)]])
        yield left[:size]
        left = left[size:]


def _split(n: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if not 0 <= fraction < 1:
        raise ValueError(f"held_out = {fraction} is the fraction of the data kept out of training, in [0, 1).")
    kept = min(int(n * fraction), n - 1)
    rows = torch.randperm(n, generator=generator)
    return rows[kept:], rows[:kept]


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _checked_loss(score: NetworkScore, loss: DenoisingLoss | None) -> DenoisingLoss:
    if not isinstance(score, NetworkScore):
        raise TypeError(f"fit trains a network score such as NoisePrediction(sde, net), got {type(score).__name__}.")
    if not any(p.requires_grad for p in score.parameters()):
        raise ValueError("No parameter of this score requires a gradient: there is nothing to train.")
    if loss is not None and loss.score is not score:
        raise ValueError("loss is that of another score: build it as DenoisingLoss(score, ...) with the score given.")
    return DenoisingLoss(score) if loss is None else loss


def _check_sizes(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value} must be positive.")


def _diverged(step: int, value: float, norm: float, losses: list[float]) -> str:
    before = f"the step before had loss {losses[-1]:.4g}" if losses else "it is the first step"
    return (
        f"Training stopped at step {step}: loss {value:.4g}, gradient norm {norm:.4g}; {before}. The weights are those "
        "before this step, and error.fit holds what was reached. Look at the size of the data (standardise them), lower "
        "lr, or choose a weighting that is finite at the smallest time."
    )
