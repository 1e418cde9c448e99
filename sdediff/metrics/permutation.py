r"""Two samples, one law? Exact p-values by permutation.

If x and y have one law, any assignment of the pooled points to the two samples was as likely as the one seen. So the
statistic is compared with its values under random assignments: the level is exact at every size, whatever the law. Both
statistics are quadratic forms :math:`w^\top K w` in the signs of the assignment, so that the kernel is computed once, in
blocks, and memory does not grow with the square of the sample.

Sources: Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018; Gretton et al. 2012,
https://jmlr.org/papers/v13/gretton12a.html.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..densities.base import host_generator
from .pairs import Kernel, distance, pair, quadratic_forms, share_above
from .samples import energy_distance, gaussian_kernel, mmd


@dataclass(frozen=True)
class Permuted:
    """A statistic and its p-value.

    Args:
        statistic: the unbiased one.
        p_value: of the hypothesis that the laws are equal; at least 1/(permutations + 1).
    """

    statistic: float
    p_value: float


def energy_test(x: Tensor, y: Tensor, *, permutations: int = 499, seed: int | None = 0) -> Permuted:
    """:func:`energy_distance` with its p-value.

    Args:
        x, y: independent samples (n, *event) and (m, *event).
        permutations: random assignments; the p-value is a multiple of 1/(permutations + 1).
        seed: of these.
    """
    statistic = energy_distance(x, y)
    return Permuted(statistic, _p_value(lambda a, b: -distance(a, b), *pair(x, y), permutations, seed))


def mmd_test(
    x: Tensor, y: Tensor, *, bandwidth: float | None = None, permutations: int = 499, seed: int | None = 0
) -> Permuted:
    """:func:`mmd` with its p-value.

    Args:
        x, y, permutations, seed: as in :func:`energy_test`.
        bandwidth: h; by default the median distance of at most 2,000 points of the pool. They are picked regardless of the
            sample that they are from, for else the level would not be exact.
    """
    flat_x, flat_y = pair(x, y)
    if bandwidth is None:
        pool = torch.cat([flat_x, flat_y])
        picked = torch.randperm(len(pool), generator=host_generator(seed, None))[:2000]
        bandwidth = float(torch.pdist(pool[picked.to(pool.device)]).median())
    statistic = mmd(x, y, bandwidth=bandwidth)
    return Permuted(statistic, _p_value(gaussian_kernel(bandwidth), flat_x, flat_y, permutations, seed))


def _p_value(kernel: Kernel, x: Tensor, y: Tensor, permutations: int, seed: int | None) -> float:
    if permutations < 19:
        raise ValueError(f"permutations = {permutations}: with fewer than 19 no p-value is below 0.05.")
    both = torch.cat([x, y])
    weights = torch.cat([both.new_full((len(x),), 1 / len(x)), both.new_full((len(y),), -1 / len(y))])
    generator = host_generator(seed, None)
    orders = torch.stack([torch.randperm(len(both), generator=generator) for _ in range(permutations)])
    drawn = torch.cat([weights.unsqueeze(0), weights[orders.to(both.device)]])
    return share_above(quadratic_forms(kernel, both, drawn))
