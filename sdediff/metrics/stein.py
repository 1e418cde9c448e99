"""A sample against a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..densities.base import host_generator
from .pairs import Kernel, distance, finite, flattened, mean_of, quadratic_forms, share_above


def kernel_stein_discrepancy(x: Tensor, score: Tensor | Callable[[Tensor], Tensor], *, scale: float = 1.0) -> float:
    r"""The squared kernel Stein discrepancy with the inverse multiquadric kernel :math:`(c^2 + |x-y|^2)^{-1/2}`, unbiased.

    Needs the score of the law and no sample of it. It looks at the score where the samples are, and so is blind to a mode
    that is missing and to weights of separate modes.

    Args:
        x: independent samples (n, *event), n >= 2.
        score: the score of the law that they should have: a function of x, e.g. ``density.score`` or
            ``lambda x: exact(x, t)``, or its values.
        scale: c, in units of the data.

    Source: Liu et al. 2016, https://arxiv.org/abs/1602.03253; Gorham and Mackey 2017, https://arxiv.org/abs/1703.01717.
    """
    both, kernel = _with_scores(x, score, scale)
    return mean_of(kernel, both)


@dataclass(frozen=True)
class SteinTest:
    """The kernel Stein discrepancy and its p-value.

    Args:
        statistic: the squared discrepancy, unbiased.
        p_value: of the hypothesis that the samples have this score; at least 1/(repeats + 1).
    """

    statistic: float
    p_value: float


def stein_test(
    x: Tensor,
    score: Tensor | Callable[[Tensor], Tensor],
    *,
    scale: float = 1.0,
    repeats: int = 499,
    seed: int | None = 0,
) -> SteinTest:
    r"""The kernel Stein discrepancy of a sample, with a p-value by the wild bootstrap.

    Under the hypothesis :math:`\sum_{i\ne j} h(x_i, x_j)` has the law that random signs give it,
    :math:`\sum_{i\ne j} \xi_i\xi_j h(x_i, x_j)`, as n grows. From n = 100 or so the level is right.

    Args:
        x, score, scale: as in :func:`kernel_stein_discrepancy`.
        repeats: draws of the signs; the p-value is a multiple of 1/(repeats + 1).
        seed: of the signs.

    Source: Chwialkowski et al. 2016, https://arxiv.org/abs/1602.02964; Liu et al. 2016, https://arxiv.org/abs/1602.03253.
    """
    if repeats < 19:
        raise ValueError(f"repeats = {repeats}: with fewer than 19 no p-value is below 0.05.")
    both, kernel = _with_scores(x, score, scale)
    bits = torch.randint(0, 2, (repeats, len(both)), generator=host_generator(seed, None))
    signs = torch.cat([torch.ones(1, len(both), dtype=both.dtype), (2 * bits - 1).to(both.dtype)])
    p_value = share_above(quadratic_forms(kernel, both, signs.to(both.device)))  # the diagonal is the same in all
    return SteinTest(mean_of(kernel, both), p_value)


def _with_scores(x: Tensor, score: Tensor | Callable[[Tensor], Tensor], scale: float) -> tuple[Tensor, Kernel]:
    """Samples and scores side by side, (n, 2D), and Stein's kernel between such rows."""
    if not scale > 0:
        raise ValueError(f"scale = {scale} must be positive.")
    values = score if isinstance(score, Tensor) else score(finite(x))
    if values.shape != x.shape:
        raise ValueError(f"score has shape {tuple(values.shape)} for x of shape {tuple(x.shape)}: they must be equal.")
    both = torch.cat([flattened(x), flattened(values)], 1)

    def stein(a: Tensor, b: Tensor) -> Tensor:
        (a, s), (b, t) = a.chunk(2, 1), b.chunk(2, 1)
        square = distance(a, b).square()
        inverse = 1 / (scale**2 + square)  # k = inverse^(1/2)
        towards = (s * a).sum(1, keepdim=True) - s @ b.T - a @ t.T + (t * b).sum(1)  # (s - t)·(a - b)
        inner = a.shape[1] + towards - 3 * square * inverse
        return inverse.sqrt() * (s @ t.T + inverse * inner)

    return both, stein
