r"""A score learned from samples, saved, loaded, and held against the exact score that it stands for.

The data are a mixture, so the right answer is known at every time. The error of a learned noise prediction is given as a
fraction of the noise itself; what it means for samples is their energy distance from the exact law of the end time, beside
the noise floor, the same number for exact samples.

Run: python examples/train_and_sample.py
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import sdediff as sd

SAMPLERS = {  # reverse process, solver, steps
    "Euler-Maruyama": (1.0, sd.EulerMaruyama(), 200),
    "DDIM": (0.0, sd.DDIM(), 50),
    "DPM-Solver++ 2M": (0.0, sd.DPMSolverPP2M(), 20),
}


def main(
    n: int = 5000, steps: int = 2000, seed: int = 0, out: str = "results/train_and_sample.png"
) -> tuple[dict[float, float], dict[str, float]]:
    sde, law = sd.VP(), sd.densities.moons()
    exact = sd.ExactScore(sde, law)
    folder = Path(out).parent
    folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(seed)  # of the network's first weights
    net = sd.networks.MLP(2, width=128, depth=3)
    score = sd.VelocityPrediction(sde, net)
    fit = sd.training.fit(score, law.sample(20_000, seed=seed), steps=steps, lr=3e-3, seed=seed)
    sd.training.save(folder / "score.safetensors", fit.score)
    learned = sd.training.load(folder / "score.safetensors").score
    print(f"{steps} steps in {fit.seconds:.0f} s, loss on held-out data {fit.held_out[-1][1]:.4f}\n")

    errors = {}
    print("log-SNR       t   error of the noise prediction")
    for log_snr in (4.0, 2.0, 0.0, -2.0, -4.0):
        t = float(sde.time_of(log_snr))
        x = exact.sample(n, t, seed=seed + 1)
        with torch.no_grad():
            right = exact.noise(x, t)
            errors[log_snr] = float((learned.noise(x, t) - right).norm() / right.norm())
        print(f"{log_snr:7g} {t:7.3f}   {errors[log_snr]:.1%}")

    truth = exact.sample(n, sde.t_min, seed=seed + 2)
    samples, distances = {"exact": truth}, {}
    again = exact.sample(n, sde.t_min, seed=seed + 3)
    distances["noise floor"] = sd.metrics.energy_distance(truth, again)
    for name, (eta, solver, count) in SAMPLERS.items():
        back = sde.reverse(learned, stochasticity=eta)
        grid = sd.grids.Uniform(count) if eta else sd.grids.LogSNR(count)
        sol = sd.sample(back, n, solver=solver, grid=grid, seed=seed + 4)
        samples[f"{name}, {sol.stats['nfe']} evaluations"] = sol.x
        distances[name] = sd.metrics.energy_distance(truth, sol.x)
    print("\nenergy distance from the exact law")
    for name, distance in distances.items():
        print(f"{name:16} {distance:9.2e}")

    picture(samples, fit, out)
    print("\nwrote", out, "and", folder / "score.safetensors")
    return errors, distances


def picture(samples: dict[str, torch.Tensor], fit: sd.training.Fit, out: str) -> None:
    figure = Figure(figsize=(3 * (len(samples) + 1), 3), layout="constrained")
    first, *others = figure.subplots(1, len(samples) + 1)
    first.plot(fit.losses, color="#9cc9d8", linewidth=0.5, label="training")
    first.plot(*zip(*fit.held_out, strict=True), color="#222222", label="held out, averaged weights")
    first.set_yscale("log")
    first.set_title("loss", fontsize=9)
    first.legend(fontsize=7, frameon=False)
    for axes, (name, x) in zip(others, samples.items(), strict=True):
        axes.scatter(*x.T, s=1, linewidths=0, color="#2a7f9e")
        axes.set_title(name, fontsize=9)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=5000, help="how many samples")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", default="results/train_and_sample.png", help="the picture; the checkpoint goes beside it"
    )
    main(**vars(parser.parse_args()))
