r"""The walk of an adaptive solver: every sample with a clock, a step size and an error of its own.

A method says how to try a step and what its error is. The walk accepts or rejects each sample's step by

.. math:: r = \Bigl\|\frac{e}{a_{tol} + r_{tol}\max(|x_s|, |x_t|)}\Bigr\|_{RMS} \le 1

over the coordinates of that sample, and sets the next step to
:math:`h\,\theta\,r^{-\alpha}r_{prev}^{\beta}`: a proportional-integral controller, which remembers the error before. Samples
that have arrived leave the batch, so nothing is evaluated for them any more; the others never learn of it. The walk lands
on each wanted time, so what it gives there is no interpolation. Once per round of attempts it reads two flags back from the
device.

Source: Hairer and Wanner, Solving Ordinary Differential Equations II, chapter IV.2 (step control); Hairer, Nørsett and
Wanner, part I, chapter II.4 (norms, limits).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import counting
from ..checks import check_count, float64
from ..errors import NonFiniteError, SolveError
from ..noise import Noise
from ..sde import SDE
from .base import Integrator, Interval, Trajectory
from .bounded import check_tolerances, warn_if_too_fine
from .checkpointed import Tape

Drift = Callable[[Tensor, Tensor], Tensor]
"""The drift of the samples under way, at states (n, *event) and times (n,)."""


@dataclass(frozen=True)
class Controller:
    r"""The proportional-integral rule for the next step, :math:`h\,\theta\,r^{-\alpha}r_{prev}^{\beta}`.

    Args:
        order: k, where the error of one step is of order :math:`h^k`; :math:`\alpha = (1 - 0.75m)/k`, :math:`\beta = m/k`.
        memory: m, how much the error before counts; above 4/7 steps no longer recover from being short.
        safety: :math:`\theta`.
        smallest, largest: bounds on the change of h from one step to the next.
    """

    order: float
    memory: float = 0.4
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0

    def factor(self, ratio: Tensor, previous: Tensor, accepted: Tensor, after_rejection: Tensor) -> Tensor:
        """What to multiply h with, (n,), from the errors (n,) of this step and of the last accepted one."""
        alpha, beta = (1 - 0.75 * self.memory) / self.order, self.memory / self.order
        remembered = ratio.pow(-alpha) * previous.pow(beta)
        change = self.safety * torch.where(accepted, remembered, ratio.pow(-1 / self.order))
        most = torch.where(accepted & ~after_rejection, self.largest, 1.0)
        return torch.minimum(change.clamp_min(self.smallest), most)


class Adaptive(Integrator):
    """Base of the native solvers that choose their steps, each sample its own.

    Args:
        rtol, atol: the error allowed in one step, relative to the state and in its units.
        max_steps: the most steps tried for one sample, rejected ones among them.

    With ``differentiable=True`` the steps are found without the graph and then taken once more with it, in memory that
    grows as the root of their number. The steps themselves are held constant: no gradient flows through their sizes.

    Raises:
        TypeError: ``max_steps`` is no whole number.
        ValueError: a tolerance or ``max_steps`` is not positive.
        SolveError: a sample did not arrive within ``max_steps``, or its step became too small to move its clock.
        NonFiniteError: a sample's step comes out NaN or infinite, however small.
    """

    controller: Controller

    def __init__(self, *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000):
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.max_steps = check_count(max_steps, "max_steps")

    @abstractmethod
    def open(self, samples: Samples, x: Tensor, t: Tensor, noise: Noise) -> Attempts:
        """The attempts of one solve, from states x (B, *event) at times t (B,)."""

    @abstractmethod
    def retake(self, samples: Samples, taken: Taken, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """A step taken before, from the states x (n, *event) of its samples: the new states, and what to keep for the next."""

    @abstractmethod
    def kept(self, samples: Samples, x: Tensor, t: Tensor) -> Tensor:
        """What the first step finds kept, (B, ...)."""

    def integrate(self, process: SDE, x: Tensor, interval: Interval) -> Trajectory:
        """Walks each sample from wanted time to wanted time."""
        warn_if_too_fine(self.rtol, self.atol, x)
        with torch.no_grad():
            walk = Walk(self, process, x.detach(), interval)
            walk.run()
        states = _again(self, walk, x) if interval.differentiable else walk.states
        return Trajectory(states, walk.steps, walk.rejected, walk.samples.evaluations())


class Samples:
    """A process restricted to the samples under way, and the score evaluations that each sample has received.

    Args:
        process: for the whole batch.
        x: the batch's states.
    """

    def __init__(self, process: SDE, x: Tensor):
        self.process, self.batch = process, x.shape[0]
        self.ids = torch.arange(self.batch, device=x.device)
        self.within = process
        self._received = torch.zeros(self.batch, dtype=torch.float32, device=x.device)
        self._together = 0.0  # what all under way have received on top of that

    def go_on(self, ids: Tensor) -> None:
        """Restrict to these samples of the batch, (n,)."""
        self._settle()
        self.ids = ids
        self.within = self.process if len(ids) == self.batch else self.process.rows(ids, self.batch)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift of the samples under way."""
        slope, cost = _counted(self.within, x, t)
        self._together += cost
        return slope

    def drift_of(self, rows: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The drift of some of the samples under way, given by their rows among them."""
        if len(rows) == len(self.ids):
            return self.drift(x, t)
        ids = self.ids[rows]
        slope, cost = _counted(self.process.rows(ids, self.batch), x, t)
        self._received[ids] += cost
        return slope

    def evaluations(self) -> Tensor:
        """Score evaluations received, (B,): integers, where they are."""
        self._settle()
        rounded = self._received.round().long()
        return rounded if bool((self._received == rounded).all()) else self._received.clone()

    def _settle(self) -> None:
        self._received[self.ids] += self._together
        self._together = 0.0


def _counted(process: SDE, x: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """The drift, and how many score evaluations each row took."""
    with counting.count() as tally:
        slope = process.drift(x, t)
    return slope, tally.rows / len(x)


class Attempts(ABC):
    """What an adaptive method does in one solve. Its rows are those of the samples under way."""

    stop: Tensor | None = None
    """Times (n,) that the next step must not pass, NaN where there is none."""

    @abstractmethod
    def first(self, span: float) -> Tensor:
        """Lengths (n,) of the first step, for an interval of signed length ``span``."""

    @abstractmethod
    def attempt(self, x: Tensor, t: Tensor, t_new: Tensor) -> tuple[Tensor, Tensor]:
        """The state at t_new from x at t, and an estimate of its error, both (n, *event)."""

    @abstractmethod
    def settle(self, x: Tensor, t: Tensor, accepted: Tensor) -> None:
        """Prepare for the next attempt, from x and t, after each sample's step was accepted or rejected."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Forget all samples but these."""

    def increments(self, rows: Tensor) -> Tensor | None:
        """The Brownian increments of the last attempt, for a method that has noise."""
        return None


@dataclass(frozen=True)
class Taken:
    """Steps that samples took in one round: who (n,), from when to when (n,), driven by what, and who reached which time."""

    ids: Tensor
    t: Tensor
    t_new: Tensor
    increments: Tensor | None
    goal: Tensor
    """The number of the wanted time reached, or -1."""


class Walk:
    """One solve. Fields of length n have a row for each sample under way; ``samples.ids`` names them."""

    def __init__(self, method: Adaptive, process: SDE, x: Tensor, interval: Interval):
        clock = float64(torch.zeros((), device=x.device)).dtype
        batch = x.shape[0]
        self.method = method
        self.times = interval.times.to(x.device, clock)
        span = float(interval.times[-1] - interval.times[0])
        self.sign, self.span = math.copysign(1.0, span), abs(span)
        self.samples = Samples(process, x)
        self.x, self.t = x, self.times[0].expand(batch).clone()
        self.goal = torch.ones(batch, dtype=torch.long, device=x.device)
        self.states = [x, *(torch.empty_like(x) for _ in self.times[1:])]
        self.steps = torch.zeros(batch, dtype=torch.long, device=x.device)  # of those that have arrived
        self.rejected = torch.zeros_like(self.steps)
        self.count = torch.zeros_like(self.steps)  # of those under way
        self.rounds = 0  # attempts of each of those under way
        self.taken: list[Taken] | None = [] if interval.differentiable else None
        self.attempts = method.open(self.samples, x, self.t, interval.noise)
        self.length = torch.maximum(self.attempts.first(span).to(clock), self._smallest())
        self.previous = torch.ones_like(self.t)
        self.refused = torch.zeros_like(self.goal, dtype=torch.bool)  # the last attempt was

    def run(self) -> None:
        """Attempts in rounds, until every sample has arrived."""
        for _ in range(self.method.max_steps):
            arrived, failed = self._round()
            if failed:
                self._fail()
            if arrived and self._land():
                return
        raise SolveError(
            f"{type(self.method).__name__} reached max_steps = {self.method.max_steps} "
            f"{self._where(torch.ones_like(self.refused))}. Loosen rtol and atol, raise max_steps, or end the solve further "
            "from a time where the drift is infinite."
        )

    def _round(self) -> list[bool]:
        """One attempt for every sample under way; whether any arrived, and whether any failed."""
        h, t_new, self.arrives = self._next()
        new, error = self.attempts.attempt(self.x, self.t, t_new)
        ratio = self._ratio(new, error)
        accepted = ratio <= 1
        self.broken = torch.isinf(ratio)
        factor = self.method.controller.factor(ratio, self.previous, accepted, self.refused)
        length = h * factor
        kept_short = accepted & (h < self.length)  # to land: the next may be as long as this was meant to be
        self.length = torch.where(kept_short, torch.maximum(length, self.length), length)
        self.previous = torch.where(accepted, ratio.clamp_min(1e-4), self.previous)
        self.refused = ~accepted
        self.arrives &= accepted
        self.count, self.rounds = self.count + accepted, self.rounds + 1
        if self.taken is not None:
            self._record(accepted, t_new)
        self.x = torch.where(_beside(accepted, new), new, self.x)
        self.t = torch.where(accepted, t_new, self.t)
        self.failed = self.refused & (self.length < self._smallest())
        self.attempts.settle(self.x, self.t, accepted)
        return torch.stack([self.arrives.any(), self.failed.any()]).tolist()

    def _next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The length of the next step, where it ends, and whether that is a wanted time."""
        target = self.times[self.goal]
        mine = torch.ones_like(self.refused)
        if self.attempts.stop is not None:
            mine = ~(self.sign * (target - self.attempts.stop) > 0)
            target = torch.where(mine, target, self.attempts.stop)
        rest = (target - self.t).abs()
        reaches = self.length >= rest
        h = torch.where(reaches, rest, torch.minimum(self.length, 0.5 * rest))  # two equal steps, rather than a sliver
        return h, torch.where(reaches, target, self.t + self.sign * h), reaches & mine

    def _ratio(self, new: Tensor, error: Tensor) -> Tensor:
        """The error in units of the tolerance, (n,); infinite where anything is not finite."""
        scale = self.method.atol + self.method.rtol * torch.maximum(self.x.abs(), new.abs())
        ratio = rms(error / scale)
        finite = torch.isfinite(new).reshape(len(new), -1).all(1) & torch.isfinite(ratio)
        return torch.where(finite, ratio, torch.inf).to(self.t.dtype)

    def _smallest(self) -> Tensor:
        return 8 * torch.finfo(self.t.dtype).eps * (self.t.abs() + self.span)

    def _record(self, accepted: Tensor, t_new: Tensor) -> None:
        assert self.taken is not None
        rows = torch.nonzero(accepted).flatten()
        if len(rows) == 0:
            return
        goal = torch.where(self.arrives, self.goal, -1)[rows]
        driven = self.attempts.increments(rows)
        self.taken.append(Taken(self.samples.ids[rows], self.t[rows], t_new[rows], driven, goal))

    def _land(self) -> bool:
        """Hand in the states that have reached a wanted time; True when none is under way any more."""
        ids = self.samples.ids
        for number in self.goal[self.arrives].unique().tolist():
            rows = torch.nonzero(self.arrives & (self.goal == number)).flatten()
            self.states[number][ids[rows]] = self.x[rows]
        self.goal = self.goal + self.arrives
        there = self.goal == len(self.times)
        rows = torch.nonzero(~there).flatten()
        if len(rows) < len(ids):
            self.steps[ids[there]] = self.count[there]
            self.rejected[ids[there]] = self.rounds - self.count[there]
            self._go_on(rows)
        return len(rows) == 0

    def _go_on(self, rows: Tensor) -> None:
        """Without the samples that have arrived."""
        if len(rows) == 0:
            return
        self.samples.go_on(self.samples.ids[rows])
        for name in ("x", "t", "goal", "length", "previous", "refused", "count"):
            setattr(self, name, getattr(self, name)[rows])
        self.attempts.keep(rows)

    def _fail(self) -> None:
        broken = self.failed & self.broken
        if not bool(broken.any()):
            raise SolveError(
                f"The step of {type(self.method).__name__} became too small to go on {self._where(self.failed)}. Loosen rtol "
                "and atol; if the drift is infinite near there, end the solve further from that time."
            )
        row = int(torch.nonzero(broken)[0])
        raise NonFiniteError(
            f"A step came out NaN or infinite, however small, {self._where(broken)}. Check the score there; where drift or "
            "noise is infinite at an end of the clock, start or stop a little inside.",
            step=int(self.count[row]),
            t=float(self.t[row]),
            samples=self.samples.ids[broken].tolist(),
            state=self._current(),
        )

    def _where(self, rows: Tensor) -> str:
        ids = self.samples.ids[rows]
        first = int(torch.nonzero(rows)[0])
        return (
            f"for {len(ids)} of {self.samples.batch} samples (first: {ids[:5].tolist()}): sample {int(ids[0])} after "
            f"{int(self.count[first])} steps at t = {float(self.t[first]):.6g}, next step {float(self.length[first]):.2g}"
        )

    def _current(self) -> Tensor:
        """Where every sample is."""
        state = self.states[-1].clone()
        state[self.samples.ids] = self.x
        return state


def _again(method: Adaptive, walk: Walk, x: Tensor) -> list[Tensor]:
    """The states at the wanted times once more, with the graph, by the steps that the walk has found."""
    taken = walk.taken or []
    samples = walk.samples
    samples.go_on(torch.arange(samples.batch, device=x.device))
    parts: list[list[Tensor]] = [[] for _ in walk.times]
    owners: list[list[Tensor]] = [[] for _ in walk.times]

    def advance(k: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        part = taken[k]
        samples.go_on(part.ids)
        new, kept = method.retake(samples, part, state[0][part.ids], state[1][part.ids])
        return state[0].index_copy(0, part.ids, new), state[1].index_copy(0, part.ids, kept)

    state: tuple[Tensor, ...] = (x, method.kept(samples, x, walk.times[0].expand(samples.batch)))
    tape = Tape(advance, len(taken))
    for k, part in enumerate(taken):
        state = tape.step(k, state)
        for number in part.goal.unique().tolist():
            if number >= 0:
                ids = part.ids[part.goal == number]
                parts[number].append(state[0][ids])
                owners[number].append(ids)
    ordered = [torch.cat(p)[torch.argsort(torch.cat(o))] for p, o in zip(parts[1:], owners[1:], strict=True)]
    return [x, *ordered]


def rms(values: Tensor) -> Tensor:
    """The root mean square over the coordinates of each sample, (n,)."""
    flat = values.reshape(len(values), -1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32)).square().mean(1).sqrt()


def _beside(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.ndim - 1))
