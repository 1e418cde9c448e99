r"""Distances between samples and laws, as numbers.

No single one sees everything: the energy distance is nearly blind to a wrong width of the modes, the kernel Stein
discrepancy to wrong weights, sliced Wasserstein to most small defects. Use several, and put beside each its
:func:`noise_floor`: what it says of two exact samples. Verdicts with stated levels are in :mod:`~sdediff.verify`.

Tests of two samples with an exact p-value: :func:`energy_test`, :func:`mmd_test`, :func:`classifier_test`; of one sample
against a score :func:`stein_test`, against a mixture :func:`mode_occupancy`, :func:`within_mode`, :func:`ks_projections`
and :func:`mode_coverage`.

All functions take samples (n, *event), flatten them and compute in float64, pairs in blocks (but :func:`wasserstein` keeps its
whole matrix). The unbiased ones scatter around 0 where two
laws agree, and are then negative about half of the time: that is a merit, not a fault.
"""

from .classifier import Neighbours, Perceptron, Told, classifier_test
from .floor import NoiseFloor, noise_floor
from .mixtures import (
    Coverage,
    Occupancy,
    Projections,
    WithinMode,
    ks_projections,
    mode_coverage,
    mode_occupancy,
    project_cdf,
    within_mode,
)
from .neighbours import Neighbourhoods, precision_recall
from .pairs import random_directions
from .permutation import Permuted, energy_test, mmd_test
from .samples import energy_distance, median_bandwidth, mmd, sliced_wasserstein
from .stein import SteinTest, kernel_stein_discrepancy, stein_test
from .transport import wasserstein

__all__ = [
    "Coverage",
    "Neighbourhoods",
    "Neighbours",
    "NoiseFloor",
    "Occupancy",
    "Perceptron",
    "Permuted",
    "Projections",
    "SteinTest",
    "Told",
    "WithinMode",
    "classifier_test",
    "energy_distance",
    "energy_test",
    "kernel_stein_discrepancy",
    "ks_projections",
    "median_bandwidth",
    "mmd",
    "mmd_test",
    "mode_coverage",
    "mode_occupancy",
    "noise_floor",
    "precision_recall",
    "project_cdf",
    "random_directions",
    "sliced_wasserstein",
    "stein_test",
    "wasserstein",
    "within_mode",
]
