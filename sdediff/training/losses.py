r"""Denoising score matching.

.. math:: L = \mathbb E_{t, x_0, \epsilon}\; w(t)\,\tfrac1D\,|\mathrm{target} - F_\theta(x_t, t)|^2, \qquad
          x_t = \alpha x_0 + \sigma\epsilon ,

whose minimiser is the conditional mean of the target given x_t: the score, in the form that the network predicts.

Source: Vincent 2011, https://doi.org/10.1162/NECO_a_00142; Ho et al. 2020, https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks import as_time, check_state, float64
from ..score import Score
from .times import Times, Uniform
from .weightings import Simple, Weighting


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

    Raises:
        TypeError, ValueError: the score has no process, or conditions are to be dropped and nothing stands for none.
    """

    score: Score
    weighting: Weighting = field(default_factory=Simple)
    times: Times = field(default_factory=Uniform)
    stratified: bool = True
    drop_cond: float = 0.0
    null: Tensor | None = None

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

    def per_sample(self, x0: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of each sample, (B,). Times, noise and dropped conditions come from ``generator``, in this order."""
        batch = len(check_state(x0, "x0"))
        u = float64(_random(torch.rand, (batch,), x0, generator))
        if self.stratified:
            u = (u + torch.arange(batch, device=u.device)) / batch
        noise = _random(torch.randn, x0.shape, x0, generator)
        if cond is not None and self.drop_cond > 0:
            cond = self._dropped(cond, _random(torch.rand, (batch,), x0, generator) < self.drop_cond)
        return self.at(x0, self.times(self.score.sde, u), noise, cond)

    def at(self, x0: Tensor, t: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
        """The loss of each sample, (B,), at times t (B,) and for noise of x0's shape."""
        sde, form = self.score.sde, self.score.form
        t = as_time(t, x0, sde.t_max)
        dtype = torch.promote_types(x0.dtype, torch.float32)
        alpha, sigma = sde.alpha(t).to(dtype), sde.sigma(t).to(dtype)
        target = form.target(x0, noise, alpha, sigma)
        error = self.score.predict(alpha * x0 + sigma * noise, t, cond).to(dtype) - target
        weight = self.weighting(self.score, t).reshape(-1).to(dtype)
        return weight * error.square().reshape(len(x0), -1).mean(1)

    def _null(self) -> Tensor | None:
        return getattr(getattr(self.score, "net", None), "null", None) if self.null is None else self.null

    def _dropped(self, cond: Tensor, drop: Tensor) -> Tensor:
        null = torch.as_tensor(self._null()).to(cond.device, cond.dtype)
        return torch.where(drop.to(cond.device).reshape(-1, *[1] * (cond.ndim - 1)), null, cond)


def _random(draw: Any, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers beside ``like``; a host generator serves every device (and the meta device takes none)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if like.device.type == "meta":
        return draw(shape, device="meta", dtype=dtype)
    device = like.device if generator is None else generator.device
    return draw(shape, generator=generator, device=device, dtype=dtype).to(like.device)
