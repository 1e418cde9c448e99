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
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from .autodiff import leaf, recording
from .bessel import log_bessel
from .checks import (
    Time,
    as_time,
    check_count,
    check_event,
    check_finite,
    check_like,
    check_positive,
    check_size,
    check_state,
    float64,
)
from .densities import Density
from .densities.base import host_generator
from .lineages import lineages
from .score import Score
from .sde import SDE

_LINEAR = {"alpha", "sigma", "log_alpha", "variance", "log_snr", "time_of", "transition"}
_TINY = 1e-290
_BLOCK = 2**20  # numbers held at once in sums over starting points and eigenfunctions


class Kernel(ABC):
    """The law of x_t given x_0 (B, *event), whose coordinates are independent given x_0.

    Args:
        x0: the starts, float64 on the host.
        t: the time gone by, of shape () or (B, 1, ..., 1), positive.
    """

    ends: tuple[float, float] = (0.0, math.inf)
    """The domain of each coordinate."""

    def __init__(self, x0: Tensor, t: Tensor):
        self.x0, self.t = x0, t

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """The log density of each coordinate at x inside the domain, float64, of x's shape; differentiable in x."""

    @abstractmethod
    def draw(self, generator: torch.Generator | None) -> Tensor:
        """One exact sample for each start, float64."""

    @abstractmethod
    def inner(self, x: Tensor) -> Tensor:
        """x, or the nearest point a ``floor`` inside of the walls."""

    def sample(self, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One exact sample of x_t for each start, (B, *event), float64."""
        with torch.no_grad():
            return self.draw(host_generator(seed, generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,); -inf outside the domain."""
        at, inside = self.within(self._beside(x))
        value = self.log_density(at).reshape(len(x), -1).sum(1)
        return torch.where(inside, value, -torch.inf).to(x.device, x.dtype)

    def within(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x clamped to where logs are finite, and which samples lie in the domain, (B,)."""
        low, high = self.ends
        inside = ((x >= low) & (x <= high)).reshape(len(x), -1).all(1)
        return x.clamp(low + _TINY, high * (1 - 2.0**-53)), inside

    def score(self, x: Tensor) -> Tensor:
        """Its gradient in x, of x's shape; at and beyond the walls that at the nearest point inside."""
        with recording():
            at = leaf(self.inner(self._beside(x)))
            (gradient,) = torch.autograd.grad(self.log_density(at).sum(), at)
        return check_like(gradient.to(x.device), x, "the score")

    def _beside(self, x: Tensor) -> Tensor:
        if check_state(x).shape[1:] != self.x0.shape[1:] or len(self.x0) not in (1, len(x)):
            raise ValueError(f"x has shape {tuple(x.shape)} for starts of shape {tuple(self.x0.shape)}: give one each.")
        return x.cpu().double()


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
        return _Lognormal(*self._start(x0, t, _TINY), self)


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
        return _NoncentralChi(*self._start(x0, t, 0.0), self)

    def invariant(self, event_shape: tuple[int, ...]) -> Density:
        """The Gamma law of independent coordinates that the process settles in."""
        return _Gamma(2 * self.kappa * self.theta / self.xi**2, 2 * self.kappa / self.xi**2, event_shape, self.floor)

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
        return _Series(*self._start(x0, t, 0.0, 1.0), self)

    def invariant(self, event_shape: tuple[int, ...]) -> Density:
        """The Beta law of independent coordinates that the process settles in."""
        return _Beta(self.a, self.b, event_shape, self.floor)

    def prior(self, event_shape: tuple[int, ...]) -> Density:
        """The invariant law, for the law at ``t_max``."""
        return self.invariant(event_shape)


class KernelScore(Score):
    r"""The exact score of a process that starts in one of few points: :math:`p_t(x) = \sum_k w_k\,p_t(x \mid x_k)`.

    Args:
        sde: a process with a known kernel.
        points: where it starts, (K, *event). A density becomes points by quadrature, or by sampling.
        weights: their probabilities, (K,), normalised here; equal by default.

    Raises:
        TypeError: ``sde`` has no known kernel.
        ValueError: points outside the domain; weights that are negative or of another number.

    It is found in float64 on the host, at t > 0 alone.
    """

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, sde: KernelSDE, points: Tensor, weights: Tensor | None = None):
        if not isinstance(sde, KernelSDE):
            raise TypeError(
                f"KernelScore needs a process with a known kernel such as CIR(), got {type(sde).__name__}. For a LinearSDE "
                "there is ExactScore(sde, density), for any other FokkerPlanck(sde, cells)."
            )
        sde.marginal(points, sde.t_max)  # says what is wrong with the points
        self.process, self.points = sde, points.detach().cpu().double()
        w = torch.ones(len(points)) if weights is None else weights
        if not isinstance(w, Tensor) or w.is_complex():
            raise TypeError(f"weights must be a tensor of {len(points)} numbers, got {type(w).__name__}.")
        w = w.detach().cpu().double()
        if w.shape != (len(points),) or not bool((w.isfinite() & (w >= 0)).all()) or float(w.sum()) <= 0:
            raise ValueError(
                f"weights must be ({len(points)},) numbers >= 0, not all 0; got {w.flatten().tolist()[:8]}."
            )
        self.weights = w / w.sum()
        self.event_shape: tuple[int, ...] = tuple(points.shape[1:])

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The score at x (B, *event)."""
        if cond is not None:
            raise ValueError("An exact score takes no condition.")
        self._check(x)
        t = t.cpu()
        with recording():
            at = leaf(self._any().inner(x.cpu().double()))
            (gradient,) = torch.autograd.grad(self._log_prob(at, t).sum(), at)
        return gradient.to(x.device)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x) in nats, (B,); -inf outside the domain."""
        at = as_time(t, check_state(x), self.process.t_max).cpu()
        self._check(x)
        inner, inside = self._any().within(x.cpu().double())
        return torch.where(inside, self._log_prob(inner, at), -torch.inf).to(x.device, x.dtype)

    def sample(self, n: int, t: float, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` exact samples of p_t, (n, *event)."""
        check_count(n, "n", "at least one sample")
        generator = host_generator(seed, generator)
        index = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.process.marginal(self.points[index], t).sample(generator=generator)

    def _any(self) -> Kernel:
        """A kernel, to ask for the domain."""
        return self.process.marginal(self.points[:1], self.process.t_max)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this score needs (B, {', '.join(map(str, self.event_shape))})."
            )

    def _log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """At points inside the domain; all pairs of states and starts, a block of states at a time."""
        size = max(1, _BLOCK // max(1, self.points.numel() * 16))
        parts = [self._of_pairs(x[i : i + size], t if t.ndim == 0 else t[i : i + size]) for i in range(0, len(x), size)]
        return torch.cat(parts)

    def _of_pairs(self, x: Tensor, t: Tensor) -> Tensor:
        count, starts = len(x), len(self.points)
        every = x.repeat_interleave(starts, 0)
        times = t if t.ndim == 0 else t.reshape(-1).repeat_interleave(starts)
        points = self.points.repeat(count, *[1] * len(self.event_shape))
        each = self.process.marginal(points, times).log_density(every).reshape(count, starts, -1).sum(2)
        return torch.logsumexp(each + self.weights.log(), 1)


class _Lognormal(Kernel):
    def __init__(self, x0: Tensor, t: Tensor, sde: GeometricBrownianMotion):
        super().__init__(x0, t)
        self.mean = x0.log() + (sde.mu - 0.5 * sde.sigma**2) * t
        self.std = sde.sigma * t.sqrt()
        self.floor = sde.floor

    def log_density(self, x: Tensor) -> Tensor:
        z = (x.log() - self.mean) / self.std
        return -0.5 * z * z - (self.std * x).log() - 0.5 * math.log(2 * math.pi)

    def draw(self, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(self.x0.shape, generator=generator, dtype=torch.float64)
        return (self.mean + self.std * z).exp()

    def inner(self, x: Tensor) -> Tensor:
        return x.clamp_min(self.floor)


class _NoncentralChi(Kernel):
    def __init__(self, x0: Tensor, t: Tensor, sde: CIR):
        super().__init__(x0, t)
        self.scale = -(sde.xi**2) * torch.expm1(-sde.kappa * t) / (4 * sde.kappa)
        self.freedom = 4 * sde.kappa * sde.theta / sde.xi**2
        self.noncentral = x0 * torch.exp(-sde.kappa * t) / self.scale
        if not float(self.noncentral.detach().max()) < 1e12:
            raise ValueError(
                f"t = {float(t.min()):.3g} is too short for the kernel of CIR in float64: there a Gaussian step, "
                "solve(sde, x0, t1=t, ...), is as good."
            )
        self.floor = sde.floor

    def log_density(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12e^{-(y+\lambda)/2}(y/\lambda)^{\nu/2}I_\nu(\sqrt{\lambda y})/c` at y = x/c, with ν = d/2 - 1."""
        nu = 0.5 * self.freedom - 1
        y = x / self.scale
        # λ^(-ν/2) I_ν is finite at λ = 0, where a start near the wall leads: 1e-30 stands for it.
        noncentral = self.noncentral.clamp_min(1e-30)
        bessel = log_bessel(nu, (noncentral * y).sqrt())
        return bessel - 0.5 * (y + noncentral) + 0.5 * nu * (y / noncentral).log() - (2 * self.scale).log()

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """A chi-square variable with d + 2N degrees of freedom, N Poisson with mean λ/2."""
        random = _numpy(generator)
        extra = random.poisson(0.5 * self.noncentral.numpy())
        return self.scale * 2 * torch.from_numpy(random.standard_gamma(0.5 * self.freedom + extra))

    def inner(self, x: Tensor) -> Tensor:
        return x.clamp_min(self.floor)


class _Series(Kernel):
    ends = (0.0, 1.0)

    def __init__(self, x0: Tensor, t: Tensor, sde: Jacobi):
        super().__init__(x0, t)
        self.sde = sde
        if float(sde.speed * t.min()) < 1e-4:
            raise ValueError(
                f"The series of the Jacobi kernel is summed for speed * t >= 1e-4, not {float(sde.speed * t.min()):.3g}: there "
                "a Gaussian step, solve(sde, x0, t1=t, ...), is as good."
            )

    def log_density(self, x: Tensor) -> Tensor:
        """Of the Beta law, and of the ratio to it."""
        a, b = self.sde.a, self.sde.b
        beta = (a - 1) * x.log() + (b - 1) * torch.log1p(-x) - float(special.betaln(a, b))
        return beta + self._ratio(x).clamp_min(1e-12).log()

    def _ratio(self, x: Tensor) -> Tensor:
        """The sum over n of e^(-λ_n t) P_n(x) P_n(x_0), with the three-term recurrence of both factors."""
        s, total, n = self.sde, torch.ones_like(x), 0
        y, y0 = 2 * x - 1, 2 * self.x0 - 1
        (before, now), (before0, now0) = (
            (torch.zeros_like(y), torch.ones_like(y)),
            (torch.zeros_like(y0), torch.ones_like(y0)),
        )
        shift, last = _recurrence(s.a, s.b, 0)
        while True:
            centre, norm = shift, math.sqrt(_recurrence(s.a, s.b, n + 1)[1])
            before, now = now, ((y - centre) * now - last * before) / norm
            before0, now0 = now0, ((y0 - centre) * now0 - last * before0) / norm
            n, last = n + 1, norm
            shift = _recurrence(s.a, s.b, n)[0]
            rate = 0.5 * s.speed * n * (n - 1 + s.a + s.b)
            total = total + torch.exp(-rate * self.t) * now * now0
            # P_n grows at most like n^(2 max(a, b, 1/2)), so that what is left is below rounding.
            if rate * float(self.t.min()) > 42 + 2 * max(s.a, s.b, 0.5) * math.log(n + 1):
                return total

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """M lineages are left of the sample's ancestry; L of them, binomial, come from x_0: then Beta(a + L, b + M - L)."""
        random, x0 = _numpy(generator), self.x0.numpy()
        out = np.empty_like(x0)
        times = np.broadcast_to(self.t.reshape(-1).numpy(), len(x0))
        for t in np.unique(times):
            rows = times == t
            law = lineages(self.sde.a + self.sde.b, self.sde.speed * float(t))
            m = random.choice(len(law), size=x0[rows].shape, p=law)
            kept = random.binomial(m, x0[rows])
            out[rows] = random.beta(self.sde.a + kept, self.sde.b + m - kept)
        return torch.from_numpy(out)

    def inner(self, x: Tensor) -> Tensor:
        return x.clamp(self.sde.floor, 1 - self.sde.floor)


def _recurrence(a: float, b: float, n: int) -> tuple[float, float]:
    """Centre and squared norm in the recurrence of the monic polynomials under Beta(a, b), on y = 2x - 1 in [-1, 1]."""
    p, q, s = b - 1, a - 1, a + b - 2
    if n == 0:
        return (q - p) / (s + 2), 0.0
    centre = (q * q - p * p) / ((2 * n + s) * (2 * n + s + 2))
    if n == 1:
        return centre, 4 * (1 + p) * (1 + q) / ((2 + s) ** 2 * (3 + s))
    return centre, 4 * n * (n + p) * (n + q) * (n + s) / ((2 * n + s) ** 2 * (2 * n + s + 1) * (2 * n + s - 1))


class _Independent(Density):
    """A law of independent, equally distributed coordinates, with its quantile function."""

    dtype = torch.float64

    def __init__(self, event_shape: tuple[int, ...], end: float, floor: float):
        self.event_shape, self.end, self.floor = check_event(event_shape), end, floor

    @abstractmethod
    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The value below which a share u lies."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Of each coordinate."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""

    def from_noise(self, z: Tensor) -> Tensor:
        """Standard normal z (B, *event) carried to this law by its quantile function."""
        return torch.from_numpy(self.quantile(special.ndtr(z.detach().cpu().double().numpy()))).to(z.device, z.dtype)

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``n`` samples."""
        return self.from_noise(torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,); -inf outside the domain."""
        inside = ((self._check(x) >= 0) & (x <= self.end)).reshape(len(x), -1).all(1)
        least = torch.finfo(x.dtype).tiny
        value = (
            self.log_density(x.clamp(least, self.end * (1 - torch.finfo(x.dtype).eps / 2))).reshape(len(x), -1).sum(1)
        )
        return torch.where(inside, value, -torch.inf)

    def score(self, x: Tensor) -> Tensor:
        """Its gradient; at and beyond the walls that at the nearest point inside."""
        return self.slope(self._check(x).clamp(self.floor, self.end - self.floor))


class _Gamma(_Independent):
    def __init__(self, shape: float, rate: float, event_shape: tuple[int, ...], floor: float):
        super().__init__(event_shape, math.inf, floor)
        self.shape, self.rate = shape, rate

    def quantile(self, u: np.ndarray) -> np.ndarray:
        return special.gammaincinv(self.shape, u) / self.rate

    def log_density(self, x: Tensor) -> Tensor:
        constant = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        return (self.shape - 1) * x.log() - self.rate * x + constant

    def slope(self, x: Tensor) -> Tensor:
        return (self.shape - 1) / x - self.rate


class _Beta(_Independent):
    def __init__(self, a: float, b: float, event_shape: tuple[int, ...], floor: float):
        super().__init__(event_shape, 1.0, floor)
        self.a, self.b = a, b

    def quantile(self, u: np.ndarray) -> np.ndarray:
        return special.betaincinv(self.a, self.b, u)

    def log_density(self, x: Tensor) -> Tensor:
        return (self.a - 1) * x.log() + (self.b - 1) * torch.log1p(-x) - float(special.betaln(self.a, self.b))

    def slope(self, x: Tensor) -> Tensor:
        return (self.a - 1) / x - (self.b - 1) / (1 - x)


def _numpy(generator: torch.Generator | None) -> np.random.Generator:
    """NumPy's generator, which knows more laws than torch's, seeded from torch's."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
