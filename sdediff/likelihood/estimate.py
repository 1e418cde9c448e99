"""What an estimate of a log-likelihood says of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Log-densities, or bounds on them, one for each sample.

    Args:
        value: in nats, (B,).
        standard_error: of each value, (B,): 0 where nothing was random, NaN where it is unknown (a single probe or draw).
        nfe: score evaluations per sample; a (B,) tensor where they differ.
    """

    value: Tensor
    standard_error: Tensor
    nfe: Any

    def __str__(self) -> str:
        mean, error = self.mean()
        return f"{mean:.4f} ± {error:.4f} nats, the mean of {len(self.value)}"

    def mean(self) -> tuple[float, float]:
        """The mean over these samples, and the error of it that comes from estimating: what it tells of *these* samples.

        As a statement on the law that the samples come from it has a second error, ``value.std() / len(value) ** 0.5``.
        """
        n = len(self.value)
        return float(self.value.double().mean()), float(self.standard_error.double().square().sum().sqrt()) / n


@dataclass(frozen=True)
class LogDensity(Estimate):
    """What :func:`~sdediff.log_prob` gives.

    Args:
        latent: where the flow takes x at t_max, (B, *event).
        prior_error: where a terminal law was given: by how much the value would change with the process's own ``prior``
            in its place, (B,); else None.
    """

    latent: Tensor
    prior_error: Tensor | None = None


def careful_error(squares: Tensor) -> Tensor:
    """Standard errors (B,) from the squares of each sample's own, none below their root mean square over the batch.

    Where rare draws decide, or few probes happen to agree, a sample that has met none of them is wrong and looks certain; the
    batch has met them.
    """
    return torch.maximum(squares, squares.mean()).sqrt()


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Minus a log-likelihood in nats, as bits for each of ``dimensions`` coordinates.

    Of a *probability* of discrete data this is a code length. Of a density it depends on the units: bring data to the lattice
    first, by a :class:`~sdediff.likelihood.Dequantisation`.
    """
    return -nats / (dimensions * math.log(2))


def log_mean_weight(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The importance-weighted estimate :math:`\log\tfrac1K\sum_k w_k`, from :math:`\log w_k` (K, B), two or more of them.

    Returns:
        The estimate, its standard error by the delta method and the effective number of weights, (B,) each.

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519.
    """
    count = len(log_weights)
    value = torch.logsumexp(log_weights, 0) - math.log(count)
    relative = torch.exp(log_weights - value)  # mean 1
    return value, relative.std(0) / math.sqrt(count), count / relative.square().mean(0)
