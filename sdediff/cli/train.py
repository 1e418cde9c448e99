"""``sdediff train``: a score for an array of your own."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from .. import __version__, plot
from ..data import Standardisation
from ..networks import MLP
from ..training import DenoisingLoss, fit, save
from .files import folder, read_data, read_labels, write_text
from .names import PREDICTION, PROCESS, WEIGHTING
from .options import Device, ProcessText, Seed, device

CHECKPOINT = "checkpoint.safetensors"


def command(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE.npy", help="The samples, shape (N, *event).", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Where to write; made if it is not there.", show_default=False
        ),
    ],
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE.npy", help="A class 0, 1, ... for each sample, shape (N,).")
    ] = None,
    process: ProcessText = "VP",
    prediction: Annotated[
        str, typer.Option("--prediction", metavar="PREDICTION", help="What the network predicts.")
    ] = "VelocityPrediction",
    weighting: Annotated[
        str,
        typer.Option(
            "--weighting",
            metavar="WEIGHTING",
            help="Which error counts. ScorePrediction wants NoiseError, Preconditioned 'Karras(sigma_data=1)'.",
        ),
    ] = "Simple",
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="INT", help="Updates of the weights.")] = 5000,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="INT", help="Samples in each update.")
    ] = 256,
    width: Annotated[int, typer.Option("--width", min=1, metavar="INT", help="Of the hidden layers.")] = 256,
    depth: Annotated[int, typer.Option("--depth", min=1, metavar="INT", help="Residual blocks.")] = 4,
    lr: Annotated[float, typer.Option("--lr", metavar="FLOAT", help="The largest learning rate.")] = 1e-3,
    ema: Annotated[float, typer.Option("--ema", metavar="FLOAT", help="Decay of the averaged weights.")] = 0.999,
    shared_scale: Annotated[
        bool | None,
        typer.Option(
            "--shared-scale/--own-scales",
            help="Standardise with one mean and deviation, or one per coordinate. By default shared for samples with two or "
            "more axes, such as images.",
            show_default=False,
        ),
    ] = None,
    dev: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a score network on a .npy file.

    The data are standardised, and the checkpoint remembers how, so that samples come back in your units. With --labels
    the score is conditional, and unconditional too. Ctrl-C keeps what is reached. Writes checkpoint.safetensors,
    train.json, loss.csv and loss.png.

    \b
    Examples:
      sdediff train --data data.npy --out run
      sdediff train --data images.npy --labels labels.npy --out run --width 512
      sdediff train --data data.npy --out run -p EDM --prediction DataPrediction --steps 20000
    """
    x = read_data(data)
    cond = None if labels is None else read_labels(labels, len(x))
    sde, make = PROCESS.parse(process), PREDICTION.deferred(prediction, "sde", "net")
    weight, where = WEIGHTING.parse(weighting), device(dev)
    out = folder(out)
    standardisation = Standardisation.fit(x, shared=x.ndim > 2 if shared_scale is None else shared_scale)
    classes = None if cond is None else int(cond.max()) + 1
    torch.manual_seed(seed)
    net = MLP(tuple(x.shape[1:]), width=width, depth=depth, classes=classes)
    score = make(sde, net).to(where)
    loss = DenoisingLoss(score, weighting=weight, drop_cond=0.0 if cond is None else 0.1)
    reached = fit(
        score,
        standardisation.apply(x),
        cond=cond,
        loss=loss,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        seed=seed,
    )
    if len(reached.losses) == 0:
        raise KeyboardInterrupt
    save(out / CHECKPOINT, reached.score, standardisation)
    about = {
        "data": str(data), "shape": list(x.shape), "labels": None if labels is None else str(labels), "classes": classes,
        "process": process, "prediction": prediction, "weighting": weighting, "steps": len(reached.losses),
        "batch_size": batch_size, "width": width, "depth": depth, "lr": lr, "ema": ema, "seed": seed,
        "shared_scale": standardisation.mean.ndim == 0, "held_out": reached.held_out, "seconds": reached.seconds,
        "loss": float(reached.losses[-100:].mean()), "version": __version__, "torch": torch.__version__,
    }  # fmt: skip
    write_text(out / "train.json", json.dumps(about, indent=2))
    write_text(out / "loss.csv", _table(reached.losses))
    plot.loss_curve(reached.losses, reached.held_out).savefig(out / "loss.png", dpi=150)
    typer.echo(
        f"{len(reached.losses):,} steps in {reached.seconds:.0f} s, loss {about['loss']:.4f}. Written to {out}: {CHECKPOINT}, "
        f"train.json, loss.csv, loss.png. Next: sdediff sample --checkpoint {out}"
    )
    if len(reached.losses) < steps:
        raise typer.Exit(130)  # Ctrl-C


def _table(losses: Tensor) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("step", "loss"))
    rows.writerows(enumerate(losses.tolist(), 1))
    return text.getvalue()
