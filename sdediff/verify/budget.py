"""Seconds into samples: how many particles a check can afford."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..checks import check_seed

FEWEST, MOST = 1_000, 1_000_000
_PILOT, _NOTICEABLE = 500, 0.04


def check_options(
    seed: int, *, n: int | None = None, budget: float | None = None, level: float = 0.5, least: int = 2
) -> None:
    """Raise unless these options of a check make sense. A check needs n or a budget.

    Raises:
        TypeError: the seed is no whole number.
        ValueError: n is no whole number of at least ``least``, the budget no positive number of seconds, the level no
            probability between 0 and 1; or there is neither n nor a budget.
    """
    check_seed(seed)
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < least):
        raise ValueError(f"n = {n!r} must be a whole number of at least {least} samples.")
    if budget is not None or n is None:
        number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
        if not number or not 0 < budget < float("inf"):  # type: ignore[operator]
            raise ValueError(f"budget = {budget!r} must be a positive number of seconds.")
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ValueError(f"level = {level!r} must lie between 0 and 1.")


def affordable(work: Callable[[int], object], seconds: float, least: int = FEWEST) -> int:
    """The n for which ``work(n)`` takes about this many seconds, at least ``least``: two digits of it.

    The work is done on ever more samples until that takes a noticeable part of the time, and the rest follows: a difference of
    two short times would be at the mercy of whatever else the machine does. More samples also ask for smaller steps, in
    proportion to the fourth root of n.
    """
    work(_PILOT)  # warms up
    started, n, took = time.perf_counter(), _PILOT, 0.0
    while took < _NOTICEABLE * seconds and n < MOST:
        n *= 4
        took = _timed(work, n)
    left = max(seconds - (time.perf_counter() - started), 0.0)
    return _rounded(min(max(n * (left / took) ** 0.8, least), MOST))


def _timed(work: Callable[[int], object], n: int) -> float:
    started = time.perf_counter()
    work(n)
    return time.perf_counter() - started


def _rounded(n: float) -> int:
    unit = 10 ** max(len(str(int(n))) - 2, 0)
    return int(n) // unit * unit
