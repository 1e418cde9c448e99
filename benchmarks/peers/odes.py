"""General ODE solvers on a flow: torchdiffeq and diffrax, at tolerances instead of budgets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sdediff as sd

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-6)


def torchdiffeq_run(
    flow: sd.SDE, x: Tensor, t0: float, t1: float, tolerance: float
) -> Callable[[], tuple[Tensor, int]]:
    """``torchdiffeq.odeint`` with dopri5."""
    from torchdiffeq import odeint

    def run() -> tuple[Tensor, int]:
        count = 0

        def velocity(t: Tensor, y: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return flow.drift(y, t.clamp(t1, t0))

        ends = torch.tensor([t0, t1], dtype=torch.float64)
        with torch.no_grad():
            return odeint(velocity, x, ends, rtol=tolerance, atol=tolerance, method="dopri5")[-1], count

    return run


def diffrax_run(flow: sd.SDE, x: Tensor, t0: float, t1: float, tolerance: float) -> Callable[[], tuple[Tensor, int]]:
    """``diffrax.diffeqsolve`` with Tsit5, jitted, on the ring of :mod:`~benchmarks.target` under EDM, in float32."""
    import diffrax
    import jax
    import jax.numpy as jnp

    mixture = flow.score.density
    means, log_weights = jnp.asarray(mixture.means.numpy()), jnp.asarray(mixture.log_weights[:, 0].numpy())
    shared = float(mixture.shared_variance)

    def velocity(t, y, args):  # type: ignore[no-untyped-def]
        v = shared + t * t
        r = y[:, None, :] - means
        weights = jax.nn.softmax(log_weights - 0.5 * (r * r).sum(-1) / v, axis=1)
        return t * (y - weights @ means) / v

    @jax.jit
    def solve(y):  # type: ignore[no-untyped-def]
        return diffrax.diffeqsolve(
            diffrax.ODETerm(velocity), diffrax.Tsit5(), t0, t1, -0.1 * t0, y,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance), max_steps=4096,
        )  # fmt: skip

    y = jnp.asarray(x.numpy())

    def run() -> tuple[Tensor, int]:
        solution = solve(y)
        return torch.from_numpy(jax.device_get(solution.ys[-1]).copy()), 6 * int(solution.stats["num_steps"]) + 1

    return run
