"""Is this process what it says? One call for any process, shipped or written this morning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..affine import AffineSDE
from ..densities import Density, Mixture, as_density
from ..nonlinear import KernelSDE
from ..nonlinear.laws import Independent
from ..sde import ODE, SDE, Linear, derived
from ..solvers import RK4, StochasticHeun
from ..threads import one_thread, threads_for
from .attempt import attempt, told
from .budget import FEWEST, affordable, check_options
from .chains import Chains, UnsettledError, spread
from .contract import Probe, contract
from .identity import langevin_panel
from .laws import Diffused, Fixed, Law, Started
from .moments import Kernel, kernel_rows
from .operator import jacobian
from .particles import Panel, backward_test, convergence_panel, forward_test, merged, turning
from .report import Report, Row, fact_row, judge
from .reversal import LARGEST, POINTS, Scene, divergence_rows, law_row, reversal_rows
from .schedule import has_prior, schedule_rows
from .statistics import Outcome

_INTERIOR = 5
_STARTS = 8  # points from which a process with a kernel of another kind starts
_SIGNAL, _NOISE = 4.0, -4.0  # log of signal over noise between which the interior times lie
_FIRST, _LAST = -3.0, 1.5  # and between which reversals are run
_INVARIANT = "Fokker-Planck: the invariant law stays"
_OFF_THE_WALL = 1e3  # times the floor of a process with walls
_TABLE = 64  # times at which a clock for their steps is asked about


def check_sde(
    sde: SDE,
    density: Density | None = None,
    *,
    event_shape: tuple[int, ...] | None = None,
    budget: float = 5.0,
    n: int | None = None,
    seed: int = 0,
    level: float = 1e-4,
) -> Report:
    r"""Check a process, your own above all: its contract, its mathematics, and what particles make of it.

    **Contract**: f of x's shape, g in a form that cannot broadcast by accident; both finite, repeatable, the same for every
    form of the time, differentiable in x by autograd, and for each sample what they are for it alone.

    **Mathematics**, in float64: a kernel against the moment equations of f and g, from x_0 at t = 0; its schedule, transition
    and prior against it; :math:`\nabla\cdot(GG^\top)` against differences; the Fokker-Planck equations of the law, of the
    reversals and of the flow, pointwise.

    **Particles**: forward against the kernel; the reverse SDE and the flow from the exact law to the exact law. Without a
    kernel: convergence as the step is halved, and the Langevin identity. What no affordable number of steps settles is named.

    What raises an error in f or g fails the row that called it; what cannot be checked is named with the reason.

    Args:
        sde: a process with noise that runs forward; an ODE is checked as far as that goes.
        density: a law of x_0, which also shows where the states live. By default a mixture of three Gaussians.
        event_shape: of one sample of the data, where there is no density; (2,) by default.
        budget: seconds, by which the number of particles is chosen. The exact checks come first and take what they take.
        n: particles, instead of a budget: then the report is the same on every machine.
        seed: of all random numbers.
        level: the probability of a false alarm, for all tests by particles together.

    Raises:
        TypeError: sde is no SDE, or seed no whole number.
        ValueError: sde is a reversal, event_shape is not that of the density or does not fit the process, or budget, n or
            level makes no sense.
    """
    started = time.perf_counter()
    case = _case(sde, density, event_shape)
    check_options(seed, n=n, budget=budget, level=level, least=FEWEST)
    title = f"Check of {type(sde).__name__}"
    with one_thread():  # a few states at a time
        rows = contract(case.probe, seed)
        if len(rows) < 3:  # f and g cannot even be called
            return Report(title, rows, (case.setting,), ("all the rest, which calls f and g.",))
        rows += case.exact(seed)
    spent = time.perf_counter() - started
    found, notes = _by_particles(case, max(budget - spent, 0.1 * budget), n, seed, level)
    return Report(title, rows + found, (case.setting, *case.end, *notes), tuple(case.unchecked))


@dataclass
class Case:
    """A process with all that is known of it.

    Args:
        sde: the process.
        density: the law of the data, float64.
        given: whether the user gave it.
    """

    sde: SDE
    density: Density
    given: bool

    def __post_init__(self) -> None:
        self.unchecked: list[str] = []
        self.broken: tuple[Row, ...] = ()

    @cached_property
    def event_shape(self) -> tuple[int, ...]:
        """Of a state, which may be more than data: critically damped Langevin appends velocities."""
        return tuple(self._lifted(torch.zeros(1, *self.density.event_shape, dtype=torch.float64)).shape[1:])

    def _lifted(self, x0: Tensor) -> Tensor:
        lift = getattr(self.sde, "lift", None)
        return lift(x0) if callable(lift) else x0

    @property
    def size(self) -> int:
        """D, the number of coordinates."""
        return math.prod(self.event_shape)

    @property
    def horizon(self) -> float:
        """The end of the clock, 1 where it has none."""
        return self.sde.t_max if math.isfinite(self.sde.t_max) else 1.0

    @cached_property
    def linear(self) -> Any:
        """The process with a kernel: itself, or what is derived from its f and g; None, and a reason, where there is none."""
        if isinstance(self.sde, KernelSDE):
            return None
        if isinstance(self.sde, Linear) or type(self.sde).perturb is not SDE.perturb:
            return self.sde
        try:
            found = derived(self.sde, tuple(self.density.event_shape))
            Kernel(found, self.event_shape).at(0.5 * self.horizon)
            return found
        except Exception as error:
            self.unchecked.append(
                f"kernel, and the law at t > 0: x_t given x_0 is not known to be Gaussian. {told(error)}"
            )
            return None

    @cached_property
    def kernel(self) -> Kernel | None:
        """The kernel read off, where there is one; a row of its own where it cannot be had."""
        if self.linear is None:
            return None
        kernel = Kernel(self.linear, self.event_shape)
        try:
            kernel.at(0.5 * self.horizon)
            return kernel
        except Exception as error:
            if self._noiseless:  # a case that the package refuses: right or wrong, the process has no say in it
                self.unchecked.append(f"kernel, and the law at t > 0: {told(error)}")
            else:
                self.broken = (fact_row("kernel: perturb(x0, t, noise)", told(error)),)
            return None

    @property
    def _noiseless(self) -> bool:
        """Whether some combination of coordinates never gets noise, so that x_t given x_0 has no density."""
        if not isinstance(self.linear, AffineSDE):
            return False
        middle = torch.tensor(0.5 * self.horizon, dtype=torch.float64)
        variances = torch.linalg.eigvalsh(self.linear.moments(middle).covariance)
        return bool((variances[..., 0] <= 1e-12 * variances[..., -1]).any())

    @cached_property
    def times(self) -> list[float]:
        """Interior times: evenly spread in log(signal/noise) where a kernel gives it, else evenly."""
        even = [self.horizon * (k + 1) / (_INTERIOR + 1) for k in range(_INTERIOR)]
        if self.kernel is None:
            return even
        try:
            first, last = self.kernel.time_of(_SIGNAL, self.horizon), self.kernel.time_of(_NOISE, self.horizon)
            low, high = self.kernel.log_ratio(first), self.kernel.log_ratio(last)
            inside = [low + (high - low) * (k + 0.5) / _INTERIOR for k in range(_INTERIOR)]
            found = [self.kernel.time_of(v, self.horizon) for v in inside]
        except Exception:  # a broken kernel: its own rows will say so
            return even
        rising = all(a < b for a, b in zip([0.0, *found], [*found, self.horizon], strict=True))
        return found if rising else even

    @property
    def early(self) -> list[float]:
        """Two times before the interior ones, from t_min or a thousandth of the first: for what goes wrong there alone."""
        first = max(self.sde.t_min, 1e-3 * self.times[0])
        return [first, math.sqrt(first * self.times[0])] if first < self.times[0] else []

    @cached_property
    def probe(self) -> Probe:
        """Where the contract is looked at."""
        ends = [t for t in (self.sde.t_min, self.horizon) if t > 0 and not (t == self.horizon and self._pure_noise)]
        return Probe(self.sde, self.start, self.times, ends)

    @property
    def _pure_noise(self) -> bool:
        """Whether nothing of x_0 is left at the end, where f or g may then be infinite."""
        try:
            return self.kernel is not None and float(self.kernel.at(self.horizon).map.abs().max()) == 0
        except Exception:
            return False

    def data(self, n: int, generator: torch.Generator) -> Tensor:
        """Samples of the data, as states."""
        return self._inside(self._lifted(self.density.sample(n, generator=generator)))

    @cached_property
    def invariant(self) -> Density | None:
        """The law that the process says it settles in."""
        return _settled(self.sde, self.event_shape)

    def _inside(self, x: Tensor) -> Tensor:
        """States off the walls of the domain: next to them f, g and scores are, as documented, those of a point further in."""
        if not isinstance(self.invariant, Independent):
            return x
        room = _OFF_THE_WALL * self.invariant.floor
        return x.clamp(room, self.invariant.end - room)

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Samples of x_0: the data, with the noise that the process itself starts with, if any."""
        return self.begun(self.data(n, generator), generator)

    def begun(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Data as states at t = 0: with that noise."""
        if getattr(self.sde, "start_covariance", None) is None:
            return x
        return self.linear.perturb(x, 0.0, torch.randn(x.shape, generator=generator, dtype=torch.float64))

    @cached_property
    def law(self) -> Law:
        """The law at every t where it has a closed form, else a smooth density taken at one time."""
        closed = type(self.density).diffused is not Density.diffused
        if self.kernel is None and not isinstance(self.sde, KernelSDE):
            return Fixed(self.density)
        try:
            if isinstance(self.sde, KernelSDE):
                law: Law = Started(self.sde, self.data(_STARTS, torch.Generator().manual_seed(0)))
            else:
                law = Diffused(self.linear, self.density if closed else default_density(self.density.event_shape))
            law.log_prob(self.start(2, torch.Generator().manual_seed(0)), self.times[0])
            return law
        except Exception as error:
            known = self.given or self.invariant is not None  # states where the process lives, that is
            if isinstance(self.sde, KernelSDE) and known:
                self.broken += (fact_row("kernel: marginal(x0, t)", told(error)),)
            self.unchecked.append(f"the law at t > 0, and reversals by particles: {told(error)}")
            return Fixed(self.density)

    @property
    def setting(self) -> str:
        """One sentence: the states and the law."""
        whose = "as given" if self.given else "by default"
        return (
            f"States of shape {self.event_shape}, x_0 from {type(self.density).__name__} {whose}; exact rows at t = "
            f"{', '.join(f'{t:.3g}' for t in self.times)}, f and g from {min(self._looked_at):.3g} to "
            f"{max(self._looked_at):.3g}."
        )

    @property
    def _looked_at(self) -> list[float]:
        return [*self.probe.times, *self.probe.ends]

    @property
    def end(self) -> tuple[str, ...]:
        """One sentence on what a prior that knows nothing of the data leaves out."""
        try:
            moments = self.kernel.at(self.horizon) if self.kernel is not None else None
        except Exception:
            moments = None
        if moments is None:
            return ()
        left, spread = float(moments.map.abs().max()), float(moments.covariance.diagonal().mean().sqrt())
        return (
            f"At t_max = {self.horizon:g} there is {left:.2g} of x_0 beside noise of standard deviation {spread:.4g}: what is "
            "started from noise alone misses that much of the data.",
        )

    def exact(self, seed: int) -> tuple[Row, ...]:
        """All rows without a p-value but the contract."""
        kernel, law, rows = self.kernel, self.law, self.broken
        if kernel is not None:
            x = self.start(16, torch.Generator().manual_seed(seed))
            rows += tuple(kernel_rows(self.sde, kernel, [*self.early, *self.times], x))
            rows += tuple(schedule_rows(self.linear, kernel, self.times))
            if not has_prior(self.linear):
                self.unchecked.append(f"prior: {type(self.sde).__name__} names no law at t_max.")
        if self.size > LARGEST:
            self.unchecked.append(
                f"∇·(GGᵀ) and the Fokker-Planck equation: {self.size} coordinates ask for {self.size}² derivatives. If the "
                f"process treats coordinates alike, check it with event_shape=(2,) as well."
            )
            return rows
        if self.sde.direction == 0:
            self.unchecked.append("reversals: an ODE has no noise, and runs both ways.")
            return rows
        rows += tuple(divergence_rows(self.probe, seed))
        scene, times = self.scene(seed), self.times[1::2]
        if scene is None:
            return rows
        if law.moves:
            what = "Fokker-Planck: p_t moves as f and g say"
            rows += attempt(what, lambda: [law_row(scene, times, what)])
        if self.invariant is not None:
            settled = Scene(self.sde, Fixed(self.invariant), scene.points)
            rows += attempt(_INVARIANT, lambda: [law_row(settled, times, _INVARIANT)])
        return rows + tuple(reversal_rows(scene, times))

    def scene(self, seed: int) -> Scene | None:
        """What the residuals are taken of. The points lie where the process lives; without a law any smooth p will do there."""
        law, generator = self.law, torch.Generator().manual_seed(seed)
        if law.moves:
            return Scene(
                self.sde, law, lambda t: self._inside(law.sample(POINTS, t, torch.Generator().manual_seed(seed)))
            )
        x = self.start(4 * POINTS, generator).reshape(4 * POINTS, -1)
        smooth = Mixture(x[:3].reshape(3, *self.event_shape), std=float(x.std()) + 1e-3, weights=[1.0, 2.0, 3.0]).to(
            dtype=torch.float64
        )
        points = x[-POINTS:].reshape(POINTS, *self.event_shape)
        return Scene(self.sde, Fixed(smooth), lambda t: points)

    def panels(self, seed: int, seconds: float = math.inf) -> list[Panel]:
        """The tests by particles, those that no trial of so many seconds settles left out."""
        sde, panels = self.sde, []
        if self.kernel is None:
            panels.append(convergence_panel(sde, self._calm(seed), self.start))
            if sde.direction == 1 and self.given and not isinstance(sde, KernelSDE):
                try:
                    panels.append(langevin_panel(sde, Fixed(self.density), 0.5 * self.horizon, seed))
                except Exception as error:  # a density with hard edges, or a set of points
                    self.unchecked.append(f"the Langevin identity by particles: {told(error)}")
            return panels
        end = self.kernel.time_of(0.0, self.horizon)
        tests = [forward_test(sde, self.kernel, end, self.data, self.begun)]
        if self.law.moves:
            score, (nodes, turned) = self.law.score, self._nodes()
            flow = sde.probability_flow(score)
            solver = RK4() if isinstance(flow, ODE) else StochasticHeun()  # a flow of one's own may be any SDE
            reverse = Chains(sde.reverse(score), StochasticHeun(), nodes, turned=turned)
            tests.append(backward_test("reverse", self.law, reverse))
            tests.append(backward_test("flow", self.law, Chains(flow, solver, nodes, turned=turned)))
        for test in tests:
            try:
                panels.append(test.panel(seed, seconds))
            except UnsettledError as error:
                self.unchecked.append(f"{test.what.split(':')[0]} by particles: {error}")
        return panels

    def _nodes(self) -> tuple[Callable[[int], Tensor], float]:
        """Falling times, spread evenly in log(signal/noise) and in what the drift does to states; the whole of the latter."""
        assert self.kernel is not None
        first = self.kernel.time_of(_FIRST, self.horizon)
        # Where the clock ends before there is that much noise, as far from its end.
        last = self.kernel.time_of(max(self.kernel.log_ratio(first), _FIRST) + _LAST - _FIRST, self.horizon)
        times = torch.logspace(math.log2(first), math.log2(last), _TABLE + 1, base=2.0, dtype=torch.float64)
        times[0], times[-1] = first, last
        ratio = torch.tensor([self.kernel.log_ratio(t) for t in times.tolist()], dtype=torch.float64)
        turns = turning(self.sde, self.event_shape, times)
        return spread(times, ratio.diff().clamp_min(1e-9) + turns), float(turns.sum())

    def _calm(self, seed: int) -> float:
        """A time over which Euler-Maruyama is stable in 64 steps."""
        x = self.start(POINTS, torch.Generator().manual_seed(seed))
        rate = torch.linalg.matrix_norm(jacobian(lambda x: self.sde.drift(x, self.times[0]), x), 2).quantile(0.99)
        return min(self.sde.t_min + 0.5 * (self.horizon - self.sde.t_min), self.sde.t_min + 8 / max(float(rate), 1e-12))


def default_density(event_shape: tuple[int, ...]) -> Density:
    """A mixture of three Gaussians of unequal widths and weights."""
    means = torch.randn(3, *event_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Mixture(means, std=[0.3, 0.6, 0.4], weights=[1.0, 2.0, 3.0]).to(dtype=torch.float64)


def _case(sde: SDE, density: Density | None, event_shape: tuple[int, ...] | None) -> Case:
    """The arguments, checked."""
    if not isinstance(sde, SDE):
        made = isinstance(sde, type) and issubclass(sde, SDE)
        hint = f"the class {sde.__name__}: write {sde.__name__}(...)" if made else type(sde).__name__  # type: ignore[attr-defined]
        raise TypeError(f"sde must be an SDE, got {hint}.")
    if sde.direction < 0:
        raise ValueError(
            f"{type(sde).__name__} is a reversal: check the process before its reversal, {type(sde).__name__}.sde."
        )
    if event_shape is not None:
        event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if density is not None:
        law = as_density(density).to(torch.device("cpu"), torch.float64)
        if callable(getattr(sde, "lift", None)) and not law.event_shape:
            _check_lift(sde, law)
        if event_shape not in (None, tuple(law.event_shape)):
            raise ValueError(
                f"event_shape = {event_shape}, but the density has states of shape {law.event_shape}: give one of the two."
            )
        return Case(sde, law, True)
    known = getattr(sde, "event_shape", None) or getattr(getattr(sde, "score", None), "event_shape", None)
    shape = event_shape if event_shape is not None else tuple(known) if known else (2,)
    return Case(sde, _settled(sde, shape) or default_density(shape), False)


def _check_lift(sde: Any, density: Density) -> None:
    """Raise where a process that appends to its data cannot append to plain numbers."""
    try:
        sde.lift(torch.zeros(1, dtype=torch.float64))
    except ValueError as error:
        raise ValueError(
            f"{type(sde).__name__} appends coordinates to its data, and {type(density).__name__} has plain numbers, states of "
            "shape (): give a density with states of shape (1,) or more, such as Mixture([[-1.0], [1.0]], std=0.3)."
        ) from error


def _settled(sde: SDE, shape: tuple[int, ...]) -> Density | None:
    """The invariant law of a process that says which it is: that shows where its states live."""
    if not isinstance(sde, KernelSDE):
        return None
    try:
        return as_density(sde.invariant(shape)).to(torch.device("cpu"), torch.float64)
    except NotImplementedError:
        return None


def _by_particles(
    case: Case, seconds: float, n: int | None, seed: int, level: float
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows with a p-value, and how they came about."""
    started = time.perf_counter()
    try:
        with one_thread():  # a thousand particles
            panels = case.panels(seed, math.inf if n else 0.5 * seconds)
        if not panels:
            return (), ()
        panel, spent = _threaded(merged(panels), case.size), time.perf_counter() - started
        count = n or affordable(lambda count: panel(count, seed + 1), max(seconds - spent, 0.1 * seconds))
        rows = judge(panel, count, seed, level)
    except Exception as error:
        return (fact_row("particles", told(error)),), ()
    chosen = "as asked for" if n else f"which {seconds:.2g} s allow"
    return rows, (
        f"{count:,} particles, {chosen}; level {level:g} for all tests by particles together, each effect under 'detects' "
        "seen with probability 0.99.",
    )


def _threaded(panel: Panel, size: int) -> Panel:
    """The panel, with as many threads as n particles of this size are worth."""

    def threaded(n: int, seed: int) -> dict[str, Outcome]:
        with threads_for(n * size):
            return panel(n, seed)

    return threaded
