r"""What particles say of a process: its forward law against the kernel, its reversals against the exact law.

Particles take steps, by Heun's method or a Runge-Kutta one, and what is left of the steps must stay below the noise
(:mod:`~sdediff.verify.chains`). Then the means of several bounded functions are tested together (Hotelling): where all is
right the p-value is uniform, not merely large. Without a kernel there is no law to compare with, but a limit that steps of
Euler and Maruyama must converge to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..metrics import random_directions
from ..sde import SDE
from ..solvers import StochasticHeun
from .chains import Chains, Draw, Trial, spread
from .features import Features
from .laws import Law
from .moments import Kernel, drift_coefficients
from .operator import rows
from .statistics import Outcome, joint_test, quantile, two_sided

Panel = Callable[[int, int], dict[str, Outcome]]
_AXES = 4
_COARSEST = 64
_LEAST_ORDER = 0.4  # 1/2 is what Euler-Maruyama has for any smooth f and g
_TABLE = 64  # times at which the drift is asked how fast it turns
_NOISELESS = 1e-10  # of the largest variance


@dataclass(frozen=True)
class ChainTest:
    """What is tested by chains of steps.

    Args:
        what: the name of the row.
        chains: the process and its nodes.
        draw: fresh particles.
    """

    what: str
    chains: Chains
    draw: Draw

    def panel(self, seed: int, seconds: float) -> Panel:
        """The test, with as many steps as it takes; see :meth:`Chains.settled` for the arguments and errors."""
        settled = self.chains.settled(self.draw, seed, seconds)

        def panel(n: int, seed: int) -> dict[str, Outcome]:
            generator = torch.Generator().manual_seed(seed)
            trial = self.draw(n, generator)
            path = int(torch.randint(2**31, (), generator=generator))
            return {self.what: joint_test(settled.values(trial, path) - trial.expected)}

        return panel


def forward_test(
    sde: SDE,
    kernel: Kernel,
    t: float,
    data: Callable[[int, torch.Generator], Tensor],
    begun: Callable[[Tensor, torch.Generator], Tensor],
) -> ChainTest:
    """Particles from x_0 to t, standardised by the kernel: they must be standard normal given x_0.

    Args:
        sde, kernel, t: the process, its kernel, and where it is looked at.
        data: samples of x_0.
        begun: x_0 with the noise that the process itself starts with, if any.
    """
    moments = kernel.at(t)
    whitened = _whitening(moments.covariance)
    signal = (rows(data(1_000, torch.Generator().manual_seed(0))) @ moments.map.T).square().sum(1).mean()
    # An affine process may start anywhere: data that are large beside the noise would show the error of the steps.
    factor = min(1.0, math.sqrt(float(moments.covariance.trace() / signal)))

    def draw(n: int, generator: torch.Generator) -> Trial:
        x0 = factor * data(n, generator)
        mean, turn = rows(x0) @ moments.map.T + moments.shift, _directions(whitened.shape[1], generator)
        expected = _normal_waves(turn.shape[1]).expand(n, -1)
        return Trial(begun(x0, generator), lambda x: _waves((rows(x) - mean) @ whitened @ turn), expected)

    times = torch.linspace(0, t, _TABLE + 1, dtype=torch.float64)
    turns = turning(sde, kernel.event_shape, times)
    chains = Chains(sde, StochasticHeun(), spread(times, times.diff() / t + turns), turned=float(turns.sum()))
    return ChainTest(f"forward: x_t given x_0 at t = {t:.3g}", chains, draw)


def backward_test(name: str, law: Law, chains: Chains) -> ChainTest:
    """Particles of a reversal from exact samples at the first node to the last: their law there must be the exact one."""
    nodes = chains.nodes
    start, end = nodes(2)[[0, -1]].tolist()

    def draw(n: int, generator: torch.Generator) -> Trial:
        fresh = law.sample(4 * n, end, generator)
        d = fresh[0].numel()
        features = Features(law, end, random_directions(d, min(_AXES, d), generator), fresh[:1000])
        expected = features(fresh).reshape(n, 4, -1).mean(1)
        return Trial(law.sample(n, start, generator), features, expected)

    return ChainTest(f"{name}: from t = {start:.3g} to {end:.3g}", chains, draw)


def turning(sde: SDE, event_shape: tuple[int, ...], times: Tensor) -> Tensor:
    r"""By how much an affine drift turns and stretches states between neighbours of ``times``: :math:`\int\|A(t)\|dt`."""
    middles = (0.5 * (times[:-1] + times[1:])).tolist()
    norms = [float(torch.linalg.matrix_norm(drift_coefficients(sde, event_shape, t)[0], 2)) for t in middles]
    return torch.tensor(norms, dtype=torch.float64).nan_to_num() * times.diff().abs()


def convergence_panel(sde: SDE, horizon: float, start: Callable[[int, torch.Generator], Tensor]) -> Panel:
    """Euler-Maruyama with steps h, h/2 and h/4 on one path: the distances must shrink at order 1/2 or more."""

    def panel(n: int, seed: int) -> dict[str, Outcome]:
        generator = torch.Generator().manual_seed(seed)
        ends, trouble = _three_chains(sde, start(n, generator), (horizon - sde.t_min) / _COARSEST, generator)
        first, second = (rows(a - b).norm(dim=1) for a, b in pairwise(ends))
        return {f"steps: order of convergence to t = {horizon:.3g}": _order_test(first, second, trouble)}

    return panel


def merged(panels: list[Panel]) -> Panel:
    """One panel of several, each with a seed of its own."""

    def panel(n: int, seed: int) -> dict[str, Outcome]:
        return {what: found for k, each in enumerate(panels) for what, found in each(n, seed + 7919 * k).items()}

    return panel


def _whitening(covariance: Tensor) -> Tensor:
    """W (D, K) with Wᵀ C W = I, in the range of C: where there is no noise the moment equations alone have a say."""
    variances, axes = torch.linalg.eigh(covariance)
    kept = variances > _NOISELESS * variances[-1]
    return axes[:, kept] / variances[kept].sqrt()


def _directions(size: int, generator: torch.Generator) -> Tensor:
    """Up to four orthonormal directions and the diagonals between them, as columns (D, K)."""
    axes, _ = torch.linalg.qr(torch.randn(size, min(size, _AXES), generator=generator, dtype=torch.float64))
    k = axes.shape[1]
    pairs = [(axes[:, i] + sign * axes[:, j]) / math.sqrt(2) for i in range(k) for j in range(i) for sign in (1, -1)]
    return torch.stack([*axes.unbind(1), *pairs], 1)


def _waves(y: Tensor) -> Tensor:
    """Sine and cosine of projections (n, K): bounded, so that no tail is too heavy for a test, and blind to nothing."""
    return torch.cat([y.sin(), y.cos()], 1)


def _normal_waves(count: int) -> Tensor:
    """The expectation of :func:`_waves` of standard normal projections."""
    return torch.cat([torch.zeros(count), torch.full((count,), math.exp(-0.5))]).double()


def _three_chains(sde: SDE, x: Tensor, h: float, generator: torch.Generator) -> tuple[list[Tensor], str]:
    """The ends of Euler-Maruyama chains with steps h, h/2 and h/4 on one Brownian path, and where they became infinite.

    Each sample has its own clock, slower than this by up to a half: f and g that jump at some time meet no one grid.
    """
    pace = 0.5 + 0.5 * torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator, dtype=x.dtype)
    step, chains, trouble = h * pace, [x, x, x], ""
    for k in range(_COARSEST):
        shape = sde.diffusion(chains[0], sde.t_min + k * step).noise_shape(x)
        size = (0.25 * step).sqrt().reshape(len(x), *[1] * (len(shape) - 1))
        quarters = [torch.randn(shape, generator=generator, dtype=x.dtype) * size for _ in range(4)]
        for level, parts in enumerate((1, 2, 4)):
            each = 4 // parts
            for i in range(parts):
                at, dw = chains[level], sum(quarters[i * each : (i + 1) * each], torch.zeros(()))
                t = sde.t_min + (k + i / parts) * step
                chains[level] = at + step / parts * sde.drift(at, t) + sde.diffusion(at, t) @ dw
        trouble = trouble or _told(chains, k, sde.t_min + k * h, sde.t_min)
    return chains, trouble


def _told(chains: list[Tensor], k: int, t: float, t_min: float) -> str:
    """What to say of chains of which some particles are not finite after step k from t; nothing where all are."""
    lost = float((~torch.isfinite(rows(sum(chains[1:], chains[0]))).all(1)).double().mean())
    if not lost:
        return ""
    cure = "the drift or the noise grows faster than linearly in x, and leaves every bound in no time"
    if k == 0:
        cure = f"f or g is infinite at t = {t_min:g}, where they start: set t_min to where the process can begin"
    return (
        f"{lost:.2g} of the particles are NaN or infinite after step {k + 1} of {_COARSEST}, from t = {t:.3g}: {cure}."
    )


def _order_test(first: Tensor, second: Tensor, trouble: str = "") -> Outcome:
    """That |x_h/2 - x_h/4| is smaller than 2^-0.4 |x_h - x_h/2| for half of the samples or more: an exact sign test."""
    n, limit = len(first), 2**-_LEAST_ORDER
    if not bool(torch.isfinite(first + second).all()):
        return Outcome(math.nan, 0.0, 0.0, lambda level: math.inf, "order", trouble)
    more = float((second > limit * first).double().mean())
    order = float(torch.log2(first.median() / second.median())) if float(second.median()) > 0 else math.inf
    z = (more - 0.5) * 2 * math.sqrt(n)
    p = 0.5 * two_sided(z) if z > 0 else 1.0
    # near 1/2 the share of samples changes by 0.44 for each unit of the order (a ratio of two normals)
    floor = 0.5 / math.sqrt(n) / 0.44

    def detectable(level: float) -> float:
        return max(_LEAST_ORDER - (quantile(1 - level) + quantile(0.99)) * floor, 0.0)

    return Outcome(order, floor, p, detectable, "order")
