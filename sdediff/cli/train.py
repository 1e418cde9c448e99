"""``sdediff train``: a score for an array of your own."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from .. import __version__, plot
from ..data import Scales, Standardisation
from ..threads import one_thread
from ..training import DenoisingLoss, Fit, Plan, Recorder, TensorBoard, Trackio, Trainer, save_pretrained
from ..workers import Workers
from .config import Config
from .files import folder, read_data, read_labels, write_text
from .names import NETWORK, PREDICTION, PROCESS, TIMES, WEIGHTING
from .options import Device, ProcessText, Seed, device

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def command(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE.npy", help="The samples, shape (N, *event).", show_default=False)
    ],
    config: Config = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where to write; a training begun there goes on."),
    ] = Path("run"),
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
            help="Which error counts. ScorePrediction wants NoiseError, Preconditioned wants Karras.",
        ),
    ] = "Simple",
    times: Annotated[str, typer.Option("--times", metavar="TIMES", help="The law of the training times.")] = "Uniform",
    network: Annotated[
        str, typer.Option("--network", metavar="NETWORK", help="MLP, or 'UNet(channels=(32, 64))' for images.")
    ] = "MLP",
    width: Annotated[
        int | None,
        typer.Option("--width", min=1, metavar="INT", help="Of the MLP's hidden layers: 256.", show_default=False),
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, metavar="INT", help="Its residual blocks: 4.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="INT", help="Updates of the weights.")] = 5000,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="INT", help="Samples in each update, over all workers.")
    ] = 256,
    lr: Annotated[float, typer.Option("--lr", metavar="FLOAT", help="The largest learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option("--warmup", min=0, metavar="INT", help="Steps in which it rises.")] = 100,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0, metavar="FLOAT", help="That of AdamW.")] = 0.0,
    clip: Annotated[float, typer.Option("--clip", metavar="FLOAT", help="The largest norm of the gradient.")] = 1.0,
    ema: Annotated[float, typer.Option("--ema", metavar="FLOAT", help="Decay of the averaged weights.")] = 0.999,
    held_out: Annotated[
        float, typer.Option("--held-out", metavar="FLOAT", help="The part of the data kept to measure the loss on.")
    ] = 0.05,
    drop_labels: Annotated[
        float, typer.Option("--drop-labels", metavar="FLOAT", help="How often a label is left out, for guidance.")
    ] = 0.1,
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="DTYPE", help="What the network computes in: float32, bfloat16, float16."),
    ] = "float32",
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every", min=1, metavar="INT", help="Steps between checkpoints: a twentieth.", show_default=False
        ),
    ] = None,
    shared_scale: Annotated[
        bool | None,
        typer.Option(
            "--shared-scale/--own-scales",
            help="Standardise with one mean and deviation, or one per coordinate. By default shared for samples with two or "
            "more axes, such as images.",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Curves for TensorBoard, in the folder.")] = False,
    trackio: Annotated[
        str | None, typer.Option("--trackio", metavar="PROJECT", help="Curves for trackio.", show_default=False)
    ] = None,
    dev: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a score network on a .npy file.

    The data are standardised, and the score remembers how, so that samples come back in your units. With --labels
    the score is conditional, and unconditional too. Stopped by whatever means, the same command goes on where it was.
    Writes config.json and model.safetensors, checkpoints, metrics.jsonl, train.json, loss.csv and loss.png. Several
    processes share the work: torchrun --nproc-per-node 2 -m sdediff train ...

    \b
    Examples:
      sdediff train --data data.npy --out run
      sdediff train --data images.npy --labels labels.npy --out run --width 512
      sdediff train --data data.npy --out run -p EDM --prediction Preconditioned --weighting Karras --times LogNormal
    """
    x = read_data(data)
    cond = None if labels is None else read_labels(labels, len(x))
    workers = Workers.found()
    where = device(workers.device(dev))
    standardisation = Standardisation.fit(x, shared=x.ndim > 2 if shared_scale is None else shared_scale)
    x, shape = standardisation.apply(x), list(x.shape)
    scales = Scales.of(x)
    classes = None if cond is None else int(cond.max()) + 1
    sde = PROCESS.parse(process)
    make = PREDICTION.deferred(_sized(prediction, "Preconditioned", scales), "sde", "net")
    weight, law = WEIGHTING.parse(_sized(weighting, "Karras", scales)), TIMES.parse(times)
    if precision not in _PRECISIONS:
        raise ValueError(f"--precision {precision} must be {', '.join(_PRECISIONS)}.")
    plan = Plan(
        steps, batch_size, lr, warmup, weight_decay=weight_decay, clip=clip, ema=ema, held_out=held_out, seed=seed,
        precision=_PRECISIONS[precision], save_every=save_every,
    )  # fmt: skip
    torch.manual_seed(seed)
    score = make(sde, _network(network, width, depth, tuple(shape[1:]), classes)).to(where)
    loss = DenoisingLoss(score, weight, law, drop_cond=0.0 if cond is None else drop_labels)
    out = folder(out)
    trainer = Trainer(
        score, x, plan, cond=cond, loss=loss, folder=out, standardisation=standardisation, scales=scales,
        recorders=_recorders(out, tensorboard, trackio) if workers.rank == 0 else (),
        callback=_lines(steps) if workers.rank == 0 and not sys.stderr.isatty() else None,
    )  # fmt: skip
    if trainer.step > 0 and workers.rank == 0:
        typer.echo(f"Going on at step {trainer.step:,} of {steps:,}.")
    with one_thread() if where.type == "cpu" and network.startswith("MLP") else nullcontext():
        reached = trainer.run()
    if len(reached.losses) == 0:
        raise KeyboardInterrupt
    if workers.rank == 0:
        save_pretrained(out, reached.score, standardisation, scales)
        first, last = scales.times(sde)
        about = {
            "data": str(data), "shape": shape, "labels": None if labels is None else str(labels), "classes": classes,
            "process": process, "prediction": prediction, "weighting": weighting, "times": times, "network": network,
            "steps": len(reached.losses), "batch_size": batch_size, "width": width, "depth": depth, "lr": lr,
            "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "ema": ema, "precision": precision, "seed": seed,
            "shared_scale": standardisation.mean.ndim == 0, "workers": workers.count, "held_out": reached.held_out,
            "suggested": {"sigma_data": scales.sigma_data, "t_min": first, "t_max": last}, "seconds": reached.seconds,
            "loss": float(reached.losses[-100:].mean()), "version": __version__, "torch": torch.__version__,
        }  # fmt: skip
        _write(out, reached, about)
        done = len(reached.losses) == steps
        typer.echo(
            f"{len(reached.losses):,} steps in {reached.seconds:.0f} s, loss {about['loss']:.4f}. Written to {out}: "
            "model.safetensors, train.json, loss.csv, loss.png. "
            + (f"Next: sdediff sample --checkpoint {out}" if done else f"Of {steps:,}: the same command goes on there.")
        )
    if len(reached.losses) < steps:
        raise typer.Exit(130)  # Ctrl-C


def _lines(steps: int) -> Callable[[int, float], None]:
    """A line for every tenth of the way, where there is no terminal for a bar."""

    def say(step: int, loss: float) -> None:
        if (step + 1) * 10 // steps > step * 10 // steps:
            typer.echo(f"step {step + 1:,} of {steps:,}, loss {loss:.4f}", err=True)

    return say


def _sized(text: str, name: str, scales: Scales) -> str:
    """The text, with the data's own sigma_data where a bare name leaves it open."""
    return f"{name}(sigma_data={scales.sigma_data:.6g})" if text.strip() in (name, f"{name}()") else text


def _network(text: str, width: int | None, depth: int | None, event: tuple[int, ...], classes: int | None) -> nn.Module:
    sizes = {name: value for name, value in (("width", width), ("depth", depth)) if value is not None}
    if sizes and text.strip() != "MLP":
        raise ValueError(f"--width and --depth are those of --network MLP; write them into {text!r}.")
    more: dict[str, Any] = sizes | {} if classes is None else sizes | {"classes": classes}
    return NETWORK.deferred(text, "event_shape")(event, **more)


def _recorders(out: Path, tensorboard: bool, trackio: str | None) -> list[Recorder]:
    found: list[Recorder] = [TensorBoard(out / "tensorboard")] if tensorboard else []
    return found if trackio is None else [*found, Trackio(trackio)]


def _write(out: Path, reached: Fit, about: dict[str, Any]) -> None:
    write_text(out / "train.json", json.dumps(about, indent=2))
    write_text(out / "loss.csv", _table(reached.losses))
    plot.loss_curve(reached.losses, reached.held_out).savefig(out / "loss.png", dpi=150)


def _table(losses: Tensor) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("step", "loss"))
    rows.writerows(enumerate(losses.tolist(), 1))
    return text.getvalue()
