r"""The Gaussian kernel of :math:`dx = (A(t)x + b(t))\,dt + L(t)\,dW` by quadrature in float64.

.. math:: x_t \mid x_s \sim \mathcal N(\Phi x_s + c, \Sigma), \qquad
          \dot\Phi = A\Phi, \qquad
          c = \int_s^t\Phi(t, u)\,b(u)\,du, \qquad
          \Sigma = \int_s^t\Phi(t, u)\,LL^\top\Phi(t, u)^\top du .

Within a short panel :math:`\Phi = e^\Omega` with Magnus' series: :math:`\Omega = \int A` to quadrature accuracy, which is all
where the A commute, and the commutators to sixth order where they do not. c and :math:`\Sigma` are Gauss-Legendre sums of
:math:`e^\Omega b` and of squares: nothing is subtracted, so that a variance of order t³ or less keeps its digits down to
t = 0. Kernels compose, and those of 1, 2, 4, ... panels are tabulated: any s and t are a few products apart.

Sources: Blanes et al. 2009, https://arxiv.org/abs/0810.5488, section 5.4 (the sixth-order exponent); Särkkä and Solin 2019,
https://doi.org/10.1017/9781108186735, chapter 6 (the moments).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import act, gram, product
from ..collocation import Legendre, panel_of, refined, relative

_RULE = Legendre(10)
_MOMENTS = _RULE.moments(3)
_CHUNK = 2**22  # entries of matrices held at once
_TABLES = 2**20  # panels times entries of A, up to which tables are refined without a second thought: some 200 MB

Drift = Callable[[Tensor], Tensor]
"""A at times of any shape, (*t, m, k, k)."""

Inputs = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(b, L) at times of any shape: (*t, n or 1, k) and (*t, m, k, r)."""


@dataclass(frozen=True)
class Kernel:
    """x_t given x_s is N(scale x_s + shift, covariance), over blocks (:mod:`~sdediff.blocks`).

    Args:
        scale: :math:`\\Phi(t, s)`, (..., m, k, k).
        shift: (..., n, k), or (..., 1, k) where all blocks share it.
        covariance: (..., m, k, k).
    """

    scale: Tensor
    shift: Tensor
    covariance: Tensor

    def then(self, later: Kernel) -> Kernel:
        """This kernel, followed by a later one."""
        phi = later.scale
        return Kernel(
            product(phi, self.scale),
            act(phi, self.shift) + later.shift,
            product(product(phi, self.covariance), phi.mT) + later.covariance,
        )

    def at(self, index: Tensor | slice) -> Kernel:
        """These entries of a batch of kernels."""
        return Kernel(self.scale[index], self.shift[index], self.covariance[index])

    def reshape(self, shape: torch.Size) -> Kernel:
        """A batch of kernels with the batch axes ``shape``."""
        parts = (self.scale, 3), (self.shift, 2), (self.covariance, 3)
        return Kernel(*(v.reshape(*shape, *v.shape[v.ndim - k :]) for v, k in parts))

    def where(self, mask: Tensor, other: Kernel) -> Kernel:
        """This kernel where the mask (N,) is true, the other elsewhere."""
        wide, narrow = mask.reshape(-1, 1, 1, 1), mask.reshape(-1, 1, 1)
        return Kernel(
            torch.where(wide, self.scale, other.scale),
            torch.where(narrow, self.shift, other.shift),
            torch.where(wide, self.covariance, other.covariance),
        )

    def to(self, device: torch.device) -> Kernel:
        """This kernel on a device."""
        return Kernel(self.scale.to(device), self.shift.to(device), self.covariance.to(device))


class Moments:
    """The kernels between any two times of [0, t_max].

    Args:
        drift: A, elementwise in t.
        inputs: b and L, likewise.
        t_max: the end of the domain.

    Raises:
        ValueError: the integrals do not converge to ``1e-11``, as for a coefficient that jumps or is infinite.
    """

    def __init__(self, drift: Drift, inputs: Inputs, t_max: float):
        self.drift, self.inputs, self.t_max = drift, inputs, t_max
        entries = drift(torch.full((1,), 0.5 * t_max, dtype=torch.float64)).numel()
        cure = ": smooth it, or end the clock before it (t_max)"
        self.cumulative = refined(self._tabulate, _change, t_max, cure, _TABLES // entries)

    def from_start(self, t: Tensor) -> Kernel:
        """The kernels from 0 to t, float64 of any shape."""
        flat = t.reshape(-1)
        panel = self._panel(flat)
        here = self.cumulative.to(t.device).at(panel)
        return here.then(self._within(self.ends.to(t.device)[panel], flat)).reshape(t.shape)

    def between(self, s: Tensor, t: Tensor) -> Kernel:
        """The kernels from s to t >= s, float64 of shapes that broadcast."""
        s, t = torch.broadcast_tensors(s, t)
        first, last = s.reshape(-1), t.reshape(-1)
        i, j = self._panel(first), self._panel(last)
        ends = self.ends.to(t.device)
        together = i == j
        head = self._within(first, torch.where(together, last, ends[i + 1]))
        tail = self._within(torch.where(together, last, ends[j]), last)
        return head.then(self._across(i + 1, (j - i - 1).clamp_min(0))).then(tail).reshape(t.shape)

    # ---- panels -----------------------------------------------------------------------------------------------

    def _panel(self, t: Tensor) -> Tensor:
        return panel_of(t, self.t_max, len(self.ends) - 1)

    def _tabulate(self, panels: int) -> Kernel:
        """Tables for this many panels; the kernels from 0 to each of their ends."""
        self.ends = torch.linspace(0, self.t_max, panels + 1, dtype=torch.float64)
        with torch.inference_mode(False), torch.no_grad():  # tables that later derivatives may use
            self.runs = [self._within(self.ends[:-1], self.ends[1:])]  # kernels of 2^j panels from each start
            while 2 ** len(self.runs) <= panels:
                last, reach = self.runs[-1], 2 ** (len(self.runs) - 1)
                self.runs.append(last.at(slice(None, -reach)).then(last.at(slice(reach, None))))
            count = torch.arange(panels + 1)
            return self._across(torch.zeros_like(count), count)

    def _across(self, first: Tensor, count: Tensor) -> Kernel:
        """The kernels of ``count`` whole panels from panel ``first`` on, both (N,)."""
        total = self._identity(first)
        for j, run in enumerate(self.runs):
            taken = (count >> j) & 1 == 1
            step = run.to(first.device).at(first.clamp_max(len(run.scale) - 1))
            total = total.then(step).where(taken, total)
            first = first + (taken.long() << j)
        return total

    def _identity(self, like: Tensor) -> Kernel:
        one = self.runs[0].to(like.device)
        scale = torch.eye(one.scale.shape[-1], dtype=torch.float64, device=like.device)
        return Kernel(
            scale.expand(len(like), *one.scale.shape[1:]),
            one.shift.new_zeros(len(like), *one.shift.shape[1:]),
            one.covariance.new_zeros(len(like), *one.covariance.shape[1:]),
        )

    def _within(self, s: Tensor, t: Tensor) -> Kernel:
        """The kernels from s to t, both (N,), in the same panel."""
        size = self.drift(s[:1]).numel() * (len(_RULE.nodes) + 1)
        parts = [self._short(*part) for part in zip(*(v.split(max(1, _CHUNK // size)) for v in (s, t)), strict=True)]
        return Kernel(*(torch.cat([getattr(p, name) for p in parts]) for name in ("scale", "shift", "covariance")))

    def _short(self, s: Tensor, t: Tensor) -> Kernel:
        h = (t - s).unsqueeze(1)
        u = s.unsqueeze(1) + h * _RULE.nodes.to(t.device)  # (N, Q)
        powers = torch.einsum("piq,nqmkl->pnimkl", _MOMENTS.to(t.device), self.drift(u)) * h.reshape(-1, 1, 1, 1, 1)
        phi = exponential(exponent(*powers))  # from s, and from each u, to t: (N, 1 + Q, m, k, k)
        b, root = self.inputs(u)
        weight = (h * _RULE.weights.to(t.device)).reshape(*u.shape, 1, 1)
        return Kernel(
            phi[:, 0],
            (weight * act(phi[:, 1:], b)).sum(1),
            (weight.unsqueeze(-1) * gram(product(phi[:, 1:], root))).sum(1),
        )


def exponent(mean: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Magnus' exponent over intervals of length h, from the integrals of A, A τ/h and A (τ/h)², τ counted from the middle."""
    if mean.shape[-1] == 1:
        return mean
    one, two, three = 2.25 * mean - 15 * bend, 12 * slope, -15 * mean + 180 * bend
    first = _commutator(one, two)
    second = _commutator(one, 2 * three + first) / -60
    return mean + _commutator(-20 * one - three + first, two + second) / 240


def exponential(matrix: Tensor) -> Tensor:
    """The matrix exponential of each block."""
    if matrix.shape[-1] == 1:
        return torch.exp(matrix)
    if matrix.shape[-1] == 2 and matrix.device.type == "cpu":
        mean = 0.5 * torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1)[..., None, None]
        rest = matrix - mean * torch.eye(2, dtype=matrix.dtype)
        z = (rest[..., :1, :1].square() + rest[..., :1, 1:] * rest[..., 1:, :1]).contiguous()  # rest² = z I
        if float(z.detach().abs().max()) < 4:  # as in every short panel
            cosh, sinhc = torch.ones_like(z), torch.ones_like(z)
            for j in range(24, 0, -2):  # cosh √z and sinh √z / √z, which are entire in z
                cosh, sinhc = 1 + cosh * z / (j * (j - 1)), 1 + sinhc * z / (j * (j + 1))
            return torch.exp(mean) * (cosh * torch.eye(2, dtype=matrix.dtype) + sinhc * rest)
    return torch.linalg.matrix_exp(matrix.contiguous())


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


def _change(fine: Kernel, coarse: Kernel) -> float:
    """The largest relative difference: of scales per block, of covariances per pair of coordinates."""
    fine = fine.at(slice(None, None, 2))  # the ends that both tables have
    size = torch.linalg.matrix_norm(coarse.scale, keepdim=True)
    deviation = torch.diagonal(coarse.covariance, dim1=-2, dim2=-1).clamp_min(0).sqrt()
    spread = deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    offsets = coarse.shift.abs().amax() + torch.zeros_like(coarse.shift)
    pairs = (
        (fine.scale, coarse.scale, size),
        (fine.shift, coarse.shift, offsets),
        (fine.covariance, coarse.covariance, spread),
    )
    return max(relative(*pair) for pair in pairs)
