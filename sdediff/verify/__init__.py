"""Checks that say pass or fail, with what they measured and what they could have seen."""

from .check_score import check_score
from .check_sde import check_sde
from .check_solver import check_solver
from .duality import duality
from .error_budget import ErrorBudget, error_budget
from .exchangeability import exchangeability
from .identity import langevin_identity, stationary
from .laws import Law
from .pointwise import fokker_planck
from .report import Report, Row
from .score_report import ErrorAt, ScoreReport

__all__ = [
    "ErrorAt",
    "ErrorBudget",
    "Law",
    "Report",
    "Row",
    "ScoreReport",
    "check_score",
    "check_sde",
    "check_solver",
    "duality",
    "error_budget",
    "exchangeability",
    "fokker_planck",
    "langevin_identity",
    "stationary",
]
