"""What a score must be, whatever its law: one prediction in three forms, a gradient, and each sample's own affair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..autodiff import leaf, recording
from ..linear import LinearSDE
from ..score import Score
from ..sde import SDE
from .attempt import attempt
from .operator import rows
from .report import Row, exact_row, fact_row
from .stein import evaluated

Draw = Callable[[float, int, torch.Generator], tuple[Tensor, Tensor | None]]
"""``draw(t, n, generator)``: samples of the law at t (n, *event), and their noise where it is known."""

CONSISTENT = 1e-7
"""Rounding in float64, amplified by a small sigma."""
ALIKE = 1e-4
"""The same for a network in float32, whose last bits depend on the size of the batch; in units of the noise."""

_FEW, _PAIRS, _FAR = 64, 8, 20.0


def contract(
    score: Score, sde: SDE, draw: Draw, times: Sequence[float], tolerance: float, seed: int
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows of these checks, and what could not be checked."""
    generator = torch.Generator().manual_seed(seed + 7)
    points = [(t, draw(t, _FEW, generator)[0]) for t in times]
    found: list[Row] = []
    unchecked: list[str] = []
    if isinstance(sde, LinearSDE):
        found += attempt("score, noise and data are one prediction", lambda: [_views(score, sde, points)])
    else:
        unchecked.append("score, noise and data as one prediction: these belong to a linear process.")
    if hasattr(score, "log_prob"):
        found += attempt("score = ∇ log_prob", lambda: [_gradient(score, points)])
    if points[0][1][0].numel() > 1:
        try:
            found.append(_symmetric(score, points, tolerance, generator))
        except RuntimeError as error:  # numbers that autograd cannot follow
            unchecked.append(f"symmetry of the Jacobian: the score cannot be differentiated in x ({error}).")
    found += attempt("a sample's score is its own", lambda: [_alone(score, sde, points)])
    found += attempt(_FINITE, lambda: [_finite(score, points)])
    return tuple(found), tuple(unchecked)


def _views(score: Score, sde: LinearSDE, points: Sequence[tuple[float, Tensor]]) -> Row:
    """s = -noise/σ, x = α data + σ noise, and split gives the same two; relative, the worst of all times."""
    worst = 0.0
    for t, x in points:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        if alpha == 0 or sigma == 0:
            continue
        s, noise, data = score(x, t), score.noise(x, t), score.data(x, t)
        again = score.split(x, t)
        pairs = [(-sigma * s, noise), (x, alpha * data + sigma * noise), (data, again[0]), (noise, again[1])]
        worst = max(worst, *(_apart(a, b) for a, b in pairs))
    return exact_row("score, noise and data are one prediction", worst, CONSISTENT)


def _gradient(score: Score, points: Sequence[tuple[float, Tensor]]) -> Row:
    worst = 0.0
    for t, x in points:
        with recording():
            at = leaf(x)
            (gradient,) = torch.autograd.grad(score.log_prob(at, t).sum(), at)  # type: ignore[attr-defined]
        worst = max(worst, _apart(gradient, score(x, t)))
    return exact_row("score = ∇ log_prob", worst, CONSISTENT)


def _symmetric(
    score: Score, points: Sequence[tuple[float, Tensor]], tolerance: float, generator: torch.Generator
) -> Row:
    r"""The norm of J - Jᵀ beside that of J, from random bilinear forms: :math:`u^\top Jv - v^\top Ju`."""
    worst = 0.0
    for t, x in points:
        with recording():
            at = leaf(x)
            s = score(at, t)
            skew = size = 0.0
            for _ in range(_PAIRS):
                u, v = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))
                ju, jv = (torch.autograd.grad((s * w).sum(), at, retain_graph=True)[0] for w in (u, v))
                skew += float((ju * v - jv * u).reshape(len(x), -1).sum(1).square().sum())
                size += float(ju.square().sum() + jv.square().sum()) / 2
        worst = max(worst, (skew / size) ** 0.5 if size else 0.0)
    return exact_row("the Jacobian is symmetric", worst, max(tolerance, CONSISTENT))


def _alone(score: Score, sde: SDE, points: Sequence[tuple[float, Tensor]]) -> Row:
    """One batch of mixed times, times (B,), against each sample alone at a number t; in units of the noise."""
    each = 4
    kept = [(t, x[:each]) for t, x in points if not isinstance(sde, LinearSDE) or -12 < float(sde.log_snr(t)) < 6]
    kept = kept or [(t, x[:each]) for t, x in points[-1:]]
    together = torch.cat([x for _, x in kept])
    times = torch.tensor([t for t, _ in kept], dtype=torch.float64).repeat_interleave(each)
    mixed = rows(score(together, times))
    alone = torch.cat([evaluated(score, x[k : k + 1], t) for t, x in kept for k in range(each)])
    unit = alone.norm(dim=1).clamp_min(1e-300)
    if isinstance(sde, LinearSDE):
        unit = torch.maximum(unit, 1 / sde.sigma(times))
    return exact_row("a sample's score is its own", float(((mixed - alone).norm(dim=1) / unit).max()), ALIKE)


_FINITE = f"finite at both ends, and {_FAR:g} standard deviations out"


def _finite(score: Score, points: Sequence[tuple[float, Tensor]]) -> Row:
    for t, x in (points[0], points[-1]):
        far = x.mean(0) + _FAR * x.std() * (x - x.mean(0)) / x.std().clamp_min(1e-300)
        for where, at in (("there", x), ("far out", far)):
            bad = int((~torch.isfinite(rows(score(at, t))).all(1)).sum())
            if bad:
                return fact_row(_FINITE, f"NaN or infinite for {bad} of {len(at)} states {where} at t = {t:.3g}.")
    return fact_row(_FINITE)


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest entry; 0 for two zeros."""
    difference, size = float((a - b).abs().max()), float(torch.maximum(a.abs().max(), b.abs().max()))
    return difference / size if size > 0 else difference
