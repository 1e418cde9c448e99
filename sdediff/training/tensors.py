"""Files of tensors: safetensors with a description as JSON in the header, and a SHA-256 over both.

There is no pickle in them, so that reading one runs no code of the file's choosing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..whole import write_whole

FORMAT = 1
_KEY = "sdediff"


def write_tensors(path: Path, kind: str, description: Any, tensors: dict[str, Tensor]) -> None:
    """Write tensors with what they are.

    Args:
        path: the file; replaced if it exists.
        kind: what it is a file of: "score", "training".
        description: JSON.
        tensors: by name, on any device.
    """
    plain = {name: _plain(value) for name, value in tensors.items()}
    about = {"format": FORMAT, kind: description, "digest": digest(description, plain)}
    write_whole(path, safetensors.torch.save(plain, metadata={_KEY: json.dumps(about)}))


def read_tensors(path: Path, kind: str) -> tuple[Any, dict[str, Tensor]]:
    """The description and the tensors in a file of this kind.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, of another kind or a later format.
    """
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
            f"{path} is a safetensors file, but not one that sdediff's save wrote: it says nothing of a {kind}."
        )
    try:
        about = json.loads(metadata[_KEY])
    except (json.JSONDecodeError, RecursionError) as error:  # too deep is no description either
        raise ValueError(f"{path} is damaged: what it says of the {kind} is no JSON ({error}).") from error
    check_format(about, path)
    if missing := {kind, "digest"} - about.keys():
        raise ValueError(f"{path} lacks its {' and '.join(sorted(missing))}.")
    if about["digest"] != digest(about[kind], tensors):
        raise ValueError(f"{path} is damaged: it does not hold what was saved.")
    return about[kind], tensors


def check_format(about: Any, path: Path) -> None:
    """Refuse what another version wrote."""
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}; this version of sdediff reads {FORMAT}. Load it with the version that wrote it."
        )


def digest(description: Any, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over a description and tensors."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(value: Tensor) -> Tensor:
    """A host copy with memory of its own, as the format wants it."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
