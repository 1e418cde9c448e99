r"""Toy targets made of separate Gaussians: the ring, the grid, random and oriented ones.

All are :class:`~sdediff.densities.Mixture` objects, so their scores are exact under every linear SDE. States have shape
(2,) unless a function says otherwise. Targets that lie along curves are in :mod:`~sdediff.densities.curves`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_number, check_parameter, check_scale, check_seed, check_size, check_whole
from .mixture import Mixture

Weights = Tensor | Sequence[float] | None
"""One positive number per component, normalised by the mixture; None for equal ones."""


def gaussian(mean: Tensor | Sequence[float] | float = (0.0, 0.0), std: float = 1.0) -> Mixture:
    r""":math:`\mathcal N(\mathrm{mean}, \mathrm{std}^2 I)`.

    Args:
        mean: of the event's own shape, e.g. (2,), (3, 32, 32), or a number for scalar states.
        std: positive, in units of the data.
    """
    return Mixture(check_parameter(mean, "mean").unsqueeze(0), std=std)


def bimodal(centre: float = 1.5, std: float = 0.25, weight: float = 0.7) -> Mixture:
    r"""Two modes on the line, scalar states: :math:`w\,\mathcal N(-c, s^2) + (1 - w)\,\mathcal N(c, s^2)`.

    Args:
        centre: c. std: s. weight: w, in (0, 1).
    """
    check_size(centre, "centre")
    if not 0 < check_number(weight, "weight") < 1:
        raise ValueError(f"weight = {weight} must lie between 0 and 1.")
    return Mixture([-centre, centre], std=std, weights=[weight, 1 - weight])


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.1, weights: Weights = None) -> Mixture:
    r"""Equal Gaussians on a circle: :math:`m_k = R(\cos\tfrac{2\pi k}{K}, \sin\tfrac{2\pi k}{K})`, covariance :math:`s^2I`.

    Args:
        modes: K, at least 1.
        radius: R, in units of the data.
        std: s.
        weights: (K,), positive; equal by default.

    Source: Metz et al. 2017, https://arxiv.org/abs/1611.02163 (K = 8).
    """
    return Mixture(check_size(radius, "radius") * _directions(_angles(modes)), std=std, weights=weights)


def grid(side: int = 5, spacing: float = 1.0, std: float = 0.05, weights: Weights = None) -> Mixture:
    r"""Equal Gaussians on a square grid of ``side`` × ``side`` points around the origin, covariance :math:`s^2I`.

    Args:
        side: modes along one side, at least 1.
        spacing: the distance between neighbours.
        std: s.
        weights: (side²,), positive, row by row; equal by default.

    Source: Azadi et al. 2019, https://arxiv.org/abs/1810.06758 (25 modes).
    """
    _at_least_one(side, "side")
    ticks = check_size(spacing, "spacing") * (torch.arange(side, dtype=torch.float64) - 0.5 * (side - 1))
    return Mixture(torch.cartesian_prod(ticks, ticks), std=std, weights=weights)


def random_mixture(modes: int = 40, extent: float = 4.0, std: float = 0.15, *, dim: int = 2, seed: int = 0) -> Mixture:
    r"""Gaussians with centres uniform in :math:`[-L, L]^d` and covariance :math:`s^2I`; states (d,).

    Args:
        modes: how many.
        extent: L, in units of the data.
        std: s.
        dim: d.
        seed: of the centres; the same seed gives the same mixture.

    Source: Midgley et al. 2023, https://arxiv.org/abs/2208.01893 (40 modes in a wide square).
    """
    _at_least_one(modes, "modes")
    _at_least_one(dim, "dim")
    generator = torch.Generator().manual_seed(check_seed(seed))
    uniform = torch.rand(modes, dim, generator=generator, dtype=torch.float64)
    return Mixture(check_size(extent, "extent") * (2 * uniform - 1), std=std)


def anisotropic(
    modes: int = 5,
    radius: float = 1.6,
    std: tuple[float, float] = (0.6, 0.1),
    turn: float = math.pi / 4,
    weights: Weights = None,
) -> Mixture:
    r"""Elongated Gaussians on a circle, :math:`S_k = R_k\,\mathrm{diag}(s_1^2, s_2^2)\,R_k^\top`.

    Args:
        modes: how many.
        radius: of the circle of their centres.
        std: (s_1, s_2) along the first axis of a mode and across it.
        turn: the angle, in radians, from the radius to the first axis: 0 is a star, π/2 a broken ring.
        weights: one per mode; equal by default.

    Full covariances: what an isotropic shortcut gets wrong shows here.
    """
    if not isinstance(std, (tuple, list)) or len(std) != 2:
        raise ValueError(f"std = {std!r} must be two numbers, along and across.")
    for value in std:
        check_scale(value, "std")
    check_size(turn, "turn")
    angles = _angles(modes)
    along = _directions(angles + turn)
    across = _directions(angles + turn + math.pi / 2)
    axes = torch.stack([along, across], 2)  # (K, 2, 2), columns
    covariance = (axes * torch.tensor(std, dtype=torch.float64).square()) @ axes.mT
    return Mixture(check_size(radius, "radius") * _directions(angles), covariance=covariance, weights=weights)


def _angles(modes: int) -> Tensor:
    _at_least_one(modes, "modes")
    return 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes


def _directions(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], 1)


def _at_least_one(count: int, name: str) -> None:
    if check_whole(count, name) < 1:
        raise ValueError(f"{name} = {count} must be at least 1.")
