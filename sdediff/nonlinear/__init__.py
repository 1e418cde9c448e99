"""Processes that are not linear and yet have kernels in closed form: geometric Brownian motion, CIR, Jacobi."""

from .kernels import Kernel
from .processes import CIR, GeometricBrownianMotion, Jacobi, KernelSDE
from .score import KernelScore

__all__ = ["CIR", "GeometricBrownianMotion", "Jacobi", "Kernel", "KernelSDE", "KernelScore"]
