"""Training a score: losses, a trainer that can be killed and resumed and shared by workers, checkpoints without pickle."""

from .checkpoint import Checkpoint, from_pretrained, load, save, save_pretrained
from .draws import Draws, KeyedDraws
from .ema import averaged
from .examine import Examined
from .implicit import ImplicitLoss, Paths, ScoreNetwork, SlicedLoss
from .losses import DenoisingLoss, Loss
from .pairing import OptimalTransport, Pairing
from .plan import Plan
from .recorders import JSONLines, Recorder, TensorBoard, Trackio
from .schedules import Constant, Cosine, InverseSquareRoot, Linear, Schedule
from .state import newest_checkpoint
from .times import Importance, LogNormal, Times, Uniform
from .trainer import Fit, Trainer, TrainingError, fit
from .weightings import DataError, Karras, Likelihood, MinSNR, NoiseError, Simple, Weighting

__all__ = [
    "Checkpoint",
    "Constant",
    "Cosine",
    "DataError",
    "DenoisingLoss",
    "Draws",
    "Examined",
    "Fit",
    "ImplicitLoss",
    "Importance",
    "InverseSquareRoot",
    "JSONLines",
    "Karras",
    "KeyedDraws",
    "Likelihood",
    "Linear",
    "LogNormal",
    "Loss",
    "MinSNR",
    "NoiseError",
    "OptimalTransport",
    "Pairing",
    "Paths",
    "Plan",
    "Recorder",
    "Schedule",
    "ScoreNetwork",
    "Simple",
    "SlicedLoss",
    "TensorBoard",
    "Times",
    "Trackio",
    "Trainer",
    "TrainingError",
    "Uniform",
    "Weighting",
    "averaged",
    "fit",
    "from_pretrained",
    "load",
    "newest_checkpoint",
    "save",
    "save_pretrained",
]
