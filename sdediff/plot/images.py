"""Sheets of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from .style import INK, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def image_sheet(
    images: Tensor,
    *,
    columns: int | None = None,
    low: float | None = None,
    high: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Images side by side on one sheet, row by row.

    Args:
        images: (N, C, H, W) with C = 1 or 3, or (N, H, W).
        columns: images in a row; by default as square a sheet as there is.
        low, high: the values shown as black and white; by default the smallest and the largest.
        title: above the sheet.
        ax: a panel to draw into.

    Raises:
        ValueError: the images have another shape, or nothing is finite.
    """
    columns = columns or math.ceil(math.sqrt(max(len(images), 1)))
    sheet = tiled(images, columns, low, high)
    rows, across = sheet.shape[:2]
    width = min(9.0, max(2.5, 0.6 * columns))
    figure, ax = panel(ax, width, width * rows / across + 0.3 * bool(title))
    ax.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=9, color=INK, loc="left")
    return figure


def tiled(images: Tensor, columns: int, low: float | None = None, high: float | None = None) -> Tensor:
    """The sheet itself, (rows, across) or (rows, across, 3), values in [0, 1], white gaps of one pixel in sixteen."""
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (N, H, W), (N, 1, H, W) or (N, 3, H, W).")
    if columns < 1:
        raise ValueError(f"columns = {columns} must be at least 1.")
    x = images.detach().double().cpu()
    finite = x[x.isfinite()]
    if finite.numel() == 0:
        raise ValueError("No pixel of these images is finite.")
    bottom = float(finite.min()) if low is None else low
    top = float(finite.max()) if high is None else high
    x = ((x - bottom) / ((top - bottom) or 1.0)).clamp(0, 1).nan_to_num(0.5)
    n, channels, height, width = x.shape
    gap, rows = max(1, height // 16), math.ceil(n / columns)
    sheet = x.new_ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for k in range(n):
        i, j = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[:, i : i + height, j : j + width] = x[k]
    return sheet[0] if channels == 1 else sheet.permute(1, 2, 0)
