r"""Strong guidance and high order: what the exponential solvers check alike.

Guidance of weight w multiplies how fast the prediction bends along a path. A polynomial through many earlier values then
swings further out than one through two; the practice of the field is order 2, with the data prediction thresholded.

Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, sections 3 and 5.
"""

from __future__ import annotations

import warnings

from ...score import Score

STRONG = 3.0
"""The weight from which high orders are held to be unstable."""


def too_high(score: Score, order: int, what: str) -> bool:
    """Whether this order on a flow is above 2 under strong guidance; then the caller of ``solve`` is warned.

    To be called in a solver's ``prepare`` itself: the warning names the line that called ``solve``.

    Args:
        score: whose guidance counts.
        order: that the solver has; a corrector that uses q earlier predictions and the new one has order q + 1.
        what: what becomes of it, for the message.
    """
    high = order > 2 and abs(score.guidance) >= STRONG
    if high:
        warnings.warn(
            f"Guidance of weight {score.guidance:g} makes high orders unstable: order {order} {what}. Take a solver of order "
            "2, such as DPMSolverPP2M, and threshold the data prediction (Thresholded), to be rid of this warning.",
            stacklevel=5,
        )
    return high
