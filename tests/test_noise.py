"""What a seed guarantees: bit for bit, and independent normals all the same."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import sdediff as sd
from sdediff.noise import Seeded, as_noise

SHAPES = [(), (1,), (2,), (3,), (17,), (256,), (300,), (3, 8, 8), (1, 5)]
shapes = pytest.mark.parametrize("event", SHAPES, ids=str)


def drawn(seeds, event, count, dtype=torch.float32):
    """What ``count`` draws of the stream give, (count, B, *event)."""
    x = torch.zeros(len(seeds), *event, dtype=dtype)
    stream = sd.PerSample(seeds).open(x)
    return torch.stack([stream.normal() for _ in range(count)])


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_noise_of_a_sample_is_its_own(event, dtype):
    """Alone, in a batch of 7 and in one of 64, at any place in it: the same bits, step after step."""
    big = drawn(list(range(100, 164)), event, 20, dtype)
    assert big.dtype == dtype and big.shape == (20, 64, *event)
    for i in (0, 1, 40, 63):
        assert torch.equal(drawn([100 + i], event, 20, dtype)[:, 0], big[:, i])
        company = [5, 100 + i, 7, 100 + i, 9, 1, 2**31 - 1]
        some = drawn(company, event, 20, dtype)
        assert torch.equal(some[:, 1], big[:, i]) and torch.equal(some[:, 3], big[:, i])
    assert not torch.equal(big[:, 0], big[:, 1]) and not torch.equal(big[0], big[1])


@shapes
def test_starting_states_are_a_sample_s_own(event):
    device = torch.device("cpu")
    big = sd.PerSample(range(64)).initial((64, *event), device, torch.float32)
    for i in (0, 40, 63):
        assert torch.equal(sd.PerSample([i]).initial((1, *event), device, torch.float32)[0], big[i])
    assert torch.equal(sd.PerSample(range(64)).rows(30, 50).initial((20, *event), device, torch.float32), big[30:50])
    first = drawn(list(range(64)), event, 1)[0]
    assert not torch.equal(first, big)  # apart from those of the steps
    if first.numel() > 3000:
        assert abs(torch.corrcoef(torch.stack([first.flatten(), big.flatten()]))[0, 1]) < 5.3 / math.sqrt(first.numel())


def uniform_p(values) -> float:
    """Kolmogorov-Smirnov p-value of standard normals (exact)."""
    return float(stats.kstest(values.double().flatten().numpy(), "norm").pvalue)


@pytest.mark.parametrize("event", [(1,), (2,), (17,)], ids=str)
def test_first_numbers_across_seeds(event):
    """Seeds in a row give independent normals: what one generator a sample could most easily get wrong.

    For n = 20,000 neighbouring seeds the first, second and twentieth draws, the starting states, and products with the
    neighbour's: level 1e-7 each; a KS distance of 0.024 or a correlation of 0.054 is seen with power 0.99.
    """
    n = 20_000
    seeds = list(range(n))
    steps = drawn(seeds, event, 20)
    start = sd.PerSample(seeds).initial((n, *event), torch.device("cpu"), torch.float32)
    for values in (steps[0], steps[1], steps[19], start):
        first = values[:, 0]
        assert uniform_p(first) > 1e-7
        for other in (first.roll(1), steps[5][:, 0]):
            z = float((first.double() * other.double()).mean()) * math.sqrt(n)
            assert abs(z) < 5.33, f"correlated: z = {z:.2f}"


def test_all_numbers_of_one_seed():
    """One seed's numbers along a long run, blocks joined: normal, uncorrelated at lags 1 and 2 (lag 128 is a block)."""
    values = drawn([12345], (2,), 40_000, torch.float64)[:, 0]
    assert uniform_p(values) > 1e-7
    column = values[:, 0]
    for lag in (1, 2, 128):
        z = float((column[lag:] * column[:-lag]).mean()) * math.sqrt(len(column) - lag)
        assert abs(z) < 5.33
    assert abs(float((values[:, 0] * values[:, 1]).mean())) * math.sqrt(len(values)) < 5.33


def test_noise_of_another_shape_does_not_disturb():
    """Draws of two shapes (matrix noise beside a corrector's) keep the promise too."""

    def mixed(seeds):
        stream = sd.PerSample(seeds).open(torch.zeros(len(seeds), 3))
        wide = torch.Size((len(seeds), 5))
        return [stream.normal(), stream.normal(wide), stream.increment(0.5, 0.25, wide), stream.normal()]

    for one, many in zip(mixed([8]), mixed([7, 8, 9]), strict=True):
        assert torch.equal(one[0], many[1])


# ---- whole samples ----------------------------------------------------------------------------------------------


def smooth_score(x, t):
    """exp, tanh and arithmetic: operations that give the same bits in every batch."""
    return -x + 0.5 * torch.tanh(x) * torch.exp(-x * x)


def noisy_square(x, t):
    return 1 + 0.2 * torch.tanh(x)


class Multiplicative(sd.SDE):
    def f(self, x, t):
        return -x * t

    def g(self, x, t):
        return noisy_square(x, t)


SOLVES = {
    "euler": (lambda: sd.VP().reverse(smooth_score), sd.EulerMaruyama()),
    "reverse-diffusion": (lambda: sd.VP().reverse(smooth_score, 0.5), sd.ReverseDiffusion()),
    "ancestral": (lambda: sd.VP().reverse(sd.FunctionScore(smooth_score, sd.VP())), sd.Ancestral()),
    "corrected": (
        lambda: sd.VE(0.1, 5).reverse(smooth_score),
        sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(0.2, steps=2)),
    ),
    "heun": (lambda: sd.VP().probability_flow(smooth_score), sd.Heun()),
    "general": (lambda: Multiplicative().reverse(smooth_score), sd.EulerMaruyama()),
    "forward": (lambda: sd.OU(), sd.ExactTransition()),
}


@pytest.mark.parametrize("event", [(), (2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("name", SOLVES)
def test_a_sample_is_its_own(name, event):
    """Solved alone, in a batch, or by batches: the same bits."""
    process, solver = SOLVES[name][0](), SOLVES[name][1]
    n = 33
    x = torch.randn(n, *event, generator=torch.Generator().manual_seed(1))
    seeds = list(range(50, 50 + n))
    together = sd.solve(process, x, solver=solver, steps=12, noise=sd.PerSample(seeds)).x
    for i in (0, 15, 32):
        alone = sd.solve(process, x[i : i + 1], solver=solver, steps=12, noise=sd.PerSample([seeds[i]])).x
        assert torch.equal(alone[0], together[i])
    if process.direction < 1:
        by_seven = sd.sample(process, n, x=x, solver=solver, steps=12, noise=sd.PerSample(seeds), batch_size=7).x
        assert torch.equal(by_seven, together)


def test_sampling_by_batches_starts_the_same():
    """Starting states from the prior belong to the seeds too."""
    process = sd.VP().reverse(smooth_score)
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]
    arguments = {"solver": sd.EulerMaruyama(), "steps": 9, "event_shape": (2,)}
    together = sd.sample(process, 8, noise=sd.PerSample(seeds), **arguments).x
    assert torch.equal(together[1], together[3]) and not torch.equal(together[0], together[1])
    by_three = sd.sample(process, 8, noise=sd.PerSample(torch.tensor(seeds)), batch_size=3, **arguments).x
    assert torch.equal(by_three, together)
    assert torch.equal(sd.sample(process, 1, noise=sd.PerSample([9]), **arguments).x[0], together[5])


# ---- one generator for the batch ------------------------------------------------------------------------------


def run(**kwargs):
    x = torch.zeros(4, 2)
    return sd.solve(sd.OU(), x, solver=sd.EulerMaruyama(), t1=1.0, steps=6, **kwargs).x


def test_a_seed_repeats():
    assert torch.equal(run(seed=1), run(seed=1)) and not torch.equal(run(seed=1), run(seed=2))
    torch.randn(7)
    assert torch.equal(run(seed=1), run(seed=1))
    assert torch.equal(run(seed=1), run(generator=torch.Generator().manual_seed(1)))
    assert torch.equal(run(seed=1), run(noise=Seeded(torch.Generator().manual_seed(1))))


def test_a_generator_goes_on():
    generator = torch.Generator().manual_seed(1)
    first, second = run(generator=generator), run(generator=generator)
    assert not torch.equal(first, second)
    generator.manual_seed(1)
    assert torch.equal(first, run(generator=generator)) and torch.equal(second, run(generator=generator))


def test_the_global_seed_governs():
    """Without seed, generator or noise, torch.manual_seed decides, and successive solves differ."""
    torch.manual_seed(7)
    first, second = run(), run()
    torch.manual_seed(7)
    assert torch.equal(first, run()) and torch.equal(second, run()) and not torch.equal(first, second)


def test_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    want = torch.randn(3)
    torch.manual_seed(7)
    run(seed=5), run(noise=sd.PerSample([1, 2, 3, 4]))
    assert torch.equal(torch.randn(3), want)


def test_batches_of_one_seed_differ():
    """sample(batch_size=) goes on with one generator; the same for integrators that draw their own numbers."""
    process = sd.VP().reverse(smooth_score)
    for solver in (sd.EulerMaruyama(), sd.TorchSDE()):
        x = torch.zeros(6, 2)
        out = sd.sample(process, 6, x=x, solver=solver, steps=5, seed=0, batch_size=2)
        assert len({tuple(row.tolist()) for row in out.x}) == 6
        again = sd.sample(process, 6, x=x, solver=solver, steps=5, seed=0, batch_size=2)
        assert torch.equal(out.x, again.x)


def test_starting_states_and_steps_are_independent(assert_law):
    """A seed's starting states and its increments: 200,000 pairs, a correlation of 0.017 is seen."""
    noise = as_noise(torch.device("cpu"), 3, None, None)
    start = noise.initial((200_000,), torch.device("cpu"), torch.float32)
    step = noise.open(start).increment(1.0, 0.75)
    assert_law(start, 0.0, 1.0)
    assert_law(step, 0.0, 0.25)
    assert abs(float((start * step).mean()) / 0.5) * math.sqrt(200_000) < 5.33


@pytest.mark.parametrize("shape", [(16,), (8, 2), (4, 4, 2), (5, 3), (48,), (3000, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_stream_is_its_generator_s_numbers(shape, dtype):
    """However many steps are drawn at once, they are the numbers of one torch.randn a step."""
    stream = Seeded(torch.Generator().manual_seed(8)).open(torch.zeros(shape, dtype=dtype))
    plain = torch.Generator().manual_seed(8)
    for _ in range(7):
        assert torch.equal(stream.normal(), torch.randn(shape, generator=plain, dtype=dtype))


def test_increments_scale_with_the_root_of_the_step():
    x = torch.zeros(3, 2)
    for make in (lambda: as_noise(x.device, 0, None, None).open(x), lambda: sd.PerSample([1, 2, 3]).open(x)):
        z = make().unit(0.9, 0.4)
        torch.testing.assert_close(make().increment(0.9, 0.4), math.sqrt(0.5) * z)
        torch.testing.assert_close(make().increment(0.4, 0.9), math.sqrt(0.5) * z)
        assert torch.equal(make().normal(), z)


def test_a_rewound_recipe_repeats():
    """What a failed solve is replayed with."""
    generator = torch.Generator().manual_seed(4)
    noise, x = Seeded(generator), torch.zeros(5)
    noise.open(x).normal()
    twin = noise.frozen()
    want = [noise.open(x).normal() for _ in range(1)]
    assert torch.equal(twin.open(x).normal(), want[0])


def test_half_precision_noise_is_rounded_float32():
    """bf16 states get rounded normals, not normals drawn in bf16 (whose tails stop early)."""
    seeds = list(range(8))
    wide, narrow = drawn(seeds, (3,), 4), drawn(seeds, (3,), 4, torch.bfloat16)
    assert torch.equal(wide.to(torch.bfloat16), narrow)


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sd.PerSample([]), ValueError, "Give at least one seed"),
        (lambda: sd.PerSample([1.5]), TypeError, r"A seed must be an integer, got 1.5"),
        (lambda: sd.PerSample([True]), TypeError, "A seed must be an integer, got True"),
        (lambda: sd.PerSample([-1]), ValueError, r"Seed -1 is outside \[0, 2\*\*63\)"),
        (lambda: sd.PerSample([2**63]), ValueError, r"Seed 9223372036854775808 is outside \[0, 2\*\*63\)"),
        (lambda: run(noise=sd.PerSample([1])), ValueError, "PerSample has 1 seeds for a batch of 4: give one seed per"),
        (lambda: run(seed=1, generator=torch.Generator()), ValueError, "at most one of seed, generator and noise"),
        (lambda: run(seed="1"), TypeError, "seed must be an integer, got '1'"),
        (lambda: run(seed=True), TypeError, "seed must be an integer, got True"),
        (lambda: run(generator=3), TypeError, r"generator must be a torch.Generator, got int: a number is seed="),
        (lambda: run(noise=3), TypeError, r"noise must be a Noise such as PerSample\(seeds\), got int"),
        (lambda: run(noise=sd.PerSample), TypeError, r"noise must be a Noise such as PerSample\(seeds\), got"),
    ],
)
def test_bad_recipes(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("solver", [sd.Scipy(), sd.TorchSDE()], ids=["Scipy", "TorchSDE"])
def test_integrators_refuse_per_sample_noise(solver):
    flow = sd.VP().probability_flow(smooth_score)
    steps = {"steps": 5} if solver.fixed else {}
    with pytest.raises(ValueError, match=rf"{type(solver).__name__} couples the samples of a batch, so PerSample"):
        sd.solve(flow, torch.zeros(3, 2), solver=solver, noise=sd.PerSample([1, 2, 3]), **steps)


@pytest.mark.parametrize("rows", [16, 64, 7])
def test_a_seed_means_the_numbers_of_torch_randn_call_by_call(rows):
    """Small states are drawn for several steps at once; nobody can tell from the numbers."""
    x = torch.zeros(rows, 2)
    stream = Seeded(torch.Generator().manual_seed(5), alone=True).open(x)
    generator = torch.Generator().manual_seed(5)
    for _ in range(300):
        assert torch.equal(stream.unit(0.0, 1.0), torch.randn(rows, 2, generator=generator))
