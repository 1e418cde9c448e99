"""The exact score of a density under a process with a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import counting
from .checks import Time, as_time, check_count
from .densities import Density, Mixture
from .densities.base import Posterior, host_generator
from .densities.mixture import CANCELS
from .derived import as_linear
from .forms import Form
from .linear import LinearSDE
from .score import Score, View
from .sde import SDE


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

    def coupled(self) -> Form:
        return self  # the posterior has asked the scales


class ExactScore(Score):
    r"""The score of :math:`x_t = \alpha x_0 + \sigma\epsilon`, :math:`x_0 \sim` ``density``, in closed form.

    Args:
        sde: a process with a Gaussian kernel: a :class:`~sdediff.LinearSDE`, an :class:`~sdediff.AffineSDE`, or any SDE that
            :func:`~sdediff.as_linear` finds to be one.
        density: the law of the data, one that keeps a closed form: a :class:`~sdediff.densities.Mixture`, an
            :class:`~sdediff.densities.Empirical` data set, :class:`~sdediff.densities.Boxes` (under a LinearSDE).

    Raises:
        TypeError: ``sde`` is no SDE, or (:class:`~sdediff.NotAffineError`) has no Gaussian kernel.
        NotImplementedError: on evaluation, for a density that has no closed form under the process.
    """

    form = _Exact()

    def __init__(self, sde: SDE, density: Density):
        if not isinstance(sde, SDE):
            raise TypeError(
                f"ExactScore needs an SDE, got {type(sde).__name__}: the order is ExactScore(sde, density)."
            )
        if not isinstance(density, Density):
            raise TypeError(f"density must be a Density such as densities.ring(), got {type(density).__name__}.")
        self.sde: Any = as_linear(sde, density.event_shape)
        self.density = density
        self.device, self.dtype = density.device, density.dtype
        self.event_shape = tuple(self.sde.lift(torch.zeros(1, *density.event_shape)).shape[1:])

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Posterior:
        """The posterior at x and t."""
        if cond is not None:
            raise ValueError("An exact score takes no condition.")
        return self.sde.posterior(self.density, x, t)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        r""":math:`\log p_t(x)` in nats, shape (B,)."""
        t = as_time(t, x, self.sde.t_max)
        return self.sde.posterior(self.density, x, t).log_prob()

    def law(self, t: float) -> Mixture:
        """:math:`p_t` itself, where the density is a mixture: a mixture again, on the same device and in the same dtype."""
        return self.sde.law(self.density, t)

    def sample(self, n: int, t: float, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` exact samples of :math:`p_t`, (n, *event); seed and generator as for a density's ``sample``."""
        check_count(n, "n", "at least one sample")
        generator = host_generator(seed, generator)
        with torch.no_grad():
            x0 = self.sde.lift(self.density.draw(n, generator).double().cpu())
            z = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
            return self.sde.perturb(x0, t, z).to(self.device, self.dtype)

    def to(self, sde: SDE) -> ExactScore:  # type: ignore[override]
        """The exact score of the same density under another process."""
        return ExactScore(sde, self.density)

    def combined(
        self, times: Tensor, a: Tensor, b: Tensor, view: View | None = None
    ) -> list[Callable[[Tensor], Tensor]]:
        """a x + b p(x) along a grid; for a mixture with one shared variance in three kernels each, the sum included."""
        if not isinstance(self.sde, LinearSDE):
            return super().combined(times, a, b, view)
        view = view or Score.__call__
        alpha, sigma = self.sde.alpha(times), self.sde.sigma(times)
        careful = _Posteriors(self.density, view, alpha, sigma, a, b)
        if not isinstance(self.density, Mixture) or self.density.shared_variance is None:
            return careful.functions()
        shared = self.density.shared_variance
        v = alpha**2 * shared + sigma**2
        # Every view is affine in x and the mean of the modes, sum_k w_k m_k.
        of_x, of_mean = {
            Score.noise: (sigma / v, -sigma * alpha / v),
            Score.data: (alpha * shared / v, sigma**2 / v),
            Score.__call__: (-1 / v, alpha / v),
        }[view]
        return _SharedVariance(self.density, careful, alpha, v, a + b * of_x, b * of_mean).functions()


# States of at most so many coordinates in batches of at least so many take the long way round, which is faster; see _thin.
_THIN, _MANY = 4, 1024

# A weight below e^-50 of the largest counts as that: nothing in any sum, and its products are no denormal numbers, which
# cost a hundred times as much as others. Logits within ±40 need neither this nor their largest taken off.
_LEAST, _MODEST = -50.0, 40.0

_VIEWS = {Score.__call__: "score", Score.noise: "noise", Score.data: "data"}


class _Posteriors:
    """a x + b p(x) at each time of a grid, for one view p of any density's posterior."""

    def __init__(self, density: Density, view: View, alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor):
        self.density, self.view, self.alpha, self.sigma = density, _VIEWS[view], alpha, sigma
        self.a, self.b = a.tolist(), b.tolist()

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        return [partial(self.at, k) for k in range(len(self.a))]

    def at(self, k: int, x: Tensor) -> Tensor:
        counting.seen(x.shape[0], counting.calls())
        p = getattr(self.density.diffused(x, self.alpha[k], self.sigma[k]), self.view)()
        if self.a[k] == 0:
            return p if self.b[k] == 1 else p * self.b[k]
        return torch.add(x * self.a[k], p, alpha=self.b[k])


class _SharedVariance:
    """of_x x + of_mean sum_k w_k m_k at each time of a grid, for a mixture whose components share the variance v there."""

    def __init__(self, mixture: Mixture, careful: _Posteriors, alpha: Tensor, v: Tensor, of_x: Tensor, of_mean: Tensor):
        self.mixture, self.careful = mixture, careful
        self.alpha, self.ratio = alpha, alpha / v
        self.numbers = list(zip(self.ratio.tolist(), of_x.tolist(), of_mean.tolist(), strict=True))
        self.cancelling = (mixture.reach * alpha * self.ratio).tolist()
        self.most = self._biases().abs().amax((1, 2)).tolist()
        # Where all modes have the same bias, logits do without it, by a cheaper product.
        self.beta = 0.0 if _alike(mixture.weights) and _alike(mixture.half_norms) else 1.0
        self.stretch = float(mixture.means.abs().sum(1).max())  # |m · x| <= this times the largest coordinate of x
        self.held: tuple[Any, Mixture, tuple[Tensor, ...], float] | None = None  # for the last device and dtype

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        return [partial(self.at, k) for k in range(len(self.numbers))]

    def at(self, k: int, x: Tensor) -> Tensor:
        if self.held is None or self.held[0] != (x.device, x.dtype):
            self.held = self._on(x)
        _, own, biases, limit = self.held
        if not self.cancelling[k] < limit:
            return self.careful.at(k, x)
        counting.seen(x.shape[0], counting.calls())
        ratio, of_x, of_mean = self.numbers[k]
        flat = x if x.ndim == 2 else x.reshape(x.shape[0], -1)
        logits = torch.addmm(biases[k], own.means, flat.t(), beta=self.beta, alpha=ratio)  # (K, B)
        if logits.requires_grad:
            out = torch.addmm(flat, torch.softmax(logits, 0).t(), own.means, beta=of_x, alpha=of_mean)
        elif flat.shape[1] <= _THIN and flat.shape[0] >= _MANY and x.device.type == "cpu":
            low, high = flat.aminmax()
            modest = ratio * self.stretch * max(-float(low), float(high)) + self.beta * self.most[k] < _MODEST
            out = _thin(logits, own.means, of_mean, modest).add_(flat, alpha=of_x)
        else:  # in place: a second large block costs more in page faults
            out = torch.addmm(flat, torch.softmax(logits, 0, out=logits).t(), own.means, beta=of_x, alpha=of_mean)
        return out if x.ndim == 2 else out.reshape(x.shape)

    def _on(self, x: Tensor) -> tuple[Any, Mixture, tuple[Tensor, ...], float]:
        """The modes as x has them, and log w - alpha² |m|² / 2v for every time, (K, 1) each."""
        own = self.mixture.on(self.mixture._check(x).device, x.dtype)
        return (x.device, x.dtype), own, self._biases().to(x.device, x.dtype).unbind(), CANCELS.get(x.dtype, 0.0)

    def _biases(self) -> Tensor:
        scale = (self.alpha * self.ratio).reshape(-1, 1, 1)
        return self.mixture.log_weights - scale * self.mixture.half_norms


def _alike(values: Tensor) -> bool:
    """Whether all are equal but for rounding."""
    return bool((values - values[0]).abs().max() <= 4e-16 * values.abs().max())


def _thin(logits: Tensor, means: Tensor, factor: float, modest: bool) -> Tensor:
    """``factor`` times the mean of the modes (B, D) for small D, on the logits' memory (K, B), which may be modest in size.

    One product gives the weighted sums and the sum of the weights, as rows, where kernels are fast; a product with a
    diagonal matrix turns them round, several times faster than a copy does.
    """
    weights = (logits if modest else logits.sub_(logits.amax(0)).clamp_min_(_LEAST)).exp_()
    sums = torch.cat([means, torch.ones_like(means[:, :1])], 1).t() @ weights  # (D + 1, B)
    return (sums[:-1] / sums[-1]).t() @ torch.diag(torch.full_like(means[0], factor))
