"""``sdediff compare``: solvers side by side where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..compare import compare
from .files import folder, write_text
from .names import DENSITY, GRID, PROCESS, SOLVER
from .options import DensityText, Eta, GridText, OutFolder, ProcessText, Seed, whole_numbers

_DEFAULT = ("EulerMaruyama", "Heun", "Scipy")


def command(
    density: DensityText = "ring",
    process: ProcessText = "VP",
    solver: Annotated[
        list[str] | None,
        typer.Option(
            "--solver",
            "-s",
            metavar="SOLVER",
            help="A solver; repeat it for more. By default EulerMaruyama, Heun and Scipy.",
        ),
    ] = None,
    flow: Annotated[
        list[str] | None,
        typer.Option(
            "--flow", "-f", metavar="SOLVER", help="One that could take noise, to solve the flow nevertheless."
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option("--steps", metavar="INTS", help="Numbers of steps, for solvers that take them.")
    ] = "10,20,50,100",
    grid: GridText = "Uniform",
    n: Annotated[int, typer.Option("--n", min=100, max=10**6, metavar="INT", help="How many samples.")] = 4000,
    eta: Eta = 1.0,
    seed: Seed = 0,
    out: OutFolder = Path("results/compare"),
) -> None:
    """Compare solvers on a density and a process whose law is known at all times.

    Each solver starts from exact samples of p_T with the exact score. Its samples are held against the exact law (energy
    distance, sliced W2, shares and widths of the modes), beside the noise floor: what two exact samples say of each
    other. ODE solvers are also held against the exact map of the flow. Prints a table; writes compare.json and
    compare.png.

    \b
    Examples:
      sdediff compare
      sdediff compare -d moons -p "VP(beta_max=12)" -s Heun -s RK4 -f DPMSolverPP2M --steps 5,10,20 --grid LogSNR
      sdediff compare -s EulerMaruyama -s "PredictorCorrector(EulerMaruyama(), Langevin(r=0.1))"
    """
    counts = whole_numbers(steps, "--steps")
    law, sde = DENSITY.parse(density), PROCESS.parse(process)
    methods = {text: SOLVER.parse(text) for text in solver or ([] if flow else _DEFAULT)}
    without_noise = {f"{text} (flow)" if text in methods else text: SOLVER.parse(text) for text in flow or []}
    out = folder(out)
    found = compare(
        sde, law, methods | without_noise, steps=counts, grid=GRID.deferred(grid, "steps"), n=n, eta=eta,
        on_flow=without_noise, seed=seed, progress=True,
    )  # fmt: skip
    found = replace(found, title=f"{density} under {process}")
    write_text(out / "compare.json", found.to_json())
    found.plot().savefig(out / "compare.png", dpi=150)
    typer.echo(found)
    typer.echo(f"Written: {out / 'compare.json'}, {out / 'compare.png'}")
