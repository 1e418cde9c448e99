r"""Processes that are not linear and yet have kernels in closed form.

Geometric Brownian motion on :math:`x > 0`, the square-root process (CIR) on :math:`x \ge 0` and the Jacobi process on
[0, 1], coordinate by coordinate:

.. math:: dx = \mu x\,dt + \sigma x\,dW, \qquad dx = \kappa(\theta - x)\,dt + \xi\sqrt x\,dW, \qquad
          dx = \tfrac s2\bigl(a(1-x) - bx\bigr)dt + \sqrt{s\,x(1-x)}\,dW .

Their kernels are lognormal, noncentral :math:`\chi^2` and a series of Jacobi polynomials; the last two settle in a Gamma and a
Beta law. There is no :math:`\alpha` and no :math:`\sigma` here, so nothing that adds Gaussian noise to data applies; reversal,
flow and every solver for general noise do, with :math:`\nabla\cdot D` in the drift.

**At the walls.** Steps of a solver can pass a wall that the process itself cannot. Coefficients are those at the nearest point
``floor`` inside of it (full truncation with a floor), and so is every score here: :math:`\nabla\cdot D + Ds` keeps its finite
limit, the drift leads back inside, and no root of a negative number is taken. Clamp samples where it matters.

Sources: Lord, Koekkoek and Van Dijk 2010, https://doi.org/10.1080/14697680802392496 (full truncation); Cox, Ingersoll and Ross
1985, https://doi.org/10.2307/1911242; Griffiths and Spanò 2010, https://arxiv.org/abs/1003.4650, and Jenkins and Spanò 2017,
https://doi.org/10.1214/16-AAP1236 (Jacobi, alias Wright-Fisher); Avdeyev et al. 2023, https://arxiv.org/abs/2305.10699 (as a
diffusion model).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..checks import Time, as_time, check_finite, check_positive, check_size, check_state, float64
from ..densities import Density
from ..linear import LinearSDE
from ..sde import SDE
from .kernels import TINY, JacobiSeries, Kernel, Lognormal, NoncentralChi
from .laws import Beta, Gamma

_LINEAR = {name for name in set(dir(LinearSDE)) - set(dir(SDE)) if not name.startswith("_")}


class KernelSDE(SDE):
    """A process whose kernel is known without being Gaussian."""

    @abstractmethod
    def marginal(self, x0: Tensor, t: Time) -> Kernel:
        """The law of x_t given x_0 (B, *event) at t > 0; also that of x_{s+t} given x_s: nothing here depends on the clock."""

    def invariant(self, event_shape: tuple[int, ...]) -> Any:
        """The law that the process settles in."""
        raise NotImplementedError(f"{type(self).__name__} settles in no law.")

    def __getattr__(self, name: str) -> Any:
        if name in _LINEAR:
            raise AttributeError(self._lacks(name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Refused: x_t is no sum of x_0 and Gaussian noise."""
        raise TypeError(self._lacks("perturb"))

    def _lacks(self, name: str) -> str:
        return (
            f"{type(self).__name__} has no {name}: its kernel is not Gaussian. Draw x_t by marginal(x0, t).sample() or by "
            "solve(sde, x0, ...); train a score by sdediff.training.ImplicitLoss."
        )

    def _start(self, x0: Tensor, t: Time, low: float, high: float = math.inf) -> tuple[Tensor, Tensor]:
        """Starts and times in float64 on the host, checked."""
        check_finite(check_state(x0, "x0"), "x0")
        inside = (x0 >= low) & (x0 <= high)
        if not bool(inside.all()):
            domain = f"0 <= x <= {high:g}" if high < math.inf else "x > 0" if low > 0 else "x >= 0"
            raise ValueError(f"{type(self).__name__} lives on {domain}, and x0 holds {float(x0[~inside][0]):g}.")
        t = float64(as_time(t, x0, self.t_max)).cpu()
        if not bool((t > 0).all()):
            raise ValueError("At t = 0 the law of x_t is x0 itself and has no density: ask for t > 0.")
        return x0.detach().cpu().double(), t


class GeometricBrownianMotion(KernelSDE):
    r"""Geometric Brownian motion :math:`dx = \mu x\,dt + \sigma x\,dW` on :math:`x > 0`.

    :math:`\log x_t \mid x_0 \sim \mathcal N(\log x_0 + (\mu - \tfrac12\sigma^2)t,\; \sigma^2 t)`. It settles in no law, so
    ``sample`` needs ``x=``.

    Args:
        mu: the growth rate, per unit of time.
        sigma: the volatility, positive, per square root of time.
        t_max: the end of the clock.
    """

    floor = 1e-12
    """The smallest x at which kernels are evaluated."""

    def __init__(self, mu: float = 0.0, sigma: float = 1.0, t_max: float = 1.0):
        self.mu, self.sigma = check_size(mu, "mu"), check_positive(sigma, "sigma")
        self.t_max = check_positive(t_max, "t_max")

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """mu x."""
        return self.mu * x

    def g(self, x: Tensor, t: Tensor) -> Tensor:
        """sigma x."""
        return self.sigma * x

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        """2 sigma² x."""
        as_time(t, check_state(x), self.t_max)
        return 2 * self.sigma**2 * x

    def marginal(self, x0: Tensor, t: Time) -> Kernel:
        """The lognormal law of x_t given x_0 > 0."""
        return Lognormal(*self._start(x0, t, TINY), self.mu, self.sigma, self.floor)


class CIR(KernelSDE):
    r"""The square-root process :math:`dx = \kappa(\theta - x)\,dt + \xi\sqrt x\,dW` on :math:`x \ge 0`.

    With :math:`c = \xi^2(1 - e^{-\kappa t})/4\kappa`, :math:`x_t/c` given x_0 is noncentral :math:`\chi^2` with
    :math:`4\kappa\theta/\xi^2` degrees of freedom and noncentrality :math:`x_0e^{-\kappa t}/c`. It settles in
    :math:`\Gamma(2\kappa\theta/\xi^2)` of mean :math:`\theta`, and reaches 0 only if :math:`2\kappa\theta < \xi^2`.

    Args:
        kappa: the rate of return, per unit of time.
        theta: the mean it returns to.
        xi: the strength of the noise.
        t_max: the end of the clock; what is left there of the start goes with :math:`e^{-\kappa t_{max}}`.

    All are positive. Coefficients are those at ``floor`` = 1e-6 theta where x is below it.
    """

    def __init__(self, kappa: float = 1.0, theta: float = 1.0, xi: float = 1.0, t_max: float = 10.0):
        self.kappa, self.theta = check_positive(kappa, "kappa"), check_positive(theta, "theta")
        self.xi, self.t_max = check_positive(xi, "xi"), check_positive(t_max, "t_max")
        self.floor = 1e-6 * self.theta

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """kappa (theta - x)."""
        return self.kappa * (self.theta - x.clamp_min(self.floor))

    def g(self, x: Tensor, t: Tensor) -> Tensor:
        """xi √x."""
        return self.xi * x.clamp_min(self.floor).sqrt()

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        """xi²."""
        as_time(t, check_state(x), self.t_max)
        return torch.full_like(x, self.xi**2)

    def marginal(self, x0: Tensor, t: Time) -> Kernel:
        """The noncentral chi-square law of x_t given x_0 >= 0."""
        return NoncentralChi(*self._start(x0, t, 0.0), self.kappa, self.theta, self.xi, self.floor)

    def invariant(self, event_shape: tuple[int, ...]) -> Density:
        """The Gamma law of independent coordinates that the process settles in."""
        return Gamma(2 * self.kappa * self.theta / self.xi**2, 2 * self.kappa / self.xi**2, event_shape, self.floor)

    def prior(self, event_shape: tuple[int, ...]) -> Density:
        """The invariant law, for the law at ``t_max``."""
        return self.invariant(event_shape)


class Jacobi(KernelSDE):
    r"""The Jacobi (Wright-Fisher) process :math:`dx = \tfrac s2(a(1-x) - bx)\,dt + \sqrt{s\,x(1-x)}\,dW` on [0, 1].

    It settles in Beta(a, b). With the polynomials :math:`P_n` orthonormal under that law,

    .. math:: p_t(x \mid x_0) = \mathrm{Beta}(x; a, b)\sum_n e^{-\frac s2n(n-1+a+b)t}P_n(x)P_n(x_0) .

    Args:
        a, b: the parameters of the Beta law, positive; a wall is reached only if the one on its side is below 1.
        speed: s, per unit of time.
        t_max: the end of the clock; what is left there of the start goes with :math:`e^{-s(a+b)t_{max}/2}`.

    Coefficients are those 1e-6 inside a wall where x is closer to it or beyond. The series is summed for s t >= 1e-4; where
    it is below 1e-12 of the Beta law it has lost its digits and is taken as that. Exact sampling needs s t >= 0.02.
    """

    floor = 1e-6

    def __init__(self, a: float = 1.0, b: float = 1.0, speed: float = 1.0, t_max: float = 10.0):
        self.a, self.b = check_positive(a, "a"), check_positive(b, "b")
        self.speed, self.t_max = check_positive(speed, "speed"), check_positive(t_max, "t_max")

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """½ s (a (1 - x) - b x)."""
        x = x.clamp(self.floor, 1 - self.floor)
        return 0.5 * self.speed * (self.a - (self.a + self.b) * x)

    def g(self, x: Tensor, t: Tensor) -> Tensor:
        """√(s x (1 - x))."""
        x = x.clamp(self.floor, 1 - self.floor)
        return (self.speed * x * (1 - x)).sqrt()

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        """s (1 - 2 x)."""
        as_time(t, check_state(x), self.t_max)
        return self.speed * (1 - 2 * x.clamp(self.floor, 1 - self.floor))

    def marginal(self, x0: Tensor, t: Time) -> Kernel:
        """The law of x_t given x_0 in [0, 1]."""
        start, time = self._start(x0, t, 0.0, 1.0)
        return JacobiSeries(start, time, self.invariant(tuple(x0.shape[1:])), self.speed)

    def invariant(self, event_shape: tuple[int, ...]) -> Beta:
        """The Beta law of independent coordinates that the process settles in."""
        return Beta(self.a, self.b, event_shape, self.floor)

    def prior(self, event_shape: tuple[int, ...]) -> Density:
        """The invariant law, for the law at ``t_max``."""
        return self.invariant(event_shape)
