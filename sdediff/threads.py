"""How many processor threads small kernels take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_SMALL = 2**17


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's kernels, unless ``OMP_NUM_THREADS`` says otherwise.

    A kernel of a small network or of a thousand particles takes less time than waking a second thread; and where another
    program has the core that the second thread waits for, every one of thousands of kernels waits with it, many times longer
    than it takes.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(numbers: int) -> AbstractContextManager[None]:
    """:func:`one_thread` for kernels on so few numbers that a second one gains little even on an idle machine."""
    return one_thread() if numbers <= _SMALL else nullcontext()
