"""The Fokker-Planck equation on a grid: the law of any SDE in one or two dimensions, without a sample."""

from .cells import Cells
from .law import GridDensity, GridLaw
from .solver import FokkerPlanck

__all__ = ["Cells", "FokkerPlanck", "GridDensity", "GridLaw"]
