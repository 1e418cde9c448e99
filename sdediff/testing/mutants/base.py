"""What a mutant is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One wrong implementation.

    Args:
        name: what it is called.
        breaks: what kind of thing is broken, by which the library is organised.
        wrong: one sentence that says what is wrong.
        make: builds it. A process and a solver take nothing; a score takes the process and the density.
        density: a density that shows it, for processes that need one.
    """

    name: str
    breaks: str
    wrong: str
    make: Callable[..., Any]
    density: Callable[[], Any] = field(default=lambda: None)

    def __str__(self) -> str:
        return self.name


def mutant(made: Callable[..., Any], breaks: str, density: Callable[[], Any] = lambda: None) -> Mutant:
    """The mutant that a class makes, called by its name and described by its docstring."""
    return Mutant(made.__name__, breaks, " ".join((made.__doc__ or "").split()), made, density)
