r"""Uniform laws on boxes, and the checkerboard: targets with hard edges.

Such a law has no score: its log density is flat inside and jumps at the edges. Diffused, it has one in closed form. On
an axis where a box has centre c and width W, with :math:`z = (x - \alpha c)/\sigma` and :math:`w = \alpha W/\sigma`,

.. math:: p(x) = \frac{1}{\sigma w}\bigl[\Phi(z + \tfrac w2) - \Phi(z - \tfrac w2)\bigr],

a box is the product over its axes, the law the mixture of its boxes. The difference is taken in three ways so that it
never cancels: through Mills' ratio outside of the box, directly inside, and as a series in w where the box is narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_number, check_parameter, check_scale, check_whole, float64
from .base import Density, Posterior, beside
from .empirical import check_noise

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Boxes(Density):
    """A mixture of uniform laws on axis-parallel boxes.

    Args:
        lower, upper: the corners, (K, d) each, lower < upper.
        weights: (K,), positive, normalised here; by default in proportion to the volumes, which is the uniform law on
            the union of disjoint boxes.

    Raises:
        ValueError: shapes differ, a box is empty, or a weight is not positive.
    """

    def __init__(
        self,
        lower: Tensor | Sequence[Sequence[float]],
        upper: Tensor | Sequence[Sequence[float]],
        weights: Tensor | Sequence[float] | None = None,
    ):
        low, high = (check_parameter(c, name) for c, name in ((lower, "lower"), (upper, "upper")))
        if low.shape != high.shape or low.ndim != 2 or not bool((low < high).all()):
            raise ValueError(
                f"lower {tuple(low.shape)} and upper {tuple(high.shape)} must both be (K, d), with lower < upper everywhere."
            )
        self.lower, self.upper = low, high
        self.event_shape = (low.shape[1],)
        volumes = (high - low).prod(1)
        w = volumes if weights is None else torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if w.shape != (len(low),) or not bool(((w > 0) & w.isfinite()).all()):
            raise ValueError(f"weights must be {len(low)} positive numbers, got {w.tolist()}.")
        self.weights = w / w.sum()

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples in float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        u = torch.rand((n, *self.event_shape), generator=generator, dtype=torch.float64)
        return self.lower[k] + u * (self.upper - self.lower)[k]

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,): -inf outside of all boxes. A box contains its lower faces, not its upper ones."""
        at = float64(self._check(x))
        lower, upper, heights = (c.to(at.device, at.dtype) for c in (self.lower, self.upper, self._heights()))
        inside = ((at.unsqueeze(1) >= lower) & (at.unsqueeze(1) < upper)).all(2)  # (B, K)
        return (inside.to(at.dtype) @ heights).log().to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """Refused: this density is flat with jumps."""
        raise ValueError(
            f"{type(self).__name__} has no score at t = 0: its density is flat inside and jumps at the edges. "
            "ExactScore(sde, density)(x, t) at t > 0 is exact."
        )

    def diffused(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> BoxesPosterior:
        """The posterior at x (B, d).

        Raises:
            ValueError: sigma is 0 (seen on the host only), where there is no score.
        """
        check_noise(sigma, f"{type(self).__name__}")
        return BoxesPosterior(self, self._check(x), alpha, sigma)

    def _heights(self) -> Tensor:
        return self.weights / (self.upper - self.lower).prod(1)


class Checkerboard(Boxes):
    """The uniform law on the dark squares of a board of ``side`` × ``side`` squares around the origin, states (2,).

    Args:
        side: squares along one side, at least 1.
        width: of the whole board, in units of the data.

    Source: Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367 (side 4, width 8, here scaled to 4).
    """

    def __init__(self, side: int = 4, width: float = 4.0):
        if check_whole(side, "side") < 1 or check_number(width, "width") <= 0:
            raise ValueError(f"side = {side} must be at least 1 and width = {width} positive.")
        width = check_scale(width, "width")
        squares = [(i, j) for i in range(side) for j in range(side) if (i + j) % 2 == 0]
        lower = width * (torch.tensor(squares, dtype=torch.float64) / side - 0.5)
        super().__init__(lower, lower + width / side)


class BoxesPosterior(Posterior):
    """The posterior of a mixture of boxes at x."""

    def __init__(self, boxes: Boxes, x: Tensor, alpha: Tensor, sigma: Tensor):
        self.shape, self.dtype = x.shape, x.dtype
        flat = float64(x).T  # (d, B)
        alpha, self.sigma = beside(alpha, flat), beside(sigma, flat)
        lower, upper, log_weights = (
            c.to(flat.device, flat.dtype) for c in (boxes.lower, boxes.upper, boxes.weights.log())
        )
        self.centre, self.width = (0.5 * (lower + upper)).unsqueeze(2), (upper - lower).unsqueeze(2)  # (K, d, 1)
        z = (flat - alpha * self.centre) / self.sigma  # (K, d, B)
        log_mean, self.slope, self.pull = window(z, (alpha / self.sigma * self.width).expand_as(z))
        self.logits = log_weights.unsqueeze(1) + (log_mean - self.sigma.log()).sum(1)  # (K, B)
        self.weights = torch.softmax(self.logits, 0)

    def _mean(self, per_box: Tensor) -> Tensor:
        return (self.weights.unsqueeze(1) * per_box).sum(0).T.to(self.dtype)

    def score(self) -> Tensor:
        """The score of the diffused boxes, of x's shape."""
        return self._mean(self.slope / self.sigma)

    def noise(self) -> Tensor:
        """E[eps | x]."""
        return self._mean(-self.slope)

    def data(self) -> Tensor:
        """E[x_0 | x]."""
        return self._mean(self.centre + self.width * self.pull)

    def log_prob(self) -> Tensor:
        """The log density, (B,)."""
        return torch.logsumexp(self.logits, 0).to(self.dtype)


def window(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The standard normal law seen through a window of width w > 0 around z (shapes equal, float64).

    Returns:
        :math:`\log\frac1w\int_{z-w/2}^{z+w/2}\varphi`, its derivative in z, and where in the window, in units of w
        from its centre, the reflected point :math:`\mathrm E[2z - u \mid u \in \text{window}]` lies: between -½ and ½.
    """
    m, sign = z.abs(), torch.where(z < 0, -1.0, 1.0).to(z.dtype)
    narrow = w * m.clamp_min(1) < 0.02
    wide = torch.where(
        narrow, torch.ones_like(w), w
    )  # keeps the branch not taken finite, for automatic differentiation
    near, far = m - 0.5 * wide, m + 0.5 * wide
    fall = -wide * m  # log of phi(far)/phi(near)
    outside = near > 0
    edge = torch.where(outside, near, torch.zeros_like(near))
    beyond = _mills(edge) - fall.exp() * _mills(far)
    mass = 1 - _upper_tail(far) - _upper_tail(-torch.where(outside, torch.zeros_like(near), near))
    log_direct = torch.where(outside, -0.5 * edge * edge - _HALF_LOG_2PI + beyond.log(), mass.log())
    density = torch.exp(-0.5 * torch.where(outside, torch.zeros_like(near), near).square() - _HALF_LOG_2PI)
    slope_direct = torch.where(outside, fall.expm1() / beyond, density * fall.expm1() / mass)

    w2, m2 = torch.where(narrow, w * w, torch.zeros_like(w)), torch.where(narrow, m * m, torch.zeros_like(m))
    log_series = -0.5 * m * m - _HALF_LOG_2PI + w2 * (m2 - 1) / 24 - w2 * w2 * (m2 * m2 + 4 * m2 - 2) / 2880
    gain = w2 / 12 - w2 * w2 * (m2 + 2) / 720
    log_mean = torch.where(narrow, log_series, log_direct - wide.log())
    slope = torch.where(narrow, m * (gain - 1), slope_direct)
    pull = torch.where(narrow, w * m / 12 - w * w2 * m * (m2 + 2) / 720, ((m + slope_direct) / wide).clamp(-0.5, 0.5))
    return log_mean, sign * slope, sign * pull


def _mills(z: Tensor) -> Tensor:
    """(1 - Phi(z)) / phi(z) for z >= 0."""
    return math.sqrt(0.5 * math.pi) * torch.special.erfcx(z / math.sqrt(2))


def _upper_tail(z: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(z / math.sqrt(2))
