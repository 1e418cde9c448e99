"""Wrong implementations on purpose: a check that cannot fail proves nothing.

Each is a few lines, with one sentence of what is wrong. Whoever writes a check runs it on these.
"""

from .base import Mutant
from .processes import PROCESSES
from .scores import SCORES
from .solvers import SOLVERS

__all__ = ["PROCESSES", "SCORES", "SOLVERS", "Mutant"]
