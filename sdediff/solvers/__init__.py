"""Solvers: one file a family."""

from .adaptive import BogackiShampine, DormandPrince, EmbeddedRungeKutta, Tsitouras
from .adaptive_sde import AdaptiveHeun
from .base import Advance, Integrator, Interval, Method, Orders, Remembering, Solver, Trajectory
from .checkpointed import Checkpointed
from .corrector import Langevin, PredictorCorrector
from .edm import EDMHeun
from .exponential import (
    DDIM,
    DEIS,
    IPNDM,
    SEEDS2,
    SEEDS3,
    CoupledMultistep,
    CoupledTrapezoid,
    DPMSolver1,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    ExponentialAdams,
    ExponentialMultistep,
    ExponentialSingleStep,
    SASolver,
    UniPCSolver,
)
from .milstein import Milstein
from .onestep import Ancestral, EulerMaruyama, ExactTransition, ReverseDiffusion
from .restart import Restart
from .runge_kutta import RK4, Heun, Midpoint, RungeKutta
from .scipy import Scipy
from .srk import SRA1, SRI2, SRIW1, SRK, Tableau
from .stochastic_heun import StochasticHeun
from .torchdiffeq import TorchDiffEq
from .torchsde import TorchSDE
from .underdamped import BAOAB
from .weak import Weak2

__all__ = [
    "BAOAB",
    "DDIM",
    "DEIS",
    "IPNDM",
    "RK4",
    "SEEDS2",
    "SEEDS3",
    "SRA1",
    "SRI2",
    "SRIW1",
    "SRK",
    "AdaptiveHeun",
    "Advance",
    "Ancestral",
    "BogackiShampine",
    "Checkpointed",
    "CoupledMultistep",
    "CoupledTrapezoid",
    "DPMSolver1",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DormandPrince",
    "EDMHeun",
    "EmbeddedRungeKutta",
    "EulerMaruyama",
    "ExactTransition",
    "ExponentialAdams",
    "ExponentialMultistep",
    "ExponentialSingleStep",
    "Heun",
    "Integrator",
    "Interval",
    "Langevin",
    "Method",
    "Midpoint",
    "Milstein",
    "Orders",
    "PredictorCorrector",
    "Remembering",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "SASolver",
    "Scipy",
    "Solver",
    "StochasticHeun",
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
    "Trajectory",
    "Tsitouras",
    "UniPCSolver",
    "Weak2",
]
