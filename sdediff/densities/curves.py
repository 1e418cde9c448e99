r"""Toy targets along curves: moons, rings, spirals, the Swiss roll, the pinwheel.

A noisy curve :math:`c(u) + s z`, :math:`u \sim U(0, 1)`, has no closed form. Here it is cut into pieces that are short
against their curvature and each piece is replaced by the Gaussian of its own mean and covariance, aligned with the
curve. That mixture *is* the target: its mean and covariance are those of the noisy curve, and its score is exact under
every linear SDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checks import MOST, check_number, check_parameter, check_scale, check_size, check_whole
from .mixture import Mixture

Curve = Callable[[Tensor], Tensor]
"""A curve: from u (P,) in (0, 1), float64, to points (P, d)."""

_FINE = 2**14  # points at which a curve is looked at


def ribbon(curves: Curve | Sequence[Curve], *, std: float, pieces: int | None = None) -> Mixture:
    r"""The law of :math:`c(u) + s z`, u uniform on (0, 1), as a mixture of tangent-aligned Gaussians.

    Args:
        curves: one curve, or several with equal weight.
        std: s, the noise around the curve, in units of the data.
        pieces: how many Gaussians for each curve, of equal length along it; by default as many as make a piece twice
            as long as s, which leaves ripples of a third of a percent in the density.

    Raises:
        ValueError: std or pieces is not positive, or a curve returns something else than (P, d) finite points.
    """
    if check_number(std, "std") <= 0 or (pieces is not None and check_whole(pieces, "pieces") < 1):
        raise ValueError(f"std = {std} and pieces = {pieces} must be positive.")
    check_scale(std, "std")
    parts = [_pieces(curve, std, pieces) for curve in ([curves] if callable(curves) else curves)]
    weights, means, covariances = (torch.cat(column) for column in zip(*parts, strict=True))
    return Mixture(means, covariance=covariances, weights=weights)


def moons(radius: float = 1.5, std: float = 0.1) -> Mixture:
    r"""Two interleaved half circles, :math:`R(\cos\pi u - \tfrac12, \sin\pi u - \tfrac14)` and its mirror image in the origin.

    Args:
        radius: R. std: the noise around the curves.

    Source: scikit-learn's ``make_moons``, centred.
    """

    check_size(radius, "radius")

    def upper(u: Tensor) -> Tensor:
        return radius * (_direction(math.pi * u) - torch.tensor([0.5, 0.25], dtype=u.dtype))

    return ribbon([upper, lambda u: -upper(u)], std=std)


def rings(radii: Sequence[float] = (0.75, 1.5, 2.25), std: float = 0.08) -> Mixture:
    """Concentric circles, equally likely.

    Args:
        radii: one per circle. std: the noise around them.

    Source: Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367.
    """
    each = check_parameter(radii, "radii").reshape(-1).tolist()
    if not each:
        raise ValueError("radii is empty: give the radius of at least one circle.")
    _check_sizes(**{f"radii[{i}]": r for i, r in enumerate(each)})
    circles: list[Curve] = [lambda u, r=r: r * _direction(2 * math.pi * u) for r in each]  # type: ignore[misc]
    return ribbon(circles, std=std)


def spirals(arms: int = 2, radius: float = 2.5, turns: float = 1.5, std: float = 0.08) -> Mixture:
    r"""Arms of a spiral, :math:`R\sqrt u\,(\cos\theta, \sin\theta)` with :math:`\theta = 2\pi(n\sqrt u + k/K)`.

    Args:
        arms: K. radius: R. turns: n of each arm. std: the noise around the arms.

    Source: Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367 (two arms, one and a half turns).
    """
    _check_sizes(radius=radius, turns=turns)

    def arm(k: int) -> Curve:
        return lambda u: radius * u.sqrt().unsqueeze(1) * _direction(2 * math.pi * (turns * u.sqrt() + k / arms))

    return ribbon([arm(k) for k in range(_arms(arms))], std=std)


def swiss_roll(radius: float = 2.5, std: float = 0.1) -> Mixture:
    r"""The Swiss roll seen from its end: a spiral from one third of its radius outwards, in one turn.

    .. math:: c(u) = \tfrac R3(1 + 2u)(\cos\theta, \sin\theta), \qquad \theta = \tfrac{3\pi}2(1 + 2u) .

    Args:
        radius: R, of the outer end. std: the noise around the curve.

    Source: scikit-learn's ``make_swiss_roll``, two of its coordinates.
    """
    check_size(radius, "radius")
    return ribbon(lambda u: radius / 3 * (1 + 2 * u).unsqueeze(1) * _direction(1.5 * math.pi * (1 + 2 * u)), std=std)


def pinwheel(arms: int = 5, radius: float = 1.6, spread: float = 0.3, twist: float = 0.25, std: float = 0.1) -> Mixture:
    r"""Curved blades around the origin, thin at their tips.

    .. math:: c_k = R\rho(\cos\theta, \sin\theta), \qquad \rho \sim \mathcal N(1, s_\rho^2), \qquad
              \theta = \tfrac{2\pi k}K + \omega e^\rho .

    Args:
        arms: K. radius: R, of the middle of a blade. spread: :math:`s_\rho`, the blade's length in units of R.
        twist: :math:`\omega`, radians. std: the noise around the blades.

    Source: Johnson et al. 2016, https://arxiv.org/abs/1603.06277.
    """
    _check_sizes(radius=radius, spread=spread, twist=twist)

    def arm(k: int) -> Curve:
        def blade(u: Tensor) -> Tensor:
            rho = 1 + spread * torch.special.ndtri(u)
            return radius * rho.unsqueeze(1) * _direction(2 * math.pi * k / arms + twist * rho.exp())

        return blade

    return ribbon([arm(k) for k in range(_arms(arms))], std=std)


def _check_sizes(**values: float) -> None:
    for name, value in values.items():
        check_size(value, name)


def _arms(count: int) -> int:
    if check_whole(count, "arms") < 1:
        raise ValueError(f"arms = {count} must be at least 1.")
    return count


def _direction(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1)


def _pieces(curve: Curve, std: float, pieces: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (sum 1), means and covariances of a curve cut into pieces of equal length."""
    u = (torch.arange(_FINE, dtype=torch.float64) + 0.5) / _FINE
    points = curve(u)
    if points.ndim != 2 or len(points) != _FINE or not bool(points.isfinite().all()):
        raise ValueError(
            f"The curve gave shape {tuple(points.shape)} for u of shape ({_FINE},): it must be finite (P, d)."
        )
    steps = points.diff(dim=0).norm(dim=1)
    length = float(steps.sum())
    count = pieces or max(1, math.ceil(min(length / (2 * std), MOST + 1)))
    if count > MOST:
        raise ValueError(
            f"std = {std:g} is so small beside a length of {length:.3g} that more than {MOST:,} pieces were needed."
        )
    travelled = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    piece = (travelled / length * count).long().clamp(0, count - 1) if length > 0 else torch.zeros_like(u).long()
    mass = torch.bincount(piece, minlength=count).to(u.dtype)
    kept = mass > 0  # a stretch that u runs through very fast may hold no point
    mean = _sums(points, piece, count) / mass.clamp_min(1).unsqueeze(1)
    away = points - mean[piece]
    square = _sums(away.unsqueeze(2) * away.unsqueeze(1), piece, count) / mass.clamp_min(1).reshape(-1, 1, 1)
    covariance = square + std**2 * torch.eye(points.shape[1], dtype=u.dtype)
    return mass[kept] / _FINE, mean[kept], covariance[kept]


def _sums(values: Tensor, piece: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, *values.shape[1:]).index_add(0, piece, values)
