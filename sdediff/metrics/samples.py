"""Distances between two samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..densities.base import host_generator
from .pairs import Kernel, distance, flattened, mean_of, pair, random_directions


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""The energy distance :math:`2\,\mathrm E|X-Y| - \mathrm E|X-X'| - \mathrm E|Y-Y'|`, unbiased.

    Args:
        x, y: independent samples (n, *event) and (m, *event), n, m >= 2.

    Returns:
        A number in units of the data; 0 in expectation if and only if the laws are equal.

    Raises:
        TypeError, ValueError: no samples of one event shape, or entries that are not finite.

    Source: Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.
    """
    x, y = pair(x, y)
    return 2 * mean_of(distance, x, y) - mean_of(distance, x) - mean_of(distance, y)


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> float:
    r"""The squared maximum mean discrepancy with the kernel :math:`k(x, y) = e^{-|x-y|^2/2h^2}`, unbiased.

    .. math:: \mathrm{MMD}^2 = \mathrm E\,k(X, X') + \mathrm E\,k(Y, Y') - 2\,\mathrm E\,k(X, Y) .

    Args:
        x, y: independent samples (n, *event) and (m, *event), n, m >= 2.
        bandwidth: h, in units of the data; by default :func:`median_bandwidth` of the two.

    Raises:
        TypeError, ValueError: as :func:`energy_distance`, or a bandwidth that is not positive.

    Source: Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html.
    """
    x, y = pair(x, y)
    h = median_bandwidth(x, y) if bandwidth is None else bandwidth
    kernel = gaussian_kernel(h)
    return mean_of(kernel, x) + mean_of(kernel, y) - 2 * mean_of(kernel, x, y)


def gaussian_kernel(bandwidth: float) -> Kernel:
    r""":math:`e^{-|x-y|^2/2h^2}` over all pairs."""
    if not bandwidth > 0:
        raise ValueError(f"bandwidth = {bandwidth} must be positive (the median distance of constant samples is 0).")
    return lambda a, b: torch.exp(-0.5 * (distance(a, b) / bandwidth).square())


def median_bandwidth(x: Tensor, y: Tensor) -> float:
    """The median distance between points of x and y pooled, from at most the first 1,000 of each."""
    pool = torch.cat([flattened(x)[:1000], flattened(y)[:1000]])
    return float(torch.pdist(pool).median())


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, order: float = 2.0, projections: int = 128, seed: int | None = 0
) -> float:
    r"""The sliced Wasserstein distance :math:`\bigl(\mathrm E_u\,W_p^p(u\cdot X, u\cdot Y)\bigr)^{1/p}`, u on the unit sphere.

    Args:
        x, y: samples (n, *event) and (m, *event), of any two sizes.
        order: p >= 1.
        projections: how many directions; in one dimension there is just one.
        seed: of the directions; None for fresh ones.

    Returns:
        A number in units of the data, biased upwards by the samples' own noise.

    Source: Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3.
    """
    x, y = pair(x, y)
    if not order >= 1:
        raise ValueError(f"order = {order} must be at least 1.")
    u = random_directions(x.shape[1], projections, host_generator(seed, None)).to(x.device, x.dtype)
    quantiles = ((x @ u.T).sort(0).values, (y @ u.T).sort(0).values)
    # Between neighbouring levels of i/n and j/m both quantile functions are constant: an exact integral over the level.
    n, m = (torch.arange(1, len(q) + 1, device=x.device, dtype=x.dtype) / len(q) for q in quantiles)
    levels = torch.cat([n, m]).sort().values
    width = levels.diff(prepend=levels.new_zeros(1))
    middle = levels - 0.5 * width
    a, b = (q[torch.searchsorted(c, middle)] for q, c in zip(quantiles, (n, m), strict=True))
    return float((width @ (a - b).abs() ** order).mean() ** (1 / order))
