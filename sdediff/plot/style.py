"""One look for all pictures: the palette, the figure, the panel.

The six colours differ in lightness as well as in hue, so that they stay apart for a colour-blind reader and in grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, TEAL, MINT, OCHRE, VERMILION, PLUM = "#1b2a41", "#2a7f9e", "#5fb49c", "#e0a030", "#c8452f", "#7b2d56"
COLOURS = (TEAL, VERMILION, OCHRE, PLUM, MINT, INK)
"""For the lines of one picture, in this order."""
GREY = "#8a929c"


def shades() -> Colormap:
    """From paper white to deep teal: for densities behind particles."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", ["#ffffff", "#e3eff3", "#b4d5df", "#74b0c4", "#3a87a5"])


def wheel() -> Colormap:
    """A colour wheel: for values that label particles."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("wheel", [INK, TEAL, MINT, OCHRE, VERMILION, PLUM, INK])


def canvas(width: float = 4.5, height: float = 4.5, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, and its panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=140, facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def panel(ax: Axes | None, width: float = 4.5, height: float = 4.5) -> tuple[Figure, Axes]:
    """The panel to draw into, yours or a new one, and its figure."""
    if ax is None:
        new, (ax,) = canvas(width, height)
        return new, ax
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("ax belongs to no figure.")
    return figure, ax


def quiet(ax: Axes, title: str = "") -> None:
    """Thin grey frame, small ticks, title on the left."""
    for spine in ax.spines.values():
        spine.set(color=GREY, linewidth=0.6)
    ax.tick_params(which="both", labelsize=7, color=GREY, labelcolor=GREY, width=0.6, length=2.5)
    if title:
        ax.set_title(title, fontsize=9, color=INK, loc="left")


def square(ax: Axes, extent: tuple[float, float, float, float], title: str = "", *, ticks: bool = True) -> None:
    """A piece of the plane with equal units on both axes."""
    ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    quiet(ax, title)
    if not ticks:
        ax.set(xticks=[], yticks=[])


def dots(count: int, size: float = 1.0) -> dict[str, Any]:
    """Area and opacity of the markers for so many particles, ``size`` being 1 in a panel four inches wide."""
    area = min(12.0, max(1.2, 6000 / max(count, 1)))
    return {"s": size * area, "alpha": 0.75 if count < 3000 else 0.5, "linewidths": 0}
