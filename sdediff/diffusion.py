r"""The two shapes of noise: :math:`G(x, t)\,dW` with a diagonal or a dense matrix :math:`G`.

Both answer the same questions, so nothing else in the package asks which of them it holds:
``G @ z`` applies :math:`G`, ``G.gram(v)`` applies :math:`D = GG^\top`, ``c * G`` scales, ``G.noise_shape(x)`` is the
shape of the noise that drives a state ``x``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from .autodiff import leaf, recording


@dataclass(frozen=True)
class Diagonal:
    """Diagonal noise.

    Args:
        value: the diagonal of :math:`G`: a number, a 0-d tensor, or a tensor with as many axes as the state, each
            of length 1 or equal to the state's.
    """

    value: float | Tensor

    def __matmul__(self, z: Tensor) -> Tensor:
        return z * self.value

    def __rmul__(self, c: float | Tensor) -> Diagonal:
        return Diagonal(c * self.value)

    def gram(self, v: Tensor) -> Tensor:
        r""":math:`GG^\top v`."""
        return v * (self.value * self.value)

    @property
    def requires_grad(self) -> bool:
        """True where it was made of something that wants a gradient."""
        return isinstance(self.value, Tensor) and self.value.requires_grad

    def noise_shape(self, x: Tensor) -> torch.Size:
        """The shape of the noise that drives ``x``."""
        return x.shape

    def gram_divergence(self, x: Tensor) -> Tensor:
        r""":math:`(\nabla\cdot D)_i = \partial_i g_i^2`: the diagonal of the Jacobian, whatever else g depends on."""
        square = torch.as_tensor(self.value * self.value)
        if square.ndim == 0:  # a number, or a 0-d function of x summed over it, which no g may be
            return torch.zeros_like(x)
        return _jacobian_diagonal(square.expand(x.shape), x)


@dataclass(frozen=True)
class Dense:
    """Matrix noise for states of shape ``(B, d)``.

    Args:
        matrix: :math:`G` of shape ``(B, d, m)`` or ``(1, d, m)``; the noise has shape ``(B, m)``.
    """

    matrix: Tensor

    def __matmul__(self, z: Tensor) -> Tensor:
        return (self.matrix @ z.unsqueeze(-1)).squeeze(-1)

    def __rmul__(self, c: float | Tensor) -> Dense:
        if isinstance(c, Tensor) and c.ndim > 0:  # (B, 1) beside (B, d, m)
            c = c.unsqueeze(-1)
        return Dense(c * self.matrix)

    def gram(self, v: Tensor) -> Tensor:
        r""":math:`GG^\top v`."""
        return self @ (self.matrix.mT @ v.unsqueeze(-1)).squeeze(-1)

    @property
    def requires_grad(self) -> bool:
        """True where it was made of something that wants a gradient."""
        return self.matrix.requires_grad

    def noise_shape(self, x: Tensor) -> torch.Size:
        """The shape of the noise that drives ``x``."""
        return torch.Size((x.shape[0], self.matrix.shape[-1]))

    def gram_divergence(self, x: Tensor) -> Tensor:
        r""":math:`(\nabla\cdot D)_i = \sum_j \partial_j D_{ij}`."""
        gram = (self.matrix @ self.matrix.mT).expand(x.shape[0], -1, -1)
        columns = [_jacobian_diagonal(gram[:, i], x) for i in range(x.shape[1])]
        return torch.stack([c.sum(1) for c in columns], 1)


class Applied(ABC):
    """Noise given by what it does, for structures that neither a diagonal nor a (d, m) matrix stores well.

    It answers what :class:`Diagonal` and :class:`Dense` answer, and ignores the state.
    """

    value: Tensor
    """The numbers it is made of."""

    @abstractmethod
    def __matmul__(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def __rmul__(self, c: float | Tensor) -> Applied: ...

    @abstractmethod
    def gram(self, v: Tensor) -> Tensor:
        r""":math:`GG^\top v`."""

    @property
    @abstractmethod
    def requires_grad(self) -> bool:
        """True where it was made of something that wants a gradient."""

    @abstractmethod
    def noise_shape(self, x: Tensor) -> torch.Size:
        """The shape of the noise that drives ``x``."""

    @abstractmethod
    def gram_divergence(self, x: Tensor) -> Tensor:
        r""":math:`\nabla\cdot(GG^\top)`."""


Diffusion = Diagonal | Dense | Applied


def as_diffusion(g: object, x: Tensor, what: str) -> Diffusion:
    """What a user's ``g`` returned, checked against the state ``x`` and cast to its dtype."""
    if isinstance(g, Applied):
        return g
    if isinstance(g, Dense):
        return _checked_dense(g.matrix, x, what)
    if isinstance(g, Diagonal):
        g = g.value
    if isinstance(g, Real):
        return Diagonal(float(g))
    if not isinstance(g, Tensor):
        raise TypeError(
            f"{what} returned {type(g).__name__}; return a number, a tensor with x.ndim = {x.ndim} axes, or "
            "sdediff.Dense(G) for matrix noise."
        )
    if g.is_complex():
        raise TypeError(f"{what} returned a complex tensor; noise coefficients are real.")
    if g.ndim == 0:
        return Diagonal(g)
    shape, state = tuple(g.shape), tuple(x.shape)
    if g.ndim != x.ndim:
        raise ValueError(
            f"{what} returned shape {shape} for x of shape {state}. One coefficient per coordinate must have x's "
            f"{x.ndim} axes, e.g. g.reshape(1, ..., d); one per sample is g.reshape(-1{', 1' * (x.ndim - 1)}); "
            "a matrix is sdediff.Dense(G)."
        )
    if any(have not in (1, want) for have, want in zip(shape, state, strict=True)):
        raise ValueError(f"{what} returned shape {shape}, which does not broadcast to x of shape {state}.")
    return Diagonal(g if g.dtype == x.dtype else g.to(x.dtype))


def _checked_dense(matrix: Tensor, x: Tensor, what: str) -> Dense:
    shape, state = tuple(matrix.shape), tuple(x.shape)
    if x.ndim != 2:
        raise ValueError(f"{what} returned Dense noise, which needs states of shape (B, d); x has shape {state}.")
    if matrix.ndim != 3 or shape[0] not in (1, state[0]) or shape[1] != state[1]:
        raise ValueError(
            f"{what} returned Dense(G) with G of shape {shape} for x of shape {state}; G must have shape "
            f"({state[0]}, {state[1]}, m), or (1, {state[1]}, m) for one matrix: use G[None]."
        )
    return Dense(matrix if matrix.dtype == x.dtype else matrix.to(x.dtype))


def gram_divergence(g: Callable[[Tensor], Diffusion], x: Tensor) -> Tensor:
    r""":math:`\nabla\cdot(GG^\top)` of a diffusion given as a function of the state; 0 where it ignores the state."""
    # Where g itself is learned, its parameters want their gradient though x may want none.
    keep = torch.is_grad_enabled() and (x.requires_grad or g(x).requires_grad)
    with recording():
        at = x if keep and x.requires_grad else leaf(x)
        divergence = g(at).gram_divergence(at)
    return divergence if keep else divergence.detach()


def _jacobian_diagonal(y: Tensor, x: Tensor) -> Tensor:
    """∂y_i/∂x_i for y of x's shape whose row b depends on row b of x; zeros where y ignores x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    flat = y.reshape(x.shape[0], -1)
    parts: list[Tensor] = []
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True, allow_unused=True)
        if row is None:
            return torch.zeros_like(x)
        parts.append(row.reshape(x.shape[0], -1)[:, i])
    return torch.stack(parts, 1).reshape(x.shape)
