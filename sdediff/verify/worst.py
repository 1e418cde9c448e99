"""The worst of several errors."""

from __future__ import annotations

import math

from .report import Row, exact_row


class Worst:
    """The largest of the errors ``seen``, and where that was. NaN is larger than any number, and stays."""

    def __init__(self) -> None:
        self.error, self.where = 0.0, ""

    def seen(self, error: float, where: str) -> None:
        """Another error, with what to say of it if it is the worst."""
        if not (error <= self.error or math.isnan(self.error)):
            self.error, self.where = error, where

    def row(self, what: str, tolerance: float) -> Row:
        """An exact row of the worst error."""
        return exact_row(what, self.error, tolerance, self.where)
