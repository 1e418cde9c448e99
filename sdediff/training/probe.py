r"""What a training computes, in a few numbers: to tell two trainings apart whose difference is in code.

A process made of functions, a class of one's own and a weighting that is a lambda have no arguments to compare; what they
give at a few times has. A process is seen through its kernel and its noise, on one state a and through the signs of a,

.. math:: \frac{\langle\operatorname{sign}a,\ M_t a\rangle}{\langle\operatorname{sign}a,\ a\rangle}, \qquad
          M_t = \alpha_t,\ \sigma_t,\ GG^\top(t),

which is the number itself where scales are numbers. All are rounded to six digits: machines differ in the last ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sde import Linear
from .losses import DenoisingLoss, Loss
from .plan import Plan

_COUNT = 16
_INNER = (torch.arange(_COUNT, dtype=torch.float64) + 0.5) / _COUNT  # no ends, where scales may be infinite


def probed(plan: Plan, loss: Loss, event_shape: Sequence[int]) -> dict[str, Any]:
    """The learning rate, and of a :class:`DenoisingLoss` the times, the weight and the process, as JSON.

    Args:
        plan, loss: of the training.
        event_shape: the shape of one sample of its data.
    """
    steps = [plan.steps * k // _COUNT for k in range(_COUNT)]
    found = {"rate": _table("step", steps, torch.tensor([plan.rate(step) for step in steps]))}
    if not isinstance(loss, DenoisingLoss):
        return found
    with torch.no_grad():
        return found | _weighed(loss, event_shape) | {"process": _process(loss.score.sde, event_shape)}


def _weighed(loss: DenoisingLoss, event_shape: Sequence[int]) -> dict[str, Any]:
    """The times at a few quantiles, and what the squared error is multiplied by there."""
    sde = loss.score.sde
    times = loss.times(sde, _INNER)
    t = times.to(loss.score.device, torch.float32).reshape(-1, *[1] * len(event_shape))  # every device has float32
    weight = torch.as_tensor(loss.weighting(loss.score, t) * loss.times.weight(sde, t)).cpu().reshape(-1)
    at = _INNER.tolist()
    return {"times": _table("u", at, times), "weight": _table("u", at, weight.expand(_COUNT))}


def _process(sde: Any, event_shape: Sequence[int]) -> dict[str, Any]:
    """alpha, sigma and g² at a few times; nothing for a process without a kernel."""
    if not isinstance(sde, Linear):
        return {}
    a = torch.randn(1, *event_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = (sde.t_max * _INNER).tolist()
    zero = torch.zeros_like(a)

    def seen(states: Iterable[Tensor]) -> dict[str, str]:
        return _table("t", times, torch.stack([(a.sign() * state).sum() for state in states]) / a.abs().sum())

    return {
        "clock": [sde.t_min, sde.t_max],
        "alpha": seen(sde.perturb(a, t, zero) for t in times),
        "sigma": seen(sde.perturb(zero, t, a) for t in times),
        "g²": seen(sde.diffusion(zero, t).gram(a) for t in times),
    }


def _table(name: str, places: Sequence[float], values: Tensor) -> dict[str, str]:
    """Values by the place they belong to, as text, since JSON has no infinity."""
    return {f"{name}={place:.6g}": f"{value:.6g}" for place, value in zip(places, values.tolist(), strict=True)}
