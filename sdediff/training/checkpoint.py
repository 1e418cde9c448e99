"""Trained scores on the disk: the weights, how to rebuild what they belong to, and how their data were scaled.

Either as one ``.safetensors`` file, by :func:`save` and :func:`load`, or as a folder with ``config.json`` and
``model.safetensors``, as model hubs keep them, by :func:`save_pretrained` and :func:`from_pretrained`. The file is the same
in both; ``config.json`` repeats its description for people and hubs, with the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Scales, Standardisation
from ..linear import LinearSDE
from ..predictions import NetworkScore
from ..whole import write_whole
from .describe import describe, rebuild
from .tensors import FORMAT, check_format, read_tensors, under, write_tensors

CONFIG, MODEL = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What was kept.

    Attributes:
        score: it knows its process and event shape.
        standardisation: how its data were scaled, or None.
        scales: the sizes of the scaled data, or None.
    """

    score: NetworkScore
    standardisation: Standardisation | None
    scales: Scales | None = None


def save(
    path: str | os.PathLike[str],
    score: NetworkScore,
    standardisation: Standardisation | None = None,
    scales: Scales | None = None,
) -> None:
    """Write ``score`` to one file.

    Args:
        path: the file, by custom ``*.safetensors``; replaced if it exists.
        score: a network score. Its process and network should keep their constructor arguments as attributes of the
            same names; where one does not, it must be given again to :func:`load`.
        standardisation: how the training data were scaled, for those who use the samples.
        scales: the sizes of the data so scaled.

    Raises:
        TypeError: ``score`` is no network score.
        FileNotFoundError: the folder does not exist.
    """
    if not isinstance(score, NetworkScore):
        raise TypeError(f"save takes a network score such as NoisePrediction(sde, net), got {type(score).__name__}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: create it first.")
    tensors = {f"score.{name}": value for name, value in score.state_dict().items()}
    if standardisation is not None:
        tensors |= {"standardisation.mean": standardisation.mean, "standardisation.std": standardisation.std}
    if scales is not None:
        tensors |= {
            f"scales.{name}": torch.tensor(value, dtype=torch.float64) for name, value in asdict(scales).items()
        }
    write_tensors(path, "score", describe(score), tensors)


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
        The score in evaluation mode, and the standardisation and scales or None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, of another kind or a later format, does not fit the given network, or
            names classes from outside this package that were not given.
    """
    description, tensors = read_tensors(Path(path), "score")
    build_net = net is None
    try:
        with torch.device("meta" if build_net else "cpu"):  # the weights come from the file: none need be drawn
            score = rebuild(description, {"sde": sde, "net": net})
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: its description is nested too deeply.") from error
    if not isinstance(score, NetworkScore):
        raise ValueError(f"{path} describes a {type(score).__name__}, which is no network score.")
    fill(score, under("score.", tensors), path, assign=build_net)
    moments, sizes = under("standardisation.", tensors), under("scales.", tensors)
    standardisation = Standardisation(moments["mean"], moments["std"]) if moments else None
    scales = Scales(**{name: float(value) for name, value in sizes.items()}) if sizes else None
    if device is not None:
        score.to(device)
    return Checkpoint(score.eval(), standardisation, scales)


def save_pretrained(
    folder: str | os.PathLike[str],
    score: NetworkScore,
    standardisation: Standardisation | None = None,
    scales: Scales | None = None,
) -> None:
    """Write ``score`` to a folder: ``model.safetensors`` as :func:`save` writes it, and ``config.json``.

    The folder can be uploaded to a model hub as it is. Arguments and errors as for :func:`save`; the folder is made.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / MODEL, score, standardisation, scales)
    config = {
        "library_name": "sdediff",
        "format": FORMAT,
        "score": describe(score),
        "standardised": standardisation is not None,
        "scales": None if scales is None else asdict(scales),
        "sha256": _sha256(folder / MODEL),
    }
    write_whole(folder / CONFIG, json.dumps(config, indent=2).encode())


def from_pretrained(
    folder: str | os.PathLike[str],
    *,
    sde: LinearSDE | None = None,
    net: nn.Module | None = None,
    device: torch.device | str | None = None,
) -> Checkpoint:
    """Read what :func:`save_pretrained` wrote, or such a folder from a hub (``huggingface_hub.snapshot_download`` gives one).

    Arguments and errors as for :func:`load`; besides:

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: config.json is no JSON, of another format, or belongs to other weights.
    """
    folder = Path(folder)
    if missing := [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} is no folder of a pretrained score: it has no {' and no '.join(missing)}. (Pickled weights, .bin or "
            ".pt, are never read.)"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged: it is no JSON ({error}).") from error
    check_format(config, folder / CONFIG)
    if config.get("sha256") != _sha256(folder / MODEL):
        raise ValueError(
            f"{folder / MODEL} is not the file that {CONFIG} was written for: its SHA-256 differs. Either is damaged, or "
            "they come from different scores: copy both files anew."
        )
    kept = load(folder / MODEL, sde=sde, net=net, device=device)
    if config.get("score") != read_tensors(folder / MODEL, "score")[0]:
        raise ValueError(f"{folder / CONFIG} describes another score than {MODEL}, which cannot be: it was edited.")
    return kept


def fill(module: nn.Module, weights: dict[str, Tensor], path: Any, *, assign: bool = False) -> None:
    """Load these weights, after a look at names and shapes.

    Raises:
        ValueError: they are those of another network.
    """
    own = module.state_dict()
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
    module.load_state_dict(weights, assign=assign)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
