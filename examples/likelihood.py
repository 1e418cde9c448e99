"""Log-densities of a diffusion model, where the truth is known: by its flow, by random probes, by the variational bound.

Run: python examples/likelihood.py
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import sdediff as sd
from sdediff import likelihood as lk


def main(n: int = 400, pixels: int = 60, seed: int = 0, out: str = "results/likelihood.png"):
    sde, data = sd.VP(), sd.densities.moons()
    score = sd.ExactScore(sde, data)  # for a network: sd.NoisePrediction(sde, net)
    t = 0.01
    x = score.sample(n, t, seed=seed).double()
    exact = score.log_prob(x, t)
    terminal = score.law(sde.t_max)  # what a model does not know: it has sde.prior, the default

    flow = sd.log_prob(sde, score, x, t=t, terminal=terminal)
    rows = {
        "flow, exact trace": flow,
        "flow, 1 Hutchinson probe": sd.log_prob(
            sde, score, x, t=t, terminal=terminal, divergence=lk.Hutchinson(), seed=seed
        ),
        "flow, 8 Hutchinson probes": sd.log_prob(
            sde, score, x, t=t, terminal=terminal, divergence=lk.Hutchinson(8), seed=seed
        ),
        "variational bound": sd.elbo(sde, score, x, t=t, terminal=terminal, seed=seed),
        "bound, score 10 % too long": sd.elbo(
            sde, lambda x, t: 1.1 * score(x, t), x, t=t, terminal=terminal, seed=seed
        ),
    }
    print(f"the truth: {exact.mean():.4f} nats, the mean of {n}\n")
    print(f"{'':28}{'error of the mean':>18}{'RMS error':>12}{'evaluations':>13}")
    errors = {}
    for name, row in rows.items():
        error = row.value - exact
        errors[name] = float(error.mean()), float(error.square().mean().sqrt())
        print(
            f"{name:28}{errors[name][0]:18.1e}{errors[name][1]:12.1e}{float(torch.as_tensor(row.nfe).double().mean()):13.0f}"
        )
    assert flow.prior_error is not None
    print(f"\nwith N(0, I) for the law at t_max the mean moves by {float(flow.prior_error.mean()):.1e} nats")

    back = lk.decode(sde, score, flow.latent, t=t).x
    print(f"encoded and decoded again: off by {float((back - x).abs().max()):.1e}")
    picture(sde, score, terminal, t, pixels, out)
    print("wrote", out)
    return errors


def picture(sde: sd.LinearSDE, score: sd.ExactScore, terminal: sd.densities.Density, t: float, pixels: int, out: str):
    ticks = torch.linspace(-2.6, 2.6, pixels, dtype=torch.float64)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    at = torch.stack([x.reshape(-1), y.reshape(-1)], 1)
    panels = {
        "log density by the flow": sd.log_prob(sde, score, at, t=t, terminal=terminal, solver=sd.Tsitouras()).value,
        "exact": score.log_prob(at, t),
    }
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.contourf(ticks, ticks, values.reshape(pixels, pixels).clamp_min(-12), levels=24, cmap="Blues")
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=10)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=400, help="how many points")
    parser.add_argument("--pixels", type=int, default=60, help="of the picture, a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results/likelihood.png", help="the picture")
    main(**vars(parser.parse_args()))
