r"""Gaussian mixtures under an affine process: they stay mixtures.

Component k of the data, :math:`\mathcal N(m_k, S_k)`, becomes :math:`\mathcal N(\Phi m_k + c, V_k)` with
:math:`V_k = \Phi S_k\Phi^\top + C`, so that with the posterior weights :math:`w_k(x)` of the modes

.. math:: \nabla\log p_t(x) = -\sum_k w_k V_k^{-1}r_k, \qquad
          \mathrm E[x_0 \mid x] = \sum_k w_k\bigl(m_k + S_k\Phi^\top V_k^{-1}r_k\bigr), \qquad r_k = x - \Phi m_k - c .

Isotropic components keep the blocks of the process; others are computed with full matrices. A finite data set is a mixture
of components without width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import blocks
from ..checks import check_state, float64
from ..densities import Density, Empirical, Mixture
from ..densities.base import Posterior
from .scales import Scales

_LOG_2PI = math.log(2 * math.pi)


class CarriedMixture(Posterior):
    """The posterior of a mixture at states x (B, *event), T = 1 or B times.

    Args:
        density: a mixture or a finite data set.
        x: the states.
        scales: of the process at the times.

    Raises:
        NotImplementedError: another density.
        ValueError: x has another shape than a state that starts from the density's data.
    """

    def __init__(self, density: Density, x: Tensor, scales: Scales):
        self.shape, self.dtype, self.scales = x.shape, x.dtype, scales
        self.y = _checked(density, x, scales).unsqueeze(0)  # (1, B, n, k)
        components = _Components(density, scales, x.device)
        self.means, self.cross = components.means, components.cross
        self.full = components.full
        inverse = torch.linalg.inv(components.root) if components.root.shape[-1] > 1 else 1 / components.root
        self.inverse = inverse
        at = self.y.flatten(2).unsqueeze(2) if self.full else self.y
        z = _each(inverse, at - components.carried)  # (K, B, n, k)
        self.pulled = _each(inverse.mT, z)
        share = at.shape[2] / components.root.shape[2]
        log_det = share * torch.diagonal(components.root, dim1=-2, dim2=-1).log().sum((-2, -1)).T  # (K, T)
        self.logits = components.log_weights - 0.5 * z.square().sum((2, 3)) - log_det
        self.weights = torch.softmax(self.logits, 0)

    def score(self) -> Tensor:
        """The score, of x's shape."""
        return self._out(-self._mean(self.pulled))

    def noise(self) -> Tensor:
        r""":math:`-R^\top s`."""
        return self.scales.push(self._out(self._mean(self.pulled), torch.float64)).to(self.dtype)

    def data(self) -> Tensor:
        """E[x_0 | x], as a state."""
        return self._out(self._mean(self.means + _each(self.cross, self.pulled)))

    def log_prob(self) -> Tensor:
        """The log density, (B,)."""
        return (torch.logsumexp(self.logits, 0) - 0.5 * self.y[0, 0].numel() * _LOG_2PI).to(self.dtype)

    def _mean(self, values: Tensor) -> Tensor:
        return (self.weights[..., None, None] * values).sum(0)

    def _out(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        value = value.reshape(self.y.shape[1:]) if self.full else value
        return self.scales.sde.join(value, self.shape).to(dtype or self.dtype)


class _Components:
    r"""The components at T times: ``means`` m (K, 1, n, k), ``carried`` :math:`\Phi m + c` (K, T, n, k), ``root`` of V and
    ``cross`` :math:`S\Phi^\top` (T, K, m, k, k). ``full`` says that all are one block."""

    def __init__(self, density: Density, scales: Scales, device: torch.device):
        means, variances, basis, log_weights = _parameters(density)
        sde, kernel = scales.sde, scales.kernel.to(device)
        batch = kernel.scale.shape[:-3].numel()
        phi, covariance = (v.reshape(batch, 1, *v.shape[-3:]) for v in (kernel.scale, kernel.covariance))
        shift = kernel.shift.reshape(batch, 1, *kernel.shift.shape[-2:])
        y = sde.split(sde.lift(means.to(device, torch.float64)))  # (K, n, k)
        carried = blocks.act(phi, y) + shift  # (T, K, n, k)
        self.full = basis is not None
        if basis is None:
            spread = variances.to(device).reshape(1, -1, 1, 1, 1) * sde.data_covariance().to(device)
        else:
            n = y.shape[1]
            phi, covariance = (blocks.dense(v, n).unsqueeze(2) for v in (phi, covariance))
            axes = sde.split(sde.lift(basis.mT.reshape(-1, *means.shape[1:]).to(device))).reshape(
                len(means), -1, n * y.shape[2]
            )
            spread = ((axes.mT * variances.to(device).unsqueeze(1)) @ axes)[None, :, None]  # (1, K, 1, nk, nk)
            y, carried = y.flatten(1).unsqueeze(1), carried.flatten(2).unsqueeze(2)
        self.means, self.carried = y.unsqueeze(1), carried.transpose(0, 1)
        self.cross = blocks.product(spread, phi.mT)
        self.covariance = blocks.product(phi, self.cross) + covariance
        self.root = blocks.root(self.covariance)
        self.log_weights = log_weights.to(device)
        if device.type == "cpu" and bool((torch.diagonal(self.root, dim1=-2, dim2=-1) == 0).any()):
            raise ValueError("A finite data set has no density where there is no noise yet: ask at a later t.")


def law(density: Density, scales: Scales) -> Mixture:
    """The law of x_t as a mixture, for a mixture as the law of the data, one time, and states (d,).

    Raises:
        TypeError: the density is no mixture, or states have several axes.
    """
    if not isinstance(density, Mixture) or len(density.event_shape) != 1:
        raise TypeError(
            f"p_t of a {type(density).__name__} on states of shape {density.event_shape} cannot be written as a Mixture; use "
            "log_prob(x, t) and sample(n, t)."
        )
    components = _Components(density, scales, torch.device("cpu"))
    covariance, carried = components.covariance[0], components.carried[:, 0]  # (K, m, k, k), (K, n, k)
    n, k = scales.sde.split(scales.sde.lift(torch.zeros(1, *density.event_shape, dtype=torch.float64))).shape[1:]
    covariance = covariance[:, 0] if components.full else blocks.dense(covariance, n)
    axes = scales.sde.join(torch.eye(n * k, dtype=torch.float64).reshape(n * k, n, k), (n * k, n * k))
    means = scales.sde.join(carried.reshape(-1, n, k), (len(carried), n * k))
    covariance = axes.T @ covariance @ axes
    moved = Mixture(means, covariance=0.5 * (covariance + covariance.mT), weights=density.weights)
    moved.device, moved.dtype = density.device, density.dtype
    return moved


def _parameters(density: Density) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Means (K, *event), variances (K, 1) or (K, D), principal axes (K, D, D) or None, log weights (K, 1)."""
    if isinstance(density, Mixture):
        means = density.means.reshape(-1, *density.event_shape)
        return means, density.variances, density.basis, density.log_weights
    if isinstance(density, Empirical):
        atoms = density.atoms.reshape(-1, *density.event_shape)
        zero = torch.zeros(len(atoms), 1, dtype=torch.float64)
        return atoms, zero, None, zero - math.log(len(atoms))
    raise NotImplementedError(
        f"{type(density).__name__} has no closed form under a process with matrix coefficients: use a Mixture, or an Empirical "
        "density of samples, or train a score on samples."
    )


def _checked(density: Density, x: Tensor, scales: Scales) -> Tensor:
    """x in blocks, float64, after a look at its shape."""
    wanted = tuple(scales.sde.lift(torch.zeros(1, *density.event_shape)).shape[1:])
    if tuple(check_state(x).shape[1:]) != wanted:
        raise ValueError(f"x has shape {tuple(x.shape)}; states of this process have shape (B, {str(wanted)[1:]}.")
    return scales.sde.split(float64(x))


def _each(matrices: Tensor, y: Tensor) -> Tensor:
    """Every component's matrix (T, K, m, k, k) on (K, B, n, k), T = 1 or B."""
    if matrices.shape[-1] == 1:
        return matrices[..., 0].transpose(0, 1) * y
    if matrices.shape[0] == 1:
        if matrices.shape[2] == 1:
            return torch.einsum("kij,kbnj->kbni", matrices[0, :, 0], y)
        return torch.einsum("knij,kbnj->kbni", matrices[0], y)
    if matrices.shape[2] == 1:
        return torch.einsum("bkij,kbnj->kbni", matrices[:, :, 0], y)
    return torch.einsum("bknij,kbnj->kbni", matrices, y)
