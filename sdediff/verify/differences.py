r"""Derivatives by differences, owing nothing to automatic differentiation.

Central differences at steps h, h/2, h/4, ... have errors in even powers of h; Neville's scheme takes them out one by one, and
of all the numbers in the scheme that one is kept, entry by entry, whose neighbours agree with it best. In float64 that is
good to about 1e-11 of the function's size per step of h.

Source: Ridders 1982, https://doi.org/10.1016/S0141-1195(82)80057-0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_HALVINGS = 10


def slope(function: Callable[[float], Tensor], room: float) -> Tensor:
    """d function/d e at e = 0, of the function's shape.

    Args:
        function: of one number, on [-room, room].
        room: the largest step, positive.
    """
    best, error = None, None
    above: list[Tensor] = []
    for k in range(_HALVINGS):
        h = room / 2**k
        row = [(function(h) - function(-h)) / (2 * h)]
        for j, coarser in enumerate(above):
            factor = 4.0 ** (j + 1)
            row.append((factor * row[j] - coarser) / (factor - 1))
            distance = torch.maximum((row[j + 1] - row[j]).abs(), (row[j + 1] - coarser).abs())
            if best is None or error is None:
                best, error = row[j + 1], distance
            else:
                better = distance < error
                best, error = torch.where(better, row[j + 1], best), torch.where(better, distance, error)
        above = row
    assert best is not None
    return best
