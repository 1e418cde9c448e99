"""sdediff: write f and g, get everything else."""

from . import densities, grids
from .diffusion import Dense, Diagonal
from .errors import NonFiniteError, SolveError
from .exact import ExactScore
from .linear import LinearSDE
from .noise import PerSample
from .processes import EDM, OU, VE, VP, CosineVP, CustomVP, RectifiedFlow, SubVP
from .sample import sample
from .score import ClassifierFree, FunctionScore, Score
from .sde import ODE, SDE
from .solution import Solution
from .solve import solve
from .solvers import (
    RK4,
    Ancestral,
    EulerMaruyama,
    ExactTransition,
    Heun,
    Langevin,
    Midpoint,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta,
    Scipy,
    Solver,
    TorchSDE,
)

__version__ = "0.1.0"
__all__ = [
    "EDM",
    "ODE",
    "OU",
    "RK4",
    "SDE",
    "VE",
    "VP",
    "Ancestral",
    "ClassifierFree",
    "CosineVP",
    "CustomVP",
    "Dense",
    "Diagonal",
    "EulerMaruyama",
    "ExactScore",
    "ExactTransition",
    "FunctionScore",
    "Heun",
    "Langevin",
    "LinearSDE",
    "Midpoint",
    "NonFiniteError",
    "PerSample",
    "PredictorCorrector",
    "RectifiedFlow",
    "ReverseDiffusion",
    "RungeKutta",
    "Scipy",
    "Score",
    "Solution",
    "SolveError",
    "Solver",
    "SubVP",
    "TorchSDE",
    "densities",
    "grids",
    "sample",
    "solve",
]
