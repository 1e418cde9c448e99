r"""The processes of the field, each a :class:`~sdediff.linear.LinearSDE`.

Where a process is defined by its coefficients, its kernel stands beside them in closed form (and a test holds the two
together); where it is defined by its kernel, the coefficients follow by differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import Time, check_number, check_positive, float64, time_dtype
from .linear import LinearSDE


class VP(LinearSDE):
    r"""Variance preserving: :math:`dx = -\tfrac12\beta(t)x\,dt + \sqrt{\beta(t)}\,dW`.

    :math:`\beta` rises linearly from ``beta_min`` to ``beta_max`` over [0, t_max];
    :math:`\log\alpha = -\tfrac12\int_0^t\beta`, :math:`\sigma^2 = 1 - \alpha^2`. The continuous limit of DDPM.

    Args:
        beta_min: :math:`\beta(0)`, per unit of time.
        beta_max: :math:`\beta(t_{max})`.
        t_max: the end of the clock.
        t_min: where :func:`~sdediff.sample` stops.

    Raises:
        ValueError: a rate or an end is not positive, or beta falls.

    Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 11 and appendix B.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_max: float = 1.0, t_min: float = 1e-3):
        self.beta_min, self.beta_max = check_positive(beta_min, "beta_min"), check_positive(beta_max, "beta_max")
        if beta_max < beta_min:
            raise ValueError(f"beta_max = {beta_max} is below beta_min = {beta_min}: exchange them.")
        self.t_min, self.t_max = _ends(t_min, t_max)

    def beta(self, t: Tensor) -> Tensor:
        """The rate at t."""
        return self.beta_min + (self.beta_max - self.beta_min) / self.t_max * t

    def log_alpha(self, t: Tensor) -> Tensor:
        """-½ ∫β."""
        return -0.25 * (self.beta_max - self.beta_min) / self.t_max * t * t - 0.5 * self.beta_min * t

    def variance(self, t: Tensor) -> Tensor:
        """1 - exp(-∫β), accurate down to t = 0."""
        return -torch.expm1(2 * self.log_alpha(t))

    def time_of(self, log_snr: Time) -> Tensor:
        """The time with this log SNR, in closed form: a root of ∫β = log(1 + exp(-log SNR))."""
        spent = torch.nn.functional.softplus(-float64(log_snr), threshold=700)
        spent = spent.clamp(max=0.5 * (self.beta_min + self.beta_max) * self.t_max)
        slope = (self.beta_max - self.beta_min) / self.t_max
        t = 2 * spent / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * spent))
        return t.clamp(0, self.t_max).to(time_dtype(log_snr))

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """-½ β."""
        return -0.5 * self.beta(t)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√β."""
        return torch.sqrt(self.beta(t))


class OU(VP):
    r"""Ornstein-Uhlenbeck: :math:`dx = -\tfrac12 x\,dt + dW`, :math:`\log\alpha = -t/2`, :math:`\sigma^2 = 1 - e^{-t}`.

    Args:
        t_max: the end of the clock; at the default 10, :math:`\alpha^2` is 4.5e-5.
        t_min: where :func:`~sdediff.sample` stops.

    Source: Uhlenbeck and Ornstein 1930, https://doi.org/10.1103/PhysRev.36.823.
    """

    def __init__(self, t_max: float = 10.0, t_min: float = 1e-3):
        super().__init__(1.0, 1.0, t_max, t_min)


class SubVP(VP):
    r"""Sub-VP: the drift of VP with :math:`g^2 = \beta(1 - e^{-2\int\beta})`, so that :math:`\sigma = 1 - \alpha^2`.

    Takes the arguments of :class:`VP`. Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 12.
    """

    def variance(self, t: Tensor) -> Tensor:
        """(1 - exp(-∫β))²."""
        return super().variance(t) ** 2

    def time_of(self, log_snr: Time) -> Tensor:
        """The time with this log SNR, by bisection."""
        return LinearSDE.time_of(self, log_snr)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√(β (1 - exp(-2∫β)))."""
        return torch.sqrt(self.beta(t) * -torch.expm1(4 * self.log_alpha(t)))


class CustomVP(LinearSDE):
    r"""Variance preserving with a :math:`\beta` of your own; its kernel is found by quadrature.

    Args:
        beta: an elementwise, positive function of a float64 tensor t.
        t_max: the end of the clock.
        t_min: where :func:`~sdediff.sample` stops.
    """

    def __init__(self, beta: Callable[[Tensor], Tensor], t_max: float = 1.0, t_min: float = 1e-3):
        if not callable(beta):
            raise TypeError(f"beta must be a function of t, got {type(beta).__name__}; for a constant use VP(b, b).")
        self.beta = beta
        self.t_min, self.t_max = _ends(t_min, t_max)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """-½ β."""
        return -0.5 * self.beta(t)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√β."""
        return torch.sqrt(torch.as_tensor(self.beta(t), dtype=t.dtype, device=t.device))


class CosineVP(LinearSDE):
    r"""Variance preserving with the cosine schedule, t in [0, 1].

    .. math:: \alpha(t) = \cos\bigl(\tfrac\pi2\tfrac{t+s}{1+s}\bigr)\big/\cos\bigl(\tfrac\pi2\tfrac{s}{1+s}\bigr)

    :math:`\alpha` vanishes at t = 1, where f and g are infinite: the flow is finite there in its data-and-noise form;
    a noisy reversal starts a little below, or takes an exponential solver.

    Args:
        s: the offset that keeps the first steps from being too small.
        t_min: where :func:`~sdediff.sample` stops.

    Source: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 17.
    """

    def __init__(self, s: float = 0.008, t_min: float = 1e-3):
        self.s = check_positive(s, "s")
        self._rate = 0.5 * math.pi / (1 + self.s)
        self._phase = self._rate * self.s
        self.t_min, self.t_max = _ends(t_min, 1.0)

    def alpha(self, t: Time) -> Tensor:
        """The scale, written so that it is exactly 0 at t = 1."""
        return (torch.sin(self._rate * (1 - self._time(t))) / math.cos(self._phase)).to(time_dtype(t))

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha."""
        return torch.log(self.alpha(t))

    def variance(self, t: Tensor) -> Tensor:
        """1 - alpha², as a product that does not cancel at t = 0."""
        difference = torch.sin(self._rate * t) * torch.sin(self._rate * t + 2 * self._phase)
        return difference / math.cos(self._phase) ** 2

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """(log alpha)'."""
        return -self._rate / torch.tan(self._rate * (1 - t))

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√(-2 (log alpha)'): variance preserving."""
        return torch.sqrt(-2 * self.drift_coefficient(t))


class VE(LinearSDE):
    r"""Variance exploding: f = 0, :math:`g^2 = (\sigma_s^2)'`.

    The schedule is :math:`\sigma_s(t) = \sigma_{min}(\sigma_{max}/\sigma_{min})^{t/t_{max}}`.

    The SDE started at x_0 has variance :math:`\sigma_s^2(t) - \sigma_s^2(0)`, which is what :meth:`sigma` gives.

    Args:
        sigma_min, sigma_max: the ends of the schedule, in units of the data.
        t_max: the end of the clock.
        t_min: where :func:`~sdediff.sample` stops.

    Raises:
        ValueError: an argument is not positive or sigma_max does not exceed sigma_min.

    Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 9 and appendix C.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_max: float = 1.0, t_min: float = 1e-5):
        self.sigma_min, self.sigma_max = check_positive(sigma_min, "sigma_min"), check_positive(sigma_max, "sigma_max")
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max = {sigma_max} must exceed sigma_min = {sigma_min}.")
        self.t_min, self.t_max = _ends(t_min, t_max)
        self._growth = 2 * math.log(sigma_max / sigma_min) / t_max  # of the schedule's square

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """The schedule's square less its value at 0."""
        return self.sigma_min**2 * torch.expm1(self._growth * t)

    def time_of(self, log_snr: Time) -> Tensor:
        """The time with this log SNR, in closed form."""
        t = torch.log1p(torch.exp(-float64(log_snr)) / self.sigma_min**2) / self._growth
        return t.clamp(0, self.t_max).to(time_dtype(log_snr))

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """g."""
        return self.sigma_min * math.sqrt(self._growth) * torch.exp(0.5 * self._growth * t)


class EDM(LinearSDE):
    r"""The process of EDM: f = 0, :math:`g^2 = 2t`, so that :math:`\sigma(t) = t`.

    Args:
        t_max, t_min: the largest and smallest noise level, in units of the data.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364.
    """

    def __init__(self, t_max: float = 80.0, t_min: float = 0.002):
        self.t_min, self.t_max = _ends(t_min, t_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """t²."""
        return t * t

    def sigma(self, t: Time) -> Tensor:
        """t."""
        return self._time(t).to(time_dtype(t))

    def time_of(self, log_snr: Time) -> Tensor:
        """The time with this log SNR, in closed form."""
        return torch.exp(-0.5 * float64(log_snr)).clamp(0, self.t_max).to(time_dtype(log_snr))

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√(2t)."""
        return torch.sqrt(2 * t)


class RectifiedFlow(LinearSDE):
    r"""The linear path :math:`x_t = (1-t)x_0 + t\epsilon` as an SDE: :math:`f = -x/(1-t)`, :math:`g^2 = 2t/(1-t)`.

    f and g are infinite at t = 1; the flow, :math:`\hat\epsilon - \hat x_0`, is finite everywhere.

    Args:
        t_min: where :func:`~sdediff.sample` stops.

    Source: Liu et al. 2023, https://arxiv.org/abs/2209.03003; Lipman et al. 2023, https://arxiv.org/abs/2210.02747.
    """

    def __init__(self, t_min: float = 1e-3):
        self.t_min, self.t_max = _ends(t_min, 1.0)

    def alpha(self, t: Time) -> Tensor:
        """1 - t."""
        return (1 - self._time(t)).to(time_dtype(t))

    def log_alpha(self, t: Tensor) -> Tensor:
        """log(1 - t)."""
        return torch.log1p(-t)

    def sigma(self, t: Time) -> Tensor:
        """t."""
        return self._time(t).to(time_dtype(t))

    def variance(self, t: Tensor) -> Tensor:
        """t²."""
        return t * t

    def time_of(self, log_snr: Time) -> Tensor:
        """The time with this log SNR, in closed form."""
        return torch.sigmoid(-0.5 * float64(log_snr)).to(time_dtype(log_snr))

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """-1 / (1 - t)."""
        return -1 / (1 - t)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√(2t / (1 - t))."""
        return torch.sqrt(2 * t / (1 - t))


def _ends(t_min: float, t_max: float) -> tuple[float, float]:
    start, end = check_number(t_min, "t_min"), check_positive(t_max, "t_max")
    if not 0 <= start < end:
        raise ValueError(f"t_min = {t_min} must lie in [0, t_max = {t_max}).")
    return start, end
