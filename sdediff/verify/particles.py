r"""What particles say of a process: its forward law against the kernel, its reversals against the exact law.

Euler-Maruyama has an error proportional to the step. Chains of N/2 and of N steps on one Brownian path cancel it,

.. math:: \mathrm E\,\phi(x_t) \approx 2\,\mathrm E\,\phi(x^{N}) - \mathrm E\,\phi(x^{N/2}) + O(h^2),

at hardly any cost in variance; N grows with the fourth root of the number of particles, so that what is left stays below the
noise. Then the means of several bounded functions are tested together (Hotelling): where all is right the p-value is
uniform, not merely large.

Source: Talay and Tubaro 1990, https://doi.org/10.1080/07362999008809220 (the extrapolation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import random_directions
from ..sde import SDE
from ..solvers import EulerMaruyama, Method
from .features import Features
from .halving import solve_halved
from .laws import Law
from .moments import Kernel
from .operator import rows
from .statistics import Outcome, joint_test, quantile, two_sided

Panel = Callable[[int, int], dict[str, Outcome]]
_AXES = 4
_COARSEST = 64
_LEAST_ORDER = 0.4  # 1/2 is what Euler-Maruyama has for any smooth f and g
_SHARP = 5.0  # steps at 1,000 particles, for each unit of log(signal/noise) or relaxation time


def forward_panel(sde: SDE, kernel: Kernel, t: float, start: Callable[[int, torch.Generator], Tensor]) -> Panel:
    """Particles from x_0 to t, standardised by the kernel: they must be standard normal given x_0."""
    moments = kernel.at(t)
    root = torch.linalg.cholesky(moments.covariance)
    steps_per = _Steps(8 * _SHARP)
    signal = (rows(start(1_000, torch.Generator().manual_seed(0))) @ moments.map.T).square().sum(1).mean()
    # An affine process may start anywhere: data that are large beside the noise would show the error of the steps.
    factor = min(1.0, math.sqrt(float(moments.covariance.trace() / signal)))

    def panel(n: int, seed: int) -> dict[str, Outcome]:
        generator = torch.Generator().manual_seed(seed)
        x0 = factor * start(n, generator)
        nodes = torch.linspace(0, t, steps_per(n) + 1, dtype=torch.float64)
        ends = solve_halved(sde, x0, EulerMaruyama(), nodes, _path(generator))
        mean = rows(x0) @ moments.map.T + moments.shift
        z = [torch.linalg.solve_triangular(root, (rows(x) - mean).T, upper=False).T for x in ends]
        turn = _directions(kernel.size, generator)
        coarse, fine = (_waves(v @ turn) for v in z)
        return {f"forward: x_t given x_0 at t = {t:.3g}": joint_test(2 * fine - coarse - _normal_waves(turn.shape[1]))}

    return panel


def backward_panel(process: SDE, name: str, law: Law, nodes_of: Callable[[int], Tensor], solver: Method) -> Panel:
    """Particles of a reversal from exact samples at the first node to the last: their law there must be the exact one."""
    steps_per = _Steps(4 * _SHARP)

    def panel(n: int, seed: int) -> dict[str, Outcome]:
        generator = torch.Generator().manual_seed(seed)
        nodes = nodes_of(steps_per(n))
        start, end = float(nodes[0]), float(nodes[-1])
        fresh = law.sample(4 * n, end, generator)
        d = fresh[0].numel()
        features = Features(law, end, random_directions(d, min(_AXES, d), generator), fresh[:1000])
        ends = solve_halved(process, law.sample(n, start, generator), solver, nodes, _path(generator))
        coarse, fine = (features(x) for x in ends)
        expected = features(fresh).reshape(n, 4, -1).mean(1)
        return {f"{name}: from t = {start:.3g} to {end:.3g}": joint_test(2 * fine - coarse - expected)}

    return panel


def convergence_panel(sde: SDE, horizon: float, start: Callable[[int, torch.Generator], Tensor]) -> Panel:
    """Euler-Maruyama with steps h, h/2 and h/4 on one path: the distances must shrink at order 1/2 or more."""

    def panel(n: int, seed: int) -> dict[str, Outcome]:
        generator = torch.Generator().manual_seed(seed)
        coarse, middle, fine = _three_chains(sde, start(n, generator), horizon / _COARSEST, generator)
        first, second = rows(coarse - middle).norm(dim=1), rows(middle - fine).norm(dim=1)
        return {f"steps: order of convergence to t = {horizon:.3g}": _order_test(first, second)}

    return panel


def merged(panels: list[Panel]) -> Panel:
    """One panel of several, each with a seed of its own."""

    def panel(n: int, seed: int) -> dict[str, Outcome]:
        return {what: found for k, each in enumerate(panels) for what, found in each(n, seed + 7919 * k).items()}

    return panel


@dataclass(frozen=True)
class _Steps:
    """An even number of steps that grows with the fourth root of n: ``at_thousand`` where n = 1,000."""

    at_thousand: float

    def __call__(self, n: int) -> int:
        return 2 * math.ceil(0.5 * self.at_thousand * (n / 1000) ** 0.25)


def _path(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


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


def _three_chains(sde: SDE, x: Tensor, h: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The ends of Euler-Maruyama chains with steps h, h/2 and h/4 on one Brownian path.

    Each sample has its own clock, slower than this by up to a half: f and g that jump at some time meet no one grid.
    """
    pace = 0.5 + 0.5 * torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator, dtype=x.dtype)
    step, chains = h * pace, [x, x, x]
    for k in range(_COARSEST):
        shape = sde.diffusion(chains[0], k * step).noise_shape(x)
        size = (0.25 * step).sqrt().reshape(len(x), *[1] * (len(shape) - 1))
        quarters = [torch.randn(shape, generator=generator, dtype=x.dtype) * size for _ in range(4)]
        for level, parts in enumerate((1, 2, 4)):
            each = 4 // parts
            for i in range(parts):
                at, dw = chains[level], sum(quarters[i * each : (i + 1) * each], torch.zeros(()))
                t = (k + i / parts) * step
                chains[level] = at + step / parts * sde.drift(at, t) + sde.diffusion(at, t) @ dw
    return chains[0], chains[1], chains[2]


def _order_test(first: Tensor, second: Tensor) -> Outcome:
    """That |x_h/2 - x_h/4| is smaller than 2^-0.4 |x_h - x_h/2| for half of the samples or more: an exact sign test."""
    n, limit = len(first), 2**-_LEAST_ORDER
    if not bool(torch.isfinite(first + second).all()):
        return Outcome(math.nan, 0.0, 0.0, lambda level: math.inf, "order")
    more = float((second > limit * first).double().mean())
    order = float(torch.log2(first.median() / second.median())) if float(second.median()) > 0 else math.inf
    z = (more - 0.5) * 2 * math.sqrt(n)
    p = 0.5 * two_sided(z) if z > 0 else 1.0
    # near 1/2 the share of samples changes by 0.44 for each unit of the order (a ratio of two normals)
    floor = 0.5 / math.sqrt(n) / 0.44

    def detectable(level: float) -> float:
        return max(_LEAST_ORDER - (quantile(1 - level) + quantile(0.99)) * floor, 0.0)

    return Outcome(order, floor, p, detectable, "order")
