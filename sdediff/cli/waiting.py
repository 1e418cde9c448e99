"""A sign of life for work that cannot say how far it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show ``label`` and the seconds gone by on stderr, once two of them have, until the block is left."""
    done = threading.Event()

    def tick() -> None:
        with tqdm(desc=label, bar_format="{desc} ({elapsed})", delay=2, leave=False, disable=None) as bar:
            while not done.wait(1):
                bar.update()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
