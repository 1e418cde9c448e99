r"""Chains of steps that leave no trace of the steps.

A solver of weak order p is off by :math:`ch^p + O(h^{p+1})`. Chains of N/2 and of N steps on one path cancel the first term,

.. math:: \mathrm E\,\phi(x_t) = \frac{2^p\,\mathrm E\,\phi(x^N) - \mathrm E\,\phi(x^{N/2})}{2^p - 1} + O(h^{p+1}),

at hardly any cost in variance. What is left is measured, not hoped to be small: the same from N/4 and N/2 steps is off by
:math:`2^{p+1}` times as much, so the difference of the two shows it. N is raised until a test of a thousand particles could
not tell it from noise, and grows with n from there; where no affordable N is enough, there is no test.

Source: Talay and Tubaro 1990, https://doi.org/10.1080/07362999008809220 (the extrapolation).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..sde import SDE
from ..solvers import Method
from .halving import solve_nested

FEWEST, MOST = 24, 1024
"""Steps at a thousand particles: how many are tried first, and at most."""
_PILOT = 1000
_STABLE = 4.0
"""Steps for each unit of turning, so that those of the coarsest of three levels are not unstable by themselves."""
_LEFT = 0.1
"""The most that may be left, as n times its square in standard deviations: what a shift of the mean adds to a chi-square."""


class UnsettledError(Exception):
    """No affordable number of steps leaves an error that is small beside the noise."""


@dataclass(frozen=True)
class Trial:
    """One set of particles.

    Args:
        start: the states at the first node, (n, *event).
        look: bounded functions of the states at the last node, (n, F); row i may depend on row i of the start.
        expected: values (n, F) whose mean theirs must have.
    """

    start: Tensor
    look: Callable[[Tensor], Tensor]
    expected: Tensor


Draw = Callable[[int, torch.Generator], Trial]
"""``draw(n, generator)``: fresh particles."""


@dataclass(frozen=True)
class Chains:
    """A process between two times, stepped and extrapolated.

    Args:
        process: with noise that ignores the state, or an ODE.
        solver: with fixed steps.
        nodes: (N + 1,) times for any N.
        steps: N at a thousand particles.
        turned: the integral of the norm of the drift over the way; see :func:`~sdediff.verify.particles.turning`.
    """

    process: SDE
    solver: Method
    nodes: Callable[[int], Tensor]
    steps: int = FEWEST
    turned: float = 0.0

    @property
    def order(self) -> float:
        """p."""
        claimed = self.solver.orders
        return (claimed.ode if self.process.direction == 0 else claimed.weak_additive) or 1.0

    def values(self, trial: Trial, seed: int) -> Tensor:
        """The extrapolated functions, (n, F); what is left of the steps falls as the noise does."""
        n = len(trial.start)
        steps = 4 * math.ceil(0.25 * self.steps * (n / _PILOT) ** (0.5 / (self.order + 1)))
        return self._extrapolated(trial, steps, seed, 2)[0]

    def settled(self, draw: Draw, seed: int, seconds: float = math.inf) -> Chains:
        """The same with as many steps as it takes.

        Args:
            draw: the particles.
            seed: of all random numbers.
            seconds: the longest that one trial may take.

        Raises:
            UnsettledError: more than are affordable.
            NonFiniteError: even those lead to infinity, and are not too long for the drift.
        """
        trial = draw(_PILOT, torch.Generator().manual_seed(seed))
        steps, took = self.steps, 0.0
        while True:
            started = time.perf_counter()
            left, failure = self._left(trial, steps, seed)
            if not left > 1:
                return replace(self, steps=steps)
            took = time.perf_counter() - started
            # as much finer as the order says, within reason: far from the limit it says little
            finer = min(max(left ** (0.5 / (self.order + 1)), 1.5), 4.0)
            if steps == MOST or finer * took > seconds:
                if failure is not None and steps > _STABLE * self.turned:
                    raise failure
                raise self._unsettled(steps, finer * took > seconds)
            steps = min(4 * math.ceil(0.25 * steps * finer), MOST)

    def _left(self, trial: Trial, steps: int, seed: int) -> tuple[float, NonFiniteError | None]:
        """What is left of the steps, in units of the most that may be, or what went wrong.

        NaN where the functions are: the test itself will tell.
        """
        try:
            rough, fine = self._extrapolated(trial, steps, seed, 3)
        except NonFiniteError as error:  # too coarse to be stable, perhaps
            return math.inf, error
        size = joint_size(fine - rough, fine - trial.expected) / (2 ** (self.order + 1) - 1)
        return _PILOT * size**2 / _LEFT, None

    def _unsettled(self, steps: int, slow: bool) -> UnsettledError:
        first, last = self.nodes(4)[[0, -1]].tolist()
        cure = "More would take longer than the budget allows: raise it, or give n." if slow else "More are not tried."
        return UnsettledError(
            f"from t = {first:.3g} to {last:.3g} the drift turns or stretches states so fast that what {steps} steps of "
            f"{type(self.solver).__name__} leave behind would be taken for a fault. {cure}"
        )

    def _extrapolated(self, trial: Trial, steps: int, seed: int, levels: int) -> list[Tensor]:
        """From each two neighbouring levels, the finest last."""
        ends = solve_nested(self.process, trial.start, self.solver, self.nodes(steps), seed, levels)
        seen, gain = [trial.look(x) for x in ends], 1 / (2**self.order - 1)
        return [fine + gain * (fine - coarse) for coarse, fine in pairwise(seen)]


def joint_size(shift: Tensor, beside: Tensor) -> float:
    """The mean of ``shift`` (n, F), its length in standard deviations of ``beside`` (n, F), as a joint test takes it."""
    variances, axes = torch.linalg.eigh(torch.cov(beside.T).reshape(beside.shape[1], -1))
    kept = variances > 1e-10 * variances[-1]
    return float(((shift.mean(0) @ axes)[kept] / variances[kept].sqrt()).norm())


def spread(times: Tensor, mass: Tensor) -> Callable[[int], Tensor]:
    """Nodes from the first of ``times`` (K + 1,) to the last, with as much of ``mass`` (K,), positive, on each step."""
    clock = torch.cat([mass.new_zeros(1), mass.cumsum(0)])

    def nodes(steps: int) -> Tensor:
        wanted = torch.linspace(0, float(clock[-1]), steps + 1, dtype=clock.dtype)
        k = torch.searchsorted(clock, wanted).clamp(1, len(mass))
        found = torch.lerp(times[k - 1], times[k], ((wanted - clock[k - 1]) / mass[k - 1]).clamp(0, 1))
        found[0], found[-1] = times[0], times[-1]  # exactly: the clock may end there
        return found

    return nodes
