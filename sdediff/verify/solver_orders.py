r"""The orders of convergence that a solver has, beside those that it claims, from both sides.

The errors of M paths at L step sizes give a slope with a confidence interval (jackknife over groups of paths). The claim holds
where the whole interval lies within :data:`TOLERANCE` of it: a solver that does better than it says has a wrong claim too.
Steps are fine enough for the order to show and coarse enough for rounding not to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy import special
from torch import Tensor

from ..brownian import BrownianPath
from ..grids import LogSNR
from ..noise import Noise
from ..processes import VP
from ..sde import SDE, Semilinear
from ..solve import solve
from ..solvers import SRA1, Method, Solver
from .references import END, ClosedForms, reversal, ring_flow
from .report import Row

TOLERANCE = 0.2
"""How far from the claim the interval of an order may reach."""

CONVERGENT = {"ode": 0.8, "strong": 0.3}
"""The order that a solver without a claim must have to converge at all."""

_GROUPS = 32
_ROUNDING = 1e-9
_REFERENCE = 3e-11  # errors on the flow below this show rounding, or the reference
_FLOW_PAIRS = ((320, 640), (640, 1280))  # the second where the first shows no order yet
_FEWEST = 40
_STRONG_STEPS = (32, 64, 128, 256)
_REVERSAL_STEPS = (16, 32, 64)
_FADING_STEPS = (32, 64, 128)
_LAW_STEPS, _ENOUGH = (128, 256, 512), 256
_PATHS = 2048


def order_of(errors: Tensor, level: float, *, geometric: bool = False) -> tuple[float, float]:
    """The order from the errors (L, M) of M paths at steps that halve, and the half-width of its interval at this level.

    Args:
        errors: positive.
        level: the probability that the interval misses the order.
        geometric: take geometric means over paths. Each path of an ODE has the order, but a few have far larger errors.
    """
    values = errors.clamp_min(1e-300).log2() if geometric else errors
    groups = values.reshape(len(errors), _GROUPS, -1).mean(2).T  # (G, L)
    means = groups.mean(0), (groups.sum(0) - groups) / (_GROUPS - 1)
    whole, left_out = (_slope(m.exp2() if geometric else m) for m in means)
    error = float(((_GROUPS - 1) / _GROUPS * (left_out - left_out.mean()).square().sum()).sqrt())
    return float(whole), error * abs(float(special.stdtrit(_GROUPS - 1, 0.5 * level)))


def flow_order(solver: Method, level: float) -> Row:
    """The order on the flow of a mixture between n and 2n steps, as many as rounding allows, and more if they show none."""
    known: dict[int, Tensor] = {}
    for coarse, fine in _FLOW_PAIRS:
        while coarse > _FEWEST and float(_flow_errors(solver, fine, known).median()) < _REFERENCE:
            coarse, fine = coarse // 2, coarse
        pair = torch.stack([_flow_errors(solver, steps, known) for steps in (coarse, fine)])
        row = _row("order on a mixture's flow", pair, solver.orders.ode, CONVERGENT["ode"], level, geometric=True)
        if row.passed:
            break
    return row


def _flow_errors(solver: Method, steps: int, known: dict[int, Tensor]) -> Tensor:
    if steps not in known:
        flow, x, exact = ring_flow()
        spacing: dict[str, Any] = {"grid": LogSNR(steps)} if isinstance(solver, Solver) else {"steps": steps}
        known[steps] = (solve(flow, x, solver=solver, t0=1.0, t1=END, seed=0, **spacing).x - exact).norm(dim=1)
    return known[steps]


def strong_order(solver: Method, sign: int, level: float) -> Row:
    """The strong order on three closed forms with noise that depends on the state; the worst of the three."""
    process, path = ClosedForms(sign), BrownianPath(0.0, 1.0, 10)
    x = torch.tensor([process.start], dtype=torch.float64).repeat(_PATHS, 1)
    exact = process.exact(path.open(x).increment(*process.ends))
    errors = torch.stack(
        [(_solved(process, solver, x, steps, path, *process.ends) - exact).abs() for steps in _STRONG_STEPS]
    )
    what, claimed = f"strong order on closed forms, {_clock(sign)} clock", solver.orders.strong
    rows = [_row(what, part, claimed, CONVERGENT["strong"], level / 3) for part in errors.unbind(2)]
    return max(rows, key=lambda row: row.statistic + row.floor)


def additive_order(solver: Method, level: float) -> Row:
    """The strong order on the reversal of a mixture, whose noise is additive."""
    fading = issubclass(solver.requires, Semilinear) and _takes_fading(solver)
    back, x, path, exact = reversal(_PATHS, fading, type(solver) if isinstance(solver, SRA1) else None)
    steps = _FADING_STEPS if fading else _REVERSAL_STEPS
    errors = torch.stack([(_solved(back, solver, x, k, path, 1.0, 0.3) - exact).norm(dim=1) for k in steps])
    claimed = solver.orders.strong_additive
    return _row("strong order on a reversal", errors, claimed, CONVERGENT["strong"], level)


def law_row(what: str, error: Callable[[int], float], claimed: float | None, largest: float) -> Row:
    """The order at which the error of a law falls, from below: a linear problem may flatter.

    Where it falls too slowly at the first numbers of steps, more are taken: higher orders may outweigh the leading one for
    long, but a wrong law stays wrong.

    Args:
        what: the name of the row.
        error: of the law, at a number of steps.
        claimed: the weak order, None for no claim: then the error must be at most ``largest``.
        largest: likewise with a claim.
    """
    errors: list[float] = []
    order = -math.inf
    for steps in _LAW_STEPS:
        errors.append(error(steps))
        if errors[-1] < _ROUNDING:
            return Row(f"{what}: exact", errors[-1], 2.2e-16, _ROUNDING, None, _ROUNDING, "of the law", True)
        order = math.log2(errors[-2] / errors[-1]) if len(errors) > 1 else order
        if steps >= _ENOUGH and (claimed is None or claimed - order <= TOLERANCE):
            break
    last = errors[-1]
    if claimed is None:
        return Row(f"{what}: error", last, 0.0, largest, None, largest, "of the law", last <= largest)
    short = max(claimed - order, 0.0) if order == order else math.nan
    passed = short <= TOLERANCE and last <= largest
    detail = f"the errors are {', '.join(f'{e:.2g}' for e in errors)}, each with twice the steps of the one before."
    what = f"{what}: order {order:.2f}, claimed {claimed:g}"
    return Row(what, short, 0.0, TOLERANCE, None, TOLERANCE, "too low", passed, "" if passed else detail)


def _takes_fading(solver: Method) -> bool:
    """Not DDPM's step, which has stochasticity 1."""
    try:
        solver.check(VP().reverse(lambda x, t: -x, lambda t: t))
    except ValueError:
        return False
    return True


def _solved(process: SDE, solver: Method, x: Tensor, steps: int, path: Noise, t0: float, t1: float) -> Tensor:
    return solve(process, x, solver=solver, t0=t0, t1=t1, steps=steps, noise=path).x


def _slope(errors: Tensor) -> Tensor:
    """The order from errors (..., L), by least squares."""
    k = torch.arange(errors.shape[-1], dtype=torch.float64)
    k = k - k.mean()
    return -(errors.log2() * k).sum(-1) / (k * k).sum()


def _row(
    what: str, errors: Tensor, claimed: float | None, least: float, level: float, *, geometric: bool = False
) -> Row:
    mean = errors.mean(1)
    if float(mean[-1]) < 1e-12:
        return Row(f"{what}: exact", float(mean[-1]), 2.2e-16, 1e-12, None, 1e-12, "absolute", True)
    order, half = order_of(errors, level, geometric=geometric)
    detail = f"the mean errors are {', '.join(f'{e:.3g}' for e in mean.tolist())}, each with twice the steps of the one before."
    if claimed is None:
        what, short = f"{what}: {order:.2f}, none claimed", max(least - order, 0.0)
        passed = order == order and order - half > 0 and short == 0
        return Row(what, short, half, TOLERANCE, None, TOLERANCE, "too low", passed, "" if passed else detail)
    away = abs(order - claimed)
    passed = away + half <= TOLERANCE
    what = f"{what}: {order:.2f}, claimed {claimed:g}"
    return Row(what, away, half, TOLERANCE, None, TOLERANCE, "of the order", passed, "" if passed else detail)


def _clock(sign: int) -> str:
    return "rising" if sign > 0 else "falling"
