"""What the metrics share: samples as matrices, and sums over pairs of them in blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_finite, check_state, float64

BLOCK = 2**22  # entries of one block of pairwise distances (float64: 32 MiB)

Kernel = Callable[[Tensor, Tensor], Tensor]
"""``kernel(a, b)`` for a (n, D) and b (m, D): the values of all pairs, (n, m)."""


def finite(x: Tensor) -> Tensor:
    """Samples (n, *event), checked."""
    return check_finite(check_state(x, "samples"), "samples")


def flattened(x: Tensor) -> Tensor:
    """(n, *event) as float64 (n, D)."""
    return float64(finite(x)).detach().reshape(len(x), -1)


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two samples of one event shape, flattened."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: their event shapes must be equal.")
    return flattened(x), flattened(y)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """All distances, (n, m), by differences: by products, those of near points would cancel."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def mean_of(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> float:
    """The mean of kernel(x_i, y_j) over all pairs, or of kernel(x_i, x_j) over all i != j, in blocks of rows."""
    other = x if y is None else y
    pairs = len(x) * (len(x) - 1) if y is None else len(x) * len(other)
    if pairs == 0:
        raise ValueError("An unbiased estimate needs at least two samples.")
    rows = max(1, BLOCK // len(other))
    total = x.new_zeros(())
    for start in range(0, len(x), rows):
        values = kernel(x[start : start + rows], other)
        total = total + values.sum()
        if y is None:
            total = total - values.diagonal(start).sum()
    return float(total) / pairs


def quadratic_forms(kernel: Kernel, x: Tensor, weights: Tensor) -> Tensor:
    """sum_ij w_i k(x_i, x_j) w_j for each row w of weights (P, n), (P,); the kernel is computed once, in blocks of rows."""
    rows = max(1, BLOCK // len(x))
    total = weights.new_zeros(len(weights))
    for start in range(0, len(x), rows):
        values = kernel(x[start : start + rows], x)
        total = total + ((weights[:, start : start + rows] @ values) * weights).sum(1)
    return total


def share_above(values: Tensor) -> float:
    """The share of values (P + 1,) that reach the first one, itself included: its p-value where all are exchangeable."""
    reach = values >= values[0] - 1e-12 * values[0].abs()
    return int(reach.sum()) / len(values)


def random_directions(d: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors (count, d), uniform on the sphere; (1, 1) on the line, where there is but one."""
    if count < 1:
        raise ValueError(f"projections = {count} must be at least 1.")
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    u = torch.randn(count, d, generator=generator, dtype=torch.float64)
    return u / u.norm(dim=1, keepdim=True)
