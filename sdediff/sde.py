r"""Stochastic differential equations and their reversal.

An SDE :math:`dx = f(x, t)\,dt + G(x, t)\,dW` (Itô) carries a density :math:`p_0` to :math:`p_t` by the Fokker-Planck
equation :math:`\partial_t p = -\nabla\cdot(fp) + \tfrac12\nabla\nabla:(Dp)`, with :math:`D = GG^\top`. The same
marginals are run through backwards, for every :math:`\eta \ge 0`, by

.. math:: dx = \bigl[f - \tfrac12(1+\eta^2)(\nabla\cdot D + D\,\nabla\log p_t)\bigr]dt + \eta\,G\,d\bar W .

:math:`\eta = 1` is Anderson's reverse SDE, :math:`\eta = 0` the probability-flow ODE. All of them live on the clock of
the forward process: t = 0 is data, ``t_max`` is noise, a reversal is solved from ``t_max`` down. A reversal is an SDE
again, so solvers need to know nothing of diffusion models.

Sources: Anderson 1982, https://doi.org/10.1016/0304-4149(82)90051-5; Song et al. 2021,
https://arxiv.org/abs/2011.13456; Huang et al. 2021, https://arxiv.org/abs/2106.02808.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from .autodiff import usable
from .checks import Time, as_time, check_like, check_state, float64, time_dtype
from .diffusion import Diagonal, Diffusion, as_diffusion, at_each_time, gram_divergence
from .errors import NotAffineError
from .forms import Form, ScoreForm
from .score import Given, Score, Unknown, as_score

ScoreLike = Score | Callable[..., Tensor]
"""A :class:`~sdediff.score.Score`, or any function ``score(x, t)`` that returns x's shape."""

Coefficient = float | Callable[[Tensor], Tensor]
"""A number or a function of t."""


class SDE(ABC):
    r"""An Itô SDE :math:`dx = f(x, t)\,dt + G(x, t)\,dW` on ``0 <= t <= t_max``.

    To write your own:

    1. ``f(x, t)`` returns the drift, a tensor of exactly x's shape.
    2. ``g(x, t)`` returns the diffusion: a number, a 0-d tensor, a tensor with ``x.ndim`` axes (diagonal noise), or
       :class:`~sdediff.Dense` for matrix noise.
    3. ``x`` has shape ``(B, *event)``; ``t`` arrives as shape ``()`` (float64) or ``(B, 1, ..., 1)``, ready to
       broadcast against ``x``. Results are cast to x's dtype.
    4. Set ``t_max`` (default 1) if the clock ends elsewhere, ``t_min`` (default 0) to stop :func:`~sdediff.sample`
       short of t = 0.

    Callers use :meth:`drift` and :meth:`diffusion`, which accept every form of time and check what comes back.
    """

    t_min: float = 0.0
    t_max: float = 1.0
    direction: int = 1
    """+1: noise flows with rising t; -1: with falling t (a reversal); 0: an ODE, which runs both ways."""
    described: str = "an SDE"
    """What the error of a solver that requires this class calls it; a subclass without words of its own goes by its name."""

    @abstractmethod
    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift, of x's shape."""

    @abstractmethod
    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        """The diffusion coefficient."""

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """The drift at ``x`` (B, *event) and ``t`` (number, (), (B,) or (B, 1, ..., 1)), checked.

        Raises:
            TypeError, ValueError: x is no state, t lies outside the domain, or ``f`` returned another shape than x's.
        """
        t = as_time(t, check_state(x), self.t_max)
        return check_like(self.f(x, t), x, f"{type(self).__name__}.f")

    def drifts(self, times: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The drift at each of these host times (float64) as a function of x: what a solver prepares before it steps."""
        return [partial(_drift_at, self, t) for t in times.unbind()]

    def diffusion(self, x: Tensor, t: Time) -> Diffusion:
        """The diffusion at ``x`` and ``t`` as an operator: ``sde.diffusion(x, t) @ dw``, checked.

        Raises:
            TypeError, ValueError: as for :meth:`drift`; a ``g`` that would broadcast by accident is named with its cure.
        """
        t, what = as_time(t, check_state(x), self.t_max), f"{type(self).__name__}.g"
        return as_diffusion(self.g(x, t), x, what) if t.ndim == 0 or len(x) == 0 else at_each_time(self.g, x, t, what)

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        r""":math:`\nabla\cdot(GG^\top)`, of x's shape: 0 for additive noise, else by automatic differentiation."""
        t = as_time(t, check_state(x), self.t_max)
        return gram_divergence(lambda at: self.diffusion(at, usable(t)), x)

    def prior(self, event_shape: tuple[int, ...]) -> Any:
        """The law at ``t_max`` where it is known; a general SDE has none."""
        raise NotImplementedError(
            f"{type(self).__name__} has no known law at t_max = {self.t_max:g}: give the starting states yourself, "
            "sample(process, n, x=...), or a law where one is asked for, log_prob(..., terminal=score.law(t_max))."
        )

    def marginal(self, x0: Tensor, t: Time) -> Any:
        """The law of x_t given x_0 (B, *event), derived from f and g where f is affine in x and g ignores it.

        Raises:
            NotAffineError: x_t given x_0 is not Gaussian; it says where that shows.
        """
        return derived(self, tuple(check_state(x0, "x0").shape[1:])).marginal(x0, t)

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t from x_0 and standard normal noise, both (B, *event); see :meth:`marginal`."""
        return derived(self, tuple(check_state(x0, "x0").shape[1:])).perturb(x0, t, noise)

    def translated(self, form: Form, x: Tensor, t: Tensor) -> tuple[Form, Any, Any]:
        """A form of prediction and the alpha and sigma that it needs at x (B, *event) and t, as a Score asks for them.

        They are those of the linear process that this one is. Where it is none, a score alone has a meaning, by itself.

        Raises:
            NotAffineError: x_t given x_0 is not Gaussian, and the prediction is no score.
        """
        try:
            process = derived(self, tuple(x.shape[1:]))
        except NotAffineError:
            if not isinstance(form, ScoreForm):
                raise
            return form, Unknown(), Unknown()
        return process.translated(form, x, t)

    def rows(self, index: Tensor, batch: int) -> SDE:
        """This process for the samples ``index`` (n,) of a batch alone; one that holds something per sample overrides this."""
        return self

    def reverse(
        self, score: ScoreLike, stochasticity: Coefficient = 1.0, *, diffusion: Coefficient | None = None
    ) -> SDE:
        r"""The process that runs through this one's marginals backwards.

        Args:
            score: ``score(x, t)`` = :math:`\nabla_x\log p_t(x)`, of x's shape: any callable.
            stochasticity: :math:`\eta \ge 0`, a number or a function of t; 1 is Anderson's reversal, 0 the flow.
            diffusion: instead of :math:`\eta`, a free noise coefficient w(t): drift
                :math:`f - \tfrac12(\nabla\cdot D + Ds) - \tfrac12 w^2 s`, noise w.

        Returns:
            An SDE on the same clock, to be solved towards falling t.
        """
        stochasticity = check_coefficient(stochasticity, "stochasticity")
        if diffusion is not None:
            if not _is_one(stochasticity):
                raise ValueError("Give either stochasticity or diffusion: each alone fixes the noise of the reversal.")
            return self._free_noise(score, diffusion)
        return self.probability_flow(score) if _is_zero(stochasticity) else self._reverse(score, stochasticity)

    def probability_flow(self, score: ScoreLike) -> SDE:
        r"""The ODE :math:`\dot x = f - \tfrac12(\nabla\cdot D + Ds)` with the marginals of this process."""
        known = _derived_of(self, score)
        return ProbabilityFlow(self, score) if known is None else known.probability_flow(score)

    def _reverse(self, score: ScoreLike, stochasticity: Coefficient) -> SDE:
        """The reversal with noise: a process that knows more of its own overrides this one, and not :meth:`reverse`."""
        known = _derived_of(self, score)
        return Reverse(self, score, stochasticity) if known is None else known.reverse(score, stochasticity)

    def _free_noise(self, score: ScoreLike, diffusion: Coefficient) -> SDE:
        """The reversal with a noise coefficient of its own, likewise."""
        return FreeNoiseReverse(self, score, diffusion)


def derived(sde: SDE, event_shape: tuple[int, ...]) -> Any:
    """The linear process that ``sde`` is on states of this shape; see :func:`sdediff.as_linear`."""
    from .derived import as_linear  # which knows linear processes, and they this module

    return as_linear(sde, event_shape)


def _derived_of(sde: SDE, score: ScoreLike) -> SDE | None:
    """The linear process that was derived from ``sde`` for this score, if one was."""
    process = getattr(score, "sde", None)
    origin = getattr(process, "origin", None)
    return process if origin is not None and _alike(origin, sde) else None


HELD = "_sdediff_derived"
"""The attribute in which an SDE keeps what was derived from it."""


def _alike(a: SDE, b: SDE) -> bool:
    """Whether these are the same process: one object, or two of a class with the same attributes."""
    if a is b or type(a) is not type(b):
        return a is b
    own, other = ({name: v for name, v in vars(sde).items() if name != HELD} for sde in (a, b))
    return own.keys() == other.keys() and all(_equal(own[name], other[name]) for name in own)


def _equal(a: object, b: object) -> bool:
    return a is b or (isinstance(a, (int, float, str, tuple)) and type(a) is type(b) and a == b)


def _drift_at(sde: SDE, t: Tensor, x: Tensor) -> Tensor:
    return sde.drift(x, t)


class ODE(SDE):
    r"""An ordinary differential equation :math:`\dot x = f(x, t)`: an SDE without noise, solved either way."""

    direction = 0
    described = "an ODE"

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        """No noise."""
        return 0.0

    def reverse(
        self, score: ScoreLike | None = None, stochasticity: Coefficient = 1.0, *, diffusion: Coefficient | None = None
    ) -> SDE:
        """An ODE is its own reversal."""
        return self


class Reversal(SDE):
    """What all reversals share: the process they reverse, and a score that may take a condition."""

    sde: Any
    score: Score

    def _bind(self, sde: SDE, score: ScoreLike) -> None:
        self.sde = sde
        self.score = as_score(score)
        self.t_min, self.t_max = sde.t_min, sde.t_max

    def given(self, cond: Any) -> Self:
        """This reversal with ``cond=`` passed to every evaluation of its score."""
        bound = copy.copy(self)
        bound.score = Given(self.score, cond)
        return bound

    def rows(self, index: Tensor, batch: int) -> Self:
        """This reversal with its score and its process restricted to these samples."""
        score, sde = self.score.rows(index, batch), self.sde.rows(index, batch)
        if score is self.score and sde is self.sde:
            return self
        bound = copy.copy(self)
        bound.score, bound.sde = score, sde
        return bound

    def prior(self, event_shape: tuple[int, ...]) -> Any:
        """The law from which a reversal starts: that of the forward process at ``t_max``."""
        return self.sde.prior(event_shape)

    def _spread(self, x: Tensor, t: Tensor) -> Tensor:
        r"""What reversal takes from the drift, :math:`\pm(\nabla\cdot D + Ds)`, signed by the clock of ``sde``."""
        pull = self.sde.diffusion(x, t).gram(self.score(x, t)) + self.sde.gram_divergence(x, t)
        return pull if self.sde.direction >= 0 else -pull


class Reverse(Reversal):
    r"""Drift :math:`f - \tfrac12(1+\eta^2)(\nabla\cdot D + Ds)`, noise :math:`\eta G`; see :meth:`SDE.reverse`."""

    def __init__(self, sde: SDE, score: ScoreLike, stochasticity: Coefficient = 1.0):
        self._bind(sde, score)
        self.stochasticity = check_coefficient(stochasticity, "stochasticity")
        self.direction = -sde.direction

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift of the reversal."""
        eta = finite_at(self.stochasticity, t, "stochasticity")
        return self.sde.drift(x, t) - (0.5 * (1 + eta * eta)) * self._spread(x, t)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        r"""The noise :math:`\eta G`."""
        return finite_at(self.stochasticity, t, "stochasticity") * self.sde.diffusion(x, t)

    def reverse(
        self, score: ScoreLike | None = None, stochasticity: Coefficient = 1.0, *, diffusion: Coefficient | None = None
    ) -> SDE:
        """The reversal of a reversal. With the same score (or none given) that is the original process."""
        # == and not `is`: a bound method is made anew each time it is named
        same = score is None or score is self.score or score == getattr(self.score, "function", None)
        if same and diffusion is None and _is_one(stochasticity) and _is_one(self.stochasticity):
            return self.sde
        return super().reverse(self.score if score is None else score, stochasticity, diffusion=diffusion)


class FreeNoiseReverse(Reversal):
    r"""Drift :math:`f - \tfrac12(\nabla\cdot D + Ds) - \tfrac12 w^2 s`, noise w(t); see :meth:`SDE.reverse`."""

    def __init__(self, sde: SDE, score: ScoreLike, diffusion: Coefficient):
        self._bind(sde, score)
        self.noise_coefficient = check_coefficient(diffusion, "diffusion")
        self.direction = -sde.direction

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift of the reversal."""
        score, forward = self.score(x, t), self.sde
        w = finite_at(self.noise_coefficient, t, "diffusion")
        flow = forward.diffusion(x, t).gram(score) + forward.gram_divergence(x, t)
        return forward.drift(x, t) - (0.5 if forward.direction >= 0 else -0.5) * (flow + (w * w) * score)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        """The noise w(t)."""
        return Diagonal(finite_at(self.noise_coefficient, t, "diffusion"))


class ProbabilityFlow(Reversal, ODE):
    r"""The ODE :math:`\dot x = f - \tfrac12(\nabla\cdot D + Ds)`; see :meth:`SDE.probability_flow`."""

    def __init__(self, sde: SDE, score: ScoreLike):
        self._bind(sde, score)

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity of the flow."""
        return self.sde.drift(x, t) - 0.5 * self._spread(x, t)


class Linear(SDE):
    """A linear Gaussian process, as a solver that samples its transitions sees it."""

    described = "a linear SDE"

    @abstractmethod
    def log_snr(self, t: Time) -> Tensor:
        r"""The log signal-to-noise ratio :math:`2\ell(t)`, which falls with t."""

    def time_of(self, log_snr: Time) -> Tensor:
        """The time at which ``log_snr(t)`` has this value, by bisection in float64; clipped to [0, t_max]."""
        target = float64(log_snr)
        low, high = torch.zeros_like(target), torch.full_like(target, self.t_max)
        for _ in range(100):  # until rounding, for times down to 2^-47 t_max
            middle = 0.5 * (low + high)
            above = self.log_snr(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (0.5 * (low + high)).to(time_dtype(log_snr))

    @abstractmethod
    def transition(self, s: Time, t: Time) -> Any:
        """The Gaussian kernel from s to a later t."""

    @abstractmethod
    def steps(self, grid: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The transitions along a rising grid (N + 1,), as functions (x, z) -> x_t of the state and standard normals."""


class Kinetic(SDE):
    r"""Underdamped Langevin dynamics, as a splitting solver sees it.

    :math:`dq = v\,dt,\; m\,dv = (s(q, t) - \gamma v)\,dt + \sqrt{2\gamma}\,dW`, with states (B, 2d): q, then v.
    """

    described = "underdamped Langevin dynamics such as Underdamped"
    position_score: Any
    """The force, s(q, t) of q's shape (B, d)."""
    mass: Tensor
    """m, () or (d,), float64 on the host."""
    friction: Tensor
    r""":math:`\gamma`, (), (d,) or a matrix (d, d), float64 on the host."""


class Semilinear(SDE):
    r"""The reversal of a linear Gaussian process, as exponential solvers see it.

    Its drift is :math:`a(t)\,x - \tfrac12(g^2 + w^2)\,s(x, t)` and its noise w(t) (0 for the flow): linear in x but for
    the score, whose ``data`` and ``noise`` predictions are the smooth part worth interpolating.
    """

    described = "the reversal of a linear SDE"
    sde: Any  # a LinearSDE: Schedule with drift_coefficient, diffusion_coefficient, transition
    score: Any  # a Score

    @abstractmethod
    def eta(self, t: Time) -> Tensor:
        r"""The stochasticity :math:`\eta(t) = w(t)/g(t)` of the reversal."""

    @abstractmethod
    def affine(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""(a, b, w) at float64 times of any shape, with drift :math:`a\,x + b\,s(x, t)` and noise w."""


class CoupledSemilinear(SDE):
    r"""The reversal of an affine process with matrix coefficients, as exponential solvers see it.

    Its drift is :math:`Ax + b - \tfrac12(1+\eta^2)LL^\top s(x, t)` and its noise :math:`\eta L`. The process ``sde`` gives
    ``coefficients(t)`` = (A, b, L) and ``scales(t)``, whose ``kernel`` has :math:`\Phi`, c and C, as operators on blocks;
    ``split(x)`` and ``join(y, shape)`` take states apart and together.
    """

    described = "the reversal of an affine SDE with matrix coefficients"
    sde: Any  # an AffineSDE
    score: Any  # a Score

    @abstractmethod
    def eta(self, t: Time) -> Tensor:
        r"""The stochasticity :math:`\eta(t)`."""


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Position and velocity of a state (B, 2d)."""
    if x.ndim != 2 or x.shape[1] % 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; an underdamped state is (B, 2d): torch.cat([position, velocity], 1)."
        )
    q, v = x.chunk(2, 1)
    return q, v


def check_coefficient(c: Coefficient, name: str) -> Coefficient:
    """Return a number or a function of t, the number checked to be finite and not negative."""
    if callable(c):
        return c
    if not isinstance(c, (int, float)):
        raise TypeError(f"{name} must be a number or a function of t, got {type(c).__name__}.")
    if not 0 <= c < float("inf"):
        raise ValueError(f"{name} = {c} must be finite and >= 0.")
    return float(c)


def evaluate(c: Coefficient, t: Time) -> Any:
    """The value of a number or function of t at ``t``."""
    return c(float64(t) if not isinstance(t, Tensor) else t) if callable(c) else c


def finite_at(c: Coefficient, t: Time, name: str) -> Any:
    """:func:`evaluate`, if what a function of t gives is finite; on the host only, a device is not read back.

    Raises:
        ValueError: it gives NaN or infinity; the message says when.
    """
    value = evaluate(c, t)
    if callable(c):
        seen = torch.as_tensor(value).detach()
        if seen.device.type == "cpu" and not bool(torch.isfinite(seen).all()):
            seen, times = torch.broadcast_tensors(seen, torch.as_tensor(t).detach())
            k = int((~torch.isfinite(seen)).reshape(-1).nonzero()[0])
            raise ValueError(
                f"{name} is {float(seen.reshape(-1)[k])} at t = {float(times.reshape(-1)[k]):g}: it must be a finite number at "
                "every time of the solve."
            )
    return value


def _is_zero(c: Coefficient) -> bool:
    return not callable(c) and c == 0


def _is_one(c: Coefficient) -> bool:
    return not callable(c) and c == 1
