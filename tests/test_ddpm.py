"""The discrete chain: Bayes in exact arithmetic, every step against its printed formula, laws by exact recursion.

False alarms: the random tests here have a level of 1e-5 together.
"""

from __future__ import annotations

import math
import runpy
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sdediff as sd
from sdediff import ddpm
from sdediff.gaussian import Gaussian

F64 = torch.float64
RING = sd.densities.ring(8, weights=[1, 2, 1, 2, 1, 2, 1, 2])
CHAINS = {
    "linear": ddpm.Chain(ddpm.linear(1000)),
    "cosine": ddpm.Chain(ddpm.cosine(50)),
    "sigmoid": ddpm.Chain(ddpm.sigmoid(100)),
    "uneven": ddpm.Chain([0.3, 0.001, 0.9, 0.05, 1e-6]),
    "VP": ddpm.Chain.from_process(sd.VP(), 20),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def exact_tables(chain: ddpm.Chain) -> tuple[list[Fraction], list[Fraction]]:
    """beta_i and the products of 1 - beta_i, as fractions."""
    betas = [Fraction(0), *(Fraction(b) for b in chain.betas[1:].tolist())]
    bars = [Fraction(1)]
    for b in betas[1:]:
        bars.append(bars[-1] * (1 - b))
    return betas, bars


def bayes(chain: ddpm.Chain, i: int, x0: float, x: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Mean and variance of x_{i-1} given x_i = x and x_0, by completing the square in 60 digits."""
    betas, bars = exact_tables(chain)
    with mpmath.workdps(60):
        beta, bar = (mpmath.mpf(c.numerator) / c.denominator for c in (betas[i], bars[i - 1]))
        # log q(x|y) + log q(y|x0) = -(x - √(1-β) y)²/2β - (y - √ᾱ x0)²/2(1-ᾱ) + ...
        precision = (1 - beta) / beta + 1 / (1 - bar)
        pull = mpmath.sqrt(1 - beta) * mpmath.mpf(x) / beta + mpmath.sqrt(bar) * mpmath.mpf(x0) / (1 - bar)
        return pull / precision, 1 / precision


# ---- tables -----------------------------------------------------------------------------------------------------


def test_schedules_by_their_formulas():
    b = ddpm.linear(1000)
    assert b[0] == 1e-4 and b[-1] == 0.02 and float(b.diff().std()) < 1e-15
    n, s = 40, 0.008
    bar = ddpm.Chain(ddpm.cosine(n)).alpha_bars
    f = [math.cos(0.5 * math.pi * (i / n + s) / (1 + s)) ** 2 for i in range(n + 1)]
    assert bar[:-1].numpy() == pytest.approx(np.array(f[:-1]) / f[0], rel=1e-12)
    assert ddpm.cosine(n)[-1] == 0.999  # where the curve itself would give 1
    b = ddpm.sigmoid(11, 0.1, 0.3, steepness=2.0)
    assert float(b[5]) == pytest.approx(0.2) and float(b[0]) == pytest.approx(0.1 + 0.2 / (1 + math.e**2))
    assert float(b[2] + b[8]) == pytest.approx(0.4)  # odd about the middle


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_tables_are_products_in_exact_arithmetic(chain):
    betas, bars = exact_tables(chain)
    for i in range(1, len(chain) + 1, max(1, len(chain) // 20)):
        assert float(chain.alpha_bars[i]) == pytest.approx(float(bars[i]), rel=1e-12)
        assert float(chain.variances[i]) == pytest.approx(float(1 - bars[i]), rel=1e-12)
        assert float(chain.alphas[i]) == pytest.approx(float(1 - betas[i]), rel=1e-15)
        assert float(chain.snr(i)) == pytest.approx(float(bars[i] / (1 - bars[i])), rel=1e-12)
        tilde = betas[i] * (1 - bars[i - 1]) / (1 - bars[i])
        assert float(chain.posterior_variances[i]) == pytest.approx(float(tilde), rel=1e-12)


def test_entry_0_is_zero_without_a_sign():
    for chain in CHAINS.values():
        for table in (chain.betas, chain.variances, chain.posterior_variances):
            assert float(table[0]) == 0 and not bool(torch.signbit(table[0]))


def test_weights_take_the_steps_of_the_chain_alone():
    """Entry 0 is the data, which no step leads to, and -1 would be another step."""
    chain = next(iter(CHAINS.values()))
    one = torch.ones((), dtype=F64)
    weights = [chain.snr, lambda i: chain.noise_weight(i, one), lambda i: chain.data_weight(i, one)]
    for weight in weights:
        for wrong in (0, -1, len(chain) + 1, torch.tensor([1, 0]), torch.tensor([-1]), torch.tensor([len(chain) + 1])):
            with pytest.raises(ValueError, match=rf"1 \.\.\. {len(chain)}"):
                weight(wrong)
        with pytest.raises(ValueError, match=r"i\.long"):
            weight(torch.tensor([1.0]))
        every = torch.arange(1, len(chain) + 1)
        assert torch.equal(weight(every), torch.stack([weight(int(i)) for i in every]))


# ---- forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_steps_compose_to_the_jump(chain):
    """The chain is linear: its response to x_0 and to each noise gives the law of x_i exactly."""
    scale, variance = torch.ones(1, 1, dtype=F64), 0.0
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    for i in range(1, len(chain) + 1):
        variance = float(chain.step(one, i, zero)) ** 2 * variance + float(chain.step(zero, i, one)) ** 2
        scale = chain.step(scale, i, zero)
        if i in (1, 2, len(chain)):
            law = chain.marginal(one, i)
            assert float(law.mean) == pytest.approx(float(scale), rel=1e-12)
            assert float(law.std) ** 2 == pytest.approx(variance, rel=1e-12)
            jumped = chain.jump(one, i, 2 * one)
            assert float(jumped) == pytest.approx(float(scale) + 2 * math.sqrt(variance), rel=1e-12)


def test_vanilla_step_is_euler_maruyama_of_the_process():
    chain = CHAINS["uneven"]
    x, z = normal(3, 2), normal(3, 2, seed=1)
    for i, beta in enumerate([0.3, 0.001, 0.9, 0.05, 1e-6], 1):
        assert torch.allclose(chain.vanilla_step(x, i, z), x - beta / 2 * x + math.sqrt(beta) * z, rtol=1e-14)
        gap = (chain.vanilla_step(x, i, z) - chain.step(x, i, z)).abs().max()
        assert 0.12 * beta**2 < gap / x.abs().max() < 0.4 * beta**2  # √(1-β) = 1 - β/2 - β²/8 - ...


def test_a_step_for_each_sample():
    chain, x0, x = CHAINS["linear"], normal(5, 2, 3), normal(5, 2, 3, seed=1)
    i = torch.tensor([1, 3, 500, 999, 1000])
    for rows, one in (
        (chain.jump(x0, i, x), lambda k: chain.jump(x0[k : k + 1], int(i[k]), x[k : k + 1])),
        (chain.posterior(x0, x, i).mean, lambda k: chain.posterior(x0[k : k + 1], x[k : k + 1], int(i[k])).mean),
    ):
        assert torch.allclose(rows, torch.cat([one(k) for k in range(5)]), rtol=1e-14)
    assert chain.posterior(x0, x, i).std.shape == (5, 1, 1)
    single = chain.jump(x0.float(), i, x.float())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), chain.jump(x0, i, x), atol=1e-6)


def test_encoder_paths_have_the_law_of_the_chain(assert_law):
    chain = ddpm.Chain(ddpm.linear(8, 0.02, 0.4))
    path = chain.encode(torch.full((40_000, 1), 1.5, dtype=F64), seed=0)
    assert path.shape == (9, 40_000, 1)
    for i in (1, 4, 8):
        assert_law(path[i], 1.5 * float(chain.alpha_bars[i].sqrt()), float(chain.variances[i]))
    residual = path[5] - chain.alphas[5].sqrt() * path[4]  # the step itself
    assert_law(residual, 0.0, float(chain.betas[5]))
    assert abs(float(torch.corrcoef(torch.stack([residual[:, 0], path[4, :, 0]]))[0, 1])) < 6 / 200


# ---- Bayes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_posterior_is_bayes(chain):
    for i in {2, 3, len(chain) // 2 + 2, len(chain)}:
        if i > len(chain):
            continue
        for x0, x in ((0.7, -1.3), (-2.0, 0.4), (1.0, 0.0), (0.0, 1.0)):
            mean, variance = bayes(chain, i, x0, x)
            got = chain.posterior(torch.tensor([x0], dtype=F64), torch.tensor([x], dtype=F64), i)
            assert abs(float(got.mean) - float(mean)) <= 1e-12 * max(1, abs(float(mean)))
            assert float(got.std) ** 2 == pytest.approx(float(variance), rel=1e-12)


def test_posterior_is_bayes_by_numerical_integration():
    """No algebra: the product of the two densities on a grid."""
    chain, i, x0, x = ddpm.Chain(ddpm.linear(10, 0.05, 0.5)), 4, 0.8, -0.3
    y = np.linspace(-12, 12, 20_001)
    weight = stats.norm.pdf(x, math.sqrt(1 - float(chain.betas[i])) * y, math.sqrt(float(chain.betas[i])))
    bar = float(np.prod(1 - chain.betas[1:i].numpy()))
    weight *= stats.norm.pdf(y, math.sqrt(bar) * x0, math.sqrt(1 - bar))
    mean = (weight @ y) / weight.sum()
    variance = (weight @ (y - mean) ** 2) / weight.sum()
    got = chain.posterior(torch.tensor([x0], dtype=F64), torch.tensor([x], dtype=F64), i)
    assert (float(got.mean), float(got.std) ** 2) == pytest.approx((mean, variance), rel=1e-10)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_the_mean_from_noise_data_and_velocity(chain):
    x0, eps = normal(4, 2), normal(4, 2, seed=1)
    for i in (1, 2, len(chain)):
        a, s = chain.alpha_bars[i].sqrt(), chain.variances[i].sqrt()
        x = a * x0 + s * eps
        want = chain.posterior(x0, x, i).mean
        worst = 1e-12 / float(chain.alphas[i].sqrt())  # dividing by √α costs digits where β is near 1
        assert torch.allclose(chain.mean_from_noise(x, i, eps), want, rtol=0, atol=worst)
        assert torch.allclose(chain.mean_from_velocity(x, i, a * eps - s * x0), want, rtol=0, atol=1e-12)


# ---- the five misprints -----------------------------------------------------------------------------------------

MISPRINT = ddpm.Chain(ddpm.linear(10, 0.05, 0.4))


def test_misprint_1_the_posterior_has_one_minus_alpha_bar_of_i_below():
    i, x0, x = 5, 0.9, -0.7
    mean, variance = (float(v) for v in bayes(MISPRINT, i, x0, x))
    c = {name: float(table[i]) for name, table in vars(MISPRINT).items() if name in ("alphas", "betas", "alpha_bars")}
    earlier = float(MISPRINT.alpha_bars[i - 1])
    above = math.sqrt(c["alphas"]) * (1 - earlier) * x + math.sqrt(earlier) * c["betas"] * x0
    assert above / (1 - c["alpha_bars"]) == pytest.approx(mean, rel=1e-12)
    assert c["betas"] * (1 - earlier) / (1 - c["alpha_bars"]) == pytest.approx(variance, rel=1e-12)
    assert abs(above / (1 - earlier) - mean) > 0.05 and c["betas"] - variance > 0.05  # as misprinted
    got = MISPRINT.posterior(torch.tensor([x0], dtype=F64), torch.tensor([x], dtype=F64), i)
    assert float(got.mean) == pytest.approx(mean, rel=1e-12) and float(got.std) ** 2 == pytest.approx(variance)


def test_misprint_2_the_weights_of_the_loss():
    """Half the squared distance of the two means over σ², with means from Bayes in exact arithmetic."""
    i, x0, eps, guess = 5, 0.9, -0.4, 0.25
    a, s = math.sqrt(float(MISPRINT.alpha_bars[i])), math.sqrt(float(MISPRINT.variances[i]))
    x = a * x0 + s * eps
    x0_guess = (x - s * guess) / a
    variance = MISPRINT.betas[i]
    gap = float(bayes(MISPRINT, i, x0, x)[0] - bayes(MISPRINT, i, x0_guess, x)[0])
    level = gap**2 / (2 * float(variance))
    assert float(MISPRINT.noise_weight(i, variance)) * (eps - guess) ** 2 == pytest.approx(level, rel=1e-11)
    assert float(MISPRINT.data_weight(i, variance)) * (x0 - x0_guess) ** 2 == pytest.approx(level, rel=1e-11)
    beta, alpha = float(MISPRINT.betas[i]), float(MISPRINT.alphas[i])
    wrong = beta**2 / (2 * float(variance) * (1 - alpha) * alpha)  # 1 - α for 1 - ᾱ
    assert abs(wrong * (eps - guess) ** 2 / level - 1) > 0.5
    earlier, bar = float(MISPRINT.alpha_bars[i - 1]), float(MISPRINT.alpha_bars[i])
    wrong = earlier * beta / (2 * float(variance) * (1 - bar))  # without the squares
    assert abs(wrong * (x0 - x0_guess) ** 2 / level - 1) > 0.5


def test_misprint_3_the_sampling_step_has_one_minus_alpha_bar_under_the_noise():
    i, x0, eps = 5, 0.9, -0.4
    bar, alpha = float(MISPRINT.alpha_bars[i]), float(MISPRINT.alphas[i])
    x = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * eps
    mean = float(bayes(MISPRINT, i, x0, x)[0])
    got = MISPRINT.mean_from_noise(torch.tensor([x], dtype=F64), i, torch.tensor([eps], dtype=F64))
    assert float(got) == pytest.approx(mean, rel=1e-12)
    wrong = (x - (1 - alpha) / math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
    assert abs(wrong - mean) > 0.05


def test_misprint_4_products_forward_and_factors_backward():
    i, x0, eps = 5, 0.9, -0.4
    bar, alpha = float(MISPRINT.alpha_bars[i]), float(MISPRINT.alphas[i])
    x = x0
    for k in range(1, i + 1):  # the mean of i steps
        x = math.sqrt(1 - float(MISPRINT.betas[k])) * x
    jumped = MISPRINT.jump(torch.tensor([x0], dtype=F64), i, torch.zeros(1, dtype=F64))
    assert float(jumped) == pytest.approx(x, rel=1e-13)
    assert abs(math.sqrt(alpha) * x0 - x) > 0.1  # α for ᾱ forward
    x = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * eps
    wrong = (x - (1 - bar) / math.sqrt(1 - bar) * eps) / math.sqrt(bar)  # ᾱ for α backward: that is x_0 itself
    assert abs(wrong - float(bayes(MISPRINT, i, x0, x)[0])) > 0.05


def test_misprint_5_ddim_is_not_ddpm_without_noise():
    score = sd.ExactScore(MISPRINT.process, RING)
    x = normal(50, 2)
    ddim, ancestral = MISPRINT.reverse(score, ddpm.DDIMStep(0.0)), MISPRINT.reverse(score)
    assert (ddim.law(x, 5).mean - ancestral.law(x, 5).mean).abs().max() > 0.05
    # Data N(0, 1): the law of every x_i is N(0, 1). DDIM nearly keeps it, the ancestral mean without its noise shrinks it.
    standard = sd.ExactScore(MISPRINT.process, sd.densities.gaussian((0.0,), 1.0))
    one = torch.ones(1, 1, dtype=F64)
    gains = [
        float(MISPRINT.reverse(standard, step).law(one, 5).mean) for step in (ddpm.DDIMStep(0.0), ddpm.AncestralStep())
    ]
    bar, before = float(MISPRINT.alpha_bars[5]), float(MISPRINT.alpha_bars[4])
    assert gains[0] == pytest.approx(math.sqrt(bar * before) + math.sqrt((1 - bar) * (1 - before)), rel=1e-12)
    assert gains[1] == pytest.approx(math.sqrt(float(MISPRINT.alphas[5])), rel=1e-12)
    assert gains[0] > 0.98 and gains[1] < 0.92


# ---- backward steps ---------------------------------------------------------------------------------------------


def a_score(x: Tensor, t: Tensor) -> Tensor:
    """No score of anything, so that no two formulas agree by accident."""
    return torch.sin(3 * x) - 0.3 * x * t


def test_each_step_by_its_formula():
    chain, x, i = MISPRINT, normal(6, 2), 4
    b, bar, before = float(chain.betas[i]), float(chain.alpha_bars[i]), float(chain.alpha_bars[i - 1])
    s = a_score(x, chain.times[i])
    eps = -math.sqrt(1 - bar) * s
    data = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
    tilde = b * (1 - before) / (1 - bar)
    posterior = (x - b / math.sqrt(1 - bar) * eps) / math.sqrt(1 - b)

    def ddim(eta: float) -> Tensor:
        return math.sqrt(before) * data + math.sqrt(1 - before - eta**2 * tilde) * eps

    between = math.exp(0.3 * math.log(b) + 0.7 * math.log(tilde))
    for step, mean, variance in [
        (ddpm.VanillaStep(), (1 + b / 2) * x + b * s, b),
        (ddpm.CommonStep(), (x + b * s) / math.sqrt(1 - b), b),
        (ddpm.ReverseDiffusionStep(), (2 - math.sqrt(1 - b)) * x + b * s, b),
        (ddpm.AncestralStep(), posterior, tilde),
        (ddpm.AncestralStep(ddpm.SmallVariance()), posterior, tilde),
        (ddpm.AncestralStep(ddpm.LargeVariance()), posterior, b),
        (ddpm.AncestralStep(ddpm.LearnedVariance(0.3)), posterior, between),
        (ddpm.DDIMStep(0.0), ddim(0.0), 0.0),
        (ddpm.DDIMStep(0.6), ddim(0.6), 0.36 * tilde),
        (ddpm.DDIMStep(1.0), posterior, tilde),
    ]:
        law = chain.reverse(a_score, step).law(x, i)
        assert torch.allclose(law.mean, mean, rtol=1e-12, atol=1e-13), type(step).__name__
        assert float(law.std) ** 2 == pytest.approx(variance, rel=1e-12), type(step).__name__


def test_learned_variance_for_each_coordinate():
    chain, x = MISPRINT, normal(6, 2)
    fraction = torch.rand(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    seen = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return fraction

    law = chain.reverse(a_score, ddpm.AncestralStep(ddpm.LearnedVariance(network))).law(x, 3)
    small, large = chain.posterior_variances[3], chain.betas[3]
    assert torch.allclose(law.std**2, large**fraction * small ** (1 - fraction), rtol=1e-12)
    assert seen == [float(chain.times[3])]
    # at the last step, where β̃ is 0, β̃_2 stands in
    first = chain.reverse(a_score, ddpm.AncestralStep(ddpm.LearnedVariance(0.0))).law(x, 1)
    assert float(first.std) ** 2 == pytest.approx(float(chain.posterior_variances[2]))


PROCESSES = [sd.VP(), sd.OU(), sd.SubVP(), sd.VE(), sd.EDM(), sd.CustomVP(lambda t: 1 + 8 * t**2)]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda p: type(p).__name__)
def test_chain_steps_are_the_solvers_of_the_continuous_process(sde):
    """Ancestral is the exponential step with η = 1, DDIM the one with η = 0 or its own η, on the same nodes and noise."""
    chain = ddpm.Chain.from_process(sde, 30)
    score = sd.ExactScore(chain.process, RING)
    x, grid = normal(64, 2), chain.times.flip(0)
    reverse = chain.process.reverse(score)
    for step, solver, process in [
        (ddpm.AncestralStep(), sd.DDIM(), reverse),
        (ddpm.AncestralStep(), sd.Ancestral(), reverse),
        (ddpm.DDIMStep(1.0), sd.DDIM(1.0), reverse),
        (ddpm.DDIMStep(0.4), sd.DDIM(0.4), reverse),
        (ddpm.DDIMStep(0.0), sd.DDIM(), chain.process.probability_flow(score)),
    ]:
        mine = chain.reverse(score, step).sample(x=x, seed=5)
        theirs = sd.solve(process, x, solver=solver, grid=grid, seed=5)
        assert (mine.x - theirs.x).abs().max() < 1e-10
        assert mine.stats["nfe"] == theirs.stats["nfe"] == 30
    # reverse diffusion ends with noise of √β, which the chain leaves out by custom
    back = chain.reverse(score, ddpm.ReverseDiffusionStep())
    theirs = sd.solve(reverse, x, solver=sd.ReverseDiffusion(), grid=grid, seed=5)
    assert (back.sample(x=x, seed=5, last_noise=True).x - theirs.x).abs().max() < 1e-10
    assert (back.sample(x=x, seed=5).x - theirs.x).abs().max() > 1e-3


# ---- laws by recursion, and the limit of many steps -------------------------------------------------------------

MEAN, STD = 0.8, 0.5  # of the data


def recursion(betas: np.ndarray, name: str) -> tuple[float, float]:
    """Mean and variance of x_0 for data N(MEAN, STD²) and the exact score, started from the exact law; noise at every step."""
    bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    big_m, big_v = math.sqrt(bars[-1]) * MEAN, bars[-1] * STD**2 + 1 - bars[-1]
    for i in range(len(betas), 0, -1):
        b, bar, before = betas[i - 1], bars[i], bars[i - 1]
        m, v = math.sqrt(bar) * MEAN, bar * STD**2 + 1 - bar  # s = -(x - m)/v
        tilde = b * (1 - before) / (1 - bar)
        r, s = math.sqrt(1 - b), math.sqrt(1 - bar)
        # x -> gain x + shift m, from each formula with s = -(x - m)/v
        kinds = {
            "vanilla": (1 + b / 2 - b / v, b / v, b),
            "common": ((1 - b / v) / r, b / (v * r), b),
            "reverse diffusion": (2 - r - b / v, b / v, b),
            "ancestral": ((1 - b / v) / r, b / (v * r), tilde),
            "large": ((1 - b / v) / r, b / (v * r), b),
        }
        if name == "DDIM":
            root, keep = math.sqrt(before / bar), math.sqrt(1 - before)
            gain, shift, noise = root * (1 - s * s / v) + keep * s / v, root * s * s / v - keep * s / v, 0.0
        else:
            gain, shift, noise = kinds[name]
        big_m, big_v = gain * big_m + shift * m, gain**2 * big_v + noise
    return big_m, big_v


STEPS = {
    "vanilla": ddpm.VanillaStep(),
    "common": ddpm.CommonStep(),
    "reverse diffusion": ddpm.ReverseDiffusionStep(),
    "ancestral": ddpm.AncestralStep(),
    "large": ddpm.AncestralStep(ddpm.LargeVariance()),
    "DDIM": ddpm.DDIMStep(),
}


def affine_law(back: ddpm.ReverseChain, mean: float, variance: float) -> tuple[float, float]:
    """The same for a ReverseChain with a score that is affine in x: the code's own steps, no sampling."""
    at = torch.tensor([[0.0], [1.0]], dtype=F64)
    for i in range(len(back.chain), 0, -1):
        law = back.law(at, i)
        shift, gain = float(law.mean[0]), float(law.mean[1] - law.mean[0])
        spread = float(law.std) ** 2
        if i == 1 and isinstance(back.kind, ddpm.AncestralStep) and isinstance(back.kind.variance, ddpm.SmallVariance):
            spread = 0.0  # β̃_1; the stand-in is for likelihoods
        mean, variance = gain * mean + shift, gain**2 * variance + spread
    return mean, variance


@pytest.mark.parametrize("name", STEPS)
def test_the_law_of_every_step_is_its_own_recursion(name):
    for n in (5, 40):
        chain = ddpm.Chain.from_process(sd.VP(0.1, 12), n)
        score = sd.ExactScore(chain.process, sd.densities.gaussian((MEAN,), STD))
        bar = float(chain.alpha_bars[-1])
        start = math.sqrt(bar) * MEAN, bar * STD**2 + 1 - bar
        got = affine_law(chain.reverse(score, STEPS[name]), *start)
        assert got == pytest.approx(recursion(chain.betas[1:].numpy(), name), rel=1e-10)


@pytest.mark.parametrize("name", STEPS)
def test_chains_converge_to_the_sde_with_order_one(name):
    """Backward, from the exact law at the end, to the data: mean and variance err as 1/N, from both sides.

    Bayes' mean and DDIM keep the mean exactly; the variance β̃ errs as log N / N.
    """
    errors = []
    for n in (200, 400, 800):
        t = np.linspace(0, 1, n + 1)
        exact = 1 - np.exp(-np.diff(0.1 * t + 0.5 * 11.9 * t**2))  # of VP(0.1, 12)
        mean, variance = recursion(exact, name)
        errors.append([abs(mean - MEAN), abs(variance / STD**2 - 1)])
    mean, variance = np.array(errors).T
    lower = 1.8 if name == "ancestral" else 1.9
    assert all(lower < a / b < 2.1 for a, b in pairwise(variance)), variance
    if name in ("vanilla", "reverse diffusion"):
        assert all(1.9 < a / b < 2.1 for a, b in pairwise(mean)), mean
    else:
        assert mean.max() < 1e-12


def test_the_forward_chain_converges_to_the_process_with_order_one():
    """With β_i = β(t_i) h the chain's kernel errs as 1/N; the vanilla step adds an error of the same order."""
    sde, errors, vanilla = sd.VP(0.1, 12), [], []
    for n in (200, 400, 800):
        t = torch.linspace(0, 1, n + 1, dtype=F64)
        chain = ddpm.Chain(sde.beta(t[1:]) / n)
        errors.append(abs(float(chain.alpha_bars[-1].log()) - 2 * float(sde.log_alpha(t[-1]))))
        scale, one, zero = 1.0, torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
        for i in range(1, n + 1):
            scale *= float(chain.vanilla_step(one, i, zero))
        vanilla.append(abs(math.log(scale) - float(sde.log_alpha(t[-1]))))
    for seen in (errors, vanilla):
        assert all(1.9 < a / b < 2.1 for a, b in pairwise(seen)), seen
    exact = ddpm.Chain.from_process(sde, 7)  # with the process's own β there is nothing to converge
    assert float(exact.alpha_bars[-1]) == pytest.approx(float(sde.alpha(1.0)) ** 2, rel=1e-13)


@pytest.mark.parametrize("name", ["ancestral", "vanilla", "DDIM"])
def test_samples_have_the_law_of_the_recursion(name, assert_law):
    chain = ddpm.Chain.from_process(sd.VP(0.1, 12), 12)
    score = sd.ExactScore(chain.process, sd.densities.gaussian((MEAN,), STD))
    x = score.sample(40_000, 1.0, seed=0).double()
    mean, variance = recursion(chain.betas[1:].numpy(), name)
    assert_law(chain.reverse(score, STEPS[name]).sample(x=x, seed=1, last_noise=name == "vanilla").x, mean, variance)


# ---- continuous and back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_and_its_process(chain):
    sde = chain.process
    assert torch.allclose(sde.alpha(chain.times) ** 2, chain.alpha_bars, rtol=1e-12, atol=0)
    assert torch.allclose(sde.sigma(chain.times) ** 2, chain.variances, rtol=1e-9, atol=0)
    again = ddpm.Chain.from_process(sde, chain.times)
    assert torch.allclose(again.betas, chain.betas, rtol=1e-8, atol=0)
    kernel = sde.transition(chain.times[:-1], chain.times[1:])  # from node to node it is the chain's own step
    assert torch.allclose(kernel.scale**2, chain.alphas[1:], rtol=1e-12)
    assert torch.allclose(kernel.variance, chain.betas[1:], rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "uneven"])
def test_the_interpolating_process_is_an_sde(name):
    """Its coefficients are the derivatives of its kernel, its β is never negative and has no jumps."""
    sde = CHAINS[name].process
    t = torch.linspace(1e-4, 1, 997, dtype=F64)
    slope = (sde.log_alpha(t[1:-1] + 1e-7) - sde.log_alpha(t[1:-1] - 1e-7)) / 2e-7
    assert torch.allclose(slope, sde.drift_coefficient(t[1:-1]), rtol=1e-5, atol=1e-5 * float(slope.abs().max()))
    assert bool((sde.drift_coefficient(t) <= 0).all()) and bool((sde.log_alpha(t).diff() < 0).all())
    assert torch.allclose(sde.diffusion_coefficient(t) ** 2, -2 * sde.drift_coefficient(t))
    generic = sd.LinearSDE.diffusion_coefficient(sde, t)  # from the variance, by differentiation
    assert torch.allclose(generic, sde.diffusion_coefficient(t), rtol=1e-8, atol=1e-8)
    node = sde.ends[1:-1]
    jump = sde.drift_coefficient(node + 1e-10) - sde.drift_coefficient(node - 1e-10)
    assert float(jump.abs().max()) < 1e-4 * float(sde.drift_coefficient(t).abs().max())


def test_the_linear_chain_is_close_to_vp():
    """1,000 steps from 1e-4 to 0.02 against VP(0.1, 20): what the field takes to be one process."""
    chain, sde = CHAINS["linear"], sd.VP(0.1, 20.0)
    t = torch.linspace(0.05, 1, 50, dtype=F64)
    gap = (chain.process.log_alpha(t) - sde.log_alpha(t)).abs() / sde.log_alpha(t).abs()
    assert 1e-3 < float(gap.max()) < 0.02


def test_any_linear_process_gives_a_chain_and_its_score_moves_there():
    sde = sd.EDM(t_max=20.0)
    chain = ddpm.Chain.from_process(sde, [0.0, 0.01, 0.1, 0.5, 2.0, 20.0])
    for i, t in enumerate([0.01, 0.1, 0.5, 2.0, 20.0], 1):
        assert float(chain.alpha_bars[i]) == pytest.approx(1 / (1 + t * t), rel=1e-12)
    own = sd.ExactScore(sde, RING)
    moved, direct = chain.reverse(own.to(chain.process)), chain.reverse(sd.ExactScore(chain.process, RING))

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return own.noise(x, t)

    learned = chain.reverse(sd.NoisePrediction(sde, Network()).to(chain.process))
    x = normal(9, 2)
    for i in (1, 3, 5):
        assert torch.allclose(moved.law(x, i).mean, direct.law(x, i).mean, rtol=1e-10)
        assert torch.allclose(learned.law(x, i).mean, direct.law(x, i).mean, rtol=1e-7)
    with pytest.raises(ValueError, match=r"score.to\(chain.process\)"):
        chain.reverse(own)


def test_fewer_steps_of_the_same_chain():
    chain = CHAINS["linear"]
    short = chain.subset(range(10, 1001, 90))
    assert len(short) == 12 and torch.equal(short.times, chain.times[[0, *range(10, 1001, 90)]])
    assert torch.allclose(short.alpha_bars[1:], chain.alpha_bars[10::90], rtol=1e-12)
    bars = exact_tables(chain)[1]
    assert float(short.betas[2]) == pytest.approx(float(1 - bars[100] / bars[10]), rel=1e-12)
    score = sd.ExactScore(chain.process, RING)
    sol = short.reverse(score, ddpm.DDIMStep()).sample(500, seed=0)
    assert sol.stats["nfe"] == 12 and sd.metrics.mode_occupancy(sol.x, RING).counts.min() > 10


# ---- likelihood -------------------------------------------------------------------------------------------------


def test_kl_against_torch():
    p = Gaussian(normal(5, 2, 3), torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)) + 0.2, (2, 3))
    q = Gaussian(normal(2, 3, seed=1), torch.tensor(0.7, dtype=F64), (2, 3))
    d = torch.distributions
    exact = d.kl_divergence(d.Normal(p.mean, p.std.double()), d.Normal(q.mean, q.std)).sum((1, 2))
    assert torch.allclose(ddpm.kl(p, q), exact, rtol=1e-12)
    assert ddpm.kl(q, q).shape == (1,) and float(ddpm.kl(q, q)) == 0
    near = Gaussian(q.mean, q.std * (1 + 1e-6), (2, 3))
    assert float(ddpm.kl(near, q)) == pytest.approx(6 * 1e-12, rel=1e-3)


def closed_terms(chain: ddpm.Chain, x0: float, variance) -> list[float]:
    """L_N, L_{N-1}, ..., L_0 for data N(MEAN, STD²), the exact score and variance(i), by Gaussian moments alone."""
    b, bar = chain.betas.numpy(), np.concatenate([[1.0], np.cumprod(1 - chain.betas[1:].numpy())])
    n = len(chain)
    terms = [0.5 * (bar[n] * x0**2 - bar[n] - math.log(1 - bar[n]))]
    for i in range(n, 1, -1):
        v = bar[i] * STD**2 + 1 - bar[i]
        gain = math.sqrt(bar[i]) * STD**2 / v  # x̂_0 = MEAN + gain (x - √ᾱ MEAN)
        bias = (1 - gain * math.sqrt(bar[i])) * (x0 - MEAN)
        error = bias**2 + gain**2 * (1 - bar[i])  # E (x_0 - x̂_0)²
        coefficient = math.sqrt(bar[i - 1]) * b[i] / (1 - bar[i])
        tilde, s2 = b[i] * (1 - bar[i - 1]) / (1 - bar[i]), variance(i)
        terms.append(0.5 * (math.log(s2 / tilde) + tilde / s2 - 1) + coefficient**2 * error / (2 * s2))
    v = bar[1] * STD**2 + 1 - bar[1]
    gain = math.sqrt(bar[1]) * STD**2 / v
    error = ((1 - gain * math.sqrt(bar[1])) * (x0 - MEAN)) ** 2 + gain**2 * (1 - bar[1])
    return [*terms, 0.5 * (math.log(2 * math.pi * variance(1)) + error / variance(1))]


@pytest.mark.parametrize("small", [True, False])
def test_every_term_of_the_bound_in_closed_form(small):
    chain, x0 = ddpm.Chain(ddpm.linear(6, 0.05, 0.6)), 1.7
    score = sd.ExactScore(chain.process, sd.densities.gaussian((MEAN,), STD))
    rule = ddpm.SmallVariance() if small else ddpm.LargeVariance()
    back = chain.reverse(score, ddpm.AncestralStep(rule))
    n = 200_000
    got = back.bound(torch.full((n, 1), x0, dtype=F64), draws=1, seed=0)
    tilde = chain.posterior_variances
    exact = closed_terms(chain, x0, lambda i: float(tilde[max(i, 2)] if small else chain.betas[i]))
    columns = [got.prior, *got.levels.flip(1).unbind(1), got.data]
    assert len(columns) == len(exact) == 7
    assert float(got.prior[0]) == pytest.approx(exact[0], rel=1e-10)
    for column, term in zip(columns[1:], exact[1:], strict=True):
        error = float(column.std()) / math.sqrt(n)
        assert abs(float(column.mean()) - term) < 5.5 * error + 1e-12
        assert error < 0.02 * abs(term) + 2e-3  # so that a term that is off by a tenth would be seen
    assert got.nfe == 6 and bool(got.standard_error.isnan().all())
    assert torch.allclose(got.bits_per_dim, -got.value / math.log(2)) and torch.allclose(
        got.rate + got.data, -got.value
    )


def test_the_standard_error_of_the_bound():
    chain = ddpm.Chain(ddpm.linear(6, 0.05, 0.6))
    back = chain.reverse(sd.ExactScore(chain.process, RING))
    x0 = torch.tensor([[2.0, 0.1]], dtype=F64).expand(4000, 2)
    got = back.bound(x0, draws=2, seed=0)
    # No sample's error is below the batch's, so together they are above it: by less the more draws there are.
    assert 0.9 < float(got.standard_error.square().mean()) / float(got.value.var()) < 1.8
    assert got.nfe == 12 and got.dimensions == 2
    more = back.bound(x0[:2000], draws=5, seed=1)
    assert 0.85 < float(more.standard_error.square().mean()) / float(more.value.var()) < 1.5
    assert float(more.value.var()) == pytest.approx(0.4 * float(got.value.var()), rel=0.25)


def test_every_bound_lies_below_the_log_density_within_its_error():
    """At 600 points of the ring, two draws a step: with each point's own error 7 of them lay above."""
    chain = ddpm.Chain.from_process(sd.VP(), 400)
    score = sd.ExactScore(chain.process, RING)
    x0 = RING.to(dtype=F64).sample(600, seed=0)
    got = chain.reverse(score, ddpm.AncestralStep(ddpm.LargeVariance())).bound(x0, draws=2, seed=0)
    assert bool((got.value - 4 * got.standard_error <= RING.log_prob(x0)).all())


def model_law(back: ddpm.ReverseChain) -> tuple[float, float]:
    """Mean and variance of the generative chain from N(0, 1), its decoder's noise included."""
    at, mean, variance = torch.tensor([[0.0], [1.0]], dtype=F64), 0.0, 1.0
    for i in range(len(back.chain), 0, -1):
        law = back.law(at, i)
        gain = float(law.mean[1] - law.mean[0])
        mean, variance = gain * mean + float(law.mean[0]), gain**2 * variance + float(law.std) ** 2
    return mean, variance


def test_importance_weights_find_the_likelihood_and_the_bound_stays_below(assert_law):
    """For Gaussian data the generative chain is linear: its likelihood is known."""
    chain = ddpm.Chain(ddpm.linear(8, 0.05, 0.6))
    score = sd.ExactScore(chain.process, sd.densities.gaussian((MEAN,), STD))
    back = chain.reverse(score, ddpm.AncestralStep(ddpm.LargeVariance()))
    mean, variance = model_law(back)
    assert_law(back.sample(40_000, seed=3, last_noise=True).x, mean, variance)  # the model is what is sampled
    for x0 in (-0.5, 0.8, 1.9):
        exact = stats.norm.logpdf(x0, mean, math.sqrt(variance))
        x = torch.full((300, 1), x0, dtype=F64)
        weighted = back.importance_weighted(x, paths=40, seed=0)
        mean_weight = torch.exp(weighted.value - exact)  # unbiased: 1
        error = float(mean_weight.std()) / math.sqrt(300)
        assert abs(float(mean_weight.mean()) - 1) < 5 * error and error < 0.02
        assert float(weighted.standard_error.square().mean().sqrt()) == pytest.approx(float(mean_weight.std()), rel=0.3)
        assert 1 < float(weighted.effective.min()) <= float(weighted.effective.max()) <= 40
        bound = back.bound(x.repeat(30, 1), seed=1)
        below = exact - float(bound.value.mean())
        assert below > 4.3 * float(bound.standard_error.square().mean().sqrt()) / math.sqrt(9000)


def test_the_bound_approaches_the_data_as_steps_grow():
    """Over data, E bound <= E log p_0; the gap falls as 1/N, from both sides. Expectations in closed form, then by the code."""

    def gap(n: int, small: bool) -> float:
        chain = ddpm.Chain.from_process(sd.VP(0.1, 12), n)
        rule = chain.posterior_variances[[0, 2, *range(2, n + 1)]] if small else chain.betas
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # exact: the terms are quadratic in x_0
        terms = [sum(closed_terms(chain, MEAN + STD * z, lambda i: float(rule[i]))) for z in nodes]
        return weights @ terms / math.sqrt(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * STD**2)

    bar = math.exp(-6.05)
    start = 0.5 * (bar * (STD**2 + MEAN**2 - 1) - math.log1p(bar * (STD**2 - 1)))  # KL(p_T || N(0, 1)), at any N
    large = [gap(n, small=False) - start for n in (400, 800, 1600)]
    assert large[-1] > 0 and all(1.8 < a / b < 2.2 for a, b in pairwise(large)), large
    # On equal steps β̃_i/β_i is (i - 1)/i near the data, whatever N: with the small variance the bound never becomes tight.
    assert gap(400, small=True) > 0.4 and gap(3200, small=True) > 0.4
    chain = ddpm.Chain.from_process(sd.VP(0.1, 12), 25)
    data = sd.densities.gaussian((MEAN,), STD)
    x0 = data.sample(4000, seed=0).double()
    got = chain.reverse(sd.ExactScore(chain.process, data)).bound(x0, seed=1)
    below = data.log_prob(x0) - got.value
    assert abs(float(below.mean()) - gap(25, small=True)) < 5 * float(below.std()) / math.sqrt(4000)


def test_the_bound_on_a_mixture_is_below_and_falls_with_a_wrong_score():
    chain = ddpm.Chain.from_process(sd.VP(), 60)
    score = sd.ExactScore(chain.process, RING)
    x0 = RING.sample(1000, seed=0).double()
    right = chain.reverse(score).bound(x0, draws=1, seed=1)
    wrong = chain.reverse(lambda x, t: 1.1 * score(x, t)).bound(x0, draws=1, seed=1)
    below = RING.log_prob(x0) - right.value
    assert float(below.mean()) > -4 * float(below.std()) / math.sqrt(1000)
    worse = right.value - wrong.value  # on the same noise
    assert float(worse.mean()) > 4 * float(worse.std()) / math.sqrt(1000)


def test_l_simple_is_the_training_loss_and_the_weighted_one_is_the_bound():
    chain = MISPRINT

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.sin(x) + t.reshape(-1, 1)

    score = sd.NoisePrediction(chain.process, Network())
    back = chain.reverse(score, ddpm.AncestralStep(ddpm.LargeVariance()))
    x0, eps, i = normal(6, 2), normal(6, 2, seed=1), torch.tensor([1, 2, 4, 5, 9, 10])
    got = back.simple_loss(x0, i, eps)
    x = chain.alpha_bars[i].sqrt()[:, None] * x0 + chain.variances[i].sqrt()[:, None] * eps
    want = (eps - torch.sin(x) - chain.times[i][:, None]).square().mean(1)
    assert torch.allclose(got, want, rtol=1e-6)
    assert torch.allclose(got, sd.training.DenoisingLoss(score).at(x0, chain.times[i], eps), rtol=1e-6)
    # L_{i-1} = weight · |ε - ε̂|² + the part of the variances
    level = ddpm.kl(chain.posterior(x0[2:3], x[2:3], 4), back.law(x[2:3], 4))
    tilde, beta = chain.posterior_variances[4], chain.betas[4]
    spread = 2 * 0.5 * (math.log(beta / tilde) + tilde / beta - 1)
    assert float(level) == pytest.approx(float(chain.noise_weight(4, beta) * 2 * got[2] + spread), rel=1e-6)


def test_a_learned_variance_gets_the_gradient_of_its_term():
    """d KL / dv in closed form: with r = β̃/σ², the derivative in log σ² is ½(1 - r) - (μ̃ - μ)²/2σ² a coordinate."""
    chain, i = MISPRINT, 4
    fraction = torch.full((5, 2), 0.4, dtype=F64, requires_grad=True)
    back = chain.reverse(a_score, ddpm.AncestralStep(ddpm.LearnedVariance(lambda x, t: fraction)))
    x0, eps = normal(5, 2), normal(5, 2, seed=1)
    back.term(x0, i, eps).sum().backward()
    x = chain.jump(x0, i, eps)
    beta, tilde = chain.betas[i], chain.posterior_variances[i]
    variance = beta**0.4 * tilde**0.6
    gap = chain.posterior(x0, x, i).mean - back.law(x, i).mean
    slope = (0.5 * (1 - tilde / variance) - gap**2 / (2 * variance)) * (beta / tilde).log()
    assert fraction.grad is not None and torch.allclose(fraction.grad, slope.detach(), rtol=1e-10)
    fraction.grad = None
    back.term(x0, 1, eps).sum().backward()
    assert float(fraction.grad.abs().min()) > 0


def test_a_chain_of_one_step():
    chain = ddpm.Chain([0.4])
    back = chain.reverse(sd.ExactScore(chain.process, sd.densities.gaussian((0.0,), 1.0)))
    got = back.bound(normal(4, 1), seed=0)
    assert got.levels.shape == (4, 0) and bool(got.value.isfinite().all())
    x = torch.ones(3, 1, dtype=F64)
    assert torch.allclose(back.sample(x=x, seed=0).x, math.sqrt(0.6) * x)  # E[x_0 | x_1] of N(0, 1)


def test_discretised_likelihood_sums_to_one_and_keeps_its_tails():
    decoder = ddpm.Discretised(2 / 15)
    lattice = torch.linspace(-1, 1, 16, dtype=F64).unsqueeze(1)
    for mean, std in ((0.3, 0.2), (-1.4, 0.05), (0.0, 3.0)):
        law = Gaussian(torch.full((16, 1), mean, dtype=F64), torch.tensor(std, dtype=F64), (1,))
        assert float(decoder(law, lattice).exp().sum()) == pytest.approx(1, rel=1e-12)
    for mean in (-0.9, 0.9):  # forty standard deviations away
        law = Gaussian(torch.full((1, 1), mean, dtype=F64), torch.tensor(0.02, dtype=F64), (1,))
        x, half = float(lattice[8]), 1 / 15
        with mpmath.workdps(1000):
            exact = mpmath.log(mpmath.ncdf((x + half - mean) / 0.02) - mpmath.ncdf((x - half - mean) / 0.02))
        assert float(decoder(law, lattice[8:9])) == pytest.approx(float(exact), rel=1e-9)
    chain = ddpm.Chain.from_process(sd.VP(), torch.linspace(0, 1, 201, dtype=F64) ** 2)
    data = sd.densities.Mixture(lattice[[3, 8]], std=1e-3)
    back = chain.reverse(sd.ExactScore(chain.process, data))
    bits = back.bound(lattice[[3, 8] * 100], decoder=decoder, draws=2, seed=0).bits_per_dim
    assert float(bits.mean()) == pytest.approx(1.0, abs=0.1)  # one bit says which of two


# ---- behaviour --------------------------------------------------------------------------------------------------


def test_sampling_behaves_like_the_rest():
    chain = ddpm.Chain.from_process(sd.VP(), 10)
    score = sd.ExactScore(chain.process, RING)
    back = chain.reverse(score)
    sol = back.sample(7, seed=0, save=True)
    assert sol.xs.shape == (11, 7, 2) and torch.equal(sol.ts, chain.times.flip(0)) and sol.x.dtype == torch.float32
    assert torch.equal(sol.xs[-1], sol.x) and torch.equal(sol.x, back.sample(7, seed=0).x)
    assert sol.stats["nfe"] == sol.stats["score_calls"] == sol.stats["steps"] == 10
    both = back.sample(2, noise=sd.PerSample([3, 4])).x
    assert torch.equal(both[1:], back.sample(1, noise=sd.PerSample([4])).x)

    class Conditional(torch.nn.Module):
        event_shape = (2,)

        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return x - (0.0 if label is None else label[:, None] * torch.ones_like(x))

    learned = chain.reverse(sd.NoisePrediction(chain.process, Conditional()))
    label = torch.tensor([0.0, 1.0, 2.0])
    x = normal(3, 2).float()
    plain, given = learned.law(x, 5), learned.given(label).law(x, 5)
    pull = float(chain.betas[5] / (chain.variances[5] * chain.alphas[5]).sqrt())
    assert torch.allclose(given.mean - plain.mean, pull * label[:, None].expand(3, 2), atol=1e-5)


def test_nothing_is_read_back_from_a_device():
    """On the meta device a value that is read, or tensors of two devices that meet, would raise."""
    chain, x = ddpm.Chain.from_process(sd.VP(), 4), torch.zeros(3, 2, device="meta")
    learned = ddpm.AncestralStep(ddpm.LearnedVariance(lambda x, t: torch.sigmoid(x)))
    for step in (ddpm.AncestralStep(), ddpm.DDIMStep(0.5), learned, ddpm.VanillaStep()):
        back = chain.reverse(lambda x, t: -x, step)
        assert back.sample(x=x, seed=0).x.device.type == "meta"
    back, i = chain.reverse(lambda x, t: -x), torch.tensor([1, 2, 4], device="meta")
    values = back.bound(x, seed=0).value, back.importance_weighted(x, paths=2, seed=0).value, back.simple_loss(x, i, x)
    assert {value.device.type for value in values} == {chain.posterior(x, x, i).std.device.type} == {"meta"}


def test_wrong_arguments_are_named():
    chain, x = MISPRINT, normal(3, 2)
    back = chain.reverse(a_score)
    for wrong, message in [
        (lambda: ddpm.Chain([0.1, 1.0]), "beta_2 = 1"),
        (lambda: ddpm.Chain([0.1, math.nan]), "beta_2 = nan"),
        (lambda: ddpm.Chain(torch.zeros(2, 2)), "must be"),
        (lambda: ddpm.Chain.from_process(sd.CosineVP(), 10), "alpha vanishes at t = 1"),
        (lambda: ddpm.Chain.from_process(sd.VP(), [0.1, 0.5]), "Begin at 0"),
        (lambda: ddpm.Chain.from_process(sd.VP(), [0.0, 0.5, 0.5]), "rise strictly"),
        (lambda: ddpm.Chain.from_process(sd.VP(), 0), "at least one step"),
        (lambda: chain.subset([3, 2]), "rise strictly"),
        (lambda: chain.subset([11]), r"1 \.\.\. 10"),
        (lambda: chain.jump(x, 0, x), "i = 0"),
        (lambda: chain.jump(x, 11, x), "i = 11"),
        (lambda: chain.jump(x, torch.tensor([1, 2]), x), r"\(3,\)"),
        (lambda: chain.jump(x, torch.tensor([1, 2, 11]), x), "from 1 to 11"),
        (lambda: chain.posterior(x, x[:2], 3), "must be equal"),
        (lambda: back.sample(3), "event_shape"),
        (lambda: back.sample(3, x=x), "exactly one"),
        (lambda: back.sample(x=x, seed=0, generator=torch.Generator()), "at most one"),
        (lambda: back.bound(x, draws=0), "draws"),
        (lambda: back.importance_weighted(x, paths=1), "paths"),
        (lambda: chain.reverse(a_score, ddpm.DDIMStep()).bound(x), "no noise"),
        (lambda: ddpm.DDIMStep(1.5), "eta"),
        (lambda: ddpm.linear(0), "steps"),
        (lambda: ddpm.linear(10, 0.0), "between 0 and 1"),
        (lambda: ddpm.Discretised(0.0), "width"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match="BackwardStep"):
        chain.reverse(a_score, ddpm.DDIMStep)
    for wrong in (lambda: ddpm.Chain.from_process(sd.VP(), True), lambda: ddpm.cosine(True)):
        with pytest.raises(TypeError, match="whole number, got True"):
            wrong()
    with pytest.raises(TypeError, match="LinearSDE"):
        ddpm.Chain.from_process(sd.Overdamped(RING), 5)


def test_the_example_measures_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    script = Path(__file__).parents[1] / "examples" / "ddpm_chain.py"
    errors, gaps = runpy.run_path(str(script))["main"](sizes=(20, 40, 80), n=500, out=str(tmp_path / "chain.png"))
    for name in ("vanilla", "reverse diffusion", "DDIM"):
        assert all(1.7 < a / b < 2.1 for a, b in pairwise(errors[name]))
    assert gaps["variance β"][-1] < 0.1 and gaps["variance β̃"][-1] > 0.4
    assert (tmp_path / "chain.png").stat().st_size > 10_000
