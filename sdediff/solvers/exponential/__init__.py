"""The exponential family: one mechanism, named presets."""

from .coupled import CoupledMultistep
from .kernel import Held, HeldData, HeldNoise
from .multistep import ExponentialMultistep
from .presets import (
    DDIM,
    DEIS,
    IPNDM,
    SEEDS2,
    SEEDS3,
    DPMSolver1,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    ExponentialAdams,
    SASolver,
    UniPCSolver,
)
from .rules import Adams, Midpoint, Polynomial, Published3M, Rule, UniPC, in_log_snr, in_noise_level, in_power, in_time
from .singlestep import ExponentialSingleStep
from .trapezoid import CoupledTrapezoid

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "SEEDS2",
    "SEEDS3",
    "Adams",
    "CoupledMultistep",
    "CoupledTrapezoid",
    "DPMSolver1",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "ExponentialAdams",
    "ExponentialMultistep",
    "ExponentialSingleStep",
    "Held",
    "HeldData",
    "HeldNoise",
    "Midpoint",
    "Polynomial",
    "Published3M",
    "Rule",
    "SASolver",
    "UniPC",
    "UniPCSolver",
    "in_log_snr",
    "in_noise_level",
    "in_power",
    "in_time",
]
