r"""Features of time: what a network sees of t.

Clocks differ: VP ends at 1, OU at 10, EDM at 80 with structure down to 0.002, and a preconditioned network is given
:math:`\tfrac14\log\tilde\sigma`, which changes sign. Both embeddings therefore first take

.. math:: u = \operatorname{arsinh}(t/t_u),

linear for :math:`|t| \ll t_u`, logarithmic beyond, and then sines and cosines of u. With the default unit 0.1 all these
clocks spread over a few units of u. An embedding is a module from t (B,) to (B, dim), computed in t's dtype; write your
own likewise.

Sources: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 (sinusoidal); Tancik et al. 2020,
https://arxiv.org/abs/2006.10739 (random Fourier features).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class _Waves(nn.Module):
    r"""Sines and cosines of :math:`\omega_k u(t)` for the frequencies in the buffer ``omega``."""

    omega: Tensor
    unit: float

    def forward(self, t: Tensor) -> Tensor:
        """The features of t (B,), shape (B, dim)."""
        # A product, not a matmul: autocast would round the phases to half precision.
        phase = torch.asinh(t / self.unit).unsqueeze(-1) * self.omega.to(t.dtype)
        return torch.cat([phase.sin(), phase.cos()], -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow a move to another device but not to another dtype: rounded frequencies are other features."""
        exact = self.omega
        super()._apply(fn, recurse)
        if not exact.is_meta:
            self.omega = exact.to(self.omega.device)
        return self


class Sinusoidal(_Waves):
    r"""Sines and cosines of :math:`\omega_k u`, the frequencies in geometric progression.

    Args:
        dim: the number of features, even.
        lowest, highest: :math:`\omega_1` and :math:`\omega_{dim/2}`, in radians per unit of u.
        unit: :math:`t_u`, in units of time.

    Raises:
        ValueError: dim is odd or below 4, or a frequency or the unit is not positive.
    """

    def __init__(self, dim: int = 64, *, lowest: float = 0.5, highest: float = 50.0, unit: float = 0.1):
        super().__init__()
        _check(dim, lowest=lowest, highest=highest, unit=unit)
        self.dim, self.lowest, self.highest, self.unit = dim, lowest, highest, unit
        ramp = torch.linspace(math.log(lowest), math.log(highest), dim // 2, dtype=torch.float64)
        self.register_buffer("omega", ramp.exp().float())


class Fourier(_Waves):
    r"""Sines and cosines of :math:`\omega_k u` with random frequencies :math:`\omega_k \sim \mathcal N(0, std^2)`, fixed.

    Args:
        dim: the number of features, even.
        std: the standard deviation of the frequencies, in radians per unit of u.
        unit: :math:`t_u`, in units of time.
        seed: of the frequencies, which are kept in the state dict.

    Raises:
        ValueError: dim is odd or below 4, or std or the unit is not positive.
    """

    def __init__(self, dim: int = 64, *, std: float = 5.0, unit: float = 0.1, seed: int = 0):
        super().__init__()
        _check(dim, std=std, unit=unit)
        self.dim, self.std, self.unit, self.seed = dim, std, unit, seed
        generator = torch.Generator().manual_seed(seed)
        omega = std * torch.randn(dim // 2, generator=generator, device="cpu")
        self.register_buffer("omega", omega)


def _check(dim: int, **positive: float) -> None:
    if dim < 4 or dim % 2:
        raise ValueError(f"dim = {dim} must be even and at least 4: half sines, half cosines.")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value} must be positive.")
