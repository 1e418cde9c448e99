"""(a) Work and precision: error against evaluations, sdediff beside its peers, on the same starts."""

from __future__ import annotations

import time
from typing import Any

import torch

import sdediff as sd

from .peers import diffusers as peer
from .target import F64, LEVELS, Target, ring

BUDGETS = (5, 10, 20, 50)


def presets() -> dict[str, tuple[sd.Solver, int]]:
    """Named presets and their evaluations per step."""
    return {
        "ExponentialAdams (recommended)": (sd.ExponentialAdams(), 1),
        "ExponentialAdams, no corrector": (sd.ExponentialAdams(corrector=False), 1),
        "DDIM": (sd.DDIM(), 1),
        "DPM-Solver++ 2M": (sd.DPMSolverPP2M(), 1),
        "DPM-Solver++ 3M": (sd.DPMSolverPP3M(), 1),
        "DPM-Solver-3": (sd.DPMSolver3(), 3),
        "DEIS-3": (sd.DEIS(3), 1),
        "iPNDM-4": (sd.IPNDM(), 1),
        "UniPC-2": (sd.UniPCSolver(2), 1),
        "UniPC-3": (sd.UniPCSolver(3), 1),
        "EDM Heun": (sd.EDMHeun(), 2),
    }


def run(quick: bool) -> dict[str, Any]:
    """Rows of solver, grid, evaluations, errors and seconds."""
    target = ring(512 if quick else 4096)
    rows = [*_ours(target), *_peers(target), *_adapted(target, quick)]
    return {
        "starts": len(target.x), "levels": LEVELS, "rows": rows,
        "stochastic": _stochastic(), "other starts": _other_starts(quick),
    }  # fmt: skip


def _ours(target: Target) -> list[dict[str, Any]]:
    rows = []
    for name, (solver, cost) in presets().items():
        for budget in BUDGETS:
            for label, grid in (("log-SNR", sd.grids.LogSNR), ("Karras", sd.grids.Karras)):
                if budget // cost < 1:
                    continue
                sol = sd.solve(target.flow, target.x, solver=solver, grid=grid(budget // cost))
                rows.append(_row("sdediff", name, label, sol.stats["nfe"], sol.stats["seconds"], target.errors(sol.x)))
    return rows


def _adapted(target: Target, quick: bool) -> list[dict[str, Any]]:
    rows = []
    pilot = target.flow.score.sample(256, LEVELS[0], seed=77)  # not among the starts of the comparison
    solvers = {
        "ExponentialAdams": sd.ExponentialAdams(),
        "ExponentialAdams, no corrector": sd.ExponentialAdams(corrector=False),
    }
    for budget in BUDGETS[1:]:
        for name, solver in solvers.items():
            grid = sd.grids.adapt(target.flow, solver, budget, pilot, solves=100 if quick else 800)
            sol = sd.solve(target.flow, target.x, solver=solver, grid=grid)
            row = _row("sdediff", name, "adapted", sol.stats["nfe"], sol.stats["seconds"], target.errors(sol.x))
            rows.append(row | {"pilot evaluations": grid.pilot.rows, "pilot seconds": grid.pilot.seconds})
    return rows


def _peers(target: Target) -> list[dict[str, Any]]:
    rows = []
    for name, scheduler in peer.schedulers().items():
        for budget in BUDGETS:
            start = time.perf_counter()
            x, count = peer.solve(scheduler, target.flow.score, target.x, budget)
            seconds = time.perf_counter() - start
            label, grid = name.rsplit(", ", 1)
            rows.append(_row("diffusers", label, grid, count, seconds, target.errors(x)))
    return rows


def _other_starts(quick: bool) -> list[dict[str, Any]]:
    """Medians of the recommended solver and of the best peer of each budget, from other starts."""
    rows = []
    for seed in (1,) if quick else (1, 2, 3, 4):
        target = ring(512 if quick else 4096, seed)
        peers = _peers(target)
        for budget in BUDGETS[1:]:
            sol = sd.solve(target.flow, target.x, solver=sd.ExponentialAdams(), grid=sd.grids.LogSNR(budget))
            near = [r["median"] for r in peers if abs(r["nfe"] - budget) <= 0.2 * budget and r["median"] == r["median"]]
            rows.append(
                {"seed": seed, "nfe": budget, "sdediff": target.errors(sol.x)["median"], "diffusers": min(near)}
            )
    return rows


def _row(library: str, solver: str, grid: str, nfe: int, seconds: float, errors: dict[str, float]) -> dict[str, Any]:
    return {"library": library, "solver": solver, "grid": grid, "nfe": nfe, "seconds": seconds} | errors


# ---- stochastic solvers: the exact law for Gaussian data, by the basis of the solve's inputs -----------------------


def _stochastic() -> list[dict[str, Any]]:
    """Relative error of the standard deviation for data N(1, 1/4), eta = 1, exact: no sampling."""
    sde = sd.EDM(t_max=LEVELS[0], t_min=LEVELS[1])
    score = sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=0.5))
    noisy = {
        "SA-Solver-3": (sd.SASolver(), 1),
        "SEEDS-3": (sd.SEEDS3(), 3),
        "SDE-DPM-Solver++ 2M": (sd.DPMSolverPP2M(), 1),
        "Ancestral": (sd.Ancestral(), 1),
    }
    rows = []
    for budget in (20, 40):
        for name, (solver, cost) in noisy.items():
            for label, grid in (("log-SNR", sd.grids.LogSNR), ("Karras", sd.grids.Karras)):
                error, nfe = _spread_error(sde, score, solver, grid(budget // cost), budget)
                rows.append({"library": "sdediff", "solver": name, "grid": label, "nfe": nfe, "std error": error})
        for name, scheduler in peer.stochastic().items():
            error, nfe = _peer_spread_error(score, scheduler, budget)
            label, grid = name.rsplit(", ", 1)
            rows.append({"library": "diffusers", "solver": label, "grid": grid, "nfe": nfe, "std error": error})
    return rows


def _spread_error(sde: sd.LinearSDE, score: sd.Score, solver: sd.Solver, grid: Any, draws: int) -> tuple[float, int]:
    x = torch.zeros(draws + 2, 1, dtype=F64)
    x[1] = 1
    sol = sd.solve(sde.reverse(score), x, solver=solver, grid=grid, noise=_Basis())
    return _error(sol.x[:, 0], LEVELS[1]), sol.stats["nfe"]


def _peer_spread_error(score: sd.Score, scheduler: Any, budget: int) -> tuple[float, int]:
    x = torch.zeros(budget + 2, 1, dtype=F64)
    x[1] = 1
    unit = [torch.zeros(budget + 2, 1, dtype=F64).index_fill_(0, torch.tensor([k + 2]), 1.0) for k in range(budget)]
    y, count = peer.solve(scheduler, score, x, budget, noise=unit)
    return _error(y[:, 0], float(scheduler.sigmas[-1])), count


def _error(y: torch.Tensor, level: float) -> float:
    """From the images of 0, of 1 and of a unit of noise in each draw."""
    a, c = y[1] - y[0], y[2:] - y[0]
    variance = float(a * a) * (0.25 + LEVELS[0] ** 2) + float((c * c).sum())
    return abs((variance / (0.25 + level**2)) ** 0.5 - 1)


class _Basis(sd.noise.Noise):
    """Draw k is a unit in row k + 2 and zero elsewhere."""

    def open(self, x: torch.Tensor) -> sd.noise.Stream:
        return _BasisStream(x)

    def initial(self, shape: Any, device: Any, dtype: Any) -> torch.Tensor:
        raise NotImplementedError("The starts are given.")

    def integer(self) -> int:
        raise NotImplementedError("No backend is used here.")


class _BasisStream(sd.noise.Stream):
    def __init__(self, x: torch.Tensor):
        self.zeros, self.drawn = torch.zeros_like(x), 0

    def normal(self, shape: Any = None) -> torch.Tensor:
        self.drawn += 1
        return self.zeros.index_fill(0, torch.tensor([self.drawn + 1]), 1.0)
