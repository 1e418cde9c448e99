"""Small networks to learn scores with: enough for toy laws, tables and small images. Any module of your own does as well."""

from .embeddings import Fourier, Sinusoidal
from .mlp import MLP

__all__ = ["MLP", "Fourier", "Sinusoidal"]
