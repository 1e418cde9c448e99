r"""Precision and recall by nearest neighbours: are the samples where the data are, and the data where the samples are?

With balls around each point of a reference sample that reach to its k-th neighbour,

.. math:: \text{precision} &= \text{share of samples inside a ball of the data}, \\
          \text{recall} &= \text{share of data inside a ball of the samples}, \\
          \text{density} &= \text{mean number of data balls around a sample, over } k, \\
          \text{coverage} &= \text{share of data balls that hold a sample}.

A single outlier has a large ball and feigns precision and recall; density and coverage are sturdier. If both samples have
one law, coverage has the expectation :math:`1 - \prod_{j=0}^{k-1}\frac{n-1-j}{n+m-1-j}` and density 1, whatever the law:
for the other two take a :func:`~sdediff.metrics.noise_floor`.

Sources: Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991; Naeem et al. 2020, https://arxiv.org/abs/2002.09797.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import pairs
from .pairs import distance, pair


@dataclass(frozen=True)
class Neighbourhoods:
    """How two samples overlap.

    Args:
        precision, recall, coverage: shares, from 0 to 1.
        density: 1 in expectation where the laws are equal; more where samples crowd together among the data.
        expected_coverage: of two samples of one law.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    expected_coverage: float


def precision_recall(x: Tensor, data: Tensor, *, k: int = 5) -> Neighbourhoods:
    """Precision, recall, density and coverage of a sample.

    Args:
        x: the samples to be judged, (m, *event).
        data: reference samples, (n, *event), n > k; for images give features.
        k: how many neighbours make a ball; a point is not its own neighbour.
    """
    x, data = pair(x, data)
    if not (isinstance(k, int) and 1 <= k < min(len(x), len(data))):
        raise ValueError(f"k = {k!r} must be a whole number from 1 to {min(len(x), len(data)) - 1}.")
    of_data, of_x = _radii(data, k), _radii(x, k)
    inside, count, _ = _balls(x, data, of_data)
    back, _, nearest = _balls(data, x, of_x)
    m, n = len(x), len(data)
    expected = 1.0
    for j in range(k):  # none of the k points nearest to a data point is a sample
        expected *= (n - 1 - j) / (n + m - 1 - j)
    covered = float((nearest <= of_data).double().mean())
    return Neighbourhoods(
        float(inside.double().mean()), float(back.double().mean()), count / (k * m), covered, 1 - expected
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th neighbour, (n,)."""
    rows = max(1, pairs.BLOCK // len(x))
    parts = [distance(part, x).topk(k + 1, largest=False).values[:, k] for part in x.split(rows)]
    return torch.cat(parts)


def _balls(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, int, Tensor]:
    """For points against balls: who is inside any (m,), how often in all, and how far each point's nearest centre is (m,)."""
    inside, nearest, count = [], [], 0
    for part in points.split(max(1, pairs.BLOCK // len(centres))):
        apart = distance(part, centres)
        within = apart <= radii
        inside.append(within.any(1))
        nearest.append(apart.min(1).values)
        count += int(within.sum())
    return torch.cat(inside), count, torch.cat(nearest)
