"""Files that are written whole or not at all.

The content goes beside its place, to the disk, and is then moved there at once: a crash leaves the old file or the new one,
never half of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which comes to be ``path`` when the block ends, and to nothing if it fails."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """The file with this content, whole or not at all."""
    with whole(path) as file:
        file.write(content)
