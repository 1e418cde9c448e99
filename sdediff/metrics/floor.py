"""The noise of a number: what a metric says of two exact samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..densities import Density

Drawer = Callable[..., Tensor]
"""``sampler(n, generator=...)``: n samples (n, *event)."""


@dataclass(frozen=True)
class NoiseFloor:
    """What a metric says of two exact samples.

    Args:
        mean: over the repeats.
        upper: the 95 % quantile: a value below it says nothing against a sample.
        values: (repeats,), sorted.
    """

    mean: float
    upper: float
    values: Tensor


def noise_floor(
    metric: Callable[[Tensor, Tensor], float], sampler: Density | Drawer, n: int, repeats: int = 20, seed: int = 0
) -> NoiseFloor:
    """The metric between pairs of independent exact samples: what a perfect sampler would be told.

    Args:
        metric: ``metric(x, y)``, a number; for a metric of one sample ``lambda x, _: ...``.
        sampler: a density, or a function ``sampler(n, generator=...)``, e.g. ``functools.partial(exact.sample, t=t)``.
        n: the size of each sample: that of the sample to be judged.
        repeats: how many pairs; the 95 % quantile wants 20 or more.
        seed: of all of them.
    """
    if repeats < 2:
        raise ValueError(f"repeats = {repeats} must be at least 2.")
    draw = sampler.sample if isinstance(sampler, Density) else sampler
    generator = torch.Generator().manual_seed(seed)
    seen = [float(metric(draw(n, generator=generator), draw(n, generator=generator))) for _ in range(repeats)]
    values = torch.tensor(seen, dtype=torch.float64).sort().values
    return NoiseFloor(float(values.mean()), float(values.quantile(0.95)), values)
