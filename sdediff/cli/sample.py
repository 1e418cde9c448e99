"""``sdediff sample``: samples from a trained score, in the units of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ..predictions import NetworkScore
from ..sample import sample
from ..score import ClassifierFree, Score
from ..solvers import Integrator, Method
from ..suited import process_for, start, start_time
from ..training import load
from .files import output_file, write_array
from .names import SOLVER
from .options import Device, Eta, Seed, device
from .train import CHECKPOINT


def command(
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="RUN",
            help="The folder that train wrote, or the file in it.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.npy", help="The file to write.")] = Path(
        "samples.npy"
    ),
    n: Annotated[int, typer.Option("--n", min=1, metavar="INT", help="How many samples.")] = 1000,
    solver: Annotated[str, typer.Option("--solver", "-s", metavar="SOLVER", help="How to solve.")] = "EulerMaruyama",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, metavar="INT", help="For solvers that take them; by default 200.", show_default=False
        ),
    ] = None,
    eta: Eta = 1.0,
    label: Annotated[
        int | None, typer.Option("--label", min=0, metavar="INT", help="The class, of a score trained with labels.")
    ] = None,
    guidance: Annotated[
        float,
        typer.Option("--guidance", metavar="FLOAT", help="Weight of classifier-free guidance; 1 is the plain score."),
    ] = 1.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="INT", help="Samples solved at once: bounds memory.")
    ] = 10_000,
    dev: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Sample a trained score.

    The samples are un-standardised: they have the units and the shape of the data that train was given. Ctrl-C keeps the
    batches that are finished.

    \b
    Examples:
      sdediff sample --checkpoint run --n 5000
      sdediff sample -c run -s "Scipy('RK45')" --out flow.npy
      sdediff sample -c run --label 1 --guidance 2 -s DPMSolverPP2M --eta 0 --steps 20
    """
    method, where = SOLVER.parse(solver), device(dev)
    out = output_file(out, ".npy")
    kept = load(checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint, device=where)
    score = _conditional(kept.score, label, guidance)
    sde = kept.score.sde
    process = process_for(method, sde, score, eta)
    states = start(sde, n, tuple(kept.score.event_shape or ()), std=1.0, seed=seed).to(where)
    solution = sample(
        process, n, solver=method, steps=_steps(method, steps), batch_size=min(n, batch_size), seed=seed + 1, progress=True,
        t0=start_time(sde), x=states, cond=None if label is None else torch.full((n,), label, device=where),
    )  # fmt: skip
    x = solution.x if kept.standardisation is None else kept.standardisation.undo(solution.x)
    write_array(out, x)
    stats = solution.stats
    nfe = float(torch.as_tensor(stats["nfe"]).double().mean())
    typer.echo(
        f"{len(x):,} samples of shape {tuple(x.shape[1:])} in {stats['seconds']:.1f} s, {nfe:.4g} score evaluations each; "
        f"mean {float(x.mean()):.4g}, standard deviation {float(x.std()):.4g}. Written: {out}"
    )
    if stats.get("interrupted"):
        typer.echo(f"Stopped: {len(x):,} of {n:,} samples were finished.")
        raise typer.Exit(130)


def _steps(method: Method, steps: int | None) -> int | None:
    chooses = isinstance(method, Integrator) and not method.fixed
    return 200 if steps is None and not chooses else steps


def _conditional(score: NetworkScore, label: int | None, guidance: float) -> Score:
    """The score, guided if asked for; refused where label and network do not fit."""
    classes = getattr(score.net, "classes", None)
    if label is not None and not (classes and label < classes):
        known = f"it knows classes 0 to {classes - 1}" if classes else "it was trained without labels"
        raise ValueError(f"--label {label} does not fit this checkpoint: {known}.")
    if guidance == 1:
        return score
    if label is None:
        raise ValueError("--guidance needs a --label to guide towards.")
    return ClassifierFree(score, guidance, score.net.null)
