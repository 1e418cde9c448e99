"""Networks to learn scores with: for toy laws, tables, signals and small images. Any module of your own does as well."""

from .base import Network
from .diffusers import DiffusersUNet
from .embeddings import Fourier, Sinusoidal
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "DiffusersUNet", "Fourier", "Network", "Sinusoidal", "UNet"]
