"""Seconds into samples: how many particles a check can afford."""

from __future__ import annotations

import time
from collections.abc import Callable

FEWEST, MOST = 1_000, 1_000_000
_PILOT = 500


def check_budget(seconds: float | None) -> None:
    """Raise unless the budget is a positive number of seconds."""
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ValueError(f"budget = {seconds!r} must be a positive number of seconds.")


def affordable(work: Callable[[int], object], seconds: float, least: int = FEWEST) -> int:
    """The n for which ``work(n)`` takes about this many seconds, at least ``least``: two digits of it.

    The work is done twice on few samples; what does not grow between them is overhead. More samples also ask for smaller
    steps, in proportion to the fourth root of n.
    """
    work(_PILOT)  # warms up
    small, large = (_timed(work, n) for n in (_PILOT, 4 * _PILOT))
    each = max((large - small) / (3 * _PILOT), 1e-9)
    spare = seconds - max(small - each * _PILOT, 0.0)
    n = 4 * _PILOT * max(spare / (4 * _PILOT * each), 0.0) ** 0.8
    return _rounded(min(max(n, least), MOST))


def _timed(work: Callable[[int], object], n: int) -> float:
    started = time.perf_counter()
    work(n)
    return time.perf_counter() - started


def _rounded(n: float) -> int:
    unit = 10 ** max(len(str(int(n))) - 2, 0)
    return int(n) // unit * unit
