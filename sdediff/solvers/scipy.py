"""SciPy's ODE solvers for probability flows and other ODEs.

The whole batch is one system for SciPy: its step size is shared, so results depend (within the tolerances) on the batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import scipy.integrate
import scipy.sparse
import torch
from torch import Tensor

from ..checks import check_count
from ..errors import SolveError
from ..sde import ODE, SDE
from .base import Integrator, Interval, Trajectory
from .bounded import BoundedDrift, check_tolerances, warn_if_too_fine


class Scipy(Integrator):
    """``scipy.integrate.solve_ivp``.

    Args:
        method: any method of ``solve_ivp``: "RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA", or an ``OdeSolver`` class.
        rtol, atol: tolerances, relative and in units of the state.
        max_evaluations: a bound on evaluations of the drift.

    Raises:
        SolveError: SciPy gave up, or the bound was reached.
        NonFiniteError: the drift or the result became NaN or infinite.

    Source: https://docs.scipy.org/doc/scipy/reference/generated/scipy.integrate.solve_ivp.html
    """

    requires = ODE
    instead = "solve sde.probability_flow(score), or use EulerMaruyama or TorchSDE for an SDE with noise"
    couples_samples = True

    def __init__(self, method: Any = "RK45", *, rtol: float = 1e-5, atol: float = 1e-5, max_evaluations: int = 100_000):
        known = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
        if isinstance(method, str) and method not in known:
            raise ValueError(f"method = {method!r} is none of solve_ivp's: {', '.join(known)}.")
        self.method = method
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.max_evaluations = check_count(max_evaluations, "max_evaluations")

    def integrate(self, process: SDE, x: Tensor, interval: Interval) -> Trajectory:
        """Solves from one wanted time to the next, landing on each."""
        if interval.differentiable:
            raise ValueError("SciPy keeps no graph: for gradients use RK4 or Heun with differentiable=True.")
        warn_if_too_fine(self.rtol, self.atol, x)
        drift = _Drift(process, x, self.max_evaluations)
        states, y, steps = [x], x.detach().to("cpu", torch.float64).reshape(-1).numpy(), 0
        times = interval.times.tolist()
        for s, t in pairwise(times):
            result = scipy.integrate.solve_ivp(
                drift, (s, t), y, method=self.method, rtol=self.rtol, atol=self.atol, **self._structure(x)
            )
            y = result.y[:, -1]
            if not result.success:
                raise SolveError(
                    f"SciPy's {self.method} stopped at t = {result.t[-1]:g} before t = {t:g}: {result.message} Loosen rtol "
                    "and atol, or end the solve further from t = 0."
                )
            steps += len(result.t) - 1
            states.append(drift.check(drift.state(y.copy()), t))
        return Trajectory(states, steps=steps)

    def _structure(self, x: Tensor) -> dict[str, Any]:
        """What an implicit method should know: samples do not mix, so the Jacobian is block diagonal."""
        event = x[0].numel()
        if self.method in ("Radau", "BDF"):
            return {"jac_sparsity": scipy.sparse.block_diag([np.ones((event, event))] * x.shape[0])}
        if self.method == "LSODA":
            return {"lband": event - 1, "uband": event - 1}
        return {}


class _Drift(BoundedDrift):
    """The drift as SciPy wants it: f(t, y) on flat float64 arrays."""

    def __init__(self, process: SDE, x: Tensor, most: int):
        super().__init__(process, most)
        self.x = x

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        slope = self.evaluate(self.state(y), float(t))
        return slope.detach().to("cpu", torch.float64).reshape(-1).numpy()

    def state(self, y: np.ndarray) -> Tensor:
        """A flat array as a state, not copied if that can be helped."""
        return torch.from_numpy(y).reshape(self.x.shape).to(self.x.device, self.x.dtype)
