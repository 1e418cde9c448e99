r"""The laws of x_t given x_0 of the processes in :mod:`~sdediff.nonlinear.processes`, coordinate by coordinate.

Lognormal for geometric Brownian motion, noncentral :math:`\chi^2` for CIR, and for the Jacobi process

.. math:: p_t(x \mid x_0) = \mathrm{Beta}(x; a, b)\sum_n e^{-\frac s2n(n-1+a+b)t}P_n(x)P_n(x_0)

with the polynomials :math:`P_n` orthonormal under the Beta law. Densities and scores are asked beyond the walls too, where
steps of a solver lead: a score there is that at the nearest point ``floor`` inside.

Sources: Cox, Ingersoll and Ross 1985, https://doi.org/10.2307/1911242; Griffiths and Spanò 2010,
https://arxiv.org/abs/1003.4650 (the series); Jenkins and Spanò 2017, https://doi.org/10.1214/16-AAP1236 (exact samples).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from ..autodiff import leaf, recording
from ..bessel import log_bessel
from ..checks import check_like, check_state
from ..densities.base import host_generator
from ..lineages import lineages
from .laws import Beta

TINY = 1e-290
"""The least x > 0 at which a log density is evaluated."""


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
        return x.clamp(low + TINY, high * (1 - 2.0**-53)), inside

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


class Lognormal(Kernel):
    r""":math:`\log x_t \mid x_0 \sim \mathcal N(\log x_0 + (\mu - \tfrac12\sigma^2)t,\; \sigma^2 t)`, on x > 0."""

    def __init__(self, x0: Tensor, t: Tensor, mu: float, sigma: float, floor: float):
        super().__init__(x0, t)
        self.mean = x0.log() + (mu - 0.5 * sigma**2) * t
        self.std = sigma * t.sqrt()
        self.floor = floor

    def log_density(self, x: Tensor) -> Tensor:
        z = (x.log() - self.mean) / self.std
        return -0.5 * z * z - (self.std * x).log() - 0.5 * math.log(2 * math.pi)

    def draw(self, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(self.x0.shape, generator=generator, dtype=torch.float64)
        return (self.mean + self.std * z).exp()

    def inner(self, x: Tensor) -> Tensor:
        return x.clamp_min(self.floor)


class NoncentralChi(Kernel):
    r""":math:`x_t/c` is noncentral :math:`\chi^2` on x >= 0, :math:`c = \xi^2(1 - e^{-\kappa t})/4\kappa`.

    It has :math:`d = 4\kappa\theta/\xi^2` degrees of freedom and noncentrality :math:`\lambda = x_0e^{-\kappa t}/c`.
    """

    def __init__(self, x0: Tensor, t: Tensor, kappa: float, theta: float, xi: float, floor: float):
        super().__init__(x0, t)
        self.scale = -(xi**2) * torch.expm1(-kappa * t) / (4 * kappa)
        self.freedom = 4 * kappa * theta / xi**2
        self.noncentral = x0 * torch.exp(-kappa * t) / self.scale
        if not float(self.noncentral.detach().max()) < 1e12:
            raise ValueError(
                f"t = {float(t.detach().min()):.3g} is too short for the kernel of CIR in float64: there a Gaussian step, "
                "solve(sde, x0, t1=t, ...), is as good."
            )
        self.floor = floor

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


class JacobiSeries(Kernel):
    """The Beta law that the process settles in, times a series of its orthonormal polynomials, on [0, 1].

    Args:
        law: that Beta law, of the coordinates of a state.
        speed: s, per unit of time.
    """

    ends = (0.0, 1.0)

    def __init__(self, x0: Tensor, t: Tensor, law: Beta, speed: float):
        super().__init__(x0, t)
        self.law, self.speed = law, speed
        self.shortest = float(t.detach().min())
        if speed * self.shortest < 1e-4:
            raise ValueError(
                f"The series of the Jacobi kernel is summed for speed * t >= 1e-4, not {speed * self.shortest:.3g}: there "
                "a Gaussian step, solve(sde, x0, t1=t, ...), is as good."
            )

    def log_density(self, x: Tensor) -> Tensor:
        """Of the Beta law, and of the ratio to it."""
        return self.law.log_density(x) + self._ratio(x).clamp_min(1e-12).log()

    def _ratio(self, x: Tensor) -> Tensor:
        """The sum over n of e^(-λ_n t) P_n(x) P_n(x_0), with the three-term recurrence of both factors."""
        a, b, total, n = self.law.a, self.law.b, torch.ones_like(x), 0
        y, y0 = 2 * x - 1, 2 * self.x0 - 1
        (before, now), (before0, now0) = (
            (torch.zeros_like(y), torch.ones_like(y)),
            (torch.zeros_like(y0), torch.ones_like(y0)),
        )
        shift, last = _recurrence(a, b, 0)
        while True:
            centre, norm = shift, math.sqrt(_recurrence(a, b, n + 1)[1])
            before, now = now, ((y - centre) * now - last * before) / norm
            before0, now0 = now0, ((y0 - centre) * now0 - last * before0) / norm
            n, last = n + 1, norm
            shift = _recurrence(a, b, n)[0]
            rate = 0.5 * self.speed * n * (n - 1 + a + b)
            total = total + torch.exp(-rate * self.t) * now * now0
            # P_n grows at most like n^(2 max(a, b, 1/2)), so that what is left is below rounding.
            if rate * self.shortest > 42 + 2 * max(a, b, 0.5) * math.log(n + 1):
                return total

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """M lineages are left of the sample's ancestry; L of them, binomial, come from x_0: then Beta(a + L, b + M - L)."""
        random, x0, a, b = _numpy(generator), self.x0.numpy(), self.law.a, self.law.b
        out = np.empty_like(x0)
        times = np.broadcast_to(self.t.reshape(-1).numpy(), len(x0))
        for t in np.unique(times):
            rows = times == t
            law = lineages(a + b, self.speed * float(t))
            m = random.choice(len(law), size=x0[rows].shape, p=law)
            kept = random.binomial(m, x0[rows])
            out[rows] = random.beta(a + kept, b + m - kept)
        return torch.from_numpy(out)

    def inner(self, x: Tensor) -> Tensor:
        return x.clamp(self.law.floor, 1 - self.law.floor)


def _recurrence(a: float, b: float, n: int) -> tuple[float, float]:
    """Centre and squared norm in the recurrence of the monic polynomials under Beta(a, b), on y = 2x - 1 in [-1, 1]."""
    p, q, s = b - 1, a - 1, a + b - 2
    if n == 0:
        return (q - p) / (s + 2), 0.0
    centre = (q * q - p * p) / ((2 * n + s) * (2 * n + s + 2))
    if n == 1:
        return centre, 4 * (1 + p) * (1 + q) / ((2 + s) ** 2 * (3 + s))
    return centre, 4 * n * (n + p) * (n + q) * (n + s) / ((2 * n + s) ** 2 * (2 * n + s + 1) * (2 * n + s - 1))


def _numpy(generator: torch.Generator | None) -> np.random.Generator:
    """NumPy's generator, which knows more laws than torch's, seeded from torch's."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
