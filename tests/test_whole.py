"""Whoever writes a file writes it whole: on the disk before it takes its place, and a crash leaves the old one alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff import training as tr
from sdediff.cli.files import write_array, write_text
from sdediff.whole import write_whole


def rewound(path: Path, last: int) -> None:
    """A log of the steps 1 to 4, rewound to this one."""
    lines = tr.JSONLines(path)
    if not path.exists():
        for step in (1, 2, 3, 4):
            lines(step, {"loss": 0.5})
    lines.rewind(last)


# A writer of one of two contents, and what the file then says of which.
WRITERS = {
    "bytes": (lambda path, k: write_whole(path, bytes([k])), lambda path: path.read_bytes()[0]),
    "text": (lambda path, k: write_text(path, f"κ = {k}"), lambda path: int(path.read_text(encoding="utf-8")[4:])),
    "array": (lambda path, k: write_array(path, torch.tensor([[k]])), lambda path: int(np.load(path).item())),
    "grid": (
        lambda path, k: sd.grids.Adapted(torch.tensor([float(k), 0.0])).save(path),
        lambda path: int(sd.grids.Adapted.load(path).times[0]),
    ),
    "log": (rewound, lambda path: json.loads(path.read_text().splitlines()[-1])["step"]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_disk_first_then_the_place(name, tmp_path, monkeypatch):
    write, read = WRITERS[name]
    path, seen = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace
    write(path, 3)
    assert read(path) == 3
    monkeypatch.setattr("os.fsync", lambda handle: (seen.append("fsync"), fsync(handle)))
    monkeypatch.setattr("os.replace", lambda source, target: (seen.append("replace"), replace(source, target)))
    write(path, 2)
    assert read(path) == 2 and seen == ["fsync", "replace"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_crash_leaves_the_old_file(name, call, tmp_path, monkeypatch):
    write, read = WRITERS[name]
    path = tmp_path / "file"
    write(path, 3)

    def crash(*_):
        raise OSError("no space left")

    monkeypatch.setattr(call, crash)
    with pytest.raises(OSError, match="no space"):
        write(path, 2)
    assert read(path) == 3 and list(tmp_path.iterdir()) == [path]
