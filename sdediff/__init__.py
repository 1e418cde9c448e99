"""sdediff: write f and g, get everything else."""

from . import densities
from .diffusion import Dense, Diagonal
from .exact import ExactScore
from .linear import LinearSDE
from .processes import EDM, OU, VE, VP, CosineVP, CustomVP, RectifiedFlow, SubVP
from .score import ClassifierFree, FunctionScore, Score
from .sde import ODE, SDE

__version__ = "0.1.0"
