"""The demo: what this package is about, on a ring with an exact score and on real digits with a learned one.

:func:`run` writes pictures, an animation, ``results.json`` and a report of one file, all numbers in them computed.
"""

from .both import FULL, QUICK, Effort, run

__all__ = ["FULL", "QUICK", "Effort", "run"]
