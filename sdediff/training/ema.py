r"""Exponential moving averages of weights.

.. math:: \bar\theta_n = \gamma_n\bar\theta_{n-1} + (1-\gamma_n)\theta_n, \qquad
          \gamma_n = \min\Bigl(\gamma, \frac{1+n}{10+n}\Bigr), \qquad \bar\theta_0 = \theta_0 .

The rising :math:`\gamma_n` forgets the random start, which a constant one would still carry after a short training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float = 0.999) -> AveragedModel:
    r"""A copy of ``model`` that averages: ``ema.update_parameters(model)`` after each step, ``ema.module`` the result.

    Args:
        model: the model in training. Its buffers are copied, not averaged.
        decay: :math:`\gamma`, in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"The decay of a moving average lies in [0, 1), got {decay}.")
    return _Averaged(model, decay)


class _Averaged(AveragedModel):
    """torch's averaged model, with the tensors looked up once: to walk through the modules costs more than to average."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay
        self._found: tuple[Any, ...] = (
            None,
        )  # a model, and its tensors beside ours; a tuple, not to become a submodule

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of ``model``, which is of the same kind, into the average."""
        if self._found[0] is not model:
            buffers = list(zip(self.module.buffers(), model.buffers(), strict=True))
            self._found = model, list(self.module.parameters()), list(model.parameters()), buffers
        _, own, new, buffers = self._found
        n = int(self.n_averaged)
        # At n = 0 the average is a copy whatever it was, also where the model was changed since it was made.
        torch._foreach_lerp_(own, new, 1.0 if n == 0 else 1 - min(self.decay, (1 + n) / (10 + n)))
        for kept, value in buffers:
            kept.copy_(value)
        self.n_averaged += 1
