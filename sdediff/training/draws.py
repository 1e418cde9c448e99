r"""What one evaluation of a loss draws for each sample: a quantile of time, noise, and whether its condition is dropped.

A training draws them as functions of (seed, step, place in the batch) rather than in order, so that

* a training that was stopped goes on as if it had not been: there is no generator whose state could be lost;
* several workers that share a batch see the numbers that one worker with the whole batch would see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..keyed import Keyed, label

_TIME, _NOISE = 11, 12  # what a label begins with
_SMALL = 1 << 14  # numbers drawn at once


@dataclass(frozen=True)
class Draws:
    """The random numbers of a loss on a batch of B samples.

    Attributes:
        quantile: of the law of time, (B,) in (0, 1), float64.
        noise: standard normals, (B, *event), in at least float32.
        drop: uniform numbers in (0, 1), (B,): a condition is dropped where they are below its rate.
    """

    quantile: Tensor
    noise: Tensor
    drop: Tensor


def drawn(x0: Tensor, generator: torch.Generator | None, *, stratified: bool = True) -> Draws:
    """Draws for x0 (B, *event) from a generator: times, noise and drops, in this order.

    A host generator serves every device; None is torch's own. Meta tensors take none.
    """
    batch = len(x0)
    u = _random(torch.rand, (batch,), x0, generator)
    u = u if u.device.type == "mps" else u.double()
    if stratified:
        u = (u + torch.arange(batch, device=u.device)) / batch
    noise = _random(torch.randn, tuple(x0.shape), x0, generator)
    return Draws(u, noise, _random(torch.rand, (batch,), x0, generator))


class KeyedDraws:
    """The draws of the places ``first`` to ``last`` of a batch, at any step.

    Args:
        seed: in [0, 2**63).
        batch: the size of the whole batch, of which each place is a stratum of time.
        first, last: the places wanted, last excluded; all by default.
        stratified: one quantile in each stratum, else independent ones.
    """

    def __init__(
        self, seed: int, batch: int, first: int = 0, last: int | None = None, *, stratified: bool = True
    ) -> None:
        self.first, self.last, self.batch = first, batch if last is None else last, batch
        self.keys, self.stratified = Keyed(seed).rows(self.first, self.last), stratified
        self._held: tuple[Any, list[Draws]] = (None, [])

    def at(self, step: int, x0: Tensor) -> Draws:
        """The draws of this step for states like x0 (last - first, *event)."""
        width = max(
            1, _SMALL // max(1, x0.numel())
        )  # steps drawn at once: a call costs as much as thousands of numbers
        about = (step // width, x0.shape, x0.device, x0.dtype)
        if self._held[0] != about:
            start = step - step % width
            self._held = about, self._block(range(start, start + width), x0)
        return self._held[1][step % width]

    def _block(self, steps: range, x0: Tensor) -> list[Draws]:
        count, event = len(x0), x0.shape[1:]
        dtype = torch.promote_types(x0.dtype, torch.float32)
        half = torch.Size([(event.numel() + 1) // 2])
        z = self.keys.source(count, x0.device, dtype).pairs([label(_NOISE, k) for k in steps], half)
        z = torch.cat([z[0], z[1]], -1)[..., : event.numel()]  # (steps, B, D)
        exact = dtype if x0.device.type == "mps" else torch.float64
        w = self.keys.source(count, x0.device, exact).pairs([label(_TIME, k) for k in steps], torch.Size([]))
        u, drop = torch.special.ndtr(w)  # (steps, B) each
        if self.stratified:
            u = (u + torch.arange(self.first, self.last, device=u.device)) / self.batch
        return [Draws(*each) for each in zip(u, z.reshape(len(steps), *x0.shape), drop, strict=True)]


def _random(draw: Any, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers beside ``like``; a host generator serves every device (and the meta device takes none)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if like.device.type == "meta":
        return draw(shape, device="meta", dtype=dtype)
    device = like.device if generator is None else generator.device
    return draw(shape, generator=generator, device=device, dtype=dtype).to(like.device)
