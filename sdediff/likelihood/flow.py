r"""The log-density of a probability flow, by the change of variables along it.

With v the flow's velocity, :math:`\tfrac{d}{dt}\log p_t(x_t) = -\nabla\cdot v(x_t, t)`, so

.. math:: \log p_{t}(x) = \log p_T(x_T) + \int_t^T \nabla\cdot v(x_u, u)\,du, \qquad x_t = x .

State and integral are solved together, as one ODE. This holds for any SDE, drift and noise that depend on the state
included, whatever the score: what it gives is the density of *this flow*, started from the terminal law.

Source: Chen et al. 2018, https://arxiv.org/abs/1806.07366; Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix D.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import check_finite, check_state
from ..densities.base import host_generator
from ..score import Score
from ..sde import ODE, SDE, Reversal, ScoreLike
from ..solution import Solution
from ..solve import solve
from ..solvers import Method, Tsitouras
from .divergence import Divergence, ExactTrace
from .estimate import LogDensity, careful_error


class Law(Protocol):
    """Anything with a log-density: a density, a Gaussian, a distribution."""

    def log_prob(self, x: Tensor) -> Tensor: ...


class WithDivergence(ODE):
    """A flow together with the integral of its divergence: states (B, D + C), x flattened and C estimates.

    Args:
        flow: an ODE.
        event_shape: of its states.
        divergence: how the divergence is found.
        probes: drawn by it for this batch, (B, P, D).
    """

    def __init__(self, flow: SDE, event_shape: tuple[int, ...], divergence: Divergence, probes: Tensor):
        self.flow, self.event_shape, self.divergence, self.probes = flow, event_shape, divergence, probes
        self.t_min, self.t_max = flow.t_min, flow.t_max
        self.sde = getattr(flow, "sde", flow)  # whose clock a grid in the noise level reads

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity and divergence."""
        state = self.unpack(x)[0]
        time = t if t.ndim == 0 else t.reshape(-1)
        velocity, rate = self.divergence(lambda at: self.flow.drift(at, time), state, self.probes)
        return torch.cat([velocity.reshape(len(x), -1), rate], 1)

    def rows(self, index: Tensor, batch: int) -> WithDivergence:
        """The same for these samples, each with its own probes."""
        return WithDivergence(self.flow.rows(index, batch), self.event_shape, self.divergence, self.probes[index])

    def pack(self, x: Tensor) -> Tensor:
        """States x (B, *event) at which nothing has been integrated yet."""
        flat = x.reshape(len(x), -1)
        return torch.cat([flat, flat.new_zeros(len(x), self.divergence.channels())], 1)

    def unpack(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, the integrals (B, C))."""
        channels = self.divergence.channels()
        return y[:, :-channels].reshape(len(y), *self.event_shape), y[:, -channels:]


def log_prob(
    sde: SDE,
    score: ScoreLike,
    x: Tensor,
    *,
    t: float | None = None,
    terminal: Law | None = None,
    divergence: Divergence | None = None,
    solver: Method | None = None,
    steps: int | None = None,
    grid: Any = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    cond: Any = None,
) -> LogDensity:
    r"""The log-density of x at time t under the probability flow of ``sde`` with ``score``, in nats.

    Args:
        sde: any SDE.
        score: ``score(x, t)``.
        x: (B, *event). In float32 a log-density of some hundred nats keeps four decimals; give ``x.double()`` for more.
        t: the time that x belongs to; ``sde.t_min`` by default, so that the value is :math:`\log p_{t_{min}}(x)`.
        terminal: the law at t_max, anything with ``log_prob``: ``ExactScore.law(sde.t_max)`` where it is known. By default
            ``sde.prior``, from which samples are started.
        divergence: :class:`~sdediff.likelihood.ExactTrace` by default; :class:`~sdediff.likelihood.Hutchinson` in high
            dimension.
        solver: an ODE solver; ``Tsitouras`` by default, with tolerances of 1e-7 in float64 and 1e-5 in float32.
        steps, grid: for a solver with fixed steps.
        seed, generator: a host generator of the probes; at most one of the two.
        cond: a condition for the score.

    Returns:
        A :class:`~sdediff.likelihood.LogDensity`; its standard error is that of the probes, not of the solver, and none is
        taken below the root mean square over the batch: in few dimensions the probes of one sample may agree and be wrong.

    Raises:
        TypeError, ValueError, SolveError, NonFiniteError: as :func:`~sdediff.solve`.
    """
    check_finite(check_state(x))
    event_shape, rule = tuple(x.shape[1:]), divergence or ExactTrace()
    flow = sde.probability_flow(score)
    if cond is not None:
        assert isinstance(flow, Reversal)
        flow = flow.given(cond)
    probes = rule.probes(x, host_generator(seed, generator))
    both = WithDivergence(flow, event_shape, rule, probes)
    law = terminal_law(sde, terminal, event_shape)
    sol = _solve(both, both.pack(x), sde.t_min if t is None else t, sde.t_max, solver, steps, grid)
    latent, integrals = both.unpack(sol.x)
    at_end = law.log_prob(latent)
    if at_end.shape != x.shape[:1]:
        raise ValueError(f"terminal.log_prob gave shape {tuple(at_end.shape)}; it must be ({len(x)},).")
    count = integrals.shape[1]
    unknown = x.new_full((len(x),), 0.0 if isinstance(rule, ExactTrace) else math.nan)
    error = careful_error(integrals.var(1) / count) if count > 1 else unknown
    value = at_end + integrals.mean(1)
    return LogDensity(value, error, sol.stats["nfe"], latent, _prior_error(sde, terminal, latent, at_end))


def terminal_law(sde: SDE, terminal: Law | None, event_shape: tuple[int, ...]) -> Law:
    """The law at t_max: the one given, checked, or the prior of the process."""
    if terminal is None:
        return sde.prior(event_shape)
    if isinstance(terminal, Score) or not hasattr(terminal, "log_prob"):
        raise TypeError(
            f"terminal must be a law with log_prob(x), got {type(terminal).__name__}: of an ExactScore it is "
            "score.law(sde.t_max)."
        )
    return terminal


def encode(
    sde: SDE,
    score: ScoreLike,
    x: Tensor,
    *,
    t: float | None = None,
    solver: Method | None = None,
    steps: int | None = None,
    grid: Any = None,
    cond: Any = None,
) -> Solution:
    """Where the flow takes x (B, *event) from time t (``sde.t_min`` by default) at t_max: its latent.

    ``solver``, ``steps``, ``grid`` and ``cond`` are as in :func:`log_prob`.
    """
    flow, start = sde.probability_flow(score), sde.t_min if t is None else t
    return _solve(flow, x, start, sde.t_max, solver, steps, grid, cond)


def decode(
    sde: SDE,
    score: ScoreLike,
    z: Tensor,
    *,
    t: float | None = None,
    solver: Method | None = None,
    steps: int | None = None,
    grid: Any = None,
    cond: Any = None,
) -> Solution:
    """Where the flow takes the latent z (B, *event) from t_max at time t: the inverse of :func:`encode`."""
    flow, end = sde.probability_flow(score), sde.t_min if t is None else t
    return _solve(flow, z, sde.t_max, end, solver, steps, grid, cond)


def _solve(
    process: SDE,
    x: Tensor,
    t0: float,
    t1: float,
    solver: Method | None,
    steps: int | None,
    grid: Any,
    cond: Any = None,
) -> Solution:
    if solver is None:
        tolerance = 1e-7 if x.dtype == torch.float64 else 1e-5
        solver = Tsitouras(rtol=tolerance, atol=tolerance)
    return solve(process, x, solver=solver, t0=t0, t1=t1, steps=steps, grid=grid, cond=cond)


def _prior_error(sde: SDE, terminal: Law | None, latent: Tensor, at_end: Tensor) -> Tensor | None:
    """log prior - log terminal at the latents, where both are known and differ."""
    if terminal is None:
        return None
    try:
        prior = sde.prior(tuple(latent.shape[1:]))
    except NotImplementedError:
        return None
    return prior.log_prob(latent) - at_end
