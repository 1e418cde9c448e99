"""``python -m benchmarks.bound``: the table of docs/likelihood.md, how honest the bound's standard errors are.

With the exact score and end the bound is the log-density, so every point has a z-score; the ring of eight uneven modes.
"""

from __future__ import annotations

import math
from unittest import mock

import torch
from torch import Tensor

import sdediff as sd
from sdediff.likelihood import bound

RING = sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8]).to(dtype=torch.float64)
PROCESSES = (sd.VP(), sd.SubVP(), sd.VE(), sd.EDM(), sd.OU())
POINTS, SEEDS = 500, 4


def figures(draws: int) -> tuple[int, int, float, float]:
    """How many points lie above by more than 4 of their own errors, and of those stated; errors seen and stated, rms."""
    own, seen, stated = [], [], []
    for sde in PROCESSES:
        score = sd.ExactScore(sde, RING)
        for seed in range(SEEDS):
            x = score.sample(POINTS, sde.t_min, seed=seed).double()
            with mock.patch.object(bound, "careful_error", Tensor.sqrt):  # without the floor of the batch
                got = sd.elbo(sde, score, x, terminal=score.law(sde.t_max), draws=draws, seed=100 + seed)
            own.append(got.standard_error)
            seen.append(got.value - score.log_prob(x, sde.t_min))
            stated.append(sd.likelihood.estimate.careful_error(got.standard_error.square()))
    alone, error, careful = (torch.cat(parts) for parts in (own, seen, stated))
    rms = [float(v.square().mean().sqrt()) for v in (error, careful)]
    return int((error > 4 * alone).sum()), int((error > 4 * careful).sum()), rms[0], rms[1]


def main() -> None:
    """Print the table as Markdown."""
    count = POINTS * SEEDS * len(PROCESSES)
    normal = count * 0.5 * math.erfc(4 / math.sqrt(2))
    print(f"| draws | error, rms | stated, rms | of {count:,} above by 4 of their own errors | by 4 stated |")
    print("| --- | --- | --- | --- | --- |")
    for draws in (16, 32, 64):
        own, above, error, careful = figures(draws)
        print(f"| {draws} | {error:.2f} | {careful:.2f} | {own} | {above} |", flush=True)
    print(f"| normal statistics | | | {normal:.1f} | {normal:.1f} |")


if __name__ == "__main__":
    main()
