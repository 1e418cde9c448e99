r"""Solvers side by side on one density and one process, where everything about the answer is known.

All solvers start from the same exact samples of :math:`p_T` and are held against the exact law at the end of the solve,
so that neither the prior nor the score adds an error of its own. Each number stands beside its noise floor: what the same
statistic says of two exact samples of that size. ODE solvers are also held against the exact map of the flow, found with
tight tolerances in float64: that error has no noise floor but rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .densities import Density, Mixture
from .errors import SolveError
from .exact import ExactScore
from .grids import Grid, Uniform
from .jsonable import jsonable
from .linear import LinearSDE
from .metrics import energy_distance, mode_occupancy, noise_floor, sliced_wasserstein, within_mode
from .sde import SDE
from .solve import solve
from .solvers import Method, Scipy
from .suited import process_for, start_time, stepping

Measure = Callable[[Tensor, Tensor], float]
"""``measure(x, exact)``: an error of the samples x, given a sample of the exact law."""

_PAIRED = 2000  # the most samples whose distances are taken pair by pair


@dataclass(frozen=True)
class Run:
    """One solver with one number of steps.

    Attributes:
        solver: the name it was given.
        process: what it solved, "reverse SDE" or "flow".
        steps: the steps it was told to take; None for a solver that chooses them itself.
        nfe: score evaluations per sample.
        seconds: of the solve.
        errors: each measure's value.
        map_median, map_p90: for the flow, median and 90th percentile of the distance from the exact map, in units of the
            data.
        failure: why there is no result, where a solver gave up.
    """

    solver: str
    process: str
    steps: int | None
    nfe: float = math.nan
    seconds: float = math.nan
    errors: Mapping[str, float] | None = None
    map_median: float | None = None
    map_p90: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``print`` it, ``plot`` it, or take ``to_json()``.

    Attributes:
        title: what was compared.
        n: how many samples.
        floors: for each measure, the mean and the 95 % quantile of what it says of two exact samples.
        runs: one entry per solver and number of steps.
        notes: how it was done, in sentences.
    """

    title: str
    n: int
    floors: Mapping[str, tuple[float, float]]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        header = ("solver", "process", "steps", "NFE", "seconds", *self.floors, "map median", "map p90")
        lines = [header, *(self._cells(run) for run in self.runs)]
        for name, k in (("noise floor, mean", 0), ("noise floor, 95 %", 1)):
            lines.append((name, "", "", "", "", *(f"{floor[k]:.4f}" for floor in self.floors.values()), "", ""))
        widths = [max(len(line[k]) for line in lines if len(line) > k) for k in range(len(header))]
        text = [_aligned(line, widths) for line in lines]
        rule = "─" * max(map(len, text[:1]))
        return "\n".join([self.title, rule, text[0], rule, *text[1:-2], rule, *text[-2:], rule, *self.notes])

    def _cells(self, run: Run) -> tuple[str, ...]:
        first = (run.solver, run.process, "" if run.steps is None else str(run.steps))
        if run.errors is None:
            return (*first, f"failed: {run.failure}")
        values = (f"{run.nfe:.4g}", f"{run.seconds:.3f}", *(f"{value:.4f}" for value in run.errors.values()))
        on_map = ("" if value is None else f"{value:.1e}" for value in (run.map_median, run.map_p90))
        return (*first, *values, *on_map)

    def to_json(self) -> str:
        """Everything as JSON; what is not finite becomes null."""
        content = asdict(self)
        content["floors"] = {name: {"mean": mean, "upper": upper} for name, (mean, upper) in self.floors.items()}
        return json.dumps(jsonable(content), indent=2, ensure_ascii=False, allow_nan=False)

    def plot(self) -> Any:
        """A matplotlib Figure: each error over NFE, one line per solver, the noise floor shaded."""
        from .plot.style import canvas

        mapped = any(run.map_median is not None for run in self.runs)
        count = len(self.floors) + mapped
        columns = 2 if count == 4 else min(3, count)
        rows = math.ceil(count / columns)
        figure, axes = canvas(3.9 * columns, 3.0 * rows + 0.8, rows, columns)
        for ax, (name, (_, upper)) in zip(axes, self.floors.items(), strict=False):
            _draw(ax, self.runs, lambda run, name=name: (run.errors or {}).get(name), name)  # type: ignore[misc]
            ax.axhspan(-upper, upper, color="0.5", alpha=0.18, linewidth=0)
            ax.set_yscale("symlog", linthresh=upper)  # unbiased errors fall on either side of 0
            lowest = min((run.errors[name] for run in self.runs if run.errors), default=0.0)
            ax.set_ylim(bottom=min(-upper, 1.3 * lowest) if lowest < 0 else 0.0)
        if mapped:
            _draw(
                axes[count - 1], self.runs, lambda run: run.map_median, "median distance from the exact map of the flow"
            )
            axes[count - 1].set_yscale("log")
        for ax in axes[count:]:
            ax.axis("off")
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
        )
        figure.suptitle(f"{self.title}: errors, and in grey what exact samples show", fontsize=10)
        return figure


def compare(
    sde: LinearSDE,
    density: Density,
    solvers: Mapping[str, Method],
    *,
    steps: Sequence[int] = (10, 20, 50, 100),
    grid: Callable[[int], Grid] = Uniform,
    n: int = 4000,
    eta: float = 1.0,
    on_flow: Collection[str] = (),
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    r"""Run each solver from exact samples of :math:`p_T` to ``sde.t_min`` and hold the result against the exact law there.

    Args:
        sde: a linear process.
        density: a density that keeps a closed form under it, such as a mixture.
        solvers: the solvers by the names to show them under.
        steps: the numbers of steps for solvers on a fixed grid; others run once.
        grid: that grid, called with a number of steps: uniform in t, or ``grids.LogSNR``, which serves few steps better.
        n: how many samples.
        eta: the stochasticity of the reversal, for solvers that take noise; ODE solvers take the flow.
        on_flow: the names of solvers that could take noise and are to solve the flow nevertheless.
        seed: of all random numbers.
        progress: show a bar.

    Returns:
        A :class:`Comparison`. A solver that gives up does not stop the others: its entry says why.

    Raises:
        TypeError, ValueError: a solver cannot take the process, the density has no closed form under it, or a number is
            not positive.
    """
    _check(sde, solvers, steps, n)
    exact = ExactScore(sde, density)
    start = start_time(sde)
    generator = torch.Generator().manual_seed(seed)
    x = exact.sample(n, start, generator=generator)
    exact(x[:1], start)  # raises here, before any work, where there is no closed form
    reference = exact.sample(n, sde.t_min, generator=generator)
    processes = {
        name: process_for(solver, sde, exact, 0.0 if name in on_flow else eta) for name, solver in solvers.items()
    }
    for name, solver in solvers.items():
        solver.check(processes[name])
    plan = [(name, count) for name, solver in solvers.items() for count in _counts(solver, steps)]
    measures = _measures(exact, sde.t_min)
    total = len(plan) + len(measures) + 1
    with tqdm(total=total, desc="comparing", delay=2, disable=not progress, leave=False) as bar:
        floors = {}
        for k, (name, measure) in enumerate(measures.items()):
            floors[name] = noise_floor(measure, partial(exact.sample, t=sde.t_min), n, seed=seed + 2 + k)
            bar.update()
        mapped = _exact_map(exact, x, start) if any(p.direction == 0 for p in processes.values()) else None
        bar.update()
        runs = []
        for name, count in plan:
            bar.set_postfix_str(name)
            trial = _Trial(name, solvers[name], processes[name], count, grid, start, seed)
            runs.append(trial.run(x, reference, measures, mapped))
            bar.update()
    notes = (
        f"{n:,} exact samples of p at t = {start:g} solved to t = {sde.t_min:g}, and held against the exact law there.",
        f"Energy distances (of the first {min(n, _PAIRED):,}) are unbiased: around 0, of either sign, where nothing is wrong.",
    )
    title = f"{_named(density)} under {type(sde).__name__}"
    return Comparison(title, n, {k: (f.mean, f.upper) for k, f in floors.items()}, tuple(runs), notes)


@dataclass(frozen=True)
class _Trial:
    """One solver with one number of steps, about to be run."""

    name: str
    solver: Method
    process: SDE
    steps: int | None
    grid: Callable[[int], Grid]
    start: float
    seed: int

    def run(self, x: Tensor, reference: Tensor, measures: Mapping[str, Measure], mapped: Tensor | None) -> Run:
        flow = self.process.direction == 0
        first = (self.name, "flow" if flow else "reverse SDE", self.steps)
        try:
            how = stepping(self.solver, self.steps, self.grid)
            solution = solve(self.process, x, solver=self.solver, t0=self.start, seed=self.seed + 1, **how)
        except SolveError as error:
            return Run(*first, failure=str(error))
        nfe = torch.as_tensor(solution.stats["nfe"]).double().mean()
        errors = {what: measure(solution.x, reference) for what, measure in measures.items()}
        run = Run(*first, float(nfe), solution.stats["seconds"], errors)
        if not flow or mapped is None:
            return run
        distance = (solution.x.double() - mapped).flatten(1).norm(dim=1)
        median, p90 = distance.quantile(torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
        return Run(*first, run.nfe, run.seconds, errors, median, p90)


def _check(sde: LinearSDE, solvers: Mapping[str, Method], steps: Sequence[int], n: int) -> None:
    if not isinstance(sde, LinearSDE):
        raise TypeError(f"compare needs a LinearSDE, got {type(sde).__name__}: only there is the law known exactly.")
    if not solvers:
        raise ValueError("There is no solver to compare.")
    if n < 100:
        raise ValueError(f"n = {n}: these errors mean little with fewer than 100 samples.")
    if not steps or min(steps) < 1:
        raise ValueError(f"steps = {list(steps)} must be positive whole numbers.")


def _counts(solver: Method, steps: Sequence[int]) -> Sequence[int | None]:
    return [None] if solver.chooses_steps else steps


def _measures(exact: ExactScore, t: float) -> dict[str, Measure]:
    """Energy distance and sliced Wasserstein see where the mass is; the modes' shares and widths what these are blind to."""
    found: dict[str, Measure] = {"energy distance": _energy, "sliced W2": sliced_wasserstein}
    if isinstance(exact.density, Mixture):
        law = exact.law(t)
        if len(law.weights) > 1:
            found["mode shares"] = lambda x, _: _share_error(x, law)
        found["mode width"] = lambda x, _: _width_error(x, law)
    return found


def _energy(x: Tensor, exact: Tensor) -> float:
    """The energy distance of the first samples: its cost grows with their number squared."""
    return energy_distance(x[:_PAIRED], exact[:_PAIRED])


def _share_error(x: Tensor, law: Mixture) -> float:
    """The total variation between the shares of the modes and their weights."""
    occupancy = mode_occupancy(x, law)
    return float(0.5 * (occupancy.counts - occupancy.expected).abs().sum() / len(x))


def _width_error(x: Tensor, law: Mixture) -> float:
    """The relative error of the standard deviation within the modes."""
    return abs(math.sqrt(max(0.0, 1 + within_mode(x, law).variance)) - 1)


def _exact_map(exact: ExactScore, x: Tensor, start: float) -> Tensor:
    """Where the exact flow takes x, in float64."""
    flow = exact.sde.probability_flow(ExactScore(exact.sde, exact.density.to(dtype=torch.float64)))
    return solve(flow, x.double(), solver=Scipy("DOP853", rtol=1e-9, atol=1e-9), t0=start).x


def _named(density: Density) -> str:
    modes = f" of {len(density.weights)}" if isinstance(density, Mixture) else ""
    return f"{type(density).__name__}{modes}"


def _draw(ax: Any, runs: Sequence[Run], value: Callable[[Run], float | None], title: str) -> None:
    """One line per solver over NFE; a lone point is a marker."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    from .plot.style import COLOURS, quiet

    for k, name in enumerate(dict.fromkeys(run.solver for run in runs)):
        seen = [(run.nfe, value(run)) for run in runs if run.solver == name]
        points = sorted((nfe, error) for nfe, error in seen if error is not None)
        line = tuple(zip(*points, strict=True)) or ((), ())
        ax.plot(*line, "o-", color=COLOURS[k % len(COLOURS)], markersize=4, linewidth=1.4, label=name)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.minorticks_off()
    ax.set_xlabel("score evaluations per sample", fontsize=8)
    ax.grid(alpha=0.25, linewidth=0.6)
    quiet(ax, title)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=False))]
    return "  ".join(cells).rstrip()
