r"""Exponential moving averages of weights.

.. math:: \bar\theta_n = \gamma_n\bar\theta_{n-1} + (1-\gamma_n)\theta_n, \qquad
          \gamma_n = \min\Bigl(\gamma, \frac{1+n}{10+n}\Bigr), \qquad \bar\theta_0 = \theta_0 .

The rising :math:`\gamma_n` forgets the random start, which a constant one would still carry after a short training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float = 0.999) -> AveragedModel:
    r"""A copy of ``model`` that averages: ``ema.update_parameters(model)`` after each step, ``ema.module`` the result.

    Args:
        model: the model in training. Its buffers are copied, not averaged.
        decay: :math:`\gamma`, in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"The decay of a moving average lies in [0, 1), got {decay}.")
    return AveragedModel(model, multi_avg_fn=_update(decay))


def _update(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(average: list[Any], current: list[Any], n: Tensor | int) -> None:
        rate = min(decay, (1 + float(n)) / (10 + float(n)))
        torch._foreach_lerp_(average, current, 1 - rate)

    return update
