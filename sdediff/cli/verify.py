"""``sdediff verify``: a process of one's own, or the Langevin identity and the duality of one of the package's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .. import verify
from ..verify import Report
from ..verify.page import page
from .files import folder, output_file, write_text
from .load import load_process
from .names import DENSITY, VERIFIED
from .options import OutFolder, Seed, whole_numbers
from .waiting import waiting


def command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE.py:NAME]",
            help="A process of your own, my_sde.py:MySDE or package.module:Name, to be checked from its contract up.",
        ),
    ] = None,
    density: Annotated[
        str | None,
        typer.Option(
            "--density", "-d", metavar="DENSITY", help="The law at t = 0: ring, the default, or 'ring(modes=5)'."
        ),
    ] = None,
    process: Annotated[
        str | None,
        typer.Option(
            "--process", "-p", metavar="PROCESS", help="The forward process: VP, the default, or 'VP(beta_max=12)'."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="INTS",
            help="The shape of one state of your process, 2 or 3,8,8, where no density says it.",
        ),
    ] = None,
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
        int | None,
        typer.Option(
            "--n", min=1000, max=10**7, metavar="INT", help="Particles in each statistical test; 10000 by default."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", min=0.1, max=86_400, metavar="SECONDS", help="Instead of --n: as many as this time allows."
        ),
    ] = None,
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
    page_at: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write the reports and their plots as one page, too."),
    ] = None,
    out: OutFolder = Path("results/verify"),
) -> None:
    """Verify a process: your own from a file, or one of the package's.

    With FILE.py:NAME, everything that can be checked of a process: its contract (shapes, times, samples that do not touch
    each other), its mathematics (kernel against f and g, the Fokker-Planck equation, the reversals), and what particles
    make of it. Without, that forward plus backward is Langevin dynamics, and that the reversal runs through the exact laws.

    Each line says what it could have seen. Prints reports and PASS or FAIL, writes them as JSON and pictures; the exit code is
    1 where a check fails, 2 where what was asked for makes no sense.

    \b
    Examples:
      sdediff verify
      sdediff verify my_sde.py:MySDE --budget 20 --html report.html
      sdediff verify -d "ring(modes=5)" -p VE --t 0.5
      sdediff verify -p CLD --n 2000
      sdediff verify -d moons -p CosineVP --n 50000 --out results/moons
    """
    if n is not None and budget is not None:
        raise ValueError("--n and --budget both say how many particles: give one of them.")
    if page_at is not None:
        output_file(page_at, ".html", "--html")
    if target is None:
        if shape is not None:
            raise ValueError("--shape is for a process of your own: the density says the shape of the others.")
        what = f"{density or 'ring'} under {process or 'VP'}"
        checks = _of_the_package(density or "ring", process or "VP", t, n, budget, level, seed)
    else:
        if process is not None or t is not None:
            raise ValueError("--process and --t are for processes of the package; leave them out beside FILE.py:NAME.")
        what, checks = target, {"check_sde": _of_ones_own(target, density, shape, n, budget, level, seed)}
    out = folder(out)
    reports = {}
    for name, check in checks.items():
        with waiting(f"checking: {name.replace('_', ' ')}"):
            reports[name] = check()
        _show(reports[name], out / name)
    passed = all(report.passed for report in reports.values())
    typer.echo(f"{'PASS' if passed else 'FAIL'}: {what}. Reports and pictures: {out}")
    if page_at is not None:
        write_text(page_at, page(list(reports.values()), what))
        typer.echo(f"Page: {page_at}")
    if not passed:
        raise typer.Exit(1)


def _of_the_package(
    density: str, process: str, t: float | None, n: int | None, budget: float | None, level: float, seed: int
) -> dict[str, Callable[[], Report]]:
    law, sde = DENSITY.parse(density), VERIFIED.parse(process)
    at = float(sde.time_of(0.0)) if t is None else t
    count = 10_000 if n is None else n
    each = None if budget is None else 0.5 * budget
    return {
        "langevin_identity": lambda: verify.langevin_identity(
            sde, law, at, n=count, budget=each, level=level, seed=seed
        ),
        "duality": lambda: verify.duality(sde, law, n=count, budget=each, level=level, seed=seed),
    }


def _of_ones_own(
    target: str, density: str | None, shape: str | None, n: int | None, budget: float | None, level: float, seed: int
) -> Callable[[], Report]:
    sde = load_process(target)
    law = None if density is None else DENSITY.parse(density)
    event_shape = None if shape is None else tuple(whole_numbers(shape, "--shape", distinct=False))
    return lambda: verify.check_sde(
        sde, law, event_shape=event_shape, budget=5.0 if budget is None else budget, n=n, seed=seed, level=level
    )


def _show(report: Report, stem: Path) -> None:
    """Print a report and write it as ``stem``.json and ``stem``.png."""
    write_text(stem.with_suffix(".json"), report.to_json())
    report.plot().savefig(stem.with_suffix(".png"), dpi=150)
    typer.echo(f"{report}\n")
