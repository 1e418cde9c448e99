r"""Langevin dynamics: SDEs that leave one law :math:`p` as it is, from its score :math:`s = \nabla\log p` alone.

Overdamped, with :math:`D = GG^\top` any mobility, and underdamped, with mass m and friction :math:`\gamma`:

.. math:: dx = (\nabla\cdot D + Ds)\,d\tau + \sqrt2\,G\,dW, \qquad
          dq = v\,d\tau, \quad m\,dv = (s(q) - \gamma v)\,d\tau + \sqrt{2\gamma}\,dW .

The first has stationary law p(x), the second :math:`p(q)\,\mathcal N(v; 0, m^{-1})`. Discretised, neither is exact:
Euler-Maruyama on :class:`Overdamped` is the unadjusted Langevin algorithm, whose law is off by a term proportional to
the step. :func:`mala` corrects it by Metropolis' rule and is exact at every step size.

The clock :math:`\tau` of these SDEs is not the time t of a diffusion process; a score that depends on t is held at one t by
``at=``.

Sources: Roberts and Tweedie 1996, https://doi.org/10.2307/3318418; Pavliotis 2014,
https://doi.org/10.1007/978-1-4939-1323-7, chapters 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_count, check_finite, check_parameter, check_positive, check_state
from .densities import Density, as_density
from .diffusion import Dense, Diagonal, Diffusion, as_diffusion, gram_divergence
from .errors import NonFiniteError
from .noise import Noise, as_noise
from .score import FunctionScore, Score
from .sde import SDE, Kinetic, ScoreLike, halves

Target = Density | ScoreLike
"""What Langevin dynamics needs to know of a law: a density, or a score ``score(x, t)``."""

Root = float | Tensor | Diffusion | Callable[[Tensor], float | Tensor | Diffusion]
"""G, or a function G(x): as :meth:`SDE.g` returns it."""


class Overdamped(SDE):
    r"""Overdamped Langevin dynamics :math:`dx = (\nabla\cdot D + Ds)\,d\tau + \sqrt2\,G\,dW`, with :math:`D = GG^\top`.

    It is reversible: with the score of its stationary law, its reversal has minus its drift and its flow stands still.

    Args:
        target: a density (anything with ``log_prob``), or a score ``score(x, t)`` that returns x's shape.
        root: G: a number, a tensor with as many axes as x, :class:`~sdediff.Dense`, or a function of x that returns one of
            these. 1 by default: :math:`dx = s\,d\tau + \sqrt2\,dW`.
        at: the time at which to hold a score that depends on t. A plain function without it is called with :math:`\tau`.
        t_max: the end of the clock.

    Raises:
        ValueError: a score that belongs to a process without ``at``, or a density with it.
    """

    def __init__(self, target: Target, root: Root = 1.0, *, at: float | None = None, t_max: float = math.inf):
        self.score = held_score(target, at)
        self.root = root
        self.t_max = t_max

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\nabla\cdot D + Ds`."""
        pull = self._root(x).gram(self.score(x, t))
        return pull + gram_divergence(self._root, x) if callable(self.root) else pull

    def g(self, x: Tensor, t: Tensor) -> Diffusion:
        r""":math:`\sqrt2\,G`."""
        return math.sqrt(2) * self._root(x)

    def _root(self, x: Tensor) -> Diffusion:
        return as_diffusion(self.root(x) if callable(self.root) else self.root, x, "root")


class Underdamped(Kinetic):
    r"""Underdamped (kinetic) Langevin dynamics of a unit temperature.

    .. math:: dq = v\,d\tau, \qquad m\,dv = (s(q) - \gamma v)\,d\tau + \sqrt{2\gamma}\,dW .

    The state (B, 2d) is position q, then velocity v. Only the velocity is noisy. With small m and
    :math:`\gamma = 1` the positions follow :class:`Overdamped`. For :meth:`SDE.reverse`, :attr:`score` is the score of the
    stationary law :math:`p(q)\,\mathcal N(v; 0, m^{-1})`; :class:`Phase` is that law.

    Args:
        target: a density of q, or a score ``score(q, t)``, q of shape (B, d).
        friction: :math:`\gamma > 0`: a number, one per coordinate (d,), or a symmetric positive definite matrix (d, d). A
            matrix gives :class:`~sdediff.Dense` noise of d dimensions, the others diagonal noise.
        mass: m > 0: a number or one per coordinate (d,).
        at: the time at which to hold a score that depends on t.
        t_max: the end of the clock.

    Raises:
        ValueError: friction or mass is not positive (definite) or has another shape; a state without two equal halves.
    """

    def __init__(
        self,
        target: Target,
        friction: float | Tensor = 1.0,
        mass: float | Tensor = 1.0,
        *,
        at: float | None = None,
        t_max: float = math.inf,
    ):
        self.position_score = held_score(target, at)
        self.score = _PhaseScore(self.position_score, mass)
        self.mass = _each_positive(mass, "mass")
        self.friction = torch.as_tensor(friction, dtype=torch.float64)
        if self.friction.ndim == 2:
            self._kick = _cholesky(self.friction) / self.mass.reshape(-1, 1)
        else:
            self._kick = _each_positive(friction, "friction").sqrt() / self.mass
        self.t_max = t_max

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        r"""(v, (s(q) - :math:`\gamma` v)/m)."""
        q, v = halves(x)
        friction = self.friction.to(x)
        drag = v @ friction if friction.ndim == 2 else v * friction
        return torch.cat([v, (self.position_score(q, t) - drag) / self.mass.to(x)], 1)

    def g(self, x: Tensor, t: Tensor) -> Diffusion:
        r""":math:`\sqrt{2\gamma}/m` on the velocities, nothing on the positions."""
        d = halves(x)[0].shape[1]
        kick = math.sqrt(2) * self._kick.to(x)
        if kick.ndim == 2:
            return Dense(torch.cat([torch.zeros_like(kick), kick])[None])
        return Diagonal(torch.cat([kick.new_zeros(d), kick.expand(d)])[None])


class Phase(Density):
    r"""The stationary law of :class:`Underdamped`: positions of a density, velocities :math:`\mathcal N(0, m^{-1})`.

    Args:
        density: the law of q, of event shape (d,).
        mass: m, a number or (d,).
    """

    def __init__(self, density: Density, mass: float | Tensor = 1.0):
        self.position = as_density(density)
        if len(self.position.event_shape) != 1:
            raise ValueError(f"Phase needs positions of shape (d,); the density has event shape {density.event_shape}.")
        self.mass = _each_positive(mass, "mass")
        self.event_shape = (2 * self.position.event_shape[0],)
        self.device, self.dtype = self.position.device, self.position.dtype

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Positions, then velocities, drawn apart."""
        q = self.position.draw(n, generator).double().cpu()
        z = torch.randn(q.shape, generator=generator, dtype=torch.float64)
        return torch.cat([q, z / self.mass.sqrt()], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,)."""
        q, v = halves(self._check(x))
        mass = self.mass.to(x)
        normal = 0.5 * (torch.log(mass / (2 * math.pi)) - mass * v * v)
        return self.position.log_prob(q) + normal.sum(1)


@dataclass(frozen=True)
class Chains:
    """Where Metropolis chains ended: ``x`` (B, *event), and ``acceptance`` (B,), the accepted share of each one's steps."""

    x: Tensor
    acceptance: Tensor


def mala(
    density: Density,
    x: Tensor,
    step: float,
    n: int,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise: Noise | None = None,
) -> Chains:
    r"""Metropolis-adjusted Langevin: a batch of independent chains that leave ``density`` exactly invariant.

    Each step proposes :math:`y = x + hs(x) + \sqrt{2h}\,\xi` and accepts it with probability
    :math:`\min(1, p(y)q(x|y)/p(x)q(y|x))`. At small h this is :class:`Overdamped` run for a time n h; the best acceptance in
    high dimension is near 0.57.

    Args:
        density: has ``log_prob`` (not necessarily normalised) and a score.
        x: the starting states (B, *event), where the density is not 0.
        step: h, in units of the clock of :class:`Overdamped`.
        n: the number of steps.
        seed, generator, noise: at most one, as in :func:`~sdediff.solve`.

    Raises:
        ValueError: step or n is not positive, or x lies outside the support.
        NonFiniteError: the density or its score gave NaN on the way.

    Source: Roberts and Tweedie 1996, https://doi.org/10.2307/3318418.
    """
    check_positive(step, "step")
    check_count(n, "n", "at least one step")
    density = as_density(density)
    normals = as_noise(check_state(x).device, seed, generator, noise).open(x)
    with torch.no_grad():
        log_p, score = density.log_prob(x), density.score(x)
        check_finite(log_p, "log_prob(x) at the starting states")
        accepted = torch.zeros_like(log_p)
        for k in range(n):
            y = x + step * score + math.sqrt(2 * step) * normals.normal()
            log_p_y, score_y = density.log_prob(y), density.score(y)
            log_ratio = log_p_y - log_p + _log_proposal(x, y, score_y, step) - _log_proposal(y, x, score, step)
            log_ratio = torch.where(log_p_y == -math.inf, log_p_y, log_ratio)
            _check_ratio(log_ratio, k, step, x)
            log_uniform = torch.special.log_ndtr(normals.normal(log_p.shape))
            accept = log_uniform < log_ratio
            x = torch.where(_beside(accept, x), y, x)
            score = torch.where(_beside(accept, x), score_y, score)
            log_p = torch.where(accept, log_p_y, log_p)
            accepted += accept
    return Chains(x, accepted / n)


def held_score(target: Target, at: float | None) -> Score:
    """The score of ``target`` as a :class:`Score` that ignores its time argument, unless it is a plain function."""
    if isinstance(target, Score):
        if at is None and target.sde is not None:
            raise ValueError(
                f"This score belongs to {type(target.sde).__name__} and changes with t; Langevin dynamics keeps one law: "
                "give at=, the time at which to hold it."
            )
        return target if at is None else _Held(target, at)
    if hasattr(target, "log_prob"):
        if at is not None:
            raise ValueError(
                "at= holds a score that changes with t; a density does not. For p_t give ExactScore(sde, density)."
            )
        return _DensityScore(as_density(target))
    return FunctionScore(target) if at is None else _Held(FunctionScore(target), at)


class _Held(Score):
    """A score held at one time."""

    def __init__(self, score: Score, at: float):
        self.held, self.at = score, at
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.held(x, self.at, cond)


class _DensityScore(Score):
    """The score of a density, the same at all times."""

    def __init__(self, density: Density):
        self.density = density
        self.event_shape, self.device, self.dtype = density.event_shape, density.device, density.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if cond is not None:
            raise ValueError("A density takes no condition.")
        return self.density.score(x)


class _PhaseScore(Score):
    """(s(q), -m v)."""

    def __init__(self, position: Score, mass: float | Tensor):
        self.position, self.mass = position, _each_positive(mass, "mass")
        self.device, self.dtype = position.device, position.dtype
        if position.event_shape is not None:
            self.event_shape = (2 * position.event_shape[0],)

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        q, v = halves(x)
        return torch.cat([self.position(q, t, cond), -self.mass.to(x) * v], 1)


def _log_proposal(y: Tensor, x: Tensor, score: Tensor, step: float) -> Tensor:
    """log q(y | x) up to a constant, with the score at x."""
    return -(y - x - step * score).reshape(len(x), -1).square().sum(1) / (4 * step)


def _check_ratio(log_ratio: Tensor, k: int, step: float, x: Tensor) -> None:
    bad = torch.nonzero(log_ratio.isnan()).flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"The Metropolis ratio is NaN at step {k} in {len(bad)} of {len(x)} chains (first: {bad[:5]}): log_prob or the "
            "score is NaN at their proposals. A density must give -inf, not NaN, outside its support.",
            step=k,
            t=(k + 1) * step,
            samples=bad,
            state=x,
        )


def _beside(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _each_positive(value: float | Tensor, name: str) -> Tensor:
    check_parameter(value, name)  # for its errors: the copy that it makes has no graph
    c = torch.as_tensor(value, dtype=torch.float64)
    if c.ndim > 1 or not bool(((c > 0) & c.isfinite()).all()):
        raise ValueError(f"{name} must be a positive number or (d,) of them, got {c.tolist()}.")
    return c


def _cholesky(friction: Tensor) -> Tensor:
    symmetric = friction.shape[0] == friction.shape[1] and torch.allclose(friction, friction.mT, rtol=1e-10)
    if symmetric:
        factor, info = torch.linalg.cholesky_ex(friction)
        if info.item() == 0:
            return factor
    raise ValueError(f"A friction matrix must be symmetric positive definite, got {friction.tolist()}.")
