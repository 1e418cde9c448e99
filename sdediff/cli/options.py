"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .names import Kind

DensityText = Annotated[
    str, typer.Option("--density", "-d", metavar="DENSITY", help="The law at t = 0: ring, or 'ring(modes=5)'.")
]
ProcessText = Annotated[
    str, typer.Option("--process", "-p", metavar="PROCESS", help="The forward process: VP, or 'VP(beta_max=12)'.")
]
GridText = Annotated[
    str,
    typer.Option(
        "--grid", metavar="GRID", help="Where a fixed number of steps lies: LogSNR or Karras serve few steps better."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, metavar="INT", help="Seed of all random numbers.")]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write; made if it is not there.")
]
Eta = Annotated[
    float,
    typer.Option(
        "--eta",
        min=0,
        metavar="FLOAT",
        help="Stochasticity of the reversal: 1 Anderson's SDE, 0 the flow, which ODE solvers take in any case.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps.")]


def known(*kinds: Kind[Any]) -> str:
    """The end of a help text: what may be named."""
    lists = "\n\n".join(f"{kind.plural}: {kind.known}." for kind in kinds)
    return f"{lists}\n\nEach may be called with literal arguments, in quotes: 'VP(beta_max=12)', 'Scipy(\"RK45\", rtol=1e-4)'."


def device(name: str) -> torch.device:
    """The device of that name, if it can be computed on.

    Raises:
        ValueError: no such device, or none here.
    """
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return found


def whole_numbers(text: str, option: str, distinct: bool = True) -> list[int]:
    """Positive whole numbers from text such as 10,20,50; a repeated one counts once where they are ``distinct``.

    Raises:
        ValueError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 9 and int(part) > 0 for part in parts):
        raise ValueError(
            f"{option} {text[:60]!r} must be positive whole numbers below 10^8 with commas between them, such as 10,20,50."
        )
    numbers = [int(part) for part in parts]
    return list(dict.fromkeys(numbers)) if distinct else numbers
