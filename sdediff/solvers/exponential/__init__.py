"""The exponential family: one mechanism, named presets."""

from .kernel import DataPrediction, NoisePrediction, Prediction
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
    SASolver,
    UniPCSolver,
)
from .rules import Adams, Midpoint, Polynomial, Published3M, Rule, UniPC, in_log_snr, in_noise_level, in_time
from .singlestep import ExponentialSingleStep

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "SEEDS2",
    "SEEDS3",
    "Adams",
    "DPMSolver1",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DataPrediction",
    "ExponentialMultistep",
    "ExponentialSingleStep",
    "Midpoint",
    "NoisePrediction",
    "Polynomial",
    "Prediction",
    "Published3M",
    "Rule",
    "SASolver",
    "UniPC",
    "UniPCSolver",
    "in_log_snr",
    "in_noise_level",
    "in_time",
]
