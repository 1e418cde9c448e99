"""azula's samplers on any linear process, by a schedule of its own kind that is uniform in log SNR."""

from __future__ import annotations

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from azula.sample import DDIMSampler, HeunSampler, Sampler, xEABSampler, zEABSampler
from torch import Tensor

import sdediff as sd


class _Uniform(Schedule):
    """azula's t in [0, 1] as log SNR from one end of the solve to the other."""

    def __init__(self, sde: sd.LinearSDE, noisy: float, clean: float):
        self.sde = sde
        self.ends = float(sde.log_snr(clean)), float(sde.log_snr(noisy))

    def time(self, t: Tensor) -> Tensor:
        return self.sde.time_of(self.ends[0] + (self.ends[1] - self.ends[0]) * t.double())

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = self.time(t)
        return self.sde.alpha(u), self.sde.sigma(u)


class _Exact(Denoiser):
    def __init__(self, score: sd.Score, schedule: _Uniform):
        super().__init__()
        self.score, self.schedule, self.count = score, schedule, 0

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
        self.count += 1
        return DiracPosterior(self.score.data(x_t, self.schedule.time(t)))


SAMPLERS: dict[str, tuple[type[Sampler], dict[str, int], int]] = {
    "xEAB-3": (xEABSampler, {"order": 3}, 1),
    "zEAB-3": (zEABSampler, {"order": 3}, 1),
    "DDIM": (DDIMSampler, {}, 1),
    "Heun": (HeunSampler, {}, 2),
}
"""The class, its options and its evaluations per step."""


def solve(name: str, score: sd.Score, x: Tensor, noisy: float, clean: float, budget: int) -> tuple[Tensor, int]:
    """The end of the solve and the evaluations made."""
    kind, options, cost = SAMPLERS[name]
    denoiser = _Exact(score, _Uniform(score.sde, noisy, clean))
    sampler = kind(denoiser, steps=budget // cost, silent=True, dtype=torch.float64, **options)
    return sampler(x), denoiser.count
