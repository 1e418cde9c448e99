r"""Noise :math:`G(x, t)\,dW`, in one of three shapes: a diagonal, a matrix, or an operator given by what it does.

All answer the same questions, so what uses noise need not ask which of them it holds: ``G @ z`` applies :math:`G`,
``G.gram(v)`` applies :math:`D = GG^\top`, ``c * G`` scales, ``G.noise_shape(x)`` is the shape of the noise that drives a
state ``x``, and the derivatives in x are ``G.gram_divergence(x)`` and ``G.correction(x)``. What a method needs of the noise
it can take is said by two attributes, ``diagonal`` and ``additive``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from .autodiff import leaf, recording


class Diffusion(ABC):
    """What all noise answers, at the state ``x`` (B, *event) with D coordinates for which it was made."""

    diagonal: ClassVar[bool] = False
    """Whether it drives each coordinate by a noise of its own."""
    additive: ClassVar[bool] = False
    """Whether it ignores the state by its type; of the others ``requires_grad`` tells, and :meth:`correction`."""

    @abstractmethod
    def __matmul__(self, z: Tensor) -> Tensor:
        """G z."""

    @abstractmethod
    def __rmul__(self, c: float | Tensor) -> Diffusion:
        """c G, for a number or one number per sample."""

    @abstractmethod
    def gram(self, v: Tensor) -> Tensor:
        r""":math:`GG^\top v`."""

    @abstractmethod
    def gram_matrix(self, x: Tensor) -> Tensor:
        r""":math:`D = GG^\top` on flattened states, (B, D, D)."""

    @abstractmethod
    def entries(self, x: Tensor) -> Tensor:
        """The numbers that it is made of, spread over the batch: of x's shape if diagonal, (B, d, m) for a matrix."""

    @abstractmethod
    def detached(self) -> Diffusion:
        """The same without gradients."""

    @property
    @abstractmethod
    def requires_grad(self) -> bool:
        """True where it was made of something that wants a gradient."""

    @abstractmethod
    def noise_shape(self, x: Tensor) -> torch.Size:
        """The shape of the noise that drives ``x``."""

    @abstractmethod
    def gram_divergence(self, x: Tensor) -> Tensor:
        r""":math:`(\nabla\cdot D)_i = \sum_j\partial_jD_{ij}`, of x's shape."""

    @abstractmethod
    def correction(self, x: Tensor) -> Tensor:
        r""":math:`\sum_{jk}G_{jk}\,\partial_jG_{ik}`, twice what parts Stratonovich's drift from Itô's, of x's shape."""


@dataclass(frozen=True)
class Diagonal(Diffusion):
    """Diagonal noise.

    Args:
        value: the diagonal of :math:`G`: a number, a 0-d tensor, or a tensor with as many axes as the state, each
            of length 1 or equal to the state's.
    """

    diagonal = True
    value: float | Tensor

    def __matmul__(self, z: Tensor) -> Tensor:
        return z * self.value

    def __rmul__(self, c: float | Tensor) -> Diagonal:
        return Diagonal(c * self.value)

    def gram(self, v: Tensor) -> Tensor:
        r""":math:`GG^\top v`."""
        return v * (self.value * self.value)

    def gram_matrix(self, x: Tensor) -> Tensor:
        """The squares on the diagonal."""
        return torch.diag_embed(self.entries(x).flatten(1).square())

    def entries(self, x: Tensor) -> Tensor:
        """The diagonal of G, of x's shape; a number in x's dtype, a tensor in its own."""
        value = self.value
        return (value if isinstance(value, Tensor) else x.new_tensor(value)).expand(x.shape)

    def detached(self) -> Diagonal:
        """The same without gradients."""
        return Diagonal(self.value.detach()) if isinstance(self.value, Tensor) else self

    @property
    def requires_grad(self) -> bool:
        """True where it was made of something that wants a gradient."""
        return isinstance(self.value, Tensor) and self.value.requires_grad

    def noise_shape(self, x: Tensor) -> torch.Size:
        """x's own shape."""
        return x.shape

    def gram_divergence(self, x: Tensor) -> Tensor:
        r""":math:`\partial_i g_i^2`: the diagonal of the Jacobian, whatever else g depends on."""
        square = torch.as_tensor(self.value * self.value)
        if square.ndim == 0:  # a number, or a 0-d function of x summed over it, which no g may be
            return torch.zeros_like(x)
        return _jacobian_diagonal(square.expand(x.shape), x)

    def correction(self, x: Tensor) -> Tensor:
        r""":math:`g_i\,\partial_ig_i`."""
        return 0.5 * self.gram_divergence(x)


@dataclass(frozen=True)
class Dense(Diffusion):
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

    def gram_matrix(self, x: Tensor) -> Tensor:
        r""":math:`GG^\top`, (B, d, d)."""
        return (self.matrix @ self.matrix.mT).expand(len(x), -1, -1)

    def entries(self, x: Tensor) -> Tensor:
        """G, (B, d, m)."""
        return self.matrix.expand(len(x), -1, -1)

    def detached(self) -> Dense:
        """The same without gradients."""
        return Dense(self.matrix.detach())

    @property
    def requires_grad(self) -> bool:
        """True where it was made of something that wants a gradient."""
        return self.matrix.requires_grad

    def noise_shape(self, x: Tensor) -> torch.Size:
        """(B, m)."""
        return torch.Size((x.shape[0], self.matrix.shape[-1]))

    def gram_divergence(self, x: Tensor) -> Tensor:
        r""":math:`\sum_j \partial_j D_{ij}`."""
        gram = self.gram_matrix(x)
        columns = [_jacobian_diagonal(gram[:, i], x) for i in range(x.shape[1])]
        return torch.stack([c.sum(1) for c in columns], 1)

    def correction(self, x: Tensor) -> Tensor:
        """The sum of the columns of G, each differentiated along itself."""
        total = torch.zeros_like(x)
        if not self.requires_grad:
            return total
        for column in self.entries(x).unbind(-1):
            # u -> J^T u is linear, and the derivative of <J^T u, v> by u is J v.
            u = torch.zeros_like(x).requires_grad_()
            (pulled,) = torch.autograd.grad(column, x, u, create_graph=True, allow_unused=True)
            if pulled is not None and pulled.requires_grad:
                (along,) = torch.autograd.grad(pulled, u, column, create_graph=True, allow_unused=True)
                total = total if along is None else total + along
        return total


class Applied(Diffusion):
    """Noise given by what it does, for structures that neither a diagonal nor a (d, m) matrix stores well.

    It ignores the state, and hands out no entries.
    """

    additive = True

    def gram_matrix(self, x: Tensor) -> Tensor:
        """D column by column, from what it makes of unit states."""
        units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape[1:])
        return torch.stack([self.gram(unit.expand_as(x)).flatten(1) for unit in units], 2)

    def entries(self, x: Tensor) -> Tensor:
        """None to hand out.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"This method wants the entries of the noise matrix, and {type(self).__name__} only applies it: use what needs "
            "none, as EulerMaruyama and StochasticHeun do."
        )

    def gram_divergence(self, x: Tensor) -> Tensor:
        """0: the noise is additive."""
        return torch.zeros_like(x)

    def correction(self, x: Tensor) -> Tensor:
        """0: the noise is additive."""
        return torch.zeros_like(x)


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
        return Diagonal(g.to(torch.promote_types(g.dtype, x.dtype)))
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


def at_each_time(g: Callable[[Tensor, Tensor], object], x: Tensor, t: Tensor, what: str) -> Diffusion:
    """A user's ``g`` at x (B, *event) and a time for each sample, t (B, 1, ..., 1): as :func:`as_diffusion`, right at each.

    A matrix that is written for one time, G(t) of shape (1, d, m), takes the times of other samples along its rows when t has
    more than one, without a word where B = d. So matrices are held against those at the first and the last time alone, and
    where they differ, or do not fit together, g is asked time by time.
    """

    def alone(i: int) -> Diffusion:
        return as_diffusion(g(x[i : i + 1], t[i].reshape(())), x[i : i + 1], what)

    try:
        value = g(x, t)
    except RuntimeError:  # shapes that do not broadcast; another fault comes back from one sample alone
        first = alone(0)
        if not isinstance(first, Dense):
            raise
    else:
        if not isinstance(value, Dense) or x.device.type == "meta":
            return as_diffusion(value, x, what)
        whole = as_diffusion(value, x, what)
        assert isinstance(whole, Dense)
        matrices, times = whole.matrix.expand(len(x), -1, -1), t.detach().reshape(-1)
        if all(_same(matrices[i], alone(i)) for i in (int(times.argmin()), int(times.argmax()))):
            return whole
    return Dense(torch.cat([_matrix(alone(i)) for i in range(len(x))]))


def _matrix(noise: Diffusion) -> Tensor:
    assert isinstance(noise, Dense)
    return noise.matrix


def _same(matrix: Tensor, other: Diffusion) -> bool:
    rtol = 1e-9 if matrix.dtype == torch.float64 else 1e-4
    return isinstance(other, Dense) and torch.allclose(matrix, other.matrix[0], rtol=rtol, atol=1e-30)


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
