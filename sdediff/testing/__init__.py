"""For the tests of your own project: checks that raise with the whole report, and mutants for whoever writes checks.

>>> from sdediff.testing import check_sde
>>> def test_my_process():
...     check_sde(MySDE(), budget=2)

Each takes what its namesake in :mod:`sdediff.verify` takes, and returns the report where it passes.
"""

from . import mutants
from .asserting import (
    check_score,
    check_sde,
    check_solver,
    duality,
    exchangeability,
    fokker_planck,
    langevin_identity,
    passes,
    stationary,
)

__all__ = [
    "check_score",
    "check_sde",
    "check_solver",
    "duality",
    "exchangeability",
    "fokker_planck",
    "langevin_identity",
    "mutants",
    "passes",
    "stationary",
]
