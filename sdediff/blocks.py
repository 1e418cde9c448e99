r"""Linear algebra of states seen as n blocks of k coupled coordinates.

A state becomes y of shape (..., n, k), an operator a matrix (..., m, k, k) with m = n, or m = 1 where all blocks share it.
That is one notation for scalar (n = D, k = 1, m = 1), diagonal (k = 1, m = D), block-diagonal and full operators (n = 1,
k = D), each at its own price. Leading axes broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def act(matrix: Tensor, y: Tensor) -> Tensor:
    """The operator on a state: (..., m, k, k) on (..., n, k)."""
    if matrix.shape[-1] == 1 and matrix.shape[-2] == 1:
        return matrix[..., 0] * y
    if matrix.shape[-3] == 1:
        return y @ matrix[..., 0, :, :].mT
    return (matrix @ y.unsqueeze(-1)).squeeze(-1)


def like(matrix: Tensor, y: Tensor) -> Tensor:
    """Matrices beside a state, in its dtype and on its device."""
    return matrix.to(y.device, y.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b of two operators, (..., m, i, j) and (..., m, j, l)."""
    return a * b if a.shape[-1] == 1 and b.shape[-2] == 1 and a.shape[-2] == 1 else a @ b


def gram(factor: Tensor) -> Tensor:
    r""":math:`FF^\top` of (..., m, k, r)."""
    return product(factor, factor.mT)


def root(covariance: Tensor) -> Tensor:
    """The lower triangular R with R Rᵀ = covariance (..., m, k, k); rows of coordinates without variance are 0.

    Each coordinate is scaled to unit variance first, so that variances of any two magnitudes keep their digits.

    Raises:
        ValueError: the covariance is singular in another way (seen on the host only).
    """
    deviation = torch.diagonal(covariance, dim1=-2, dim2=-1).clamp_min(0)
    known = deviation > 0
    deviation = torch.where(known, torch.where(known, deviation, 1.0).sqrt(), 0.0)  # no infinite slope at 0
    if covariance.shape[-1] == 1:
        return deviation.unsqueeze(-1)
    inverse = torch.where(known, 1 / torch.where(known, deviation, 1.0), 0.0)
    correlation = inverse.unsqueeze(-1) * covariance * inverse.unsqueeze(-2)
    correlation = correlation + torch.diag_embed((~known).to(covariance.dtype))
    lower, info = torch.linalg.cholesky_ex(correlation)
    if info.device.type == "cpu" and bool((info > 0).any()):
        raise ValueError(
            "The covariance of this kernel is singular: some combination of coordinates receives no noise, so there is no "
            "density, no score and no root. Let noise reach every coordinate (through the drift will do), give the process a "
            "start_covariance, or leave the noiseless combination out of the state."
        )
    return deviation.unsqueeze(-1) * lower


def solve_lower(lower: Tensor, y: Tensor) -> Tensor:
    """R⁻¹ y."""
    return _triangular(lower, y, upper=False)


def solve_lower_transposed(lower: Tensor, y: Tensor) -> Tensor:
    """R⁻ᵀ y."""
    return _triangular(lower.mT, y, upper=True)


def _triangular(matrix: Tensor, y: Tensor, *, upper: bool) -> Tensor:
    if matrix.shape[-1] == 1:
        return y / matrix[..., 0]
    if matrix.shape[-3] == 1:
        return torch.linalg.solve_triangular(matrix[..., 0, :, :], y.mT, upper=upper).mT
    return torch.linalg.solve_triangular(matrix, y.unsqueeze(-1), upper=upper).squeeze(-1)


def solve(matrix: Tensor, y: Tensor) -> Tensor:
    """M⁻¹ y."""
    if matrix.shape[-1] == 1:
        return y / matrix[..., 0]
    if matrix.shape[-3] == 1:
        return torch.linalg.solve(matrix[..., 0, :, :], y.mT).mT
    return torch.linalg.solve(matrix, y.unsqueeze(-1)).squeeze(-1)


def log_det(matrix: Tensor) -> Tensor:
    """log |det| per block, (..., m)."""
    if matrix.shape[-1] == 1:
        return matrix[..., 0, 0].abs().log()
    return torch.linalg.slogdet(matrix).logabsdet


def dense(matrix: Tensor, n: int) -> Tensor:
    """The full matrix (..., n k, n r) of an operator (..., m, k, r) on states flattened as (n, k)."""
    *batch, _, k, r = matrix.shape
    blocks = matrix.expand(*batch, n, k, r)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device).reshape(n, 1, n, 1)
    return (blocks.unsqueeze(-2) * eye).reshape(*batch, n * k, n * r)
