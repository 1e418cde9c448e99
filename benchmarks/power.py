"""``python -m benchmarks.power``: the table of docs/metrics.md, how often each test of samples sees each defect.

The ring of eight modes, n = 2000 and p <= 0.05; each repetition draws its samples anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sdediff as sd
from sdediff import metrics as m

LAW, N, LEVEL, REPETITIONS = sd.densities.ring(8), 2000, 0.05, 20
WEIGHTS = [1.28, 0.72, 1, 1, 1, 1, 1, 1]

DEFECTS: dict[str, Callable[[int], Tensor]] = {
    "none": lambda seed: LAW.sample(N, seed=seed),
    "σ + 5 %": lambda seed: sd.densities.ring(8, std=0.105).sample(N, seed=seed),
    "σ + 10 %": lambda seed: sd.densities.ring(8, std=0.11).sample(N, seed=seed),
    "shift .05": lambda seed: LAW.sample(N, seed=seed) + torch.tensor([0.05, 0.0]),
    "two weights ± 28 %": lambda seed: sd.densities.ring(8, weights=WEIGHTS).sample(N, seed=seed),
    "a mode dropped": lambda seed: sd.densities.Mixture(LAW.means[:7], std=0.1).sample(N, seed=seed),
}

TESTS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "energy": lambda x, y, seed: m.energy_test(x, y, permutations=99, seed=seed).p_value,
    "MMD": lambda x, y, seed: m.mmd_test(x, y, permutations=99, seed=seed).p_value,
    "MMD, h = 0.2": lambda x, y, seed: m.mmd_test(x, y, bandwidth=0.2, permutations=99, seed=seed).p_value,
    "Stein": lambda x, y, seed: m.stein_test(x, LAW.score, repeats=99, seed=seed).p_value,
    "Stein, c = 0.1": lambda x, y, seed: m.stein_test(x, LAW.score, scale=0.1, repeats=99, seed=seed).p_value,
    "neighbours C2ST": lambda x, y, seed: m.classifier_test(x, y, seed=seed).p_value,
    "occupancy": lambda x, y, seed: m.mode_occupancy(x, LAW).p_value,
    "within mode": lambda x, y, seed: m.within_mode(x, LAW).p_value,
    "coverage": lambda x, y, seed: _both(m.mode_coverage(x, LAW)),
}


def _both(coverage: m.Coverage) -> float:
    """Its two p-values as one, by Bonferroni."""
    return 2 * min(coverage.p_missing, coverage.p_quality)


def main() -> None:
    """Print the table as Markdown."""
    print(f"| defect | {' | '.join(TESTS)} |\n|{' --- |' * (len(TESTS) + 1)}")
    for name, draw in DEFECTS.items():
        seen = dict.fromkeys(TESTS, 0)
        for seed in range(REPETITIONS):
            x, y = draw(2 * seed), LAW.sample(N, seed=2 * seed + 1)
            for test, ask in TESTS.items():
                seen[test] += ask(x, y, seed) <= LEVEL
        shares = (f"{count / REPETITIONS:.2f}".removeprefix("0") for count in seen.values())
        cells = ({".00": "0", "1.00": "1"}.get(share, share) for share in shares)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
