"""Differentiating inside a call, in whatever gradient mode the caller is: normal, ``no_grad`` or ``inference_mode``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def recording() -> Iterator[None]:
    """Operations in this block can be differentiated. (``enable_grad`` alone does nothing in inference mode.)"""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaf(x: Tensor) -> Tensor:
    """``x`` without its history, to differentiate by; to be made inside :func:`recording`."""
    return usable(x).detach().requires_grad_()


def usable(x: Tensor) -> Tensor:
    """``x``, or a copy where it was made in inference mode: such a tensor can take no part in a derivative."""
    return x.clone() if x.is_inference() else x
