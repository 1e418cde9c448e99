r"""The Fokker-Planck operator applied to a density, term by term, by automatic differentiation.

.. math:: \frac{L^*p}{p} = -\nabla\cdot b - b\cdot\nabla\log p + \tfrac12\bigl[\nabla\cdot(\nabla\cdot D)
          + 2(\nabla\cdot D)\cdot\nabla\log p + D : (\nabla\nabla\log p + \nabla\log p\,\nabla\log p^\top)\bigr]

for :math:`dx = b\,dt + G\,dW`, :math:`D = GG^\top`. Nothing here uses the package's own calculus of D: the matrix G is read
off by applying the diffusion to unit noise, as a solver applies it, and all derivatives are taken anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion import Diffusion

Field = Callable[[Tensor], Tensor]


def fokker_planck(drift: Field, diffusion: Callable[[Tensor], Diffusion], log_prob: Field, x: Tensor) -> Tensor:
    r"""The terms of :math:`L^*p/p` at x (B, *event) in float64: (6, B), to be added up.

    Args:
        drift: b, differentiable in x.
        diffusion: G, likewise.
        log_prob: log p, (B,), twice differentiable.
        x: the points.
    """
    shape = x.shape
    with torch.enable_grad():
        flat = rows(x.detach().double()).clone().requires_grad_()
        at = flat.reshape(shape)
        b = rows(drift(at))
        square = gram(diffusion(at), at)
        gradient = _gradient(log_prob(at), flat)
        hessian = _jacobian(gradient, flat)
        # (∇·D)_i = Σ_j ∂_j D_ij
        divergence = torch.stack([_trace_of_jacobian(square[:, i], flat) for i in range(square.shape[1])], 1)
        terms = [
            -_trace_of_jacobian(b, flat),
            -(b * gradient).sum(1),
            0.5 * _trace_of_jacobian(divergence, flat),
            (divergence * gradient).sum(1),
            0.5 * (square * hessian).sum((1, 2)),
            0.5 * torch.einsum("bi,bij,bj->b", gradient, square, gradient),
        ]
    return torch.stack(terms).detach()


def jacobian(field: Field, x: Tensor) -> Tensor:
    """∂field_i/∂x_j at x (B, *event), event axes flattened: (B, D, D)."""
    with torch.enable_grad():
        flat = rows(x.detach().double()).clone().requires_grad_()
        return _jacobian(rows(field(flat.reshape(x.shape))), flat).detach()


def residual(terms: Tensor) -> float:
    """The largest sum of terms (k, B) relative to its largest term, over the points; NaN where a term is not finite."""
    total, scale = terms.sum(0).abs(), terms.abs().max(0).values
    return float(torch.where(scale == 0, total, total / scale).max())


def rows(x: Tensor) -> Tensor:
    """States (B, *event) as rows (B, D)."""
    return x.reshape(len(x), -1)


def gram(diffusion: Diffusion, x: Tensor) -> Tensor:
    """D, (B, D, D): the columns of G are what unit noise becomes."""
    noise_shape = diffusion.noise_shape(x)
    units = torch.eye(noise_shape[1:].numel(), dtype=x.dtype)
    columns = [rows(diffusion @ e.reshape(1, *noise_shape[1:]).expand(noise_shape)) for e in units]
    root = torch.stack(columns, 2)
    return root @ root.mT


def _gradient(y: Tensor, x: Tensor) -> Tensor:
    """∂y_b/∂x_b for y (B,) whose entry b depends on row b of x (B, D) alone; zeros where y ignores x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    return torch.stack([_gradient(column, x) for column in y.unbind(1)], 1)


def _trace_of_jacobian(y: Tensor, x: Tensor) -> Tensor:
    return sum((_gradient(column, x)[:, i] for i, column in enumerate(y.unbind(1))), torch.zeros_like(x[:, 0]))
