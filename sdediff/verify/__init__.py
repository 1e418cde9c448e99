"""Checks that say pass or fail, with what they measured and what they could have seen."""

from .duality import duality
from .identity import langevin_identity, stationary
from .laws import Law
from .report import Report, Row

__all__ = ["Law", "Report", "Row", "duality", "langevin_identity", "stationary"]
