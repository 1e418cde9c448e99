r"""A process of your own, forward, backward and verified: geometric Brownian motion.

.. math:: dx = a x\,dt + b x\,dW

Its noise depends on the state, so its reversal needs :math:`\nabla\cdot(GG^\top) = 2b^2x`, which sdediff supplies. If x is
log-normal at t = 0 it is so at every t: everything can be checked.

Run: python examples/custom_sde.py
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

import sdediff as sd

A, B = 0.3, 0.6  # rates, per unit of time and per root of it
MEAN, STD = 0.0, 0.25  # of log x at t = 0


class Geometric(sd.SDE):
    def f(self, x, t):
        return A * x

    def g(self, x, t):
        return B * x


class LogNormal(sd.verify.Law):
    """The law of x_t: log x is N(m(t), s(t)²)."""

    event_shape = (1,)

    def moments(self, t):
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
        return MEAN + (A - B**2 / 2) * t, torch.sqrt(STD**2 + B**2 * t)

    def log_prob(self, x, t):
        m, s = self.moments(t)
        return (-0.5 * ((x.log() - m) / s) ** 2 - x.log() - torch.log(s) - 0.5 * math.log(2 * math.pi)).sum(1)

    def sample(self, n, t, generator):
        m, s = self.moments(t)
        return (m + s * torch.randn(n, 1, generator=generator, dtype=torch.float64)).exp()


def main(n: int = 20_000, steps: int = 300, seed: int = 0, out: str = "results/custom_sde.png") -> None:
    sde, law = Geometric(), LogNormal()
    back, flow = sde.reverse(law.score), sde.probability_flow(law.score)
    data, noise = (law.sample(n, t, torch.Generator().manual_seed(seed)) for t in (0.0, 1.0))

    runs = {
        "forward": sd.solve(sde, data, solver=sd.EulerMaruyama(), steps=steps, seed=seed + 1),
        "reverse SDE": sd.solve(back, noise, solver=sd.EulerMaruyama(), steps=steps, seed=seed + 2),
        "flow": sd.solve(flow, noise, solver=sd.RK4(), steps=max(1, steps // 10)),
    }
    print(f"{'run':12} {'mean log x':>11} {'exact':>8} {'std log x':>11} {'exact':>8}")
    for name, sol in runs.items():
        m, s = (float(v) for v in law.moments(float(sol.ts[-1])))
        y = sol.x.log()
        print(f"{name:12} {y.mean():11.4f} {m:8.4f} {y.std():11.4f} {s:8.4f}")

    print("\nreverse of reverse is the original:", back.reverse(law.score) is sde)
    print(sd.verify.langevin_identity(sde, law, t=0.5, n=n, seed=seed), end="\n\n")
    print(sd.verify.duality(sde, law, n=n // 2, steps=steps, times=[0.2, 0.5, 0.8], seed=seed))

    picture(runs, law, out)
    print("\nwrote", out)


def picture(runs: dict[str, sd.Solution], law: LogNormal, out: str) -> None:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    x = torch.linspace(0.05, 4, 300, dtype=torch.float64)[:, None]
    for axes, (name, sol) in zip(figure.subplots(1, len(runs), sharey=True), runs.items(), strict=True):
        t = float(sol.ts[-1])
        axes.hist(sol.x[:, 0].numpy(), bins=80, range=(0, 4), density=True, color="#9cc9d8")
        axes.plot(x, law.log_prob(x, t).exp(), color="#222222", linewidth=1)
        axes.set_title(f"{name}, at t = {t:g}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=20_000, help="how many particles")
    parser.add_argument("--steps", type=int, default=300, help="steps of Euler-Maruyama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results/custom_sde.png", help="the picture")
    main(**vars(parser.parse_args()))
