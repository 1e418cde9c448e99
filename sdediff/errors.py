"""The two ways in which a solve can fail, and what a process without a Gaussian kernel says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class SolveError(RuntimeError):
    """A solver could not finish: a backend gave up, or a bound on its work was reached."""


class NonFiniteError(SolveError):
    """A state became NaN or infinite.

    Attributes:
        step: the first step (from 0) whose result is not finite.
        t: the time at which that step arrives.
        samples: the indices of the samples concerned.
        state: the last finite state (B, *event), at the start of that step; None where a backend keeps none.
    """

    def __init__(self, message: str, *, step: int | None, t: float, samples: list[int], state: Tensor | None):
        super().__init__(message)
        self.step, self.t, self.samples, self.state = step, t, samples, state


class NotAffineError(TypeError):
    """A process whose drift is not affine in x, or whose noise depends on x: it has no Gaussian kernel.

    Attributes:
        x: a state that shows it, (*event).
        t: the time there.
        coordinates: the flattened coordinates that show it, the worst first.
        size: the relative departure.
    """

    def __init__(self, message: str, x: Tensor, t: float, coordinates: Sequence[int], size: float):
        super().__init__(message)
        self.x, self.t, self.coordinates, self.size = x, t, list(coordinates), size
