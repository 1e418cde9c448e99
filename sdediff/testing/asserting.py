"""Checks as assertions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from .. import verify
from ..verify import Report

P = ParamSpec("P")
R = TypeVar("R", bound=Report)


def passes(report: R) -> R:
    """The report itself if it passed.

    Raises:
        AssertionError: it did not; the message is the report, printed.
    """
    __tracebackhide__ = True  # pytest points to the line of the test
    if not report.passed:
        raise AssertionError(f"\n{report}")
    return report


def _asserting(check: Callable[P, R]) -> Callable[P, R]:
    @wraps(check)
    def asserting(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        return passes(check(*args, **kwargs))

    return asserting


check_sde = _asserting(verify.check_sde)
langevin_identity = _asserting(verify.langevin_identity)
duality = _asserting(verify.duality)
exchangeability = _asserting(verify.exchangeability)
fokker_planck = _asserting(verify.fokker_planck)
stationary = _asserting(verify.stationary)
check_score = _asserting(verify.check_score)
check_solver = _asserting(verify.check_solver)
