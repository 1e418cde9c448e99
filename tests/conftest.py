"""What the tests share: a repeatable hypothesis, an exact test of a Gaussian law with its level and power stated, a network."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from scipy import stats

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40, database=None)
hypothesis.settings.load_profile("repeatable")

LEVEL = 1e-7
"""False-alarm rate of one check; a whole run makes fewer than 1,000, so 1e-4 together."""


def law_check(x: torch.Tensor, mean: float, variance: float) -> None:
    """Fail unless x (n,), independent Gaussians by hypothesis, has this mean and variance.

    Both tests are exact (normal and chi-square), of level LEVEL each. With probability 0.99 they see a mean that is off by
    7.7 / sqrt(n) standard deviations, and a variance that is off by the fraction 10.8 / sqrt(n).
    """
    x, n = x.detach().double().reshape(-1), x.numel()
    z = (float(x.mean()) - mean) / math.sqrt(variance / n)
    p_mean = 2 * stats.norm.sf(abs(z))
    ratio = float(x.var()) / variance
    q = ratio * (n - 1)
    p_variance = 2 * min(stats.chi2.cdf(q, n - 1), stats.chi2.sf(q, n - 1))
    assert p_mean > LEVEL, f"mean {float(x.mean()):.6g}, not {mean:.6g}: z = {z:.2f} at n = {n}, p = {p_mean:.2g}"
    assert p_variance > LEVEL, f"variance {float(x.var()):.6g}, not {variance:.6g}: ratio {ratio:.4f} at n = {n}"


@pytest.fixture
def assert_law():
    """:func:`law_check`, for tests that ask for it by name."""
    return law_check


class Learned(torch.nn.Module):
    """A network whose parameters are a number and a vector, in float64: a noise prediction for t of any shape, and a score."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x, t, cond=None):
        t = t.reshape(-1, 1).to(x.dtype)
        return (0.8 * t + self.a * torch.tanh(x)) + (self.b if cond is None else self.b * cond[:, None])

    def score(self, x, t, cond=None):
        return -self(x, t, cond)


@pytest.fixture
def learned():
    """:class:`Learned`, for tests that ask for it by name."""
    return Learned
