"""A training on the disk: enough to go on bit for bit where it was stopped, however it was stopped.

.. code-block:: text

    run/
      plan.json                           what is trained on what; a resumed training must agree with it
      metrics.jsonl                       the numbers of the training
      checkpoints/step-00002000/          the newest two of these
        config.json, model.safetensors    the averaged score, a pretrained folder
        training.safetensors              weights, optimiser and losses

Times, noise, dropout and the order of the data are functions of the seed and the step, so the step is all there is to
remember of them. A checkpoint is written to a folder of another name, which then gets its own: what has the name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..whole import write_whole
from .describe import describe
from .tensors import FORMAT, check_format, read_tensors, write_tensors

_CHECKPOINTS, _PLAN, _STATE = "checkpoints", "plan.json", "training.safetensors"
_KEPT = 2


@dataclass(frozen=True)
class State:
    """What a checkpoint holds besides the averaged score.

    Attributes:
        step: updates done.
        numbers: everything that is JSON.
        tensors: everything else, by name.
    """

    step: int
    numbers: dict[str, Any]
    tensors: dict[str, Tensor]


class RunFolder:
    """The folder of one training.

    Args:
        path: the folder; made.

    Raises:
        ValueError: a file is in its place.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        home = self.path / _CHECKPOINTS
        try:
            home.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            place = next(part for part in (home, *home.parents) if os.path.lexists(part))
            raise ValueError(f"{place} is a file, so that {self.path} cannot be a folder: name another.") from error

    @property
    def metrics(self) -> Path:
        """The file of the recorded numbers."""
        return self.path / "metrics.jsonl"

    def agree(self, plan: dict[str, Any]) -> None:
        """Write down what is to be done, or find that it is what was begun here.

        Raises:
            ValueError: another training was begun in this folder; the message names the differences.
        """
        plan = json.loads(json.dumps({"format": FORMAT, **plan}))
        path = self.path / _PLAN
        if not path.exists():
            write_whole(path, json.dumps(plan, indent=2).encode())
            return
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged: it is no JSON ({error}). Train in a new folder.") from error
        check_format(begun, path)
        if other := list(_differences(begun, plan)):
            raise ValueError(
                f"Another training was begun in {self.path}: {'; '.join(other[:5])}. Ask for the same to go on with it, or "
                "train in another folder."
            )

    def newest(self) -> Path | None:
        """The newest checkpoint, None if there is none."""
        return newest_checkpoint(self.path)

    def read(self) -> State | None:
        """The newest state, None if there is none.

        Raises:
            ValueError: it is damaged or of another format.
        """
        folder = self.newest()
        if folder is None:
            return None
        try:
            numbers, tensors = read_tensors(folder / _STATE, "training")
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error} Remove the folder {folder} to go on from the checkpoint before it.") from error
        return State(numbers["step"], numbers, tensors)

    def write(self, state: State, save_score: Callable[[Path], None]) -> None:
        """Add a checkpoint, with what ``save_score(folder)`` puts into it, and remove those that are too old."""
        home = self.path / _CHECKPOINTS
        for left in home.glob("*.part"):  # by a process that was killed
            shutil.rmtree(left)
        place = home / f"step-{state.step:08d}"
        if place.exists():  # the same state, saved before
            return
        beside = home / f"{place.name}.part"
        beside.mkdir()
        save_score(beside)
        write_tensors(beside / _STATE, "training", {"step": state.step, **state.numbers}, state.tensors)
        _settle(beside)
        os.rename(beside, place)
        _settle(home)
        for old in _whole(self.path)[:-_KEPT]:
            doomed = old.with_name(f"{old.name}.part")  # so that no half of it has its name
            os.rename(old, doomed)
            shutil.rmtree(doomed)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a training in this folder, itself a pretrained folder; None if there is none."""
    return next(reversed(_whole(folder)), None)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser by name; all numbers in it become tensors."""
    return {
        f"optimiser.{k}.{name}": torch.as_tensor(value)
        for k, entries in optimiser.state_dict()["state"].items()
        for name, value in entries.items()
    }


def fill_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take up the state that :func:`optimiser_tensors` gave of an optimiser of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, k, entry = name.split(".", 2)
            state.setdefault(int(k), {})[entry] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def fingerprint(value: Any) -> Any:
    """A value as JSON, for comparison: objects by class and contents, tensors by shape and SHA-256, functions by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return [fingerprint(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value)
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    if isinstance(value, torch.nn.Module):
        return describe(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": name} | {entry.name: fingerprint(getattr(value, entry.name)) for entry in fields(value)}
    if hasattr(value, "__dict__") and not callable(getattr(value, "__get__", None)):
        return {"class": name} | {key: fingerprint(entry) for key, entry in vars(value).items()}
    return getattr(value, "__qualname__", name)


def _whole(folder: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    return sorted(place for place in (folder / _CHECKPOINTS).glob("step-????????") if place.is_dir())


def _differences(begun: Any, now: Any, path: str = "") -> Any:
    if isinstance(begun, dict) and isinstance(now, dict):
        for key in sorted(begun.keys() | now.keys()):
            yield from _differences(begun.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif begun != now:
        yield f"{path} was {_short(begun)} and is now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _settle(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
