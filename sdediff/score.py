r"""Scores :math:`\nabla_x\log p_t(x)` and what they are equivalent to.

A score is called as ``score(x, t)``; ``score.noise(x, t)`` and ``score.data(x, t)`` are the same knowledge as a noise
and as a data prediction, ``score.split(x, t)`` both from one evaluation. Every one of these is one evaluation, counted
by :mod:`~sdediff.counting`. Networks become scores in :mod:`~sdediff.predictions`, densities in
:mod:`~sdediff.exact`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from . import counting
from .checks import Time, as_time, check_like, check_state
from .forms import Form, ScoreForm


@runtime_checkable
class Schedule(Protocol):
    r"""What a linear Gaussian process knows of itself: :math:`x_t = \alpha_t x_0 + \sigma_t\epsilon`."""

    t_min: float
    t_max: float

    def alpha(self, t: Time) -> Tensor: ...
    def sigma(self, t: Time) -> Tensor: ...
    def log_snr(self, t: Time) -> Tensor: ...
    def time_of(self, log_snr: Time) -> Tensor: ...


class Score(ABC):
    """A score in one of the forms of :mod:`~sdediff.forms`. Subclasses set ``form`` and write :meth:`predict`."""

    form: Form = ScoreForm()
    sde: Any = None
    """The linear process whose alpha and sigma translate between the forms; None for a bare score."""
    event_shape: tuple[int, ...] | None = None
    device: Any = None
    dtype: torch.dtype | None = None

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Any:
        """The prediction, in this score's form, at x (B, *event) and t of shape () or (B, 1, ..., 1)."""

    def __call__(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        r""":math:`\nabla_x\log p_t(x)`, of x's shape and dtype.

        Args:
            x: states (B, *event).
            t: a number, (), (B,) or (B, 1, ..., 1).
            cond: a condition, passed to the score as it is.
        """
        p, alpha, sigma = self._evaluate(x, t, cond)
        return check_like(self.form.score(p, x, alpha, sigma), x, "the score")

    def noise(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        r"""The noise prediction :math:`\hat\epsilon = -\sigma s`; does not divide by alpha."""
        p, alpha, sigma = self._evaluate(x, t, cond)
        return check_like(self.form.noise(p, x, alpha, sigma), x, "the noise prediction")

    def data(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        r"""The data prediction :math:`\hat x_0 = (x + \sigma^2 s)/\alpha`; does not divide by sigma."""
        p, alpha, sigma = self._evaluate(x, t, cond)
        return check_like(self.form.data(p, x, alpha, sigma), x, "the data prediction")

    def split(self, x: Tensor, t: Time, cond: Any = None) -> tuple[Tensor, Tensor]:
        r"""(:math:`\hat x_0`, :math:`\hat\epsilon`) with :math:`x = \alpha\hat x_0 + \sigma\hat\epsilon`, one evaluation."""
        p, alpha, sigma = self._evaluate(x, t, cond)
        data, noise = self.form.data(p, x, alpha, sigma), self.form.noise(p, x, alpha, sigma)
        return check_like(data, x, "the data prediction"), check_like(noise, x, "the noise prediction")

    def along(self, times: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The score at each of these host times (float64) as a function of x: what a solver prepares before it steps."""
        return [partial(_score_at, self, t) for t in times.unbind()]

    def _evaluate(self, x: Tensor, t: Time, cond: Any) -> tuple[Any, Any, Any]:
        if self.sde is None:
            if not isinstance(self.form, ScoreForm):
                raise ValueError(f"{type(self).__name__} has no process to translate its prediction with.")
            t, alpha, sigma = as_time(t, check_state(x)), _Unknown(), _Unknown()
        else:
            t = as_time(t, check_state(x), self.sde.t_max)
            alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        since = counting.calls()
        p = self.predict(x, t, cond)
        counting.seen(x.shape[0], since)
        return p, alpha, sigma


class FunctionScore(Score):
    """A plain function ``score(x, t)``, or ``score(x, t, cond=...)``, as a score.

    Args:
        function: returns the score in x's shape.
        sde: the linear process, where noise and data predictions are wanted too.
    """

    def __init__(self, function: Callable[..., Tensor], sde: Schedule | None = None):
        if not callable(function):
            raise TypeError(f"score must be callable as score(x, t), got {type(function).__name__}.")
        self.function, self.sde = function, sde

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The function's value, checked to have x's shape."""
        return check_like(self.function(x, t) if cond is None else self.function(x, t, cond=cond), x, "the score")


class Given(Score):
    """A score with its condition filled in."""

    def __init__(self, score: Score, cond: Any):
        self.score, self.cond = score, cond
        self.form, self.sde = score.form, score.sde
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Any:
        """The score's own prediction under the condition."""
        return self.score.predict(x, t, self.cond if cond is None else cond)


class ClassifierFree(Score):
    r"""Classifier-free guidance: :math:`\hat\epsilon = \hat\epsilon_\varnothing + w(\hat\epsilon_c - \hat\epsilon_\varnothing)`.

    Two evaluations of the score each time, and counted as two. A weight of 1 is the plain conditional score.

    Args:
        score: a score that takes ``cond=``.
        weight: w.
        null: the condition that stands for none.

    Source: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.
    """

    def __init__(self, score: Score, weight: float, null: Any):
        self.score, self.weight, self.null = score, weight, null
        self.form, self.sde = score.form, score.sde
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The guided prediction, in the score's own form (all forms are affine in each other)."""
        if cond is None:
            raise ValueError("Guided sampling needs a condition: pass cond= to solve or sample.")
        null = self.null
        if isinstance(null, Tensor):
            null = null.to(x.device).expand(x.shape[0], *null.shape[1:]) if null.ndim else null.expand(x.shape[0])
        base = _counted(self.score, x, t, null)
        return base + self.weight * (_counted(self.score, x, t, cond) - base)


def _score_at(score: Score, t: Tensor, x: Tensor) -> Tensor:
    return score(x, t)


def _counted(score: Score, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    since = counting.calls()
    p = score.predict(x, t, cond)
    counting.seen(x.shape[0], since)
    return p


def as_score(score: Score | Callable[..., Tensor], sde: Schedule | None = None) -> Score:
    """``score`` itself if it is a :class:`Score`, else the function wrapped."""
    return score if isinstance(score, Score) else FunctionScore(score, sde)


class _Unknown:
    """Stands for alpha and sigma of a score without a process; using it says what to do."""

    def _refuse(self, *_: object) -> Any:
        raise ValueError(
            "This score belongs to no linear process, so it has no noise or data prediction. Build it with one: "
            "FunctionScore(function, sde)."
        )

    __mul__ = __rmul__ = __neg__ = __truediv__ = __rtruediv__ = _refuse
    ndim = property(_refuse)
