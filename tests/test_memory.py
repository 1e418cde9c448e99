"""Memory: a solve keeps nothing of its steps, and any number of samples fits in batches.

Peaks are those of a process of its own, as Linux counts them in /proc: ``ru_maxrss`` would start from the peak of the process
that started it.
"""

from __future__ import annotations

import subprocess
import sys

_SOLVE = """
import sys
import torch, sdediff as sd
torch.set_num_threads(1)
n, steps, batch = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sde = sd.VP()
back = sde.reverse(sd.ExactScore(sde, sd.densities.ring(8)))
sol = sd.sample(back, n, solver=sd.EulerMaruyama(), steps=steps, seed=0, batch_size=batch)
assert sol.x.shape == (n, 2) and sol.stats["nfe"] == steps
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


def peak_mib(n: int, steps: int, batch: int) -> float:
    """The peak memory of sampling ``n`` points, in MiB, the interpreter and torch included."""
    args = [sys.executable, "-c", _SOLVE, str(n), str(steps), str(batch)]
    return float(subprocess.run(args, check=True, capture_output=True, text=True).stdout)


def test_memory_does_not_grow_with_the_steps():
    few, many = peak_mib(50_000, 5, 50_000), peak_mib(50_000, 250, 50_000)
    # one kept state is 0.4 MiB: keeping them all would take 98 MiB more
    assert many - few < 20


def test_ten_million_samples_fit_below_one_gibibyte():
    assert peak_mib(10**7, 1, 2**18) < 1024
