r"""The customary sequences :math:`\beta_1, \dots, \beta_N` of a discrete chain, each (N,) in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_count


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    r""":math:`\beta_i` in equal steps from ``first`` to ``last``.

    The defaults are meant for 1,000 steps, where the chain is close to ``VP(0.1, 20)``. For another number of steps scale
    both by 1000/N, or take the chain of that process: ``Chain.from_process(VP(), N)``.

    Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, section 4.
    """
    _checked(steps, first, last)
    return torch.linspace(first, last, steps, dtype=torch.float64)


def cosine(steps: int, s: float = 0.008, largest: float = 0.999) -> Tensor:
    r""":math:`\beta_i = 1 - \varphi(i/N)/\varphi((i-1)/N)` with :math:`\varphi(t) = \cos^2\tfrac\pi2\tfrac{t+s}{1+s}`.

    Args:
        steps: N.
        s: the offset that keeps the first steps from being too small.
        largest: the cap: without it the last step would erase its state.

    Source: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 17.
    """
    _checked(steps, s, largest)
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    root = torch.cos(0.5 * math.pi * (t + s) / (1 + s))
    return (1 - (root[1:] / root[:-1]) ** 2).clamp(max=largest)


def sigmoid(steps: int, first: float = 1e-4, last: float = 0.02, steepness: float = 6.0) -> Tensor:
    r""":math:`\beta_i` along a logistic curve, from near ``first`` to near ``last``.

    .. math:: \beta_i = first + (last - first)\,\mathrm{sigmoid}(u_i), \qquad u_i \in [-steepness, steepness].

    Source: Xu et al. 2022, https://arxiv.org/abs/2203.02923 (GeoDiff).
    """
    _checked(steps, first, last)
    u = torch.linspace(-steepness, steepness, steps, dtype=torch.float64)
    return first + (last - first) * torch.sigmoid(u)


def _checked(steps: int, *fractions: float) -> None:
    check_count(steps, "steps")
    for value in fractions:
        if not 0 < value < 1:
            raise ValueError(f"{value!r} must lie between 0 and 1.")
