"""The two ways in which a solve can fail."""

from __future__ import annotations

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
