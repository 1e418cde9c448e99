"""(b) What a step costs beyond its score and its random numbers, beside torchsde, JAX and diffrax."""

from __future__ import annotations

from typing import Any

import torch

import sdediff as sd

from .measure import interleaved, lower_quartile
from .peers import loops

T1 = 1e-3
SIZES = {64: 500, 4096: 200, 65_536: 50}  # batch: steps


def run(quick: bool) -> dict[str, Any]:
    """Microseconds a step (lower quartiles) for each batch, and the share of time outside a network."""
    rounds = 3 if quick else 25
    return {"rounds": rounds, "rows": [_size(b, n, rounds) for b, n in SIZES.items()], "network": _network(rounds)}


def _size(batch: int, steps: int, rounds: int) -> dict[str, Any]:
    sde = sd.VP(*loops.BETA)
    score = sd.ExactScore(sde, sd.densities.ring(loops.MODES, radius=loops.RADIUS, std=loops.STD))
    back, x = sde.reverse(score), torch.randn(batch, 2)
    grid = sd.grids.resolve(back, 1.0, T1, steps=steps)
    visited = sd.solve(back, x, solver=sd.EulerMaruyama(), grid=grid, save_at=grid, seed=0).xs
    at = score.along(grid[:-1])

    def floor() -> None:
        for k in range(steps):
            at[k](visited[k])
            torch.randn(batch, 2)

    def plain() -> None:
        y, h = x, (1.0 - T1) / steps
        for k in range(steps):
            beta = loops.BETA[0] + (loops.BETA[1] - loops.BETA[0]) * (1.0 - k * h)
            y = y + h * (0.5 * beta * y + beta * at[k](y)) + (beta * h) ** 0.5 * torch.randn_like(y)

    def ours() -> None:
        sd.solve(back, x, solver=sd.EulerMaruyama(), grid=grid, seed=0)

    exact = {round(t, 9): f for t, f in zip(grid[:-1].tolist(), at, strict=True)}
    one = score.along(torch.tensor([0.5], dtype=torch.float64))[0]
    runs = {
        "floor": floor,
        "sdediff": ours,
        "plain loop": plain,
        "torchsde": loops.torchsde_run(lambda y, t: exact.get(round(t, 9), one)(y), x, steps, T1),
        "JAX scan": loops.jax_scan_run(x, steps, T1),
        "diffrax": loops.diffrax_run(x, steps, T1),
    }
    seconds = interleaved(runs, rounds)
    micro = {name: lower_quartile(values) / steps * 1e6 for name, values in seconds.items()}
    return {"batch": batch, "steps": steps, "us per step": micro, "ratio to floor": {
        name: value / micro["floor"] for name, value in micro.items()
    }, "ratio to sdediff": {name: value / micro["sdediff"] for name, value in micro.items()}}  # fmt: skip


def _network(rounds: int) -> dict[str, Any]:
    """Time outside a U-Net of about a million parameters at 3 x 32 x 32, batch 16, as a share of the time inside."""
    import time

    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3,
    ).eval()  # fmt: skip
    inside = 0.0

    class Timed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal inside
            start = time.perf_counter()
            out = self.net(x, t * 1000).sample
            inside += time.perf_counter() - start
            return out

    sde = sd.VP()
    score = sd.NoisePrediction(sde, Timed())
    x, rows = torch.randn(16, 3, 32, 32), []
    solvers = {
        "EulerMaruyama": (sd.EulerMaruyama(), True),
        "Ancestral": (sd.Ancestral(), True),
        "PredictorCorrector": (sd.PredictorCorrector(sd.Ancestral()), True),
        "Heun": (sd.Heun(), False),
        "ExponentialAdams": (sd.ExponentialAdams(), False),
        "DPM-Solver-3": (sd.DPMSolver3(), False),
    }
    for name, (solver, noisy) in solvers.items():
        process = sde.reverse(score) if noisy else sde.probability_flow(score)
        shares = []
        for _ in range(max(3, rounds // 8)):
            inside, start = 0.0, time.perf_counter()
            sd.solve(process, x, solver=solver, grid=sd.grids.LogSNR(10), seed=0)
            shares.append((time.perf_counter() - start - inside) / inside)
        rows.append({"solver": name, "outside / inside": lower_quartile(shares)})
    return {"parameters": sum(p.numel() for p in net.parameters()), "rows": rows}
