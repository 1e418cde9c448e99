"""SciPy's ODE solvers for probability flows and other ODEs.

The whole batch is one system for SciPy: its step size is shared, so results depend (within the tolerances) on the batch.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.integrate
import scipy.sparse
import torch
from torch import Tensor

from ..errors import NonFiniteError, SolveError
from ..sde import ODE, SDE
from .base import Integrator, Interval, Trajectory


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
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"{name} = {value!r} must be positive.")
        if max_evaluations < 1:
            raise ValueError(f"max_evaluations = {max_evaluations} must be at least 1.")
        self.method, self.rtol, self.atol, self.max_evaluations = method, rtol, atol, max_evaluations

    def integrate(self, process: SDE, x: Tensor, interval: Interval) -> Trajectory:
        """Solves from one wanted time to the next, landing on each."""
        if interval.differentiable:
            raise ValueError("SciPy keeps no graph: for gradients use RK4 or Heun with differentiable=True.")
        if x.dtype != torch.float64 and min(self.rtol, self.atol) < 1e-6:
            warnings.warn(
                f"A tolerance of {min(self.rtol, self.atol):g} is finer than a {x.dtype} drift can tell and costs evaluations "
                "for nothing: use rtol, atol >= 1e-6 or a float64 state.",
                stacklevel=4,
            )
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
            drift.check(y, t)
            steps += len(result.t) - 1
            states.append(torch.from_numpy(y.copy()).reshape(x.shape).to(x.device, x.dtype))
        return Trajectory(states, steps=steps)

    def _structure(self, x: Tensor) -> dict[str, Any]:
        """What an implicit method should know: samples do not mix, so the Jacobian is block diagonal."""
        event = x[0].numel()
        if self.method in ("Radau", "BDF"):
            return {"jac_sparsity": scipy.sparse.block_diag([np.ones((event, event))] * x.shape[0])}
        if self.method == "LSODA":
            return {"lband": event - 1, "uband": event - 1}
        return {}


class _Drift:
    """The drift as SciPy wants it: f(t, y) on flat float64 arrays, bounded and checked."""

    def __init__(self, process: SDE, x: Tensor, most: int):
        self.process, self.x, self.left, self.most = process, x, most, most

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        if self.left == 0:
            raise SolveError(
                f"The solve reached max_evaluations = {self.most} at t = {t:g}: loosen the tolerances or raise the bound."
            )
        self.left -= 1
        state = torch.from_numpy(y).reshape(self.x.shape).to(self.x.device, self.x.dtype)
        slope = self.process.drift(state, t).detach().to("cpu", torch.float64).reshape(-1).numpy()
        self.check(slope, t)
        return slope

    def check(self, values: np.ndarray, t: float) -> None:
        if not np.isfinite(values).all():
            rows = np.flatnonzero(~np.isfinite(values.reshape(self.x.shape[0], -1)).all(1)).tolist()
            raise NonFiniteError(
                f"The drift is NaN or infinite at t = {t:g} for {len(rows)} of {self.x.shape[0]} samples (first: "
                f"{rows[:5]}). Check the score there, or end the solve further from t = 0.",
                step=None,
                t=float(t),
                samples=rows,
                state=None,
            )
