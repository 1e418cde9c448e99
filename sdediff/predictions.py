r"""Networks as scores.

A network ``net(x, t)`` is trained to predict one of several equivalent quantities (:mod:`~sdediff.forms`). Wrapped with
the process it was trained for, it is a :class:`~sdediff.score.Score`:

.. math:: s = -\hat\epsilon/\sigma = (\alpha\hat x_0 - x)/\sigma^2 , \qquad
          v = \alpha\hat\epsilon - \sigma\hat x_0 , \qquad u = \hat\epsilon - \hat x_0 .

:math:`\sigma` is the process's own, so for VP :math:`s = -\hat\epsilon/\sqrt{1-\bar\alpha}`. Which one to train: noise or
velocity for VP; velocity, flow or data where :math:`\alpha` reaches 0 (there a noise prediction is x itself and says
nothing of the data); :class:`Preconditioned` where :math:`\sigma` ranges over orders of magnitude (VE, EDM).

A wrapper is also an ``nn.Module``: it has parameters, a state dict and ``train()``, and ``score.to("cuda")`` or
``score.to(torch.bfloat16)`` move the network, while ``score.to(other_sde)`` moves the score to another process. Schedules
stay in float32 or better, whatever the network computes in.

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Salimans and Ho 2022, https://arxiv.org/abs/2202.00512;
Karras et al. 2022, https://arxiv.org/abs/2206.00364; Lipman et al. 2023, https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import Time, check_like, per_sample
from .derived import as_linear
from .forms import DataForm, DifferenceForm, NoiseForm, ScoreForm, VelocityForm
from .linear import LinearSDE
from .score import Score
from .sde import SDE


class Networked(Score, nn.Module):
    """A score that a network computes, of any SDE: its device and dtype, and how the network is asked.

    Args:
        net: a module called as ``net(x, t)``, or ``net(x, t, cond)`` where a condition is given, with x (B, *event)
            in the dtype of its parameters, t (B,) in that too but at least float32, and cond as the caller gave it. It
            returns x's shape. A network in half precision computes its time features in t's dtype and rounds them afterwards.
        event_shape: the shape of one state, where the network has no attribute ``event_shape`` to tell it.

    Raises:
        TypeError: ``net`` is no module.
        ValueError: on evaluation, the network returned another shape than x's.
    """

    def __init__(self, net: nn.Module, event_shape: Sequence[int] | None = None):
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net must be a torch.nn.Module, got {type(net).__name__}. A plain function that returns the score is "
                "FunctionScore(function, sde)."
            )
        self.net = net
        shape = getattr(net, "event_shape", None) if event_shape is None else event_shape
        self.event_shape = None if shape is None else tuple(shape)

    @property
    def device(self) -> torch.device | None:  # type: ignore[override]
        """The device of the network's parameters; None if it has none."""
        parameter = next(self.net.parameters(), None)
        return None if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype | None:  # type: ignore[override]
        """The dtype for states: the network's, but at least float32."""
        own = self._precision()
        return None if own is None else torch.promote_types(own, torch.float32)

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The network's output, of x's shape, in x's dtype or float32."""
        return self._ask(x, per_sample(t, x), cond)

    def forward(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        """The score; the same as calling it."""
        return self(x, t, cond)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """``to(device)``, ``to(dtype)`` and the like move the network, as for any module; ``to(sde)`` gives this
        score for another linear process (:class:`~sdediff.score.Moved`), on the same network."""
        if len(args) == 1 and not kwargs and isinstance(args[0], SDE):
            return Score.to(self, args[0])  # type: ignore[arg-type]
        return nn.Module.to(self, *args, **kwargs)

    def _ask(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        dtype = self._precision()
        own, at = (x, t) if dtype is None else (x.to(dtype), t.to(self.dtype))
        out = self.net(own, at) if cond is None else self.net(own, at, cond)
        out = check_like(out, own, f"The network {type(self.net).__name__}")
        return out.to(torch.promote_types(x.dtype, torch.float32))

    def _precision(self) -> torch.dtype | None:
        return next((p.dtype for p in self.net.parameters() if p.dtype.is_floating_point), None)


class NetworkScore(Networked):
    """A network as a score; subclasses say by ``form`` what it predicts.

    Args:
        sde: the process of the training: a :class:`~sdediff.LinearSDE`, an :class:`~sdediff.AffineSDE`, or any SDE that
            :func:`~sdediff.as_linear` finds to be one. States of a coupled process may be more than data; train on
            ``sde.lift(data)``.
        net, event_shape: as in :class:`Networked`.

    Raises:
        TypeError: ``sde`` is no linear process or ``net`` no module.
        ValueError: on evaluation, the network returned another shape than x's.
    """

    def __init__(self, sde: LinearSDE, net: nn.Module, *, event_shape: Sequence[int] | None = None):
        if not isinstance(sde, SDE):
            raise TypeError(
                f"{type(self).__name__} needs a LinearSDE, or an SDE that as_linear finds to be linear, got "
                f"{type(sde).__name__}: its scales translate the prediction. The order of the arguments is (sde, net)."
            )
        super().__init__(net, event_shape)
        self.sde: Any = as_linear(sde, self.event_shape)
        if not isinstance(self.sde, LinearSDE):
            self._check_coupled()

    def _check_coupled(self) -> None:
        """Raise unless this prediction has a meaning where scales are matrices."""
        self.form.coupled()


class NoisePrediction(NetworkScore):
    r"""The network predicts the noise: :math:`s = -\hat\epsilon/\sigma`. Takes the arguments of :class:`NetworkScore`."""

    form = NoiseForm()


class DataPrediction(NetworkScore):
    r"""The network predicts the data: :math:`s = (\alpha\hat x_0 - x)/\sigma^2`.

    Takes the arguments of :class:`NetworkScore`.
    """

    form = DataForm()


class VelocityPrediction(NetworkScore):
    r"""The network predicts :math:`v = \alpha\epsilon - \sigma x_0`. Takes the arguments of :class:`NetworkScore`.

    On a rectified flow this is not the velocity of the flow; that one is :class:`FlowPrediction`.
    """

    form = VelocityForm()


class FlowPrediction(NetworkScore):
    r"""The network predicts :math:`u = \epsilon - x_0`, the velocity of the straight path from data to noise.

    That is what flow-matching networks learn, with :class:`~sdediff.RectifiedFlow` as their process; where theirs has
    data at t = 1, their output is -u at 1 - t. Takes the arguments of :class:`NetworkScore`.
    """

    form = DifferenceForm()


class ScorePrediction(NetworkScore):
    """The network predicts the score itself. Takes the arguments of :class:`NetworkScore`.

    Train it with :class:`~sdediff.training.NoiseError` or :class:`~sdediff.training.Likelihood` as weighting: the plain
    error of a score is dominated by the smallest times.
    """

    form = ScoreForm()


class Preconditioned(NetworkScore):
    r"""EDM's preconditioning for any linear process: a data prediction with unit-variance inputs and targets.

    With :math:`\tilde x = x/\alpha` and :math:`\tilde\sigma = \sigma/\alpha`,

    .. math:: \hat x_0 = c_{skip}\tilde x + c_{out}F(c_{in}\tilde x, c_{noise}), \quad
              c_{skip} = \frac{\sigma_d^2}{\tilde\sigma^2+\sigma_d^2}, \quad
              c_{out} = \frac{\tilde\sigma\sigma_d}{\sqrt{\tilde\sigma^2+\sigma_d^2}}, \quad
              c_{in} = \frac1{\sqrt{\tilde\sigma^2+\sigma_d^2}},

    computed without dividing by alpha. The network's time is :math:`c_{noise} = \tfrac14\log\tilde\sigma`, the same for
    all processes; :math:`\tilde\sigma` is held within :math:`\sigma_d e^{\pm10}` there, to be finite at both ends. Train
    with :class:`~sdediff.training.Karras` as weighting, which gives F targets of equal weight.

    Args:
        sde, net, event_shape: as in :class:`NetworkScore`.
        sigma_data: :math:`\sigma_d`, the standard deviation of the data: 1 when standardised, 0.5 in EDM for images.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 7 and table 1.
    """

    form = DataForm()

    def __init__(self, sde: LinearSDE, net: nn.Module, *, sigma_data: float, event_shape: Sequence[int] | None = None):
        super().__init__(sde, net, event_shape=event_shape)
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data = {sigma_data} must be positive: the standard deviation of the data.")
        self.sigma_data = float(sigma_data)

    def _check_coupled(self) -> None:
        raise TypeError(
            "Preconditioned needs a process with one alpha and one sigma: use NoisePrediction or DataPrediction here."
        )

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The data prediction."""
        alpha, sigma, sd = self.sde.alpha(t), self.sde.sigma(t), self.sigma_data
        norm = torch.hypot(sigma, alpha * sd)
        c_in, c_skip, c_out = (_beside(c, x) for c in (1 / norm, alpha * sd * sd / (norm * norm), sigma * sd / norm))
        centre = math.log(sd)
        c_noise = 0.25 * torch.log(sigma / alpha).clamp(centre - 10, centre + 10)
        return c_skip * x + c_out * self._ask(c_in * x, per_sample(c_noise, x), cond)


def _beside(c: Tensor, x: Tensor) -> Tensor:
    """A coefficient in x's dtype or float32, so that it does not lift x to float64; 0-d values do not anyway."""
    return c if c.ndim == 0 else c.to(torch.promote_types(x.dtype, torch.float32))
