r"""Processes whose answer is known, to hold a solver against.

- The flow of an uneven ring under VP, where nothing cancels by luck; its map by another library's solver at 1e-13.
- Three SDEs with a closed form in the Brownian path at the end, on a rising and on a falling clock,

  .. math:: dx = ax\,du + bx\,dW, \qquad dx = -\tfrac14x(1-x^2)\,du + \tfrac12(1-x^2)\,dW, \qquad
            dx = \tfrac32x\,du + \sqrt{e^{2u}+x^2}\,dW .

- The reversal of a three-mode mixture, nonlinear with additive noise; its paths by fine steps of strong order 1.5.
- Gaussian data under VP, forward, backward and along the flow: every law is known, and every solver maps states and noise
  affinely (:mod:`~sdediff.verify.affine_law`).
- A particle in a harmonic well with friction and noise.

Source: Kloeden and Platen 1992, https://doi.org/10.1007/978-3-662-12616-5, section 4.4 (the closed forms).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cache

import torch
from torch import Tensor

from ..brownian import BrownianPath
from ..densities import Mixture, gaussian, ring
from ..exact import ExactScore
from ..grids import LogSNR
from ..langevin import Underdamped
from ..noise import Noise
from ..processes import VP
from ..score import FunctionScore
from ..sde import ODE, SDE
from ..solve import solve
from ..solvers import SRA1, SRI2, Scipy, Solver

END = 0.05
"""Where flows and reversals of VP end."""

MEAN = torch.tensor([0.7, -0.5, 1.5], dtype=torch.float64)
STD = torch.tensor([0.3, 0.6, 1.5], dtype=torch.float64)
"""Of the coordinates of the Gaussian data: one alone may have an error that changes its sign."""


class Clock(SDE):
    """An SDE in its own time u, which rises along a solve: u = t on a rising clock, 1 - t on a falling one.

    Subclasses write ``drift_at(x, u)`` and ``noise_at(x, u)``.
    """

    def __init__(self, sign: int = 1):
        self.direction = sign
        self.seen: list[float] = []
        """The times at which it was evaluated."""

    @property
    def ends(self) -> tuple[float, float]:
        """Start and end of a solve."""
        return (0.0, 1.0) if self.direction > 0 else (1.0, 0.0)

    def nodes(self, u: Tensor) -> Tensor:
        """Nodes in u as nodes in t."""
        return u if self.direction > 0 else 1 - u

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift."""
        self.seen += t.detach().reshape(-1).tolist()
        return self.direction * self.drift_at(x, self.nodes(t))

    def g(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise."""
        self.seen += t.detach().reshape(-1).tolist()
        return self.noise_at(x, self.nodes(t))

    @abstractmethod
    def drift_at(self, x: Tensor, u: Tensor) -> Tensor:
        """The drift in rising time."""

    @abstractmethod
    def noise_at(self, x: Tensor, u: Tensor) -> Tensor:
        """The noise in rising time."""


class ClosedForms(Clock):
    """The three closed forms, one a coordinate, each with a Brownian motion of its own."""

    a, b = 1.01, 0.87
    start = (0.5, 0.5, math.sinh(0.3))

    def drift_at(self, x: Tensor, u: Tensor) -> Tensor:
        """Their drifts."""
        p, q, r = x.unbind(1)
        return torch.stack([self.a * p, -0.25 * q * (1 - q * q), 1.5 * r], 1)

    def noise_at(self, x: Tensor, u: Tensor) -> Tensor:
        """Their noises."""
        p, q, r = x.unbind(1)
        return torch.stack([self.b * p, 0.5 * (1 - q * q), torch.sqrt(torch.exp(2 * u) + r * r)], 1)

    def exact(self, w: Tensor) -> Tensor:
        """The states at u = 1 for W_1 = w (n, 3)."""
        p, q, _ = self.start
        up, down = (1 + q) * torch.exp(w[:, 1]) + q - 1, (1 + q) * torch.exp(w[:, 1]) + 1 - q
        geometric = p * torch.exp(self.a - 0.5 * self.b**2 + self.b * w[:, 0])
        return torch.stack([geometric, up / down, math.e * torch.sinh(w[:, 2] + 0.3)], 1)


class Wavy(Clock):
    """A nonlinear drift that depends on time, and additive noise that does."""

    def drift_at(self, x: Tensor, u: Tensor) -> Tensor:
        """sin(2x) - x + u."""
        return torch.sin(2 * x) - x + u

    def noise_at(self, x: Tensor, u: Tensor) -> Tensor:
        """1 + u."""
        return (1 + u).expand_as(x) if u.ndim else (1 + u) * torch.ones_like(x)


class Plain(Clock):
    """dx = du + dW: any consistent step is exact, whatever its length."""

    def drift_at(self, x: Tensor, u: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(x)

    def noise_at(self, x: Tensor, u: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(x)


class Noiseless(ODE):
    """The ODE of a process on a clock: its drift alone."""

    def __init__(self, process: Clock):
        self.process, self.ends, self.nodes, self.seen = process, process.ends, process.nodes, process.seen

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift."""
        return self.process.f(x, t)


# ---- the flow of a mixture -----------------------------------------------------------------------------------------


@cache
def ring_flow() -> tuple[SDE, Tensor, Tensor]:
    """The flow, 256 states at t = 1, and where it takes them at :data:`END`."""
    flow = VP().probability_flow(ExactScore(VP(), ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8]).to(dtype=torch.float64)))
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # A grid of its own for each of a few groups: fast and slow states in one system cost more.
    parts = [
        solve(flow, part, solver=Scipy("DOP853", rtol=1e-13, atol=1e-13), t0=1.0, t1=END).x for part in x.split(64)
    ]
    return flow, x, torch.cat(parts)


# ---- the reversal of a mixture -------------------------------------------------------------------------------------

_PLANE = Mixture([[-2.0, 0.6], [1.6, -1.0], [0.4, 2.2]], std=0.7, weights=[0.3, 0.3, 0.4]).to(dtype=torch.float64)


@cache
def reversal(paths: int, fading: bool, independent_of: type[Solver] | None) -> tuple[SDE, Tensor, Noise, Tensor]:
    """A reversal on [0.3, 1], its states at t = 1, a path, and where the path takes them.

    Args:
        paths: how many.
        fading: let the stochasticity vanish at both ends. At an end with noise the extrapolation of a multistep method adds one
            term of order 1.5, which outweighs the sum of order 1 up to some hundred thousand steps.
        independent_of: the kind of solver that must not be the reference.
    """
    sde = VP(1.0, 3.0)
    score = ExactScore(sde, _PLANE)
    eta = (lambda t: 1.5 * torch.sin(math.pi * (t - 0.3) / 0.7).clamp_min(0)) if fading else 1.0
    back, path, x = sde.reverse(score, eta), BrownianPath(0.3, 1.0, 14), score.sample(paths, 1.0, seed=0)
    fine = SRI2() if independent_of is SRA1 else SRA1()
    return back, x, path, solve(back, x, solver=fine, t0=1.0, t1=0.3, steps=1024, noise=path).x


# ---- Gaussian data -------------------------------------------------------------------------------------------------


class GaussianData:
    """VP with data N(MEAN, STD²), states (3,), its score written out; the score counts and notes its times."""

    def __init__(self) -> None:
        self.sde = VP()
        self.seen: list[float] = []
        """The times at which the score was evaluated."""
        self.calls = self.samples = 0
        self.score = FunctionScore(self._score, self.sde)

    def _score(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen += t.detach().reshape(-1).tolist()
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        rate = 0.1 * t + 0.5 * 19.9 * t * t
        return -(x - MEAN * torch.exp(-0.5 * rate)) / (1 + (STD**2 - 1) * torch.exp(-rate))

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """Means and variances of the coordinates at t, (3,) each."""
        rate = 0.1 * t + 0.5 * 19.9 * t * t
        return MEAN * math.exp(-0.5 * rate), 1 + (STD**2 - 1) * math.exp(-rate)

    def grid(self, steps: int) -> LogSNR:
        """Nodes even in log SNR."""
        return LogSNR(steps)


# ---- a particle in a well ------------------------------------------------------------------------------------------


class Oscillator:
    r"""Underdamped dynamics of N(0, 1): :math:`dq = v\,dt, dv = -(q + \gamma v)\,dt + \sqrt{2\gamma}\,dW`, from (1, -0.5)."""

    friction = 0.8
    start = (1.0, -0.5)

    def __init__(self) -> None:
        self.process = Underdamped(gaussian(torch.zeros(1), 1.0).to(dtype=torch.float64), self.friction)

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """Mean (2,) and covariance (2, 2) at t: with stationary covariance I, the covariance is I - e^{At} e^{At}ᵀ."""
        a = torch.tensor([[0.0, 1.0], [-1.0, -self.friction]], dtype=torch.float64)
        flow = torch.linalg.matrix_exp(t * a)
        return flow @ torch.tensor(self.start, dtype=torch.float64), torch.eye(2, dtype=torch.float64) - flow @ flow.T
