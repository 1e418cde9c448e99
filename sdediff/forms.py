r"""What a network may predict, and how each prediction becomes a score, a noise and a data prediction.

With :math:`x_t = \alpha x_0 + \sigma\epsilon` the five usual targets say the same thing:

.. math:: s = -\hat\epsilon/\sigma, \qquad x = \alpha\hat x_0 + \sigma\hat\epsilon, \qquad
          v = \alpha\hat\epsilon - \sigma\hat x_0, \qquad u = \hat\epsilon - \hat x_0 .

Each form divides by no more than it must: data from a noise prediction needs :math:`\alpha \ne 0`, noise from a data
prediction :math:`\sigma \ne 0`, the two velocities neither. All are affine in the prediction, so that the value at
p = 1, x = 0 is the factor by which an error of the prediction becomes an error of the score, the noise or the data.

Where :math:`\alpha` and :math:`\sigma` are matrices, :math:`x_t = \Phi x_0 + c + R\epsilon`
(:mod:`~sdediff.affine.scales`), a matrix and its transpose differ and a form is asked for its ``coupled()``.

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Salimans and Ho 2022, https://arxiv.org/abs/2202.00512;
Lipman et al. 2023, https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Form(ABC):
    """One parameterisation. ``p`` is the prediction, ``alpha`` and ``sigma`` broadcast against ``x``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a base says with matrices is not what a subclass says that means something else by its prediction.
        if "coupled" not in vars(cls) and vars(cls).keys() & {"score", "noise", "data", "target", "state"}:
            cls.coupled = Form.coupled  # type: ignore[method-assign]

    @abstractmethod
    def score(self, p: Any, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The score from the prediction."""

    @abstractmethod
    def noise(self, p: Any, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The predicted noise, E[eps | x_t]."""

    @abstractmethod
    def data(self, p: Any, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The predicted data, E[x_0 | x_t]."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What a network in this form learns, by least squares, from x_0 and eps."""

    def state(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_t from x_0 and eps."""
        return alpha * x0 + sigma * noise

    @abstractmethod
    def moved(self, p: Any, ratio: Tensor) -> Any:
        """The prediction made of ``ratio * x``, as a prediction of x where alpha and sigma are smaller by ``ratio``."""

    def coupled(self) -> Form:
        """The form that says the same where alpha and sigma are one :class:`~sdediff.affine.Scales` of matrices.

        Raises:
            TypeError: this form takes them for numbers, as every form does that says nothing else.
        """
        raise TypeError(
            f"{type(self).__name__} mixes alpha and sigma, which are matrices here: use NoisePrediction, DataPrediction or "
            "ScorePrediction, or give a form of your own a method coupled()."
        )


class NoiseForm(Form):
    """The prediction is the noise."""

    def score(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -p / sigma

    def noise(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return p

    def data(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * p) / _nonzero(alpha, "a noise prediction")

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def moved(self, p: Tensor, ratio: Tensor) -> Tensor:
        return p

    def coupled(self) -> Form:
        return CoupledNoise()


class DataForm(Form):
    """The prediction is the data, the posterior mean of x_0."""

    def score(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * p - x) / (sigma * sigma)

    def noise(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - alpha * p) / sigma

    def data(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return p

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def moved(self, p: Tensor, ratio: Tensor) -> Tensor:
        return p

    def coupled(self) -> Form:
        return CoupledData()


class VelocityForm(Form):
    r"""The prediction is :math:`v = \alpha\epsilon - \sigma x_0`."""

    def score(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -self.noise(p, x, alpha, sigma) / sigma

    def noise(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma * x + alpha * p) / (alpha * alpha + sigma * sigma)

    def data(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x - sigma * p) / (alpha * alpha + sigma * sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x0

    def moved(self, p: Tensor, ratio: Tensor) -> Tensor:
        return p / ratio


class DifferenceForm(Form):
    r"""The prediction is :math:`\epsilon - x_0`, the velocity of the straight path from data to noise."""

    def score(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -self.noise(p, x, alpha, sigma) / sigma

    def noise(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x + alpha * p) / (alpha + sigma)

    def data(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * p) / (alpha + sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0

    def moved(self, p: Tensor, ratio: Tensor) -> Tensor:
        return p


class ScoreForm(Form):
    """The prediction is the score itself."""

    def score(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return p

    def noise(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -sigma * p

    def data(self, p: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x + sigma * sigma * p) / _nonzero(alpha, "a score")

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -noise / sigma

    def moved(self, p: Tensor, ratio: Tensor) -> Tensor:
        return ratio * p

    def coupled(self) -> Form:
        return CoupledScore()


class Coupled(Form):
    """A form where scales are matrices: ``alpha`` is a :class:`~sdediff.affine.Scales`, and ``sigma`` the same one."""

    def state(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return alpha.mean(x0) + alpha.spread(noise)

    def moved(self, p: Any, ratio: Tensor) -> Any:
        raise TypeError("The scores of coupled processes differ by more than a scale: none moves to another process.")


class CoupledNoise(Coupled):
    """The prediction is the noise."""

    def score(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return -alpha.pull(p)

    def noise(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return p

    def data(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return alpha.data(x - alpha.spread(p))

    def target(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return noise


class CoupledData(Coupled):
    """The prediction is the data, as a state."""

    def score(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return -alpha.pull(self.noise(p, x, alpha, sigma))

    def noise(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return alpha.whiten(x - alpha.mean(p))

    def data(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return p

    def target(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return x0


class CoupledScore(Coupled):
    """The prediction is the score itself."""

    def score(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return p

    def noise(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return -alpha.push(p)

    def data(self, p: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return alpha.data(x + alpha.spread(alpha.push(p)))

    def target(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return -alpha.pull(noise)


def _nonzero(alpha: Tensor, what: str) -> Tensor:
    if alpha.device.type == "cpu" and bool((alpha == 0).any()):  # elsewhere a look would stall the device
        raise ValueError(
            f"alpha(t) = 0 at this time: {what} says nothing of the data there. Use "
            "DataPrediction, VelocityPrediction or FlowPrediction, or start a little below t_max."
        )
    return alpha
