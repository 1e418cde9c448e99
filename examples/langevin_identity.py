"""Forward plus backward is Langevin: write an SDE, let it be proven, and see a wrong one caught.

At fixed t the forward half (f, G) and the backward half (-f + ∇·D + Ds, G) of any diffusion add up to Langevin dynamics
of p_t, which leaves p_t alone; D = GGᵀ and s = ∇log p_t. The check applies both Fokker-Planck operators to p_t, exactly,
and then runs particles through both halves.

    python examples/langevin_identity.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sdediff as sd


class Swirl(sd.SDE):
    """A process of one's own: a drift that turns, and matrix noise that depends on the state."""

    def f(self, x, t):
        return torch.stack([-x[:, 1] - x[:, 0], x[:, 0] - x[:, 1]], 1)

    def g(self, x, t):
        a, b = x.unbind(1)
        first = torch.stack([1 + 0.5 * a.tanh(), 0.3 * b.tanh()], 1)
        second = torch.stack([0.2 * a.cos(), 1.2 + 0.4 * b.sin()], 1)
        return sd.Dense(torch.stack([first, second], 1))


class Forgetful(Swirl):
    """The same, but its reversal forgets that the noise depends on the state."""

    def gram_divergence(self, x, t):
        return torch.zeros_like(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/langevin_identity"), help="folder for the pictures")
    parser.add_argument("--particles", type=int, default=20_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    ring, vp = sd.densities.ring(8), sd.VP()
    n = arguments.particles
    reports = {
        # A mixture under a linear SDE: p_t is known at every t.
        "identity_vp": sd.verify.langevin_identity(vp, ring, t=0.1, n=n),
        # Any SDE and any law: the identity holds once s = ∇log p.
        "identity_swirl": sd.verify.langevin_identity(Swirl(), sd.densities.Banana(), t=0.5, n=n),
        "identity_forgetful": sd.verify.langevin_identity(Forgetful(), sd.densities.Banana(), t=0.5, n=n),
        # The consequence: started from p_T, the backward process has law p_t at every t on the way.
        "duality_vp": sd.verify.duality(vp, ring, n=n // 4, steps=200),
    }
    for name, report in reports.items():
        print(report, end="\n\n")
        report.plot().savefig(arguments.out / f"{name}.png", dpi=120)
    print(f"Pictures in {arguments.out}/")


if __name__ == "__main__":
    main()
