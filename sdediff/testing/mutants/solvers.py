"""Wrong solvers, each a method of this package with one line changed.

They are organised by what they break: the noise, the clock, the order of convergence, the batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...noise import Stream
from ...sde import SDE, Semilinear
from ...solvers import (
    DDIM,
    DPMSolverPP2M,
    EulerMaruyama,
    ExactTransition,
    ExponentialMultistep,
    Heun,
    Milstein,
    Orders,
    ReverseDiffusion,
    Solver,
)
from ...solvers.base import Advance
from ...solvers.exponential.rules import Rule
from ...solvers.onestep import AffineStep, Coefficients
from .base import Mutant, mutant

# ---- the noise -------------------------------------------------------------------------------------------------------


class _Euler(Solver):
    """Euler-Maruyama, with what is done to its increment, its step and its clock left open."""

    orders = EulerMaruyama.orders

    def noise(self, dw: Tensor, h: float) -> Tensor:
        """What becomes of the increment."""
        return dw

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        drifted = x + process.drift(x, s) * (t - s)
        if process.direction == 0:
            return drifted
        diffusion = process.diffusion(x, s)
        return drifted + diffusion @ self.noise(noise.increment(s, t, diffusion.noise_shape(x)), t - s)


class DoubledIncrement(_Euler):
    """The increment is too large by √2."""

    def noise(self, dw: Tensor, h: float) -> Tensor:
        return math.sqrt(2) * dw


class UnscaledNoise(_Euler):
    """The noise is not scaled by √h."""

    def noise(self, dw: Tensor, h: float) -> Tensor:
        return dw / math.sqrt(abs(h))


class NoiseTimesStep(_Euler):
    """The noise is scaled by h instead of √h."""

    def noise(self, dw: Tensor, h: float) -> Tensor:
        return dw * math.sqrt(abs(h))


class NoNoise(_Euler):
    """η is forgotten: a noisy reversal is solved without its noise."""

    def noise(self, dw: Tensor, h: float) -> Tensor:
        return torch.zeros_like(dw)


class OneNoiseForAll(_Euler):
    """All samples of a batch share one increment."""

    def noise(self, dw: Tensor, h: float) -> Tensor:
        return dw[:1].expand_as(dw)


class UniformNoise(_Euler):
    """The increment is uniform instead of normal, of the right variance: weakly right, strongly wrong."""

    def noise(self, dw: Tensor, h: float) -> Tensor:
        root = math.sqrt(abs(h))
        return (torch.special.ndtr(dw / root) - 0.5) * (math.sqrt(12) * root)


class RepeatedNoise(Solver):
    """The same random numbers are used in every step."""

    orders = EulerMaruyama.orders

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        nodes, kept = grid.tolist(), list[Tensor]()

        def advance(k: int, x: Tensor) -> Tensor:
            h = nodes[k + 1] - nodes[k]
            drifted = x + process.drift(x, nodes[k]) * h
            if process.direction == 0:
                return drifted
            diffusion = process.diffusion(x, nodes[k])
            if not kept:
                kept.append(noise.normal(diffusion.noise_shape(x)))
            return drifted + diffusion @ (kept[0] * math.sqrt(abs(h)))

        return advance


class NoiselessReverse(AffineStep):
    """The reverse-diffusion step without its noise: the drift of the SDE, the spread of the flow."""

    orders = ReverseDiffusion.orders

    def coefficients(self, process: Semilinear, grid: Tensor) -> Coefficients:
        """(2 - A, G², 0)."""
        a, b, c = ReverseDiffusion().coefficients(process, grid)
        return a, b, 0 * c


class ExactButForNoise(ExactTransition):
    """The exact transition with the standard deviation of an Euler step, g√h: of weak order 1, sold as 2."""

    orders = Orders(weak=2.0)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        kernel: Any = process.transition(grid[:-1], grid[1:])  # type: ignore[attr-defined]
        nodes = grid.tolist()

        def advance(k: int, x: Tensor) -> Tensor:
            return kernel.scale[k] * x + process.diffusion(x, nodes[k]) @ noise.increment(nodes[k], nodes[k + 1])

        return advance


class WrongCorrection(Milstein):
    """Milstein with ½gg′(ΔW² + |h|) for ½gg′(ΔW² - |h|): one sign."""

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        good, nodes = super().prepare(process, grid, noise), grid.tolist()

        def advance(k: int, x: Tensor) -> Tensor:
            new = good(k, x)
            if process.direction == 0:
                return new
            return new + 0.5 * process.gram_divergence(x, nodes[k]) * abs(nodes[k + 1] - nodes[k])

        return advance


# ---- the clock --------------------------------------------------------------------------------------------------------


class UnsignedStep(Solver):
    """The step is |h| where it must be negative: a reversal runs away from the data."""

    orders = EulerMaruyama.orders

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        drifted = x + process.drift(x, s) * abs(t - s)
        if process.direction == 0:
            return drifted
        diffusion = process.diffusion(x, s)
        return drifted + diffusion @ noise.increment(s, t, diffusion.noise_shape(x))


class FrozenTime(Solver):
    """f and g are evaluated at the first time of the grid in every step."""

    orders = EulerMaruyama.orders

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        nodes = grid.tolist()

        def advance(k: int, x: Tensor) -> Tensor:
            s, t = nodes[k], nodes[k + 1]
            drifted = x + process.drift(x, nodes[0]) * (t - s)
            if process.direction == 0:
                return drifted
            diffusion = process.diffusion(x, nodes[0])
            return drifted + diffusion @ noise.increment(s, t, diffusion.noise_shape(x))

        return advance


class MissingLastStep(Solver):
    """The last step is not made: N points where N + 1 nodes belong."""

    orders = EulerMaruyama.orders

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        good, last = EulerMaruyama().prepare(process, grid, noise), len(grid) - 2
        return lambda k, x: x if k == last else good(k, x)


class StretchedStep(Solver):
    """The clock is stretched: a step covers 95 % of the time between its nodes, in drift and noise alike."""

    orders = EulerMaruyama.orders

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        h = 0.95 * (t - s)
        drifted = x + process.drift(x, s) * h
        if process.direction == 0:
            return drifted
        diffusion = process.diffusion(x, s)
        return drifted + diffusion @ noise.increment(s, s + h, diffusion.noise_shape(x))


# ---- the order --------------------------------------------------------------------------------------------------------


class UnevenHeun(Heun):
    """Heun with weights 0.4 and 0.6 for its two slopes: of first order, sold as second."""

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        h = t - s
        first = process.drift(x, s)
        second = process.drift(x + h * first, t)
        return x + h * (0.4 * first + 0.6 * second)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        return Solver.prepare(self, process, grid, noise)


class EulerSoldAsHeun(EulerMaruyama):
    """Euler's method that claims order 2."""

    orders = Orders(strong=0.5, strong_additive=1.0, weak=1.0, ode=2.0)


class UnadjustedLangevin(EulerMaruyama):
    """Euler-Maruyama sold as of weak order 2: without Metropolis' correction its bias is of first order."""

    orders = Orders(strong=0.5, strong_additive=1.0, weak=2.0, ode=1.0)


class _WrongWeights(Rule):
    """A rule with a factor on the weights of all predictions but the newest."""

    def __init__(self, rule: Rule, factor: float):
        self.rule, self.factor = rule, factor

    def weights(self, prediction: Any, steps: Any, nodes: Tensor, schedule: Any) -> Tensor:
        good = self.rule.weights(prediction, steps, nodes, schedule)
        older = self.factor * good[:, 1:]
        return torch.cat([good.sum(1, keepdim=True) - older.sum(1, keepdim=True), older], 1)


class BrokenMultistep(ExponentialMultistep):
    """A multistep method with its first difference doubled: consistent, and of first order."""

    def __init__(self) -> None:
        good = DPMSolverPP2M()
        super().__init__(2, prediction=good.prediction, rule=_WrongWeights(good.rule, 2.0))


class UnbalancedMultistep(ExponentialMultistep):
    """A multistep method whose older weight is dropped without the newest making up for it."""

    class _Dropped(_WrongWeights):
        def weights(self, prediction: Any, steps: Any, nodes: Tensor, schedule: Any) -> Tensor:
            good = self.rule.weights(prediction, steps, nodes, schedule)
            return torch.cat([good[:, :1], 0 * good[:, 1:]], 1)

    def __init__(self) -> None:
        good = DPMSolverPP2M()
        super().__init__(2, prediction=good.prediction, rule=self._Dropped(good.rule, 0.0))


# ---- the batch --------------------------------------------------------------------------------------------------------


class BatchNormStep(Solver):
    """The drift is divided by 1 + 0.1 r, r its root mean square over the whole batch."""

    orders = EulerMaruyama.orders

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        drift = process.drift(x, s)
        drifted = x + drift * (t - s) / (1 + 0.1 * drift.square().mean().sqrt())
        if process.direction == 0:
            return drifted
        diffusion = process.diffusion(x, s)
        return drifted + diffusion @ noise.increment(s, t, diffusion.noise_shape(x))


class ConstantNudge(EulerMaruyama):
    """The state is nudged by a constant in each step, which no step size cures."""

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        good = super().prepare(process, grid, noise)
        return lambda k, x: good(k, x) + 1e-3


class NoisyDDIM(DDIM):
    """DDIM with noise of 0.3 ΔW added and its drift unchanged."""

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        good = super().prepare(process, grid, noise)
        nodes = grid.tolist()
        return lambda k, x: good(k, x) + 0.3 * noise.increment(nodes[k], nodes[k + 1])


def _mutants(breaks: str, *classes: type) -> tuple[Mutant, ...]:
    return tuple(mutant(each, breaks) for each in classes)


SOLVERS: tuple[Mutant, ...] = (
    *_mutants(
        "noise", DoubledIncrement, UnscaledNoise, NoiseTimesStep, NoNoise, OneNoiseForAll, RepeatedNoise, UniformNoise,
        NoiselessReverse, ExactButForNoise, WrongCorrection, NoisyDDIM,
    ),
    *_mutants("clock", UnsignedStep, FrozenTime, MissingLastStep, StretchedStep),
    *_mutants("order", UnevenHeun, EulerSoldAsHeun, UnadjustedLangevin, BrokenMultistep, UnbalancedMultistep),
    *_mutants("batch", BatchNormStep, ConstantNudge),
)  # fmt: skip
"""Solvers that ``check_solver`` must reject."""
