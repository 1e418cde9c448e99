"""Where the numbers of a training go while it runs: a file of JSON lines, TensorBoard, trackio, or a function of yours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..whole import write_whole

Recorder = Callable[[int, Mapping[str, float]], None]
"""``recorder(step, numbers)``: called by the first worker with numbers by name, such as loss, norm, rate, held_out."""


class JSONLines:
    """One line of JSON each time, ``{"step": 100, "loss": 0.31, ...}``, at the end of a file.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the lines after this step, and what a killed process left half written: a training goes on from here."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_whole(self.path, "".join(f"{line}\n" for line in kept).encode())


class TensorBoard:
    """Scalars for TensorBoard.

    Args:
        folder: where its files go.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard(folder) needs tensorboard: pip install tensorboard.") from error
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class Trackio:
    """A run of trackio, or of anything with its ``init`` and ``log``: ``Trackio("project", module=wandb)``.

    Args:
        project: its name there.
        module: the library; trackio by default.

    Raises:
        ImportError: trackio is not installed.
    """

    def __init__(self, project: str, *, module: Any = None):
        if module is None:
            try:
                import trackio as module  # type: ignore[import-not-found,no-redef]
            except ImportError as error:
                raise ImportError(f"Trackio({project!r}) needs trackio: pip install trackio.") from error
        self._module = module
        module.init(project=project)

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers."""
        self._module.log(dict(numbers), step=step)


def _step(line: str) -> float:
    """The step of a line; that of a broken one is past all others."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
