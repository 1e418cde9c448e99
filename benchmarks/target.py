"""The target of the precision benchmark: the flow of an uneven ring from noise level 157 to 0.01."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import sdediff as sd
from sdediff.solvers.exponential import ExponentialMultistep, Polynomial

LEVELS = (157.0, 0.01)
F64 = torch.float64


@dataclass(frozen=True)
class Target:
    """The flow, starts drawn from its exact law, and where the exact flow takes them."""

    flow: sd.SDE
    back: sd.SDE
    x: Tensor
    exact: Tensor

    def errors(self, x: Tensor) -> dict[str, float]:
        """Root mean square, median and 90th percentile of the distance to the exact end."""
        e = (x.double() - self.exact).norm(dim=1)
        return {"rms": float(e.square().mean().sqrt()), "median": float(e.median()), "p90": float(e.quantile(0.9))}


def ring(n: int = 4096, seed: int = 0) -> Target:
    """``n`` starts on the eight modes with weights 1 to 8, radius 2 and standard deviation 0.1."""
    sde = sd.EDM(t_max=LEVELS[0], t_min=LEVELS[1])
    density = sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8]).to(dtype=F64)
    score = sd.ExactScore(sde, density)
    x = score.sample(n, LEVELS[0], seed=seed)
    flow = sde.probability_flow(score)
    best = ExponentialMultistep(4, corrector=Polynomial())  # of order 5
    fine, finer = (sd.solve(flow, x, solver=best, grid=sd.grids.LogSNR(k)).x for k in (3000, 6000))
    unsure = float((fine - finer).norm(dim=1).max())  # largest where the flow parts towards two modes
    if not unsure < 1e-6:
        raise RuntimeError(f"The reference of seed {seed} is known to {unsure:.1e} alone: take finer grids.")
    return Target(flow, sde.reverse(score), x, finer)
