r"""The identity behind every diffusion model: forward plus backward is Langevin.

Hold t fixed. The forward half of a process has drift f and noise G; the backward half, in rising time, has drift
:math:`-f + \nabla\cdot D + Ds` and noise G. Together they are the Langevin dynamics of :math:`p_t`,

.. math:: dx = (\nabla\cdot D + Ds)\,d\tau + \sqrt2\,G\,dW ,

so the sum of the two Fokker-Planck operators annihilates :math:`p_t`. Each half alone moves the law:
:math:`L_f^*p_t = \partial_t p_t` and :math:`L_b^*p_t = -\partial_t p_t`.

What is checked is the code at hand, not the algebra: f, G and the law are taken from the SDE, the backward half from its
``reverse(score)``, and every derivative is taken anew (:mod:`~sdediff.verify.operator`). The identity of the sum holds for
any law p with :math:`s = \nabla\log p`, so it sees a wrong reversal or score but not a wrong law; the two halves, checked
where the law is known as a function of t, see that as well, and the start of the kernel what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_seed
from ..densities import Density
from ..diffusion import Diffusion
from ..metrics import random_directions
from ..sde import SDE, ScoreLike
from .budget import affordable, check_options
from .features import Features
from .halving import projections_test
from .laws import Diffused, Fixed, Law, law_of
from .moments import Kernel, start_errors
from .operator import fokker_planck, jacobian, residual
from .report import Report, Row, exact_row, judge
from .statistics import Outcome, worst, z_test

TOLERANCE = 1e-9
"""The largest relative residual that passes an exact check in float64."""

_POINTS = 256
_DIRECTIONS = 4
_PER_RELAXATION = 8  # steps of the coarser chain in the relaxation time of the stiffest points
_MOST_STEPS = 64


def langevin_identity(
    sde: SDE,
    density: Density | Law,
    t: float,
    *,
    score: ScoreLike | None = None,
    n: int = 20_000,
    budget: float | None = None,
    particles: bool = True,
    level: float = 1e-4,
    seed: int = 0,
) -> Report:
    r"""Check at fixed t that the forward and the backward half of a process add up to the Langevin dynamics of p_t.

    Exactly: the residual of :math:`(L_f^* + L_b^*)p_t = 0`, pointwise at samples of p_t, relative to its largest term.
    Where p_t is known as a function of t, also :math:`L_f^*p_t = \partial_tp_t` and :math:`L_b^*p_t = -\partial_tp_t`; under a
    linear SDE also :math:`\alpha(0) = 1, \sigma(0) = 0`.

    By particles: exact samples of p_t are run through both halves at once, and through one half after the other, for about
    a relaxation time. Their law must still be p_t. Euler-Maruyama steps have a bias proportional to h, so chains of step h
    and h/2 share one Brownian path: what is tested is the extrapolation 2 φ(fine) - φ(coarse) - φ(start) of bounded
    functions φ, and the law of the fine chain up to the distance between the two, which is its bias to first order.

    Args:
        sde: the forward process, its f and g differentiable in x.
        density: the law at t = 0 of a linear SDE, where it has a closed form under it; else the law at t itself, any with a
            smooth ``log_prob`` and a ``sample``.
        t: the time, inside the domain.
        score: the score to put to the test, float64 and differentiable in x; that of the law by default.
        n: how many particles.
        budget: seconds, instead of n: as many particles as they allow.
        particles: False for the exact part alone.
        level: the probability of a false alarm, for all tests by particles together.
        seed: of all random numbers.

    Raises:
        ValueError: the process has no noise, or is itself a reversal; or the budget is no time.
    """
    if sde.direction != 1:
        raise ValueError(f"{type(sde).__name__} is no forward SDE with noise: give the process before its reversal.")
    check_options(seed, n=n, budget=budget, level=level)
    law = law_of(sde, density)
    pair = _Pair(_Half(sde, t), _Half(sde.reverse(law.score if score is None else score), t))
    rows = _exact_rows(law, pair, t, seed)
    notes = [f"law: {law}.", f"exact: {_POINTS} samples of p_t, float64, derivatives independent of the package's own."]
    if particles:
        pace = _pace(pair, law, t, seed)
        if budget is not None:
            n = affordable(lambda n: _particle_panel(pair, law, t, pace, n, seed + 1), budget)
        rows += judge(lambda n, seed: _particle_panel(pair, law, t, pace, n, seed), n, seed, level)
        notes.append(
            f"particles: {n:,}, for a time {pace[0]:.3g} in {pace[1]} and {2 * pace[1]} steps; level {level:g} for all "
            "tests together, each effect detected with probability 0.99."
        )
    return Report(f"Langevin identity of {type(sde).__name__} at t = {t:g}", rows, tuple(notes))


def stationary(sde: SDE, density: Density, t: float = 0.0, *, seed: int = 0) -> Report:
    """Check exactly that ``density`` is a stationary law of ``sde``: its Fokker-Planck operator at t annihilates it.

    Args:
        sde: any SDE, a reversal too, its f and g differentiable in x.
        density: anything with a smooth ``log_prob`` and a ``sample``.
        t: the time at which f and g are taken.
        seed: of the points, samples of the density.
    """
    law = Fixed(density)
    x = law.sample(_POINTS, t, torch.Generator().manual_seed(check_seed(seed)))
    half = _Half(sde, t)
    terms = fokker_planck(half.drift, half.diffusion, law.density.log_prob, x)
    title = f"{type(law.density).__name__} as stationary law of {type(sde).__name__}"
    return Report(title, (exact_row("L*p = 0", residual(terms), TOLERANCE),))


def langevin_panel(sde: SDE, law: Law, t: float, seed: int) -> Callable[[int, int], dict[str, Outcome]]:
    """The tests of the identity by particles, for a check made of several."""
    pair = _Pair(_Half(sde, t), _Half(sde.reverse(law.score), t))
    pace = _pace(pair, law, t, seed)
    return lambda n, seed: _particle_panel(pair, law, t, pace, n, seed)


class _Half:
    """A process at fixed t, in its own rising time."""

    def __init__(self, sde: SDE, t: float):
        self.sde, self.t = sde, t
        self.sign = 1 if sde.direction == 1 else -1  # a reversal's drift is for a falling clock

    def drift(self, x: Tensor) -> Tensor:
        return self.sign * self.sde.drift(x, self.t)

    def diffusion(self, x: Tensor) -> Diffusion:
        return self.sde.diffusion(x, self.t)

    def move(self, x: Tensor, h: float, dw: Tensor) -> Tensor:
        """The Euler-Maruyama displacement."""
        return h * self.drift(x) + self.diffusion(x) @ dw


@dataclass(frozen=True)
class _Pair:
    """The forward and the backward half."""

    forward: _Half
    backward: _Half

    def drift(self, x: Tensor) -> Tensor:
        """The drift of their sum."""
        return self.forward.drift(x) + self.backward.drift(x)

    def step(self, x: Tensor, h: float, dw: tuple[Tensor, Tensor], split: bool) -> Tensor:
        """x after a time h: both halves at once, or one after the other."""
        middle = x + self.forward.move(x, h, dw[0])
        return middle + self.backward.move(middle if split else x, h, dw[1])

    def increments(self, x: Tensor, h: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A Brownian increment over h for each half."""
        shapes = (half.diffusion(x).noise_shape(x) for half in (self.forward, self.backward))
        forward, backward = (h**0.5 * torch.randn(shape, generator=generator, dtype=x.dtype) for shape in shapes)
        return forward, backward


def _exact_rows(law: Law, pair: _Pair, t: float, seed: int) -> tuple[Row, ...]:
    x = law.sample(_POINTS, t, torch.Generator().manual_seed(seed))
    forward, backward = (
        fokker_planck(half.drift, half.diffusion, lambda x: law.log_prob(x, t), x)
        for half in (pair.forward, pair.backward)
    )
    found = {"L*p = 0, forward + backward": residual(torch.cat([forward, backward]))}
    if law.moves:
        rate = law.rate(x, t)[None]
        found["L*p = ∂p/∂t, forward"] = residual(torch.cat([forward, -rate]))
        found["L*p = -∂p/∂t, backward"] = residual(torch.cat([backward, rate]))
    if isinstance(law, Diffused):
        # The law at t = 0 is that of the data.
        found["α(0) = 1, σ(0) = 0"] = sum(start_errors(Kernel(law.exact.sde, law.event_shape)))
    return tuple(exact_row(what, value, TOLERANCE) for what, value in found.items())


def _pace(pair: _Pair, law: Law, t: float, seed: int) -> tuple[float, int]:
    """How long particles run, and in how many steps of the coarser chain.

    The rate at a point is the norm of the Jacobian of a drift. Steps are short for the Langevin drift and for each half, in
    which forces may be that cancel in the sum, at all but the stiffest 1 % of points, which would be unstable; the run lasts
    a relaxation time of the typical point if it takes no more than ``_MOST_STEPS``.
    """
    x = law.sample(_POINTS, t, torch.Generator().manual_seed(seed))
    drifts = (pair.drift, pair.forward.drift, pair.backward.drift)
    rates = [torch.linalg.matrix_norm(jacobian(drift, x), 2) for drift in drifts]
    typical, stiff = float(rates[0].median()), max(float(rate.quantile(0.99)) for rate in rates)
    steps = min(_MOST_STEPS, math.ceil(_PER_RELAXATION * stiff / typical))
    return min(1 / typical, steps / (_PER_RELAXATION * stiff)), steps


def _particle_panel(pair: _Pair, law: Law, t: float, pace: tuple[float, int], n: int, seed: int) -> dict[str, Outcome]:
    generator = torch.Generator().manual_seed(seed)
    reference = law.sample(4 * n, t, generator)  # fresh: no particle starts there
    directions = random_directions(reference[0].numel(), _DIRECTIONS, generator)
    features = Features(law, t, directions, reference[:1000])
    panel = {}
    for name, split in (("halves at once", False), ("halves in turn", True)):
        start = law.sample(n, t, generator)
        coarse, fine = _coupled_chains(pair, start, pace, split, generator)
        before, rough, after = (features(x) for x in (start, coarse, fine))
        shifts = (2 * after - rough - before) / before.std(0)
        panel[f"{name}: means of {shifts.shape[1]} functions"] = worst([z_test(v, unit="sd") for v in shifts.unbind(1)])
        what, projected = projections_test(law, t, directions, fine, coarse, reference)
        panel[f"{name}: {what}"] = projected
    return panel


def _coupled_chains(
    pair: _Pair, x: Tensor, pace: tuple[float, int], split: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Chains of step h and h/2 from x, on one Brownian path."""
    duration, steps = pace
    h = duration / steps
    coarse = fine = x
    for _ in range(steps):
        first, second = (pair.increments(x, 0.5 * h, generator) for _ in range(2))
        fine = pair.step(pair.step(fine, 0.5 * h, first, split), 0.5 * h, second, split)
        coarse = pair.step(coarse, h, (first[0] + second[0], first[1] + second[1]), split)
    return coarse, fine
