"""How long a training is, how fast, and on how much at once: its numbers, apart from what is trained on what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..checks import check_number
from .schedules import Cosine, Schedule


@dataclass(frozen=True)
class Plan:
    """The numbers of a training.

    Args:
        steps: how many updates.
        batch_size: samples a step, over all workers. They come from permutations of the data, one after another, so that
            small data sets are repeated with fresh noise.
        lr: the largest learning rate.
        warmup: steps of linear rise to it.
        schedule: what follows, as a factor of it; see :mod:`~sdediff.training.schedules`.
        weight_decay: that of AdamW; 0 makes it Adam.
        clip: the largest norm of the gradient.
        ema: the decay of the averaged weights.
        held_out: the fraction of the data kept out to measure the loss on; 0 for none.
        seed: of batches, times, noise, dropout and the held-out part, in [0, 2**63). The network's own start is the
            caller's.
        precision: ``torch.bfloat16`` or ``torch.float16`` to let autocast run the network in it; schedules, loss and
            weights stay in float32. float16 scales the loss against underflow. None for the network's own.
        evaluate_every: steps between measurements of the held-out loss; by default a twentieth of all.
        save_every: steps between checkpoints, where the training has a folder; likewise.

    Raises:
        TypeError, ValueError: a number is out of its range; the message names it.
    """

    steps: int = 2000
    batch_size: int = 256
    lr: float = 1e-3
    warmup: int = 100
    schedule: Schedule = field(default_factory=Cosine)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    held_out: float = 0.05
    seed: int = 0
    precision: torch.dtype | None = None
    evaluate_every: int | None = None
    save_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup", "seed", "evaluate_every", "save_every"):
            value = getattr(self, name)
            left_open = value is None and name in ("evaluate_every", "save_every")
            if not left_open and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{name} = {value!r} must be a whole number.")
        for name in ("lr", "clip", "weight_decay", "ema", "held_out"):
            check_number(getattr(self, name), name)
        if not callable(self.schedule):
            raise TypeError(f"schedule = {self.schedule!r} must be a function of (step, steps) such as Cosine().")
        for name in ("steps", "batch_size", "lr", "clip", "evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be positive.")
        for name in ("warmup", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema = {self.ema}: the decay of a moving average lies in [0, 1).")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out = {self.held_out} is the fraction of the data kept out of training, in [0, 1).")
        if self.precision not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"precision = {self.precision} must be torch.bfloat16, torch.float16 or None.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return self.lr * min(1.0, (step + 1) / max(self.warmup, 1)) * self.schedule(step, self.steps)

    def due(self, every: int | None, done: int) -> bool:
        """Whether after this many steps something is due that comes every so many, a twentieth by default, and at the end."""
        return done % (every or max(1, self.steps // 20)) == 0 or done == self.steps
