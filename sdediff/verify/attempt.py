"""Somebody else's code under test: what it raises becomes a failed row that says what and where, not a traceback."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from .report import Row, fact_row

_OWN = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent
_PYTHON = Path(os.__file__).parent  # its library, but not what is installed below it


def attempt(what: str, check: Callable[[], Iterable[Row]]) -> tuple[Row, ...]:
    """The rows of a check; one failed row named ``what`` where the code that it calls raises."""
    try:
        return tuple(check())
    except Exception as error:
        return (fact_row(what, told(error)),)


def told(error: Exception) -> str:
    """The error in one line, with the place in the code of whoever wrote the process."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not _ours(frame.filename)]
    if not theirs or theirs[-1] is frames[0]:
        return said
    return f"{said} ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno}, in {theirs[-1].name})"


def _ours(filename: str) -> bool:
    path = Path(filename)
    library = path.is_relative_to(_PYTHON) and "site-packages" not in path.parts
    return library or filename.startswith("<frozen") or any(path.is_relative_to(root) for root in (_OWN, _TORCH))
