"""Affine SDEs with matrix coefficients: their kernels, scores and reversals."""

from .moments import Kernel
from .process import AffineSDE
from .scales import CoupledGaussian, Scales

__all__ = ["AffineSDE", "CoupledGaussian", "Kernel", "Scales"]
