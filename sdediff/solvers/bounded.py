"""What all solvers with tolerances check, and the drift as backends of other people's making are given it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import NonFiniteError, SolveError
from ..sde import SDE


def check_tolerances(rtol: object, atol: object) -> tuple[float, float]:
    """The tolerances as floats, if they are positive and finite."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise ValueError(f"{name} = {value!r} must be positive.")
    return float(rtol), float(atol)  # type: ignore[arg-type]


def warn_if_too_fine(rtol: float, atol: float, x: Tensor) -> None:
    """Warn the caller of ``solve`` where the tolerances ask of the states x what their dtype cannot hold.

    To be called in a solver's ``integrate`` itself: the warning names the line that called ``solve``.
    """
    finest = min(rtol, atol)
    if x.dtype != torch.float64 and finest < 1e-6:
        warnings.warn(
            f"A tolerance of {finest:g} is finer than a {x.dtype} drift can tell and costs evaluations for nothing: use "
            "rtol, atol >= 1e-6 or a float64 state.",
            stacklevel=5,
        )


class BoundedDrift:
    """The drift of a process for a backend: evaluated so many times at most, and each time looked at.

    A backend left alone may step on a NaN for ever, or report it as success.

    Args:
        process: whose drift it is.
        most: the bound on evaluations.

    Raises:
        SolveError: on evaluation, the bound is reached.
        NonFiniteError: on evaluation, the drift is NaN or infinite; it names the samples.
    """

    steps: int | None = None
    """How many steps were taken, where the backend tells."""

    def __init__(self, process: SDE, most: int):
        self.process, self.most, self.left = process, most, most

    def evaluate(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The drift at x (B, *event) and t, () or a number."""
        if self.left == 0:
            raise SolveError(
                f"The solve reached max_evaluations = {self.most} at t = {float(t):g}: loosen the tolerances or raise the "
                "bound."
            )
        self.left -= 1
        return self.check(self.process.drift(x, t), float(t))

    def check(self, values: Tensor, t: float) -> Tensor:
        """Return the drift, or a state it led to, of shape (B, *event), if it is finite."""
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            rows = torch.nonzero(~finite.reshape(len(values), -1).all(1)).flatten().tolist()
            raise NonFiniteError(
                f"The drift is NaN or infinite at t = {t:g} for {len(rows)} of {len(values)} samples (first: {rows[:5]}). "
                "Check the score there, or end the solve further from t = 0.",
                step=self.steps,
                t=t,
                samples=rows,
                state=None,
            )
        return values
