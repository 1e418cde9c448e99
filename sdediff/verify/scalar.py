"""The process with one alpha and one sigma that an SDE is."""

from __future__ import annotations

from collections.abc import Sequence

from ..derived import as_linear
from ..linear import LinearSDE
from ..sde import SDE


def scalar(sde: SDE, event_shape: Sequence[int]) -> LinearSDE | None:
    """``sde`` as a process that scales states of this shape by a number and adds white noise; None where it does not."""
    try:
        found = as_linear(sde, event_shape)
    except (TypeError, ValueError, RuntimeError):  # no affine drift, or no noise: whoever asks says what it needs
        return None
    return found if isinstance(found, LinearSDE) else None


def needed(sde: SDE, event_shape: Sequence[int], what: str, instead: str) -> LinearSDE:
    """The same, or a TypeError: ``what`` needs it and why, ``instead`` is the cure; both are clauses."""
    found = scalar(sde, event_shape)
    if found is None:
        raise TypeError(
            f"{what}: this needs a LinearSDE, or an f and g that scale states by one number and add white noise, and on "
            f"states of shape {tuple(event_shape)} {type(sde).__name__} is neither. {instead}"
        )
    return found
