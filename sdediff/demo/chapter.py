"""What the parts of the demo have in common: pictures on the way to the report, and how much work to do."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Effort:
    """How much work to do.

    Args:
        particles: of the ring.
        frames: of the animation.
        checked: particles in each statistical check.
        steps: training steps.
        width, depth: of the network.
        samples: how many digits each solver draws for the table, at most as many as there are to train on.
        budgets: steps of the SDE solvers.
        tolerances: of the adaptive one.
        grid: steps where the solver's error should not show.
        dpi: of the pictures, dots per inch.
    """

    particles: int
    frames: int
    checked: int
    steps: int
    width: int
    depth: int
    samples: int
    budgets: Sequence[int]
    tolerances: Sequence[float]
    grid: int
    dpi: int


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Args:
        name: of its file.
        caption: what is to be seen on it.
        plot: True for a drawing on white, which a dark page may invert; False for images.
    """

    name: str
    caption: str
    plot: bool = True


@dataclass(frozen=True)
class Chapter:
    """One part of the report.

    Args:
        title: its heading.
        lead: a paragraph.
        blocks: pictures, and tables as HTML, in the order in which they are shown.
        numbers: what goes to results.json.
    """

    title: str
    lead: str
    blocks: Sequence[Picture | str]
    numbers: dict[str, Any]


def save(figure: Figure, path: Path, dpi: int) -> None:
    """The figure as a PNG with a palette, a third of the size of true colour."""
    from PIL import Image

    memory = io.BytesIO()
    figure.savefig(memory, dpi=dpi, facecolor="white")
    with Image.open(memory) as image:
        image.convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
