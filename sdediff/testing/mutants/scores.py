"""Wrong scores: ``make(sde, density)`` gives one for a linear process with one scale and a mixture of three modes or more.

They are organised by what they break: the size of the score, the law it belongs to, the time, the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...checks import Time, float64
from ...densities import Mixture
from ...exact import ExactScore
from ...score import FunctionScore, Score
from ...sde import SDE
from .base import Mutant

Rule = Callable[[ExactScore, Any, Tensor, Time], Tensor]


def _spoilt(rule: Rule) -> Callable[[SDE, Mixture], Score]:
    """A score made of the exact one by a rule (exact, sde, x, t)."""

    def make(sde: SDE, density: Mixture) -> Score:
        exact = ExactScore(sde, density)
        score = FunctionScore(lambda x, t: rule(exact, exact.sde, x, t), exact.sde)
        score.event_shape, score.device, score.dtype = exact.event_shape, exact.device, exact.dtype
        return score

    return make


def _of(change: Callable[[Mixture], Mixture]) -> Callable[[SDE, Mixture], Score]:
    """The exact score of another density."""
    return lambda sde, density: ExactScore(sde, change(density))


def _means(density: Mixture) -> Tensor:
    return density.means.reshape(-1, *density.event_shape)


def _later(sde: Any, t: Time, by: float) -> Tensor:
    return (float64(t) + by * sde.t_max).clamp(max=sde.t_max)


def _without_the_first(density: Mixture) -> Mixture:
    return Mixture(_means(density)[1:], covariance=density.covariances[1:], weights=density.weights[1:])


def _heavier_first(density: Mixture) -> Mixture:
    factor = torch.ones_like(density.weights)
    factor[0] = 1.3
    return Mixture(_means(density), covariance=density.covariances, weights=density.weights * factor)


def _wider(density: Mixture) -> Mixture:
    return Mixture(_means(density), covariance=1.2 * density.covariances, weights=density.weights)


def _shifted(density: Mixture) -> Mixture:
    step = 0.3 * density.covariances.diagonal(dim1=1, dim2=2).mean().sqrt()
    return Mixture(_means(density) + step, covariance=density.covariances, weights=density.weights)


def _one_minus(exact: ExactScore, sde: Any, x: Tensor, t: Time) -> Tensor:
    """The noise prediction divided by √(1 - α²) whatever the process."""
    alpha = sde.alpha(t)
    return -exact.noise(x, t) / torch.sqrt(1 - alpha * alpha).clamp_min(1e-12).to(x.dtype)


def _batch_coupled(exact: ExactScore, sde: Any, x: Tensor, t: Time) -> Tensor:
    score = exact(x, t)
    size = score.reshape(len(x), -1).norm(dim=1)
    return score * (0.9 + 0.2 * size.mean() / (size.mean() + 1))


def _curled(exact: ExactScore, sde: Any, x: Tensor, t: Time) -> Tensor:
    score = exact(x, t)
    flat = score.reshape(len(x), -1)
    return score + 0.2 * flat.roll(1, 1).reshape(x.shape) * torch.linspace(-1, 1, flat.shape[1]).to(x).reshape(
        x[:1].shape
    )


def _sign(exact: ExactScore, sde: Any, x: Tensor, t: Time) -> Tensor:
    return exact.noise(x, t) / sde.sigma(t).to(x.dtype)


SCORES: tuple[Mutant, ...] = (
    Mutant("x1.1", "size", "The score is a tenth too large.", _spoilt(lambda s, sde, x, t: 1.1 * s(x, t))),
    Mutant("x0.95", "size", "The score is a twentieth too small.", _spoilt(lambda s, sde, x, t: 0.95 * s(x, t))),
    Mutant("Sign", "size", "s = ε/σ: the minus is missing.", _spoilt(_sign)),
    Mutant(
        "NoiseForScore", "size", "The noise prediction is handed on as the score.",
        _spoilt(lambda s, sde, x, t: -s.noise(x, t)),
    ),
    Mutant(
        "Twice", "size", "The noise prediction is divided by σ² instead of σ.",
        _spoilt(lambda s, sde, x, t: -s.noise(x, t) / sde.sigma(t).to(x.dtype) ** 2),
    ),
    Mutant(
        "OneMinusAlphaBar", "size", "s = -ε/√(1 - ᾱ) for a process, such as subVP, whose σ is another.", _spoilt(_one_minus)
    ),
    Mutant("DroppedMode", "law", "One mode of the data is missing.", _of(_without_the_first)),
    Mutant("HeavierMode", "law", "The weight of one mode is 1.3 times as large.", _of(_heavier_first)),
    Mutant("WiderModes", "law", "The variance of every mode is a fifth too large.", _of(_wider)),
    Mutant("ShiftedModes", "law", "All modes are shifted by a third of their width.", _of(_shifted)),
    Mutant(
        "StaleTime", "time", "The score is that of a time before, later by a hundredth of the clock.",
        _spoilt(lambda s, sde, x, t: s(x, _later(sde, t, 0.01))),
    ),
    Mutant(
        "DataScore", "time", "The score of the data is used at all times.",
        _spoilt(lambda s, sde, x, t: s.density.score(x)),
    ),
    Mutant(
        "ReversedTime", "time", "The score is asked at t_max - t.",
        _spoilt(lambda s, sde, x, t: s(x, (sde.t_max - float64(t)).clamp_min(sde.t_min + 1e-3 * sde.t_max))),
    ),
    Mutant(
        "CoarseTime", "time", "Times pass through bfloat16: three digits are left.",
        _spoilt(lambda s, sde, x, t: s(x, float64(t).bfloat16().double())),
    ),
    Mutant("BatchCoupled", "contract", "The score is scaled by a mean norm over the batch.", _spoilt(_batch_coupled)),
    Mutant("Curled", "contract", "A rotation is added: it is the gradient of nothing.", _spoilt(_curled)),
)  # fmt: skip
"""Scores that ``check_score`` must reject."""
