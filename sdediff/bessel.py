r"""log I_ν(z) for z > 0 and ν > -1, with its derivative; neither overflows.

Below ν = 50 from SciPy's scaled function, or from the first terms of the series where that underflows; above from the
uniform expansion, whose error falls like :math:`\nu^{-5}`.

Source: DLMF, https://dlmf.nist.gov/10.25 and https://dlmf.nist.gov/10.41.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_bessel(nu: float, z: Tensor) -> Tensor:
    """log I_ν(z), elementwise, twice differentiable in z."""
    return _LogBessel.apply(z, float(nu))  # type: ignore[no-any-return]


class _LogBessel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, nu: float) -> Tensor:
        ctx.nu = nu
        ctx.save_for_backward(z)
        return torch.from_numpy(_log_bessel(nu, z.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad * _Slope.apply(z, ctx.nu), None


class _Slope(torch.autograd.Function):
    """The derivative of log I_ν. (As a function of its own: what is saved for a backward has no derivative.)"""

    @staticmethod
    def forward(ctx: Any, z: Tensor, nu: float) -> Tensor:
        at = z.detach().numpy()
        # I' = I_{ν+1} + (ν/z) I
        slope = torch.from_numpy(np.exp(_log_bessel(nu + 1, at) - _log_bessel(nu, at)) + nu / at)
        ctx.nu = nu
        ctx.save_for_backward(z, slope)
        return slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """By Bessel's equation, I'' + I'/z - (1 + ν²/z²) I = 0."""
        z, slope = ctx.saved_tensors
        return grad * (1 + (ctx.nu / z) ** 2 - slope / z - slope**2), None


def _log_bessel(nu: float, z: np.ndarray) -> np.ndarray:
    if nu >= 50:
        return _uniform(nu, z)
    scaled = special.ive(nu, z)
    small = scaled < 1e-280
    with np.errstate(divide="ignore"):
        return np.where(small, _series(nu, z), np.log(scaled) + z)


def _series(nu: float, z: np.ndarray) -> np.ndarray:
    """(z/2)^ν / Γ(ν + 1) (1 + (z/2)²/(ν + 1)), for small z."""
    quarter = (0.5 * z) ** 2
    return nu * np.log(0.5 * z) - special.gammaln(nu + 1) + np.log1p(quarter / (nu + 1))


def _uniform(nu: float, z: np.ndarray) -> np.ndarray:
    """Debye's expansion in p = 1/√(1 + (z/ν)²)."""
    s = z / nu
    root = np.sqrt(1 + s * s)
    p = 1 / root
    q = p * p
    terms = (
        p * (3 - 5 * q) / 24,
        q * (81 - 462 * q + 385 * q**2) / 1152,
        p**3 * (30375 - 369603 * q + 765765 * q**2 - 425425 * q**3) / 414720,
        q**2 * (4465125 - 94121676 * q + 349922430 * q**2 - 446185740 * q**3 + 185910725 * q**4) / 39813120,
    )
    correction = sum(u / nu ** (k + 1) for k, u in enumerate(terms))
    leading = nu * (root + np.log(s / (1 + root))) - 0.5 * np.log(2 * np.pi * nu * root)
    return leading + np.log1p(correction)
