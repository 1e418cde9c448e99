"""torchdiffeq's adaptive solvers for probability flows and other ODEs, and its adjoint.

The whole batch is one system for torchdiffeq: its step size is shared, so results depend (within the tolerances) on the batch.
It steps past the times where states are wanted and interpolates; here it is made to land on them, and evaluates nothing
outside the interval.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count
from ..errors import SolveError
from ..sde import ODE, SDE
from .adaptive import first_length
from .base import Integrator, Interval, Orders, Trajectory
from .bounded import BoundedDrift, check_tolerances, warn_if_too_fine
from .learned import adjoint_parameters

_ORDERS = {"dopri5": 5.0, "dopri8": 8.0, "bosh3": 3.0, "fehlberg2": 2.0, "adaptive_heun": 2.0}


class TorchDiffEq(Integrator):
    """``torchdiffeq.odeint`` with an adaptive method, on the states' device.

    Args:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun".
        rtol, atol: tolerances, relative and in units of the state.
        adjoint: compute gradients by solving the adjoint ODE backwards, in memory that does not grow with the steps, up to
            the tolerances; used with ``differentiable=True``. It reaches the parameters that the process and its score keep,
            however deeply; not those hidden in a plain function, nor a condition.
        max_evaluations: a bound on evaluations of the drift.

    Raises:
        ImportError: torchdiffeq is not installed.
        SolveError: torchdiffeq gave up, or the bound was reached.
        NonFiniteError: the drift or the result became NaN or infinite.
        ValueError: the adjoint finds neither parameters nor a state that wants gradients.

    Source: Chen et al. 2018, https://arxiv.org/abs/1806.07366; https://github.com/rtqichen/torchdiffeq
    """

    requires = ODE
    instead = "solve sde.probability_flow(score), or use EulerMaruyama or TorchSDE for an SDE with noise"
    couples_samples = True

    def __init__(
        self,
        method: str = "dopri5",
        *,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        adjoint: bool = False,
        max_evaluations: int = 100_000,
    ):
        if method not in _ORDERS:
            raise ValueError(
                f"method = {method!r} is none of torchdiffeq's adaptive methods: {', '.join(_ORDERS)}. For fixed steps use "
                "RK4 or Heun."
            )
        self.method, self.adjoint = method, adjoint
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.max_evaluations = check_count(max_evaluations, "max_evaluations")

    def integrate(self, process: SDE, x: Tensor, interval: Interval) -> Trajectory:
        """One call of torchdiffeq from each wanted time to the next."""
        torchdiffeq = _imported()
        warn_if_too_fine(self.rtol, self.atol, x)
        drift = _Drift(process, x, interval.times, self.max_evaluations)
        times = interval.times.to(x.device)
        adjoint = self.adjoint and interval.differentiable
        parameters = adjoint_parameters(process, x) if adjoint else ()
        states = [x]
        for s, t in pairwise(times):
            options = {"step_t": t.reshape(1), "first_step": self._first_step(drift, states[-1], s, t)}
            solve = torchdiffeq.odeint
            if adjoint:
                turned = {"step_t": s.reshape(1)}
                solve = partial(torchdiffeq.odeint_adjoint, adjoint_options=turned, adjoint_params=parameters)
            try:
                states.append(
                    solve(
                        drift, states[-1], torch.stack([s, t]), method=self.method, rtol=self.rtol, atol=self.atol,
                        options=options,
                    )[-1]
                )  # fmt: skip
            except AssertionError as error:
                raise SolveError(
                    f"torchdiffeq's {self.method} stopped at t = {drift.latest:g} before t = {float(t):g}: {error}. Loosen "
                    "rtol and atol, or end the solve further from t = 0."
                ) from error
        drift.left = self.max_evaluations  # for the adjoint
        return Trajectory(states, steps=drift.steps, rejected=drift.rejected)

    @torch.no_grad()
    def _first_step(self, drift: _Drift, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The shortest of the samples' guesses. torchdiffeq's own would let gradients flow through the step sizes."""
        ahead = s.expand(len(x))
        guesses = first_length(
            lambda y, times: drift.process.drift(y, times),
            x, ahead, drift(s, x), float(t - s), self.rtol, self.atol, Orders(ode=_ORDERS[self.method]),
        )  # fmt: skip
        return guesses.min()


class _Drift(BoundedDrift):
    """The drift as torchdiffeq wants it, f(t, y); counts the steps."""

    steps: int

    def __init__(self, process: SDE, x: Tensor, times: Tensor, most: int):
        super().__init__(process, most)
        self.low, self.high = float(times.min()), float(times.max())
        self.steps = self.rejected = 0
        self.latest = float(times[0])

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.detach().double().clamp(self.low, self.high)  # its guess of the first step may reach beyond
        self.latest = float(t)
        return self.evaluate(y, t)

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.steps += 1

    def callback_reject_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.rejected += 1


def _imported() -> Any:
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError(
            "TorchDiffEq needs torchdiffeq, of the extra [bench]: pip install 'sdediff[bench]'."
        ) from error
    return torchdiffeq
