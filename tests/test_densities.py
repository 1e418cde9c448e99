"""Densities: normalised, consistent, sampled right, and exact under every linear process.

Statistical tests share a false-alarm rate of 1e-4: each asks for p > LEVEL, a Bonferroni share of it. With n = 20,000 the
Kolmogorov-Smirnov tests see a difference of 0.025 in a distribution function, which is a tenth of a standard deviation
of one mode, or 0.025 in a weight.
"""

from __future__ import annotations

import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.datasets import make_moons
from torch import Tensor

import sdediff as sd
from sdediff import counting
from sdediff.densities import empirical
from sdediff.densities.boxes import window
from sdediff.densities.mixture import QuadraticPosterior, ResidualPosterior
from sdediff.exact import _thin

D = sd.densities
F64 = torch.float64
LEVEL = 1e-4 / 100

MIXTURES = {
    "gaussian": D.gaussian((0.3, -0.2), 0.7),
    "ring": D.ring(8),
    "weighted ring": D.ring(5, 1.5, 0.2, weights=[1, 2, 3, 4, 5]),
    "grid": D.grid(),
    "random": D.random_mixture(),
    "anisotropic": D.anisotropic(weights=[1, 1, 2, 1, 1]),
    "moons": D.moons(),
    "rings": D.rings(),
    "spirals": D.spirals(),
    "swiss roll": D.swiss_roll(),
    "pinwheel": D.pinwheel(),
}
# One of each kind: shared variance, several variances, full covariances in 2-D and above _FEW dimensions, a line, an image.
_A = torch.randn(3, 10, 10, dtype=F64, generator=torch.Generator().manual_seed(1))
KINDS = {
    "shared": D.ring(8, weights=range(1, 9)),
    "isotropic": D.Mixture([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], std=[0.1, 0.5, 1.0], weights=[1, 2, 3]),
    "full": D.anisotropic(weights=[1, 1, 2, 1, 1]),
    "full 3-D": D.Mixture(_A[:, :3, 0], covariance=_A[:, :3] @ _A[:, :3].mT / 10 + 0.1 * torch.eye(3, dtype=F64)),
    "full 10-D": D.Mixture(
        _A[:, 0], covariance=_A @ _A.mT / 10 + 0.1 * torch.eye(10, dtype=F64), weights=[0.2, 0.3, 0.5]
    ),
    "line": D.bimodal(),
    "image": D.Mixture(_A[:, :6, :4].reshape(3, 2, 3, 4), std=[0.3, 0.4, 0.5]),
    "narrow": D.ring(3, 2.0, 1e-4),  # so narrow that the residual form must take over at small t
    "boxes": D.Checkerboard(),
    "cube": D.Boxes([[-1.0, 0, 0], [0, -1, 0.5]], [[0.0, 1, 2], [1, 1, 1]], weights=[0.3, 0.7]),
    "data": D.Empirical(torch.randn(50, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(2))),
}
PROCESSES = [
    sd.VP(),
    sd.OU(),
    sd.SubVP(),
    sd.VE(),
    sd.EDM(),
    sd.CosineVP(),
    sd.RectifiedFlow(),
    sd.CustomVP(lambda t: 1 + t),
]


def autograd(function, x: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def close(a: Tensor, b: Tensor, rtol: float) -> None:
    """Elementwise within rtol of the largest entry of each row."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    scale = b.abs().amax(1, keepdim=True).clamp_min(1e-6)
    assert ((a - b).abs() / scale).max() <= rtol


def plane(low: float, high: float, step: float) -> Tensor:
    ticks = torch.arange(low, high, step, dtype=F64) + 0.5 * step
    return torch.cartesian_prod(ticks, ticks)


def reference_log_prob(law: D.Mixture, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """log p_t by torch.distributions: what the closed form must agree with."""
    d = law.means.shape[1]
    covariance = alpha**2 * law.covariances + sigma**2 * torch.eye(d, dtype=F64)
    modes = torch.distributions.MultivariateNormal(alpha * law.means, covariance)
    mixed = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(law.weights), modes)
    return mixed.log_prob(x.reshape(len(x), d))


def projection_pvalue(law: D.Mixture, x: Tensor, seed: int) -> float:
    """Kolmogorov-Smirnov of one random projection of x against its exact distribution function."""
    u = torch.randn(law.means.shape[1], dtype=F64, generator=torch.Generator().manual_seed(seed))
    stds = torch.einsum("i,kij,j->k", u, law.covariances, u).sqrt()
    uniform = torch.special.ndtr(((x.reshape(len(x), -1).double() @ u)[:, None] - law.means @ u) / stds) @ law.weights
    return stats.kstest(uniform.numpy(), "uniform").pvalue


# ---- the densities themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_integrate_to_one(name):
    law = MIXTURES[name]
    step = float(law.variances.min()) ** 0.5  # the trapezoidal rule on a Gaussian errs by 2 exp(-2 pi²) here
    total = sum(law.log_prob(block).exp().sum() for block in plane(-6, 6, step).split(4096))
    assert abs(float(total) * step**2 - 1) < 1e-6


def test_the_other_densities_integrate_to_one():
    line = torch.arange(-5, 5, 0.05, dtype=F64)
    assert abs(float(D.bimodal().log_prob(line).exp().sum()) * 0.05 - 1) < 1e-9

    board = D.Checkerboard().log_prob(plane(-3, 3, 0.05)).exp()
    assert abs(float(board.sum()) * 0.05**2 - 1) < 1e-12
    assert float(board.max()) == pytest.approx(1 / 8)  # 8 of 16 unit squares
    assert float((board > 0).double().mean()) == pytest.approx(8 / 36)

    uneven = D.Boxes([[0.0, 0.0], [2.0, 0.0]], [[1.0, 1.0], [3.0, 3.0]])  # areas 1 and 3, one height by default
    assert uneven.log_prob(torch.tensor([[0.5, 0.5], [2.5, 2.5]])).exp().tolist() == pytest.approx([0.25, 0.25])

    x1, x2 = torch.arange(-7, 7, 0.1, dtype=F64), torch.arange(-4, 40, 0.1, dtype=F64)
    assert abs(float(D.Banana().log_prob(torch.cartesian_prod(x1, x2)).exp().sum()) * 0.01 - 1) < 1e-6

    v, s = torch.arange(-8, 8, 0.1, dtype=F64), torch.arange(-8, 8, 0.2, dtype=F64)
    at = torch.cartesian_prod(v, s)  # the funnel in the coordinates in which it is no funnel
    x = torch.stack([at[:, 0], at[:, 1] * (0.5 * at[:, 0]).exp()], 1)
    mass = (D.Funnel(2, std=1.0).log_prob(x) + 0.5 * at[:, 0]).exp().sum() * 0.02
    assert abs(float(mass) - 1) < 1e-9


@pytest.mark.parametrize(
    "law", [*MIXTURES.values(), D.bimodal(), D.Banana(), D.Funnel(4)], ids=lambda law: type(law).__name__
)
def test_score_is_the_gradient_of_log_prob(law):
    x = law.to(dtype=F64).sample(200, seed=0)
    x = torch.cat([x, 1.5 * x + 0.1])
    close(law.score(x), autograd(law.log_prob, x), 1e-9)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_samples_follow_the_density(name):
    law = MIXTURES[name]
    x = law.sample(20_000, seed=3)
    assert min(projection_pvalue(law, x, seed) for seed in range(3)) > LEVEL / 3


def test_other_samples_follow_the_density():
    n = 20_000
    x = D.Banana(0.8, (1.2, 0.3)).sample(n, seed=0).double()
    straight = [x[:, 0] / 1.2, (x[:, 1] - 0.8 * (x[:, 0] ** 2 - 1.44)) / 0.3]
    x = D.Funnel(3).sample(n, seed=1).double()
    straight += [x[:, 0] / 3, x[:, 1] * (-0.5 * x[:, 0]).exp(), x[:, 2] * (-0.5 * x[:, 0]).exp()]
    assert min(stats.kstest(z.numpy(), "norm").pvalue for z in straight) > LEVEL / 5

    board = D.Checkerboard()
    x = board.sample(n, seed=2)
    assert bool(board.log_prob(x).isfinite().all())
    squares = torch.floor(x + 2).long()
    counts = torch.bincount(4 * squares[:, 0] + squares[:, 1], minlength=16)
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > LEVEL and int((counts > 0).sum()) == 8
    assert min(stats.kstest((x % 1)[:, i].numpy(), "uniform").pvalue for i in range(2)) > LEVEL / 2


def test_the_curves_are_where_they_should_be():
    """The mixture has the moments of the noisy curve, and density that is even along it and Gaussian across it."""
    law = D.moons(1.0, 0.1)
    curve = torch.as_tensor(make_moons(100_000, shuffle=False)[0]) - torch.tensor([0.5, 0.25])
    covariance = curve.T.cov(correction=0) + 0.01 * torch.eye(2, dtype=F64)
    mean = law.weights @ law.means
    assert mean.abs().max() < 1e-9
    total = torch.einsum("k,kij->ij", law.weights, law.covariances + law.means[:, :, None] * law.means[:, None, :])
    assert (total - covariance).abs().max() < 2e-5

    law = D.rings([1.0, 3.0], 0.05)
    angle = torch.linspace(0, 6, 2000, dtype=F64)
    at = torch.stack([angle.cos(), angle.sin()], 1)
    exact = 0.5 / (2 * math.pi) / (0.05 * math.sqrt(2 * math.pi))  # half of the mass, on a circle of radius 1
    assert (law.log_prob(at).exp() / exact - 1).abs().max() < 0.02
    across = law.log_prob(1.05 * at) - law.log_prob(at)
    assert (across + 0.5).abs().max() < 0.05  # one standard deviation off: exp(-1/2)

    u = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    theta = 2 * math.pi * 1.5 * u.sqrt()
    arm = 2.5 * u.sqrt()[:, None] * torch.stack([theta.cos(), theta.sin()], 1)
    law = D.spirals()
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)  # a quarter turn leads from an arm into the gap
    lit, dark = law.log_prob(torch.cat([arm, -arm])), law.log_prob(arm[200:] @ quarter)
    assert lit.min() > -4 and dark.max() < -8


def test_targets_have_the_shape_that_they_claim():
    law = D.anisotropic(4, 2.0, (0.5, 0.1), turn=0.0)
    assert torch.allclose(law.means[0], torch.tensor([2.0, 0.0], dtype=F64))
    assert torch.allclose(law.covariances[0], torch.diag(torch.tensor([0.25, 0.01], dtype=F64)))
    assert torch.allclose(law.covariances[1], torch.diag(torch.tensor([0.01, 0.25], dtype=F64)))
    assert torch.allclose(
        D.grid(3, 2.0).means.sort(0).values[:, 0], torch.tensor([-2.0, 0, 2], dtype=F64).repeat_interleave(3)
    )
    assert torch.equal(D.random_mixture(seed=5).means, D.random_mixture(seed=5).means)
    assert not torch.equal(D.random_mixture(seed=5).means, D.random_mixture(seed=6).means)
    assert D.random_mixture(7, dim=3).event_shape == (3,)


# ---- under a process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_exact_score_everywhere(sde, name):
    """score = grad log p_t, x = alpha data + sigma noise, noise = -sigma score; batched t agrees; so does ``along``."""
    law = KINDS[name].to(dtype=F64)
    score = sd.ExactScore(sde, law)
    for fraction in (1e-3, 0.02, 0.3, 1.0):
        t = fraction * sde.t_max
        x = torch.cat([score.sample(40, t, seed=4), 2 * law.sample(10, seed=5) + 0.3])
        s = score(x, t)
        sigma, alpha = float(sde.sigma(t)), float(sde.alpha(t))
        # Where x is many sigma from every box or atom, 1e-9 of the score is its conditioning: eps |x| / sigma relative.
        rtol = max(1e-9, 1e-14 * float(x.abs().max()) / sigma)
        close(s, autograd(lambda at, t=t: score.log_prob(at, t), x), rtol)
        close(score.noise(x, t), -sigma * s, rtol)
        data, noise = score.split(x, t)
        close(alpha * data + sigma * noise, x, 1e-9)

        times = torch.full((len(x),), t, dtype=F64)
        close(score(x, times), s, 10 * rtol)
        close(score.data(x, times), data, 10 * rtol)
        for view in (sd.Score.__call__, sd.Score.noise, sd.Score.data):
            (prepared,) = score.along(torch.tensor([t], dtype=F64), view)
            with counting.count() as tally:
                close(prepared(x), view(score, x, t), 10 * rtol)
            assert (tally.calls, tally.rows) == (2, 2 * len(x))


@pytest.mark.parametrize("name", [k for k, law in KINDS.items() if isinstance(law, D.Mixture)])
def test_diffused_mixture_against_torch_distributions(name):
    law = KINDS[name]
    sde = sd.VP()
    for t in (0.0, 0.001, 0.1, 0.5, 1.0):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        x = alpha * law.to(dtype=F64).sample(100, seed=1)
        x = x + sigma * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
        close(sd.ExactScore(sde, law).log_prob(x, t)[:, None], reference_log_prob(law, x, alpha, sigma)[:, None], 1e-9)
        if alpha > 0 and t > 0:
            at_t = sd.ExactScore(sde, law).law(t)
            close(at_t.score(x), sd.ExactScore(sde, law)(x, t), 1e-9)
            assert at_t.event_shape == law.event_shape


def test_posterior_mean_by_quadrature():
    """E[x_0 | x] on the line, by integrating over x_0."""
    law, alpha, sigma = D.bimodal(), 0.6, 0.8
    x = torch.tensor([-2.0, -0.3, 0.0, 0.9], dtype=F64)
    got = law.diffused(x, torch.tensor(alpha, dtype=F64), torch.tensor(sigma, dtype=F64))

    def weight(u: float, at: float) -> float:
        prior = 0.7 * stats.norm.pdf(u, -1.5, 0.25) + 0.3 * stats.norm.pdf(u, 1.5, 0.25)
        return prior * stats.norm.pdf(at, alpha * u, sigma)

    for at, mean, log_density in zip(x.tolist(), got.data().tolist(), got.log_prob().tolist(), strict=True):
        mass = integrate.quad(weight, -4, 4, args=(at,), points=(-1.5, 1.5), epsabs=1e-13)[0]
        first = integrate.quad(lambda u, at=at: u * weight(u, at), -4, 4, points=(-1.5, 1.5), epsabs=1e-13)[0]
        assert mean == pytest.approx(first / mass, abs=1e-10)
        assert log_density == pytest.approx(math.log(mass), abs=1e-10)


def test_diffused_boxes_by_quadrature():
    law, alpha, sigma = D.Boxes([[-1.0], [0.5]], [[0.0], [2.5]], weights=[0.4, 0.6]), 0.7, 0.3
    x = torch.tensor([[-1.4], [-0.2], [0.2], [0.36], [1.0], [3.0]], dtype=F64)
    got = law.diffused(x, torch.tensor(alpha, dtype=F64), torch.tensor(sigma, dtype=F64))
    for at, mean, log_density in zip(x[:, 0].tolist(), got.data()[:, 0].tolist(), got.log_prob().tolist(), strict=True):
        mass = first = 0.0
        for low, high, height in ((-1.0, 0.0, 0.4), (0.5, 2.5, 0.3)):
            pdf = lambda u, at=at, h=height: h * stats.norm.pdf(at, alpha * u, sigma)  # noqa: E731
            mass += integrate.quad(pdf, low, high, epsabs=0)[0]
            first += integrate.quad(lambda u, pdf=pdf: u * pdf(u), low, high, epsabs=0)[0]
        assert mean == pytest.approx(first / mass, rel=1e-9)
        assert log_density == pytest.approx(math.log(mass), abs=1e-9)


def test_the_window_of_a_box_keeps_its_digits():
    """The difference of two normal distribution functions, its slope and its mean, to 50 digits by mpmath."""
    with mpmath.workdps(80):
        for z in (0.0, 1e-6, 0.3, -1.0, 2.5, -6.0, 12.0, -37.0, 40.0, 1e3):
            for w in (1e-8, 1e-3, 0.0199, 0.0201, 0.5, 3.0, 80.0, 1e4):
                m, half = mpmath.mpf(abs(z)), mpmath.mpf(w) / 2
                tail = lambda u: mpmath.erfc(u / mpmath.sqrt(2)) / 2  # noqa: E731
                mass = tail(m - half) - tail(m + half)
                slope = (mpmath.npdf(m + half) - mpmath.npdf(m - half)) / mass
                got = [float(v) for v in window(torch.tensor([z], dtype=F64), torch.tensor([w], dtype=F64))]
                sign = -1 if z < 0 else 1
                assert got[0] == pytest.approx(float(mpmath.log(mass / w)), rel=1e-12)
                assert got[1] == pytest.approx(sign * float(slope), rel=1e-11, abs=1e-300)
                assert got[2] == pytest.approx(sign * float((m + slope) / w), abs=1e-9)


@pytest.mark.parametrize("name", ["shared", "full", "full 10-D", "line", "image", "boxes", "data"])
def test_perturbed_samples_have_the_moments_and_the_law_of_p_t(name):
    law, sde, t, n = KINDS[name].to(dtype=F64), sd.VP(), 0.3, 20_000
    score = sd.ExactScore(sde, law)
    x0 = law.sample(n, seed=6)
    z = torch.randn(x0.shape, dtype=F64, generator=torch.Generator().manual_seed(7))
    for x in (sde.perturb(x0, t, z), score.sample(n, t, seed=8)):
        # E[score] = 0 and E[score xᵀ] = -I for every law: moments that need no other knowledge of it.
        s, flat = score(x, t).reshape(n, -1), x.reshape(n, -1)
        products = s.unsqueeze(2) * flat.unsqueeze(1) + torch.eye(flat.shape[1], dtype=F64)
        values = torch.cat([s, products.flatten(1)], 1)
        deviations = values.mean(0) / (values.std(0) / math.sqrt(n))
        assert float(deviations.abs().max()) < stats.norm.isf(LEVEL / 2 / values.shape[1])
        if isinstance(law, D.Mixture):
            assert min(projection_pvalue(score.law(t), x, seed) for seed in range(3)) > LEVEL / 3


def test_hard_edges_are_not_glossed_over():
    board, sde = D.Checkerboard(), sd.VP()
    assert torch.isneginf(board.log_prob(torch.tensor([[0.5, -0.5], [9.0, 9.0]]))).all()
    with pytest.raises(ValueError, match="no score at t = 0"):
        board.score(torch.zeros(1, 2))
    for law in (board, D.Empirical(torch.randn(5, 2))):
        with pytest.raises(ValueError, match="no score at sigma"):
            sd.ExactScore(sde, law)(torch.zeros(1, 2), 0.0)
        with pytest.raises(ValueError, match="no score at sigma"):
            sd.ExactScore(sde, law)(torch.zeros(2, 2), torch.tensor([0.1, 0.0]))
    with pytest.raises(NotImplementedError, match="closed form"):
        sd.ExactScore(sde, D.Banana())(torch.zeros(1, 2), 0.1)


# ---- accuracy ---------------------------------------------------------------------------------------------------


def precise_score(law: D.Mixture, x: list[float], alpha: float, sigma: float) -> list[float]:
    """The score of a diffused isotropic mixture at one point, in 60 digits."""
    with mpmath.workdps(60):
        terms = []
        for w, m, v0 in zip(law.weights.tolist(), law.means.tolist(), law.variances[:, 0].tolist(), strict=True):
            v = mpmath.mpf(alpha) ** 2 * mpmath.mpf(v0) + mpmath.mpf(sigma) ** 2
            r = [mpmath.mpf(a) - mpmath.mpf(alpha) * mpmath.mpf(b) for a, b in zip(x, m, strict=True)]
            terms.append((w * mpmath.exp(-sum(c * c for c in r) / (2 * v)) / v ** (len(r) / 2), v, r))
        total = sum(p for p, _, _ in terms)
        return [float(-sum(p / total * r[i] / v for p, v, r in terms)) for i in range(len(x))]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["shared", "isotropic", "full"])
@pytest.mark.parametrize("distance", [5.0, 1e3, 1e6])
def test_far_tails(name, distance, dtype):
    """A thousand and a million away from all modes: right, where every density underflows and logits are huge."""
    law = isotropic = KINDS[name]
    if name == "full":  # the same law twice: as full covariances, and for the reference
        means = KINDS["isotropic"].means
        law = D.Mixture(means, covariance=0.3 * torch.eye(2, dtype=F64), weights=[1, 2, 3])
        isotropic = D.Mixture(means, std=math.sqrt(0.3), weights=[1, 2, 3])
    angles = torch.linspace(0.1, 6.2, 12, dtype=F64)
    x = (distance * torch.stack([angles.cos(), angles.sin()], 1)).to(dtype)
    score = sd.ExactScore(sd.OU(), law)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-9
    for t in (0.001, 1.0):
        alpha, sigma = float(sd.OU().alpha(t)), float(sd.OU().sigma(t))
        exact = torch.tensor([precise_score(isotropic, row, alpha, sigma) for row in x.double().tolist()], dtype=F64)
        (prepared,) = score.along(torch.tensor([t], dtype=F64))
        times = torch.full((len(x),), t, dtype=F64)
        for got in (score(x, t), prepared(x), score(x, times)):
            assert got.dtype == dtype
            assert ((got.double() - exact).norm(dim=1) / exact.norm(dim=1)).max() < tolerance
        assert score.log_prob(x, t).isfinite().all()


@pytest.mark.parametrize("name", ["shared", "isotropic", "full", "line", "image", "narrow", "boxes", "data"])
def test_float32_loses_nothing_but_the_rounding_of_its_result(name):
    law = KINDS[name]
    sde = sd.EDM()
    score = sd.ExactScore(sde, law)
    for t in (0.002, 0.05, 1.0, 40.0):
        x = score.sample(100, t, seed=9).float()
        times = torch.full((100,), t)
        for single, double in (
            (score(x, t), score(x.double(), t)),
            (score(x, times), score(x.double(), times.double())),
        ):
            assert single.dtype == torch.float32
            close(single.double(), double, 1e-6 if single is not None and t != 0.002 else 2e-6)
        half = score(x.bfloat16(), t)
        assert half.dtype == torch.bfloat16
        close(half.double(), score(x.bfloat16().double(), t), 1e-2)


def test_prepared_score_in_float32_is_as_good_as_its_argument():
    """Three kernels in float32: within a few roundings of x of the exact score, however small the variance."""
    laws = [D.ring(8, 2.0, std) for std in (0.3, 0.1, 0.02, 0.003)]
    laws.append(D.Mixture([[100.0, 0.0], [100.0, 1.0]], std=0.5))  # two that overlap, far from the origin
    for law in laws:
        score = sd.ExactScore(sd.EDM(), law)
        for t in (0.002, 0.1, 2.0, 60.0):
            (prepared,) = score.along(torch.tensor([t], dtype=F64))
            x = score.sample(1500, t, seed=1).float()
            error = (prepared(x).double() - score(x.double(), t)).abs().max()
            variance = law.shared_variance + t**2
            # One rounding of x moves s by |x| eps / v, and by as much again times |dm|²/4v where two modes d m apart meet.
            conditioning = float(x.abs().max()) * 1.2e-7 / variance * (1 + 0.6 / variance)
            assert error < 2 * conditioning


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sde", [sd.VP(), sd.EDM()], ids=lambda sde: type(sde).__name__)
def test_a_large_batch_of_few_coordinates_is_as_exact(sde, dtype):
    """It goes another way, for speed: the same to rounding, for equal and other biases, far out, and with a NaN inside."""
    laws = [
        D.ring(8, 2.0, 0.1),
        D.ring(8, 2.0, 0.1, weights=range(1, 9)),
        D.Mixture([[1.0], [-30.0]], std=0.2),
        D.grid(3),
    ]
    times = torch.tensor([0.003, 0.2, 0.9], dtype=F64)
    for law in laws:
        score = sd.ExactScore(sde, law)
        for t, prepared in zip(times.tolist(), score.along(times), strict=True):
            x = torch.cat([score.sample(1100, t, seed=1), 1e4 * score.sample(100, t, seed=2)]).to(dtype)
            kept = x.clone()
            whole, direct = prepared(x), score(x.double(), t)
            assert whole.dtype == dtype and torch.equal(x, kept)
            # One rounding of a logit moves the weights by |x| |m| alpha eps / v, and with them the mean of the modes.
            variance = float(sde.alpha(t)) ** 2 * law.shared_variance + float(sde.sigma(t)) ** 2
            condition = 1 + law.reach * float(sde.alpha(t)) ** 2 / variance
            size = direct.abs() + condition * x.norm(dim=1, keepdim=True) / variance
            assert ((whole - direct).abs() / size).max() < 8 * torch.finfo(dtype).eps
            x[7] = math.nan
            whole[7] = math.nan
            assert torch.equal(prepared(x).isnan(), whole.isnan())
            with_graph = prepared(kept.requires_grad_())
            with_graph.sum().backward()
            assert (
                torch.allclose(with_graph, prepared(kept.detach()), rtol=1e-4, atol=1e-3) and kept.grad.isfinite().all()
            )


@pytest.mark.parametrize("place", [(-3e3, 1.0), (3e3, 1.0), (0.0, 1e-3)], ids=["left", "right", "far from the modes"])
def test_logits_of_a_large_batch_may_be_large_on_one_side_or_by_their_biases(place):
    law, (centre, std) = D.Mixture([[30.0, 0.5], [31.0, 0.0]], std=1.0), place
    score, t = sd.ExactScore(sd.EDM(), law), 1.0
    x = centre + std * torch.randn(1100, 2, generator=torch.Generator().manual_seed(0))
    (prepared,) = score.along(torch.tensor([t], dtype=F64))
    assert torch.allclose(prepared(x).double(), score(x.double(), t), rtol=1e-4, atol=1e-4)


def test_no_weight_is_a_denormal_number():
    """Arithmetic with them is a hundred times slower; e^-95 of the largest counts as e^-50."""
    logits = torch.tensor([[3.0, -40.0], [-92.0, -45.0]])
    assert torch.allclose(
        _thin(logits, torch.tensor([[0.0], [2.0]]), 0.5, modest=False).T,
        torch.tensor([[math.exp(-50), 1 / (1 + math.exp(5))]]),
        atol=0,
    )


def test_both_ways_to_a_mixtures_posterior_agree():
    for law in (KINDS["isotropic"], KINDS["full"], KINDS["full 3-D"], KINDS["line"]):
        x = law.to(dtype=F64).sample(50, seed=0)
        alpha, sigma = torch.tensor(0.8, dtype=F64), torch.tensor(0.3, dtype=F64)
        ways = [way(law, x, alpha, sigma) for way in (ResidualPosterior, QuadraticPosterior)]
        for question in ("score", "noise", "data", "log_prob"):
            a, b = (getattr(way, question)() for way in ways)
            close(a.reshape(50, -1), b.reshape(50, -1), 1e-11)
    # and each is taken where it should be
    one, zero = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    x = torch.zeros(4, 2, dtype=F64)
    assert type(D.ring(8).diffused(x, one, zero)) is QuadraticPosterior
    assert type(D.ring(8, 2.0, 1e-4).diffused(x, one, zero)) is ResidualPosterior
    assert type(D.ring(8).diffused(x, one.expand(4, 1), zero.expand(4, 1))) is ResidualPosterior


def test_a_narrow_mixture_far_from_the_origin():
    """A shift of 10,000 with std 0.01 costs the quadratic form all its digits; the residual form none."""
    law = D.Mixture([[1e4, 0.0], [1e4, 0.03]], std=0.01)
    x = torch.tensor([[1e4, 0.012]], dtype=F64)
    near = D.Mixture([[0.0, 0.0], [0.0, 0.03]], std=0.01)
    close(law.score(x), near.score(torch.tensor([[0.0, 0.012]], dtype=F64)), 1e-9)


# ---- data sets --------------------------------------------------------------------------------------------------


def direct_posterior(atoms: Tensor, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Posterior mean and log density by differences, in float64."""
    atoms, x = atoms.double().flatten(1), x.double().flatten(1)
    logits = torch.stack([-0.5 * ((row - alpha * atoms) / sigma).square().sum(1) for row in x])
    norm = atoms.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi)) + math.log(len(atoms))
    return torch.softmax(logits, 1) @ atoms, torch.logsumexp(logits, 1) - norm


def test_data_set_at_tiny_noise():
    """784 dimensions, sigma = 0.002, 200 atoms that all have a say: in float32 these weights are noise."""
    g = torch.Generator().manual_seed(0)
    base = torch.rand(1, 784, generator=g) * 2 - 1
    atoms = base + 5e-5 * torch.randn(200, 784, generator=g)
    law = D.Empirical(torch.cat([atoms, torch.rand(300, 784, generator=g)]))
    x = atoms[:8] + 0.002 * torch.randn(8, 784, generator=g)
    mean, log_density = direct_posterior(law.atoms, x, 1.0, 0.002)
    score = sd.ExactScore(sd.EDM(), law)
    noise = (x.double() - mean) / 0.002
    close(score.noise(x, 0.002).double(), noise, 1e-5)
    close(score(x.double(), 0.002), -noise / 0.002, 1e-8)
    assert (score.log_prob(x.double(), 0.002) - log_density).abs().max() < 1e-6
    logits = -0.5 * (torch.cdist(x.double(), atoms.double()) / 0.002) ** 2
    counted = torch.distributions.Categorical(logits=logits).entropy().exp()
    assert counted.min() > 100  # so many atoms count: no shortcut over a few nearest ones would do


def test_data_set_against_a_mixture_and_in_blocks(monkeypatch):
    data = torch.randn(300, 2, 2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(70, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.05, 0.9, 70, dtype=F64)
    score = sd.ExactScore(sd.VP(), D.Empirical(data))
    whole = (score(x, t), score.data(x, t), score.log_prob(x, t))
    narrow = sd.ExactScore(sd.VP(), D.Mixture(data, std=1e-9))
    for got, want in zip(whole, (narrow(x, t), narrow.data(x, t), narrow.log_prob(x, t)), strict=True):
        close(got.reshape(70, -1), want.reshape(70, -1), 1e-8)
    monkeypatch.setattr(empirical, "_LOGITS", 1000)  # 3 rows, 7 atoms at a time
    monkeypatch.setattr(empirical, "_ATOMS", 28)
    average, sizes = empirical._softmax_average, []
    monkeypatch.setattr(empirical, "_softmax_average", lambda law, *at: sizes.append(len(at[0])) or average(law, *at))
    for got, want in zip((score(x, t), score.data(x, t), score.log_prob(x, t)), whole, strict=True):
        close(got.reshape(70, -1), want.reshape(70, -1), 1e-12)
    assert set(sizes) == {3, 1} and max(len(block) for block in score.density._blocks()) == 7


_MEMORY = """
import torch, sdediff as sd
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024  # MiB
data = torch.rand(60_000, 784)
x = data[:64] + 0.002 * torch.randn(64, 784)
before = peak()
score = sd.ExactScore(sd.EDM(), sd.densities.Empirical(data))
score(x, 0.002)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_data_set_fits_in_memory():
    """60,000 x 784 in float32 (180 MiB), 64 states: the law and its score add less than 256 MiB (100 measured)."""
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    growth = float(done.stdout)
    assert 10 < growth < 256


def test_many_dimensions_and_few_atoms_fit_too():
    """The other way round, 4 atoms of 200,000 dimensions: blocks must be bounded by the dimension as well."""
    data = torch.randn(4, 200_000, generator=torch.Generator().manual_seed(0))
    got = sd.ExactScore(sd.EDM(), D.Empirical(data)).data(data[:2].repeat(30, 1), 0.5)
    close(got, data[:2].repeat(30, 1), 1e-6)


def test_a_data_set_can_be_differentiated_through():
    """Posterior guidance differentiates the denoiser: its Jacobian is alpha/sigma² times the posterior covariance."""
    data = torch.randn(20, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    score, x = sd.ExactScore(sd.VP(), D.Empirical(data)), torch.zeros(1, 3, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda at: score.data(at, 0.4)[0], x)[:, 0]
    alpha, sigma = float(sd.VP().alpha(0.4)), float(sd.VP().sigma(0.4))
    w = torch.softmax(-0.5 * ((x - alpha * data) / sigma).square().sum(1), 0)
    centred = data - w @ data
    assert torch.allclose(jacobian, alpha / sigma**2 * (w[:, None] * centred).T @ centred, rtol=1e-9)


# ---- shapes, devices, dtypes, randomness ------------------------------------------------------------------------


def test_events_of_any_shape_are_the_flat_mixture():
    image = KINDS["image"]
    flat = D.Mixture(image.means, std=image.variances[:, 0].sqrt())
    x = image.to(dtype=F64).sample(9, seed=0)
    assert x.shape == (9, 2, 3, 4) and image.log_prob(x).shape == (9,)
    assert torch.equal(image.score(x), flat.score(x.reshape(9, 24)).reshape(x.shape))
    line = KINDS["line"]
    plane_ = D.Mixture(line.means, std=line.variances[:, 0].sqrt(), weights=line.weights)
    y = line.to(dtype=F64).sample(9, seed=0)
    assert y.shape == (9,)
    assert torch.equal(line.score(y), plane_.score(y[:, None])[:, 0])
    close(line.responsibilities(y), plane_.responsibilities(y[:, None]), 1e-12)
    assert torch.allclose(line.responsibilities(y).sum(1), torch.ones(9, dtype=F64))


@pytest.mark.parametrize("name", KINDS)
def test_meta_device(name):
    """No value is read back and no host tensor is mixed in: on the meta device either would raise."""
    law = KINDS[name]
    score = sd.ExactScore(sd.VP(), law)
    x = torch.empty(5, *law.event_shape, device="meta")
    for t in (0.3, torch.full((5,), 0.3, device="meta")):
        for got in (score(x, t), score.noise(x, t), score.data(x, t)):
            assert got.device.type == "meta" and got.shape == x.shape and got.dtype == torch.float32
        assert score.log_prob(x, t).shape == (5,)
    assert score.along(torch.tensor([0.3], dtype=F64))[0](x).device.type == "meta"
    assert law.to("meta").sample(3, seed=0).device.type == "meta"


def test_a_data_set_that_lives_elsewhere():
    law = D.Empirical(torch.empty(30, 2, device="meta"))
    assert sd.ExactScore(sd.VP(), law)(torch.empty(4, 2, device="meta"), 0.5).device.type == "meta"
    host = D.Empirical(torch.randn(30, 2))
    twin = host._on(torch.device("meta"))
    assert twin.atoms.device.type == "meta" and host.atoms.device.type == "cpu"
    assert host._on(torch.device("meta")) is twin  # moved once


def test_samples_are_repeatable_and_leave_the_global_generator_alone():
    laws = [D.ring(8), D.anisotropic(), D.Checkerboard(), D.Banana(), D.Funnel(), D.Empirical(torch.randn(9, 2))]
    laws.append(D.as_density(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))))
    for law in laws:
        state = torch.get_rng_state()
        first, again = law.sample(5, seed=1), law.sample(5, generator=torch.Generator().manual_seed(1))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again) and not torch.equal(first, law.sample(5, seed=2))
        torch.manual_seed(3)
        one = law.sample(5)
        torch.manual_seed(3)
        assert torch.equal(one, law.sample(5)) and not torch.equal(one, law.sample(5))
        with pytest.raises(ValueError, match="not both"):
            law.sample(5, seed=1, generator=torch.Generator())
        with pytest.raises(ValueError, match="at least one"):
            law.sample(0)


def test_any_distribution_stands_in():
    t = torch.distributions
    flow = t.TransformedDistribution(t.Independent(t.Normal(torch.zeros(2, dtype=F64), 1.0), 1), [t.ExpTransform()])
    law = D.as_density(flow)  # has no mean
    x = law.sample(10, seed=0)
    assert law.dtype == F64 and law.event_shape == (2,)
    close(law.score(x), -(x.log() + 1) / x, 1e-9)
    assert law.log_prob(x.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="Independent"):
        D.as_density(t.Normal(torch.zeros(2), 1.0))
    with pytest.raises(TypeError, match="log_prob"):
        D.as_density(3.0)


def test_a_mixture_keeps_its_own_copy():
    means, weights = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)
    law = D.Mixture(means, std=1.0, weights=weights)
    before = law.log_prob(torch.ones(1, 2))
    means += 5
    weights[0] = 100
    assert torch.equal(law.log_prob(torch.ones(1, 2)), before)
    assert law.to(dtype=F64).sample(1, seed=0).dtype == F64 and law.dtype == torch.float32


def test_wrong_arguments_are_named():
    eye = torch.eye(2)
    for wrong, message in [
        (lambda: D.Mixture([[0.0, 0.0]]), "exactly one of std and covariance"),
        (lambda: D.Mixture([[0.0, 0.0]], std=1.0, covariance=eye), "exactly one"),
        (lambda: D.Mixture([[0.0, math.nan]], std=1.0), "finite"),
        (lambda: D.Mixture([[0.0, 0.0]], std=-1.0), "positive"),
        (lambda: D.Mixture([[0.0, 0.0]], std=1.0, weights=[0.5, 0.5]), "1 positive numbers"),
        (lambda: D.Mixture([[0.0, 0.0]], covariance=torch.ones(2, 2) - 2 * eye), "positive definite"),
        (lambda: D.Mixture([[0.0, 0.0]], covariance=torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: D.Mixture([[0.0, 0.0]], covariance=torch.eye(3)), "must be"),
        (lambda: D.ring(0), "at least 1"),
        (lambda: D.bimodal(weight=1.0), "between 0 and 1"),
        (lambda: D.Boxes([[0.0]], [[0.0]]), "lower < upper"),
        (lambda: D.Checkerboard(0), "at least 1"),
        (lambda: D.Funnel(1), "at least 2"),
        (lambda: D.Banana(std=(1.0, 0.0)), "positive"),
        (lambda: D.ribbon(lambda u: u, std=0.1), "(P, d)"),
        (lambda: D.Empirical(torch.tensor([[0.0], [math.inf]])), "infinite"),
        (lambda: D.ring(8).log_prob(torch.zeros(3)), r"(B, 2)"),
        (lambda: D.bimodal().log_prob(torch.zeros(3, 1)), r"needs (B,)"),
        (lambda: sd.ExactScore(sd.VP(), D.ring(8))(torch.zeros(3, 5), 0.5), r"(B, 2)"),
    ]:
        with pytest.raises(ValueError) as caught:
            wrong()
        assert message in str(caught.value)
    with pytest.raises(TypeError, match="float32 or float64"):
        D.Empirical(torch.zeros(3, 2, dtype=torch.float16))
    with pytest.raises(TypeError, match="no mixture"):
        sd.ExactScore(sd.VP(), D.Checkerboard()).law(0.5)


def test_the_reference_of_these_tests_is_not_the_code_itself():
    """The projection test rejects samples whose weights are wrong by a quarter, so that passing it means something."""
    right, wrong = D.ring(8), D.ring(8, weights=[1.25, 1.25, 1.25, 1.25, 0.75, 0.75, 0.75, 0.75])
    x = wrong.sample(20_000, seed=0)
    assert min(projection_pvalue(right, x, seed) for seed in range(3)) < LEVEL / 3
    assert np.isfinite(projection_pvalue(wrong, x, 0)) and projection_pvalue(wrong, x, 0) > LEVEL
