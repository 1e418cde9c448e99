"""Particles in motion, as an animated GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exact import ExactScore
from .fields import fill, scatter
from .paths import Run
from .plane import Extent, around, host, log_density
from .style import canvas, square

if TYPE_CHECKING:
    from PIL.Image import Image

_COLOURS = 128  # of the GIF's palette: enough for the colour wheel over the shades, and 20 % larger than with 48


def gif(
    runs: Run | Sequence[Run],
    path: str | Path,
    score: ExactScore | None = None,
    *,
    titles: Sequence[str] = (),
    colours: Sequence[Tensor] = (),
    extent: Extent | None = None,
    frames: int = 60,
    seconds: float = 5.0,
    pixels: int = 320,
    particles: int = 2000,
) -> Path:
    """Write an animation that runs through one solve after another, say forward and back, for ever.

    Args:
        runs: a solution with saved times, states (S, B, 2), or several to be shown in turn.
        path: of the file; its folder is made.
        score: the exact score whose p_t is drawn behind the particles.
        titles: one per run, shown with the time.
        colours: one tensor (B,) per run, values that colour its particles.
        extent: (left, right, bottom, top); by default around all that is shown.
        frames: at most so many, shared out among the runs by their saved times; the last of each run is held.
        seconds: that one round takes, without the holds.
        pixels: width of the picture.
        particles: at most so many are drawn, the first ones.

    Returns:
        The path.

    Raises:
        ValueError: a run has fewer than two saved times or no states (B, 2), or titles or colours do not match the runs.
    """
    several: Sequence[Run] = [runs] if hasattr(runs, "xs") else runs  # type: ignore[list-item, assignment]
    for name, given in (("titles", titles), ("colours", colours)):
        if given and len(given) != len(several):
            raise ValueError(f"There are {len(several)} runs and {len(given)} {name}: give one per run, or none.")
    saved = sum(len(run.ts) for run in several)
    shown = [_thinned(run, max(2, frames * len(run.ts) // saved), particles) for run in several]
    extent = extent or around(torch.cat([xs[:: max(1, len(xs) // 8)].reshape(-1, 2) for _, xs in shown]))
    pictures, durations = [], []
    tick = 1000 * seconds / sum(len(ts) for ts, _ in shown)
    for k, (ts, xs) in enumerate(shown):
        colour = colours[k][:particles] if colours else None
        for t, x in zip(ts.tolist(), xs, strict=True):
            name = f"{titles[k]},  t = {t:.2f}" if titles else f"t = {t:.2f}"
            pictures.append(_frame(x, t, score, colour, extent, name, pixels))
            durations.append(round(tick))
        durations[-1] = round(8 * tick)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    from PIL.Image import Dither

    palette = _palette(pictures)
    first, *rest = (picture.quantize(palette=palette, dither=Dither.NONE) for picture in pictures)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return path


def _thinned(run: Run, frames: int, particles: int) -> tuple[Tensor, Tensor]:
    """So many of the saved times, the ends included, and the particles then."""
    xs = host(run.xs)
    if xs.ndim != 3 or len(run.ts) != len(xs) or len(xs) < 2:
        shapes = f"ts {tuple(run.ts.shape)} and xs {tuple(xs.shape)}"
        raise ValueError(f"A run needs two or more saved times and states (B, 2), got {shapes}: solve with save_at=.")
    chosen = torch.linspace(0, len(xs) - 1, min(frames, len(xs))).round().long().unique()
    return run.ts.cpu()[chosen], xs[chosen, :particles]


def _frame(
    x: Tensor, t: float, score: ExactScore | None, colour: Tensor | None, extent: Extent, name: str, pixels: int
) -> Image:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL.Image import fromarray

    figure, (ax,) = canvas(3.2, 3.4)
    figure.set_dpi(pixels / 3.2)
    if score is not None and score.sde.sigma(t) > 0:
        fill(ax, log_density(score, t), extent, 110)
    scatter(ax, x, colour, over=score is not None)
    square(ax, extent, name, ticks=False)
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return fromarray(np.asarray(drawn.buffer_rgba())[..., :3].copy())


def _palette(pictures: Sequence[Image]) -> Image:
    """One palette for all frames, so that nothing flickers, made of three of them; paper stays white."""
    from PIL.Image import new

    three = [pictures[0], pictures[len(pictures) // 2], pictures[-1]]
    width, height = three[0].size
    collage = new("RGB", (3 * width, height))
    for k, picture in enumerate(three):
        collage.paste(picture, (k * width, 0))
    palette = collage.quantize(_COLOURS)
    # Quantising looks colours up at six bits a channel: beside white, an almost-white would take its place.
    triples = zip(*[iter(palette.getpalette() or [])] * 3, strict=True)
    palette.putpalette([v for triple in triples for v in (triple if min(triple) < 246 else (255, 255, 255))])
    return palette
