"""Seconds into samples: how many particles a check can afford."""

from __future__ import annotations

import time
from collections.abc import Callable

FEWEST, MOST = 1_000, 1_000_000
_PILOT, _NOTICEABLE = 500, 0.04


def check_budget(seconds: float | None) -> None:
    """Raise unless the budget is a positive number of seconds."""
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ValueError(f"budget = {seconds!r} must be a positive number of seconds.")


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
