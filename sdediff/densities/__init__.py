"""Toy targets and data sets with exact scores."""

from .base import Density, Distribution, as_density
from .boxes import Boxes, Checkerboard
from .curves import moons, pinwheel, ribbon, rings, spirals, swiss_roll
from .empirical import Empirical
from .mixture import Mixture
from .targets import anisotropic, bimodal, gaussian, grid, random_mixture, ring
from .twisted import Banana, Funnel

__all__ = [
    "Banana",
    "Boxes",
    "Checkerboard",
    "Density",
    "Distribution",
    "Empirical",
    "Funnel",
    "Mixture",
    "anisotropic",
    "as_density",
    "bimodal",
    "gaussian",
    "grid",
    "moons",
    "pinwheel",
    "random_mixture",
    "ribbon",
    "ring",
    "rings",
    "spirals",
    "swiss_roll",
]
