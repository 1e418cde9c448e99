"""Euler-Maruyama on the reversed VP ring as torchsde and diffrax run it, each in the way its documentation recommends.

The score is the same formula everywhere: the matrix-product form for an eight-mode mixture with one variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BETA = (0.1, 20.0)
RADIUS, STD, MODES = 2.0, 0.1, 8


def torchsde_run(score: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, t1: float) -> Callable[[], None]:
    """``torchsde.sdeint``, method euler, with a BrownianInterval that knows the step (without, it is slower still)."""
    import torchsde

    class Reverse(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, s: Tensor, y: Tensor) -> Tensor:
            t = 1.0 - float(s)
            beta = BETA[0] + (BETA[1] - BETA[0]) * t
            return 0.5 * beta * y + beta * score(y, t)

        def g(self, s: Tensor, y: Tensor) -> Tensor:
            beta = BETA[0] + (BETA[1] - BETA[0]) * (1.0 - float(s))
            return torch.full_like(y, math.sqrt(beta))

    system, h = Reverse(), (1.0 - t1) / steps
    ends = torch.tensor([0.0, 1.0 - t1], dtype=torch.float64)

    def run() -> None:
        path = torchsde.BrownianInterval(0.0, 1.0 - t1, size=x.shape, dtype=x.dtype, entropy=0, dt=h)
        with torch.no_grad():
            torchsde.sdeint(system, x, ends, bm=path, method="euler", dt=h * (1 + 1e-9))

    return run


def _jax_parts() -> tuple:
    import jax
    import jax.numpy as jnp

    angle = jnp.arange(MODES) * 2 * jnp.pi / MODES
    means = RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    def score(y, t):  # type: ignore[no-untyped-def]
        log_alpha = -0.25 * (BETA[1] - BETA[0]) * t * t - 0.5 * BETA[0] * t
        alpha = jnp.exp(log_alpha)
        v = alpha**2 * STD**2 - jnp.expm1(2 * log_alpha)
        weights = jax.nn.softmax(y @ means.T * (alpha / v), axis=1)  # equal weights and radii: no bias
        return (alpha * weights @ means - y) / v

    return jax, jnp, score


def jax_scan_run(x: Tensor, steps: int, t1: float) -> Callable[[], None]:
    """A jitted ``lax.scan`` of the plain loop."""
    jax, jnp, score = _jax_parts()
    h = (1.0 - t1) / steps

    @jax.jit
    def solve(y, key):  # type: ignore[no-untyped-def]
        def step(carry, k):  # type: ignore[no-untyped-def]
            y, key = carry
            key, sub = jax.random.split(key)
            t = 1.0 - k * h
            beta = BETA[0] + (BETA[1] - BETA[0]) * t
            z = jax.random.normal(sub, y.shape)
            return (y + h * (0.5 * beta * y + beta * score(y, t)) + jnp.sqrt(beta * h) * z, key), None

        return jax.lax.scan(step, (y, key), jnp.arange(steps))[0][0]

    y, key = jnp.asarray(x.numpy()), jax.random.PRNGKey(0)
    return lambda: solve(y, key).block_until_ready()


def diffrax_run(x: Tensor, steps: int, t1: float) -> Callable[[], None]:
    """``diffrax.diffeqsolve`` with Euler, jitted, and the fastest Brownian motion it has for fixed steps."""
    import diffrax

    jax, jnp, score = _jax_parts()

    def drift(s, y, args):  # type: ignore[no-untyped-def]
        t = 1.0 - s
        beta = BETA[0] + (BETA[1] - BETA[0]) * t
        return 0.5 * beta * y + beta * score(y, t)

    def noise(s, y, args):  # type: ignore[no-untyped-def]
        import lineax

        beta = BETA[0] + (BETA[1] - BETA[0]) * (1.0 - s)
        return lineax.DiagonalLinearOperator(jnp.sqrt(beta) * jnp.ones_like(y))

    @jax.jit
    def solve(y, key):  # type: ignore[no-untyped-def]
        path = diffrax.UnsafeBrownianPath(shape=y.shape, key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(noise, path))
        return diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            1.0 - t1,
            (1.0 - t1) / steps,
            y,
            max_steps=steps + 2,
            adjoint=diffrax.DirectAdjoint(),
        ).ys

    y, key = jnp.asarray(x.numpy()), jax.random.PRNGKey(0)
    return lambda: solve(y, key).block_until_ready()
