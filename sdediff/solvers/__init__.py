"""Solvers: one file a family."""

from .affine import Ancestral, EulerMaruyama, ExactTransition, ReverseDiffusion
from .base import Advance, Integrator, Interval, Method, Orders, Solver, Trajectory
from .corrector import Langevin, PredictorCorrector
from .runge_kutta import RK4, Heun, Midpoint, RungeKutta
from .scipy import Scipy
from .torchsde import TorchSDE

__all__ = [
    "RK4",
    "Advance",
    "Ancestral",
    "EulerMaruyama",
    "ExactTransition",
    "Heun",
    "Integrator",
    "Interval",
    "Langevin",
    "Method",
    "Midpoint",
    "Orders",
    "PredictorCorrector",
    "ReverseDiffusion",
    "RungeKutta",
    "Scipy",
    "Solver",
    "TorchSDE",
    "Trajectory",
]
