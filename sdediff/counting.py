"""Counting score evaluations where they happen.

``with count() as tally`` opens a tally; every :class:`~sdediff.score.Score` evaluated inside adds one call and as
many rows as it received. A score built from other scores adds nothing of its own when those have counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_open: ContextVar[Tally | None] = ContextVar("sdediff_tally", default=None)


@dataclass(slots=True)
class Tally:
    """``calls``: how often a score was called; ``rows``: how many samples those calls saw in total."""

    calls: int = 0
    rows: int = 0


@contextmanager
def count() -> Iterator[Tally]:
    """A tally of all score evaluations in this block (an outer block does not see them twice: it sees them too)."""
    outer = _open.get()
    tally = Tally()
    token = _open.set(tally)
    try:
        yield tally
    finally:
        _open.reset(token)
        if outer is not None:
            outer.calls += tally.calls
            outer.rows += tally.rows


def calls() -> int:
    """Calls seen so far by the open tally (0 when none is open)."""
    tally = _open.get()
    return 0 if tally is None else tally.calls


def seen(rows: int, since: int) -> None:
    """Count one call of ``rows`` rows, unless the open tally has moved on from ``since`` in the meantime."""
    tally = _open.get()
    if tally is not None and tally.calls == since:
        tally.calls += 1
        tally.rows += rows
