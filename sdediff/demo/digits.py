"""The second half of the demo: handwritten digits, and a score that is learned.

The data ship inside scikit-learn: 1,797 images of 8 x 8 pixels. A network is trained on four fifths of them, all solvers
sample from that one score, and the samples are held against the fifth that it never saw.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import plot
from ..densities import Empirical
from ..exact import ExactScore
from ..metrics import NoiseFloor, energy_distance
from ..networks import MLP
from ..plot.style import quiet
from ..predictions import NetworkScore, VelocityPrediction
from ..processes import CosineVP
from ..sample import sample
from ..score import Score
from ..sde import SDE
from ..solution import Solution
from ..solvers import DPMSolverPP2M, EulerMaruyama, Langevin, Method, PredictorCorrector, Scipy
from ..suited import process_for, start, start_time
from ..training import DenoisingLoss, Fit, fit
from ..training import save as save_checkpoint
from .chapter import Chapter, Effort, Picture, save
from .page import table

_CLASSES = 10
_STD = 0.75  # of the pixels


@dataclass(frozen=True)
class Digits:
    """The images (N, 8, 8) in [-1, 1] and what they show, in two parts."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @staticmethod
    def load(seed: int) -> Digits:
        """Four fifths of the images to train on, one fifth to test against.

        Raises:
            ImportError: scikit-learn is not there.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("The digits come with scikit-learn, an extra: pip install 'sdediff[train]'.") from error
        bunch = load_digits()
        images = torch.tensor(bunch.images, dtype=torch.float32) / 8 - 1  # 17 grey values, 0 to 16
        labels = torch.tensor(bunch.target)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        test, train = order[: len(images) // 5], order[len(images) // 5 :]
        return Digits(images[train], labels[train], images[test], labels[test])


@dataclass(frozen=True)
class Entry:
    """One line of the solver table.

    Attributes:
        solver, kind, setting: what was run.
        nfe: score evaluations per sample.
        seconds: for all samples.
        energy: the energy distance to the test digits.
        nearest: the median distance to the nearest training image.
        read: the share of samples that a classifier of real digits reads as the class that was asked for.
    """

    solver: str
    kind: str
    setting: str
    nfe: float
    seconds: float
    energy: float
    nearest: float
    read: float


def digits_chapter(digits: Digits, out: Path, effort: Effort, seed: int, say: Callable[[str], None]) -> Chapter:
    """Train, sample with four kinds of solver, compare with digits never seen."""
    started = time.perf_counter()
    sde = CosineVP()
    say(f"Training on {len(digits.train):,} handwritten digits")
    reached = _train(sde, digits, effort, seed)
    save_checkpoint(out / "digits.safetensors", reached.score)
    save(plot.loss_curve(reached.losses, reached.held_out), out / "digits_loss.png", effort.dpi)
    say("Sampling them with each solver")
    judge = _Judge(digits)
    labels = digits.train_labels[: effort.samples]
    entries, runs = _entries(reached.score, labels, judge, effort, seed)
    ideal_score = ExactScore(sde, Empirical(digits.train))
    ideal = _sampled(ideal_score, EulerMaruyama(), len(digits.test), None, effort.budgets[-1], seed)
    ideal_entry = judge.entry("EulerMaruyama", "reverse SDE", f"{effort.budgets[-1]} steps", ideal, digits.test_labels)
    floor = _floor(digits, len(labels), seed)
    _solver_picture(entries, floor.upper, out / "digits_solvers.png", effort.dpi)
    _sheets(digits, runs, labels, out / "digits_samples.png", effort.dpi)
    _nearest(digits, runs["EulerMaruyama"].x, ideal.x, out / "digits_nearest.png", effort.dpi)
    _strips(sde, reached.score, effort, seed, out / "digits_paths.png")
    numbers = {
        "train": len(digits.train),
        "test": len(digits.test),
        "process": "CosineVP",
        "prediction": "velocity",
        "width": effort.width,
        "depth": effort.depth,
        "parameters": sum(p.numel() for p in reached.score.parameters()),
        "steps": len(reached.losses),
        "train_seconds": reached.seconds,
        "held_out_loss": reached.held_out[-1][1] if reached.held_out else None,
        "samples": len(labels),
        "floor": {"mean": floor.mean, "upper": floor.upper, "this_split": judge.energy(digits.train[: len(labels)])},
        "nearest_of_test": judge.nearest(digits.test),
        "read_of_test": judge.read(digits.test, digits.test_labels),
        "solvers": [asdict(entry) for entry in entries],
        "ideal_denoiser": asdict(ideal_entry) | {"read": None},  # it was asked for nothing
        "seconds": time.perf_counter() - started,
    }
    return _chapter(numbers, entries, ideal_entry)


# ---- the score ----------------------------------------------------------------------------------------------------


def _train(sde: CosineVP, digits: Digits, effort: Effort, seed: int) -> Fit:
    torch.manual_seed(seed)
    score = VelocityPrediction(sde, MLP((8, 8), width=effort.width, depth=effort.depth, classes=_CLASSES))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*never change")  # corners of digits are always empty
        reached = fit(
            score, digits.train, cond=digits.train_labels, loss=DenoisingLoss(score, drop_cond=0.1), steps=effort.steps,
            batch_size=128, lr=2e-3, seed=seed,
        )  # fmt: skip
    if len(reached.losses) < effort.steps:
        raise KeyboardInterrupt  # which training itself takes as a wish to go on with what there is
    return reached


# ---- samples ------------------------------------------------------------------------------------------------------


def _solvers(effort: Effort) -> dict[str, tuple[Method, Sequence[tuple[str, int | None]]]]:
    """Each solver, and the settings it is run with; the last is shown in pictures."""
    budgets = effort.budgets
    return {
        "EulerMaruyama": (EulerMaruyama(), [(f"{k} steps", k) for k in budgets]),
        "PredictorCorrector": (
            PredictorCorrector(EulerMaruyama(), Langevin(r=0.1)),
            [(f"{max(1, k // 2)} steps", max(1, k // 2)) for k in budgets],
        ),
        "DPMSolverPP2M": (DPMSolverPP2M(), [(f"{max(2, k // 5)} steps", max(2, k // 5)) for k in budgets[:-1]]),
    } | {
        f"Scipy RK45, {tolerance:g}": (Scipy("RK45", rtol=tolerance, atol=tolerance), [(f"rtol {tolerance:g}", None)])
        for tolerance in effort.tolerances
    }


def _sampled(
    score: Score, solver: Method, n: int, labels: Tensor | None, steps: int | None, seed: int, **save_at: Any
) -> Solution:
    sde = score.sde
    return sample(
        _process(solver, score), n, solver=solver, t0=start_time(sde), x=start(sde, n, (8, 8), std=_STD, seed=seed + 2),
        steps=steps, cond=labels, seed=seed + 3, progress=True, **save_at,
    )  # fmt: skip


def _process(solver: Method, score: Score) -> SDE:
    """The flow for those that solve it best, the reverse SDE for the others."""
    return process_for(solver, score.sde, score, eta=0.0 if isinstance(solver, DPMSolverPP2M) else 1.0)


def _entries(
    score: NetworkScore, labels: Tensor, judge: _Judge, effort: Effort, seed: int
) -> tuple[list[Entry], dict[str, Solution]]:
    """The lines of the table, and the last run of each solver."""
    entries, runs = [], {}
    for name, (solver, settings) in _solvers(effort).items():
        short = name.partition(",")[0]
        for setting, steps in settings:
            runs[short] = _sampled(score, solver, len(labels), labels, steps, seed)
            kind = "flow" if _process(solver, score).direction == 0 else "reverse SDE"
            entries.append(judge.entry(short, kind, setting, runs[short], labels))
    return entries, runs


class _Judge:
    """What is measured of samples, with real digits as the measure."""

    def __init__(self, digits: Digits):
        from sklearn.svm import SVC

        self.digits = digits
        self.reader = SVC(gamma=0.064).fit(digits.train.flatten(1).numpy(), digits.train_labels.numpy())

    def entry(self, solver: str, kind: str, setting: str, run: Solution, labels: Tensor) -> Entry:
        nfe = float(torch.as_tensor(run.stats["nfe"]).double().mean())
        energy = self.energy(run.x)
        return Entry(
            solver, kind, setting, nfe, run.stats["seconds"], energy, self.nearest(run.x), self.read(run.x, labels)
        )

    def energy(self, x: Tensor) -> float:
        return energy_distance(x, self.digits.test)

    def nearest(self, x: Tensor) -> float:
        return float(torch.cdist(x.flatten(1), self.digits.train.flatten(1)).min(1).values.median())

    def read(self, x: Tensor, labels: Tensor) -> float:
        return float((torch.as_tensor(self.reader.predict(x.flatten(1).numpy())) == labels).double().mean())


def _floor(digits: Digits, n: int, seed: int, repeats: int = 40) -> NoiseFloor:
    """The energy distance between real digits and real digits: the data split at random again, into n and as many to test."""
    images, generator = torch.cat([digits.train, digits.test]), torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(repeats):
        order = torch.randperm(len(images), generator=generator)
        test, others = order[: len(digits.test)], order[len(digits.test) :]
        seen.append(energy_distance(images[others[:n]], images[test]))
    values = torch.tensor(seen, dtype=torch.float64).sort().values
    return NoiseFloor(float(values.mean()), float(values.quantile(0.95)), values)


# ---- pictures -----------------------------------------------------------------------------------------------------


def _solver_picture(entries: Sequence[Entry], floor: float, path: Path, dpi: int) -> None:
    figure, (ax,) = plot.canvas(7.5, 3.8)
    for colour, name in zip(plot.COLOURS, dict.fromkeys(entry.solver for entry in entries), strict=False):
        points = sorted((entry.nfe, entry.energy) for entry in entries if entry.solver == name)
        ax.plot(*zip(*points, strict=True), "o-", color=colour, markersize=5, linewidth=1.5, label=name)
    ax.axhspan(-floor, floor, color="0.5", alpha=0.18, linewidth=0)
    ax.annotate("real digits", (0.99, 0), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=floor)
    energies = [floor, -floor, *(entry.energy for entry in entries)]
    ax.set_ylim(1.2 * min(energies), 1.4 * max(energies))
    ax.set_xlabel("score evaluations per sample", fontsize=8)
    ax.set_ylabel("energy distance to test digits", fontsize=8)
    ax.legend(frameon=False, fontsize=8)
    quiet(ax)
    save(figure, path, dpi)


def _sheets(digits: Digits, runs: dict[str, Solution], labels: Tensor, path: Path, dpi: int) -> None:
    """Real digits and those of each solver, one column per class."""
    sheets = {"real, never seen in training": _by_class(digits.test, digits.test_labels)}
    sheets |= {name: _by_class(run.x, labels) for name, run in runs.items() if name != "DPMSolverPP2M"}
    figure, axes = plot.canvas(9.0, 7.6, 2, 2)
    for ax, (name, images) in zip(axes, sheets.items(), strict=True):
        plot.image_sheet(images, columns=_CLASSES, low=-1, high=1, title=name, ax=ax)
    save(figure, path, dpi)


def _by_class(images: Tensor, labels: Tensor, rows: int = 8) -> Tensor:
    """The first images of each class, (rows * 10, 8, 8), one column per class; black where there are too few."""
    sheet = torch.full((rows, _CLASSES, *images.shape[1:]), -1.0)
    for k in range(_CLASSES):
        own = images[labels == k][:rows]
        sheet[: len(own), k] = own
    return sheet.flatten(0, 1)


def _nearest(digits: Digits, learned: Tensor, ideal: Tensor, path: Path, dpi: int, columns: int = 14) -> None:
    """Samples over their nearest training images."""
    figure, axes = plot.canvas(9.0, 3.2, 2, 1)
    titles = ("learned score: samples, and below each its nearest training image", "ideal denoiser of the training set")
    for ax, title, x in zip(axes, titles, (learned, ideal), strict=True):
        x = x[:columns]
        near = digits.train[torch.cdist(x.flatten(1), digits.train.flatten(1)).argmin(1)]
        plot.image_sheet(torch.cat([x, near]), columns=len(x), low=-1, high=1, title=title, ax=ax)
    save(figure, path, dpi)


def _strips(sde: CosineVP, score: NetworkScore, effort: Effort, seed: int, path: Path) -> None:
    """From one noise to a digit, by each solver."""
    times = [start_time(sde), 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, sde.t_min]
    labels = torch.tensor([0, 4])
    figure, axes = plot.canvas(9.0, 6.4, 3, 1)
    for ax, (name, (solver, settings)) in zip(axes, _shown(effort).items(), strict=True):
        run = _sampled(score, solver, len(labels), labels, settings[-1][1], seed, save_at=times)
        plot.image_sheet(run.xs.transpose(0, 1).flatten(0, 1), columns=len(times), low=-1, high=1, title=name, ax=ax)
    save(figure, path, effort.dpi)


def _shown(effort: Effort) -> dict[str, tuple[Method, Sequence[tuple[str, int | None]]]]:
    """The three kinds of solver of the pictures: each name once, with its best setting."""
    every = {name.partition(",")[0]: value for name, value in _solvers(effort).items()}
    return {name: every[name] for name in ("EulerMaruyama", "PredictorCorrector", "Scipy RK45")}


# ---- words --------------------------------------------------------------------------------------------------------


def _chapter(numbers: dict[str, Any], entries: Sequence[Entry], ideal: Entry) -> Chapter:
    floor, shown = numbers["floor"], [entry for entry in entries if entry.solver == "EulerMaruyama"][-1]
    header = ("solver", "solves", "setting", "NFE", "seconds", "energy distance", "nearest", "read as asked")
    rows = [_cells(entry, floor["upper"]) for entry in entries]
    real = (
        "real digits", "", "", "", "", f"{floor['this_split']:.4f}, 95 % < {floor['upper']:.4f}",
        f"{numbers['nearest_of_test']:.2f}", f"{numbers['read_of_test']:.1%}",
    )  # fmt: skip
    memory = ("ideal denoiser", *_cells(ideal, floor["upper"])[1:-1], "")
    score = (
        f"A residual network of {numbers['parameters']:,} weights learned the score of {numbers['train']:,} images in "
        f"{numbers['train_seconds']:.0f} seconds, given which digit each shows. All samples come from this one score, "
        f"{numbers['samples']:,} for each line of the table, and are held against {numbers['test']} digits that it never saw."
    )
    notes = (
        "NFE: score evaluations per sample. Energy distance: to the test split, unbiased, so that equal laws scatter around "
        "0. For the real digits it is that of the training split, and what 95 % of random splits stay below; a tick marks "
        "solvers that do. Nearest: the median distance to the nearest training image. Read as asked: by a support vector "
        "machine trained on the training split. The ideal denoiser is the exact score of the training split."
    )
    return Chapter(
        "Handwritten digits, where the score is learned",
        score,
        (
            Picture("digits_samples.png", "Real digits and samples, one column per class asked for.", plot=False),
            table(header, [*rows, memory, real], title="One score, four kinds of solver", notes=notes, apart=2),
            Picture(
                "digits_solvers.png",
                "Error against cost; within the grey band a solver cannot be told from real digits.",
            ),
            Picture(
                "digits_paths.png",
                "From the same noise to a 0 and a 4, time falling from left to right: two solvers of the reverse SDE, and "
                "the flow by SciPy.",
                plot=False,
            ),
            Picture(
                "digits_nearest.png",
                f"Is it memory? The median distance of its digits to the training set is {shown.nearest:.2f}, that of real "
                f"digits never seen {numbers['nearest_of_test']:.2f}. The exact score of the training set, the ideal denoiser, "
                f"can only give its images back: {ideal.nearest:.2f}, which is what is left of the noise.",
                plot=False,
            ),
            Picture("digits_loss.png", "The denoising loss in training."),
        ),
        numbers,
    )


def _cells(entry: Entry, upper: float) -> tuple[str, ...]:
    mark = " ✓" if entry.energy <= upper else ""
    return (
        entry.solver, entry.kind, entry.setting, f"{entry.nfe:g}", f"{entry.seconds:.1f}", f"{entry.energy:.4f}{mark}",
        f"{entry.nearest:.2f}", f"{entry.read:.1%}",
    )  # fmt: skip
