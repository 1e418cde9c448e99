"""Checkpoints: one ``.safetensors`` file with the weights and, as JSON, how to rebuild what they belong to.

There is no pickle in it, so that loading a file runs no code of the file's choosing. It is written beside its place and
moved there at once: a crash leaves the old file or the new one, never half of one. A digest over all of it is checked on
loading.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..data import Standardisation
from ..linear import LinearSDE
from ..predictions import NetworkScore
from .describe import describe, rebuild

FORMAT = 1
_KEY = "sdediff"


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: the score, which knows its process and event shape, and how its data were standardised."""

    score: NetworkScore
    standardisation: Standardisation | None


def save(path: str | os.PathLike[str], score: NetworkScore, standardisation: Standardisation | None = None) -> None:
    """Write ``score`` to one file.

    Args:
        path: the file, by custom ``*.safetensors``; replaced if it exists.
        score: a network score. Its process and network should keep their constructor arguments as attributes of the
            same names; where one does not, it must be given again to :func:`load`.
        standardisation: how the training data were scaled, for those who use the samples.

    Raises:
        TypeError: ``score`` is no network score.
        FileNotFoundError: the folder does not exist.
    """
    if not isinstance(score, NetworkScore):
        raise TypeError(f"save takes a network score such as NoisePrediction(sde, net), got {type(score).__name__}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: create it first.")
    tensors = {f"score.{name}": _plain(value) for name, value in score.state_dict().items()}
    if standardisation is not None:
        tensors["standardisation.mean"] = _plain(standardisation.mean)
        tensors["standardisation.std"] = _plain(standardisation.std)
    description = describe(score)
    about = {"format": FORMAT, "score": description, "digest": digest(description, tensors)}
    content = safetensors.torch.save(tensors, metadata={_KEY: json.dumps(about)})
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str],
    *,
    sde: LinearSDE | None = None,
    net: nn.Module | None = None,
    device: torch.device | str | None = None,
) -> Checkpoint:
    """Read what :func:`save` wrote.

    Args:
        path: the file.
        sde: the process, where the file cannot rebuild it (one of your own, or one made of functions).
        net: the network, likewise; the weights are loaded into it.
        device: where to put the network; the host by default.

    Returns:
        The score in evaluation mode, and the standardisation or None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, of another kind or a later format, does not fit the given network, or
            names classes from outside this package that were not given.
    """
    about, tensors = _read(Path(path))
    build_net = net is None
    with torch.device("meta" if build_net else "cpu"):  # the weights come from the file: none need be drawn
        score = rebuild(about["score"], {"sde": sde, "net": net})
    if not isinstance(score, NetworkScore):
        raise ValueError(f"{path} describes a {type(score).__name__}, which is no network score.")
    _fill(score, _under("score.", tensors), path, assign=build_net)
    moments = _under("standardisation.", tensors)
    standardisation = Standardisation(moments["mean"], moments["std"]) if moments else None
    if device is not None:
        score.to(device)
    return Checkpoint(score.eval(), standardisation)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, damaged or no safetensors file: {error}.") from error
    if _KEY not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that sdediff's save wrote: it says nothing of a score."
        )
    try:
        about = json.loads(metadata[_KEY])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: what it says of the score is no JSON ({error}).") from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {about.get('format')}; this version of sdediff reads {FORMAT}. Load it with the version "
            "that wrote it."
        )
    if missing := {"score", "digest"} - about.keys():
        raise ValueError(f"{path} lacks its {' and '.join(sorted(missing))}.")
    if about["digest"] != digest(about["score"], tensors):
        raise ValueError(f"{path} is damaged: it does not hold what was saved.")
    return about, tensors


def _fill(score: NetworkScore, weights: dict[str, Tensor], path: Any, *, assign: bool) -> None:
    own = score.state_dict()
    if own.keys() != weights.keys():
        raise ValueError(
            f"The weights in {path} do not belong to this network: missing {sorted(own.keys() - weights.keys())[:5]}, "
            f"unknown {sorted(weights.keys() - own.keys())[:5]}."
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"The weights in {path} do not fit this network: {name} has shape {tuple(value.shape)}, the network's "
                f"{tuple(own[name].shape)}."
            )
    score.load_state_dict(weights, assign=assign)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(value: Tensor) -> Tensor:
    """A host copy with memory of its own, as the format wants it."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def digest(description: Any, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over a description and tensors."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
