"""How a training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .style import INK, TEAL, VERMILION, panel, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_curve(
    losses: Tensor, held_out: Sequence[tuple[int, float]] = (), *, title: str = "", ax: Axes | None = None
) -> Figure:
    """The loss of each step and its running mean, and the loss on held-out data.

    Args:
        losses: (steps,), as in :class:`~sdediff.training.Fit`.
        held_out: (step, loss) pairs, likewise.
        title: above the panel.
        ax: a panel to draw into.

    Raises:
        ValueError: there is no step.
    """
    if len(losses) == 0:
        raise ValueError("There is no step to show: losses is empty.")
    figure, ax = panel(ax, 7.5, 3.6)
    losses = losses.detach().double().cpu()
    steps = torch.arange(1, len(losses) + 1)
    window = max(1, len(losses) // 50)
    ax.plot(steps, losses, color=TEAL, alpha=0.3, linewidth=0.5)
    ax.plot(
        steps[window - 1 :], losses.unfold(0, window, 1).mean(1), color=TEAL, label=f"training, mean of {window} steps"
    )
    if held_out:
        ax.plot(*zip(*held_out, strict=True), "o-", color=VERMILION, markersize=3, label="held out, averaged weights")
    ax.set_yscale("log")
    ax.set_xlabel("step", fontsize=8, color=INK)
    ax.set_ylabel("denoising loss", fontsize=8, color=INK)
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)
    quiet(ax, title)
    return figure
