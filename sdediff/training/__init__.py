"""Training a score: the denoising loss, a short training loop, and checkpoints without pickle."""

from .checkpoint import Checkpoint, load, save
from .ema import averaged
from .fit import Fit, TrainingError, fit
from .losses import DenoisingLoss
from .times import LogNormal, Times, Uniform
from .weightings import DataError, Karras, Likelihood, MinSNR, NoiseError, Simple, Weighting

__all__ = [
    "Checkpoint",
    "DataError",
    "DenoisingLoss",
    "Fit",
    "Karras",
    "Likelihood",
    "LogNormal",
    "MinSNR",
    "NoiseError",
    "Simple",
    "Times",
    "TrainingError",
    "Uniform",
    "Weighting",
    "averaged",
    "fit",
    "load",
    "save",
]
