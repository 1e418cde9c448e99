r"""Thresholding: keeping the data prediction where data can be.

Strong guidance drives :math:`\hat x_0` out of the range of the data, and high-order solvers amplify it. Static thresholding
clips the data prediction to a range; dynamic thresholding first finds each sample's quantile q of \|x̂₀\|, clips there and,
where q exceeds the limit, scales back to it.

Source: Saharia et al. 2022, https://arxiv.org/abs/2205.11487, section 2.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .forms import DataForm
from .score import Score


class Thresholded(Score):
    """A score whose data prediction is kept within a range.

    Args:
        score: a score of a linear process.
        limit: the largest absolute value of a coordinate of the data.
        quantile: for dynamic thresholding, the quantile of the coordinates' absolute values, such as 0.995; None clips.

    Raises:
        ValueError: the limit is not positive, or the quantile is outside (0, 1].
    """

    form = DataForm()

    def __init__(self, score: Score, limit: float, *, quantile: float | None = None):
        if not limit > 0:
            raise ValueError(f"limit = {limit} must be positive.")
        if quantile is not None and not 0 < quantile <= 1:
            raise ValueError(f"quantile = {quantile} must lie in (0, 1].")
        self.score, self.limit, self.quantile = score, limit, quantile
        self.sde, self.guidance = score.sde, score.guidance
        self.event_shape, self.device, self.dtype = score.event_shape, score.device, score.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The data prediction, thresholded."""
        data = self.score.data(x, t, cond=cond)
        if self.quantile is None:
            return data.clamp(-self.limit, self.limit)
        size = data.abs().reshape(data.shape[0], -1).float().quantile(self.quantile, dim=1)
        bound = size.clamp_min(self.limit).to(data.dtype).reshape(-1, *([1] * (data.ndim - 1)))
        return torch.minimum(torch.maximum(data, -bound), bound) * (self.limit / bound)
