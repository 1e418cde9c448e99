"""Wrong processes, each a slip that has been made in earnest, for a check that must notice them.

They are organised by what they break: f and g against the kernel, the kernel itself, the reversal, the contract. Every one is
a process of this package with a few lines changed; its docstring says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...checks import Time
from ...coupled import CorrelatedOU
from ...diffusion import Dense, Diffusion
from ...gaussian import Gaussian
from ...linear import LinearSDE, Transition
from ...processes import OU, VE, VP, SubVP
from ...sde import SDE, Coefficient, ScoreLike
from .base import Mutant, mutant

# ---- f and g against the kernel ------------------------------------------------------------------------------------


class DoubledNoise(VP):
    """The noise of VP is too large by √2."""

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        return math.sqrt(2) * super().diffusion_coefficient(t)


class ForgottenHalf(VP):
    """The drift is -βx instead of -½βx."""

    def drift_coefficient(self, t: Tensor) -> Tensor:
        return -self.beta(t)


class SquaredNoise(VP):
    """g returns g² = β where √β was meant."""

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        return self.beta(t)


class RisingDrift(VP):
    """The drift has the wrong sign."""

    def drift_coefficient(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta(t)


class LateNoise(VP):
    """g is evaluated at t + 0.01 and f at t."""

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        return super().diffusion_coefficient(t + 0.01)


class SquareRootOfTime(VE):
    """The noise grows with σ_s where it should grow with the derivative of σ_s²."""

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(0.5 * self._growth * t)


# ---- the kernel -----------------------------------------------------------------------------------------------------


class DoubledBeta(VP):
    """The kernel's log α has β doubled; f and g do not."""

    def log_alpha(self, t: Tensor) -> Tensor:
        return 2 * super().log_alpha(t)


class UnscheduledVE(VE):
    """The kernel's variance is the schedule's square σ_s²(t), not σ_s²(t) - σ_s²(0): x_0 is blurred at t = 0."""

    def variance(self, t: Tensor) -> Tensor:
        return super().variance(t) + self.sigma_min**2


class SubVPWithVPKernel(SubVP):
    """The kernel of subVP has the σ of VP, √(1 - ᾱ), instead of 1 - ᾱ."""

    def variance(self, t: Tensor) -> Tensor:
        return VP.variance(self, t)


class CancellingVariance(VP):
    """The variance is 1 - exp(…) in float32, which loses its digits near t = 0."""

    def variance(self, t: Tensor) -> Tensor:
        return (1 - torch.exp(2 * self.log_alpha(t).float())).to(t.dtype)


class SinglePrecisionSigma(VP):
    """sigma is computed in the dtype of the time, so that 1 - exp(…) cancels where times are float32."""

    def sigma(self, t: Time) -> Tensor:
        at = torch.as_tensor(t)
        return torch.sqrt(1 - torch.exp(2 * self.log_alpha(at)))


class PerturbedByVariance(VP):
    """perturb multiplies the noise by the variance instead of the standard deviation."""

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        law = self.marginal(x0, t)
        return law.mean + law.std**2 * noise


class SlightlyWide(VP):
    """The kernel's variance is 0.1 % too large."""

    def variance(self, t: Tensor) -> Tensor:
        return 1.001 * super().variance(t)


class ForgetfulTransition(VP):
    """The transition's variance is σ_t² - σ_s², without the scale on what was there at s."""

    def transition(self, s: Time, t: Time) -> Transition:
        scale = super().transition(s, t).scale
        return Transition(scale, (self.sigma(t) ** 2 - self.sigma(s) ** 2).clamp_min(0))


class HalvedLogSNR(VP):
    """log_snr gives log(α/σ) where twice that is meant."""

    def log_snr(self, t: Time) -> Tensor:
        return 0.5 * super().log_snr(t)


class MislaidTime(VP):
    """time_of solves for a β that does not rise."""

    def time_of(self, log_snr: Time) -> Tensor:
        return OU(t_max=10.0).time_of(log_snr).clamp(max=1.0)


class StandardNormalPrior(VE):
    """The prior of a process that explodes is N(0, I)."""

    def prior(self, event_shape: tuple[int, ...], *, mean: float = 0.0, std: float = 0.0) -> Gaussian:
        return Gaussian(torch.zeros(()), torch.ones(()), tuple(event_shape))


class UncorrelatedNoise(CorrelatedOU):
    """The kernel of a coupled process has the right variances and no covariances."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([[1.0, 0.0], [0.8, 0.6]]), t_max=3.0)

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        law = self.marginal(x0, t)
        mean = law.from_noise(torch.zeros_like(noise))
        units = torch.eye(2, dtype=noise.dtype)
        columns = torch.stack([law.from_noise(unit.expand_as(noise)) - mean for unit in units])
        return mean + noise * columns.square().sum(0).sqrt()


# ---- the reversal -----------------------------------------------------------------------------------------------------


class _Backward(SDE):
    """A reversal put together by hand."""

    direction = -1

    def __init__(self, sde: Any, drift: Callable[[Tensor, Tensor], Tensor], noise: float = 1.0, direction: int = -1):
        self.sde, self.drift_of, self.factor, self.direction = sde, drift, noise, direction
        self.t_min, self.t_max = sde.t_min, sde.t_max

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return self.drift_of(x, t)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return self.factor * self.sde.diffusion(x, t)


class _HandMade(VP):
    """VP with a reverse SDE of its own: f - ``strength`` g² s, evaluated at ``score_time``, with noise ``factor`` g."""

    strength, factor = 1.0, 1.0

    def score_time(self, t: Tensor) -> Tensor:
        return t

    def reverse(
        self, score: ScoreLike, stochasticity: Coefficient = 1.0, *, diffusion: Coefficient | None = None
    ) -> SDE:
        if stochasticity != 1.0 or diffusion is not None:
            return super().reverse(score, stochasticity, diffusion=diffusion)

        def drift(x: Tensor, t: Tensor) -> Tensor:
            return self.drift(x, t) - self.strength * self.diffusion(x, t).gram(score(x, self.score_time(t)))

        return _Backward(self, drift, self.factor)


class HalvedScore(_HandMade):
    """The reverse SDE has the drift of the flow, f - ½g²s, and all of the noise."""

    strength = 0.5


class UphillScore(_HandMade):
    """The reverse SDE has f + g²s."""

    strength = -1.0


class NoisyReverse(_HandMade):
    """The reverse SDE has noise √2 g."""

    factor = math.sqrt(2)


class StaleReverse(_HandMade):
    """The reverse SDE asks the score at the time before, t + 0.01."""

    def score_time(self, t: Tensor) -> Tensor:
        return (t + 0.01).clamp(max=self.t_max)


class ReversedClock(_HandMade):
    """The reverse SDE asks the score at t_max - t."""

    def score_time(self, t: Tensor) -> Tensor:
        return self.t_max - t


class UnsquaredReverse(VP):
    """The reverse SDE has f - g s: g where g² belongs."""

    def reverse(
        self, score: ScoreLike, stochasticity: Coefficient = 1.0, *, diffusion: Coefficient | None = None
    ) -> SDE:
        if stochasticity != 1.0 or diffusion is not None:
            return super().reverse(score, stochasticity, diffusion=diffusion)
        return _Backward(self, lambda x, t: self.drift(x, t) - self.diffusion(x, t) @ score(x, t))


class UnhalvedFlow(VP):
    """The probability flow is f - g²s."""

    def probability_flow(self, score: ScoreLike) -> SDE:
        good = super().reverse(score)
        return _Backward(self, lambda x, t: good.drift(x, t), 0.0, 0)


class Growing(SDE):
    """Noise that grows with the distance from the origin, in all coordinates at once. (This one is right.)"""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -x

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 0.5 * (1 + x.reshape(len(x), -1).square().sum(1)).sqrt().reshape(-1, *[1] * (x.ndim - 1))


class ForgottenDivergence(Growing):
    """∇·(GGᵀ) is taken to be 0 though G depends on x."""

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        return torch.zeros_like(x)


class HalvedDivergence(Growing):
    """∇·(GGᵀ) is halved: the correction of a Stratonovich SDE in an Itô one."""

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        return 0.5 * super().gram_divergence(x, t)


class SummedDivergence(Growing):
    """∇·(GGᵀ) is the gradient of Σg², not the diagonal of the Jacobian."""

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            square = torch.as_tensor(self.g(at, t)) ** 2  # type: ignore[arg-type]
            return torch.autograd.grad(square.expand(x.shape).sum(), at, create_graph=True)[0]


class DetachedNoise(Growing):
    """g leaves the graph of autograd, so that its divergence is lost."""

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return super().g(x.detach(), t)


class TransposedNoise(SDE):
    """The reversals use GᵀG where GGᵀ belongs."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -x

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return Dense(torch.tensor([[[1.0, 0.8], [0.0, 0.5]]], dtype=x.dtype))

    def _backward(self, score: ScoreLike, half: float, noise: float, direction: int) -> SDE:
        def drift(x: Tensor, t: Tensor) -> Tensor:
            matrix = self.g(x, t).matrix  # type: ignore[union-attr]
            return self.drift(x, t) - half * Dense(matrix.mT).gram(score(x, t))

        return _Backward(self, drift, noise, direction)

    def reverse(
        self, score: ScoreLike, stochasticity: Coefficient = 1.0, *, diffusion: Coefficient | None = None
    ) -> SDE:
        if stochasticity != 1.0 or diffusion is not None:
            return super().reverse(score, stochasticity, diffusion=diffusion)
        return self._backward(score, 1.0, 1.0, -1)

    def probability_flow(self, score: ScoreLike) -> SDE:
        return self._backward(score, 0.5, 0.0, 0)


# ---- the contract -------------------------------------------------------------------------------------------------------


class BatchNorm(SDE):
    """The drift is divided by a norm over the whole batch: what one sample does depends on the others."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -x / x.square().mean().sqrt()

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class SharedNoise(SDE):
    """g scales with the mean of the batch: samples are coupled through their noise."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * x

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1 + 0.1 * x.mean().tanh()


class OneTimeForAll(SDE):
    """The time of the first sample is used for all."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -(1 + 5 * t.flatten()[0]) * x

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class TimeAlongTheState(SDE):
    """A vector of times (B,) is spread along the coordinates of the state, which goes unnoticed where B = d."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -x * (1 + t.reshape(1, -1)[:, : x.shape[1]])

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class InPlaceDrift(SDE):
    """f multiplies x in place."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return x.detach().mul_(-0.5)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class DropoutDrift(SDE):
    """f draws random numbers: a network left in training mode."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -torch.nn.functional.dropout(x, 0.1)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class BroadcastDrift(SDE):
    """f returns one number per sample, (B, 1), which broadcasts."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -x.sum(1, keepdim=True)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class VectorNoise(SDE):
    """g is a vector (d,), which broadcasts the wrong way where B = d."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * x

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return torch.ones(x.shape[1])


class SinglePrecisionDrift(SDE):
    """f subtracts two large numbers in float32."""

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        big = torch.full_like(x, 1e6).float()
        return -((x.float() + big) - big).to(x.dtype)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        return 1.0


class NegativeRoot(LinearSDE):
    """g is the root of something that turns negative: NaN for t > 0.8."""

    def drift_coefficient(self, t: Tensor) -> Tensor:
        return -0.5 * torch.ones_like(t)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        return torch.sqrt(0.8 - t)


def _mutants(breaks: str, *classes: type) -> tuple[Mutant, ...]:
    return tuple(mutant(each, breaks) for each in classes)


PROCESSES: tuple[Mutant, ...] = (
    *_mutants(
        "f and g", DoubledNoise, ForgottenHalf, SquaredNoise, RisingDrift, LateNoise, SquareRootOfTime
    ),
    *_mutants(
        "kernel", DoubledBeta, UnscheduledVE, SubVPWithVPKernel, CancellingVariance, SinglePrecisionSigma, PerturbedByVariance,
        SlightlyWide,
        ForgetfulTransition, HalvedLogSNR, MislaidTime, StandardNormalPrior, UncorrelatedNoise,
    ),
    *_mutants(
        "reversal", HalvedScore, UphillScore, NoisyReverse, UnsquaredReverse, StaleReverse, ReversedClock, UnhalvedFlow,
        ForgottenDivergence,
        HalvedDivergence, SummedDivergence, DetachedNoise, TransposedNoise,
    ),
    *_mutants(
        "contract", BatchNorm, SharedNoise, OneTimeForAll, TimeAlongTheState, InPlaceDrift, DropoutDrift, BroadcastDrift,
        VectorNoise, SinglePrecisionDrift, NegativeRoot,
    ),
)  # fmt: skip
"""Processes that ``check_sde`` must reject."""
