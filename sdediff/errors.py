"""The two ways in which a solve can fail, and what a process without a Gaussian kernel says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def non_finite(
    bad: Tensor, t: float, *, step: int | None = None, s: float | None = None, state: Tensor | None = None
) -> NonFiniteError:
    """The error of states ``bad`` (B, *event) reached at t, in which step and from which time and state as far as known."""
    rows = torch.nonzero(~torch.isfinite(bad).reshape(bad.shape[0], -1).all(1)).flatten().tolist()
    where = f"at t = {t:g}" if step is None else f"in step {step}, from t = {s:g} to t = {t:g},"
    return NonFiniteError(
        f"The state became NaN or infinite {where} for {len(rows)} of {bad.shape[0]} samples (first: {rows[:5]}). Check the "
        "score there; take smaller steps, or end the solve further from t = 0."
        + ("" if state is None else " The last finite state is in .state."),
        step=step, t=t, samples=rows, state=state,
    )  # fmt: skip


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
