"""The discrete chain of DDPM: forward, Bayes, backward, and its variational bound."""

from .bound import Discretised, VariationalBound, Weighted, kl
from .chain import Chain
from .process import Interpolation, Preserving
from .reverse import ReverseChain
from .schedules import cosine, linear, sigmoid
from .steps import (
    AncestralStep,
    BackwardStep,
    CommonStep,
    DDIMStep,
    LargeVariance,
    LearnedVariance,
    ReverseDiffusionStep,
    SmallVariance,
    VanillaStep,
)

__all__ = [
    "AncestralStep",
    "BackwardStep",
    "Chain",
    "CommonStep",
    "DDIMStep",
    "Discretised",
    "Interpolation",
    "LargeVariance",
    "LearnedVariance",
    "Preserving",
    "ReverseChain",
    "ReverseDiffusionStep",
    "SmallVariance",
    "VanillaStep",
    "VariationalBound",
    "Weighted",
    "cosine",
    "kl",
    "linear",
    "sigmoid",
]
