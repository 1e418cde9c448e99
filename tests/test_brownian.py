"""The Brownian path: its law, exactly; the same path whatever is asked of it; and the numbers it is made of."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import sdediff as sd
from sdediff import brownian
from sdediff.keyed import _mixed, label

CPU = torch.device("cpu")
LEVEL = 1e-7


def states(n: int, *event: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.zeros(n, *event, dtype=dtype)


def covariance(ends: list[tuple[float, float]]) -> torch.Tensor:
    r"""The covariance of all increments, then all their integrals, of steps s -> t, either way: from min(u, v) alone.

    With W the path, the step from s to t has increment W(t) - W(s) and integral :math:`\int (W_u - W_s)|du|`, and
    :math:`\int_a^b\int_c^d \min(u, v)` is elementary.
    """

    def single(u: float, v: float) -> float:
        return min(u, v)

    def once(a: float, b: float, v: float) -> float:  # ∫_a^b min(u, v) du
        c = min(max(v, a), b)
        return 0.5 * (c * c - a * a) + v * (b - c)

    def twice(a: float, b: float, c: float, d: float) -> float:  # ∫_c^d ∫_a^b min(u, v) du dv, piecewise cubic in v
        cuts = sorted({c, d, min(max(a, c), d), min(max(b, c), d)})
        return sum(
            (v - u) / 6 * (once(a, b, u) + 4 * once(a, b, (u + v) / 2) + once(a, b, v)) for u, v in pairwise(cuts)
        )

    n = len(ends)
    out = torch.empty(2 * n, 2 * n, dtype=torch.float64)
    for i, (s, t) in enumerate(ends):
        for j, (p, q) in enumerate(ends):
            (a, b), (c, d) = sorted((s, t)), sorted((p, q))
            points = single(t, q) - single(t, p) - single(s, q) + single(s, p)
            left = once(a, b, q) - once(a, b, p) - (b - a) * (single(s, q) - single(s, p))
            right = once(c, d, t) - once(c, d, s) - (d - c) * (single(p, t) - single(p, s))
            both = (
                twice(a, b, c, d) - (d - c) * once(a, b, p) - (b - a) * once(c, d, s) + (b - a) * (d - c) * single(s, p)
            )
            out[i, j], out[i, n + j], out[n + j, i], out[n + i, n + j] = points, right, right, both
            out[n + i, j] = left
    return out


def asked(stream, ends) -> torch.Tensor:
    """All increments, then all their integrals, (2n, B)."""
    pairs = [stream.with_integral(s, t) for s, t in ends]
    return torch.stack([w for w, _ in pairs] + [z for _, z in pairs]).flatten(1)


class OneHot:
    """In place of the normals: the k-th one asked for is the k-th unit vector, so that a path shows its coefficients."""

    def __init__(self, size: int):
        self.keys, self.seen = torch.zeros(size, dtype=torch.int64), {}

    def pairs(self, labels, event):
        out = torch.zeros(2, len(labels), len(self.keys), *event, dtype=torch.float64)
        for k, name in enumerate(labels):
            at = self.seen.setdefault(name, 2 * len(self.seen))
            out[0, k, at], out[1, k, at + 1] = 1.0, 1.0
        return out

    def pair(self, name, event):
        z = self.pairs([name], event)
        return z[0, 0], z[1, 0]


def coefficients(path: sd.BrownianPath, ends) -> torch.Tensor:
    """The path's increments and integrals as linear functions of independent normals, (2n, number of normals)."""
    stream = path.open(states(2000))
    stream.source = OneHot(2000)
    return asked(stream, ends)


DYADIC = [
    (0, 1),
    (0.25, 0.375),
    (0.375, 0.75),
    (0.75, 0.25),
    (1, 0),
    (0.125, 0.8125),
    (0.8125, 0.796875),
    (0.5, 0.53125),
]
AWKWARD = [(0, 0.1), (0.1, 0.3), (0.3, 0.1), (1 / 3, 2 / 3), (0.2, 0.9), (0.9, 0.77), (0.05, 0.050001), (0, 1)]


def test_the_law_is_brownian_exactly_at_the_nodes():
    """Nothing is sampled: the coefficients of the normals give the covariance of every increment and integral."""
    for t0, t1, parts in ((0.0, 1.0, 1), (0.0, 1.0, 3), (-2.0, 5.0, 1), (-2.0, 5.0, 4)):
        path = sd.BrownianPath(t0, t1, 0, parts=parts, depth=8)
        nodes = [round(256 * u) * (t1 - t0) / 256 for u in (0, 0.25, 0.375, 0.75, 1, 0.125, 0.8125, 0.5, 0.53125)]
        local = list(zip(nodes, nodes[3:] + nodes[:3], strict=True)) + list(zip(nodes[1:], nodes, strict=False))
        seen = coefficients(path, [(t0 + s, t0 + t) for s, t in local])
        exact = covariance(local)
        assert float((seen @ seen.T - exact).abs().max()) < 1e-13 * float(exact.abs().max())


@pytest.mark.parametrize("depth", [4, 10, 20])
def test_between_the_nodes_at_most_a_twelfth_of_a_leaf_is_missing(depth):
    """The documented bound, exact: an increment lacks at most 1/12 of a leaf's variance for each of its ends."""
    ends = [(0.0, t) for t in torch.linspace(0.11, 1, 23, dtype=torch.float64).tolist()] + [(0.21, 0.87), (0.9, 0.4)]
    seen = coefficients(sd.BrownianPath(0, 1, 0, depth=depth), ends)
    missing = (covariance(ends) - seen @ seen.T).diagonal()[: len(ends)] * 2**depth
    assert float(missing.min()) > -1e-7 and float(missing[:-2].max()) <= 1 / 12 + 1e-7
    assert float(missing.max()) <= 1 / 6 + 1e-7
    assert float(missing.max()) > 0.06  # else the bound says nothing


def wishart(rows: torch.Tensor, exact: torch.Tensor) -> float:
    """The p-value of the hypothesis that the columns of (p, n) are N(0, exact): likelihood ratio, and the mean."""
    p, n = rows.shape
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(exact), rows, upper=False)
    s = white @ white.T / n
    ratio = n * float(s.trace() - torch.logdet(s) - p)
    mean = n * float(white.mean(1).square().sum())
    return 2 * min(float(stats.chi2.sf(ratio, p * (p + 1) / 2)), float(stats.chi2.sf(mean, p)))


STEPS = [
    (0.0, 0.1),
    (0.1, 0.3),
    (0.55, 0.3),
    (0.55, 0.560001),
    (0.75, 0.875),
    (0.98, 0.875),
]  # 12 quantities, independent


def sampled(seed: int, n: int) -> torch.Tensor:
    return asked(sd.BrownianPath(0, 1, seed).open(states(n)), [*STEPS, (0.2, 0.9)])


def test_sampled_covariance():
    """14 increments and integrals of 100,000 paths against their exact covariance matrix, level 1e-7 (chi-square, 105 df).

    It sees with power 0.99 a variance that is off by 6 % in any direction, or two that are correlated by 0.042, whose
    noncentralities are n (δ - log(1 + δ)) and -n log(1 - ρ²). The mutants below say the same.
    """
    n, ends = 100_000, [*STEPS, (0.2, 0.9)]
    critical = stats.chi2.isf(LEVEL / 2, 105)
    for effect in (0.06 - math.log(1.06), -math.log(1 - 0.042**2)):
        assert stats.ncx2.sf(critical, 105, n * effect) > 0.99
    assert wishart(sampled(0, n), covariance(ends)) > LEVEL
    alternate = sd.BrownianPath(0, 1, list(range(n))).open(states(n))  # one seed per sample
    assert wishart(asked(alternate, ends), covariance(ends)) > LEVEL


@pytest.mark.parametrize("spoiled", ["increments", "areas", "signs"])
def test_the_law_test_rejects_wrong_bridges(monkeypatch, spoiled):
    """A tenth too much spread of the halves, or of their areas, or a wrong sign of the correlation between them."""
    right = brownian.halves

    def wrong(whole, root, z1, z2):
        if spoiled == "areas":
            return right(whole, root, z1, 1.1 * z2)
        if spoiled == "increments":
            return right(whole, root, 1.1 * z1, z2)
        first, second = right(whole, root, z1, z2)
        shift = 0.25 * root * z1
        return first._replace(area=first.area + shift), second._replace(area=second.area + shift)

    monkeypatch.setattr(brownian, "halves", wrong)
    assert wishart(sampled(0, 100_000), covariance([*STEPS, (0.2, 0.9)])) < LEVEL
    seen = coefficients(sd.BrownianPath(0, 1, 0, depth=8), DYADIC)
    assert float((seen @ seen.T - covariance(DYADIC)).abs().max()) > 1e-3


def test_independent_increments_and_the_steps_own_areas():
    """Over disjoint steps increments and areas H = Z/h - W/2 are independent normals of variance h and h/12."""
    n = 50_000
    stream = sd.BrownianPath(0, 1, 3).open(states(n))
    columns = []
    for s, t in STEPS:
        h = abs(t - s)
        w, z = stream.with_integral(s, t)
        columns += [w / h**0.5, (z / h - 0.5 * w) * (12 / h) ** 0.5]
    assert wishart(torch.stack(columns), torch.eye(2 * len(STEPS), dtype=torch.float64)) > LEVEL
    for column in columns:
        assert stats.kstest(column.numpy(), "norm").pvalue > LEVEL


cuts = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12, unique=True)


@given(cuts, st.booleans(), st.sampled_from([1, 3, 10]), st.integers(8, 30))
def test_a_step_is_composed_of_its_parts(inner, falling, parts, depth):
    """Increments add up, and integrals compose, to 1e-12 in float64, for any partition on either clock."""
    path = sd.BrownianPath(0, 1, 5, parts=parts, depth=depth)
    leaf = 1 / path.leaves
    points = [0.0]
    for u in sorted(inner):
        points += [u] if u - points[-1] > 1.1 * leaf else []
    points = [*points, 1.0] if 1 - points[-1] > 1.1 * leaf else [*points[:-1], 1.0]
    points = points[::-1] if falling else points
    stream = path.open(states(7, 2))
    w, z = torch.zeros(7, 2, dtype=torch.float64), torch.zeros(7, 2, dtype=torch.float64)
    for s, t in pairwise(points):
        dw, dz = stream.with_integral(s, t)
        z = z + dz + w * abs(t - s)
        w = w + dw
        assert torch.equal(dw, stream.increment(s, t))
        assert float((stream.unit(s, t) * abs(t - s) ** 0.5 - dw).abs().max()) < 1e-14
    whole = stream.with_integral(points[0], points[-1])
    assert float((w - whole[0]).abs().max()) < 1e-12
    assert float((z - whole[1]).abs().max()) < 1e-12


def test_both_clocks_see_one_path():
    """W(t) - W(s), and the integral from the end where the step starts: the area of the bridge is the same from both."""
    stream = sd.BrownianPath(0, 2, 8).open(states(50, 3))
    for s, t in ((0.0, 2.0), (0.3, 1.7), (0.5, 0.75)):
        up, down = stream.with_integral(s, t), stream.with_integral(t, s)
        assert torch.equal(down[0], -up[0])
        # ∫ (W_u - W_t) du = ∫ (W_u - W_s) du - (t - s)(W_t - W_s)
        assert float((down[1] - (up[1] - (t - s) * up[0])).abs().max()) < 1e-14
        assert torch.equal(stream.unit(t, s), -stream.unit(s, t))


def test_the_integral_is_that_of_the_path():
    """By the trapezoidal rule on 2**14 nodes, whose error is that of the bridges between them: std h 2**-14 / sqrt(12)."""
    stream = sd.BrownianPath(0, 1, 2).open(states(16))
    count = 2**14
    w = torch.stack([stream.increment(k / count, (k + 1) / count) for k in range(count // 4, 3 * count // 4)])
    path = torch.cat([w.new_zeros(1, 16), w.cumsum(0)])
    trapezoid = (path[:-1] + path[1:]).sum(0) / (2 * count)
    error = (stream.with_integral(0.25, 0.75)[1] - trapezoid).abs().max()
    assert 1e-7 < float(error) < 6 * 0.5**0.5 / count / 12**0.5


def test_the_order_of_questions_does_not_matter():
    """Bit for bit, on nodes and between them, with whatever was asked before."""
    path = sd.BrownianPath(0, 1, 11, parts=5)
    questions = [tuple(q) for q in DYADIC + AWKWARD]
    first = {q: path.open(states(9, 2)).with_integral(*q) for q in questions}
    for trial in range(5):
        order = random.Random(trial).sample(questions * 2, 2 * len(questions))
        stream = path.open(states(9, 2))
        for q in order:
            w, z = stream.with_integral(*q)
            assert torch.equal(w, first[q][0]) and torch.equal(z, first[q][1])


@pytest.mark.parametrize("event", [(), (1,), (2,), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_sample_s_path_is_its_own(event, dtype):
    """Alone and in a batch of 300, by one seed for all and by a seed of its own: the same bits."""

    def numbers(path, n):
        stream = path.open(states(n, *event, dtype=dtype))
        parts = [
            *stream.with_integral(0.1, 0.7),
            stream.unit(0.7, 0.25),
            stream.normal(),
            stream.normal(),
            stream.normal(),
        ]
        return torch.stack([*parts, path.initial((n, *event), CPU, dtype)], 1)

    seeds = [7 * i + 3 for i in range(300)]
    for path in (sd.BrownianPath(0, 1, 4), sd.BrownianPath(0, 1, seeds), sd.BrownianPath(0, 1, torch.tensor(seeds))):
        whole = numbers(path, 300)
        assert whole.dtype == dtype
        for start, stop in ((0, 1), (5, 6), (17, 40), (299, 300)):
            assert torch.equal(numbers(path.rows(start, stop), stop - start), whole[start:stop])
        assert torch.equal(numbers(path.rows(10, 200).rows(7, 9), 2), whole[17:19])
        assert len(torch.unique(whole.double(), dim=0)) == 300
    assert torch.equal(numbers(sd.BrownianPath(0, 1, [3]), 1), numbers(sd.BrownianPath(0, 1, 3), 1))
    mixed = numbers(sd.BrownianPath(0, 1, [99, seeds[5], 5, seeds[5]]), 4)
    assert torch.equal(mixed[1], mixed[3]) and torch.equal(mixed[1], numbers(sd.BrownianPath(0, 1, seeds), 300)[5])


def test_float32_is_the_same_path_rounded():
    path = sd.BrownianPath(0, 1, 4)
    for s, t in AWKWARD:
        single, double = (path.open(states(500, dtype=d)).with_integral(s, t) for d in (torch.float32, torch.float64))
        for a, b, size in zip(single, double, (abs(t - s) ** 0.5, abs(t - s) ** 1.5), strict=True):
            assert float((a.double() - b).abs().max()) < 3e-5 * size


@pytest.mark.parametrize("steps, levels", [(64, 6), (1000, 20)])
def test_memory_does_not_grow_with_the_steps(monkeypatch, steps, levels):
    """On its way a stream holds the intervals that the ends of a step cut, one a level and end; after it, one end's."""
    event, largest = torch.Size((2,)), 0
    stream = sd.BrownianPath(0, 1, 0).open(states(3, 2))
    right = brownian._Tree._cover

    def watched(tree, *args):
        nonlocal largest
        largest = max(largest, len(tree.known))
        return right(tree, *args)

    monkeypatch.setattr(brownian._Tree, "_cover", watched)
    for grid in ([k / steps for k in range(steps + 1)], [1 - k / steps for k in range(steps + 1)]):
        for s, t in pairwise(grid):
            stream.unit(s, t)
            assert len(stream._trees[event].known) <= levels and len(stream._trees[event].roots) <= 1
    assert largest <= 2 * levels


def test_steps_on_the_nodes_cost_two_normals_each(monkeypatch):
    """Once per interval of the tree, with one root: what makes solves on 2**k to a part cheap, either way."""
    drawn = []
    right = brownian.Source.pairs
    monkeypatch.setattr(brownian.Source, "pairs", lambda *a: (drawn.extend(a[1]), right(*a))[1])
    for parts, steps in ((1, 64), (10, 80)):
        for falling in (False, True):
            drawn.clear()
            stream = sd.BrownianPath(0, 1, 0, parts=parts).open(states(3))
            grid = [k / steps for k in range(steps + 1)]
            for s, t in pairwise(grid[::-1] if falling else grid):
                stream.unit(s, t)
            assert len(drawn) == steps and len(set(drawn)) == steps


def test_noise_beside_the_path():
    """A corrector's normals and the starting states: repeatable, whatever is asked of the path, and independent of it."""
    n = 40_000
    path = sd.BrownianPath(0, 1, 21)
    quiet, busy = path.open(states(n)), path.open(states(n))
    seen = []
    for k in range(4):
        w = busy.increment(k / 4, (k + 1) / 4)
        z = busy.normal()
        assert torch.equal(z, quiet.normal())
        seen += [2 * w, z]
    seen.append(path.initial((n,), CPU, torch.float64))
    assert wishart(torch.stack(seen), torch.eye(9, dtype=torch.float64)) > LEVEL
    assert quiet.normal(torch.Size((n, 3))).shape == (n, 3)


def test_seeds_coordinates_and_intervals_are_independent():
    """Neighbouring seeds, samples, coordinates, levels and places, and the two normals of a pair: 12 columns, level 1e-7.

    With 200,000 rows a correlation of 0.03 is seen with power 0.99 (a noncentrality n ρ² of 160 is needed).
    """
    n = 200_000
    columns = []
    for seed in (0, 1):
        source = sd.Keyed(seed).source(n, CPU, torch.float64)
        for name in (label(4, 0, 0), label(4, 1, 0), label(4, 1, 1)):
            columns += [source.pair(name, torch.Size((2,)))[0]]
    columns = [c for pair in columns for c in pair.unbind(1)]
    columns[-1] = columns[0].roll(1)  # the neighbouring sample's
    assert wishart(torch.stack(columns), torch.eye(12, dtype=torch.float64)) > LEVEL
    z1, z2 = sd.Keyed(range(n)).source(n, CPU, torch.float64).pair(label(9), torch.Size(()))
    for column in (*columns, z1, z2):
        assert stats.kstest(column.numpy(), "norm").pvalue > LEVEL
    pair = torch.stack([z1, z2, z1**2 - 1, z2**2 - 1, z1 * z2])
    assert float((pair @ pair.T / n - torch.diag(torch.tensor([1.0, 1, 2, 2, 1]))).abs().max()) < 0.05
    radius = 0.5 * (z1**2 + z2**2)
    assert stats.kstest(radius.numpy(), "expon").pvalue > LEVEL


def test_no_two_samples_of_any_seeds_share_a_path():
    """Sample i of seed s and sample i - 1 of seed s + 1, above all."""
    keys = torch.cat([sd.Keyed(seed).source(1000, CPU, torch.float64).keys for seed in range(50)])
    assert len(torch.unique(keys)) == 50_000


def test_every_bit_of_a_key_counts():
    """A bit of a key changed changes each of the 64 bits of the word half of the time, for keys that count from 0.

    Within 0.02 at n = 20,000, 5.7 standard errors: level 6e-5 for all 4,096 pairs of bits together.
    """
    n = torch.arange(20_000)
    for bit in range(64):
        without = ((n >> bit) << (bit + 1)) | (n & ((1 << bit) - 1)) if bit < 63 else n
        flipped = without ^ (1 << bit if bit < 63 else -(2**63))
        changed = _mixed(_mixed(without) + 1) ^ _mixed(_mixed(flipped) + 1)
        rates = torch.stack([(changed >> k) & 1 for k in range(64)]).double().mean(1)
        assert float((rates - 0.5).abs().max()) < 0.02
    assert len({label(a, b) for a in range(300) for b in range(300)}) == 90_000
    assert label(1, 2) != label(2, 1) and label(0) != label(0, 0)


class Walk(sd.SDE):
    """dx = x dt + x dW, to see whether a solve uses the path."""

    def f(self, x, t):
        return x

    def g(self, x, t):
        return 1 + 0.1 * x


def test_solves_of_all_step_sizes_follow_one_path():
    """Euler-Maruyama with 64 steps is nearer to that with 128 than another path is, sample by sample; save_at adds no noise."""
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(20, 2)
    path = sd.BrownianPath(0, 1, 3)
    coarse, fine = (sd.solve(Walk(), x, solver=sd.EulerMaruyama(), steps=n, noise=path).x for n in (64, 128))
    other = sd.solve(Walk(), x, solver=sd.EulerMaruyama(), steps=128, noise=sd.BrownianPath(0, 1, 4)).x
    assert float((coarse - fine).abs().median()) < 0.05 * float((other - fine).abs().median())
    saved = sd.solve(Walk(), x, solver=sd.EulerMaruyama(), steps=64, save_at=[0.25, 0.5], noise=path)
    assert torch.equal(saved.x, coarse)
    again = sd.solve(Walk(), x[5:9], solver=sd.EulerMaruyama(), steps=64, noise=path.rows(5, 9)).x
    assert float((again - coarse[5:9]).abs().max()) < 1e-13


RING = sd.densities.ring(8)


@pytest.mark.parametrize(
    "noise", [sd.Keyed(5), sd.BrownianPath(0, 1, 5), sd.Sobol(5), sd.Antithetic(5)], ids=lambda n: type(n).__name__
)
def test_samples_do_not_depend_on_batch_size(noise):
    """Sample i is sample i, whatever the batches: starts, steps and the corrector's noise."""
    sde = sd.VP()
    back = sde.reverse(sd.ExactScore(sde, RING.to(dtype=torch.float64)))
    solver = sd.PredictorCorrector(sd.EulerMaruyama())
    whole, parts = (
        sd.sample(back, 50, solver=solver, steps=8, noise=noise, batch_size=size, dtype=torch.float64).x
        for size in (50, 12)
    )
    assert float((whole - parts).abs().max()) < 1e-10
    assert len(torch.unique(whole, dim=0)) == 50


def test_antithetic_pairs():
    """Opposite starts, steps, integrals and corrector's noise; the mean of what is odd in the noise has no error at all."""
    noise = sd.Antithetic(sd.BrownianPath(0, 1, 6))
    stream = noise.open(states(6, 2))
    drawn = [stream.unit(0, 0.5), stream.increment(0.3, 0.1), *stream.with_integral(0, 1), stream.normal()]
    drawn.append(noise.initial((6, 2), CPU, torch.float64))
    for z in drawn:
        assert torch.equal(z[0::2], -z[1::2]) and len(torch.unique(z, dim=0)) == 6
    inner = sd.BrownianPath(0, 1, 6)
    assert torch.equal(drawn[0][0::2], inner.open(states(3, 2)).unit(0, 0.5))
    sde = sd.OU(t_max=2.0)
    back = sde.reverse(sd.ExactScore(sde, sd.densities.Mixture(torch.tensor([[0.7]]), std=0.5).to(dtype=torch.float64)))
    x = sd.sample(back, 400, solver=sd.EulerMaruyama(), steps=20, noise=sd.Antithetic(1)).x
    plain = sd.sample(back, 400, solver=sd.EulerMaruyama(), steps=20, noise=sd.Keyed(1)).x
    one = sd.sample(back, 2, solver=sd.EulerMaruyama(), steps=20, noise=sd.Antithetic(2)).x
    assert abs(float(x.mean() - one.mean())) < 1e-13  # an affine recursion: any pair has the exact mean
    assert abs(float(plain.mean() - one.mean())) > 1e-3


def standard_errors(noise, functional, process, n: int = 256, repeats: int = 40, **solve) -> float:
    """The standard deviation of the average over n samples, over independent seeds."""
    means = [float(functional(sd.sample(process, n, noise=noise(seed), **solve).x).mean()) for seed in range(repeats)]
    return float(torch.tensor(means, dtype=torch.float64).std())


def test_variance_reduction():
    """Averages of a two-mode mixture sampled backwards, 256 samples each, over 40 seeds.

    The standard error of the mean: antithetic pairs at least halve it; Sobol' starts on the flow divide it by 5 and more.
    Each ratio of two standard deviations has 11 % of noise on either side. Nothing is gained for x² by pairs.
    """
    sde = sd.VP()
    modes = sd.densities.Mixture(torch.tensor([[-1.0], [1.5]]), std=0.5).to(dtype=torch.float64)
    score = sd.ExactScore(sde, modes)
    back, flow = sde.reverse(score), sde.probability_flow(score)
    em = {"solver": sd.EulerMaruyama(), "steps": 20}
    plain, pairs = (standard_errors(kind, lambda x: x, back, **em) for kind in (sd.Keyed, sd.Antithetic))
    assert pairs < 0.5 * plain
    even_plain, even = (standard_errors(kind, torch.cos, back, **em) for kind in (sd.Keyed, sd.Antithetic))
    assert even > 0.7 * even_plain
    heun = {"solver": sd.Heun(), "grid": sd.grids.LogSNR(20)}
    plain, sobol = (standard_errors(kind, torch.square, flow, **heun) for kind in (sd.Keyed, sd.Sobol))
    assert sobol < 0.2 * plain


def test_sobol_starts():
    """Points of a scrambled net: each of 256 equal slots of every coordinate holds exactly one; unbiased over seeds."""
    n = 256
    z = sd.Sobol(3).initial((n, 2, 3), CPU, torch.float64)
    slots = (torch.special.ndtr(z) * n).long().flatten(1)
    for column in slots.T:
        assert torch.equal(column.sort().values, torch.arange(n))
    assert not torch.equal(z, sd.Sobol(4).initial((n, 2, 3), CPU, torch.float64))
    assert torch.equal(z[40:99], sd.Sobol(3).rows(40, 99).initial((59, 2, 3), CPU, torch.float64))
    assert bool(torch.isfinite(sd.Sobol(0).initial((4096, 1), CPU, torch.float32)).all())
    first = torch.cat([sd.Sobol(seed).initial((1, 2), CPU, torch.float64) for seed in range(3000)])
    for column in first.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > LEVEL
    stream = sd.Sobol(3, steps=sd.BrownianPath(0, 1, 8)).open(states(4))
    assert torch.equal(stream.unit(0, 1), sd.BrownianPath(0, 1, 8).open(states(4)).unit(0, 1))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: sd.BrownianPath(1, 0, 0), ValueError, "t0 < t1"),
        (lambda: sd.BrownianPath(0, math.inf, 0), ValueError, "finite"),
        (lambda: sd.BrownianPath(0, 1, -1), ValueError, r"Seed -1 is outside"),
        (lambda: sd.BrownianPath(0, 1, [1, 2.5]), TypeError, "integer, got 2.5"),
        (lambda: sd.BrownianPath(0, 1, []), ValueError, "at least one seed"),
        (lambda: sd.BrownianPath(0, 1, True), TypeError, "integer, got True"),
        (lambda: sd.BrownianPath(0, 1, 0, parts=0), ValueError, "parts = 0"),
        (lambda: sd.BrownianPath(0, 1, 0, depth=2.0), TypeError, "depth must be a whole number"),
        (lambda: sd.BrownianPath(0, 1, 0, depth=60), ValueError, "smaller depth"),
        (lambda: sd.BrownianPath(1e6, 1e6 + 1, 0, depth=40), ValueError, "smaller depth"),
        (lambda: sd.BrownianPath(0, 1, 0).open(states(2)).unit(0.5, 1.5), ValueError, r"1.5 is outside \[0, 1\]"),
        (lambda: sd.BrownianPath(0, 1, 0).open(states(2)).unit(0.5, 0.5 + 1e-8), ValueError, "larger depth"),
        (lambda: sd.BrownianPath(0, 1, [1, 2]).open(states(3)), ValueError, "2 seeds for a batch of 3"),
        (lambda: sd.BrownianPath(0, 1, 0).integer(), ValueError, "fixed-step solver"),
        (lambda: sd.Keyed([1, 2]).integer(), ValueError, "use seed="),
        (lambda: sd.Antithetic(0).initial((3, 1), CPU, torch.float32), ValueError, "batch of 3 is odd"),
        (lambda: sd.Antithetic(0).rows(0, 5), ValueError, "even batch_size"),
        (lambda: sd.Antithetic(0).integer(), ValueError, "fixed-step solver"),
        (lambda: sd.Antithetic("a"), TypeError, "integer seed"),
        (lambda: sd.Sobol(1.5), TypeError, "integer"),
        (lambda: sd.Sobol(0).initial((2, 30_000), CPU, torch.float32), ValueError, "30000 coordinates"),
    ],
)  # fmt: skip
def test_errors_say_what_and_how(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_integrators_refuse_the_path():
    with pytest.raises(ValueError, match="cannot follow a BrownianPath"):
        sd.solve(Walk(), states(4, 2), solver=sd.TorchSDE(), steps=4, noise=sd.BrownianPath(0, 1, 0))


def test_meta_states_draw_nothing():
    x = torch.empty(4, 2, device="meta")
    for noise in (sd.BrownianPath(0, 1, 0), sd.Antithetic(1), sd.Sobol(1), sd.Keyed(2)):
        assert noise.initial((4, 2), x.device, x.dtype).device.type == "meta"
        assert sd.solve(Walk(), x, solver=sd.EulerMaruyama(), steps=3, noise=noise).x.device.type == "meta"
