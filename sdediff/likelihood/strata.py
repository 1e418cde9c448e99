r"""The mean over u in (0, 1) and over noise of an integrand of which few draws decide, without bias and with an honest error.

Eight strata (half of all, if they are few) of equal width, two draws in each, are a *pilot*. It tells where the integrand
varies: the others go there, into strata of equal share, again two draws in each. As few draws miss what is rare, half of the
share goes by another sign: where noise of variance :math:`\sigma^2(u)` is just enough to carry data over the scale S that some
cell of the pilot has met, that is where :math:`r\,e^{-r/12}` is large, :math:`r = S^2/\sigma^2(u)`. A little is spread evenly.

The noise is drawn wider than it is, at right angles within a stratum, and weighted:

.. math:: \epsilon\sim\mathcal N(0, \tau^2), \qquad w = \tau^D e^{-\frac12|\epsilon|^2(1-1/\tau^2)} \le \tau^D < e,
          \qquad \tau^2 = 1 + 2/D .

So draws far out are common and light; in high dimension, where the length of the noise tells nothing, w tends to 1.

From each draw a curve :math:`\mu(u) + \gamma(u)\,c\,q` is taken, whose mean is known, piecewise linear in u, by least squares
over the pilot and all strata *but its own*: given the others, a stratum is unbiased whatever they have found.

Source: Owen & Zhou 2000, https://doi.org/10.1080/01621459.2000.10473909 (importance sampling with controls by least squares).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_CELLS, _FINE = 8, 4  # of the pilot, and how many parts of a cell have shares of their own
_EVEN, _SCALE = 0.15, 0.5  # of the share: what is spread evenly, and what goes where the scales of the data say
_REACH = 12.0  # in S²/sigma²: noise of a third to a quarter of the scale already carries data over it
_LEAST = 1e-3  # of what the pilot knows of gamma in its best cell, in any other
_RIDGE = (0.1, 1.0)  # of mu and of gamma, in units of what the pilot knows of them


@dataclass(frozen=True)
class Draws:
    """Draws at u, (N, B) each: ``value`` and the control ``q`` of mean 0, to be weighted by w.

    Args:
        u: where, in (0, 1).
        w: the density of the noise over the one it was drawn from.
        value: the integrand.
        q: the control.
        rho: the variance of the noise over the local variance of the noisy data, from 0 to 1.
        noise: the variance of the noise over the square of the signal's factor.
    """

    u: Tensor
    w: Tensor
    value: Tensor
    q: Tensor
    rho: Tensor
    noise: Tensor

    def __add__(self, other: Draws) -> Draws:
        return Draws(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in self.__dataclass_fields__))


class Integrand(Protocol):
    """What is averaged."""

    def __call__(self, u: Tensor) -> Draws:
        """One stratum: draws at u (2, B)."""
        ...

    def scales(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """At u (N,): ``noise`` as in :class:`Draws`, and how fast its logarithm grows, (N,)."""
        ...


def noise_pair(shape: torch.Size, source: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Noise (2, B, *event), wider than normal, one draw at right angles to the other, and the weights w (2, B)."""
    eps = torch.randn(2, *shape, generator=source, dtype=torch.float64)
    a, b = eps.reshape(2, len(eps[0]), -1)  # (B, D); a scalar state has no event axis
    d = a.shape[1]
    if d > 1:
        across = b - (a * b).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True) * a
        b = across * (b.norm(dim=1, keepdim=True) / across.norm(dim=1, keepdim=True))
    normal, tau2 = torch.stack([a, b]), 1 + 2 / d
    w = torch.exp(0.5 * (d * math.log(tau2) - (tau2 - 1) * (normal * normal).sum(2)))
    return math.sqrt(tau2) * normal.reshape(eps.shape), w


def mean(integrand: Integrand, batch: int, draws: int, source: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The mean of the integrand for each of the batch and the square of its error, (B,), from so many strata."""
    cells = max(1, min(_CELLS, draws // 2))
    pilot = _collect(integrand, _even(cells, batch, source))
    # S², (cells, B): rho = sigma² / (S² + sigma²), in the mean over a cell
    scale = _by_cell(pilot.noise * (1 - pilot.rho), cells) / _by_cell(pilot.rho, cells).clamp_min(1e-12)
    share = _share(integrand, pilot, scale)
    places = _even(draws - cells, batch, source)
    rest = _collect(integrand, _at_quantiles(share, places.to(share.device).flatten(0, 1)).reshape(places.shape))
    return _regression(pilot, rest, scale, share)


def _even(strata: int, batch: int, source: torch.Generator | None) -> Tensor:
    """Two uniform numbers for each sample in each of equal parts of (0, 1), (strata, 2, B)."""
    uniform = torch.rand(strata, 2, batch, generator=source, dtype=torch.float64)
    return (torch.arange(strata)[:, None, None] + uniform) / strata


def _collect(integrand: Integrand, places: Tensor) -> Draws:
    """The draws of all strata, (2 strata, B)."""
    seen = [integrand(u) for u in places]
    return Draws(*(torch.cat([getattr(one, name) for one in seen]) for name in Draws.__dataclass_fields__))


def _by_cell(values: Tensor, cells: int) -> Tensor:
    """Means over the two draws in each cell, (cells, B)."""
    return values.reshape(cells, 2, -1).mean(1)


def _share(integrand: Integrand, pilot: Draws, scale: Tensor) -> Tensor:
    """The share of the draws for each part of (0, 1), (parts, B), from what the pilot has seen."""
    cells, middle = len(scale), _middles(len(scale) * _FINE, scale)
    plain = pilot.value - _fraction(pilot, scale) * pilot.q
    level = _level(pilot, scale)
    size = _by_cell((pilot.w * (plain - level.repeat_interleave(2, 0))).square(), cells).sqrt()
    near = torch.cat([size[:1], size, size[-1:]])
    seen = _between(0.25 * near[:-2] + 0.5 * near[1:-1] + 0.25 * near[2:], middle)
    noise, growth = integrand.scales(middle[:, 0])
    ratio = scale / noise[:, None, None]  # (parts, cells, B)
    guessed = (ratio * torch.exp(-ratio / _REACH)).amax(1) * growth[:, None]
    share = (1 - _EVEN - _SCALE) * _normalised(seen) + _SCALE * _normalised(guessed) + _EVEN / len(middle)
    return share / share.sum(0)


def _normalised(part: Tensor) -> Tensor:
    """Divided by its sum over the parts; even where there is nothing, or nothing finite."""
    ratio = part / part.sum(0)
    return torch.where(ratio.isfinite().all(0), ratio, 1 / len(part))


def _at_quantiles(share: Tensor, v: Tensor) -> Tensor:
    """Where the share below is v, both (N, B)."""
    parts = len(share)
    below = torch.cat([torch.zeros_like(share[:1]), share.cumsum(0)])
    index = torch.searchsorted(below[1:-1].T.contiguous(), v.T.contiguous(), right=True).T
    return (index + ((v - below.gather(0, index)) / share.gather(0, index)).clamp(0, 1 - 1e-12)) / parts


def _regression(pilot: Draws, rest: Draws, scale: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean and the square of its error, (B,): each stratum less the curve that the pilot and the others fit.

    With rows x and weights included, :math:`A = X^TX + R` and :math:`\theta = A^{-1}X^Ty`, the residuals of a stratum b under
    the fit without it are :math:`r = (I - X_bA^{-1}X_b^T)^{-1}(y_b - X_b\theta)`, and that fit is
    :math:`\theta - A^{-1}X_b^Tr`. R comes from the pilot, which no stratum is part of.
    """
    first, every, cells = len(pilot.u), pilot + rest, len(scale)
    control = _fraction(every, scale) * every.q
    hats = _hats(every.u, cells)
    columns = torch.cat([hats, hats * control[..., None]], 2)
    weight = every.w / _density(share, every.u)
    x = (weight[..., None] * columns).transpose(0, 1)  # (B, N, columns)
    start = _level(pilot, scale).T
    y = (weight * (every.value - control)).T - (x[..., :cells] @ start[..., None])[..., 0]
    known = x[:, :first].square().sum(1) * len(rest.u) / first
    least = _LEAST * known[:, cells:].amax(
        1, keepdim=True
    )  # a stratum alone in its cell would decide gamma against nothing
    known = torch.cat([known[:, :cells], torch.maximum(known[:, cells:], least)], 1)
    trust = max(1.0, 64 / len(every.u)) ** 2  # the fewer the draws, the less they are trusted
    ridge = trust * known * torch.tensor(_RIDGE).to(x).repeat_interleave(cells) + 1e-12
    inverse = torch.linalg.inv(x.mT @ x + torch.diag_embed(ridge))
    theta = inverse @ (x.mT @ y[..., None])  # (B, columns, 1)
    strata = x[:, first:].unflatten(1, (-1, 2))
    left = (y[..., None] - x @ theta)[:, first:].unflatten(1, (-1, 2))
    reach = inverse[:, None] @ strata.mT
    r = torch.linalg.solve(torch.eye(2).to(x) - strata @ reach, left)  # (B, strata, 2, 1)
    curve = (theta[:, None] - reach @ r)[:, :, :cells, 0] + start[:, None]
    value = r.mean((2, 3)) + (curve * _means(share, strata.shape[1], cells)).sum(2)
    return value.mean(1), _square(r[..., 0])


def _square(r: Tensor) -> Tensor:
    """The square of the error of the mean of residuals (B, strata, 2): half from within strata, half from one to the next.

    The former misses what the two draws and the curve share, the latter counts what the curve does not follow.
    """
    within = (r[..., 0] - r[..., 1]).square().mean(1) / 4
    across = r.mean(2).diff(dim=1).square().mean(1) / 2 if r.shape[1] > 1 else within
    return 0.5 * (within + across) / r.shape[1]


def _density(share: Tensor, u: Tensor) -> Tensor:
    """The density of the draws at u (N, B), where the parts of (0, 1) have these shares."""
    return share.gather(0, (u * len(share)).long().clamp(max=len(share) - 1)) * len(share)


def _means(share: Tensor, strata: int, cells: int) -> Tensor:
    """The means over the strata of the hat functions over the density, (B, strata, cells)."""
    edges = torch.linspace(0, 1, strata + 1, dtype=share.dtype, device=share.device)[:, None]
    return _areas(_at_quantiles(share, edges.expand(-1, share.shape[1])), cells).diff(dim=0).transpose(0, 1) * strata


def _level(pilot: Draws, scale: Tensor) -> Tensor:
    """The pilot's weighted means in its cells, (cells, B)."""
    plain = pilot.value - _fraction(pilot, scale) * pilot.q
    return _by_cell(pilot.w * plain, len(scale)) / _by_cell(pilot.w, len(scale))


def _middles(parts: int, like: Tensor) -> Tensor:
    """The middles of equal parts of (0, 1), (parts, B)."""
    middle = (torch.arange(parts, dtype=like.dtype, device=like.device) + 0.5) / parts
    return middle[:, None].expand(-1, like.shape[1])


def _fraction(draws: Draws, scale: Tensor) -> Tensor:
    """c = 1 - (1 - rho)² at each draw, rho from the scales found by the pilot, (N, B)."""
    i, j, along = _neighbours(draws.u, len(scale))
    rho = [draws.noise / (scale.gather(0, k) + draws.noise) for k in (i, j)]
    mixed = rho[0] * (1 - along) + rho[1] * along
    return mixed * (2 - mixed)


def _neighbours(u: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells whose centres lie on both sides of u, and how far it is from one to the other; level beyond the ends."""
    at = (u * cells - 0.5).clamp(0, cells - 1)
    i = at.floor().long().clamp(max=max(cells - 2, 0))
    return i, (i + 1).clamp(max=cells - 1), at - i


def _between(values: Tensor, u: Tensor) -> Tensor:
    """Values (cells, B) at u (N, B), linearly."""
    i, j, along = _neighbours(u, len(values))
    return values.gather(0, i) * (1 - along) + values.gather(0, j) * along


def _hats(u: Tensor, cells: int) -> Tensor:
    """The functions that interpolate between cells, u.shape + (cells,): each has mean 1 / cells."""
    return _level_ends((1 - _from_centres(u, cells).abs()).clamp_min(0))


def _areas(u: Tensor, cells: int) -> Tensor:
    """Their integrals from below 0 up to u."""
    t = _from_centres(u, cells).clamp(-1, 1)
    return _level_ends(torch.where(t < 0, 0.5 * (1 + t) ** 2, 1 - 0.5 * (1 - t) ** 2)) / cells


def _from_centres(u: Tensor, cells: int) -> Tensor:
    """From the centre of each cell and of one more at each end to u, in widths of a cell, u.shape + (cells + 2,)."""
    return u[..., None] * cells - 0.5 - torch.arange(-1, cells + 1, dtype=u.dtype, device=u.device)


def _level_ends(of_cells: Tensor) -> Tensor:
    """What belongs to the cell beyond each end goes to the last: curves are level there."""
    inner = of_cells[..., 1:-1].clone()
    inner[..., 0] += of_cells[..., 0]
    inner[..., -1] += of_cells[..., -1]
    return inner
