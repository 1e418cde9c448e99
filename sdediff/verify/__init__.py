"""Checks that say pass or fail, with what they measured and what they could have seen."""

from .check_sde import check_sde
from .duality import duality
from .identity import langevin_identity, stationary
from .laws import Law
from .pointwise import fokker_planck
from .report import Report, Row

__all__ = ["Law", "Report", "Row", "check_sde", "duality", "fokker_planck", "langevin_identity", "stationary"]
