"""diffusers' schedulers on a flow given in noise levels.

A scheduler works on variance-preserving states x = y / sqrt(1 + level²); it is asked for ``steps`` evaluations and the score
is evaluated at the very level that it assumes.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

import sdediff as sd

_COMMON = {"beta_start": 1e-4, "beta_end": 0.02, "final_sigmas_type": "sigma_min"}


def schedulers() -> dict[str, Any]:
    """The fast deterministic schedulers, on the grids that they offer."""
    grids = {"Karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
    lu = {"Lu": {"use_lu_lambdas": True}}
    made: dict[str, Any] = {}
    for grid, options in (grids | lu).items():
        for order in (2, 3):
            made[f"DPM-Solver++ {order}M, {grid}"] = diffusers.DPMSolverMultistepScheduler(
                **_COMMON, **options, solver_order=order
            )
    for grid, options in grids.items():
        for order in (2, 3):
            made[f"DEIS-{order}, {grid}"] = _deis(order, options)
            made[f"UniPC-{order}, {grid}"] = diffusers.UniPCMultistepScheduler(**_COMMON, **options, solver_order=order)
    return made


def stochastic() -> dict[str, Any]:
    """SDE-DPM-Solver++ 2M on its Karras grid."""
    return {
        "SDE-DPM-Solver++ 2M, Karras": diffusers.DPMSolverMultistepScheduler(
            **_COMMON, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"
        )
    }


def _deis(order: int, options: dict[str, bool]) -> Any:
    # DEIS has no final_sigmas_type: it always ends at the smallest level.
    return diffusers.DEISMultistepScheduler(beta_start=1e-4, beta_end=0.02, solver_order=order, **options)


def solve(
    scheduler: Any, score: sd.Score, y: Tensor, steps: int, noise: list[Tensor] | None = None
) -> tuple[Tensor, int]:
    """The end of the solve in the frame of y, and the evaluations made."""
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas.double()
    x = y / torch.sqrt(1 + levels[0] ** 2)
    count = 0
    for k, t in enumerate(scheduler.timesteps):
        level = levels[k]
        frame = torch.sqrt(1 + level**2)
        epsilon = score.noise(x * frame, level.clamp(max=score.sde.t_max))
        count += 1
        extra = {} if noise is None else {"variance_noise": noise[k]}
        x = scheduler.step(epsilon, t, x, **extra).prev_sample
    return x * torch.sqrt(1 + levels[-1] ** 2), count
