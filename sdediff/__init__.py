"""sdediff: write f and g, get everything else."""

from . import densities, grids, networks, training, verify
from .data import Standardisation
from .diffusion import Dense, Diagonal
from .errors import NonFiniteError, SolveError
from .exact import ExactScore
from .langevin import Chains, Overdamped, Phase, Underdamped, mala
from .linear import LinearSDE
from .noise import PerSample
from .predictions import (
    DataPrediction,
    FlowPrediction,
    NoisePrediction,
    Preconditioned,
    ScorePrediction,
    VelocityPrediction,
)
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
    "Chains",
    "ClassifierFree",
    "CosineVP",
    "CustomVP",
    "DataPrediction",
    "Dense",
    "Diagonal",
    "EulerMaruyama",
    "ExactScore",
    "ExactTransition",
    "FlowPrediction",
    "FunctionScore",
    "Heun",
    "Langevin",
    "LinearSDE",
    "Midpoint",
    "NoisePrediction",
    "NonFiniteError",
    "Overdamped",
    "PerSample",
    "Phase",
    "Preconditioned",
    "PredictorCorrector",
    "RectifiedFlow",
    "ReverseDiffusion",
    "RungeKutta",
    "Scipy",
    "Score",
    "ScorePrediction",
    "Solution",
    "SolveError",
    "Solver",
    "Standardisation",
    "SubVP",
    "TorchSDE",
    "Underdamped",
    "VelocityPrediction",
    "densities",
    "grids",
    "mala",
    "networks",
    "sample",
    "solve",
    "training",
    "verify",
]
