r"""Score matching without a kernel: for any SDE, from samples of x_t alone.

Where :math:`p_t(x_t \mid x_0)` is unknown there is no denoising target, but integration by parts removes the unknown score from
the mean squared error. For a weight :math:`D = GG^\top` (or I),

.. math:: \tfrac12\,\mathbb E\,(s - \nabla\log p_t)^\top D\,(s - \nabla\log p_t)
          = \mathbb E\bigl[\tfrac12s^\top Ds + \nabla\cdot(Ds)\bigr] + \mathrm{const},

if :math:`Dsp` vanishes at infinity and at the walls: on a bounded domain take the D of the process itself, which does. It is
also the weight that bounds the Kullback-Leibler divergence of the reversal. The trace is taken exactly, d derivatives, or along
random directions (sliced), one each: :math:`\mathbb E_v\,v^\top\partial(Ds)v` with Rademacher v.

Sources: Hyvärinen 2005, https://jmlr.org/papers/v6/hyvarinen05a.html, and 2007, https://doi.org/10.1016/j.csda.2006.09.003 (on
x > 0); Song et al. 2019, https://arxiv.org/abs/1905.07088 (sliced); Song et al. 2021, https://arxiv.org/abs/2101.09258 (the
bound).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..autodiff import recording, usable
from ..checks import (
    Time,
    check_count,
    check_finite,
    check_number,
    check_seed,
    check_state,
)
from ..predictions import Networked
from ..score import Score
from ..sde import SDE
from ..solve import solve
from ..solvers import Method


class ScoreNetwork(Networked):
    r"""A network as the score of any SDE: :math:`s(x, t) = \nabla\log\pi(x) + F(x, t)`.

    Args:
        net: as in :class:`~sdediff.predictions.Networked`.
        base: :math:`\pi`, a density whose score is left out of what the network learns. Give the law that the process settles
            in, ``sde.invariant(event_shape)``: near a wall scores are infinite, and their difference to that one is not.
        event_shape: the shape of one state, where the network has no attribute ``event_shape`` to tell it.

    For a linear process the wrappers of :mod:`~sdediff.predictions` know more.
    """

    def __init__(self, net: nn.Module, base: Any = None, *, event_shape: Sequence[int] | None = None):
        super().__init__(net, event_shape)
        if base is not None and not hasattr(base, "score"):
            raise TypeError(f"base must be a density with a score, got {type(base).__name__}.")
        self.base = base

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The score at x."""
        learned = super().predict(x, t, cond)
        return learned if self.base is None else learned + self.base.score(x)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the network, as for any module. This score cannot move to another process: it belongs to none."""
        if args and isinstance(args[0], SDE):
            raise TypeError("A score moves between linear processes alone, and this one was learned without a kernel.")
        return super().to(*args, **kwargs)


@dataclass(frozen=True)
class _Implicit(ABC):
    score: Score
    sde: SDE | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.score, Score):
            raise TypeError(f"score must be a Score such as ScoreNetwork(net), got {type(self.score).__name__}.")
        if self.sde is not None and not isinstance(self.sde, SDE):
            raise TypeError(f"sde must be the SDE whose noise weights the loss, got {type(self.sde).__name__}.")

    def __call__(self, x: Tensor, t: Time, cond: Any = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean loss over samples x (B, *event) of p_t, t a number or (B,): a 0-d tensor, up to a constant of p."""
        return self.per_sample(x, t, cond, generator=generator).mean()

    def per_sample(self, x: Tensor, t: Time, cond: Any = None, *, generator: torch.Generator | None = None) -> Tensor:
        """½ s'Ds + ∇·(Ds) of each sample, (B,)."""
        check_state(x)
        with recording():
            at = usable(x).detach().requires_grad_()
            score = self.score(at, t, cond)
            field = score if self.sde is None else self.sde.diffusion(at, t).gram(score)
            return 0.5 * _rows(score * field).sum(1) + self._divergence(field, at, generator)

    @abstractmethod
    def _divergence(self, field: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """∇·field, (B,), or an unbiased estimate of it."""


@dataclass(frozen=True)
class ImplicitLoss(_Implicit):
    """Implicit score matching with the exact trace: as many derivatives as a state has coordinates.

    Args:
        score: the score to train.
        sde: the process whose :math:`D = GG^T` weights the error; needed on bounded domains. None for D = I.
    """

    def _divergence(self, field: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        total = x.new_zeros(len(x))
        for i, column in enumerate(_rows(field).unbind(1)):
            total = total + _rows(_pulled(column.sum(), x))[:, i]
        return total


@dataclass(frozen=True)
class SlicedLoss(_Implicit):
    """Sliced score matching: the trace along random directions, for states of many coordinates.

    Args:
        score: the score to train.
        sde: as in :class:`ImplicitLoss`.
        probes: directions for each sample.
    """

    probes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.probes, "probes")

    def _divergence(self, field: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        total = x.new_zeros(len(x))
        device = x.device if generator is None else generator.device
        for _ in range(self.probes):
            signs = torch.randint(0, 2, x.shape, generator=generator, device=device).to(x) * 2 - 1
            total = total + _rows(signs * _pulled((field * signs).sum(), x)).sum(1) / self.probes
        return total


@dataclass(frozen=True)
class Paths:
    """Simulated paths, to draw (x_t, t) from.

    Args:
        ts: the times, (S,).
        xs: the states there, (S, N, *event).
    """

    ts: Tensor
    xs: Tensor

    @classmethod
    def simulate(
        cls,
        sde: SDE,
        x0: Tensor,
        *,
        solver: Method,
        times: int = 64,
        steps: int = 500,
        t_min: float | None = None,
        seed: int | None = None,
    ) -> Paths:
        """Solve ``sde`` from data x0 (N, *event) at t = 0, keeping the states at random times.

        Args:
            solver: a fixed-step solver.
            times: one is drawn in each of so many equal parts of [t_min, t_max].
            steps: equal steps over [0, t_max], beside the times kept.
            t_min: the process's own by default. Scores of concentrated data have no bound as t falls to 0.
            seed: of the times and the noise.
        """
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be an SDE, got {type(sde).__name__}.")
        first = sde.t_min if t_min is None else check_number(t_min, "t_min")
        if not 0 <= first < sde.t_max:
            raise ValueError(f"t_min = {first} must lie in [0, {sde.t_max:g}), the clock of {type(sde).__name__}.")
        check_count(times, "times")
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(check_seed(seed))
        u = (torch.arange(times) + torch.rand(times, generator=generator, dtype=torch.float64)) / times
        noise = int(torch.randint(2**62, (), generator=generator))
        at = first + (sde.t_max - first) * u
        solution = solve(sde, x0, solver=solver, t0=0.0, t1=sde.t_max, steps=steps, save_at=at, seed=noise)
        kept = torch.isin(solution.ts, at)
        return cls(solution.ts[kept], solution.xs[kept])

    def __post_init__(self) -> None:
        check_finite(check_state(self.xs, "xs"), "xs")
        if self.ts.ndim != 1 or len(self.ts) != len(self.xs) or self.xs.ndim < 2:
            raise ValueError(
                f"ts {tuple(self.ts.shape)} and xs {tuple(self.xs.shape)} must be (S,) and (S, N, *event)."
            )

    def draw(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``n`` states (n, *event) with their times (n,), each of a random path at a random one of its times."""
        check_count(n, "n", "at least one sample")
        when = torch.randint(len(self.ts), (n,), generator=generator)
        which = torch.randint(self.xs.shape[1], (n,), generator=generator)
        return self.xs[when, which], self.ts[when].to(self.xs.device)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _pulled(value: Tensor, x: Tensor) -> Tensor:
    """Its gradient in x; zeros where it ignores x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient
