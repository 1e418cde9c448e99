r"""How far a score is from the truth, by t.

**Where the law is known**, the error itself is measured, weighted by the law: with :math:`s^* = \nabla\log p_t` by automatic
differentiation of the log density,

.. math:: R(t)^2 = \frac{\mathrm E_{p_t}|s - s^*|^2}{\mathrm E_{p_t}|s^*|^2}, \qquad
          \mathrm E|\epsilon - \hat\epsilon|^2 - \min_{\epsilon'} \mathrm E|\epsilon - \epsilon'|^2
          = \sigma^2\,\mathrm E|s - s^*|^2 .

The second says that the denoising loss exceeds its least value by the squared error of the noise prediction, so R tells
how far training could still go.

**Where there are held-out data alone**, R is enclosed. From below by Stein's identity (:mod:`~sdediff.verify.stein`): with
fixed fields, and with one fitted on half of the data to resemble the error, which is the same as to say that a correction
lowers the loss on the other half. From above by the ideal denoiser of the very rows that are perturbed: no score has a smaller
loss on them, but it knows them by heart, so that this bound says little where the noise is small.

A score is checked for its own consistency as well: noise, data and score must be one prediction, the Jacobian of a gradient is
symmetric, and a sample's score must not depend on the batch or on how its time was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_state
from ..densities import Density, as_density
from ..linear import LinearSDE
from ..score import Score, as_score
from ..sde import SDE, ScoreLike
from .budget import affordable, check_options
from .held_out import HeldOut
from .laws import Diffused, Fixed, Law, law_of
from .operator import rows
from .report import Row, judge
from .scalar import needed, scalar
from .score_contract import contract
from .score_report import ErrorAt, ScoreReport
from .statistics import POWER, Outcome, detectable_effect, two_sided
from .stein import Perturbed, Waves, evaluated, terms

_TIMES = 7
_CLEAN, _NOISY = 12.0, -12.0  # log SNR: where to begin if t_min is 0, and to end if alpha vanishes at t_max


def check_score(
    score: ScoreLike,
    sde: SDE,
    density: Density | Law | None = None,
    *,
    data: Tensor | None = None,
    times: Sequence[float] | None = None,
    tolerance: float = 1e-6,
    n: int | None = None,
    budget: float = 10.0,
    level: float = 1e-4,
    seed: int = 0,
) -> ScoreReport:
    r"""Check a score against the law that it should belong to, or against held-out data, and say how far off it is by t.

    Args:
        score: ``score(x, t)``, any callable; a network in evaluation mode.
        sde: the process whose score it should be: one with an affine drift, unless ``density`` is a
            :class:`~sdediff.verify.Law`. Where it scales states by more than one number the error is that of the score itself.
        density: the law at t = 0, with a closed form under the process, or a law as a function of t.
        data: instead, samples (N, *event) of the law at t = 0 that the score was not trained on.
        times: where to look; by default seven, evenly spread in log SNR, the ends included.
        tolerance: the relative error that passes. The default is for exact scores; for a learned one give what you can
            accept, such as 0.05: each row says how far it is anyway.
        n: how many samples at each time; by default as many as the budget allows. Held-out rows are perturbed four times
            each at most, and independent values are as many as the rows.
        budget: seconds that the check should take, a repetition of tests in doubt not included.
        level: the probability of a false alarm, for all tests together.
        seed: of all random numbers.

    Returns:
        A :class:`ScoreReport`: its ``errors`` and ``plot_errors()`` give the error by t.

    Raises:
        TypeError, ValueError: neither or both of density and data are given, or they do not fit the process.
    """
    check_options(seed, n=n, budget=budget, level=level)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance = {tolerance} is a relative error, between 0 and 1.")
    if (density is None) == (data is None):
        raise ValueError("Give either density, the law at t = 0, or data=, held-out samples of it.")
    process = _process(sde, density, data)
    score = as_score(score, process if isinstance(process, LinearSDE) else None)  # type: ignore[arg-type]
    if torch.device(score.device or "cpu").type != "cpu":
        raise ValueError(
            f"The score is on {score.device}, and it is checked on the host in float64: use score.to('cpu')."
        )
    law = None if density is None else _known_law(process, density)
    source = HeldOut(process, data, score, seed) if law is None else _Known(process, law, score)
    at = _checked_times(process, times)
    with torch.no_grad():
        found, errors, n = source.judged(at, tolerance, n, budget, level, seed)
        own, unchecked = contract(score, process, source.draw, at, tolerance, seed)
    name = type(score).__name__
    notes = (
        f"{source}; {n:,} samples at each of {len(at)} times, from t = {at[0]:.3g} to {at[-1]:.3g}.",
        f"errors are relative to the norm of the score in L²(p_t), {source.norm}; {tolerance:g} passes.",
        f"level {level:g} for all tests together, each effect detected with probability {POWER:g}.",
    )
    return ScoreReport(f"{name} for {type(sde).__name__}", (*found, *own), notes, unchecked, errors)


@dataclass(frozen=True)
class _Known:
    """The law, and the score put to the test under it."""

    sde: SDE
    law: Law
    score: Score
    norm = "the true one where the error itself is measured"

    def __str__(self) -> str:
        return f"law: {self.law}, its score by automatic differentiation of the log density"

    def judged(
        self, times: Sequence[float], tolerance: float, n: int | None, budget: float, level: float, seed: int
    ) -> tuple[tuple[Row, ...], tuple[ErrorAt, ...], int]:
        """The rows of the tests, the error by t, and n."""
        last: dict[float, ErrorAt] = {}

        def panel(n: int, seed: int) -> Mapping[str, Outcome]:
            generator = torch.Generator().manual_seed(seed)
            found: dict[str, dict[str, Outcome]] = {"error": {}, "Stein": {}}
            for t in times:
                at, truth = self.at(t, n, generator)
                last[t], found["error"][f"t = {t:.3g}"] = self._error(t, at, truth, tolerance)
                waves = Waves(at, generator)
                found["Stein"][f"t = {t:.3g}"] = terms(at, waves).test(tolerance)
            return {f"{what}, {where}": o for what, tests in found.items() for where, o in tests.items()}

        if n is None:
            n = affordable(lambda n: panel(n, seed), budget)
        judged = judge(panel, n, seed, level)
        return judged, tuple(last[t] for t in times), n

    def draw(self, t: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Samples of p_t (n, *event), and their noise where it is known."""
        if not isinstance(self.law, Diffused) or not isinstance(self.sde, LinearSDE):
            return self.law.sample(n, t, generator), None
        x0 = self.law.density.sample(n, generator=generator).double()
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        return self.law.exact.sde.perturb(x0, t, noise), noise

    def at(self, t: float, n: int, generator: torch.Generator) -> tuple[Perturbed, Tensor]:
        """Samples with the score under test, and the true score at them (n, D)."""
        x, noise = self.draw(t, n, generator)
        scaled = None if noise is None else rows(noise) / float(self.sde.sigma(t))  # type: ignore[attr-defined]
        return Perturbed(rows(x), evaluated(self.score, x, t), scaled), rows(self.law.gradient(x, t)).detach()

    def _error(self, t: float, at: Perturbed, truth: Tensor, tolerance: float) -> tuple[ErrorAt, Outcome]:
        wrong, size = (at.s - truth).square().sum(1), truth.square().sum(1)
        n, d = truth.shape
        mean, alpha, sigma, log_snr = float(wrong.mean()), *_schedule(self.sde, t)
        ratio = mean / float(size.mean())
        # The delta method for R² = E wrong / E size.
        spread = float((wrong - ratio * size).std()) / (float(size.mean()) * math.sqrt(n))
        unit = sigma**2 / d
        side = 1.96 * float(wrong.std()) / math.sqrt(n)
        low, error, high = (_root(unit * (mean + k * side)) for k in (-1, 0, 1))
        least = math.nan if at.noise is None else unit * float((at.noise + truth).square().sum(1).mean())
        relative, data_error = _root(ratio), sigma * error / alpha if alpha else math.nan
        entry = ErrorAt(t, log_snr, error, low, high, relative, data_error, least + error**2, least)
        return entry, _one_sided(wrong - tolerance**2 * size, relative, spread, tolerance, float(size.mean()))


def _root(square: float) -> float:
    """NaN stays NaN."""
    return math.sqrt(max(square, 0.0)) if square == square else square


def _one_sided(excess: Tensor, error: float, spread: float, tolerance: float, size: float) -> Outcome:
    """A z-test that the mean of |s - s*|² - tol²|s*|² is not above 0, told in terms of the relative error."""
    n, mean, variance = len(excess), float(excess.mean()), float(excess.var())
    if not math.isfinite(mean):
        return Outcome(math.nan, math.nan, 0.0, lambda level: math.inf, "of the score")
    z = mean / math.sqrt(variance / n) if variance > 0 else math.copysign(math.inf, mean)
    p = 0.5 * two_sided(z) if z > 0 else 1 - 0.5 * two_sided(z)
    floor = math.sqrt(max(error**2 + spread, 0.0)) - error  # one standard error of R² as one of R

    def detectable(level: float) -> float:
        return math.sqrt(tolerance**2 + detectable_effect(n, variance, 2 * level) / size)

    return Outcome(error, floor, p, detectable, "of the score")


# ---- what is asked for ------------------------------------------------------------------------------------------------------


def _process(sde: SDE, density: Density | Law | None, data: Tensor | None) -> SDE:
    """The linear process that ``sde`` is, where it is one; as it is where the law is known without it."""
    if density is None:
        shape = tuple(check_state(data, "data").shape[1:])  # type: ignore[arg-type]
        return needed(
            sde,
            shape,
            "Held-out data are perturbed by the exact kernel",
            "Where the law is known as a function of t, give that as a verify.Law.",
        )
    if isinstance(density, Law):
        return sde
    return scalar(sde, as_density(density).event_shape) or sde


def _known_law(sde: SDE, density: Density | Law) -> Law:
    law = law_of(sde, density)
    if isinstance(law, Fixed):
        raise TypeError(
            f"{type(density).__name__} has no closed form under {type(sde).__name__}, so its law at t > 0 is not known: give "
            "held-out samples, data=density.sample(10_000), or a verify.Law."
        )
    return law


def _checked_times(sde: SDE, times: Sequence[float] | None) -> list[float]:
    """The times in rising order, inside the domain; by default evenly spread in log SNR, the ends included."""
    if times is not None:
        for t in times:
            if not 0 < t <= sde.t_max:
                raise ValueError(f"t = {t} is outside (0, {sde.t_max:g}].")
        return sorted(times)
    ramp = torch.linspace(0, 1, _TIMES, dtype=torch.float64)
    if not isinstance(sde, LinearSDE):
        if not math.isfinite(sde.t_max):
            raise ValueError(f"The clock of {type(sde).__name__} does not end: give times=.")
        first = max(sde.t_min, 1e-3 * sde.t_max)
        return (first + (sde.t_max - first) * ramp).tolist()
    first = sde.t_min if sde.t_min > 0 else float(sde.time_of(_CLEAN))
    last = float(sde.time_of(_NOISY)) if sde.reaches_pure_noise else sde.t_max
    high, low = float(sde.log_snr(first)), float(sde.log_snr(last))
    return [first, *sde.time_of(high + (low - high) * ramp[1:-1]).tolist(), last]


def _schedule(sde: SDE, t: float) -> tuple[float, float, float]:
    """alpha, sigma and log SNR; for a process that is not linear, sigma is 1 and the others NaN."""
    if not isinstance(sde, LinearSDE):
        return math.nan, 1.0, math.nan
    return float(sde.alpha(t)), float(sde.sigma(t)), float(sde.log_snr(t))
