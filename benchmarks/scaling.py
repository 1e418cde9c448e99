"""(c) How the cost grows with the batch, the steps and the dimension, and the memory of ten million samples."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

import sdediff as sd

from .measure import interleaved, lower_quartile

_MEMORY = """
import json, sys
import torch, sdediff as sd
n, batch = int(sys.argv[1]), int(sys.argv[2])
sde = sd.VP()
back = sde.reverse(sd.ExactScore(sde, sd.densities.ring(8)))
sd.sample(back, 1000, solver=sd.EulerMaruyama(), steps=2, seed=0)
def peak():  # of this process alone: ru_maxrss would start from that of the one that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
sol = sd.sample(back, n, solver=sd.EulerMaruyama(), steps=int(sys.argv[3]), seed=0, batch_size=batch)
after = peak()
print(json.dumps({"samples": len(sol.x), "steps": sol.stats["steps"], "seconds": sol.stats["seconds"],
                  "peak MiB": after / 1024, "grown MiB": (after - before) / 1024}))
"""


def run(quick: bool) -> dict[str, Any]:
    """Microseconds per sample and step, and peak memory."""
    rounds = 3 if quick else 9
    batch = [_cost(b, 20, 2, rounds) for b in (64, 1024, 16_384, 262_144)]
    steps = [_cost(1024, n, 2, rounds) for n in (10, 100, 1000)]
    dimension = [_cost(1024, 20, d, rounds) for d in (2, 32, 512)]
    memory = [_memory(10**6 if quick else 10**7, 2**18, n) for n in (2, 8)]
    return {"rounds": rounds, "batch": batch, "steps": steps, "dimension": dimension, "memory": memory}


def _cost(batch: int, steps: int, dimension: int, rounds: int) -> dict[str, Any]:
    sde = sd.VP()
    means = torch.randn(8, dimension, generator=torch.Generator().manual_seed(0))
    back = sde.reverse(sd.ExactScore(sde, sd.densities.Mixture(means, std=0.3)))
    x = torch.randn(batch, dimension)
    times = interleaved({"solve": lambda: sd.solve(back, x, solver=sd.EulerMaruyama(), steps=steps, seed=0)}, rounds)[
        "solve"
    ]
    return {
        "batch": batch,
        "steps": steps,
        "dimension": dimension,
        "us per step": lower_quartile(times) / steps * 1e6,
        "ns per number": lower_quartile(times) / steps / batch / dimension * 1e9,
    }


def _memory(n: int, batch: int, steps: int) -> dict[str, Any]:
    """In a process of its own, whose peak is its own."""
    out = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(n), str(batch), str(steps)], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout)
