"""``sdediff verify``: the Langevin identity and the duality of a process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import verify
from ..verify import Report
from .files import folder, write_text
from .names import DENSITY, PROCESS
from .options import DensityText, OutFolder, ProcessText, Seed
from .waiting import waiting


def command(
    density: DensityText = "ring",
    process: ProcessText = "VP",
    t: Annotated[
        float | None,
        typer.Option(
            "--t",
            min=0,
            metavar="FLOAT",
            help="Where to check the identity; by default where signal and noise are equal.",
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", min=1000, max=10**7, metavar="INT", help="Particles in each statistical test.")
    ] = 10_000,
    level: Annotated[
        float,
        typer.Option(
            "--level",
            min=1e-12,
            max=0.5,
            metavar="FLOAT",
            help="Probability of a false alarm, for each of the reports.",
        ),
    ] = 1e-4,
    seed: Seed = 0,
    out: OutFolder = Path("results/verify"),
) -> None:
    """Verify that forward plus backward is Langevin dynamics, and that the reversal runs through the exact laws.

    The identity is checked exactly, by derivatives in float64 at samples of p_t, and by particles; the duality by particles
    at six interior times. Each line says what it could have seen. Prints two reports and PASS or FAIL, writes them as JSON
    and pictures; the exit code is 1 where a check fails.

    \b
    Examples:
      sdediff verify
      sdediff verify -d "ring(modes=5)" -p VE --t 0.5
      sdediff verify -d moons -p CosineVP --n 50000 --out results/moons
    """
    law, sde = DENSITY.parse(density), PROCESS.parse(process)
    at = float(sde.time_of(0.0)) if t is None else t
    out = folder(out)
    checks = {
        "langevin_identity": lambda: verify.langevin_identity(sde, law, at, n=n, level=level, seed=seed),
        "duality": lambda: verify.duality(sde, law, n=n, level=level, seed=seed),
    }
    reports = {}
    for name, check in checks.items():
        with waiting(f"checking: {name.replace('_', ' ')}"):
            reports[name] = check()
        _show(reports[name], out / name)
    passed = all(report.passed for report in reports.values())
    typer.echo(f"{'PASS' if passed else 'FAIL'}: {density} under {process}. Reports and pictures: {out}")
    if not passed:
        raise typer.Exit(1)


def _show(report: Report, stem: Path) -> None:
    """Print a report and write it as ``stem``.json and ``stem``.png."""
    write_text(stem.with_suffix(".json"), report.to_json())
    report.plot().savefig(stem.with_suffix(".png"), dpi=150)
    typer.echo(f"{report}\n")
