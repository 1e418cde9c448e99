r"""How the learning rate goes over a training: a factor of the largest rate for each step.

A schedule is a function of the step and of the number of steps, so there is no state to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int, int], float]
"""``schedule(step, steps)``: the factor for this step, from 0 to 1."""


@dataclass(frozen=True)
class Constant:
    """1."""

    def __call__(self, step: int, steps: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to ``end``.

    Args:
        end: the factor after the last step.
    """

    end: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        """The factor."""
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Linear:
    """A straight line from 1 to ``end``.

    Args:
        end: the factor after the last step.
    """

    end: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        """The factor."""
        return 1 - (1 - self.end) * step / steps


@dataclass(frozen=True)
class InverseSquareRoot:
    r""":math:`1/\sqrt{\max(1, step/reference)}`, which needs to know no end.

    Args:
        reference: steps at the largest rate.

    Source: Karras et al. 2023, https://arxiv.org/abs/2312.02696, appendix B.
    """

    reference: int = 10_000

    def __call__(self, step: int, steps: int) -> float:
        """The factor."""
        return 1 / math.sqrt(max(1.0, step / self.reference))
