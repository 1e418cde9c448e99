"""The first half of the demo: a ring of Gaussians, where the score is exact and everything can be checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import plot, verify
from ..densities import bimodal, ring
from ..exact import ExactScore
from ..grids import LogSNR
from ..processes import VP
from ..sde import SDE
from ..solution import Solution
from ..solve import solve
from ..solvers import DPMSolverPP2M, EulerMaruyama, ExactTransition, Method
from .chapter import Chapter, Effort, Picture, save
from .page import table

_TIMES = (0.0, 0.05, 0.12, 0.25, 0.5, 1.0)
_EXTENT = (-3.2, 3.2, -3.2, 3.2)
_AT = 0.12  # where the fields are drawn and the identity is checked


def ring_chapter(out: Path, effort: Effort, seed: int) -> tuple[Chapter, verify.Report]:
    """Particles there and back, fields over densities, paths on the line, and the Langevin identity verified: the report."""
    started = time.perf_counter()
    sde, law = VP(), ring(8)
    score = ExactScore(sde, law)
    runs = _there_and_back(sde, score, effort, seed)
    pictures: dict[str, Callable[[], None]] = {
        "snapshots": lambda: _snapshots(runs, score, out / "ring_there_and_back.png", effort.dpi),
        "animation": lambda: _animation(runs, score, out / "forward_and_back.gif", effort),
        "fields": lambda: _fields(sde, score, out / "ring_fields.png", effort.dpi),
        "identity": lambda: _identity(sde, score, out / "langevin_identity.png", effort.dpi),
        "paths": lambda: _paths(sde, effort, seed, out / "paths.png"),
    }
    with tqdm(pictures.items(), desc="drawing", delay=2, leave=False) as bar:
        for name, draw in bar:
            bar.set_postfix_str(name)
            draw()
    report = verify.langevin_identity(sde, law, _AT, n=effort.checked, seed=seed)
    save(report.plot(), out / "langevin_identity_report.png", effort.dpi)
    numbers = {
        "density": "ring(8)",
        "process": "VP",
        "t": _AT,
        "particles": effort.particles,
        "nfe": {name: _nfe(run) for name, run in runs.items() if name != "forward"},
        "identity": {"passed": report.passed, "rows": [_row(row) for row in report.rows]},
        "seconds": time.perf_counter() - started,
    }
    chapter = Chapter(
        "A ring, where everything is known",
        "Eight Gaussians on a circle turn to noise under the variance-preserving SDE and come back. A mixture stays a mixture "
        "on the way, so its score ∇log pₜ is exact, and so is the law in the background of every picture.",
        (
            Picture(
                "forward_and_back.gif",
                "Particles forward and back. The colour of a particle is the place it comes from, on the way back the place "
                "it will arrive at.",
            ),
            Picture(
                "ring_there_and_back.png",
                "The same at six times, over the contours of pₜ. The reverse SDE and the flow have the same law at each time "
                "and different paths: noise mixes the colours, the flow keeps neighbours together.",
            ),
            Picture(
                "paths.png",
                "Two modes on the line, paths against time over pₜ: rough by the reverse SDE, smooth by the flow.",
            ),
            Picture(
                "ring_fields.png",
                "What pulls: the score above, and below the velocity of the flow towards the data. Arrow lengths go with the "
                "square root of the size.",
            ),
            Picture(
                "langevin_identity.png",
                f"The identity behind it all, at t = {_AT:g}: forward drift and backward drift add up to the drift g²∇log pₜ "
                "of Langevin dynamics, which leaves pₜ as it is.",
            ),
            _verdict(report),
        ),
        numbers,
    )
    return chapter, report


def _verdict(report: verify.Report) -> str:
    """The report as a table."""
    rows = [
        (
            row.verdict, row.what, f"{row.statistic:.2g} {'' if row.unit == 'relative' else row.unit}", f"{row.floor:.2g}",
            "" if row.p is None else f"{row.p:.2g}", f"≤ {row.limit:.0e}" if row.p is None else f"p > {row.limit:.1e}",
            f"{row.detectable:.2g} {row.unit}",
        )
        for row in report.rows
    ]  # fmt: skip
    header = ("verdict", "check", "measured", "noise floor", "p", "limit", "would detect")
    return table(header, rows, title=f"{report.title}. {report.summary}", notes=" ".join(report.notes))


def _there_and_back(sde: VP, score: ExactScore, effort: Effort, seed: int) -> dict[str, Solution]:
    """The three runs, saved often enough for an animation."""
    n = effort.particles
    start, noise = score.density.sample(n, seed=seed), score.sample(n, 1.0, seed=seed + 1)
    # Equal steps in the square root of t: near the data things happen fast.
    rising = torch.cat([torch.linspace(0, 1, effort.frames, dtype=torch.float64) ** 2, torch.tensor(_TIMES)]).unique()
    falling = rising.clamp_min(sde.t_min).unique().flip(0)
    forward = solve(sde, start, solver=ExactTransition(), grid=rising, save_at=rising, seed=seed + 2)
    back: dict[str, tuple[SDE, Method]] = {
        "reverse SDE": (sde.reverse(score), EulerMaruyama()),
        "probability flow": (sde.probability_flow(score), DPMSolverPP2M()),
    }
    runs = {
        name: solve(process, noise, solver=solver, grid=LogSNR(effort.grid), save_at=falling, seed=seed + 3)
        for name, (process, solver) in back.items()
    }
    return {"forward": forward} | runs


def _snapshots(runs: dict[str, Solution], score: ExactScore, path: Path, dpi: int) -> None:
    figure, axes = plot.canvas(2.0 * len(_TIMES), 6.6, len(runs), len(_TIMES))
    for row, (name, run) in enumerate(runs.items()):
        colour = _angle(run.xs[0] if name == "forward" else run.x)
        for column, t in enumerate(_TIMES):
            ax = axes[row * len(_TIMES) + column]
            k = int((run.ts - t).abs().argmin())
            at = float(run.ts[k])
            law, when = (score, at) if at > 0 else (score.density, None)
            title = f"t = {t:g}" if row == 0 else ""
            plot.samples(run.xs[k], law, t=when, colour=colour, extent=_EXTENT, title=title, ax=ax)
            ax.set(xticks=[], yticks=[])
        axes[row * len(_TIMES)].set_ylabel(f"{name} {'→' if name == 'forward' else '←'}", fontsize=10)
    save(figure, path, dpi)


def _animation(runs: dict[str, Solution], score: ExactScore, path: Path, effort: Effort) -> None:
    """Forward, then back by the reverse SDE."""
    forward, back = runs["forward"], runs["reverse SDE"]
    plot.gif(
        [forward, back], path, score, titles=["forward", "back, by the reverse SDE"],
        colours=[_angle(forward.xs[0]), _angle(back.x)], extent=_EXTENT, frames=effort.frames, seconds=6.0, pixels=420,
    )  # fmt: skip


def _fields(sde: VP, score: ExactScore, path: Path, dpi: int) -> None:
    times, flow = _TIMES[1:5], sde.probability_flow(score)
    figure, axes = plot.canvas(2.6 * len(times), 5.5, 2, len(times))
    for k, t in enumerate(times):
        above, below = axes[k], axes[len(times) + k]
        plot.vector_field(lambda x, t=t: score(x, t), score, t=t, extent=_EXTENT, ax=above, arrows=17)  # type: ignore[misc]
        plot.vector_field(
            lambda x, t=t: -flow.drift(x, t),  # type: ignore[misc]
            score,
            t=t,
            extent=_EXTENT,
            ax=below,
            arrows=17,
            title="",
        )
        for ax in (above, below):
            ax.set(xticks=[], yticks=[])
    axes[0].set_ylabel("score ∇log pₜ", fontsize=10)
    axes[len(times)].set_ylabel("flow towards the data", fontsize=10)
    save(figure, path, dpi)


def _identity(sde: VP, score: ExactScore, path: Path, dpi: int) -> None:
    back = sde.reverse(score)
    fields = {
        "forward: f": lambda x: sde.drift(x, _AT),
        "backward: −f + g²∇log pₜ": lambda x: -back.drift(x, _AT),
        "sum: g²∇log pₜ, Langevin": lambda x: sde.drift(x, _AT) - back.drift(x, _AT),
    }
    figure, axes = plot.canvas(10.5, 3.7, 1, len(fields))
    for ax, (title, field) in zip(axes, fields.items(), strict=True):
        plot.vector_field(field, score, t=_AT, extent=_EXTENT, title=title, ax=ax, arrows=19)
        ax.set(xticks=[], yticks=[])
    save(figure, path, dpi)


def _paths(sde: VP, effort: Effort, seed: int, path: Path) -> None:
    score = ExactScore(sde, bimodal())
    noise = score.sample(24, 1.0, seed=seed + 4)
    saved = torch.linspace(1, sde.t_min, 300, dtype=torch.float64)
    figure, axes = plot.canvas(10.5, 3.6, 1, 2)
    back: dict[str, tuple[SDE, Method]] = {
        "reverse SDE": (sde.reverse(score), EulerMaruyama()),
        "probability flow": (sde.probability_flow(score), DPMSolverPP2M()),
    }
    for ax, (name, (process, solver)) in zip(axes, back.items(), strict=True):
        run = solve(process, noise, solver=solver, grid=saved, save_at=saved, seed=seed + 5)
        plot.trajectories(run, score, count=24, title=name, ax=ax)
    save(figure, path, effort.dpi)


def _angle(x: Tensor) -> Tensor:
    return torch.atan2(x[:, 1], x[:, 0])


def _nfe(run: Solution) -> float:
    return float(torch.as_tensor(run.stats["nfe"]).double().mean())


def _row(row: verify.Row) -> dict[str, Any]:
    return {"what": row.what, "measured": row.statistic, "limit": row.limit, "p": row.p, "passed": row.passed}
