r"""The variational bound of a reversed linear SDE, in continuous time.

The reverse SDE with score s, started from a prior :math:`\pi`, is a generative model. For x at time :math:`t_0`, with
:math:`x_t = m x + \sqrt v\,\epsilon` the forward process from there, drift a x and dimension D,

.. math:: \log p_{t_0}(x) \ge \mathrm E\log\pi(x_T)
          + \int_{t_0}^T \Bigl(aD - \tfrac12 g^2\,\mathrm E\bigl[|s|^2 + 2\,s\cdot\epsilon/\sqrt v\bigr]\Bigr)dt .

It is the denoising loss with weight g² (the likelihood weighting), :math:`\tfrac12 g^2|s + \epsilon/\sqrt v|^2`, with the
term :math:`|\epsilon|^2/v`, whose mean is known and whose integral diverges at :math:`t_0`, taken out: no cut-off is needed.
Noise comes in pairs :math:`\pm\epsilon`; the difference of the two scores then makes up for the small :math:`\sqrt v`, and
what remains is bounded: as :math:`v \to 0` it is Hutchinson's estimate of :math:`\nabla\cdot s`. Where v is large the
denoising loss itself is the steadier form, so the fraction :math:`c = 1-(1-\rho)^2` of
:math:`q = \tfrac12 g^2(|\epsilon|^2-D)/v`, of mean 0, is put back: :math:`\rho` is v over the local variance of x_t, as the
scores at other draws tell it. With the true score and the true :math:`p_T` the bound is an equality at every x.

What is random is mostly where :math:`x_t` may pass from one mode to another: in a few parts of the log-SNR, and there by a few
draws. :mod:`~sdediff.likelihood.strata` looks for them.

Sources: Song et al. 2021, https://arxiv.org/abs/2101.09258, theorem 3; Huang et al. 2021,
https://arxiv.org/abs/2106.02808; Kingma et al. 2021, https://arxiv.org/abs/2107.00630.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .. import counting
from ..checks import all_finite, check_count, check_finite, check_state, float64
from ..densities.base import host_generator
from ..derived import as_linear
from ..errors import NonFiniteError
from ..gaussian import Gaussian
from ..linear import LinearSDE, derivative
from ..score import Given, Score, as_score
from ..sde import SDE, ScoreLike
from . import strata
from .estimate import Estimate, careful_error
from .flow import Law, terminal_law

_TINY = 1e-24  # keeps a variance that rounds to 0 right beside t0 from being divided by


class TimeProposal(ABC):
    """A law of the times at which the integral is looked at: importance sampling, whose density is divided out."""

    @abstractmethod
    def draw(self, sde: LinearSDE, t0: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times in (t0, t_max) at the quantiles u (B,) in (0, 1), and their density there, float64."""


class UniformTime(TimeProposal):
    """Uniform in t."""

    def draw(self, sde: LinearSDE, t0: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """t0 + (t_max - t0) u."""
        return t0 + (sde.t_max - t0) * u, torch.full_like(u, 1 / (sde.t_max - t0))


class UniformLogSNR(TimeProposal):
    """Uniform in the log signal-to-noise ratio, where the integrand is nearly level; needs t0 > 0."""

    def draw(self, sde: LinearSDE, t0: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times of equal steps of log-SNR."""
        high, low = float(sde.log_snr(t0)), float(sde.log_snr(sde.t_max))
        if math.isinf(high):
            raise ValueError(f"The log-SNR is infinite at t = {t0:g}: give t > 0, or proposal=UniformTime().")
        t = sde.time_of(high - (high - low) * u).clamp(t0, sde.t_max)
        return t, -derivative(sde.log_snr, t) / (high - low)


def elbo(
    sde: LinearSDE,
    score: ScoreLike,
    x: Tensor,
    *,
    t: float | None = None,
    terminal: Law | None = None,
    draws: int = 32,
    proposal: TimeProposal | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    cond: Any = None,
) -> Estimate:
    r"""The variational bound on :math:`\log p_t(x)` of the reverse SDE started from the prior, in nats, with its error.

    Args:
        sde: a linear process, or one that :func:`~sdediff.as_linear` finds to be; alpha may not vanish: for a process where it
            does take ``score.to(VP())``.
        score: ``score(x, t)``.
        x: (B, *event). The score is asked in x's dtype, all else is float64.
        t: the time that x belongs to; ``sde.t_min`` by default.
        terminal: the law from which the reverse SDE starts; ``sde.prior`` by default.
        draws: into how many parts the law of t is cut; two pairs in each, so four evaluations of the score. Below some 16
            there is too little to learn from.
        proposal: the law of t that the search starts from; :class:`UniformLogSNR` by default.
        seed, generator: a host generator; at most one of the two.
        cond: a condition for the score.

    Returns:
        An :class:`~sdediff.likelihood.Estimate`: ``value`` is unbiased for the bound, whatever the score. Its errors are too
        large rather than too small. Still, draws that carry x_t between the modes of p_t are rare and lower the value, and a
        point that has met none is too certain. A batch has met such draws, so no ``standard_error`` is taken below its root
        mean square: give points together. ``python -m benchmarks.bound`` measures both.

    Raises:
        TypeError, ValueError: the process is not linear, or alpha vanishes at its end.
        NonFiniteError: the score is NaN or infinite.
    """
    if isinstance(sde, SDE):
        sde = as_linear(sde, tuple(check_state(x).shape[1:]))
    if not isinstance(sde, LinearSDE):
        raise TypeError(
            f"elbo needs a process with one alpha and sigma, got {type(sde).__name__}; log_prob takes any SDE."
        )
    if sde.reaches_pure_noise:
        raise ValueError(
            f"alpha(t_max) = 0 for {type(sde).__name__}, where g is infinite. The bound depends on the signal-to-noise ratio "
            "alone: move the score, elbo(VP(), score.to(VP()), x)."
        )
    check_count(draws, "draws", "at least 2", least=2)
    given = as_score(score, sde)
    integrand = _Integrand(
        sde, given if cond is None else Given(given, cond), check_finite(check_state(x)), sde.t_min if t is None else float(t),
        UniformLogSNR() if proposal is None else proposal, host_generator(seed, generator),
    )  # fmt: skip
    with torch.no_grad(), counting.count() as tally:
        mean, square = strata.mean(integrand, len(x), draws, integrand.source)
        _check_seen(mean, integrand.t0, sde.t_max)
        end, end_square = integrand.end(terminal_law(sde, terminal, tuple(x.shape[1:])), draws)
    return Estimate(mean + end, careful_error(square + end_square), tally.rows // len(x))


class _Integrand:
    """Draws of the integrand over the density of its time, and the terminal term."""

    def __init__(
        self, sde: LinearSDE, score: Score, x: Tensor, t0: float, proposal: TimeProposal, source: torch.Generator | None
    ):
        self.sde, self.score, self.t0, self.proposal, self.source = sde, score, t0, proposal, source
        self.x, self.dtype = float64(x), x.dtype
        if not 0 <= t0 < sde.t_max:
            raise ValueError(f"t = {t0:g} is outside [0, {sde.t_max:g}), the domain of this process.")

    def __call__(self, u: Tensor) -> strata.Draws:
        """At the quantiles u (2, B) of the time."""
        eps, w = (part.to(self.x) for part in strata.noise_pair(self.x.shape, self.source))
        u = u.to(self.x)
        seen = [self._pair(*draw) for draw in zip(u, eps, strict=True)]
        return strata.Draws(u, w, *(torch.stack(part) for part in zip(*seen, strict=True)))

    def scales(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """v / m² at the quantiles u (N,), and g² / v over the density of the time: the slope of its logarithm in u."""
        t, density = self.proposal.draw(self.sde, self.t0, u)
        kernel, g = self.sde.transition(self.t0, t), self.sde.diffusion_coefficient(t)
        v = kernel.variance.clamp_min(_TINY)
        return v / kernel.scale**2, g * g / v / density

    def _pair(self, u: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """At the quantiles u (B,), with noise ±eps: the integrand, the control q, rho and v / m², (B,)."""
        t, density = self.proposal.draw(self.sde, self.t0, u)
        kernel = self.sde.transition(self.t0, t)
        a, g = self.sde.drift_coefficient(t), self.sde.diffusion_coefficient(t)
        v = kernel.variance.clamp_min(_TINY)
        std, mean = self._beside(v.sqrt()), self._beside(kernel.scale) * self.x
        plus, minus = (float64(self.score((mean + sign * std * eps).to(self.dtype), t)) for sign in (1, -1))
        square = 0.5 * _sum(plus * plus + minus * minus)
        slope = _sum((plus - minus) * eps / std)  # near 2 ∇·s
        d, length = self.x[0].numel(), _sum(eps * eps)
        rho = (-0.5 * v * slope / length).clamp(0, 1)
        value = a * d - 0.5 * g * g * (square + slope)
        return value / density, 0.5 * g * g * (length - d) / v / density, rho, v / kernel.scale**2

    def end(self, terminal: Law, draws: int) -> tuple[Tensor, Tensor]:
        """The mean of log terminal(x_T) and the square of its error, (B,) each; in closed form for a Gaussian."""
        kernel = self.sde.transition(self.t0, torch.tensor(self.sde.t_max, dtype=torch.float64))
        mean, std = float(kernel.scale) * self.x, float(kernel.variance) ** 0.5
        if isinstance(terminal, Gaussian):
            spread = (std / terminal.std.to(self.x.device, self.x.dtype)).expand(self.x.shape)
            return terminal.log_prob(mean) - 0.5 * _sum(spread * spread), torch.zeros_like(
                mean.reshape(len(mean), -1)[:, 0]
            )
        values, lengths = [], []
        for _ in range(2 * draws):
            eps = self._normal()
            values.append(0.5 * (terminal.log_prob(mean + std * eps) + terminal.log_prob(mean - std * eps)))
            lengths.append(_sum(eps * eps) - eps[0].numel())
        return _controlled(torch.stack(values), torch.stack(lengths))

    def _normal(self) -> Tensor:
        return torch.randn(self.x.shape, generator=self.source, dtype=torch.float64).to(self.x)

    def _beside(self, value: Tensor) -> Tensor:
        return value.to(self.x).reshape(-1, *[1] * (self.x.ndim - 1))


def _check_seen(mean: Tensor, t0: float, t_max: float) -> None:
    """Refuse averages (B,) of scores that are no numbers."""
    if all_finite(mean):
        return
    rows = torch.nonzero(~torch.isfinite(mean)).flatten().tolist()
    raise NonFiniteError(
        f"The bound is NaN or infinite for {len(rows)} of {len(mean)} samples (first: {rows[:5]}). Check the score on "
        f"noised samples from t = {t0:g} to t = {t_max:g}.",
        step=None, t=t0, samples=rows, state=None,
    )  # fmt: skip


def _controlled(values: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of values (N, B) less a multiple of q, of mean 0, and the square of its error; each half's from the other."""
    half = len(q) // 2
    slopes = [
        ((part - part.mean(0)) * q[where]).sum(0) / (q[where] - q[where].mean(0)).square().sum(0)
        for where in (slice(0, half), slice(half, None))
        for part in (values[where],)
    ]
    rest = torch.cat([values[:half] - slopes[1] * q[:half], values[half:] - slopes[0] * q[half:]])
    return rest.mean(0), rest.var(0) / len(rest)


def _sum(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1)
