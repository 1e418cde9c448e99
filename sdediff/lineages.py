r"""How many lineages are left of infinitely many: the ancestral process behind the Jacobi kernel.

Two lineages meet at rate 1 and each is lost at rate :math:`\tfrac12\theta`, so m of them become m - 1 at rate
:math:`\tfrac12m(m - 1 + \theta)`. Started with infinitely many, the number at time :math:`\tau` has the law

.. math:: q_m(\tau) = \sum_{k\ge m}(-1)^{k-m}\,\frac{(\theta + 2k - 1)\,\Gamma(\theta + m + k - 1)}
          {m!\,(k-m)!\,\Gamma(\theta + m)}\,e^{-\frac12k(k+\theta-1)\tau} .

The terms are large and of both signs, by :math:`e^{c/\tau}`; they are added in decimal arithmetic with as many digits.

Source: Griffiths 1980, https://doi.org/10.1016/0040-5809(80)90013-1; Jenkins and Spanò 2017,
https://doi.org/10.1214/16-AAP1236.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import count

import numpy as np

_NOTHING = Decimal("1e-25")
LEAST = 0.02
"""The shortest time for which the sum is taken; below it takes seconds."""


@lru_cache(maxsize=64)
def lineages(theta: float, tau: float) -> np.ndarray:
    """q_m for m = 0, 1, ... at time tau, up to the last that matters.

    Raises:
        ValueError: tau is below :data:`LEAST`.
    """
    if tau < LEAST:
        raise ValueError(
            f"Exact sampling of the Jacobi process needs speed * t >= {LEAST}, not {tau:.3g}: below that use "
            "solve(sde, x0, t1=t, ...)."
        )
    # About 2/τ lineages are left, with variance 2/3τ (Griffiths 1984).
    most = 25 + math.ceil(2 / tau + 10 * math.sqrt(2 / (3 * tau)))
    for digits in (60, 120, 240, 480, 960):
        with localcontext() as context:
            context.prec = digits
            law = np.array([float(q) for q in _summed(Decimal(theta), Decimal(tau), most)])
        if abs(law.sum() - 1) < 1e-12 and law.min() > -1e-14:
            law = np.where(law > 0, law, 0.0)
            return law / law.sum()
    raise ValueError(f"The ancestral process with theta = {theta:g} could not be summed at tau = {tau:g}.")


def _summed(theta: Decimal, tau: Decimal, most: int) -> list[Decimal]:
    decay: list[Decimal] = []
    found = []
    for m in range(most):
        # Γ(θ + m + k - 1) / (Γ(θ + m) m! (k - m)!) at k = m, then by its ratio from one k to the next
        term = Decimal(1)
        for j in range(m - 1):
            term *= theta + m + j
        term /= math.factorial(m)
        total = Decimal(0)
        for k in count(m):
            if k >= len(decay):
                decay += [(-tau * j * (j + theta - 1) / 2).exp() for j in range(len(decay), k + 1)]
            # at m = k = 0 the factors θ - 1 above and below cancel
            size = (Decimal(1) if k == 0 else (theta + 2 * k - 1) * term) * decay[k]
            total += (-1) ** (k - m) * size
            if k > most and size < _NOTHING:
                break
            term = Decimal(1) if k == 0 else term * (theta + m + k - 1) / (k - m + 1)
        found.append(total)
    return found
