r"""Linear SDEs with one scale: :math:`dx = a(t)\,x\,dt + g(t)\,dW`, whose kernels are Gaussian.

.. math:: x_t \mid x_0 \sim \mathcal N(\alpha_t x_0, \sigma_t^2 I), \qquad
          a = (\log\alpha)', \qquad g^2 = (\sigma^2)' - 2a\sigma^2 .

A subclass gives *either* ``log_alpha`` and ``variance`` *or* ``drift_coefficient`` and ``diffusion_coefficient``; the
other pair follows, by differentiation or by quadrature in float64.

Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, and Karras et al. 2022, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from .autodiff import leaf, recording
from .checks import Time, as_time, check_event, check_number, check_state, float64, time_dtype, within
from .diffusion import Diagonal, Diffusion
from .forms import Form
from .gaussian import Gaussian
from .quadrature import LinearKernel
from .score import Score, as_score
from .sde import (
    SDE,
    Coefficient,
    FreeNoiseReverse,
    Linear,
    ProbabilityFlow,
    Reverse,
    ScoreLike,
    Semilinear,
    finite_at,
)

_PAIRS = (("log_alpha", "drift_coefficient"), ("variance", "diffusion_coefficient"))


@dataclass(frozen=True)
class Transition:
    """The kernel from an earlier time s to a later t: x_t given x_s is N(scale * x_s, variance I)."""

    scale: Tensor
    variance: Tensor


class LinearSDE(Linear):
    """A linear SDE with one scale; see the module for what a subclass gives.

    The four hooks are elementwise functions of a float64 tensor t. All other methods are for callers: they take t as
    a number, () or (B, ...), compute in float64 and return float64 for a number, else at least float32. A number
    or a 0-d host tensor outside [0, t_max] raises ValueError; a batch of times is checked beside its states.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for kernel, coefficient in _PAIRS:
            if all(getattr(cls, name) is getattr(LinearSDE, name) for name in (kernel, coefficient)):
                raise TypeError(f"{cls.__name__} must define {kernel}(t), or else {coefficient}(t).")

    # ---- hooks: define one of each pair -----------------------------------------------------------------------

    def log_alpha(self, t: Tensor) -> Tensor:
        r""":math:`\log\alpha(t) = \int_0^t a`."""
        return self._kernel.log_alpha(t)

    def variance(self, t: Tensor) -> Tensor:
        r""":math:`\sigma^2(t)`, the variance of x_t given x_0."""
        return self._kernel.variance(t)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        r""":math:`a(t) = (\log\alpha)'`, so that f = a x."""
        return derivative(self.log_alpha, t)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        r""":math:`g(t) = \sqrt{(\sigma^2)' - 2a\sigma^2}`."""
        square = derivative(self.variance, t) - 2 * self.drift_coefficient(t) * self.variance(t)
        return torch.sqrt(square.clamp_min(0))

    # ---- the process ------------------------------------------------------------------------------------------

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """a(t) x."""
        return x * _cast(torch.as_tensor(self.drift_coefficient(float64(t))), x)

    def g(self, x: Tensor, t: Tensor) -> Tensor:
        """g(t)."""
        return _cast(torch.as_tensor(self.diffusion_coefficient(float64(t))), x)

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        """0: the noise is additive."""
        as_time(t, check_state(x), self.t_max)
        return torch.zeros_like(x)

    def _time(self, t: Time) -> Tensor:
        """A caller's time in float64, in the domain if it is one time for all.

        A batch of times is checked where it meets the states, in ``drift``, ``marginal`` and scores: to look at it again for
        each schedule costs an adaptive solver a tenth of its time.
        """
        t64 = float64(t)
        return within(t64, self.t_max) if t64.ndim == 0 else t64

    def alpha(self, t: Time) -> Tensor:
        r"""The scale :math:`\alpha(t)` of x_0 in x_t."""
        return torch.exp(self.log_alpha(self._time(t))).to(time_dtype(t))

    def sigma(self, t: Time) -> Tensor:
        r"""The standard deviation :math:`\sigma(t)` of x_t given x_0."""
        return torch.sqrt(self.variance(self._time(t))).to(time_dtype(t))

    def log_snr(self, t: Time) -> Tensor:
        r"""The log signal-to-noise ratio :math:`2\ell(t) = \log(\alpha^2/\sigma^2)`."""
        t64 = within(float64(t), self.t_max)
        return (2 * self.log_alpha(t64) - torch.log(self.variance(t64))).to(time_dtype(t))

    def alpha_rate(self, t: Time) -> Tensor:
        r""":math:`\alpha'(t)`, finite where :math:`\alpha` vanishes."""
        return derivative(lambda u: self.alpha(u), self._time(t)).to(time_dtype(t))

    def sigma_rate(self, t: Time) -> Tensor:
        r""":math:`\sigma'(t)`."""
        return derivative(lambda u: self.sigma(u), self._time(t)).to(time_dtype(t))

    @cached_property
    def _kernel(self) -> LinearKernel:
        return LinearKernel(self.drift_coefficient, self.diffusion_coefficient, self.t_max)

    @cached_property
    def reaches_pure_noise(self) -> bool:
        """True where alpha(t_max) = 0, so that f or g is infinite there."""
        return bool(self.alpha(self.t_max) == 0)

    def marginal(self, x0: Tensor, t: Time) -> Gaussian:
        """The law of x_t given x_0 (B, *event)."""
        t = as_time(t, check_state(x0, "x0"), self.t_max)
        return Gaussian(_cast(self.alpha(t), x0) * x0, _cast(self.sigma(t), x0), tuple(x0.shape[1:]))

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        r""":math:`x_t = \alpha_t x_0 + \sigma_t\epsilon` for x_0 and noise of shape (B, *event)."""
        check_state(x0, "x0")
        if check_state(noise, "noise").shape != x0.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)} for x0 of shape {tuple(x0.shape)}: use randn_like(x0)."
            )
        return self.marginal(x0, t).from_noise(noise)

    def lift(self, x0: Tensor) -> Tensor:
        """x_0: a state is data, with noise on it."""
        return x0

    def translated(self, form: Form, x: Tensor, t: Tensor) -> tuple[Form, Any, Any]:
        """The form as it is, with alpha and sigma at t; see :meth:`SDE.translated`."""
        return form, self.alpha(t), self.sigma(t)

    def posterior(self, density: Any, x: Tensor, t: Time) -> Any:
        """What is known of data from ``density`` when x_t = x (B, *event)."""
        return density.diffused(x, self.alpha(t), self.sigma(t))

    def law(self, density: Any, t: float) -> Any:
        """The law of x_t for data from a mixture: a mixture again."""
        if not hasattr(density, "noised"):
            raise TypeError(f"p_t of a {type(density).__name__} is no mixture; use log_prob(x, t) and sample(n, t).")
        return density.noised(self.alpha(t), self.sigma(t))

    def transition(self, s: Time, t: Time) -> Transition:
        r"""The kernel from s to a later t: scale :math:`\alpha_t/\alpha_s`, variance :math:`\sigma_t^2 - scale^2\sigma_s^2`.

        Raises:
            ValueError: a time lies outside the domain, or t before s (on the host: a device is not read back).
        """
        s64, t64 = (within(float64(u), self.t_max) for u in (s, t))
        if s64.device.type == t64.device.type == "cpu" and bool((t64 < (1 - 1e-6) * s64).any()):  # 1e-6: float32 rounds
            raise ValueError("A transition leads from s to a later t: exchange them.")
        scale = torch.exp(self.log_alpha(t64) - self.log_alpha(s64))
        variance = (self.variance(t64) - scale * scale * self.variance(s64)).clamp_min(0)
        return Transition(scale.to(time_dtype(t)), variance.to(time_dtype(t)))

    def steps(self, grid: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The transitions along a rising grid as functions (x, z) -> x_t of the state and standard normals."""
        kernel = self.transition(grid[:-1], grid[1:])
        if not bool(torch.isfinite(kernel.scale + kernel.variance).all()):
            raise ValueError("A transition of this grid is not finite: end it a little before t_max.")
        pairs = zip(kernel.scale.tolist(), kernel.variance.sqrt().tolist(), strict=True)
        return [partial(_step, scale, std) for scale, std in pairs]

    def prior(self, event_shape: tuple[int, ...], *, mean: float = 0.0, std: float = 0.0) -> Gaussian:
        """The law at ``t_max``: N(alpha * mean, (alpha² std² + sigma²) I), matched to the data's mean and std.

        The defaults give the customary N(0, sigma²(t_max) I), which ignores what is left of the data.
        """
        mean, std = check_number(mean, "mean"), check_number(std, "std")
        alpha, variance = self.alpha(self.t_max), self.variance(float64(self.t_max))
        return Gaussian(alpha * mean, torch.sqrt(alpha * alpha * std * std + variance), check_event(event_shape))

    # ---- reversal ---------------------------------------------------------------------------------------------

    def _reverse(self, score: ScoreLike, stochasticity: Coefficient) -> SDE:
        """The reversal, which knows that it is semilinear."""
        return LinearReverse(self, score, stochasticity)

    def _free_noise(self, score: ScoreLike, diffusion: Coefficient) -> SDE:
        """The same with a noise coefficient of its own."""
        return LinearFreeNoiseReverse(self, score, diffusion)

    def probability_flow(self, score: ScoreLike) -> SDE:
        r"""The flow, computed as :math:`\alpha'\hat x_0 + \sigma'\hat\epsilon` where f and g are not finite."""
        return LinearFlow(self, score)


class _LinearReversal(Semilinear):
    """What the reversals of a linear SDE share: everything but their noise, which they give as ``noise_at(t)``."""

    sde: Any  # a LinearSDE
    score: Score

    @abstractmethod
    def noise_at(self, t: Tensor) -> Tensor:
        """The noise coefficient w at float64 times of any shape."""

    def eta(self, t: Time) -> Tensor:
        r"""The stochasticity :math:`w(t)/g(t)`."""
        return self.noise_at(float64(t)) / self.sde.diffusion_coefficient(float64(t))

    def affine(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, w) with drift a x + b s(x, t) and noise w, float64, each of t's shape."""
        a, g, w = self.sde.drift_coefficient(t), self.sde.diffusion_coefficient(t), self.noise_at(t)
        a, g, w = (torch.as_tensor(c, dtype=t.dtype, device=t.device).expand_as(t) for c in (a, g, w))
        return a, -0.5 * (g * g + w * w), w

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        r"""a x + b s; where alpha reaches 0, the equal :math:`\alpha'\hat x_0 + (\sigma' + w^2/2\sigma)\hat\epsilon`."""
        t64 = float64(t)
        if not self.sde.reaches_pure_noise:
            a, b, _ = self.affine(t64)
            return x * _cast(a, x) + self.score(x, t) * _cast(b, x)
        data, noise = self.score.split(x, t)
        rate = self.sde.sigma_rate(t64)
        if self.direction != 0:
            w = self.noise_at(t64)
            rate = rate + 0.5 * w * w / self.sde.sigma(t64)
        return data * _cast(self.sde.alpha_rate(t64), x) + noise * _cast(rate, x)

    def drifts(self, times: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The drift along a grid, its coefficients computed at once."""
        if self.sde.reaches_pure_noise:
            return super().drifts(times)
        a, b, _ = self.affine(times)
        return self.score.combined(times, a, b)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        """w(t)."""
        return Diagonal(_cast(torch.as_tensor(self.noise_at(float64(t))), x))


class LinearReverse(_LinearReversal, Reverse):
    r"""The reversal of a linear SDE with noise :math:`\eta g`."""

    def __init__(self, sde: LinearSDE, score: ScoreLike, stochasticity: Coefficient = 1.0):
        Reverse.__init__(self, sde, as_score(score, sde), stochasticity)

    def noise_at(self, t: Tensor) -> Tensor:
        """eta(t) g(t)."""
        return finite_at(self.stochasticity, t, "stochasticity") * self.sde.diffusion_coefficient(t)

    def eta(self, t: Time) -> Tensor:
        """The stochasticity at t."""
        return torch.as_tensor(finite_at(self.stochasticity, t, "stochasticity"), dtype=torch.float64)


class LinearFreeNoiseReverse(_LinearReversal, FreeNoiseReverse):
    """The reversal of a linear SDE with a noise coefficient w(t) of its own."""

    def __init__(self, sde: LinearSDE, score: ScoreLike, diffusion: Coefficient):
        FreeNoiseReverse.__init__(self, sde, as_score(score, sde), diffusion)

    def noise_at(self, t: Tensor) -> Tensor:
        """w(t)."""
        return torch.as_tensor(finite_at(self.noise_coefficient, t, "diffusion"), dtype=t.dtype)


class LinearFlow(_LinearReversal, ProbabilityFlow):
    """The probability flow of a linear SDE."""

    def __init__(self, sde: LinearSDE, score: ScoreLike):
        ProbabilityFlow.__init__(self, sde, as_score(score, sde))

    def noise_at(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def eta(self, t: Time) -> Tensor:
        """0."""
        return torch.zeros((), dtype=torch.float64)


def _step(scale: float, std: float, x: Tensor, z: Tensor) -> Tensor:
    return torch.mul(x, scale).add_(z, alpha=std)


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function/dt of an elementwise function, by automatic differentiation; differentiable where t is."""
    keep = torch.is_grad_enabled() and t.requires_grad
    with recording():
        at = t if keep else leaf(t)
        value = function(at)
        if not (isinstance(value, Tensor) and value.requires_grad):
            return torch.zeros_like(t)
        (rate,) = torch.autograd.grad(value.sum(), at, create_graph=keep, allow_unused=True)
    return torch.zeros_like(t) if rate is None else rate


def _cast(value: Tensor, x: Tensor) -> Tensor:
    """A schedule value beside x: a 0-d float64 stays on the host, the rest takes x's dtype."""
    return value if value.ndim == 0 else value.to(x.dtype)
