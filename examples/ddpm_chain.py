"""From DDPM's chain to its SDE: how fast its steps and its variational bound become exact as the number of steps grows.

The data are Gaussian, so that the law of every chain is known without sampling: each step maps a Gaussian to a Gaussian.

Run: python examples/ddpm_chain.py
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import sdediff as sd
from sdediff import ddpm

MEAN, STD = 0.8, 0.5
STEPS = {
    "vanilla": ddpm.VanillaStep(),
    "common": ddpm.CommonStep(),
    "reverse diffusion": ddpm.ReverseDiffusionStep(),
    "ancestral, β̃": ddpm.AncestralStep(),
    "DDIM": ddpm.DDIMStep(),
}
BOUNDS = {
    "variance β": ddpm.AncestralStep(ddpm.LargeVariance()),
    "variance β̃": ddpm.AncestralStep(ddpm.SmallVariance()),
}


def distance(back: ddpm.ReverseChain) -> float:
    """The Wasserstein distance between the data and the law to which the chain carries the exact law of x_N."""
    bar, two = float(back.chain.alpha_bars[-1]), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    mean, variance = bar**0.5 * MEAN, bar * STD**2 + 1 - bar
    for i in range(len(back.chain), 0, -1):
        law = back.law(two, i)  # affine in x: two points tell all of it
        gain = float(law.mean[1] - law.mean[0])
        mean = gain * mean + float(law.mean[0])
        variance = gain**2 * variance + (float(law.std) ** 2 if i > 1 else 0.0)  # no noise in the last step
    return ((mean - MEAN) ** 2 + (variance**0.5 - STD) ** 2) ** 0.5


def main(sizes: tuple[int, ...] = (8, 16, 32, 64, 128), n: int = 10_000, out: str = "results/ddpm_chain.png"):
    sde, data = sd.VP(0.1, 12.0), sd.densities.gaussian((MEAN,), STD)
    score = sd.ExactScore(sde, data)
    chains = [ddpm.Chain.from_process(sde, size) for size in sizes]
    errors = {name: [distance(c.reverse(score, step)) for c in chains] for name, step in STEPS.items()}
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x0 = MEAN + STD * torch.special.ndtri(middles).unsqueeze(1)  # evenly spread data: less noise in the mean
    bounds = {name: [c.reverse(score, step).bound(x0, seed=1) for c in chains] for name, step in BOUNDS.items()}
    gaps = {name: [float((data.log_prob(x0) - b.value).mean()) for b in row] for name, row in bounds.items()}
    for title, table in (("distance from the data", errors), ("gap of the bound, in nats", gaps)):
        print(f"\n{title + ', steps:':32}" + "".join(f"{size:>9}" for size in sizes))
        for name, row in table.items():
            print(f"{name:32}" + "".join(f"{value:9.4f}" for value in row))
    picture(sizes, errors, gaps, {name: row[-1].levels.mean(0) for name, row in bounds.items()}, out)
    print("\nwrote", out)
    return errors, gaps


def picture(sizes: tuple[int, ...], errors: dict, gaps: dict, levels: dict, out: str) -> None:
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, table, title in ((left, errors, "distance from the data"), (middle, gaps, "gap of the bound / nats")):
        for name, row in table.items():
            axes.loglog(sizes, row, marker="o", markersize=3, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("steps N", fontsize=9)
    left.loglog(sizes, [2 / size for size in sizes], color="#999999", linestyle=":", label="1/N")
    for name, values in levels.items():
        right.loglog(range(1, len(values) + 1), values, label=name)
    right.set_title(f"KL of each level, N = {sizes[-1]} / nats", fontsize=9)
    right.set_xlabel("level i of $x_i$", fontsize=9)
    for axes in figure.axes:
        axes.legend(fontsize=8, frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="how many data for the bound")
    parser.add_argument("--out", default="results/ddpm_chain.png", help="the picture")
    main(**vars(parser.parse_args()))
