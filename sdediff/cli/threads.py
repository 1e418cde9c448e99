"""How many processor threads a command takes for small networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's kernels, unless ``OMP_NUM_THREADS`` says otherwise.

    A kernel of a small network takes less time than waking a second thread; and where another program has the core that
    the second thread waits for, every one of thousands of kernels waits with it, many times longer than it takes.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
