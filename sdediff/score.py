r"""Scores :math:`\nabla_x\log p_t(x)` and what they are equivalent to.

A score is called as ``score(x, t)``; ``score.noise(x, t)`` and ``score.data(x, t)`` are the same knowledge as a noise
and as a data prediction, ``score.split(x, t)`` both from one evaluation. Every one of these is one evaluation, counted
by :mod:`~sdediff.counting`. Networks become scores in :mod:`~sdediff.predictions`, densities in
:mod:`~sdediff.exact`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from . import counting
from .checks import Time, as_time, check_like, check_state, float64
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
    def translated(self, form: Form, x: Tensor, t: Tensor) -> tuple[Form, Any, Any]: ...


class Score(ABC):
    """A score in one of the forms of :mod:`~sdediff.forms`. Subclasses set ``form`` and write :meth:`predict`."""

    form: Form = ScoreForm()
    sde: Any = None
    """The linear process whose alpha and sigma translate between the forms; None for a bare score."""
    guidance: float = 1.0
    """The weight of guidance in it; solvers lower their order where it is strong."""
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
        form, p, alpha, sigma = self._evaluate(x, t, cond)
        return check_like(form.score(p, x, alpha, sigma), x, "the score")

    def noise(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        r"""The noise prediction :math:`\hat\epsilon = -\sigma s`; does not divide by alpha."""
        form, p, alpha, sigma = self._evaluate(x, t, cond)
        return check_like(form.noise(p, x, alpha, sigma), x, "the noise prediction")

    def data(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        r"""The data prediction :math:`\hat x_0 = (x + \sigma^2 s)/\alpha`; does not divide by sigma."""
        form, p, alpha, sigma = self._evaluate(x, t, cond)
        return check_like(form.data(p, x, alpha, sigma), x, "the data prediction")

    def split(self, x: Tensor, t: Time, cond: Any = None) -> tuple[Tensor, Tensor]:
        r"""(:math:`\hat x_0`, :math:`\hat\epsilon`) with :math:`x = \alpha\hat x_0 + \sigma\hat\epsilon`, one evaluation."""
        form, p, alpha, sigma = self._evaluate(x, t, cond)
        data, noise = form.data(p, x, alpha, sigma), form.noise(p, x, alpha, sigma)
        return check_like(data, x, "the data prediction"), check_like(noise, x, "the noise prediction")

    def along(self, times: Tensor, view: View | None = None) -> list[Callable[[Tensor], Tensor]]:
        """This score at each of these host times (float64) as functions of x: what a solver prepares before it steps.

        Args:
            times: (N,).
            view: what is wanted of it: ``Score.__call__`` (the default), ``Score.noise`` or ``Score.data``.
        """
        return self.combined(times, torch.zeros_like(times), torch.ones_like(times), view)

    def combined(
        self, times: Tensor, a: Tensor, b: Tensor, view: View | None = None
    ) -> list[Callable[[Tensor], Tensor]]:
        """x -> a x + b p(x) at each of these times, p a view as in :meth:`along`; a and b of shape (N,)."""
        each = zip(times.unbind(), a.tolist(), b.tolist(), strict=True)
        return [partial(_combined, view or Score.__call__, self, *at) for at in each]

    def to(self, sde: Schedule) -> Score:
        """This score for another linear process, without training it anew; see :class:`Moved`."""
        return Moved(self, sde)

    def rows(self, index: Tensor, batch: int) -> Score:
        """This score for the samples ``index`` (n,) of a batch alone, for a solver that goes on with some of them.

        By default what a wrapper keeps as ``score`` is asked; a score that holds something per sample overrides this.
        """
        wrapped = getattr(self, "score", None)
        part = wrapped.rows(index, batch) if isinstance(wrapped, Score) else wrapped
        if part is wrapped:
            return self
        bound = copy.copy(self)
        bound.score = part  # type: ignore[attr-defined]
        return bound

    def example(self, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What there is to learn from: x_t, and the target of this score's form, for x_0 and noise of one shape."""
        form, alpha, sigma = self._translated(x0, t)
        if isinstance(alpha, Tensor):
            alpha, sigma = alpha.to(x0.dtype), sigma.to(x0.dtype)
        return form.state(x0, noise, alpha, sigma), form.target(x0, noise, alpha, sigma)

    def _evaluate(self, x: Tensor, t: Time, cond: Any) -> tuple[Form, Any, Any, Any]:
        if self.sde is None and not isinstance(self.form, ScoreForm):
            raise ValueError(f"{type(self).__name__} has no process to translate its prediction with.")
        t = as_time(t, check_state(x), math.inf if self.sde is None else self.sde.t_max)
        form, alpha, sigma = self._translated(x, t)
        since = counting.calls()
        p = self.predict(x, t, cond)
        counting.seen(x.shape[0], since)
        return form, p, alpha, sigma

    def _translated(self, x: Tensor, t: Tensor) -> tuple[Form, Any, Any]:
        """This score's form, alpha and sigma as its process sees them."""
        return (self.form, Unknown(), Unknown()) if self.sde is None else self.sde.translated(self.form, x, t)


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
        self.form, self.sde, self.guidance = score.form, score.sde, score.guidance
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Any:
        """The score's own prediction under the condition."""
        return self.score.predict(x, t, self.cond if cond is None else cond)

    def to(self, sde: Schedule) -> Score:
        """The moved score under the same condition."""
        return Given(self.score.to(sde), self.cond)

    def rows(self, index: Tensor, batch: int) -> Score:
        """The score of these samples under their own conditions."""
        return Given(self.score.rows(index, batch), condition_rows(self.cond, index, batch))


class Moved(Score):
    r"""A score of one linear process, used for another.

    :math:`x = \alpha x_0 + \sigma\epsilon` depends on the process in its scale alone once :math:`\alpha/\sigma` is
    given. So the score's own process is asked at the time u of equal log-SNR about c x, with
    :math:`c = \alpha_u/\alpha_t = \sigma_u/\sigma_t`: data and noise predictions carry over as they are, and
    :math:`s_t(x) = c\,s_u(cx)`.

    Args:
        score: a score that knows its process.
        sde: the process to serve. Where its log-SNR leaves the range of the score's own process, the score knows
            nothing and evaluation is refused (on an accelerator, where times are not read back, it gives NaN).

    Raises:
        TypeError: ``sde`` is no linear process.
        ValueError: the score has no process.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, section 2 and appendix B.
    """

    def __init__(self, score: Score, sde: Schedule):
        if not isinstance(sde, Schedule):
            raise TypeError(f"A score moves to a LinearSDE, got {type(sde).__name__}.")
        if score.sde is None:
            raise ValueError("This score belongs to no process: name it, FunctionScore(function, sde).")
        if not isinstance(score.sde, Schedule):
            raise TypeError(f"A score of a {type(score.sde).__name__} does not move: its scales are matrices.")
        self.score, self.sde = score, sde
        self.form = score.form
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype
        self._range = float(score.sde.log_snr(score.sde.t_max)), float(score.sde.log_snr(0.0))
        self._known: dict[float, tuple[float, float]] = {}  # host times seen: a solver repeats its grid

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Any:
        """The score's own prediction at the equal log-SNR, brought to this process."""
        u, ratio = self._source(t)
        if ratio.ndim > 0:  # a 0-d value promotes nothing
            ratio = ratio.to(torch.promote_types(x.dtype, torch.float32))
        return self.form.moved(self.score.predict(ratio * x, u, cond), ratio)

    def _source(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The time of equal log-SNR and the ratio of the scales there, in float64."""
        if t.ndim > 0 or t.device.type != "cpu":
            return self._matched(float64(t))
        key = t.item()
        if key not in self._known:
            if len(self._known) >= 4096:  # an adaptive solver repeats nothing
                self._known.clear()
            u, ratio = self._matched(t)
            self._known[key] = u.item(), ratio.item()
        return tuple(torch.tensor(value, dtype=torch.float64) for value in self._known[key])  # type: ignore[return-value]

    def _matched(self, t: Tensor) -> tuple[Tensor, Tensor]:
        own, log_snr = self.score.sde, self.sde.log_snr(t)
        low, high = self._range
        outside = (log_snr < low - 1e-9 * abs(low)) | (log_snr > high + 1e-9 * abs(high))
        if t.device.type == "cpu" and bool(outside.any()):
            first = 0.0 if math.isinf(high) else float(self.sde.time_of(high))
            raise ValueError(
                f"{type(self.sde).__name__} has log-SNR {float(log_snr[outside][0]):.4g} at t = "
                f"{float(t[outside][0]):.4g}; this score knows {low:.4g} to {high:.4g}, the range of its own "
                f"{type(own).__name__}. Stay between t = {first:.4g} and {float(self.sde.time_of(low)):.4g}."
            )
        u = own.time_of(log_snr)
        # The norms of (alpha, sigma): a ratio of alphas alone, or of sigmas, is 0/0 at one end.
        ratio = torch.hypot(own.alpha(u), own.sigma(u)) / torch.hypot(self.sde.alpha(t), self.sde.sigma(t))
        return u, torch.where(outside, torch.nan, ratio)


class ClassifierFree(Score):
    r"""Classifier-free guidance, :math:`\hat\epsilon_\varnothing + w(\hat\epsilon_c - \hat\epsilon_\varnothing)`.

    Two evaluations of the score each time, and counted as two. A weight of 1 is the plain conditional score.

    Args:
        score: a score that takes ``cond=``.
        weight: w.
        null: the condition that stands for none.

    Source: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.
    """

    def __init__(self, score: Score, weight: float, null: Any):
        self.score, self.weight, self.null = score, weight, null
        self.form, self.sde, self.guidance = score.form, score.sde, weight
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The guided prediction, in the score's own form (all forms are affine in each other)."""
        if cond is None:
            raise ValueError("Guided sampling needs a condition: pass cond= to solve or sample.")
        null = self.null
        if isinstance(null, Tensor):
            null = null.to(x.device)
            null = null.expand(x.shape[0], *null.shape[1:]) if null.ndim else null.expand(x.shape[0])
        base = _counted(self.score, x, t, null)
        return base + self.weight * (_counted(self.score, x, t, cond) - base)


def _combined(view: View, score: Score, t: Tensor, a: float, b: float, x: Tensor) -> Tensor:
    p = view(score, x, t)
    if a == 0:
        return p if b == 1 else p * b
    return torch.add(x * a, p, alpha=b)


def _counted(score: Score, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    since = counting.calls()
    p = score.predict(x, t, cond)
    counting.seen(x.shape[0], since)
    return p


def condition_rows(cond: Any, index: Tensor | slice, batch: int) -> Any:
    """The part of a condition that belongs to these samples: tensors with one row per sample, in containers too."""
    if isinstance(cond, Tensor):
        return cond[index] if cond.ndim > 0 and cond.shape[0] == batch else cond
    if isinstance(cond, dict):
        return {key: condition_rows(value, index, batch) for key, value in cond.items()}
    if isinstance(cond, (list, tuple)):
        return type(cond)(condition_rows(value, index, batch) for value in cond)
    return cond


def as_score(score: Score | Callable[..., Tensor], sde: Schedule | None = None) -> Score:
    """``score`` itself if it is a :class:`Score`, else the function wrapped."""
    return score if isinstance(score, Score) else FunctionScore(score, sde)


View = Callable[..., Tensor]
"""One of ``Score.__call__``, ``Score.noise`` and ``Score.data``."""


class Unknown:
    """Stands for alpha and sigma of a score without a linear process; using it says what to do."""

    def _refuse(self, *_: object) -> Any:
        raise ValueError(
            "This score belongs to no linear process, so it has no noise or data prediction. Build it with one: "
            "FunctionScore(function, sde)."
        )

    __mul__ = __rmul__ = __neg__ = __truediv__ = __rtruediv__ = _refuse
    ndim = property(_refuse)
