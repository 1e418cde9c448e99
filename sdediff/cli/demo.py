"""``sdediff demo``: the whole way, on a ring and on real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..demo import FULL, QUICK, run
from ..threads import one_thread
from .files import folder
from .options import OutFolder, Seed


def command(
    out: OutFolder = Path("results/demo"),
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="All of it in seconds, on sizes that show nothing.")] = False,
) -> None:
    """Train on handwritten digits, sample in several ways, and verify the identity behind it, in about two minutes.

    A ring with an exact score goes to noise and back, and the Langevin identity is verified on it. Then a network learns
    the digits that ship inside scikit-learn, and Euler-Maruyama, predictor-corrector, DPM-Solver++ and SciPy sample from
    that one score. Writes pictures, an animation, results.json and report.html, which holds everything and works offline.

    \b
    Examples:
      sdediff demo
      sdediff demo --out my/folder --seed 1
    """
    out = folder(out)
    with one_thread():
        results = run(out, QUICK if quick else FULL, seed=seed, say=typer.echo)
    typer.echo(f"Done in {results['seconds']:.0f} s. Pictures and numbers: {out}")
    typer.echo(f"Open the report: {(out / 'report.html').resolve()}")
    if not results["ring"]["identity"]["passed"]:
        raise typer.Exit(1)
