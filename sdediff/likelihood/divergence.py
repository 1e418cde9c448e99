r"""The divergence :math:`\nabla\cdot v = \operatorname{tr} J`, :math:`J = \partial v/\partial x`, exactly or by random probes.

.. math:: \text{exact} &: \sum_i \partial_i v_i && D \text{ products with } J \\
          \text{Hutchinson} &: z^\top J z, \; z_i = \pm 1 && 1 \\
          \text{Hutch++} &: \operatorname{tr}(Q^\top J Q) + \tfrac1m\textstyle\sum_j g_j^\top J g_j,
             \; g = (I - QQ^\top)z && 2k + m

A probe is drawn once and kept for a whole solve: the right-hand side stays smooth in t, and as the path itself does not
depend on the probe, the integral is unbiased. Each probe is integrated on its own, so that several of them carry their own
standard error. Probes are signs (Rademacher): their variance is the smallest, :math:`2\sum_{i\ne j}S_{ij}^2` with S the
symmetric part of J, and 0 where J is diagonal.

Sources: Hutchinson 1989, https://doi.org/10.1080/03610918908812806; Grathwohl et al. 2019,
https://arxiv.org/abs/1810.01367; Meyer et al. 2021, https://arxiv.org/abs/2010.09649 (Hutch++).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..autodiff import leaf, recording
from ..checks import check_count

Field = Callable[[Tensor], Tensor]
"""A vector field: x (B, *event) to a tensor of the same shape, row by row."""


class Divergence(ABC):
    """A way to find the divergence of a field; it gives C estimates side by side."""

    @abstractmethod
    def probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """What is drawn once for a solve, (B, P, D) for states x (B, *event); P = 0 where nothing is."""

    @abstractmethod
    def channels(self) -> int:
        """C, how many estimates it gives."""

    @abstractmethod
    def trace(self, jacobian: Transposed, probes: Tensor) -> Tensor:
        """The estimates (B, C) from products with the transposed Jacobian."""

    def __call__(self, field: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """The field at x (B, *event), and the estimates of its divergence, (B, C)."""
        with recording():
            at = leaf(x)
            value = field(at)
            estimates = self.trace(Transposed(value, at), probes)
        return value.detach(), estimates.detach()


class Transposed:
    """:math:`J^T` as an operator, by reverse differentiation: one backward pass a product."""

    def __init__(self, value: Tensor, x: Tensor):
        self.x, self.flat = x, value.reshape(x.shape[0], -1)

    @property
    def dimension(self) -> int:
        """D."""
        return self.flat.shape[1]

    def __matmul__(self, v: Tensor) -> Tensor:
        """J^T v for v (B, D)."""
        if not self.flat.requires_grad:  # a field that ignores x
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(self.flat, self.x, v.to(self.flat.dtype), retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if product is None else product.reshape(len(v), -1)

    def of(self, vectors: Tensor) -> Tensor:
        """J^T applied to each of vectors (B, P, D)."""
        return torch.stack([self @ v for v in vectors.unbind(1)], 1)


class ExactTrace(Divergence):
    """The exact trace: D backward passes an evaluation, for small D."""

    def probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """None."""
        return x.new_zeros(len(x), 0, x[0].numel())

    def channels(self) -> int:
        """1."""
        return 1

    def trace(self, jacobian: Transposed, probes: Tensor) -> Tensor:
        """The sum of the diagonal."""
        total = torch.zeros_like(jacobian.flat[:, 0])
        for i in range(jacobian.dimension):
            unit = torch.zeros_like(jacobian.flat)
            unit[:, i] = 1
            total = total + (jacobian @ unit)[:, i]
        return total.unsqueeze(1)


class Hutchinson(Divergence):
    """Random signs z: one backward pass for each z^T J z.

    Args:
        count: how many probes of each sample; two or more give a standard error.
    """

    def __init__(self, count: int = 1):
        self.count = check_count(count, "count")

    def probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Signs, (B, count, D)."""
        return _signs(x, self.count, generator)

    def channels(self) -> int:
        """One for each probe."""
        return self.count

    def trace(self, jacobian: Transposed, probes: Tensor) -> Tensor:
        """z^T J z for each probe."""
        return (jacobian.of(probes) * probes).sum(2)


class HutchPlusPlus(Divergence):
    """The trace on a random subspace exactly, Hutchinson on what is left: for a Jacobian with a few large directions.

    Args:
        rank: k, the dimension of the subspace.
        count: m, how many probes of the rest; two or more give a standard error.
    """

    def __init__(self, rank: int = 4, count: int = 2):
        self.rank, self.count = check_count(rank, "rank"), check_count(count, "count")

    def probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Signs, (B, rank + count, D): first those that span the subspace."""
        if self.rank > x[0].numel():
            raise ValueError(f"rank = {self.rank} exceeds the {x[0].numel()} coordinates of a state: use ExactTrace().")
        return _signs(x, self.rank + self.count, generator)

    def channels(self) -> int:
        """One for each probe of the rest."""
        return self.count

    def trace(self, jacobian: Transposed, probes: Tensor) -> Tensor:
        """tr(Q^T J Q), and to it what each probe sees of the rest."""
        sketch, rest = probes[:, : self.rank], probes[:, self.rank :]
        q = torch.linalg.qr(jacobian.of(sketch).mT).Q.mT  # (B, k, D), orthonormal rows
        inside = (jacobian.of(q) * q).sum((1, 2))
        outside = rest - (rest @ q.mT) @ q
        return inside.unsqueeze(1) + (jacobian.of(outside) * outside).sum(2)


def _signs(x: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Signs (B, count, D) beside x; a host generator serves every device."""
    shape = (len(x), count, x[0].numel())
    device = x.device if generator is None else generator.device
    bits = torch.randint(0, 2, shape, generator=generator, device=device)
    return (2 * bits - 1).to(x.device, x.dtype)
