r"""Denoising score matching.

.. math:: L = \mathbb E_{t, x_0, \epsilon}\; w(t)\,\tfrac1D\,|\mathrm{target} - F_\theta(x_t, t)|^2, \qquad
          x_t = \alpha x_0 + \sigma\epsilon ,

whose minimiser is the conditional mean of the target given x_t: the score, in the form that the network predicts.

Source: Vincent 2011, https://doi.org/10.1162/NECO_a_00142; Ho et al. 2020, https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import as_time, check_state
from ..score import Score
from .draws import Draws, drawn
from .pairing import Pairing
from .times import Times, Uniform
from .weightings import Simple, Weighting


class Loss(Protocol):
    """What a :class:`~sdediff.training.Trainer` trains with: :class:`DenoisingLoss`, or a dataclass of your own."""

    @property
    def score(self) -> Any:
        """The score to be trained, an ``nn.Module``; ``dataclasses.replace(loss, score=...)`` is the loss of another."""

    @property
    def stratified(self) -> bool:
        """Whether the quantiles of time are to be one in each of B strata."""

    def per_sample(self, x0: Tensor, cond: Tensor | None = None, *, draws: Draws) -> Tensor:
        """The loss of each sample, (B,), a function of the draws."""


@dataclass(frozen=True)
class DenoisingLoss:
    """The denoising loss of a score on a batch.

    Args:
        score: one of :mod:`~sdediff.predictions`, or any score that knows its process and form.
        weighting: w(t); see :mod:`~sdediff.training.weightings`.
        times: the law of t; see :mod:`~sdediff.training.times`.
        stratified: draw one time in each of B equal parts of that law, which lowers the variance; else independently.
        drop_cond: the probability with which a sample's condition is replaced by ``null``, for classifier-free
            guidance.
        null: the condition that stands for none, of shape () or that of one condition; by default the network's
            attribute ``null``.
        pairing: which noise goes with which data; by default as drawn, independently.
            :class:`~sdediff.training.OptimalTransport` is for flow matching, ``FlowPrediction(RectifiedFlow(), net)``.

    Raises:
        TypeError, ValueError: the score has no process, or conditions are to be dropped and nothing stands for none.
    """

    score: Score
    weighting: Weighting = field(default_factory=Simple)
    times: Times = field(default_factory=Uniform)
    stratified: bool = True
    drop_cond: float = 0.0
    null: Tensor | None = None
    pairing: Pairing | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.score, Score):
            raise TypeError(
                f"DenoisingLoss needs a score such as NoisePrediction(sde, net), got {type(self.score).__name__}."
            )
        if self.score.sde is None:
            raise ValueError("This score belongs to no process, so there is no noise to predict.")
        if not 0 <= self.drop_cond <= 1:
            raise ValueError(f"drop_cond = {self.drop_cond} is a probability, from 0 to 1.")
        if self.drop_cond > 0 and self._null() is None:
            raise ValueError("drop_cond needs a condition that stands for none: give null=, e.g. torch.tensor(10).")

    def __call__(self, x0: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean loss over x0 (B, *event) with conditions (B, ...), a 0-d tensor."""
        return self.per_sample(x0, cond, generator=generator).mean()

    def per_sample(
        self,
        x0: Tensor,
        cond: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """The loss of each sample, (B,).

        Args:
            x0: the data (B, *event).
            cond: their conditions (B, ...).
            generator: for times, noise and dropped conditions, in this order.
            draws: these instead, where the caller drew them.
        """
        check_state(x0, "x0")
        if draws is None:
            draws = drawn(x0, generator, stratified=self.stratified)
        if cond is not None and self.drop_cond > 0:
            cond = self._dropped(cond, draws.drop < self.drop_cond)
        noise = draws.noise if self.pairing is None else self.pairing(x0, draws.noise)
        t = as_time(self.times(self.score.sde, draws.quantile), x0, self.score.sde.t_max)
        return self._weighted(x0, t, noise, cond, self._weight(t))

    def at(self, x0: Tensor, t: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
        """The loss of each sample, (B,), at times t (B,) and for noise of x0's shape.

        Raises:
            ValueError: the weighting is infinite at one of them (seen on the host only).
        """
        t = as_time(t, x0, self.score.sde.t_max)
        weight = self._weight(t)
        if weight.device.type == "cpu" and not bool(torch.isfinite(weight).all()):
            first = float(t.reshape(-1)[~torch.isfinite(weight).expand(t.numel())][0])
            raise ValueError(
                f"The weight of the loss at t = {first:g} is not finite: ask at times where it is, such as t_min = "
                f"{self.score.sde.t_min:g}, or choose another weighting."
            )
        return self._weighted(x0, t, noise, cond, weight)

    def _weight(self, t: Tensor) -> Tensor:
        """What the squared errors at t are multiplied by, (B,) or (1,)."""
        return (self.weighting(self.score, t) * self.times.weight(self.score.sde, t)).reshape(-1)

    def _weighted(self, x0: Tensor, t: Tensor, noise: Tensor, cond: Any, weight: Tensor) -> Tensor:
        dtype = torch.promote_types(x0.dtype, torch.float32)
        state, target = self.score.example(x0.to(dtype), t, noise)
        error = self.score.predict(state, t, cond).to(dtype) - target
        return weight.to(dtype) * error.square().reshape(len(x0), -1).mean(1)

    def _null(self) -> Tensor | None:
        return getattr(getattr(self.score, "net", None), "null", None) if self.null is None else self.null

    def _dropped(self, cond: Tensor, drop: Tensor) -> Tensor:
        null = torch.as_tensor(self._null()).to(cond.device, cond.dtype)
        return torch.where(drop.to(cond.device).reshape(-1, *[1] * (cond.ndim - 1)), null, cond)
