"""The presets agree with the schedulers of the same name in diffusers, on the same nodes.

diffusers keeps its noise levels and coefficients in float32, so agreement is to its precision, not to ours. Its states are
variance preserving, x = y / sqrt(1 + level²), with y in the frame of EDM.
"""

from __future__ import annotations

import diffusers
import pytest
import torch

import sdediff as sd
from sdediff.noise import Noise, Stream
from sdediff.solvers.exponential import ExponentialMultistep, HeldNoise, Midpoint, in_log_snr

F64 = torch.float64
STEPS = 20
GRID = {"beta_start": 1e-4, "beta_end": 0.02, "use_karras_sigmas": True}
TIGHT = 3e-4  # relative to states of size 2: float32 coefficients over 19 steps


def multistep(**options):
    return diffusers.DPMSolverMultistepScheduler(**GRID, final_sigmas_type="sigma_min", **options)


CASES = {
    "order 1 is DDIM": (multistep(solver_order=1), sd.DDIM(), False),
    "2M": (multistep(solver_order=2), sd.DPMSolverPP2M(), False),
    "3M as published": (multistep(solver_order=3), sd.DPMSolverPP3M(published=True), False),
    "noise prediction, 2": (
        multistep(solver_order=2, algorithm_type="dpmsolver"),
        ExponentialMultistep(2, prediction=HeldNoise(), rule=Midpoint()),
        False,
    ),
    "SDE 2M": (multistep(solver_order=2, algorithm_type="sde-dpmsolver++"), sd.DPMSolverPP2M(), True),
    "UniPC-2": (diffusers.UniPCMultistepScheduler(**GRID, final_sigmas_type="sigma_min"), sd.UniPCSolver(2), False),
    "UniPC-2, bh1": (
        diffusers.UniPCMultistepScheduler(**GRID, final_sigmas_type="sigma_min", solver_type="bh1"),
        sd.UniPCSolver(2, linear=True),
        False,
    ),
    "UniPC-3": (
        diffusers.UniPCMultistepScheduler(
            **GRID, final_sigmas_type="sigma_min", solver_order=3, lower_order_final=False
        ),
        sd.UniPCSolver(3),
        False,
    ),
    "DEIS-2": (diffusers.DEISMultistepScheduler(**GRID, solver_order=2), sd.DEIS(2, variable=in_log_snr), False),
    "DEIS-3": (diffusers.DEISMultistepScheduler(**GRID, solver_order=3), sd.DEIS(3, variable=in_log_snr), False),
}


class Listed(Noise):
    """Draws given beforehand, one a step."""

    def __init__(self, draws):
        self.draws = draws

    def open(self, x):
        return _ListedStream(self.draws)

    def initial(self, shape, device, dtype):
        raise AssertionError

    def integer(self):
        raise AssertionError


class _ListedStream(Stream):
    def __init__(self, draws):
        self.draws = list(draws)

    def normal(self, shape=None):
        return self.draws.pop(0)


def theirs(scheduler, score, y, draws, count):
    """States in the frame of y after ``count`` steps, and the noise levels."""
    scheduler.set_timesteps(STEPS)
    levels = scheduler.sigmas.double()
    x = y / torch.sqrt(1 + levels[0] ** 2)
    for k in range(count):
        frame = torch.sqrt(1 + levels[k] ** 2)
        epsilon = score.noise(x * frame, levels[k])
        extra = {} if draws is None else {"variance_noise": draws[k]}
        x = scheduler.step(epsilon, scheduler.timesteps[k], x, **extra).prev_sample
    return x * torch.sqrt(1 + levels[count] ** 2), levels


@pytest.mark.parametrize("name", CASES)
def test_a_preset_is_the_scheduler_of_its_name(name):
    scheduler, solver, noisy = CASES[name]
    scheduler.set_timesteps(STEPS)
    count = STEPS - 1  # diffusers repeats the smallest level at the end: a step of length 0
    levels = scheduler.sigmas.double()
    sde = sd.EDM(t_max=float(levels[0]) * 1.001, t_min=1e-3)
    score = sd.ExactScore(sde, sd.densities.ring(8).to(dtype=F64))
    generator = torch.Generator().manual_seed(0)
    y = score.density.sample(64, generator=generator) + levels[0] * torch.randn(64, 2, generator=generator, dtype=F64)
    draws = [torch.randn(64, 2, generator=generator, dtype=F64) for _ in range(count)] if noisy else None
    want, levels = theirs(scheduler, score, y, draws, count)
    process = sde.reverse(score) if noisy else sde.probability_flow(score)
    noise = Listed(draws) if noisy else None
    got = sd.solve(process, y, solver=solver, grid=levels[: count + 1], noise=noise).x
    # a start near a boundary between modes doubles float32 rounding without end: compare the 95 % nearest
    distance = (got - want).norm(dim=1)
    assert distance.quantile(0.95) < TIGHT, distance.quantile(torch.tensor([0.5, 0.95, 1.0], dtype=F64))
    other = sd.solve(process, y, solver=sd.IPNDM(2), grid=levels[: count + 1], noise=noise).x
    assert (other - want).norm(dim=1).quantile(0.95) > 3 * TIGHT  # the test tells solvers apart


def test_ddims_eta_is_that_of_diffusers():
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.set_timesteps(10)
    abar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    levels = ((1 - abar) / abar).sqrt()
    sde = sd.EDM(t_max=float(levels[0]) * 1.001, t_min=1e-3)
    score = sd.ExactScore(sde, sd.densities.ring(8).to(dtype=F64))
    generator = torch.Generator().manual_seed(0)
    y = levels[0] * torch.randn(64, 2, generator=generator, dtype=F64)
    draws = [torch.randn(64, 2, generator=generator, dtype=F64) for _ in range(9)]
    x = y * abar[0].sqrt()
    for k in range(9):
        epsilon = score.noise(x / abar[k].sqrt(), levels[k])
        x = scheduler.step(epsilon, scheduler.timesteps[k], x, eta=0.6, variance_noise=draws[k]).prev_sample
    # its first step has alpha of the final time, as ours: the states of the DDPM frame over sqrt(abar)
    got = sd.solve(sde.reverse(score), y, solver=sd.DDIM(0.6), grid=levels, noise=Listed(draws)).x
    distance = (got - x / abar[9].sqrt()).norm(dim=1)
    assert distance.quantile(0.95) < TIGHT
