"""Log-densities and bounds: the probability flow, the continuous-time bound, and data on a lattice."""

from .bound import TimeProposal, UniformLogSNR, UniformTime, elbo
from .dequantise import Dequantisation, UniformDequantisation, VariationalDequantisation
from .divergence import Divergence, ExactTrace, Hutchinson, HutchPlusPlus
from .estimate import Estimate, LogDensity, bits_per_dim
from .flow import WithDivergence, decode, encode, log_prob

__all__ = [
    "Dequantisation",
    "Divergence",
    "Estimate",
    "ExactTrace",
    "HutchPlusPlus",
    "Hutchinson",
    "LogDensity",
    "TimeProposal",
    "UniformDequantisation",
    "UniformLogSNR",
    "UniformTime",
    "VariationalDequantisation",
    "WithDivergence",
    "bits_per_dim",
    "decode",
    "elbo",
    "encode",
    "log_prob",
]
