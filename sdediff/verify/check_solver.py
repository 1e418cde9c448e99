r"""A solver against what it claims and what every solver owes.

The solver is given all processes with a known answer that it can take (:mod:`~sdediff.verify.references`):

- **orders** from both sides, pathwise, on the flow of a mixture, on closed-form SDEs on both clocks, on a reversal;
- **its law** on Gaussian data, read off from the solver itself (:mod:`~sdediff.verify.affine_law`): its error must fall at the
  weak order claimed. √2 in the noise, h for √h, one number used twice or a wrong sign leave a law that does not converge;
- **its samples**, real ones, against that law, by tests of stated level and power;
- **its steps**: it evaluates the process inside the step it takes, reaches each node of an uneven grid, depends on no later
  node, makes of a tiny last step a tiny change, and on a mirrored clock takes mirrored steps. An order cannot see these: a
  time from the step before costs a constant, not an order;
- **the contract**: evaluations counted as they happen, a sample that depends on its own seed alone, the same again for the
  same seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..brownian import BrownianPath
from ..keyed import PerSample
from ..sde import SDE
from ..solve import solve
from ..solvers import Integrator, Method, Solver
from .affine_law import AffineMap, affine_map
from .attempt import attempt, told
from .budget import affordable, check_options
from .references import END, MEAN, STD, ClosedForms, GaussianData, Noiseless, Oscillator, Plain, Wavy, ring_flow
from .report import Report, Row, exact_row, fact_row, judge
from .solver_orders import additive_order, flow_order, law_row, strong_order
from .statistics import POWER, Outcome, worst, z_test

ROUNDING = 1e-9
"""The largest relative residual that passes an exact check."""

LARGEST_LAW_ERROR = 0.1
"""Of mean and variance at the finest steps: what a solver without a claim may be off."""

_WIDTH = len(MEAN)
_SAMPLED_STEPS = 16
_ADAPTIVE_MARGIN = 0.1  # standard deviations that the tolerances of an adaptive solver may cost
_UNEVEN = (0.0, 0.3, 0.35, 0.75, 0.8, 1.0)


def check_solver(
    solver: Method, *, n: int | None = None, budget: float = 10.0, level: float = 1e-4, seed: int = 0
) -> Report:
    """Check a solver, your own or one of the package's, on every reference process that it can take.

    Args:
        solver: a solver object. Its ``orders`` are what it claims; ``requires`` and ``check`` what it can take.
        n: how many samples the statistical tests draw; by default as many as the budget allows.
        budget: seconds for them; the exact part takes about as long as it must, some seconds.
        level: the probability of a false alarm, for all tests together.
        seed: of all random numbers.

    Returns:
        A :class:`~sdediff.verify.Report`; what the solver cannot take stands under "not checked".

    Raises:
        TypeError: ``solver`` is no solver object.
    """
    if not isinstance(solver, Method):
        hint = f": write {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"solver must be a solver object such as EulerMaruyama(), got {solver!r}{hint}.")
    check_options(seed, n=n, budget=budget, level=level)
    name = type(solver).__name__
    trial = _Trial(solver, level, seed)
    rows, unchecked = trial.exact()
    samples, n = trial.samples(n, budget)
    rows += samples
    if not rows:
        rows.append(fact_row("takes a process", "it refused every reference process: see what was not checked."))
    notes = [
        "orders: intervals at the level, which must lie within 0.2 of the claim; on Gaussian data from below alone.",
        f"level {level:g} for all tests together.",
    ]
    if n:
        notes.append(f"samples: {n:,}, each effect detected with probability {POWER:g}.")
    return Report(f"Solver {name}", tuple(rows), tuple(notes), tuple(unchecked))


@dataclass(frozen=True)
class _Task:
    """A solver on a reference process: how to run it, and what may be asked."""

    name: str
    process: SDE
    t0: float
    t1: float
    data: GaussianData | None = None

    def spacing(self, solver: Method, steps: int) -> dict[str, Any]:
        """As many steps for a solver that takes them, even in log SNR on a reversal."""
        if isinstance(solver, Integrator):
            return {"steps": steps} if solver.fixed else {}
        if self.data is None or self.t0 < self.t1:
            return {"steps": steps}
        return {"grid": self.data.grid(steps)}

    def solve(self, solver: Method, x: Tensor, steps: int, **options: Any) -> Any:
        """From x at t0 to t1."""
        return solve(self.process, x, solver=solver, t0=self.t0, t1=self.t1, **self.spacing(solver, steps), **options)


def _gaussian_tasks() -> dict[str, _Task]:
    data = GaussianData()
    return {
        "forward": _Task("forward", data.sde, 0.0, 1.0, data),
        "reversal": _Task("reversal", data.sde.reverse(data.score), 1.0, END, data),
        "flow": _Task("flow", data.sde.probability_flow(data.score), 1.0, END, data),
    }


class _Trial:
    """A solver, and which reference processes it takes."""

    def __init__(self, solver: Method, level: float, seed: int):
        self.solver, self.level, self.seed = solver, level, seed
        self.refused: list[str] = []
        self.stepping = isinstance(solver, Solver)
        self.adaptive = solver.chooses_steps
        tasks = _gaussian_tasks()
        self.tasks = {name: task for name, task in tasks.items() if self._takes(f"Gaussian data, {name}", task)}
        self.maps: dict[str, AffineMap] = {}

    # ---- what it takes ------------------------------------------------------------------------------------------------------

    def _takes(self, what: str, task: _Task, width: int = _WIDTH) -> bool:
        """Whether the solver accepts this process; a refusal is noted."""
        try:
            self.solver.check(task.process)
            with torch.no_grad():
                task.solve(self.solver, torch.zeros(2, width, dtype=torch.float64) + 0.3, 8, seed=0)
        except (TypeError, ValueError) as error:
            self.refused.append(f"{what}: {told(error)}")
            return False
        except Exception:
            return True  # it accepts the process and fails on it: the rows will say so
        return True

    def _clock(self, what: str, make: Callable[[int], Any], width: int = 1) -> Callable[[int], Any] | None:
        """The process, or its ODE, on either clock, where the solver takes it."""
        for kind in (make, lambda sign: Noiseless(make(sign))):
            process = kind(1)
            before = len(self.refused)
            if self._takes(what, _Task(what, process, *process.ends), width):
                self.refused = self.refused[:before]
                return kind
        self.refused = self.refused[:-1]  # one refusal is enough
        return None

    @property
    def noisy_flow(self) -> bool:
        """True where it adds noise of its own to an ODE."""
        return "flow" in self.maps and self.maps["flow"].noisy

    # ---- the exact part -----------------------------------------------------------------------------------------------------

    def exact(self) -> tuple[list[Row], list[str]]:
        """All rows that need no sampling, and what was not checked."""
        rows: list[Row] = []
        if self.stepping:
            for name, task in self.tasks.items():
                rows += attempt(f"law on Gaussian data, {name}", partial(self._law, name, task))
        rows += self._orders()
        rows += self._steps() if self.stepping else []
        rows += attempt("law of an oscillator", self._oscillator)
        for name, task in self.tasks.items():
            if name != "forward" or len(self.tasks) == 1:
                rows += attempt(f"contract on the {name}", partial(self._contract, task))
        return rows, self.refused

    def _law(self, name: str, task: _Task) -> Iterable[Row]:
        """The law read off at several numbers of steps, and whether the map was affine at all."""
        assert task.data is not None
        law = task.data.law

        def error(steps: int) -> float:
            spacing = task.spacing(self.solver, steps)
            self.maps[name] = affine_map(task.process, self.solver, _WIDTH, t0=task.t0, t1=task.t1, **spacing)
            return _law_error(self.maps[name], law(task.t0), law(task.t1))

        error(2)
        found = self.maps[name]
        if name == "flow" and not found.noisy:
            return []  # the order on a mixture's flow says more
        claimed = None if found.own else _first(self.solver.orders.weak_additive, self.solver.orders.weak)
        return [law_row(f"law on Gaussian data, {name}", error, claimed, LARGEST_LAW_ERROR)]

    def _orders(self) -> list[Row]:
        solver, level = self.solver, self.level
        rows: list[Row] = []
        if "flow" in self.tasks and not self.adaptive:
            if self.noisy_flow:
                self.refused.append("order on a mixture's flow: the solver adds noise of its own.")
            else:
                rows += attempt("order on a mixture's flow", partial(_one, flow_order, solver, level))
        if self.adaptive and "flow" in self.tasks:
            rows += attempt("error at its tolerance", self._tolerance)
        if not self.stepping:
            return rows
        if self._takes("closed forms", _Task("closed forms", ClosedForms(1), 0.0, 1.0), 3):
            for sign in (1, -1):
                rows += attempt("strong order on closed forms", partial(_one, strong_order, solver, sign, level))
        if "reversal" in self.tasks:
            if self.maps.get("reversal") is not None and self.maps["reversal"].own:
                self.refused.append("strong order on a reversal: the solver draws noise that belongs to no path.")
            elif getattr(solver, "stochasticity", None) is not None:
                self.refused.append("strong order on a reversal: the solver has a stochasticity of its own.")
            else:
                rows += attempt("strong order on a reversal", partial(_one, additive_order, solver, level))
        return rows

    def _tolerance(self) -> Iterable[Row]:
        """Errors in units of the tolerance, and that they fall with it."""
        flow, x, exact = ring_flow()
        coarse, fine, errors = self.solver, copy.copy(self.solver), []
        tolerances = [getattr(coarse, name, None) for name in ("rtol", "atol")]
        if None in tolerances:
            coarse_only = float((solve(flow, x, solver=coarse, t0=1.0, t1=END).x - exact).norm(dim=1).median())
            return [exact_row("error of an adaptive solver, median", coarse_only, 0.05)]
        fine.rtol, fine.atol = (t / 100 for t in tolerances)  # type: ignore[attr-defined, operator]
        for solver in (coarse, fine):
            end = solve(flow, x, solver=solver, t0=1.0, t1=END).x
            errors.append(float((end - exact).norm(dim=1).median()))
        scale = sum(tolerances)  # type: ignore[arg-type]
        detail = f"the median errors are {errors[0]:.2g}, and {errors[1]:.2g} at a hundredth of the tolerances."
        return [
            exact_row("error beside the tolerance, / 1000", errors[0] / (1000 * scale), 1.0, detail),
            exact_row(
                "error at a hundredth of the tolerance, relative", errors[1] / max(errors[0], 1e-300), 0.25, detail
            ),
        ]

    def _oscillator(self) -> Iterable[Row]:
        """Underdamped dynamics, for solvers that take nothing else."""
        well = Oscillator()
        if (
            not self.stepping
            or self.tasks
            or not self._takes("oscillator", _Task("oscillator", well.process, 0.0, 2.0), 2)
        ):
            return []
        start, goal = torch.tensor(well.start, dtype=torch.float64), well.law(2.0)

        def error(steps: int) -> float:
            found = affine_map(well.process, self.solver, 2, t0=0.0, t1=2.0, steps=steps)
            mean, covariance = found.law(start, torch.zeros(2, 2, dtype=torch.float64))
            return float(torch.maximum((mean - goal[0]).abs().max(), (covariance - goal[1]).abs().max()))

        return [law_row("law of an oscillator", error, self.solver.orders.weak, LARGEST_LAW_ERROR)]

    # ---- its steps ----------------------------------------------------------------------------------------------------------

    def _steps(self) -> list[Row]:
        rows: list[Row] = []
        if (plain := self._clock("dx = du + dW", Plain)) is not None:
            rows += attempt("reaches every node", partial(_one, _every_node, self.solver, plain))
        if (wavy := self._clock("a nonlinear drift with additive noise", Wavy)) is not None:
            rows += attempt("mirrored steps", partial(_one, _mirrored, self.solver, wavy))
            rows += attempt(_INSIDE, partial(_one, _inside_clock, self.solver, wavy))
        for name in ("reversal", "flow"):
            if name in self.tasks and not (name in self.maps and self.maps[name].own):
                task = self.tasks[name]
                rows += attempt(f"{_INSIDE}, {name}", partial(_one, _inside_score, self.solver, task))
                rows += attempt(f"depends on no later node, {name}", partial(_one, _no_later_node, self.solver, task))
                rows += attempt(f"a tiny last step, {name}", partial(_one, _tiny_last_step, self.solver, task))
        return rows

    # ---- the contract -------------------------------------------------------------------------------------------------------

    def _contract(self, task: _Task) -> Iterable[Row]:
        assert task.data is not None
        x = MEAN + STD * torch.randn(6, _WIDTH, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        task.data.calls = task.data.samples = 0
        first = task.solve(self.solver, x, 20, seed=self.seed)
        calls, samples = task.data.calls, task.data.samples
        again = task.solve(self.solver, x, 20, seed=self.seed)
        apart = _apart(first.x, again.x)
        problem = f"two solves with one seed differ by {apart:.2g}: numbers come from elsewhere." if apart else ""
        rows = [fact_row(f"the same seed gives the same, {task.name}", problem)]
        counted = float(torch.as_tensor(first.stats["nfe"]).double().sum()) * (
            1 if _many(first.stats["nfe"]) else len(x)
        )
        seen = f"stats say {first.stats['score_calls']} calls and {counted:g} samples; the score saw {calls} and {samples}."
        wrong = (first.stats["score_calls"], counted) != (calls, samples)
        rows.append(fact_row(f"evaluations are counted, {task.name}", seen if wrong else ""))
        rows.append(self._per_sample(task, x))
        return rows

    def _per_sample(self, task: _Task, x: Tensor) -> Row:
        """Samples 1 and 4 alone must be what they are among all."""
        what, seeds = f"a sample depends on its own seed alone, {task.name}", list(range(11, 11 + len(x)))
        if self.solver.couples_samples:
            try:
                task.solve(self.solver, x, 20, noise=PerSample(seeds))
            except ValueError:
                return fact_row(f"{what}: refused, as it couples samples")
            return fact_row(what, "couples_samples is True, yet PerSample was not refused.")
        part = [1, 4]
        whole = task.solve(self.solver, x, 20, noise=PerSample(seeds)).x[part]
        alone = task.solve(self.solver, x[part], 20, noise=PerSample([seeds[k] for k in part])).x
        return exact_row(what, _apart(whole, alone), ROUNDING)

    # ---- its samples --------------------------------------------------------------------------------------------------------

    def samples(self, n: int | None, budget: float) -> tuple[list[Row], int]:
        """Real samples against the law read off, or for a solver that cannot be read the exact law, up to a margin."""
        noisy = [task for name, task in self.tasks.items() if name != "flow" or self.noisy_flow]
        if not noisy:
            return [], 0

        def panel(n: int, seed: int) -> dict[str, Outcome]:
            return {k: v for task in noisy for k, v in self._sampled(task, n, seed).items()}

        try:
            if n is None:
                n = affordable(lambda n: panel(n, self.seed), budget)
            return list(judge(panel, n, self.seed, self.level)), n
        except Exception as error:
            return [fact_row("samples on Gaussian data", told(error))], 0

    def _sampled(self, task: _Task, n: int, seed: int) -> dict[str, Outcome]:
        assert task.data is not None
        (start, variance), (goal, spread) = task.data.law(task.t0), task.data.law(task.t1)
        if self.stepping:  # from one state, so that all the spread is the solver's noise
            x, steps, margin = start.expand(n, _WIDTH).clone(), _SAMPLED_STEPS, 0.0
            spacing = task.spacing(self.solver, steps)
            found = affine_map(task.process, self.solver, _WIDTH, t0=task.t0, t1=task.t1, **spacing)
            goal, covariance = found.law(start, torch.zeros(_WIDTH, _WIDTH, dtype=torch.float64))
            spread = covariance.diagonal()
        else:
            z = torch.randn(n, _WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            x, steps, margin = start + variance.sqrt() * z, 200, _ADAPTIVE_MARGIN
        end = task.solve(self.solver, x, steps, seed=seed).x
        if not bool((spread > 0).all()):
            return {}
        z = (end - goal) / spread.sqrt()
        means = worst([z_test(v, margin=margin, unit="sd") for v in z.unbind(1)])
        variances = worst([z_test(v * v, 1.0, margin=2 * margin, unit="relative") for v in z.unbind(1)])
        pairs = [(0, 1), (1, 2), (0, 2)]
        across = worst([z_test(z[:, j] * z[:, k], margin=margin, unit="correlation") for j, k in pairs])
        neighbours = worst(
            [z_test(v[::2][: n // 2] * v[1::2][: n // 2], margin=margin, unit="correlation") for v in z.unbind(1)]
        )
        name = f"samples, {task.name}"
        return {
            f"{name}: mean": means,
            f"{name}: variance": variances,
            f"{name}: coordinates are independent": across,
            f"{name}: samples are independent": neighbours,
        }


# ---- single checks -----------------------------------------------------------------------------------------------------------

_INSIDE = "looks inside its own step"


def _one(check: Callable[..., Row], *arguments: Any) -> list[Row]:
    return [check(*arguments)]


def _every_node(solver: Method, kind: Callable[[int], Any]) -> Row:
    """dx = du + dW on uneven nodes, on both clocks: the state at each node is x_0 + u + W_u, exactly."""
    worst = 0.0
    for sign in (1, -1):
        process, path = kind(sign), BrownianPath(0.0, 1.0, 5)
        nodes, seen = process.nodes(torch.tensor(_UNEVEN, dtype=torch.float64)), []
        x = torch.zeros(4, 1, dtype=torch.float64)
        solve(process, x, solver=solver, grid=nodes, noise=path, callback=lambda k, t, y: seen.append(y.clone()))  # noqa: B023
        for k, state in enumerate(seen):
            u = _UNEVEN[k + 1]
            noise = 0.0 if process.direction == 0 else path.open(x).increment(float(nodes[0]), float(nodes[k + 1]))
            worst = max(worst, float((state - u - noise).abs().max()))
    return exact_row("reaches every node of an uneven grid", worst, ROUNDING)


def _mirrored(solver: Method, kind: Callable[[int], Any]) -> Row:
    """The same process told on a falling clock, with the same numbers, takes the same states."""
    x = torch.tensor([[0.3], [-0.2], [0.9]], dtype=torch.float64)
    ends = [
        solve(process, x, solver=solver, t0=process.ends[0], t1=process.ends[1], steps=7, noise=PerSample(range(3))).x
        for process in (kind(1), kind(-1))
    ]
    return exact_row("mirrored steps on a falling clock", _apart(*ends), ROUNDING)


@dataclass
class _Watch:
    """The times looked at in each step."""

    seen: list[float]
    steps: list[list[float]] = field(default_factory=list)

    def __call__(self, k: int, t: float, x: Tensor) -> None:
        self.steps.append(list(self.seen))
        self.seen.clear()

    def excursion(self, nodes: Tensor) -> float:
        """How far a step looked beyond its ends, in steps, the worst of all."""
        worst = 0.0
        for k, times in enumerate(self.steps):
            low, high = sorted(nodes[k : k + 2].tolist())
            for t in times:
                worst = max(worst, (low - t) / (high - low), (t - high) / (high - low))
        return worst


def _inside_clock(solver: Method, kind: Callable[[int], Any]) -> Row:
    worst = 0.0
    for sign in (1, -1):
        process = kind(sign)
        watch, x = _Watch(process.seen), torch.zeros(3, 1, dtype=torch.float64)
        nodes = process.nodes(torch.tensor(_UNEVEN, dtype=torch.float64))
        solve(process, x, solver=solver, grid=nodes, seed=0, callback=watch)
        worst = max(worst, watch.excursion(nodes))
    return exact_row(_INSIDE, worst, 1e-6, "drift or noise is taken at a time outside the step.")


def _inside_score(solver: Method, task: _Task) -> Row:
    assert task.data is not None
    nodes = task.data.grid(12).nodes(task.process, task.t0, task.t1)
    nodes[0], nodes[-1] = task.t0, task.t1
    task.data.seen.clear()
    watch = _Watch(task.data.seen)
    x = torch.zeros(3, _WIDTH, dtype=torch.float64)
    solve(task.process, x, solver=solver, grid=nodes, seed=0, callback=watch)
    detail = "the score is taken at a time outside the step."
    return exact_row(f"{_INSIDE}, {task.name}", watch.excursion(nodes), 1e-6, detail)


def _no_later_node(solver: Method, task: _Task) -> Row:
    """The state at a node is the same whatever nodes follow."""
    x = torch.tensor([[0.3], [-0.2], [0.9]], dtype=torch.float64) * MEAN
    nodes, states = torch.tensor([1.0, 0.9, 0.7, 0.65, 0.4, 0.1], dtype=torch.float64), []
    noise = PerSample(range(3))
    solve(task.process, x, solver=solver, grid=nodes, noise=noise, callback=lambda k, t, y: states.append(y.clone()))
    worst = 0.0
    for k in range(1, len(nodes) - 1):
        end = solve(task.process, x, solver=solver, grid=nodes[: k + 1], noise=noise).x
        worst = max(worst, _apart(end, states[k - 1]))
    return exact_row(f"depends on no later node, {task.name}", worst, ROUNDING)


def _tiny_last_step(solver: Method, task: _Task) -> Row:
    """After steps of 0.05 one of 1e-6: what it changes, beside what the step before it changed."""
    nodes = torch.cat(
        [torch.arange(19, 7, -1, dtype=torch.float64) / 20, torch.tensor([0.4 - 1e-6], dtype=torch.float64)]
    )
    states, x = [], torch.tensor([[0.3], [-0.2], [0.9], [1.4]], dtype=torch.float64) * MEAN
    solve(task.process, x, solver=solver, grid=nodes, seed=3, callback=lambda k, t, y: states.append(y.clone()))
    before, last = ((states[k] - states[k - 1]).norm() for k in (-2, -1))
    what = f"a tiny last step changes little, {task.name}"
    return exact_row(what, float(last / before), 0.2, "the last step is taken with the length of another.")


def _law_error(found: AffineMap, start: tuple[Tensor, Tensor], goal: tuple[Tensor, Tensor]) -> float:
    """Of means and variances, in units of the exact spread, over all coordinates."""
    mean, covariance = found.law(start[0], start[1].diag())
    shift, ratio = (mean - goal[0]) / goal[1].sqrt(), covariance.diagonal() / goal[1] - 1
    return float(torch.cat([shift, ratio]).norm())


def _apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / b.abs().clamp_min(1.0)).max())


def _first(*orders: float | None) -> float | None:
    return next((order for order in orders if order is not None), None)


def _many(nfe: object) -> bool:
    return isinstance(nfe, Tensor) and nfe.ndim > 0
