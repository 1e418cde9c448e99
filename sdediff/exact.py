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
from .densities.base import Posterior, host_generator
from .densities.mixture import CANCELS
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
        density: one that keeps a closed form under linear SDEs: a :class:`~sdediff.densities.Mixture`, an
            :class:`~sdediff.densities.Empirical` data set, :class:`~sdediff.densities.Boxes`.

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

    def law(self, t: float) -> Mixture:
        """:math:`p_t` itself, where the density is a mixture: a mixture again, on the same device and in the same dtype."""
        if not isinstance(self.density, Mixture):
            raise TypeError(
                f"p_t of a {type(self.density).__name__} is no mixture; use log_prob(x, t) and sample(n, t)."
            )
        return self.density.noised(self.sde.alpha(t), self.sde.sigma(t))

    def sample(self, n: int, t: float, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` exact samples of :math:`p_t`, (n, *event); seed and generator as for a density's ``sample``."""
        if n < 1:
            raise ValueError(f"n = {n}: ask for at least one sample.")
        generator = host_generator(seed, generator)
        with torch.no_grad():
            x0 = self.density.draw(n, generator).double().cpu()
            z = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
            return self.sde.perturb(x0, t, z).to(self.device, self.dtype)

    def to(self, sde: LinearSDE) -> ExactScore:  # type: ignore[override]
        """The exact score of the same density under another linear process."""
        return ExactScore(sde, self.density)

    def along(self, times: Tensor, view: View | None = None) -> list[Callable[[Tensor], Tensor]]:
        """This score along a grid; for a mixture with one shared variance, three or four kernels each."""
        view = view or Score.__call__
        alpha, sigma = self.sde.alpha(times), self.sde.sigma(times)
        careful: list[Callable[[Tensor], Tensor]]
        careful = [partial(_posterior, self.density, view, a, s) for a, s in zip(alpha, sigma, strict=True)]
        if not isinstance(self.density, Mixture) or self.density.shared_variance is None:
            return careful
        shared = self.density.shared_variance
        v = alpha**2 * shared + sigma**2
        # Every view is affine in x and the mean of the modes, sum_k w_k m_k.
        of_x, of_mean = {
            Score.noise: (sigma / v, -sigma * alpha / v),
            Score.data: (alpha * shared / v, sigma**2 / v),
            Score.__call__: (-1 / v, alpha / v),
        }[view]
        numbers = zip(*(c.tolist() for c in (alpha, v, of_x, of_mean)), strict=True)
        return [partial(_shared, self.density, way, *at) for way, at in zip(careful, numbers, strict=True)]


_VIEWS = {Score.__call__: "score", Score.noise: "noise", Score.data: "data"}


def _posterior(density: Density, view: View, alpha: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
    """One view of the density's posterior at x."""
    counting.seen(x.shape[0], counting.calls())
    return getattr(density.diffused(x, alpha, sigma), _VIEWS[view])()


def _shared(
    mixture: Mixture,
    careful: Callable[[Tensor], Tensor],
    alpha: float,
    variance: float,
    of_x: float,
    of_mean: float,
    x: Tensor,
) -> Tensor:
    """of_x x + of_mean sum_k w_k m_k, for a mixture whose components have this variance once diffused."""
    ratio = alpha / variance
    if not mixture.reach * alpha * ratio < CANCELS.get(x.dtype, 0.0):
        return careful(x)
    counting.seen(x.shape[0], counting.calls())
    own = mixture.on(x.device, x.dtype)
    flat = x.reshape(x.shape[0], -1)
    bias = torch.add(own.log_weights, own.half_norms, alpha=-alpha * ratio)  # (K, 1)
    weights = torch.softmax(torch.addmm(bias, own.means, flat.T, alpha=ratio), 0)  # (K, B)
    return torch.addmm(flat, weights.T, own.means, beta=of_x, alpha=of_mean).reshape(x.shape)
