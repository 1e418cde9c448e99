"""Solvers compared at equal cost: evaluations of the score, which are what takes the time once it is a network.

On the probability flow every start has one right end, so the error is a distance to the exact map. With noise only the law
can be right: there it is the width of the modes, which a solver gets wrong first, beside its noise floor, the same number
for exact samples.

Run: python examples/compare_solvers.py
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import sdediff as sd

FLOW = {  # solver, evaluations per step
    "Euler": (sd.EulerMaruyama(), 1),
    "Heun": (sd.Heun(), 2),
    "RK4": (sd.RK4(), 4),
    "DDIM": (sd.DDIM(), 1),
    "DPM-Solver++ 2M": (sd.DPMSolverPP2M(), 1),
    "exponential Adams": (sd.ExponentialAdams(), 1),
}
NOISY = {
    "Euler-Maruyama": (sd.EulerMaruyama(), 1),
    "reverse diffusion": (sd.ReverseDiffusion(), 1),
    "ancestral": (sd.Ancestral(), 1),
    "predictor-corrector": (sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(r=0.16)), 2),
    "SDE-DPM-Solver++ 2M": (sd.DPMSolverPP2M(), 1),
}


def main(n: int = 10_000, budgets: tuple[int, ...] = (12, 24, 48, 96), seed: int = 0, out: str = "results/solvers.png"):
    sde, data = sd.VP(), sd.densities.ring(8)
    score = sd.ExactScore(sde, data)
    start = score.sample(n, t=sde.t_max, seed=seed).double()  # from the exact p_T: only the solver can err
    exact = sd.solve(sde.probability_flow(score), start, solver=sd.Scipy("DOP853", rtol=1e-9, atol=1e-9)).x

    def distance(x: torch.Tensor) -> float:
        return float((x - exact).norm(dim=1).median())

    law = score.law(sde.t_min)  # a mixture again

    def departure(x: torch.Tensor) -> float:
        return abs(sd.metrics.within_mode(x, law).variance)

    errors: dict[str, dict[str, list[float]]] = {}
    for title, process, solvers, error in (
        ("flow: median distance to the exact map", sde.probability_flow(score), FLOW, distance),
        ("with noise: relative error of the variance within modes", sde.reverse(score), NOISY, departure),
    ):
        print(f"\n{title}\n{'evaluations':22}" + "".join(f"{b:>10}" for b in budgets))
        errors[title] = {}
        for name, (solver, each) in solvers.items():
            row = []
            for budget in budgets:
                grid = sd.grids.LogSNR(budget // each)
                sol = sd.solve(process, start, solver=solver, grid=grid, seed=seed + 3)
                assert sol.stats["nfe"] == budget
                row.append(error(sol.x))
            errors[title][name] = row
            print(f"{name:22}" + "".join(f"{e:10.2g}" for e in row))
    floor = (1 / n) ** 0.5  # the standard error: n samples in two dimensions
    print(f"{'noise floor':22}{floor:10.2g}")
    picture(errors, budgets, floor, out)
    print("\nwrote", out)
    return errors, floor


def picture(errors: dict, budgets: tuple[int, ...], floor: float, out: str) -> None:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, 2), errors.items(), strict=True):
        for name, row in rows.items():
            axes.loglog(budgets, row, marker="o", label=name)
        axes.set_xticks(budgets, [str(b) for b in budgets])
        axes.set_xticks([], minor=True)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("evaluations of the score per sample", fontsize=9)
    axes.axhline(floor, color="#777777", linestyle=":", label="noise floor")
    for axes in figure.axes:
        axes.legend(fontsize=8, frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="how many samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results/solvers.png", help="the picture")
    main(**vars(parser.parse_args()))
