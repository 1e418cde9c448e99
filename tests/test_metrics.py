"""Metrics: closed forms and small cases by hand, the null distribution of each test, and what each can see.

False alarms: the random tests here have a level of 1e-4 together. p-values of 30 to 120 repeats are compared with the
uniform law.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sdediff as sd
from sdediff import metrics as m

F64 = torch.float64
LEVEL = 1e-5
RING = sd.densities.ring(8, weights=[1, 2, 1, 2, 1, 2, 1, 2])
OVERLAPPING = sd.densities.Mixture([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], std=[0.6, 0.8, 1.0], weights=[0.2, 0.3, 0.5])
MOONS = sd.densities.moons()


def normal(n: int, d: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def uniform_from_above(p: list[float]) -> float:
    """The p-value of "these p-values are uniform or larger"."""
    return float(stats.kstest(p, "uniform", alternative="greater").pvalue)


# ---- by hand ----------------------------------------------------------------------------------------------------


def test_energy_distance_by_hand_and_in_closed_form():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    assert m.energy_distance(x, y) == pytest.approx(2 * (0 + 2 + 1 + 1) / 4 - 1 - 2)  # unbiased: may be negative
    # N(0, 1) and N(mu, 1): E|X - Y| of a normal of variance 2
    mu, n = 0.7, 2000
    apart = 2 / math.sqrt(math.pi) * math.exp(-(mu**2) / 4) + mu * math.erf(mu / 2)
    exact = 2 * apart - 4 / math.sqrt(math.pi)
    seen = [m.energy_distance(normal(n, 1, s), normal(n, 1, 100 + s, mu)) for s in range(10)]
    assert abs(stats.ttest_1samp(seen, exact).statistic) < stats.t.isf(LEVEL / 2, 9)
    assert torch.tensor(seen).std() < 0.12 * exact  # so a bias of a third would be seen


def test_mmd_by_hand_and_in_closed_form():
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])  # scalar states

    def k(r: float) -> float:
        return math.exp(-(r**2) / (2 * 1.5**2))

    assert m.mmd(x, y, bandwidth=1.5) == pytest.approx(k(1) + k(2) - (1 + k(2) + 2 * k(1)) / 2)
    # N(0, I) and N(mu, I) in d dimensions: the kernel convolved with a normal of variance 2
    mu, d, h, n = 0.5, 3, 1.3, 1200
    same = (h**2 / (h**2 + 2)) ** (d / 2)
    exact = 2 * same * (1 - math.exp(-d * mu**2 / (2 * (h**2 + 2))))
    seen = [m.mmd(normal(n, d, s), normal(n, d, 100 + s, mu), bandwidth=h) for s in range(10)]
    assert abs(stats.ttest_1samp(seen, exact).statistic) < stats.t.isf(LEVEL / 2, 9)
    assert torch.tensor(seen).std() < 0.2 * exact
    assert m.median_bandwidth(torch.zeros(2, 1), torch.tensor([[3.0], [3.0]])) == 3.0


def test_blocks_change_nothing(monkeypatch):
    x, y = normal(50, 2, 0), normal(37, 2, 1, 0.3)
    score = sd.densities.gaussian().score

    def panel() -> Tensor:
        return torch.tensor([m.energy_distance(x, y), m.mmd(x, y), m.kernel_stein_discrepancy(x, score)], dtype=F64)

    whole = panel()
    monkeypatch.setattr(m.pairs, "BLOCK", 100)
    assert torch.allclose(panel(), whole, rtol=1e-12)


def test_sliced_wasserstein_against_scipy_and_translation():
    x, y = normal(40, 1, 0), normal(25, 1, 1, 0.5)  # sizes that share few levels
    exact = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert m.sliced_wasserstein(x, y, order=1) == pytest.approx(exact, rel=1e-12)
    # a translation by v: W_2 = |u·v|, whose mean square is |v|²/d
    x, v = normal(30, 3, 2), torch.tensor([1.0, 2.0, -2.0], dtype=F64)
    assert m.sliced_wasserstein(x, x + v, projections=20_000) == pytest.approx(math.sqrt(3.0), rel=0.02)
    assert m.sliced_wasserstein(x, x[torch.randperm(30)]) < 1e-12
    # from a point to two points at distance a and b: no coupling to choose
    two = torch.tensor([[1.0], [3.0]])
    assert m.sliced_wasserstein(torch.zeros(5, 1), two) == pytest.approx(math.sqrt((1 + 9) / 2))


def test_kernel_stein_discrepancy_against_automatic_differentiation():
    law, c = OVERLAPPING, 0.7
    x = law.to(dtype=F64).sample(6, seed=0)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (c**2 + (a - b).square().sum()) ** -0.5

    def stein(i: int, j: int) -> float:
        a, b = (x[k].clone().requires_grad_() for k in (i, j))
        k = kernel(a, b)
        by_a, by_b = torch.autograd.grad(k, (a, b), create_graph=True)
        mixed = sum(torch.autograd.grad(by_a[d], b, retain_graph=True)[0][d] for d in range(2))
        s, t = law.score(x[i : i + 1])[0], law.score(x[j : j + 1])[0]
        return float((s @ t * k + s @ by_b + t @ by_a + mixed).detach())

    total = sum(stein(i, j) for i in range(6) for j in range(6) if i != j)
    assert m.kernel_stein_discrepancy(x, law.score, scale=c) == pytest.approx(total / 30, rel=1e-10)
    assert m.kernel_stein_discrepancy(x, law.score(x), scale=c) == pytest.approx(total / 30, rel=1e-10)


def test_projected_distribution_function():
    law = sd.densities.gaussian((1.0, -2.0), 0.5)
    u, y = torch.tensor([0.6, 0.8], dtype=F64), torch.linspace(-3, 1, 9, dtype=F64)
    exact = stats.norm.cdf(y.numpy(), 0.6 - 1.6, 0.5)
    assert m.project_cdf(law, u, y).numpy() == pytest.approx(exact, abs=1e-14)
    full = sd.densities.anisotropic(3)
    same = sd.densities.Mixture(full.means, covariance=full.covariances).noised(1, 0)
    spread = torch.einsum("i,kij,j->k", u, full.covariances, u).sqrt()
    exact = sum(stats.norm.cdf(y.numpy(), float(c @ u), float(s)) / 3 for c, s in zip(full.means, spread, strict=True))
    assert m.project_cdf(same, u, y).numpy() == pytest.approx(exact, abs=1e-12)


def test_occupancy_of_separate_modes_is_pearsons_test():
    x = RING.sample(2000, seed=0)
    got = m.mode_occupancy(x, RING)
    pearson = stats.chisquare(got.counts.numpy(), got.expected.numpy())
    assert int(got.counts.sum()) == 2000 and got.freedom == 7
    assert got.statistic == pytest.approx(pearson.statistic, rel=1e-6)
    assert got.p_value == pytest.approx(pearson.pvalue, rel=1e-5)
    rare = sd.densities.Mixture([[0.0], [5.0], [10.0]], std=0.1, weights=[1, 1, 0.002])
    x = torch.tensor([0.0] * 1000 + [5.0] * 990 + [10.0] * 10)[:, None]
    pearson = stats.chisquare([1000, 990, 10], (2000 * rare.weights).numpy())
    assert m.mode_occupancy(x, rare).statistic == pytest.approx(pearson.statistic, rel=1e-6)


def test_within_mode_by_hand():
    """Samples made by a known linear map of each mode: the errors are that map, in units of the exact covariance."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, 3, dtype=F64, generator=generator)  # three axes: principal axes that are no mere reflection
    covariance = a @ a.mT + 0.1 * torch.eye(3, dtype=F64)
    law = sd.densities.Mixture([[30.0, 0, 0], [-30.0, 0, 0]], covariance=covariance)
    z = torch.randn(2, 4000, 3, dtype=F64, generator=generator)
    z = z - z.mean(1, keepdim=True)
    exact_factor = torch.linalg.cholesky(torch.stack([part.T.cov(correction=0) for part in z]))
    z = torch.linalg.solve(exact_factor, z.mT).mT  # sample covariance exactly I
    shift = torch.tensor([0.3, -0.1, 0.2], dtype=F64)
    grow = torch.tensor([[1.2, 0.1, 0.0], [0.1, 0.9, 0.2], [0.0, 0.2, 1.0]], dtype=F64)
    values, axes = torch.linalg.eigh(covariance)
    root = (axes * values.sqrt().unsqueeze(1)) @ axes.mT  # symmetric
    x = law.means.unsqueeze(1) + (z @ grow + shift) @ root
    got = m.within_mode(x.reshape(-1, 3), law)
    assert torch.allclose(got.n, torch.full((2,), 4000.0, dtype=F64), rtol=1e-6)
    assert torch.allclose(got.mean, shift.expand(2, 3), atol=1e-6)
    exact = grow @ grow + torch.outer(shift, shift) - torch.eye(3, dtype=F64)
    assert torch.allclose(got.covariance, exact.expand(2, 3, 3), atol=1e-5)
    assert got.variance == pytest.approx(float(exact.trace()) / 3, abs=1e-5)


def test_within_mode_with_an_empty_mode():
    law = sd.densities.ring(4, 50.0)
    got = m.within_mode(law.sample(500, seed=0)[:0].new_tensor([[50.0, 0.0], [0.0, 50.0], [-50.0, 0.1]]), law)
    assert got.n[3] == 0 and bool(got.mean[3].isnan().all()) and math.isfinite(got.p_value)


# ---- under the null hypothesis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [RING, OVERLAPPING, MOONS], ids=["separate", "overlapping", "moons"])
def test_p_values_are_uniform_for_exact_samples(law):
    p: dict[str, list[float]] = {"occupancy": [], "mean": [], "variance": [], "projections": []}
    for seed in range(120 if law is not MOONS else 30):
        x = law.sample(2000, seed=seed)
        within = m.within_mode(x, law)
        p["occupancy"].append(m.mode_occupancy(x, law).p_value)
        p["mean"].append(within.p_mean)
        p["variance"].append(within.p_variance)
        p["projections"].append(float(m.ks_projections(x, law, projections=1, seed=seed).p_values[0]))
    assert min(uniform_from_above(values) for values in p.values()) > LEVEL
    for exact in ("occupancy", "projections"):  # these two have the level that they claim, not just no more
        assert stats.kstest(p[exact], "uniform").pvalue > LEVEL
    if law is RING:
        assert min(stats.kstest(values, "uniform").pvalue for values in p.values()) > LEVEL


def test_unbiased_metrics_scatter_around_zero():
    law = OVERLAPPING.to(dtype=F64)
    pairs = [(law.sample(250, seed=2 * s), law.sample(200, seed=2 * s + 1)) for s in range(80)]
    for metric in (m.energy_distance, m.mmd, lambda x, y: m.kernel_stein_discrepancy(x, law.score)):
        values = [metric(x, y) for x, y in pairs]
        assert abs(stats.ttest_1samp(values, 0).statistic) < stats.t.isf(LEVEL / 2, 79)
        assert min(values) < 0 < max(values)


def test_noise_floor_is_what_exact_samples_show():
    law = RING
    floor = m.noise_floor(m.energy_distance, law, 300, repeats=60, seed=0)
    assert torch.equal(floor.values, m.noise_floor(m.energy_distance, law.sample, 300, repeats=60, seed=0).values)
    assert (
        floor.mean == pytest.approx(float(floor.values.mean())) and floor.values[-4] <= floor.upper <= floor.values[-3]
    )
    fresh = [m.energy_distance(law.sample(300, seed=s), law.sample(300, seed=1000 + s)) for s in range(200)]
    below = sum(value <= floor.upper for value in fresh)
    assert stats.binom.ppf(LEVEL, 200, 0.85) <= below <= 200  # 95 % with an estimated quantile
    assert abs(floor.mean) < 3 * float(floor.values.std()) / math.sqrt(60) + 1e-9
    biased = m.noise_floor(m.sliced_wasserstein, law, 300, repeats=5)
    assert biased.mean > 0.03  # which is why it needs a floor


# ---- power ------------------------------------------------------------------------------------------------------


def defects(n: int) -> dict[str, Tensor]:
    """Samples of a ring with one thing wrong each."""
    plain = sd.densities.ring(8)
    x = plain.sample(n, seed=0)
    dropped = sd.densities.Mixture(plain.means[:7], std=0.1)
    return {
        "none": x,
        "wide": sd.densities.ring(8, std=0.11).sample(n, seed=1),
        "shift": x + torch.tensor([0.05, 0.0]),
        "weights": sd.densities.ring(8, weights=[1.28, 0.72, 1, 1, 1, 1, 1, 1]).sample(n, seed=2),
        "dropped": dropped.sample(n, seed=3),
    }


def test_what_sees_what():
    """n = 2000, at p < 1e-4: the panel sees each defect, and each of its tests has its blind side."""
    law, n = sd.densities.ring(8), 2000
    seen = {name: set() for name in defects(n)}
    for name, x in defects(n).items():
        within = m.within_mode(x, law)
        verdicts = {
            "occupancy": m.mode_occupancy(x, law).p_value,
            "mean": within.p_mean,
            "variance": within.p_variance,
        }
        seen[name] = {test for test, p in verdicts.items() if p < 1e-4}
    assert seen["none"] == set()
    assert seen["wide"] == {"variance"}
    assert "mean" in seen["shift"]
    assert seen["weights"] == {"occupancy"}
    assert seen["dropped"] == {"occupancy"}


def test_distances_see_a_dropped_mode_and_steins_does_not():
    law = sd.densities.ring(8)
    x, y = defects(1000)["dropped"], law.sample(1000, seed=9)
    for metric in (m.energy_distance, m.mmd, m.sliced_wasserstein):
        assert metric(x, y) > 1.4 * m.noise_floor(metric, law, 1000, repeats=10).values[-1]
    assert m.ks_projections(x, law, projections=4).p_value < 1e-6
    # the score is right wherever these samples are
    stein = m.noise_floor(lambda a, _: m.kernel_stein_discrepancy(a, law.score), law, 1000, repeats=10)
    assert m.kernel_stein_discrepancy(x, law.score) < 2 * stein.values[-1]
    shifted = law.sample(1000, seed=5) + torch.tensor([0.05, 0.0])
    assert m.kernel_stein_discrepancy(shifted, law.score) > 1.5 * stein.values[-1]
    assert m.ks_projections(shifted, law, projections=4).p_value > 1e-6


# ---- exact transport --------------------------------------------------------------------------------------------


def test_wasserstein_against_scipy_translations_and_plans_by_hand():
    x, y = normal(60, 1, 0), normal(60, 1, 1, 0.5)
    exact = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert m.wasserstein(x, y, order=1) == pytest.approx(exact, rel=1e-12)
    x, v = normal(50, 3, 2), torch.tensor([1.0, 2.0, -2.0], dtype=F64)
    for order in (1.0, 2.0, 3.0):
        assert m.wasserstein(x, (x + v)[torch.randperm(50)], order=order) == pytest.approx(3.0, rel=1e-12)
    square = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert m.wasserstein(square, torch.tensor([[4.0, 1.0], [0.0, 2.0]])) == pytest.approx(math.sqrt((1 + 4) / 2))
    # between Gaussians: |difference of means|² + |difference of standard deviations|² a coordinate
    a, b = normal(600, 2, 3), 1.0 + 2 * normal(600, 2, 4)
    assert m.wasserstein(a, b) == pytest.approx(math.sqrt(2 * 1 + 2 * 1), rel=0.08)


def test_wasserstein_of_unequal_sizes():
    x, y = normal(40, 1, 0), normal(25, 1, 1, 0.5)
    exact = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert m.wasserstein(x, y, order=1) == pytest.approx(exact, rel=1e-10)
    assert m.wasserstein(x, y) == pytest.approx(m.sliced_wasserstein(x, y), rel=1e-10)  # one direction: the same thing
    two = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert m.wasserstein(torch.zeros(3, 2), two) == pytest.approx(math.sqrt(25 / 2))


# ---- neighbours -------------------------------------------------------------------------------------------------


def test_precision_and_recall_by_hand():
    data, x = torch.tensor([0.0, 1.0, 2.0, 10.0]), torch.tensor([0.5, 1.9, 40.0])
    got = m.precision_recall(x, data, k=1)  # data balls: radii 1, 1, 1, 8
    assert got.precision == pytest.approx(2 / 3)  # 0.5 and 1.9
    assert got.recall == pytest.approx(1.0)  # sample balls: 0.5 ± 1.4, 1.9 ± 1.4, 40 ± 38.1
    assert got.density == pytest.approx(4 / 3)  # 0.5 lies in the balls of 0 and 1, 1.9 in those of 1 and 2
    assert got.coverage == pytest.approx(3 / 4)  # the ball of 10 ends at 2
    assert got.expected_coverage == pytest.approx(1 - 3 / 6)
    swapped = m.precision_recall(data, x, k=1)
    assert (swapped.precision, swapped.recall) == (got.recall, got.precision)


def test_neighbourhoods_of_one_law_have_their_expectation():
    seen = [m.precision_recall(normal(150, 3, s), normal(200, 3, 1000 + s), k=4) for s in range(60)]
    for value, want in (([g.coverage for g in seen], seen[0].expected_coverage), ([g.density for g in seen], 1.0)):
        test = stats.ttest_1samp(value, want)
        assert test.pvalue > LEVEL and float(np.std(value)) < 0.1  # a bias of 0.06 would be seen
    floor = m.noise_floor(
        lambda a, b: m.precision_recall(a, b, k=4).precision,
        lambda n, generator: torch.randn(n, 3, generator=generator),
        150,
    )
    assert 0.8 < floor.mean < 1


def test_what_precision_and_recall_tell_apart():
    law, n = sd.densities.ring(8), 800
    data = law.sample(n, seed=0)
    fair = m.precision_recall(law.sample(n, seed=1), data)
    dropped = m.precision_recall(sd.densities.Mixture(law.means[:6], std=0.1).sample(n, seed=2), data)
    narrow = m.precision_recall(sd.densities.ring(8, std=0.05).sample(n, seed=3), data)
    wide = m.precision_recall(sd.densities.ring(8, std=0.25).sample(n, seed=4), data)
    assert fair.precision > 0.93 and fair.recall > 0.93
    assert dropped.precision > 0.93 and dropped.recall < 0.82 and dropped.coverage < 0.82 * fair.coverage
    assert narrow.precision > fair.precision and narrow.recall < 0.82 and narrow.coverage < 0.87 * fair.coverage
    assert wide.precision < 0.6 < wide.recall


# ---- modes ------------------------------------------------------------------------------------------------------


def test_mode_coverage_by_hand():
    law = sd.densities.Mixture([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], std=[1.0, 0.5, 1.0])
    x = torch.tensor([[0.0, 2.9], [2.0, 2.3], [10.0, 1.4], [10.0, 1.6], [5.0, 5.0], [-1.0, 0.0]])
    got = m.mode_coverage(x, law)  # within 3, outside (3.05), within 1.5, outside, outside, within
    assert got.counts.tolist() == [2, 1, 0] and got.found == 2 and got.quality == pytest.approx(0.5)
    assert got.expected_quality == pytest.approx(1 - math.exp(-4.5))
    assert got.p_missing == pytest.approx(min(1, 3 * (1 - (1 - math.exp(-4.5)) / 3) ** 6))
    assert got.p_quality == pytest.approx(stats.binom.cdf(3, 6, 1 - math.exp(-4.5)))
    rare = sd.densities.Mixture([[0.0], [9.0]], std=1.0, weights=[0.99, 0.01])
    assert m.mode_coverage(rare.sample(20, seed=1) * 0, rare).p_missing == 1.0  # to miss it is no surprise
    assert m.mode_coverage(torch.zeros(2000, 1), rare).p_missing < 1e-8


def test_p_values_of_mode_coverage_are_not_too_small():
    rare = sd.densities.Mixture([[0.0, 0.0], [9.0, 0.0]], std=1.0, weights=[0.99, 0.01])
    got = [m.mode_coverage(rare.sample(150, seed=s), rare) for s in range(300)]
    missed = [g.p_missing for g in got]
    assert stats.binom.ppf(LEVEL, 300, 0.22) <= sum(p < 1 for p in missed) <= stats.binom.isf(LEVEL, 300, 0.22)
    assert min(missed) == pytest.approx(
        2 * (1 - 0.01 * (1 - math.exp(-4.5))) ** 150
    )  # by Bonferroni over the two modes
    assert uniform_from_above([g.p_quality for g in got]) > LEVEL


# ---- two-sample tests -------------------------------------------------------------------------------------------


def test_blocks_change_no_test(monkeypatch):
    x, y = normal(60, 2, 0), normal(45, 2, 1, 0.3)
    score = sd.densities.gaussian().score

    def panel() -> list[float]:
        near = m.precision_recall(x, y)
        tests = m.energy_test(x, y), m.mmd_test(x, y), m.stein_test(x, score), m.classifier_test(x, y)
        return [
            *(t.p_value for t in tests),
            tests[2].statistic,
            near.precision,
            near.recall,
            near.density,
            near.coverage,
        ]

    whole = panel()
    monkeypatch.setattr(m.pairs, "BLOCK", 300)
    assert panel() == pytest.approx(whole, rel=1e-12)


def test_permutation_p_value_by_enumeration():
    """Two against two: every assignment occurs, and the p-value tends to the share of those that reach the statistic."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [6.0]])
    got = m.energy_test(x, y, permutations=3999, seed=0)
    assert got.p_value == pytest.approx(1 / 3, abs=0.03)  # {0, 1} against {5, 6}, either way round: 2 of 6
    assert got.statistic == pytest.approx(m.energy_distance(x, y))
    far = m.energy_test(normal(9, 2, 0), normal(9, 2, 1, 50.0), permutations=199)
    assert far.p_value == 1 / 200  # the assignment seen is one of those counted: a p-value is never 0
    mixed = m.energy_test(torch.tensor([[0.0], [6.0]]), torch.tensor([[1.0], [5.0]]), permutations=3999)
    assert mixed.p_value > 0.9


def uniform_on_steps(p: list[float], steps: int) -> float:
    """The p-value of "these are uniform on 1/steps, ..., 1": a Kolmogorov-Smirnov test of them spread within the steps."""
    spread = np.array(p) - np.random.default_rng(0).random(len(p)) / steps
    return float(stats.kstest(spread, "uniform").pvalue)


@pytest.mark.parametrize("law", [RING, OVERLAPPING], ids=["separate", "overlapping"])
def test_p_values_of_two_sample_tests_are_uniform(law):
    """150 repetitions: a level that is off by 0.2 somewhere would be seen."""
    p: dict[str, list[float]] = {"energy": [], "mmd": [], "stein": []}
    classified: list[float] = []
    for seed in range(150):
        x, y = law.sample(120, seed=2 * seed), law.sample(90, seed=2 * seed + 1)
        p["energy"].append(m.energy_test(x, y, permutations=99, seed=seed).p_value)
        p["mmd"].append(m.mmd_test(x, y, permutations=99, seed=seed).p_value)
        p["stein"].append(m.stein_test(x, law.score, repeats=99, seed=seed).p_value)
        classified.append(m.classifier_test(x, y, seed=seed).p_value)
    for name, values in p.items():
        assert uniform_on_steps(values, 100) > LEVEL, name
    assert uniform_from_above(classified) > LEVEL  # exact and discrete: never too small
    assert np.mean(np.array(classified) < 0.5) > 0.2  # and not all too large


def test_the_classifier_test_is_fishers():
    """Its p-value against scipy's, from a classifier that answers what it is told."""
    x, y = torch.arange(8.0)[:, None], 100 + torch.arange(12.0)[:, None]

    def sees(points: Tensor, labels: Tensor, generator: torch.Generator) -> m.classifier.Classify:
        assert labels.sum() == 6 and len(labels) == 10
        assert torch.allclose(points.mean(0), torch.zeros(1, dtype=F64), atol=1e-12)
        return lambda at: at[:, 0]

    got = m.classifier_test(x, y, classifier=sees)
    assert got.accuracy == 1.0
    assert got.p_value == pytest.approx(stats.fisher_exact([[6, 0], [0, 4]], alternative="greater").pvalue)
    same = m.classifier_test(x, y, classifier=lambda *_: lambda at: torch.ones(len(at)))
    assert same.accuracy == 0.5 and same.p_value == 1.0


def test_classifiers_see_what_they_can():
    x = normal(1200, 2, 0)
    y = normal(1200, 2, 1)
    turned = torch.stack([x[:, 0], x[:, 1].abs() * x[:, 0].sign()], 1)  # in two quadrants, with the marginals of y
    for classifier in (m.Neighbours(), m.Perceptron(steps=150)):
        seen = m.classifier_test(turned, y, classifier=classifier)
        assert seen.p_value < 1e-6 and 0.6 < seen.accuracy < 0.9
        assert m.classifier_test(x, y, classifier=classifier).p_value > LEVEL
    again = [m.classifier_test(x, y, classifier=m.Perceptron(steps=20), seed=3) for _ in range(2)]
    assert again[0] == again[1]


def test_what_each_test_sees():
    """n = 1000, at p <= 0.01: a dropped mode is seen by all but Stein's, a shift by Stein's first."""
    law = sd.densities.ring(8)
    x = defects(1000)
    y = law.sample(1000, seed=9)
    dropped = x["dropped"]
    assert m.energy_test(dropped, y, permutations=199).p_value <= 0.01
    assert m.mmd_test(dropped, y, permutations=199).p_value <= 0.01
    assert m.classifier_test(dropped, y).p_value < 0.05  # at best it is right 9 times in 16
    assert m.mode_coverage(dropped, law).p_missing < 1e-6
    assert m.stein_test(dropped, law.score, repeats=199).p_value > 0.01
    assert m.stein_test(x["shift"], law.score, repeats=199).p_value <= 0.01
    assert m.mode_coverage(x["wide"], law).p_quality < 1e-3
    assert m.energy_test(x["wide"], y, permutations=199).p_value > 0.01  # blind to the width


@pytest.mark.soak
def test_power_of_the_panel():
    """The table of docs/metrics.md at n = 2000 and p <= 0.05, ten repetitions each: what sees what."""
    law, n, repeats = sd.densities.ring(8), 2000, 10
    kinds = {
        "wide": lambda s: sd.densities.ring(8, std=0.11).sample(n, seed=s),
        "shift": lambda s: law.sample(n, seed=s) + torch.tensor([0.05, 0.0]),
        "weights": lambda s: sd.densities.ring(8, weights=[1.28, 0.72, 1, 1, 1, 1, 1, 1]).sample(n, seed=s),
        "dropped": lambda s: sd.densities.Mixture(law.means[:7], std=0.1).sample(n, seed=s),
    }
    tests = {
        "energy": lambda x, y, s: m.energy_test(x, y, permutations=99, seed=s).p_value,
        "mmd": lambda x, y, s: m.mmd_test(x, y, permutations=99, seed=s).p_value,
        "stein": lambda x, y, s: m.stein_test(x, law.score, repeats=99, seed=s).p_value,
        "occupancy": lambda x, y, s: m.mode_occupancy(x, law).p_value,
        "within": lambda x, y, s: m.within_mode(x, law).p_value,
    }
    power = {
        (kind, test): sum(ask(draw(10 * s), law.sample(n, seed=10 * s + 1), s) <= 0.05 for s in range(repeats))
        / repeats
        for kind, draw in kinds.items()
        for test, ask in tests.items()
    }
    for kind, test in [("wide", "within"), ("shift", "stein"), ("weights", "occupancy"), ("dropped", "energy"),
                       ("dropped", "mmd"), ("dropped", "occupancy")]:  # fmt: skip
        assert power[kind, test] >= 0.9, (kind, test, power[kind, test])
    for kind, test in [("wide", "energy"), ("wide", "mmd"), ("wide", "occupancy"), ("weights", "stein"),
                       ("dropped", "stein"), ("shift", "energy"), ("dropped", "within")]:  # fmt: skip
        assert power[kind, test] <= 0.4, (kind, test, power[kind, test])


# ---- behaviour --------------------------------------------------------------------------------------------------


def test_any_event_shape_and_dtype():
    law = sd.densities.Mixture(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), std=0.5)
    flat = sd.densities.Mixture(law.means, std=0.5)
    x = law.sample(300, seed=0)
    y, rows = law.sample(300, seed=1), slice(None)
    assert m.energy_distance(x, y) == pytest.approx(m.energy_distance(x.flatten(1), y.flatten(1)[rows]))
    assert m.mode_occupancy(x, law).p_value == pytest.approx(m.mode_occupancy(x.flatten(1), flat).p_value)
    assert torch.allclose(m.within_mode(x, law).mean, m.within_mode(x.flatten(1), flat).mean)
    assert m.kernel_stein_discrepancy(x, law.score) == pytest.approx(
        m.kernel_stein_discrepancy(x.flatten(1), flat.score)
    )
    line = sd.densities.bimodal()
    got = m.ks_projections(line.sample(500, seed=0), line)
    assert got.directions.shape == (1, 1) and got.p_value > LEVEL
    assert m.ks_projections(line.sample(500, seed=0) + 0.3, line).p_value < 1e-6


def test_at_a_time_between():
    """The law at t > 0 is a mixture again, so that every metric takes it."""
    exact = sd.ExactScore(sd.VP(), RING)
    x = exact.sample(2000, 0.1, seed=0)
    law = exact.law(0.1)
    assert (
        min(m.within_mode(x, law).p_value, m.mode_occupancy(x, law).p_value, m.ks_projections(x, law).p_value) > LEVEL
    )
    assert m.within_mode(x, exact.law(0.09)).p_value < 1e-6


def test_wrong_arguments_are_named():
    x = torch.zeros(3, 2)
    for wrong, message in [
        (lambda: m.energy_distance(x, torch.zeros(3, 3)), "event shapes"),
        (lambda: m.energy_distance(x[:1], x), "at least two"),
        (lambda: m.energy_distance(x, torch.full((3, 2), math.nan)), "NaN"),
        (lambda: m.mmd(x, x), "bandwidth = 0"),
        (lambda: m.sliced_wasserstein(x, x, order=0.5), "order"),
        (lambda: m.sliced_wasserstein(x, x, projections=0), "projections"),
        (lambda: m.mode_occupancy(x, sd.densities.gaussian()), "one component"),
        (lambda: m.kernel_stein_discrepancy(x, torch.zeros(3, 1)), "must be equal"),
        (lambda: m.noise_floor(m.mmd, RING, 10, repeats=1), "repeats"),
        (lambda: m.energy_test(x, x, permutations=5), "permutations"),
        (lambda: m.stein_test(x, x, repeats=5), "repeats"),
        (lambda: m.mmd_test(x, x), "bandwidth = 0"),
        (lambda: m.wasserstein(x, x, order=0.5), "order"),
        (lambda: m.precision_recall(x, x, k=3), "from 1 to 2"),
        (lambda: m.classifier_test(x, x), "cannot be split"),
        (lambda: m.Neighbours(4), "odd"),
        (lambda: m.mode_coverage(x, RING, radius=0), "radius"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
