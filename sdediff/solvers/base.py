"""What a solver is.

To write a one-step solver:

1. Subclass :class:`Solver` and write ``step(process, x, s, t, noise)``: the state at t from the state x at s.
2. Times are floats on the clock of the process: t < s when it is solved backwards, so ``t - s`` carries the sign.
3. ``process.drift(x, s)`` is the drift and ``process.diffusion(x, s) @ dw`` applies the noise;
   ``noise.increment(s, t)`` is the Brownian increment, N(0, |t - s|) of x's shape.
4. Set ``requires`` if the solver needs more than an SDE, and the ``orders`` you claim.

A solver that can do work once for the whole grid, or that remembers earlier steps, overrides :meth:`Solver.prepare`
instead; one that remembers says what by returning :class:`Remembering`. A backend that takes the whole interval subclasses
:class:`Integrator`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass

from torch import Tensor

from ..noise import Noise, Stream
from ..sde import SDE

Advance = Callable[[int, Tensor], Tensor]
"""``advance(k, x)``: the state at node k + 1 from the state x at node k."""


class Remembering:
    """An ``advance`` that remembers earlier steps, with the lists it does so in, for whoever has to repeat a step.

    Args:
        advance: the function.
        memory: lists or deques of tensors that, with x, decide what it does next.
    """

    def __init__(self, advance: Advance, *memory: MutableSequence[Tensor]):
        self.advance, self.memory = advance, memory

    def __call__(self, k: int, x: Tensor) -> Tensor:
        return self.advance(k, x)


def memory_of(*advances: Advance) -> tuple[MutableSequence[Tensor], ...]:
    """The lists in which these remember earlier steps, for a solver made of others."""
    return tuple(part for advance in advances if isinstance(advance, Remembering) for part in advance.memory)


@dataclass(frozen=True)
class Orders:
    """The orders of convergence that a solver claims; None where it makes no claim."""

    strong: float | None = None
    strong_additive: float | None = None
    weak: float | None = None
    weak_additive: float | None = None
    ode: float | None = None


class Method(ABC):  # noqa: B024 - step, prepare or integrate is what a kind of solver adds
    """What fixed-step solvers and whole-interval integrators have in common."""

    requires: type = SDE
    """The kind of process it can take."""
    instead: str = ""
    """What to use for a process it cannot take: a clause for the error message."""
    orders: Orders = Orders()
    couples_samples: bool = False
    """True where the result for one sample depends on the others, as with a step size shared by a batch."""

    @property
    def chooses_steps(self) -> bool:
        """True where it takes tolerances and no number of steps."""
        return False

    def check(self, process: SDE) -> None:
        """Raise unless the process is of the kind this solver can take."""
        if not isinstance(process, self.requires):
            kind = vars(self.requires).get("described", f"a process of type {self.requires.__name__}")
            raise TypeError(
                f"{type(self).__name__} needs {kind}, got {type(process).__name__}"
                + (f": {self.instead}." if self.instead else ".")
            )


class Solver(Method):
    """A solver on a grid given beforehand; the module says how to write one."""

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        """The state at t from the state x (B, *event) at s."""
        raise NotImplementedError(f"{type(self).__name__} must define step or prepare.")

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """A function that steps along the grid (N + 1 float64 nodes on the host), in order from node 0."""
        nodes = grid.tolist()
        return lambda k, x: self.step(process, x, nodes[k], nodes[k + 1], noise)


class Integrator(Method):
    """A solver that takes the whole interval at once."""

    fixed: bool = False
    """True where it takes ``steps=`` or ``dt=``; else it chooses its own steps and refuses them."""

    @property
    def chooses_steps(self) -> bool:
        """Unless it is ``fixed``."""
        return not self.fixed

    @abstractmethod
    def integrate(self, process: SDE, x: Tensor, interval: Interval) -> Trajectory:
        """The states at the times of the interval."""


@dataclass(frozen=True)
class Interval:
    """What an :class:`Integrator` is asked for.

    Args:
        times: where states are wanted, float64 on the host, monotone; the first is where x is.
        dt: the largest step, for an integrator with fixed steps.
        noise: where random numbers come from; ``noise.integer()`` is a seed for a backend that draws its own.
        differentiable: keep the graph.
    """

    times: Tensor
    dt: float | None
    noise: Noise
    differentiable: bool


@dataclass(frozen=True)
class Trajectory:
    """What an :class:`Integrator` gives: the states at the interval's times (one tensor each), and its counts."""

    states: list[Tensor]
    steps: int | Tensor
    rejected: int | Tensor = 0
    nfe: Tensor | None = None
    """Evaluations per sample, where they differ."""
