"""Time grids, fixed and adapted."""

from .adapted import Adapted, adapt
from .fixed import (
    Grid,
    Karras,
    LogSNR,
    Power,
    Quadratic,
    Uniform,
    check_monotone,
    check_steps,
    ends,
    linear_schedule,
    resolve,
    saved_times,
)

__all__ = [
    "Adapted",
    "Grid",
    "Karras",
    "LogSNR",
    "Power",
    "Quadratic",
    "Uniform",
    "adapt",
    "check_monotone",
    "check_steps",
    "ends",
    "linear_schedule",
    "resolve",
    "saved_times",
]
