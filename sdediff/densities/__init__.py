"""Toy targets and data sets with exact scores."""

from .base import Density, Distribution, as_density
from .empirical import Empirical
from .mixture import Mixture

__all__ = ["Density", "Distribution", "Empirical", "Mixture", "as_density"]
