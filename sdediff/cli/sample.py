"""``sdediff sample``: samples from a trained score, in the units of its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ..grids import Grid
from ..keyed import Keyed
from ..noise import Noise
from ..predictions import NetworkScore
from ..sample import sample
from ..score import ClassifierFree, Score
from ..solvers import Method
from ..suited import process_for, start_law, start_time, stepping
from ..training import Checkpoint, from_pretrained, load, newest_checkpoint
from ..workers import Workers
from .files import output_file, write_array
from .names import GRID, SOLVER
from .options import Device, Eta, GridText, Seed, device


def command(
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="RUN",
            help="The folder that train wrote, a pretrained one, or a file of a score.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.npy", help="The file to write.")] = Path(
        "samples.npy"
    ),
    n: Annotated[int, typer.Option("--n", "-n", min=1, metavar="INT", help="How many samples.")] = 1000,
    solver: Annotated[str, typer.Option("--solver", "-s", metavar="SOLVER", help="How to solve.")] = "EulerMaruyama",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, metavar="INT", help="For solvers that take them; by default 200.", show_default=False
        ),
    ] = None,
    grid: GridText = "Uniform",
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

    The samples are un-standardised: they have the units and the shape of the data that train was given. Sample i depends on
    the seed and on i alone, so several processes share the work and write the same set: torchrun --nproc-per-node 2 -m
    sdediff sample ... Ctrl-C keeps the batches that are finished.

    \b
    Examples:
      sdediff sample --checkpoint run --n 5000
      sdediff sample -c run -s "Scipy('RK45')" --out flow.npy
      sdediff sample -c run --label 1 --guidance 2 -s DPMSolverPP2M --grid LogSNR --eta 0 --steps 20
    """
    workers = Workers.found()
    method, where = SOLVER.parse(solver), device(workers.device(dev))
    nodes = GRID.deferred(grid, "steps")
    out = output_file(out, ".npy")
    kept = _read(checkpoint, where)
    score = _conditional(kept.score, label, guidance)
    first, last = workers.share(n)
    _check_shared(workers, method, n)
    noise, m = Keyed(seed).rows(first, last), last - first
    solution = sample(
        process_for(method, kept.score.sde, score, eta), m, solver=method, **_stepping(method, steps, nodes),
        batch_size=min(m, batch_size), noise=noise, progress=workers.rank == 0, t0=start_time(kept.score.sde),
        x=_start(kept, noise, m, where), cond=None if label is None else torch.full((m,), label, device=where),
    )  # fmt: skip
    x = workers.gathered(solution.x if kept.standardisation is None else kept.standardisation.undo(solution.x))
    if x is not None:
        write_array(out, x)
        stats = solution.stats
        nfe = float(torch.as_tensor(stats["nfe"]).double().mean())
        typer.echo(
            f"{len(x):,} samples of shape {tuple(x.shape[1:])} in {stats['seconds']:.1f} s, {nfe:.4g} score evaluations "
            f"each; mean {float(x.mean()):.4g}, standard deviation {float(x.std()):.4g}. Written: {out}"
        )
    if solution.stats.get("interrupted"):
        typer.echo(f"Stopped: {len(solution.x):,} of {m:,} samples were finished.")
        raise typer.Exit(130)


def _read(path: Path, where: torch.device) -> Checkpoint:
    """A score from a file, from a pretrained folder, or from a training that is not at its end."""
    if not path.is_dir():
        return load(path, device=where)
    newest = None if (path / "config.json").is_file() else newest_checkpoint(path)
    return from_pretrained(path if newest is None else newest, device=where)


def _start(kept: Checkpoint, noise: Noise, n: int, where: torch.device) -> Tensor:
    """Starting states in the law that data of mean 0 and the training data's standard deviation have there."""
    event, std = tuple(kept.score.event_shape or ()), 1.0 if kept.scales is None else kept.scales.sigma_data
    law = start_law(kept.score.sde, event, std=std)
    return law.from_noise(noise.initial((n, *event), where, kept.score.dtype or torch.float32))


def _check_shared(workers: Workers, method: Method, n: int) -> None:
    if workers.count > 1 and method.couples_samples:
        raise ValueError(
            f"{type(method).__name__} couples the samples of a batch, so {workers.count} workers would not make the set of "
            "one: use a fixed-step solver, or one worker."
        )
    if n < workers.count:
        raise ValueError(f"--n {n} samples cannot be shared by {workers.count} workers.")


def _stepping(method: Method, steps: int | None, grid: Callable[[int], Grid]) -> dict[str, Any]:
    if method.chooses_steps and steps is not None:
        raise ValueError(f"{type(method).__name__} chooses its own steps: leave out --steps.")
    return stepping(method, 200 if steps is None else steps, grid)


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
