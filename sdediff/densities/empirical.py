"""The law of a finite data set: every sample an atom. Its diffused score is the ideal denoiser of that data set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_finite, check_state
from .base import Density

_NEAREST = 64  # candidates whose distance is computed again in float64
_LOGITS = 2**22  # entries of one block of logits


class Empirical(Density):
    r"""Atoms at the rows of a data set, equally weighted.

    :math:`E[x_0 \mid x_t]` is a softmax average over all of them. Distances come from one matrix product, blocked over
    the batch so that memory stays bounded; those of the nearest candidates, which decide at small sigma, are computed
    again in float64.

    Args:
        data: (N, *event), float32 or float64; kept as it is, not copied.
    """

    def __init__(self, data: Tensor):
        check_finite(check_state(data, "data"), "data")
        self.atoms = data.detach().reshape(len(data), -1)
        self.event_shape = tuple(data.shape[1:])
        self.device, self.dtype = data.device, data.dtype
        norms = [0.5 * block.double().square().sum(1) for block in self.atoms.split(4096)]
        self.half_norms = torch.cat(norms)  # (N,) float64

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Rows of the data set, drawn with replacement."""
        rows = torch.randint(len(self.atoms), (n,), generator=generator)
        return self.atoms[rows.to(self.atoms.device)].reshape(n, *self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Refused: atoms have no density."""
        raise ValueError(
            "A finite data set has no density at t = 0; ask ExactScore(sde, data).log_prob(x, t) at t > 0."
        )

    def diffused(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> EmpiricalPosterior:
        """The posterior over the data set at x (B, *event)."""
        return EmpiricalPosterior(self, self._check(x), alpha, sigma)


class EmpiricalPosterior:
    """The posterior of the data set at x."""

    def __init__(self, law: Empirical, x: Tensor, alpha: Tensor, sigma: Tensor):
        self.shape, self.dtype = x.shape, x.dtype
        self.x = x.reshape(len(x), -1).to(law.atoms.device)
        self.alpha, self.sigma = (
            c.to(torch.float64).reshape(-1, 1).expand(len(x), 1).to(law.atoms.device) for c in (alpha, sigma)
        )
        rows = max(1, _LOGITS // len(law.atoms))
        parts = [
            _softmax_average(law, *block)
            for block in zip(self.x.split(rows), self.alpha.split(rows), self.sigma.split(rows), strict=True)
        ]
        self.mean = torch.cat([mean for mean, _ in parts])
        self.log_density = torch.cat([log_density for _, log_density in parts])

    def _out(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).reshape(self.shape)

    def data(self) -> Tensor:
        """E[x_0 | x]: the ideal denoiser."""
        return self._out(self.mean)

    def noise(self) -> Tensor:
        """E[eps | x]."""
        return self._out((self.x.double() - self.alpha * self.mean.double()) / self.sigma)

    def score(self) -> Tensor:
        """The score."""
        return self._out((self.alpha * self.mean.double() - self.x.double()) / self.sigma**2)

    def log_prob(self) -> Tensor:
        """The log density of the smoothed data set, (B,)."""
        return self.log_density.to(self.dtype)


def _softmax_average(law: Empirical, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean (b, D) and log density (b,) for a block of the batch."""
    atoms, scale = law.atoms, alpha / sigma**2
    cross = (x.to(atoms.dtype) @ atoms.T).double()  # (b, N)
    logits = scale * (cross - alpha * law.half_norms)  # up to a term in x alone
    near = logits.topk(min(_NEAREST, len(atoms)), 1).indices
    exact = (x.double().unsqueeze(1) * atoms[near].double()).sum(-1) - alpha * law.half_norms[near]
    logits.scatter_(1, near, scale * exact)
    own = 0.5 * (x.double() / sigma).square().sum(1)
    norm = x.shape[1] * (sigma.log().squeeze(1) + 0.5 * math.log(2 * math.pi)) + math.log(len(atoms))
    log_density = torch.logsumexp(logits, 1) - own - norm
    return torch.softmax(logits, 1).to(atoms.dtype) @ atoms, log_density
