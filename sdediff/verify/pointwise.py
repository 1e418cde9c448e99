"""The Fokker-Planck equation of a process, its reversal and its flow, checked pointwise."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..checks import check_seed
from ..densities import Density
from ..sde import SDE, ScoreLike
from .attempt import attempt
from .laws import Law, law_of
from .operator import residual
from .report import Report, Row, exact_row
from .reversal import POINTS, POINTWISE, Scene


def fokker_planck(
    sde: SDE, density: Density | Law, t: float, *, score: ScoreLike | None = None, seed: int = 0
) -> Report:
    r"""Check :math:`\partial_tp = -\nabla\cdot(fp) + \tfrac12\nabla\nabla:(Dp)` at time t, at samples of p_t, exactly.

    Three operators must give the same :math:`\partial_tp_t`, up to its sign: that of the process, that of its reverse SDE
    and that of its probability flow.

    Args:
        sde: the forward process, its f and g differentiable in x.
        density: the law at t = 0 of a linear SDE, where it has a closed form under it, or a :class:`Law` of your own; any
            other density is taken as a stationary law, for which :math:`\partial_tp = 0`.
        t: the time, inside the domain.
        score: the score to put to the test in the reversals; that of the law by default.
        seed: of the points.

    Raises:
        ValueError: the process is itself a reversal, or t lies outside its domain.
    """
    if sde.direction < 0:
        raise ValueError(f"{type(sde).__name__} is a reversal: give the process before it.")
    law = law_of(sde, density)
    points = law.sample(POINTS, t, torch.Generator().manual_seed(check_seed(seed)))
    sde.drift(points, t)  # a time outside the domain is the caller's mistake, not a finding
    scene = Scene(sde, law, lambda t: points)
    score = law.score if score is None else score
    rate = scene.rate(t) if law.moves else torch.zeros(1, len(points), dtype=torch.float64)
    kinds: dict[str, tuple[int, Callable[[], SDE]]] = {"L*p = ∂p/∂t, the process": (1, lambda: sde)}
    if sde.direction > 0:
        kinds["L*p = -∂p/∂t, reverse SDE"] = -1, lambda: sde.reverse(score)
        kinds["L*p = ∂p/∂t, probability flow"] = 1, lambda: sde.probability_flow(score)

    def judged(what: str, sign: int, process: SDE) -> tuple[Row]:
        # Terms of the process, once with each sign, give the scale where a flow stands still.
        own = scene.terms(sde, t)
        return (exact_row(what, residual(torch.cat([scene.terms(process, t), -sign * rate, own, -own])), POINTWISE),)

    rows: tuple[Row, ...] = ()
    for what, (sign, make) in kinds.items():
        rows += attempt(what, lambda what=what, sign=sign, make=make: judged(what, sign, make()))  # type: ignore[misc]
    taken = "moves in time" if law.moves else "taken as stationary: ∂p/∂t = 0"
    notes = (
        f"law: {law}; {taken}.",
        f"{POINTS} samples of p_t, float64; relative to the largest term of the equation.",
    )
    return Report(f"Fokker-Planck equation of {type(sde).__name__} at t = {t:g}", tuple(rows), notes)
