"""What the pictures ask of states and laws: where they are, and how dense."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..densities import Density
from ..exact import ExactScore

Law = Density | ExactScore
"""A density, or at t > 0 the exact score that knows p_t."""
Extent = tuple[float, float, float, float]
"""(left, right, bottom, top)."""

MASSES = (0.99, 0.95, 0.85, 0.7, 0.5, 0.25)
_BLOCK = 2**13


def log_density(law: Law, t: float | None) -> Callable[[Tensor], Tensor]:
    """x (N, *event), float64 -> log p (N,), of the density itself or of p_t."""
    if isinstance(law, ExactScore):
        if t is None:
            raise ValueError("An ExactScore is a law at every time: say at which, t=...")
        return lambda x: _blockwise(lambda part: law.log_prob(part, t), x)
    if t is not None and t != 0:
        raise ValueError(f"A density alone is the law at t = 0; for t = {t:g} give ExactScore(sde, density).")
    return lambda x: _blockwise(law.log_prob, x)


def draw(law: Law, t: float | None, n: int = 4000) -> Tensor:
    """Exact samples, always the same ones, float64 on the host."""
    if isinstance(law, ExactScore):
        return law.sample(n, 0.0 if t is None else t, seed=0).double().cpu()
    return law.sample(n, seed=0).double().cpu()


def host(x: Tensor, event: int = 2) -> Tensor:
    """States (..., event) as float64 on the host."""
    if x.shape[-1:] != (event,) or x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; this picture needs states of shape ({event},): (B, {event}).")
    return x.detach().double().cpu()


def around(x: Tensor, margin: float = 0.12) -> Extent:
    """A square that holds all but the outermost thousandth of the states (N, 2), with a margin."""
    x = x[x.isfinite().all(1)]
    if len(x) == 0:
        raise ValueError("There is no finite state to show.")
    low, high = (torch.quantile(x[:: max(1, len(x) // 100_000)], q, dim=0) for q in (0.001, 0.999))
    centre, half = 0.5 * (low + high), 0.5 * float((high - low).max()) * (1 + 2 * margin)
    half = half or 1.0
    (cx, cy) = centre.tolist()
    return cx - half, cx + half, cy - half, cy + half


def mesh(extent: Extent, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ticks of both axes (count,) and the points of the grid (count², 2), rows from bottom to top."""
    x, y = (torch.linspace(a, b, count, dtype=torch.float64) for a, b in (extent[:2], extent[2:]))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return x, y, torch.stack([columns.reshape(-1), rows.reshape(-1)], 1)


def mass_levels(p: Tensor, masses: tuple[float, ...] = MASSES) -> list[float]:
    """The heights above which these shares of the mass on a grid lie, rising, and the top."""
    heights = p.flatten().sort(descending=True).values
    share = heights.cumsum(0) / heights.sum()
    index = torch.searchsorted(share, torch.tensor(masses, dtype=p.dtype)).clamp_max(len(share) - 1)
    # A hair below, so that a flat law is inside of its own contour.
    levels = sorted({round(float(h) * 0.999, 12) for h in heights[index] if h > 0})
    return [*levels, float(heights[0]) * 1.001]


def _blockwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(part) for part in x.split(_BLOCK)])
