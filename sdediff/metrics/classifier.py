r"""The classifier two-sample test: can anything learn to tell the two samples apart?

A classifier is trained on one half of both samples and asked about the other half. If the laws are equal its answers know
nothing of the labels, and given how often it answers each label, the number of right answers is hypergeometric: the p-value
is exact (Fisher's) whatever the classifier, however badly it was trained. What it can see depends on it.

Source: Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import pairs
from .pairs import distance, pair

Classify = Callable[[Tensor], Tensor]
"""Points (n, D) to scores (n,): above 0 for "from y"."""
Classifier = Callable[[Tensor, Tensor, torch.Generator], Classify]
"""``fit(points, labels, generator)`` for points (n, D), each column of mean 0 and variance 1, and labels 0 (x) or 1 (y)."""


@dataclass(frozen=True)
class Told:
    """How well a classifier told two samples apart.

    Args:
        accuracy: the mean of its accuracies on held-out points of x and of y: 0.5 where it is blind.
        p_value: of the hypothesis that the laws are equal; exact, one-sided.
    """

    accuracy: float
    p_value: float


def classifier_test(x: Tensor, y: Tensor, *, classifier: Classifier | None = None, seed: int = 0) -> Told:
    """The classifier two-sample test.

    Args:
        x, y: independent samples (n, *event) and (m, *event), four or more of each.
        classifier: how to fit one; :class:`Neighbours` by default.
        seed: of the split and of the fit.
    """
    x, y = pair(x, y)
    if min(len(x), len(y)) < 4:
        raise ValueError(f"{len(x)} and {len(y)} samples cannot be split: give four or more of each.")
    generator = torch.Generator().manual_seed(seed)
    train, test = zip(*(_halves(part, generator) for part in (x, y)), strict=True)
    points = torch.cat(train)
    centre, scale = points.mean(0), points.std(0).clamp_min(1e-12)
    labels = torch.cat([torch.full((len(part),), float(k)) for k, part in enumerate(train)]).to(points)
    fit = Neighbours() if classifier is None else classifier
    ask = fit((points - centre) / scale, labels, generator)
    said = [ask((part - centre) / scale) > 0 for part in test]  # that a point is from y
    from scipy import stats  # half a second to import: only where it is needed

    total, of_y, hits = len(test[0]) + len(test[1]), len(test[1]), int(said[1].sum())
    answers = hits + int(said[0].sum())
    accuracy = 0.5 * (float((~said[0]).double().mean()) + hits / of_y)
    return Told(accuracy, float(stats.hypergeom.sf(hits - 1, total, of_y, answers)))


class Neighbours:
    """The majority among the k nearest training points.

    Args:
        k: odd; by default about the root of their number.
    """

    def __init__(self, k: int | None = None):
        if k is not None and (k < 1 or k % 2 == 0):
            raise ValueError(f"k = {k} must be odd, so that a majority exists.")
        self.k = k

    def __call__(self, points: Tensor, labels: Tensor, generator: torch.Generator) -> Classify:
        """Nothing to fit."""
        k = min(2 * (math.isqrt(len(points)) // 2) + 1 if self.k is None else self.k, len(points))

        def ask(at: Tensor) -> Tensor:
            parts = at.split(max(1, pairs.BLOCK // len(points)))
            near = (distance(part, points).topk(k, largest=False).indices for part in parts)
            return torch.cat([labels[index].mean(1) - labels.mean() for index in near])

        return ask


class Perceptron:
    """A network with two hidden layers, trained by Adam on the cross-entropy: for structure that distances do not show.

    Args:
        width: of the hidden layers.
        steps: how many.
        batch: points a step.
        rate: Adam's.
    """

    def __init__(self, width: int = 64, steps: int = 500, batch: int = 256, rate: float = 3e-3):
        self.width, self.steps, self.batch, self.rate = width, steps, batch, rate

    def __call__(self, points: Tensor, labels: Tensor, generator: torch.Generator) -> Classify:
        """Trains from weights drawn by the generator."""
        from torch import nn

        layers = [nn.Linear(points.shape[1], self.width), nn.Linear(self.width, self.width), nn.Linear(self.width, 1)]
        net = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2]).to(points)
        for layer in layers:
            bound = layer.in_features**-0.5
            for p in layer.parameters():
                p.data = ((2 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 1) * bound).to(p)
        optimiser = torch.optim.Adam(net.parameters(), self.rate)
        even = labels.mean()
        weight = torch.where(labels > 0, 0.5 / even, 0.5 / (1 - even))  # as if both samples were equally large
        with torch.enable_grad():
            for _ in range(self.steps):
                rows = torch.randint(len(points), (self.batch,), generator=generator).to(points.device)
                out = net(points[rows]).squeeze(1)
                loss = nn.functional.binary_cross_entropy_with_logits(out, labels[rows], weight[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

        def ask(at: Tensor) -> Tensor:
            with torch.no_grad():
                return net(at).squeeze(1)

        return ask


def _halves(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=generator).to(x.device)
    return x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
