"""Several processes that work on one thing, as ``torchrun`` or ``accelerate launch`` start them.

Work is divided by sample: each worker takes a contiguous share of the samples, and random numbers are keyed by the
sample (:class:`~sdediff.Keyed`), so what comes out does not depend on how many workers there are. Sampling is then

.. code-block:: python

    workers = Workers.found()
    first, last = workers.share(n)
    part = sample(process, last - first, noise=Keyed(seed).rows(first, last), ...)
    x = workers.gathered(part.x)            # all n on rank 0, None elsewhere

Training does the same by itself: :class:`~sdediff.training.Trainer`.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html for what the launchers set.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """This process among those that share the work.

    Args:
        rank: the number of this one, from 0.
        count: how many there are.
        local: its number on this machine, which chooses its accelerator.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def found(cls) -> Workers:
        """The group this process was started in; joined on the first call, left when the process ends. Alone if none.

        Raises:
            ValueError: the launcher set a part of the variables only.
        """
        if not (dist.is_available() and dist.is_initialized()):
            count = int(os.environ.get("WORLD_SIZE", "1"))
            if count == 1:
                return cls()
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise ValueError(
                    f"WORLD_SIZE = {count}, but {', '.join(missing)} not set: start with torchrun or accelerate launch."
                )
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))

    def device(self, name: str) -> str:
        """``name``, with a bare "cuda" made the accelerator of this worker."""
        return f"cuda:{self.local}" if name == "cuda" and self.count > 1 else name

    def share(self, n: int) -> tuple[int, int]:
        """Which of n samples are this worker's, first and last, the last excluded; shares differ by one at most."""
        return n * self.rank // self.count, n * (self.rank + 1) // self.count

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a value over all workers."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gathered(self, x: Tensor) -> Tensor | None:
        """The rows of all workers in the order of their ranks, on the host of rank 0; None elsewhere."""
        if self.count == 1:
            return x
        parts: list[Tensor] | None = [torch.empty(0)] * self.count if self.rank == 0 else None
        dist.gather_object(x.detach().cpu(), parts)
        return None if parts is None else torch.cat(parts)

    def wait(self) -> None:
        """Go on when all workers have come here."""
        if self.count > 1:
            dist.barrier()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
