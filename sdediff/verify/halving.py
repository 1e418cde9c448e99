r"""What a solver's step size does to a test, measured by halving it.

Chains of N/2 and of N steps start alike and follow one Brownian path. For a solver of weak order p the coarse one is off
by :math:`2^p` times as much as the fine one, so their difference bounds the bias of the fine one wherever
:math:`p \ge 1`. Tests of the fine chain allow that much, within reason, and no more: a wrong process stays wrong when the step
is halved.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..sde import SDE
from ..solve import solve
from ..solvers import Integrator, Method, Solver
from ..threads import threads_for
from .laws import Law
from .operator import rows
from .statistics import Outcome, ks_test, ks_two_sample, worst, z_test

LARGEST_BIAS = 0.1
"""The most that is allowed for, in standard deviations or in F: with a larger error of its own a solver shows nothing."""


def solve_halved(process: SDE, x: Tensor, solver: Method, nodes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The states at the last node after steps over every other node, and after steps over every node.

    Args:
        process: what to solve.
        x: the states at the first node.
        solver: any. One that chooses its own steps is run once: its bias is for its tolerances to keep small.
        nodes: (N + 1,), N even. A whole-interval solver with fixed steps takes N/2 and N equal ones between the ends.
        seed: of the path.
    """
    if isinstance(solver, Integrator) and not solver.fixed:
        end = solve(process, x, seed=seed, solver=solver, t0=float(nodes[0]), t1=float(nodes[-1])).x
        return end, end
    coarse, fine = solve_nested(process, x, solver, nodes, seed, 2)
    return coarse, fine


def solve_nested(process: SDE, x: Tensor, solver: Method, nodes: Tensor, seed: int, levels: int) -> list[Tensor]:
    """The same at any number of levels, the coarsest first; N is a multiple of 2^(levels - 1)."""
    grids = [nodes[:: 2**k] for k in reversed(range(levels))]
    middles = {
        (s, t): m
        for grid in (v.tolist() for v in grids[1:])
        for s, m, t in zip(grid[:-1:2], grid[1::2], grid[2::2], strict=True)
    }
    options: dict[str, Any] = {"solver": solver, "t0": float(nodes[0]), "t1": float(nodes[-1])}
    spacing = [{"grid": v} if isinstance(solver, Solver) else {"steps": len(v) - 1} for v in grids]
    with threads_for(x.numel()):
        return [solve(process, x, noise=_Path(seed, middles), **options, **each).x for each in spacing]


def mean_test(fine: Tensor, coarse: Tensor, claimed: Tensor | float, scale: float, unit: str = "sd") -> Outcome:
    """The mean of ``fine`` (n,) against a number or fresh values (n,), up to the bias that ``coarse`` shows."""
    bias = min(abs(float((coarse - fine).mean())), LARGEST_BIAS * scale)
    return z_test(fine - claimed, margin=bias, scale=scale, unit=unit)


def projection_test(law: Law, t: float, u: Tensor, fine: Tensor, coarse: Tensor, fresh: Tensor) -> Outcome:
    """The projection of ``fine`` on u against its exact law, or a fresh sample, up to the bias that ``coarse`` shows."""
    y, rough, other = (rows(x) @ u for x in (fine, coarse, fresh))
    bias, line = min(ks_two_sample(rough, y).statistic, LARGEST_BIAS), law.shadow(u, t)
    return ks_two_sample(y, other, margin=bias) if line is None else ks_test(line.cdf(y), margin=bias)


def projections_test(
    law: Law, t: float, directions: Tensor, fine: Tensor, coarse: Tensor, fresh: Tensor
) -> tuple[str, Outcome]:
    """:func:`projection_test` along each of ``directions`` (P, D) as one test, and what to call it."""
    tests = [projection_test(law, t, u, fine, coarse, fresh) for u in directions]
    return f"law of {len(tests)} projection{'s' * (len(tests) > 1)}", worst(tests)


class _Path(Noise):
    """One Brownian path for a grid, for its every other node, and so on.

    Unlike :class:`~sdediff.BrownianPath` it knows its grid, so uneven steps cost it nothing. A step over several intervals of
    the fine grid draws the numbers of all of them, in the order in which the fine grid does.
    """

    def __init__(self, seed: int, middles: dict[tuple[float, float], float]):
        self.seed, self.middles = seed, middles

    def open(self, x: Tensor) -> Stream:
        return _PathStream(x, torch.Generator().manual_seed(self.seed), self.middles)

    def integer(self) -> int:
        return self.seed % 2**31

    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=dtype)


class _PathStream(Stream):
    def __init__(self, x: Tensor, generator: torch.Generator, middles: dict[tuple[float, float], float]):
        self.x, self.generator, self.middles = x, generator, middles

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        return torch.randn(shape or self.x.shape, generator=self.generator, dtype=self.x.dtype)

    def unit(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        middle = self.middles.get((s, t))
        if middle is None:
            return self.normal(shape)
        parts = [self.unit(a, b, shape) * abs(b - a) ** 0.5 for a, b in pairwise((s, middle, t))]
        return (parts[0] + parts[1]) / abs(t - s) ** 0.5
