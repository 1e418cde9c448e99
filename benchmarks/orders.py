"""(d) Error against step size: ODE orders on a mixture's flow, strong and weak orders on SDEs with closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import sdediff as sd
from sdediff.solvers.exponential import ExponentialMultistep, Polynomial

F64 = torch.float64
STEPS = (40, 80, 160, 320)


def run(quick: bool) -> dict[str, Any]:
    """Rows of solver, kind, steps, errors and fitted slope beside the order claimed."""
    return {"rows": [*_flows(64 if quick else 256), *_strong(200 if quick else 2000), *_weak()]}


def _flows(n: int) -> list[dict[str, Any]]:
    sde = sd.VP()
    flow = sde.probability_flow(sd.ExactScore(sde, sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8])))
    x = torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(0))

    def end(solver: sd.Solver, steps: int) -> Tensor:
        return sd.solve(flow, x, solver=solver, grid=sd.grids.LogSNR(steps), t1=0.05).x

    exact = end(ExponentialMultistep(4, corrector=Polynomial()), 5000)
    solvers = [
        sd.EulerMaruyama(), sd.Heun(), sd.RK4(), sd.DDIM(), sd.DPMSolver2(), sd.DPMSolver3(), sd.DPMSolverPP2M(),
        sd.DPMSolverPP3M(), sd.DPMSolverPP3M(published=True), sd.DEIS(3), sd.UniPCSolver(2), sd.ExponentialAdams(),
    ]  # fmt: skip
    return [
        _row(_name(s), "ODE", s.orders.ode, STEPS, [float((end(s, k) - exact).norm(dim=1).mean()) for k in STEPS])
        for s in solvers
    ]


class _Cubic(sd.SDE):
    """f = -x(1 - x²)/4, g = (1 - x²)/2, whose solution is known in W."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.25 * x * (1 - x * x)

    def g(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (1 - x * x)


def _strong(paths: int) -> list[dict[str, Any]]:
    """Root mean square error at t = 1 over one set of Brownian paths for all step sizes."""
    x = torch.full((paths, 1), 0.5, dtype=F64)
    path = sd.BrownianPath(0.0, 1.0, seed=0)
    w = path.open(x).increment(0.0, 1.0)
    grown = 1.5 * torch.exp(w)
    exact = (grown + 0.5 - 1) / (grown + 1 - 0.5)
    rows = []
    for solver in (sd.EulerMaruyama(), sd.Milstein(), sd.SRIW1()):
        errors = [
            float((sd.solve(_Cubic(), x, solver=solver, steps=k, noise=path).x - exact).square().mean().sqrt())
            for k in STEPS
        ]
        rows.append(_row(_name(solver), "strong", solver.orders.strong, STEPS, errors))
    return rows


def _weak() -> list[dict[str, Any]]:
    """Error of the variance of Gaussian data under the reversal, exact: no sampling."""
    from .precision import _Basis

    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=0.5))
    back, start, goal = sde.reverse(score), score.law(1.0), score.law(0.05)
    rows = []
    for solver in (sd.EulerMaruyama(), sd.Ancestral(), sd.DPMSolverPP2M(), sd.SASolver()):
        errors = []
        for steps in STEPS:
            x = torch.zeros(steps + 2, 1, dtype=F64)
            x[1] = 1
            y = sd.solve(back, x, solver=solver, grid=sd.grids.LogSNR(steps), t1=0.05, noise=_Basis()).x[:, 0]
            a, c = y[1] - y[0], y[2:] - y[0]
            variance = float(a * a * start.variances + (c * c).sum())
            errors.append(abs(variance / float(goal.variances) - 1))
        rows.append(_row(_name(solver), "weak", solver.orders.weak, STEPS, errors))
    return rows


def _name(solver: sd.Solver) -> str:
    published = isinstance(solver, sd.DPMSolverPP3M) and solver.orders.ode == 2
    return type(solver).__name__ + (" as published" if published else "")


def _row(solver: str, kind: str, claimed: float | None, steps: tuple[int, ...], errors: list[float]) -> dict[str, Any]:
    slope = math.log2(errors[-2] / errors[-1]) / math.log2(steps[-1] / steps[-2])
    return {"solver": solver, "kind": kind, "claimed": claimed, "steps": steps, "errors": errors, "slope": slope}
