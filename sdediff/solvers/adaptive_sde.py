r"""Adaptive steps for SDEs with diagonal or additive noise, on one Brownian path per sample.

A step is Heun's, in Stratonovich form, and its error estimate is its distance from Milstein's. With
:math:`c_i = \tfrac12 g_i\,\partial_i g_i` (0 for additive noise), minus on a rising and plus on a falling clock,

.. math:: k_1 = (f \mp c)(x, s)\,h + g(x, s)\,\Delta W, \qquad k_2 = (f \mp c)(x + k_1, t)\,h + g(x + k_1, t)\,\Delta W, \\
          x_t = x + \tfrac12(k_1 + k_2), \qquad e = \tfrac12(k_2 - k_1) - c(x, s)\,\Delta W^2 .

Both have strong order 1, so :math:`e = O(|h|^{3/2})`; for additive noise the step has weak order 2. Two evaluations for a step
that is accepted, one for a step that is not.

**Rejection must not bend the noise.** A step is rejected more often when its increment is large. To draw another one would
make large increments too rare: the variance would come out too small. Here a rejected increment stays known, and the
shorter step that follows draws from the Brownian bridge towards it; a step never passes a time at which its path is known. So
the path is a Brownian motion whatever is rejected, and the steps only decide where it is looked at.

Sources: Jolicoeur-Martineau et al. 2021, https://arxiv.org/abs/2105.14080 (a pair of this kind for reverse diffusions);
Gaines and Lyons 1997, https://doi.org/10.1137/S0036139995286515 (why steps that look ahead need strong order 1); Rackauckas
and Nie 2017, https://doi.org/10.3934/dcdsb.2017133 (keeping what was rejected).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..brownian import BrownianPath
from ..diffusion import Diffusion
from ..noise import Noise
from ..sde import SDE, Semilinear
from .base import Orders
from .diffusions import check_additive, check_own, with_correction
from .walk import Adaptive, Attempts, Controller, Samples, Taken


class AdaptiveHeun(Adaptive):
    """Stochastic Heun steps, each sample its own, for any SDE with diagonal noise or additive matrix noise.

    Args:
        rtol, atol: the error allowed in one step, relative to the state and in its units. The error of a path, some 0.2 to 3
            times as large in the tests, falls with its power 2/3 (so steps go with its power -2/3).
        max_steps: the most steps tried for one sample.

    Raises:
        ValueError: matrix noise that depends on the state, or diagonal noise whose g_i depends on another coordinate than x_i:
            there no method of this cost has strong order 1, and steps that look at the path need it. Checked at the start and
            after the first step.
    """

    orders = Orders(strong=1.0, strong_additive=1.0, weak=1.0, ode=2.0)
    controller = Controller(1.5)

    def __init__(self, *, rtol: float = 2e-2, atol: float = 2e-2, max_steps: int = 10_000):
        super().__init__(rtol=rtol, atol=atol, max_steps=max_steps)

    def open(self, samples: Samples, x: Tensor, t: Tensor, noise: Noise) -> Attempts:
        """The paths and slopes of each sample."""
        return _Steps(self, samples, x, t, noise)

    def kept(self, samples: Samples, x: Tensor, t: Tensor) -> Tensor:
        """Nothing."""
        return x.new_empty(len(x), 0)

    def retake(self, samples: Samples, taken: Taken, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The step again, on the same increments."""
        assert taken.increments is not None
        slope = samples.drift(x, taken.t)
        return self.step(samples, x, taken.t, taken.t_new, slope, taken.increments)[0], kept

    def step(
        self, samples: Samples, x: Tensor, t: Tensor, t_new: Tensor, slope: Tensor, dw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From x (n, *event) at t (n,) to t_new, given the drift at x and the increments: the new state and its error."""
        h = (t_new - t).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        process = samples.within
        noise, c = _noise(process, x, t)
        k1 = _stratonovich(process, slope, c) * h + noise @ dw
        ahead = x + k1
        noise_ahead, c_ahead = _noise(process, ahead, t_new)
        k2 = _stratonovich(process, samples.drift(ahead, t_new), c_ahead) * h + noise_ahead @ dw
        error = 0.5 * (k2 - k1)
        return x + 0.5 * (k1 + k2), error if c is None else error - c * dw * dw


def _noise(process: SDE, x: Tensor, t: Tensor) -> tuple[Diffusion, Tensor | None]:
    """The noise at x (n, *event) and t (n,), and c; None where the noise does not depend on the state."""
    if isinstance(process, Semilinear):
        return process.diffusion(x, t), None
    noise, twice = with_correction(lambda at: process.diffusion(at, t), x)
    return noise, None if twice is None else 0.5 * twice


def _stratonovich(process: SDE, slope: Tensor, c: Tensor | None) -> Tensor:
    """The drift of the same process in Stratonovich's form."""
    return slope if c is None else slope - process.direction * c


class _Steps(Attempts):
    """The path of each sample, and its drift where it stands."""

    def __init__(self, method: AdaptiveHeun, samples: Samples, x: Tensor, t: Tensor, noise: Noise):
        self.method, self.samples = method, samples
        if _follows(noise):
            raise ValueError(
                "AdaptiveHeun asks for its own path at times of each sample's own, so it cannot follow a BrownianPath: use a "
                "fixed-step solver, or seed=."
            )
        diffusion = samples.process.diffusion(x, t)
        self.check = check_own if diffusion.diagonal else check_additive
        self.check(method, lambda at: samples.process.diffusion(at, t[0]), x)
        self.unmoved = True  # every sample: where all start is often a special point
        self.path = BridgedPath(noise, x, t, diffusion.noise_shape(x), samples)
        self.slope = torch.empty_like(x)
        self.stale = torch.ones_like(t, dtype=torch.bool)
        self.t, self.dw = t, x

    def first(self, span: float) -> Tensor:
        """A hundredth of the interval; a rejection costs one evaluation."""
        return torch.full_like(self.t, 0.01 * abs(span))

    def attempt(self, x: Tensor, t: Tensor, t_new: Tensor) -> tuple[Tensor, Tensor]:
        """A step on the path; the drift at x is evaluated where the state has moved."""
        moved = torch.nonzero(self.stale).flatten()
        if len(moved):
            self.slope[moved] = self.samples.drift_of(moved, x[moved], t[moved])
        self.dw = self.path.increment(t, t_new)
        return self.method.step(self.samples, x, t, t_new, self.slope, self.dw)

    def settle(self, x: Tensor, t: Tensor, accepted: Tensor) -> None:
        """The path remembers what was rejected; the noise is looked at once more where the first steps lead."""
        if self.unmoved and bool(accepted.any()):
            self.unmoved = False
            self.check(self.method, lambda at: self.samples.within.diffusion(at, t[0]), x)
        self.path.settle(accepted)
        self.stale, self.stop = accepted, self.path.stop()

    def keep(self, rows: Tensor) -> None:
        """Only these."""
        self.slope, self.stale = self.slope[rows], self.stale[rows]
        self.path.keep(rows)
        self.stop = self.path.stop()

    def increments(self, rows: Tensor) -> Tensor:
        """What drove the last attempt."""
        return self.dw[rows]


class BridgedPath:
    r"""Brownian paths, one per sample, looked at from time to time and remembered where a look was premature.

    Each sample has a stack of times ahead at which its path is known; the nearest lies on top. A look at t' from t draws

    .. math:: W_{t'} - W_t \sim \mathcal N\Bigl(\tfrac hH w,\; h\bigl(1 - \tfrac hH\bigr)\Bigr), \qquad h = |t' - t|,

    where the path is known to gain w until the time on top, H away, and :math:`\mathcal N(0, h)` where nothing is known.

    Args:
        noise: where the numbers come from, drawn for the whole batch each round: a sample's k-th look uses its k-th numbers,
            whoever else is still under way.
        x, t: states (B, *event) and times (B,) at the start.
        shape: of the increments, (B, ...).
        samples: names the samples under way.
    """

    def __init__(self, noise: Noise, x: Tensor, t: Tensor, shape: torch.Size, samples: Samples):
        self.stream, self.shape, self.samples = noise.open(x), shape, samples
        self.level = torch.zeros(len(x), dtype=torch.long, device=x.device)  # the height of each stack
        self.times = t.new_zeros(0, len(x))
        self.gains = x.new_zeros(0, *shape)  # of the path, from the entry above (from the present, for the top)

    def increment(self, t: Tensor, t_new: Tensor) -> Tensor:
        """The increment from t to t_new (n,), which lies not beyond the top of the stack."""
        self.t_new, h = t_new, (t_new - t).abs()
        z = self.stream.normal(self.shape)[self.samples.ids]
        self.dw = z * _beside(h.sqrt(), z)
        if len(self.times):
            top, known = self._top(), self.level > 0
            share = torch.where(known, h / (self.times[top] - t).abs(), 0.0)
            self.dw = torch.where(
                _beside(known, z),
                _beside(share, z) * self.gains[top] + _beside((h * (1 - share)).sqrt(), z) * z,
                self.dw,
            )
        return self.dw

    def settle(self, accepted: Tensor) -> None:
        """The last increment has become the past, or, where the step was rejected, something known of the future."""
        reached = torch.zeros_like(accepted)
        if len(self.times):
            top, known = self._top(), self.level > 0
            reached = known & (self.times[top] == self.t_new)
            rest = torch.where(_beside(known & ~reached, self.dw), self.gains[top] - self.dw, self.gains[top])
            self.gains[top] = rest
            self.level = self.level - (reached & accepted).long()
        rows = torch.nonzero(~accepted & ~reached).flatten()
        if len(rows):
            self._push(rows)

    def stop(self) -> Tensor | None:
        """The nearest time (n,) at which each path is known; None where none is."""
        if len(self.times) == 0:
            return None
        return torch.where(self.level > 0, self.times[self._top()], torch.nan)

    def keep(self, rows: Tensor) -> None:
        """Forget all but these samples."""
        self.level, self.times, self.gains = self.level[rows], self.times[:, rows], self.gains[:, rows]

    def _top(self) -> tuple[Tensor, Tensor]:
        return (self.level - 1).clamp_min(0), torch.arange(len(self.level), device=self.level.device)

    def _push(self, rows: Tensor) -> None:
        height = self.level[rows]
        if int(height.max()) == len(self.times):
            self.times = torch.cat([self.times, torch.zeros_like(self.level, dtype=self.times.dtype)[None]])
            self.gains = torch.cat([self.gains, torch.zeros_like(self.dw)[None]])
        self.times[height, rows], self.gains[height, rows] = self.t_new[rows], self.dw[rows]
        self.level[rows] += 1


def _follows(noise: Noise) -> bool:
    """Whether a recipe, or one inside it, is of a path with increments of its own."""
    return isinstance(noise, BrownianPath) or any(
        _follows(part) for part in vars(noise).values() if isinstance(part, Noise)
    )


def _beside(value: Tensor, z: Tensor) -> Tensor:
    value = value if value.dtype == torch.bool else value.to(z.dtype)
    return value.reshape(-1, *[1] * (z.ndim - 1))
