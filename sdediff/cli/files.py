"""Files from and for the command line: checked before any long work, written whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import check_finite
from ..whole import whole, write_whole


def read_array(path: Path) -> Tensor:
    """The array in a ``.npy`` file, as it is.

    Raises:
        ValueError: no such file, another kind of file, a damaged one, or an array of no numbers.
    """
    if path.suffix != ".npy":
        table = ", delimiter=',', skiprows=1" if path.suffix == ".csv" else ""
        source = f"numpy.loadtxt({str(path)!r}{table})" if path.suffix in (".csv", ".txt") else "array"
        raise ValueError(f"{path} is no .npy file: write one with numpy.save('data.npy', {source}).")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        array = np.load(path, allow_pickle=False)
    except MemoryError:
        raise ValueError(f"{path} says that it holds more than memory does: it is damaged, or too large.") from None
    except Exception as error:  # a damaged header is parsed as Python, and fails in as many ways
        raise ValueError(
            f"{path} cannot be read: it is damaged, holds Python objects, or numpy.save did not write it. Write numbers with "
            "numpy.save('data.npy', array)."
        ) from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} holds {array.dtype} values; an array of real numbers is needed.")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def read_data(path: Path) -> Tensor:
    """Samples (N, *event) in float32.

    Raises:
        ValueError: as :func:`read_array`; or an array without a batch axis, of fewer than two samples, or not finite.
    """
    data = read_array(path)
    if data.ndim < 1 or len(data) < 2 or data.numel() == 0:
        raise ValueError(f"{path} has shape {tuple(data.shape)}; training needs (N, *event) with at least 2 samples.")
    if not bool(data.to(torch.float32).isfinite().all()) and bool(data.isfinite().all()):
        raise ValueError(f"{path} holds values up to {float(data.abs().max()):.2g}, beyond float32: take other units.")
    return check_finite(data.to(torch.float32), str(path))


def read_labels(path: Path, n: int) -> Tensor:
    """Class labels 0 ... K - 1 of n samples, (n,).

    Raises:
        ValueError: as :func:`read_array`; or another shape, or labels that are negative, no whole numbers, or as large as n.
    """
    labels = read_array(path)
    if tuple(labels.shape) != (n,):
        raise ValueError(f"{path} has shape {tuple(labels.shape)}; {n} samples need labels of shape ({n},).")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or int(labels.min()) < 0:
        raise ValueError(f"{path} must hold class numbers 0, 1, ... as integers: numpy.save(..., labels.astype(int)).")
    if int(labels.max()) >= n:
        raise ValueError(
            f"{path} holds the label {int(labels.max())}, so that there were more classes than the {n} samples: number those "
            "that occur 0, 1, ... by numpy.unique(labels, return_inverse=True)[1]."
        )
    return labels.long()


def folder(path: Path) -> Path:
    """The folder ``path``, made if need be, and found to be writable.

    Raises:
        ValueError: it is a file, or cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ValueError(f"Nothing can be written to the folder {path}: {error.strerror or error}.") from error


def output_file(path: Path, suffix: str, option: str = "--out") -> Path:
    """The file ``path`` to be, in a folder that is found to be writable.

    Raises:
        ValueError: another ending than ``suffix``, a folder, or a place that cannot be written.
    """
    if path.suffix != suffix:
        raise ValueError(f"{option} {path} must end in {suffix}.")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder.")
    folder(path.parent)
    return path


def write_text(path: Path, text: str) -> None:
    """The text to the file, whole or not at all."""
    write_whole(path, text.encode())


def write_array(path: Path, array: Tensor) -> None:
    """The array to a ``.npy`` file, whole or not at all."""
    with whole(path) as file:
        np.save(file, array.detach().cpu().numpy())
