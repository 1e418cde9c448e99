r"""Where a sampler's error comes from: the prior, the early stop, the steps, and the score.

Between the law of the data and what a sampler gives lie four approximations, taken here one at a time:

.. math:: p_0 \;\xrightarrow{\text{early stop}}\; p_{t_{min}} \;\xrightarrow{\text{steps}}\; q_1
          \;\xrightarrow{\text{score}}\; q_2 \;\xrightarrow{\text{prior}}\; q_3 .

:math:`q_1` starts from exact samples of :math:`p_T` and follows the exact score on the sampler's own grid; :math:`q_2` follows
the score under test instead; :math:`q_3` starts from the prior as well and is the sampler as it is used. For every number D
that measures a law, :math:`D(q_3) - D(p_0)` is the sum of the four changes, exactly and whatever D is: what a part *adds*. As
errors may cancel, the distance across each part alone stands beside it. Neighbours share what random numbers they can, so the
differences between them have little noise; every number is a mean over independent repetitions, with its standard error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from scipy import special
from torch import Tensor

from ..densities import Density, Empirical
from ..errors import SolveError
from ..exact import ExactScore
from ..grids import Grid
from ..jsonable import jsonable
from ..metrics import energy_distance
from ..score import as_score
from ..sde import SDE, ScoreLike
from ..solve import solve
from ..solvers import Method
from ..suited import process_for, start_time
from .budget import affordable, check_options
from .scalar import needed

PARTS = ("early stop", "steps", "score", "prior")
"""The approximations, in the order in which they are made."""

_PAIRED = 2000  # the most samples whose distances are taken pair by pair
_MANY = 100_000
_REGION = 0.9


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions and its standard error."""

    value: float
    error: float
    repeats: int

    def __str__(self) -> str:
        return f"{_short(self.value)} ± {_short(self.error)}"

    @property
    def seen(self) -> bool:
        """True where it differs from 0 by Student's test at level 1e-3."""
        return abs(self.value) > float(special.stdtrit(self.repeats - 1, 1 - 0.5e-3)) * self.error


@dataclass(frozen=True)
class Part:
    """One approximation.

    Attributes:
        name: one of :data:`PARTS`.
        adds: for each measure, what it adds to the sampler's error: signed, and all parts sum up to the total.
        alone: the energy distance between the laws before and after it.
    """

    name: str
    adds: Mapping[str, Estimate]
    alone: Estimate


@dataclass(frozen=True)
class ErrorBudget:
    """What :func:`error_budget` found; ``print`` it, ``plot`` it, or take ``to_json()``.

    Attributes:
        title: which sampler.
        parts: the four approximations.
        total: for each measure, the error of the sampler as it is used: its value less that of the data's law.
        floors: for each measure, the same number for an exact sample of the data: 0, with its standard error.
        notes: how it was done, in sentences.
    """

    title: str
    parts: tuple[Part, ...]
    total: Mapping[str, Estimate]
    floors: Mapping[str, Estimate]
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> dict[str, str]:
        """For each measure the part that adds most to it, in size; "none" where none is seen above its noise."""
        columns = {what: {part.name: part.adds[what] for part in self.parts} for what in self.total}
        columns["energy distance alone"] = {part.name: part.alone for part in self.parts}
        return {what: _largest(column) for what, column in columns.items()}

    def __str__(self) -> str:
        header = ["", *(f"adds to {what}" for what in self.total), "energy distance alone"]
        lines = [[part.name, *map(str, part.adds.values()), str(part.alone)] for part in self.parts]
        total = ["total", *map(str, self.total.values()), ""]
        floors = ["exact samples", *map(str, self.floors.values()), ""]
        table = [header, *lines, total, floors]
        widths = [max(len(line[k]) for line in table) for k in range(len(header))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        rule = "─" * max(map(len, text))
        body = [self.title, rule, text[0], rule, *text[1:-2], rule, *text[-2:], rule]
        guilty = "; ".join(f"{what}: {part}" for what, part in self.largest.items())
        return "\n".join([*body, *(f"  {note}" for note in self.notes), f"Largest part: {guilty}."])

    def to_json(self) -> str:
        """All numbers as JSON; a number that is not finite becomes null."""
        content = jsonable(asdict(self)) | {"largest": self.largest}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def plot(self) -> Any:
        """A matplotlib Figure: for each measure the running sum of the parts, with two standard errors, and the total."""
        from ..plot.style import canvas

        figure, panels = canvas(3.1 * len(self.total), 2.5, 1, len(self.total))
        for ax, what in zip(panels, self.total, strict=True):
            self._waterfall(ax, what)
        figure.suptitle(self.title, fontsize=9, x=0.01, ha="left")
        return figure

    def _waterfall(self, ax: Any, what: str) -> None:
        """Bars that start where the last one ended; the total from 0."""
        from ..plot.style import GREY, INK, OCHRE, TEAL, quiet

        names, base = [*(part.name for part in self.parts), "total"], 0.0
        for k, part in enumerate(self.parts):
            add = part.adds[what]
            ax.barh(k, add.value, left=base, color=TEAL, height=0.6)
            ax.errorbar(base + add.value, k, xerr=2 * add.error, color=INK, linewidth=1, capsize=2)
            base += add.value
        total = self.total[what]
        ax.barh(len(self.parts), total.value, color=OCHRE, height=0.6)
        ax.errorbar(total.value, len(self.parts), xerr=2 * total.error, color=INK, linewidth=1, capsize=2)
        ax.axvspan(
            -2 * self.floors[what].error, 2 * self.floors[what].error, color=GREY, alpha=0.25, linewidth=0, zorder=0
        )
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.margins(x=0.12)
        ax.locator_params(axis="x", nbins=4)
        quiet(ax, what)
        ax.tick_params(axis="y", labelsize=8, labelcolor=INK, length=0)


def error_budget(
    score: ScoreLike,
    sde: SDE,
    density: Density,
    solver: Method,
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    eta: float = 1.0,
    prior: Any = None,
    n: int | None = None,
    repeats: int = 8,
    budget: float = 20.0,
    seed: int = 0,
) -> ErrorBudget:
    r"""Split the error of a sampler into what its prior, its early stop, its steps and its score contribute.

    Three measures: the energy distance to the data, which sees where the mass is; the relative error of the total variance;
    and the share of samples outside the region of highest density that holds 90 % of the data, less 10 %, which sees how wide
    the modes are and what lies between them (not where the data are atoms, which have no density).

    Args:
        score: the score to put to the test, ``score(x, t)``.
        sde: the process that it belongs to: a linear one, by its type or by its f and g.
        density: the law of the data, with a closed form under the process.
        solver: the sampler. It is given the reversal, or the flow if it takes ODEs only.
        steps, grid: exactly one for a fixed-step solver, none for an adaptive one; as in :func:`~sdediff.solve`.
        eta: the stochasticity of the reversal; 0 is the flow.
        prior: what the sampler starts from, with ``from_noise(z)``; ``sde.prior(event_shape)`` by default.
        n: samples in each repetition; by default as many as the budget allows, at least 500.
        repeats: independent repetitions, from which the standard errors come.
        budget: seconds that it should take.
        seed: of all random numbers.

    Returns:
        An :class:`ErrorBudget`.

    Raises:
        TypeError, ValueError: the density has no closed form under the process, or an argument does not fit.
        SolveError: the solver gave up, with the exact score or with the one under test; the message says which.
    """
    if repeats < 2:
        raise ValueError(f"repeats = {repeats}: a standard error needs at least two.")
    check_options(seed, n=n, budget=budget)
    chain = _Chain(score, sde, density, solver, {"steps": steps, "grid": grid}, eta, prior)
    chain.check()
    if n is None:
        n = affordable(lambda n: chain.run(n, seed), budget / repeats, least=500)
    runs = [chain.run(n, seed + 1 + k) for k in range(repeats)]
    measures = list(runs[0].values)
    parts = tuple(
        Part(
            name,
            {what: _estimate([run.values[what][k + 1] - run.values[what][k] for run in runs]) for what in measures},
            _estimate([run.alone[k] for run in runs]),
        )
        for k, name in enumerate(PARTS)
    )
    total = {what: _estimate([run.values[what][-1] - run.values[what][0] for run in runs]) for what in measures}
    floors = {what: _estimate([run.values[what][0] for run in runs]) for what in measures}
    taken = "its own steps" if grid is None and steps is None else f"{grid.steps if grid else steps} steps"
    noise = "flow" if chain.exact_process.direction == 0 else f"η = {eta:g}"
    title = f"Error budget: {type(solver).__name__}, {taken}, {noise}, {type(sde).__name__}"
    notes = (
        f"{repeats} repetitions of {n:,} samples each, from t = {chain.start:.4g} to {sde.t_min:.3g}; ± is one standard error.",
        f"energy distances, of {min(n, _PAIRED):,} samples, are unbiased: of either sign where nothing is wrong. They grow "
        "with the square of a small error.",
        "the steps' error is that with the exact score; the prior's, that of starting from it.",
    )
    return ErrorBudget(title, parts, total, floors, notes)


@dataclass(frozen=True)
class _Run:
    """One repetition: each measure of p_0, p_tmin, q_1, q_2, q_3, and the distance from each of them to the next."""

    values: Mapping[str, Sequence[float]]
    alone: Sequence[float]


class _Chain:
    """The samplers between the data and the sampler as it is used."""

    def __init__(
        self, score: ScoreLike, sde: SDE, density: Density, solver: Method, spacing: Any, eta: float, prior: Any
    ):
        why = "error_budget holds a sampler against the exact laws of its process"
        sde = needed(sde, density.event_shape, why, "duality tests the reversal of any other.")
        self.sde, self.density, self.solver, self.spacing = sde, density.to("cpu", torch.float64), solver, spacing
        self.exact = ExactScore(sde, self.density)
        self.exact_process = process_for(solver, sde, self.exact, eta)
        self.process = process_for(solver, sde, as_score(score, sde), eta)
        self.start = start_time(sde)
        self.prior = sde.prior(density.event_shape) if prior is None else prior

    def check(self) -> None:
        """Raise before any work is done where the solver or the density does not fit."""
        self.solver.check(self.exact_process)
        self.exact(self.exact.sample(1, self.start, seed=0), self.start)

    @cached_property
    def variance(self) -> float:
        """The total variance of the data, from a large sample."""
        return float(self.density.sample(_MANY, seed=0).reshape(_MANY, -1).var(0).sum())

    @cached_property
    def edge(self) -> float | None:
        """The log density that 90 % of the data exceed; None for atoms, which have no density."""
        if isinstance(self.density, Empirical):
            return None
        return float(self.density.log_prob(self.density.sample(_MANY, seed=0)).quantile(1 - _REGION))

    def run(self, n: int, seed: int) -> _Run:
        """One repetition."""
        generator = torch.Generator().manual_seed(seed)
        truth, data, x0 = (self.density.sample(n, generator=generator) for _ in range(3))
        stopped = self.sde.perturb(data, self.sde.t_min, torch.randn(data.shape, generator=generator, dtype=data.dtype))
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        begin, path = self.sde.perturb(x0, self.start, z), int(torch.randint(2**31, (), generator=generator))
        q1 = self._solved("exact score", self.exact_process, begin, path)
        q2 = self._solved("score under test", self.process, begin, path)
        q3 = self._solved("score under test, from the prior", self.process, self.prior.from_noise(z), path)
        laws = [data, stopped, q1, q2, q3]
        values = {
            "energy distance": [energy_distance(x[:_PAIRED], truth[:_PAIRED]) for x in laws],
            "variance": [float(x.reshape(n, -1).var(0).sum()) / self.variance - 1 for x in laws],
        }
        if self.edge is not None:
            outside = [(self.density.log_prob(x) < self.edge).double().mean() for x in laws]
            values["share outside"] = [float(share) - (1 - _REGION) for share in outside]
        return _Run(values, [_distance_of_neighbours(a[:_PAIRED], b[:_PAIRED]) for a, b in pairwise(laws)])

    def _solved(self, what: str, process: SDE, x: Tensor, seed: int) -> Tensor:
        try:
            return solve(process, x, solver=self.solver, t0=self.start, seed=seed, **self.spacing).x
        except SolveError as error:
            error.add_note(f"That was with the {what}.")
            raise


def _distance_of_neighbours(x: Tensor, y: Tensor) -> float:
    """The energy distance, unbiased though row i of y may depend on row i of x: pairs (i, i) are left out."""
    n = len(x)
    a, b = (v.reshape(n, -1) for v in (x, y))
    across, own, other = (
        torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist") for pair in ((a, b), (a, a), (b, b))
    )
    total = 2 * (across.sum() - across.diagonal().sum()) - own.sum() - other.sum()
    return float(total) / (n * (n - 1))


def _estimate(values: Sequence[float]) -> Estimate:
    v = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(v.mean()), float(v.std()) / math.sqrt(len(v)), len(v))


def _largest(column: Mapping[str, Estimate]) -> str:
    seen = {name: abs(estimate.value) for name, estimate in column.items() if estimate.value and estimate.seen}
    return max(seen, key=lambda name: seen[name]) if seen else "none"


def _short(value: float) -> str:
    """Three digits, without an exponent where a reader can do without."""
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"
