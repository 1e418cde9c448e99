r"""What a score owes to its law, without the law: Stein's identity, tested with many fields.

For every smooth bounded field :math:`\varphi`, under :math:`p_t`,

.. math:: \mathrm E\,[s\cdot\varphi + \nabla\cdot\varphi] = 0, \qquad
          \mathrm E\,\bigl[(s + \epsilon/\sigma)\cdot\varphi\bigr] = 0 \quad\text{where } x = \alpha x_0 + \sigma\epsilon ,

if and only if s is the score. The two expectations are one and the same number; which of the two has less noise depends on
:math:`\varphi` and t (the second where noise dominates, the first where it is small), so the better one is taken. The first
has a trap: at a sharp edge of the law the score is of size :math:`1/\sigma` in a layer so thin that no sample may lie in it;
then the sample knows nothing of its own variance. Of :math:`\lambda` samples expected there all may be missing with
probability :math:`e^{-\lambda}`, so :math:`\lambda|\varphi|/(n\sigma)` with :math:`\lambda = 15` is allowed for. For a
wrong score the number is :math:`\mathrm E[(s - \nabla\log p_t)\cdot\varphi]`, hence by Cauchy and Schwarz

.. math:: \frac{\|s - \nabla\log p_t\|}{\|s\|} \ge \frac{|\mathrm E[s\cdot\varphi + \nabla\cdot\varphi]|}{\|s\|\,\|\varphi\|}
          \quad\text{in } L^2(p_t):

each field bounds the relative error from below, and a field made to resemble the error gives nearly all of it.

Sources: Stein 1972, https://projecteuclid.org/euclid.bsmsp/1200514239; Liu et al. 2016, https://arxiv.org/abs/1602.03253;
Vincent 2011, https://doi.org/10.1162/NECO_a_00142.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .operator import rows
from .statistics import Outcome, worst, z_test

_WAVES = 24
_RIDGE, _SHARE = 1e-2, 0.5
_EDGE = 15.0
_BLOCK = 2**22  # entries of a block of fields


@dataclass(frozen=True)
class Perturbed:
    r"""Samples of :math:`p_t` and the score at them, all as rows (n, D), float64.

    Args:
        x: the samples.
        s: the score under test at x.
        noise: :math:`\epsilon/\sigma` of each sample, where it is known.
        copies: every so many rows in succession share one x_0; their mean is one independent value.
    """

    x: Tensor
    s: Tensor
    noise: Tensor | None = None
    copies: int = 1

    @property
    def size(self) -> float:
        """The norm of the score in L²."""
        return float(self.s.square().sum(1).mean().sqrt())

    def part(self, of: slice) -> Perturbed:
        """Some of the samples."""
        noise = None if self.noise is None else self.noise[of]
        return Perturbed(self.x[of], self.s[of], noise, self.copies)

    def independent(self, values: Tensor) -> Tensor:
        """Values (n,) or (n, m), averaged over those that share an x_0."""
        return values.reshape(-1, self.copies, *values.shape[1:]).mean(1)


class Waves:
    r"""Fields that are known with their divergence: constants, x itself, and waves :math:`u\cos(w\cdot x + b)`.

    Wave lengths lie between the spread of the samples and the width at which the score changes, :math:`1/|s|` per
    coordinate. In half of them u points along w (what a gradient can do), in half anywhere.
    """

    def __init__(self, at: Perturbed, generator: torch.Generator):
        d = at.x.shape[1]
        self.mean, self.spread = at.x.mean(0), float(at.x.std(0).square().mean().sqrt()) if len(at.x) > 1 else 1.0
        fine = at.size / math.sqrt(d)
        shortest = max(math.log(self.spread * fine), 0.0) if math.isfinite(fine) and fine > 0 else 0.0

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        w, u, shift = _unit(normal(_WAVES, d)), _unit(normal(_WAVES, d)), 2 * math.pi * normal(_WAVES)
        u[::2] = w[::2]
        scales = torch.linspace(0, 1, _WAVES // 2, dtype=torch.float64).repeat_interleave(2)
        self.w, self.u, self.shift = w * (torch.exp(shortest * scales) / self.spread).unsqueeze(1), u, shift
        self.constants = _unit(normal(2, d))

    def __len__(self) -> int:
        return _WAVES + 3

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The fields at x (n, D): (n, m, D), and their divergences (n, m)."""
        n, d = x.shape
        phase = x @ self.w.T + self.shift
        waves, slopes = phase.cos().unsqueeze(2) * self.u, -phase.sin() * (self.u * self.w).sum(1)
        centred = ((x - self.mean) / self.spread).unsqueeze(1)
        constants = self.constants.expand(n, 2, d)
        divergence = torch.cat([slopes, x.new_full((n, 1), d / self.spread), x.new_zeros(n, 2)], 1)
        return torch.cat([waves, centred, constants], 1), divergence


@dataclass(frozen=True)
class Terms:
    """The terms of Stein's identity for m fields.

    Args:
        values: (N, m), independent rows: mean 0 for the true score.
        gram: (m, m), the inner products of the fields in L².
        size: the norm of the score.
        smooth: (m,), true where the first form of the identity was taken, None for nowhere.
        unseen: what an unseen edge may hide from the mean of a field of norm 1 in that form.
    """

    values: Tensor
    gram: Tensor
    size: float
    smooth: Tensor | None = None
    unseen: float = 0.0

    def test(self, margin: float) -> Outcome:
        """All fields as one test that the relative error of the score is at most ``margin``; the worst one is reported."""
        each = torch.eye(len(self.gram), dtype=self.gram.dtype)
        return worst([self.along(field, margin) for field in each])

    def along(self, field: Tensor, margin: float = 0.0) -> Outcome:
        """The same test with the one field sum_j field_j φ_j, for ``field`` (m,) chosen on other samples."""
        hidden = 0.0 if self.smooth is None else self.unseen * self._norm(field * self.smooth)
        return _bounded(self.values @ field, self._norm(field) * self.size, margin, hidden)

    def _norm(self, field: Tensor) -> float:
        return float((field @ self.gram @ field).clamp_min(0).sqrt())

    def resembling(self) -> Tensor:
        """The combination (m,) that resembles the error most where it can be seen.

        Least squares alone would chase what noise hides, the most significant combination alone what is best seen, however
        small: the matrix is the sum of both, and a little shrunk.
        """
        matrix = torch.cov(self.values.T) + _SHARE * self.size**2 * self.gram
        norms = matrix.diagonal().sqrt().clamp_min(1e-300)
        matrix = matrix / norms / norms.unsqueeze(1) + _RIDGE * torch.eye(len(norms), dtype=matrix.dtype)
        return torch.linalg.solve(matrix, self.values.mean(0) / norms) / norms


def terms(at: Perturbed, waves: Waves, extra: Tensor | None = None) -> Terms:
    """The terms of Stein's identity for the waves and for ``extra`` fields (n, k, D), whose divergence is not known.

    Args:
        at: the samples.
        waves: the fields.
        extra: more fields, where the noise is known.
    """
    n, d = at.x.shape
    block = max(1, _BLOCK // (len(waves) * d)) // at.copies * at.copies or at.copies
    both: list[tuple[Tensor, Tensor | None]] = []
    total = 0
    gram = torch.zeros((), dtype=torch.float64)
    for start in range(0, n, block):
        part = at.part(slice(start, start + block))
        fields, divergence = waves(part.x)
        smooth = torch.einsum("nmd,nd->nm", fields, part.s) + divergence
        if extra is not None:
            fields = torch.cat([fields, extra[start : start + block]], 1)
        gram = gram + torch.einsum("nid,njd->ij", fields, fields)
        total += len(fields)
        noisy = None
        if part.noise is not None:
            noisy = part.independent(torch.einsum("nmd,nd->nm", fields, part.s + part.noise))
        both.append((part.independent(smooth), noisy))
    smooth = torch.cat([a for a, _ in both])
    if at.noise is None:
        return Terms(smooth, gram / total, at.size)
    noisy = torch.cat([b for _, b in both if b is not None])
    count, known = smooth.shape
    unseen = _EDGE * float(at.noise.square().mean().sqrt()) / count
    hidden = unseen * (gram.diagonal()[:known] / total).sqrt()
    better = smooth.var(0) / count + hidden**2 < noisy.var(0)[:known] / count
    chosen = torch.where(better, smooth, noisy[:, :known])
    values = torch.cat([chosen, noisy[:, known:]], 1)
    form = torch.cat([better, better.new_zeros(values.shape[1] - known)])
    return Terms(values, gram / total, at.size, form, unseen)


def evaluated(score: Callable[..., Tensor], x: Tensor, t: float) -> Tensor:
    """The score at x (n, *event) and t as rows (n, D), in float64, in blocks that bound memory."""
    block = max(1, _BLOCK // max(1, x[0].numel()))
    return torch.cat([rows(score(part, t)).double() for part in x.split(block)]).detach()


def _bounded(values: Tensor, scale: float, margin: float, hidden: float) -> Outcome:
    """A z-test in units of the relative error, up to a margin in these and one in units of the values.

    A scale that is not finite is an infinite error; one of 0 (no score at all) leaves the units of the values.
    """
    if not (math.isfinite(scale) and bool(torch.isfinite(values).all())):
        return Outcome(math.nan, math.nan, 0.0, lambda level: math.inf, "of the score")
    return z_test(values, margin=margin * scale + hidden, scale=scale or 1.0, unit="of the score")


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True)
