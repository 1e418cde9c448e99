r"""The reversals of a process against its own Fokker-Planck operator, pointwise.

For any smooth density p with score s, whether or not it is the law of the process, what is built from s must satisfy

.. math:: L_{\mathrm{back}}^*p = -L^*p \quad\text{for every stochasticity}, \qquad L_{\mathrm{flow}}^*p = L^*p ,

where L* is the operator of the process, and :math:`L_{\mathrm{back}}^*` that of a reversal in rising time. (Their sum, the
Langevin identity, is one of them.) Where p is the law :math:`p_t` itself, also :math:`L^*p_t = \partial_tp_t`. All derivatives
are taken anew (:mod:`~sdediff.verify.operator`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sde import SDE
from .attempt import attempt
from .contract import Probe
from .differences import slope
from .laws import Law
from .moments import relative
from .operator import fokker_planck, gram, residual, rows
from .report import Row
from .worst import Worst

POINTWISE = 1e-9
"""The largest relative residual that passes."""
_BY_DIFFERENCES = 1e-6
POINTS = 64
LARGEST = 16
"""Coordinates beyond which derivatives in each pair of them take too long."""


@dataclass(frozen=True)
class Scene:
    """A process, a density p with its score, and points: what the residuals are taken of.

    Args:
        sde: the process.
        law: its law, or any smooth density where that is unknown (``law.moves`` tells them apart).
        points: ``points(t)``, states (B, *event) in float64.
    """

    sde: SDE
    law: Law
    points: Callable[[float], Tensor]

    def terms(self, process: SDE, t: float) -> Tensor:
        """The terms of L*p/p of a process in rising time, (k, B); a reversal's clock falls."""
        sign = 1 if process is self.sde or process.direction == 0 else -1
        return fokker_planck(
            lambda x: sign * process.drift(x, t),
            lambda x: process.diffusion(x, t),
            lambda x: self.law.log_prob(x, t),
            self.points(t),
        )

    def rate(self, t: float) -> Tensor:
        """∂ log p_t/∂t at the points, (1, B)."""
        return self.law.rate(self.points(t), t)[None]


def law_row(scene: Scene, times: Sequence[float], what: str) -> Row:
    r"""Whether p_t moves as f and g say: :math:`L^*p_t = \partial_tp_t`."""
    return _worst_over(times, what, lambda t: torch.cat([scene.terms(scene.sde, t), -scene.rate(t)]), (
        "f and g carry the density elsewhere than the law that the process claims (its kernel and the density diffused by it)."
    ))  # fmt: skip


def reversal_rows(scene: Scene, times: Sequence[float]) -> Iterable[Row]:
    """Anderson's reversal, one with half the noise, one with noise of its own, the flow, and the way back."""
    sde, score = scene.sde, scene.law.score
    kinds: dict[str, Callable[[], SDE]] = {
        "reverse, η = 1": lambda: sde.reverse(score),
        "reverse, η = ½": lambda: sde.reverse(score, 0.5),
        "reverse, noise w = 0.7": lambda: sde.reverse(score, diffusion=0.7),
        "flow": lambda: sde.probability_flow(score),
    }
    for name, make in kinds.items():
        flow = name == "flow"
        what = "flow: moves p as the SDE does" if flow else f"{name}: forward + backward is Langevin"
        yield from attempt(what, lambda make=make, what=what, flow=flow: [_reversal(scene, make(), times, what, flow)])  # type: ignore[misc]
    what = "reverse of reverse: the drift of the process"
    yield from attempt(what, lambda: [_back_again(scene, times, what)])


def _reversal(scene: Scene, process: Any, times: Sequence[float], what: str, flow: bool) -> Row:
    sign = -1 if flow else 1
    wrong = "a factor or sign in front of s, g or ∇·(GGᵀ), or another time than t in the score."
    return _worst_over(
        times, what, lambda t: torch.cat([scene.terms(scene.sde, t), sign * scene.terms(process, t)]), wrong
    )


def _back_again(scene: Scene, times: Sequence[float], what: str) -> Row:
    score, worst = scene.law.score, Worst()
    there_and_back = scene.sde.reverse(score).reverse(score)
    for t in times:
        x = scene.points(t)
        drift = scene.sde.drift(x, t)
        error = relative(there_and_back.drift(x, t) - drift, drift, x / _length(scene.sde))
        worst.seen(error, f"at t = {t:.4g}.")
    return worst.row(what, POINTWISE)


def divergence_rows(probe: Probe, seed: int) -> Iterable[Row]:
    """∇·(GGᵀ) as the process gives it, against differences."""
    what = "∇·(GGᵀ): gram_divergence against differences"
    return attempt(what, lambda: [_divergence(probe, what, seed)])


def _divergence(probe: Probe, what: str, seed: int) -> Row:
    sde, x = probe.sde, probe.draw(16, torch.Generator().manual_seed(seed))
    flat, worst = rows(x), Worst()
    # Steps in proportion to x, so that what must be positive stays so; but not where x is next to nothing.
    least = 1e-3 * float(flat.square().mean().sqrt()) or 1.0
    reach = torch.where(flat.abs() > least, flat, least)
    for t in probe.times:
        claimed = rows(sde.gram_divergence(x, t))
        seen, change = torch.zeros_like(flat), torch.zeros_like(flat)
        for j in range(flat.shape[1]):
            direction = torch.zeros_like(flat)
            direction[:, j] = reach[:, j]

            def moved(e: float, direction: Tensor = direction, j: int = j, t: float = t) -> Tensor:
                at = (flat + e * direction).reshape(x.shape)
                return gram(sde.diffusion(at, t), at)[:, :, j]

            column = slope(moved, 0.05) / reach[:, j : j + 1]
            seen, change = seen + column, torch.maximum(change, column.abs())
        scale = gram(sde.diffusion(x, t), x).abs().amax((1, 2)) / reach.abs().amax(1)
        error = relative(claimed - seen, seen, claimed, change, scale)
        worst.seen(error, f"at t = {t:.4g}: (∇·D)_i = Σ_j ∂_j D_ij. A g that leaves autograd's graph has none.")
    return worst.row(what, _BY_DIFFERENCES)


def _worst_over(times: Sequence[float], what: str, terms: Callable[[float], Tensor], wrong: str) -> Row:
    worst = Worst()
    for t in times:
        worst.seen(residual(terms(t)), f"at t = {t:.4g}: {wrong}")
    return worst.row(what, POINTWISE)


def _length(sde: SDE) -> float:
    """The clock's length, 1 where it has no end."""
    return sde.t_max if sde.t_max < float("inf") else 1.0
