r"""The law of a finite data set: every sample an atom. Its diffused score is the ideal denoiser of that data set.

.. math:: \mathrm E[x_0 \mid x] = \sum_i w_i x_i, \qquad
          w = \operatorname{softmax}_i\Bigl(\frac{\alpha}{\sigma^2}\bigl(x\cdot x_i - \tfrac\alpha2|x_i|^2\bigr)\Bigr) .
"""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor

from ..checks import check_finite, check_state, float64
from .base import Density, Posterior

_LOGITS = 2**22  # entries of one block of logits (float64: 32 MiB)
_ATOMS = 2**19  # entries of one block of atoms in float64 (4 MiB: small enough to be reused, not mapped anew)


class Empirical(Density):
    r"""Atoms at the rows of a data set, equally weighted.

    :math:`E[x_0 \mid x_t]` is a softmax average over all of them. The products :math:`x\cdot x_i` are made in float64:
    in float32 they spoil the weights at small sigma (784 dimensions, sigma = 0.002: logits wrong by 20). Both the
    batch and the atoms are taken in blocks, so that beside the data itself a call needs some hundred MiB.

    Args:
        data: (N, *event), float32 or float64; kept as it is, not copied.

    Raises:
        TypeError, ValueError: data is no batch of floating states, is of half precision, or is not finite.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, appendix B.3.
    """

    def __init__(self, data: Tensor):
        if check_state(data, "data").dtype not in (torch.float32, torch.float64):
            raise TypeError(f"data is {data.dtype}: a data set of atoms needs float32 or float64, use data.float().")
        self.atoms = data.detach().reshape(len(data), -1)
        self.event_shape = tuple(data.shape[1:])
        self.device, self.dtype = data.device, data.dtype
        self.half_norms = float64(self.atoms.new_empty(len(data)))  # (N,)
        for norms, block in zip(self._blocks(self.half_norms), self._blocks(), strict=True):
            # In place: small results left between large temporaries would keep the memory of each from the next.
            norms.copy_(0.5 * float64(block).square().sum(1))
        if data.device.type != "meta" and not bool(self.half_norms.isfinite().all()):
            check_finite(data, "data")  # says which rows
        self._cache: dict[torch.device, Empirical] = {}

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Rows of the data set, drawn with replacement."""
        rows = torch.randint(len(self.atoms), (n,), generator=generator)
        return self.atoms[rows.to(self.atoms.device)].reshape(n, *self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Refused: atoms have no density."""
        raise ValueError(
            "A finite data set has no density at t = 0; ask ExactScore(sde, data).log_prob(x, t) at t > 0."
        )

    def score(self, x: Tensor) -> Tensor:
        """Refused: atoms have no score."""
        raise ValueError("A finite data set has no score at t = 0; ask ExactScore(sde, data)(x, t) at t > 0.")

    def diffused(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> EmpiricalPosterior:
        """The posterior over the data set at x (B, *event).

        Raises:
            ValueError: sigma is 0 (seen on the host only): atoms have no density.
        """
        check_noise(sigma, "A finite data set")
        return EmpiricalPosterior(self._on(x.device), self._check(x), alpha, sigma)

    def _on(self, device: torch.device) -> Self:
        """This law with its atoms on a device, remembered."""
        if device == self.atoms.device:
            return self
        if device not in self._cache:
            twin = copy.copy(self)
            twin.atoms, twin.half_norms = self.atoms.to(device), self.half_norms.to(device)
            self._cache[device] = twin
        return self._cache[device]  # type: ignore[return-value]

    def _blocks(self, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        """The atoms, or something else with a row for each, in blocks."""
        return (self.atoms if rows is None else rows).split(max(1, _ATOMS // max(1, self.atoms.shape[1])))


class EmpiricalPosterior(Posterior):
    """The posterior of the data set at x."""

    def __init__(self, law: Empirical, x: Tensor, alpha: Tensor, sigma: Tensor):
        self.shape, self.dtype = x.shape, x.dtype
        self.x = float64(x).reshape(len(x), -1)
        self.alpha, self.sigma = (
            c.to(self.x.device, self.x.dtype).reshape(-1, 1).expand(len(x), 1) for c in (alpha, sigma)
        )
        rows = max(1, _LOGITS // max(len(law.atoms), self.x.shape[1]))
        parts = [
            _softmax_average(law, *block)
            for block in zip(self.x.split(rows), self.alpha.split(rows), self.sigma.split(rows), strict=True)
        ]
        self.mean = torch.cat([mean for mean, _ in parts])
        self.log_density = torch.cat([log_density for _, log_density in parts])

    def _out(self, value: Tensor) -> Tensor:
        return value.reshape(self.shape).to(self.dtype)

    def data(self) -> Tensor:
        """E[x_0 | x]: the ideal denoiser."""
        return self._out(self.mean)

    def noise(self) -> Tensor:
        """E[eps | x]."""
        return self._out((self.x - self.alpha * self.mean) / self.sigma)

    def score(self) -> Tensor:
        """The score."""
        return self._out((self.alpha * self.mean - self.x) / self.sigma**2)

    def log_prob(self) -> Tensor:
        """The log density of the smoothed data set, (B,)."""
        return self.log_density.to(self.dtype)


def _softmax_average(law: Empirical, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean (b, D) and log density (b,) for a block of the batch; alpha and sigma (b, 1)."""
    dots, start = x.new_empty(len(law.atoms), len(x)), 0
    for atoms in law._blocks():
        # In place, as for the norms: a list of results would hold memory apart.
        dots[start : start + len(atoms)] = float64(atoms) @ x.T
        start += len(atoms)
    dots = dots.T  # (b, N)
    logits = alpha / sigma**2 * (dots - alpha * law.half_norms)  # up to a term in x alone
    own = 0.5 * (x / sigma).square().sum(1)
    norm = x.shape[1] * (sigma.log().squeeze(1) + 0.5 * math.log(2 * math.pi)) + math.log(len(law.atoms))
    log_density = torch.logsumexp(logits, 1) - own - norm
    weights = torch.softmax(logits, 1)
    mean = torch.zeros_like(x)
    start = 0
    for atoms in law._blocks():
        mean.add_(weights[:, start : start + len(atoms)] @ float64(atoms))
        start += len(atoms)
    return mean, log_density


def check_noise(sigma: Tensor, what: str) -> None:
    """Refuse sigma = 0, where a law has no score, as far as that can be seen without stalling a device."""
    if sigma.device.type == "cpu" and bool((sigma <= 0).any()):
        raise ValueError(f"{what} has no score at sigma(t) = 0: ask at t > 0 (a solver stops at t_min > 0).")
