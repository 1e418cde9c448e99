r"""How far a score is from the truth where nothing is known of the law but held-out samples of it.

The error is enclosed. The rows are split in three. A smooth estimate of the law is made of the first part, and a field that
resembles the error is fitted to perturbations of the second, from the waves of :mod:`~sdediff.verify.stein`, the score itself
and its difference from the estimate. On the third part that field shows, unbiased, how much of the error there is at least;
with c the best multiple of it, the corrected score :math:`s + c\varphi` has a denoising loss smaller by just that.

From above, no score has a smaller loss on perturbations of given rows than their ideal denoiser, which knows the rows by heart:

.. math:: \mathrm E\,|s + \epsilon/\sigma|^2 - \mathrm E\,|s_{ideal} + \epsilon/\sigma|^2 \;\ge\; \|s - \nabla\log p_t\|^2
          \quad\text{in expectation over the rows.}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_finite, check_state
from ..densities import Empirical, Mixture
from ..exact import ExactScore
from ..score import Score
from .budget import affordable
from .operator import rows
from .report import Row
from .score_report import ErrorAt
from .statistics import Outcome
from .stein import Perturbed, Terms, Waves, evaluated, terms

FEWEST_ROWS = 300
COPIES = 4
"""The most perturbations of one row at one time."""

_ATOMS = 500
_WIDTHS = (0.1, 0.4)  # of the smooth estimate, in standard deviations of the data


class HeldOut:
    """Held-out rows, and a score put to the test on their perturbations.

    Args:
        sde: a linear process.
        data: (N, *event), samples that the score was not trained on.
        score: the score.
        seed: of the split.
    """

    def __init__(self, sde: Any, data: Any, score: Score, seed: int):
        data = check_finite(check_state(data, "data"), "data").detach().double().cpu()
        if len(data) < FEWEST_ROWS:
            raise ValueError(
                f"data has {len(data)} rows: with fewer than {FEWEST_ROWS} nothing can be said of a score."
            )
        self.sde, self.score, self.count = sde, score, len(data)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        first, self.fit, self.test = data[order].chunk(3)
        spread = float(rows(data).std(0).square().mean().sqrt())
        self.estimates = [
            ExactScore(sde, Mixture(first[:_ATOMS], std=max(width * spread, 1e-6)).to(dtype=torch.float64))
            for width in _WIDTHS
        ]

    norm = "that of the score under test"

    def __str__(self) -> str:
        return (
            f"law: known by {self.count:,} held-out samples alone, so that the error is enclosed: a test sees what is at least "
            "there"
        )

    def judged(
        self, times: Sequence[float], tolerance: float, n: int | None, budget: float, level: float, seed: int
    ) -> tuple[tuple[Row, ...], tuple[ErrorAt, ...], int]:
        """The rows of the tests, the bounds by t, and the number of perturbations for each.

        There are no fresh samples to repeat a test with: each is decided at once, at its share of the level.
        """
        most = COPIES * len(self.test)
        if n is None:
            n = affordable(lambda n: self.panel(times, min(n, most), tolerance, seed), budget)
        n = min(n, most)
        found, errors = self.panel(times, n, tolerance, seed)
        share = level / len(found)
        judged = tuple(
            Row(what, o.statistic, o.floor, share, o.p, o.detectable(share), o.unit, o.p > share)
            for what, o in found.items()
        )
        return judged, errors, n

    def panel(
        self, times: Sequence[float], n: int, tolerance: float, seed: int
    ) -> tuple[Mapping[str, Outcome], tuple[ErrorAt, ...]]:
        """Two tests and an enclosure at each time."""
        generator = torch.Generator().manual_seed(seed)
        stein, gaps, errors = {}, {}, []
        for t in times:
            first, second = (self._perturbed(t, part, n, generator) for part in (self.fit, self.test))
            waves = Waves(first[1], generator)
            field = self._terms(t, *first[:2], waves).resembling()
            after = self._terms(t, *second[:2], waves)
            stein[f"Stein, t = {t:.3g}"] = after.test(tolerance)
            gaps[f"loss gap, t = {t:.3g}"] = after.along(field, tolerance)
            errors.append(self._enclosed(t, *second, after.along(field)))
        return stein | gaps, tuple(errors)

    def draw(self, t: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` perturbed states (n, *event) and their noise; for checks that need no independent rows."""
        x0 = self.test[torch.randint(len(self.test), (n,), generator=generator)]
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        return self.sde.perturb(x0, t, noise), noise

    def _perturbed(
        self, t: float, part: Tensor, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Perturbed, Tensor]:
        """About n perturbations of rows of this part, with the score at them, and those rows."""
        copies = max(1, math.ceil(n / len(part)))
        x0 = part[: max(n // copies, 2)]
        each = x0.repeat_interleave(copies, 0)
        noise = torch.randn(each.shape, generator=generator, dtype=torch.float64)
        x = self.sde.perturb(each, t, noise)
        return x, Perturbed(rows(x), evaluated(self.score, x, t), rows(noise) / float(self.sde.sigma(t)), copies), x0

    def _terms(self, t: float, x: Tensor, at: Perturbed, waves: Waves) -> Terms:
        """Waves, the score, and what the smooth estimates say beside it."""
        extra = [at.s, *(evaluated(estimate, x, t) - at.s for estimate in self.estimates)]
        return terms(at, waves, torch.stack(extra, 1))

    def _enclosed(self, t: float, x: Tensor, at: Perturbed, x0: Tensor, found: Outcome) -> ErrorAt:
        assert at.noise is not None
        ideal = evaluated(ExactScore(self.sde, Empirical(x0)), x, t)
        own, least = ((s + at.noise).square().sum(1) for s in (at.s, ideal))
        excess = at.independent(own - least)
        most = float(excess.mean()) + 1.96 * float(excess.std()) / math.sqrt(len(excess))
        d, sigma = at.x.shape[1], float(self.sde.sigma(t))
        unit = sigma / math.sqrt(d)
        return ErrorAt(
            t=t,
            log_snr=float(self.sde.log_snr(t)),
            error=math.nan,
            low=unit * at.size * max(abs(found.statistic) - 1.96 * found.floor, 0.0),
            high=unit * math.sqrt(max(most, 0.0)),
            loss=unit**2 * float(own.mean()),
            least_loss=unit**2 * float(least.mean()),
        )
