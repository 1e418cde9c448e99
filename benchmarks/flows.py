"""(a) Work and precision over densities and processes: error against evaluations and against time, sdediff beside its peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdediff as sd
from sdediff.solvers.exponential import ExponentialMultistep, Polynomial

from .measure import lower_quartile
from .peers import azula, odes
from .target import F64, LEVELS

BUDGETS = (6, 12, 24, 48)
Run = Callable[[], tuple[Tensor, int]]


@dataclass(frozen=True)
class Flow:
    """A probability flow between two times, starts from its exact law, and where the exact flow takes them."""

    density: str
    process: str
    flow: sd.SDE
    x: Tensor
    t0: float
    t1: float
    exact: Tensor


def densities() -> dict[str, sd.Density]:
    """Eight uneven modes, two curved arms, and a mixture in 16 dimensions with a covariance of its own for each mode."""
    g = torch.Generator().manual_seed(0)
    roots = 0.3 * torch.randn(5, 16, 16, generator=g, dtype=F64)
    mixture = sd.densities.Mixture(
        2 * torch.randn(5, 16, generator=g, dtype=F64), covariance=roots @ roots.mT + 0.05 * torch.eye(16, dtype=F64)
    )
    made = {
        "ring": sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8]),
        "moons": sd.densities.moons(),
        "16-D": mixture,
    }
    return {name: density.to(dtype=F64) for name, density in made.items()}


def processes() -> dict[str, tuple[sd.LinearSDE, float, float]]:
    """Each with the ends of the solve; a rectified flow starts where its noise is pure but for a thousandth."""
    return {
        "EDM": (sd.EDM(t_max=LEVELS[0], t_min=LEVELS[1]), *LEVELS),
        "VP": (sd.VP(), 1.0, 1e-3),
        "RectifiedFlow": (sd.RectifiedFlow(), 0.999, 1e-2),
    }


def flows(n: int) -> Iterator[Flow]:
    """Every density under every process."""
    best = ExponentialMultistep(4, corrector=Polynomial())
    for process, (sde, t0, t1) in processes().items():
        for name, density in densities().items():
            score = sd.ExactScore(sde, density)
            x, flow = score.sample(n, t0, seed=0), sde.probability_flow(score)
            exact = sd.solve(flow, x, solver=best, grid=sd.grids.LogSNR(3000), t0=t0, t1=t1).x
            yield Flow(name, process, flow, x, t0, t1, exact)


def run(quick: bool) -> dict[str, Any]:
    """Rows of density, process, library, solver, evaluations, error and seconds."""
    rounds, rows = (1, []) if quick else (3, [])
    for flow in flows(128 if quick else 1024):
        for library, solver, solve in [*_ours(flow), *_azula(flow), *_general(flow)]:
            x, nfe = solve()
            seconds = [_seconds(solve) for _ in range(rounds)]
            error = float((x.double() - flow.exact).norm(dim=1).median())
            rows.append(
                {"density": flow.density, "process": flow.process, "library": library, "solver": solver, "nfe": nfe}
                | {"median": error, "seconds": lower_quartile(seconds)}
            )
    return {"starts": 128 if quick else 1024, "rounds": rounds, "rows": rows}


def _seconds(solve: Run) -> float:
    start = time.perf_counter()
    solve()
    return time.perf_counter() - start


def _ours(flow: Flow) -> Iterator[tuple[str, str, Run]]:
    fixed = {
        "ExponentialAdams": (sd.ExponentialAdams(), 1), "DPM-Solver++ 2M": (sd.DPMSolverPP2M(), 1),
        "DDIM": (sd.DDIM(), 1), "Heun": (sd.Heun(), 2),
    }  # fmt: skip
    for name, (solver, cost) in fixed.items():
        for budget in BUDGETS:
            options = {"solver": solver, "grid": sd.grids.LogSNR(budget // cost)}
            yield "sdediff", name, lambda options=options: _solved(flow, options)
    for tolerance in odes.TOLERANCES:
        options = {"solver": sd.Tsitouras(rtol=tolerance, atol=tolerance)}
        yield "sdediff", "Tsitouras", lambda options=options: _solved(flow, options)


def _solved(flow: Flow, options: dict[str, Any]) -> tuple[Tensor, int]:
    sol = sd.solve(flow.flow, flow.x, t0=flow.t0, t1=flow.t1, **options)
    nfe = sol.stats["nfe"]
    return sol.x, int(torch.as_tensor(nfe, dtype=F64).mean())


def _azula(flow: Flow) -> Iterator[tuple[str, str, Run]]:
    for name in azula.SAMPLERS:
        for budget in BUDGETS:
            yield (
                "azula",
                name,
                lambda name=name, budget=budget: azula.solve(name, flow.flow.score, flow.x, flow.t0, flow.t1, budget),
            )


def _general(flow: Flow) -> Iterator[tuple[str, str, Run]]:
    for tolerance in odes.TOLERANCES:
        yield "torchdiffeq", "dopri5", odes.torchdiffeq_run(flow.flow, flow.x, flow.t0, flow.t1, tolerance)
        if (flow.density, flow.process) == ("ring", "EDM"):
            yield "diffrax", "Tsit5", odes.diffrax_run(flow.flow, flow.x, flow.t0, flow.t1, tolerance)
