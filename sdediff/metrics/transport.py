r"""The exact Wasserstein distance of two samples, by solving the assignment or transport problem.

.. math:: W_p^p = \min_\pi \sum_{ij} \pi_{ij}\,|x_i - y_j|^p, \qquad
          \textstyle\sum_j \pi_{ij} = 1/n, \; \sum_i \pi_{ij} = 1/m .

In d dimensions two exact samples of n points are about :math:`n^{-1/d}` apart, which hides small defects from it: use it to
describe, beside its :func:`~sdediff.metrics.noise_floor`, and test with something else.

Source: Peyré and Cuturi 2019, https://arxiv.org/abs/1803.00567, chapters 2 and 3.
"""

from __future__ import annotations

from torch import Tensor

from .pairs import distance, pair


def wasserstein(x: Tensor, y: Tensor, *, order: float = 2.0) -> float:
    """The Wasserstein distance between two samples as they are, in units of the data.

    Args:
        x, y: samples (n, *event) and (m, *event). Time grows with the cube of n: a few thousand points take some seconds, and
            the matrix of distances is kept. Different sizes need POT.
        order: p >= 1.

    Raises:
        ImportError: n and m differ and POT is not installed.
    """
    if not order >= 1:
        raise ValueError(f"order = {order} must be at least 1.")
    x, y = pair(x, y)
    costs = distance(x, y).pow(order).cpu().numpy()
    if len(x) == len(y):  # then an optimal plan is a permutation
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(costs)
        return float(costs[rows, columns].mean()) ** (1 / order)
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            f"Samples of {len(x)} and {len(y)} points need POT: pip install 'sdediff[train]', or give equal sizes."
        ) from error
    return float(ot.emd2([], [], costs, numItermax=10_000_000)) ** (1 / order)
