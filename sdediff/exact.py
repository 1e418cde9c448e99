"""The exact score of a density under a linear SDE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import counting
from .checks import Time, as_time
from .densities import Density, Mixture
from .densities.base import Posterior
from .forms import Form
from .linear import LinearSDE
from .score import Score, View


class _Exact(Form):
    """The prediction is the posterior itself, which answers each question directly."""

    def score(self, p: Posterior, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return p.score()

    def noise(self, p: Posterior, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return p.noise()

    def data(self, p: Posterior, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return p.data()

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise ValueError("An exact score is not trained.")

    def moved(self, p: Posterior, ratio: Tensor) -> Posterior:
        raise ValueError("Move an exact score with score.to(sde), which asks its density anew.")


class ExactScore(Score):
    r"""The score of :math:`x_t = \alpha x_0 + \sigma\epsilon`, :math:`x_0 \sim` ``density``, in closed form.

    Args:
        sde: a linear process.
        density: a :class:`~sdediff.densities.Mixture` or :class:`~sdediff.densities.Empirical` density.

    Raises:
        NotImplementedError: on evaluation, for a density that has no closed form under the process.
    """

    form = _Exact()

    def __init__(self, sde: LinearSDE, density: Density):
        if not isinstance(sde, LinearSDE):
            raise TypeError(
                f"ExactScore needs a LinearSDE, got {type(sde).__name__}: only there do densities keep their closed form."
            )
        self.sde, self.density = sde, density
        self.event_shape, self.device, self.dtype = density.event_shape, density.device, density.dtype

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Posterior:
        """The posterior at x and t."""
        if cond is not None:
            raise ValueError("An exact score takes no condition.")
        return self.density.diffused(x, self.sde.alpha(t), self.sde.sigma(t))

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        r""":math:`\log p_t(x)` in nats, shape (B,)."""
        t = as_time(t, x, self.sde.t_max)
        return self.density.diffused(x, self.sde.alpha(t), self.sde.sigma(t)).log_prob()

    def sample(self, n: int, t: float, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` exact samples of :math:`p_t`, (n, *event)."""
        if generator is None:
            generator = torch.Generator()
            generator.seed() if seed is None else generator.manual_seed(seed)
        x0 = self.density.draw(n, generator).double().cpu()
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        return self.sde.perturb(x0, t, z).to(self.device, self.dtype)

    def to(self, sde: LinearSDE) -> ExactScore:  # type: ignore[override]
        """The exact score of the same density under another linear process."""
        return ExactScore(sde, self.density)

    def along(self, times: Tensor, view: View | None = None) -> list[Callable[[Tensor], Tensor]]:
        """This score along a grid; for a mixture with one shared variance, three or four kernels each."""
        shared = self.density.shared_variance if isinstance(self.density, Mixture) else None
        if shared is None:
            return super().along(times, view)
        alpha, sigma = self.sde.alpha(times), self.sde.sigma(times)
        v = alpha**2 * shared + sigma**2
        # Every view is affine in x and the mean of the modes, sum_k w_k m_k.
        of_x, of_mean = {
            Score.noise: (sigma / v, -sigma * alpha / v),
            Score.data: (alpha * shared / v, sigma**2 / v),
        }.get(view or Score.__call__, (-1 / v, alpha / v))
        at_each = zip(*(c.tolist() for c in (alpha, v, of_x, of_mean)), strict=True)
        return [partial(_shared, self.density, *at) for at in at_each]


# Above this ratio of |m|² to the variance, float32 logits from a matrix product lose more than three digits.
_CANCELS = {torch.float32: 1e4, torch.float64: 1e12}


def _shared(mixture: Mixture, alpha: float, variance: float, of_x: float, of_mean: float, x: Tensor) -> Tensor:
    """of_x x + of_mean sum_k w_k m_k, for a mixture whose components have this variance once diffused."""
    counting.seen(x.shape[0], counting.calls())
    own = mixture.like(x)
    flat = x.reshape(x.shape[0], -1)
    ratio = alpha / variance
    if own.reach * alpha * ratio < _CANCELS.get(x.dtype, 0.0):
        bias = torch.add(own.log_weights, own.half_norms, alpha=-alpha * ratio)  # (K, 1)
        logits = torch.addmm(bias, own.means, flat.T, alpha=ratio)  # (K, B)
    else:
        r = flat - alpha * own.means.unsqueeze(1)
        logits = own.log_weights - (0.5 / variance) * (r * r).sum(-1)
    weights = torch.softmax(logits, 0)
    return torch.addmm(flat, weights.T, own.means, beta=of_x, alpha=of_mean).reshape(x.shape)
