r"""The exact score of a process with a known kernel that starts in few points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autodiff import leaf, recording
from ..checks import Time, as_time, check_count, check_state
from ..densities.base import host_generator
from ..score import Score
from .kernels import Kernel
from .processes import KernelSDE

_BLOCK = 2**20  # numbers held at once in sums over starting points and eigenfunctions


class KernelScore(Score):
    r"""The exact score of a process that starts in one of few points: :math:`p_t(x) = \sum_k w_k\,p_t(x \mid x_k)`.

    Args:
        sde: a process with a known kernel.
        points: where it starts, (K, *event). A density becomes points by quadrature, or by sampling.
        weights: their probabilities, (K,), normalised here; equal by default.

    Raises:
        TypeError: ``sde`` has no known kernel.
        ValueError: points outside the domain; weights that are negative or of another number.

    It is found in float64 on the host, at t > 0 alone.
    """

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, sde: KernelSDE, points: Tensor, weights: Tensor | None = None):
        if not isinstance(sde, KernelSDE):
            raise TypeError(
                f"KernelScore needs a process with a known kernel such as CIR(), got {type(sde).__name__}. For a LinearSDE "
                "there is ExactScore(sde, density), for any other FokkerPlanck(sde, cells)."
            )
        sde.marginal(points, sde.t_max)  # says what is wrong with the points
        self.process, self.points = sde, points.detach().cpu().double()
        w = torch.ones(len(points)) if weights is None else weights
        if not isinstance(w, Tensor) or w.is_complex():
            raise TypeError(f"weights must be a tensor of {len(points)} numbers, got {type(w).__name__}.")
        w = w.detach().cpu().double()
        if w.shape != (len(points),) or not bool((w.isfinite() & (w >= 0)).all()) or float(w.sum()) <= 0:
            raise ValueError(
                f"weights must be ({len(points)},) numbers >= 0, not all 0; got {w.flatten().tolist()[:8]}."
            )
        self.weights = w / w.sum()
        self.event_shape: tuple[int, ...] = tuple(points.shape[1:])

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The score at x (B, *event)."""
        if cond is not None:
            raise ValueError("An exact score takes no condition.")
        self._check(x)
        t = t.cpu()
        with recording():
            at = leaf(self._any().inner(x.cpu().double()))
            (gradient,) = torch.autograd.grad(self._log_prob(at, t).sum(), at)
        return gradient.to(x.device)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x) in nats, (B,); -inf outside the domain."""
        at = as_time(t, check_state(x), self.process.t_max).cpu()
        self._check(x)
        inner, inside = self._any().within(x.cpu().double())
        return torch.where(inside, self._log_prob(inner, at), -torch.inf).to(x.device, x.dtype)

    def sample(self, n: int, t: float, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` exact samples of p_t, (n, *event)."""
        check_count(n, "n", "at least one sample")
        generator = host_generator(seed, generator)
        index = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.process.marginal(self.points[index], t).sample(generator=generator)

    def _any(self) -> Kernel:
        """A kernel, to ask for the domain."""
        return self.process.marginal(self.points[:1], self.process.t_max)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this score needs (B, {', '.join(map(str, self.event_shape))})."
            )

    def _log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """At points inside the domain; all pairs of states and starts, a block of states at a time."""
        size = max(1, _BLOCK // max(1, self.points.numel() * 16))
        parts = [self._of_pairs(x[i : i + size], t if t.ndim == 0 else t[i : i + size]) for i in range(0, len(x), size)]
        return torch.cat(parts)

    def _of_pairs(self, x: Tensor, t: Tensor) -> Tensor:
        count, starts = len(x), len(self.points)
        every = x.repeat_interleave(starts, 0)
        times = t if t.ndim == 0 else t.reshape(-1).repeat_interleave(starts)
        points = self.points.repeat(count, *[1] * len(self.event_shape))
        each = self.process.marginal(points, times).log_density(every).reshape(count, starts, -1).sum(2)
        return torch.logsumexp(each + self.weights.log(), 1)
