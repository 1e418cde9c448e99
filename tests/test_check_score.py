"""check_score: it accepts what is exact, rejects what is not, and its numbers are the error."""

from __future__ import annotations

import json
import math

import matplotlib.figure
import pytest
import torch

import sdediff as sd
from sdediff.verify import report as report_of
from sdediff.verify.stein import Perturbed, Terms, Waves, terms

D = sd.densities
VP = sd.VP()
RING = D.ring(8)
EXACT = sd.ExactScore(VP, RING)
PROCESSES = {
    "OU": sd.OU(),
    "SubVP": sd.SubVP(),
    "CustomVP": sd.CustomVP(lambda t: 1 + 5 * t**2),
    "CosineVP": sd.CosineVP(),
    "VE": sd.VE(),
    "EDM": sd.EDM(),
    "RectifiedFlow": sd.RectifiedFlow(),
}
DENSITIES = {
    "ring": RING,
    "full": D.anisotropic(3, weights=[1.0, 2.0, 3.0]),
    "line": D.bimodal(),
    "image": D.gaussian(torch.zeros(1, 2, 2), 0.7),
    "boxes": D.Checkerboard(),
    "atoms": D.Empirical(RING.sample(50, seed=0).double()),
}
HELD_OUT = RING.sample(3000, seed=99)


def failed(report) -> list[str]:
    return [row.what for row in report.rows if not row.passed]


def check(score, sde=VP, density=RING, n=1000, **options):
    return sd.verify.check_score(score, sde, density, n=n, **options)


# ---- what is exact passes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_exact_scores_pass(process):
    sde = PROCESSES[process]
    for name, density in DENSITIES.items():
        report = check(sd.ExactScore(sde, density), sde, density, n=500)
        assert report.passed, (name, failed(report))
        assert max(e.relative for e in report.errors) < 1e-8
        # The mean square of the noise prediction, 1 - loss, is the squared score in units of 1/sigma.
        assert all(-0.2 < e.least_loss < 1.3 for e in report.errors), [e.least_loss for e in report.errors]


def test_exact_scores_pass_on_held_out_data():
    report = sd.verify.check_score(EXACT, VP, data=HELD_OUT, n=1000)
    assert report.passed, failed(report)
    assert all(e.low <= e.high for e in report.errors)


def test_a_moved_score_is_a_score_of_the_other_process():
    edm = sd.EDM(t_max=50.0, t_min=0.02)
    moved = sd.FunctionScore(lambda x, t: EXACT(x, t), VP).to(edm)
    assert check(moved, edm).passed


def test_a_law_of_ones_own():
    """Brownian motion with drift 1 and noise 2 from a point, not linear by its class."""

    class Moving(sd.verify.Law):
        event_shape = (1,)

        def log_prob(self, x, t):
            t = t.reshape(-1) if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64)
            return -0.5 * (x[:, 0] - t) ** 2 / (4 * t) - 0.5 * torch.log(8 * math.pi * t)

        def sample(self, n, t, generator):
            return t + 2 * t**0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)

    class Drifting(sd.SDE):
        def f(self, x, t):
            return torch.ones_like(x)

        def g(self, x, t):
            return 2.0

    good = check(lambda x, t: -(x - t) / (4 * t), Drifting(), Moving())
    assert good.passed and any("one prediction" in text for text in good.unchecked)
    assert isinstance(good.plot_errors(), matplotlib.figure.Figure)
    bad = check(lambda x, t: -(x - t) / (4.4 * t), Drifting(), Moving())
    assert len(failed(bad)) >= 7 and bad.errors[3].relative == pytest.approx(1 - 4 / 4.4, rel=1e-6)


# ---- mutants -------------------------------------------------------------------------------------------------------

SUB = sd.SubVP()
SUB_EXACT = sd.ExactScore(SUB, RING)
MUTANTS = {
    "x 1.1": lambda x, t: 1.1 * EXACT(x, t),
    "minus": lambda x, t: -EXACT(x, t),
    "zero": lambda x, t: torch.zeros_like(x),
    "stale": lambda x, t: EXACT(x, (t + 0.005).clamp(max=1.0)),
    "dropped mode": sd.ExactScore(VP, D.Mixture(RING.means[:7], std=0.1)),
    "one weight x 1.3": sd.ExactScore(VP, D.ring(8, weights=[1.3, 1, 1, 1, 1, 1, 1, 1])),
    "p_0 at all t": lambda x, t: RING.score(x),
    "coupled through the batch": lambda x, t: EXACT(x, t) - 0.05 * x.mean(0, keepdim=True),
    "the first time for all": lambda x, t: EXACT(x, t.reshape(-1)[0]),
    "turning": lambda x, t: EXACT(x, t) + 0.1 * x.flip(1) * torch.tensor([1.0, -1.0]),
    "NaN far out": lambda x, t: EXACT(x, t) / (x.abs() < 20).to(x) * (x.abs() < 20).to(x),
}
BY_DATA = {"x 1.1", "minus", "zero", "stale", "dropped mode", "p_0 at all t", "coupled through the batch"}
"""What is seen without the law as well, at this number of rows."""


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(name):
    report = check(MUTANTS[name])
    assert not report.passed
    seen = {
        "coupled through the batch": "a sample's score is its own",
        "the first time for all": "a sample's score is its own",
        "turning": "the Jacobian is symmetric",
        "NaN far out": "finite at both ends",
    }.get(name, "error")
    assert any(what.startswith(seen) for what in failed(report)), failed(report)


@pytest.mark.parametrize("name", sorted(BY_DATA))
def test_mutants_are_rejected_by_held_out_data_alone(name):
    report = sd.verify.check_score(MUTANTS[name], VP, data=HELD_OUT, n=1500)
    if name != "coupled through the batch":
        assert any(what.startswith(("Stein", "loss gap")) for what in failed(report)), failed(report)
    assert not report.passed


def test_another_sigma_is_rejected():
    """subVP has sigma = 1 - abar; with the sqrt(1 - abar) of VP the score is off by that ratio."""
    wrong = lambda x, t: SUB_EXACT(x, t) * SUB.sigma(t).to(x) / torch.sqrt(1 - SUB.alpha(t) ** 2).to(x)  # noqa: E731
    report = check(wrong, SUB)
    for e in report.errors[:4]:
        ratio = float(SUB.sigma(e.t)) / math.sqrt(1 - float(SUB.alpha(e.t)) ** 2)
        assert e.relative == pytest.approx(1 - ratio, rel=1e-6)
    assert not sd.verify.check_score(wrong, SUB, data=HELD_OUT, n=1500).passed


def test_views_that_disagree_are_rejected():
    class Torn(sd.FunctionScore):
        def noise(self, x, t, cond=None):
            return 1.001 * super().noise(x, t, cond)

    assert failed(check(Torn(lambda x, t: EXACT(x, t), VP))) == ["score, noise and data are one prediction"]
    other = sd.FunctionScore(lambda x, t: EXACT(x, t), SUB)  # the score of VP, told in the sigma of subVP
    assert "score, noise and data are one prediction" in failed(check(other))


def test_a_log_density_that_disagrees_is_rejected():
    class Torn(sd.ExactScore):
        def log_prob(self, x, t):
            return 1.01 * super().log_prob(x, t)

    assert failed(check(Torn(VP, RING))) == ["score = ∇ log_prob"]


def test_a_score_that_cannot_be_differentiated_is_still_checked():
    report = check(lambda x, t: EXACT(x.detach(), t).detach())
    assert report.passed and any("cannot be differentiated" in text for text in report.unchecked)


# ---- the numbers ---------------------------------------------------------------------------------------------------


def test_the_error_is_the_error():
    """A shift of the noise prediction by c: its rms error is c, the loss grows by c², data are off by sigma c/alpha."""
    c = 0.2
    report = check(lambda x, t: EXACT(x, t) - c / VP.sigma(t).to(x), n=4000)
    for e in report.errors:
        assert e.error == pytest.approx(c, rel=1e-9) and e.low == pytest.approx(c) and e.high == pytest.approx(c)
        assert e.loss - e.least_loss == pytest.approx(c * c, rel=1e-9)
        assert e.data_error == pytest.approx(c * float(VP.sigma(e.t) / VP.alpha(e.t)), rel=1e-9)
        assert e.log_snr == pytest.approx(float(VP.log_snr(e.t)))
    generator = torch.Generator().manual_seed(5)
    t = report.errors[2].t
    x0 = RING.sample(200_000, generator=generator).double()
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    loss = (EXACT.noise(VP.perturb(x0, t, noise), t) - noise).square().mean(1)
    se = float(loss.std()) * math.sqrt(1 / 200_000 + 1 / 4000)
    assert abs(float(loss.mean()) - report.errors[2].least_loss) < 5 * se


def test_the_interval_holds_the_error():
    """An error that varies over space, measured with a few samples and with many."""
    wobbly = lambda x, t: EXACT(x, t) * (1 + 0.3 * torch.sin(3 * x))  # noqa: E731
    truth = check(wobbly, n=100_000, seed=1000, times=[0.1])
    inside = 0
    for seed in range(40):
        entry = check(wobbly, n=400, seed=seed, times=[0.1]).errors[0]
        inside += entry.low <= truth.errors[0].error <= entry.high
    assert 32 <= inside <= 40  # of 40 at 95 %: 32 or fewer has probability 1e-3


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    net = sd.NoisePrediction(VP, sd.networks.MLP(2, width=48, depth=2))
    return sd.training.fit(net, RING.sample(8000, seed=0), steps=400, seed=0, progress=False).score


def test_a_learned_score_with_and_without_the_law(learned):
    """The law gives the error by t; held-out data enclose it (two of seven bounds of 97.5 % may miss)."""
    known = check(learned, n=4000, tolerance=0.05)
    by_data = sd.verify.check_score(learned, VP, data=HELD_OUT, n=2000, tolerance=0.05)
    assert not known.passed and not by_data.passed
    inside = sum(
        a.low <= e.error * 1.1 and e.error * 0.9 <= a.high for e, a in zip(known.errors, by_data.errors, strict=True)
    )
    assert inside >= 5, [(e.error, a.low, a.high) for e, a in zip(known.errors, by_data.errors, strict=True)]
    worst = max(by_data.errors, key=lambda e: e.low)
    assert worst.low > 0.1  # and it does see that something is wrong
    rows = {row.what: row for row in known.rows}
    assert rows["score, noise and data are one prediction"].passed and rows["a sample's score is its own"].passed
    assert not rows["the Jacobian is symmetric"].passed  # a network is no gradient
    tolerant = check(learned, n=1000, tolerance=0.999, times=[0.6, 0.9])
    assert tolerant.passed  # what one can live with is for the user to say


def test_figures_and_json_hold_the_errors(learned):
    known, by_data = check(learned, n=500), sd.verify.check_score(learned, VP, data=HELD_OUT, n=600)
    for report, names in ((known, ("error", "relative")), (by_data, ("low",))):
        at = [e.log_snr for e in report.errors]
        errors, losses = report.plot_errors().axes
        for ax, drawn in ((errors, names), (losses, ("loss", "least_loss"))):
            assert len(ax.lines) == len(drawn)
            for line, name in zip(ax.lines, drawn, strict=True):
                assert list(line.get_xdata()) == at
                assert list(line.get_ydata()) == [max(getattr(e, name), 1e-17) for e in report.errors]
        band = {tuple(corner) for corner in errors.collections[0].get_paths()[0].vertices.tolist()}
        assert band == {
            (x, max(side, 1e-17)) for x, e in zip(at, report.errors, strict=True) for side in (e.low, e.high)
        }
        content = json.loads(report.to_json())
        assert content["title"] == report.title and content["passed"] is report.passed is False
        for told, held in ((content["errors"], report.errors), (content["rows"], report.rows)):
            assert [list(entry.values()) for entry in told] == [
                [None if value != value else value for value in vars(entry).values()] for entry in held
            ]
    assert content["errors"][0]["error"] is None and content["errors"][0]["t"] == VP.t_min  # unknown, by data
    bars = known.plot().axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([max(-16, min(16, row.excess)) for row in known.rows])


def test_numbers_that_are_not_finite_are_null_throughout():
    row, nan = report_of.exact_row("broken", math.inf, 1e-9), math.nan
    told = sd.verify.ScoreReport("t", (row,), errors=(sd.verify.ErrorAt(0.5, nan, 0.1, -math.inf, math.inf),)).to_json()
    content = json.loads(told)
    assert content["rows"][0]["statistic"] is None
    assert content["errors"][0] | {"t": 0.5, "error": 0.1} == dict.fromkeys(content["errors"][0]) | {
        "t": 0.5,
        "error": 0.1,
    }
    assert "NaN" not in told and "Infinity" not in told and '"inf"' not in told and '"nan"' not in told


def test_stein_bounds_the_error_from_below():
    """For a score wrong by a known field, no field shows more than the error, and the fitted one shows nearly all of it."""
    generator = torch.Generator().manual_seed(0)
    t, n = 0.3, 40_000
    x0 = RING.sample(2 * n, generator=generator).double()
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x = VP.perturb(x0, t, noise)
    wrong = 0.3 * torch.stack([torch.sin(1.5 * x[:, 0]), torch.zeros_like(x[:, 0])], 1)
    s = EXACT(x, t) + wrong
    size = float(s.square().sum(1).mean().sqrt())
    relative = float(wrong.square().sum(1).mean().sqrt()) / size
    halves = [Perturbed(x[k::2], s[k::2], noise[k::2] / float(VP.sigma(t))) for k in (0, 1)]
    waves = Waves(halves[0], generator)
    first, second = (terms(at, waves) for at in halves)
    assert first.test(0.0).statistic < relative
    fitted = second.along(first.resembling())
    assert 0.6 * relative < abs(fitted.statistic) < relative + 3 * fitted.floor


def test_fields_and_their_divergences():
    """By automatic differentiation, field by field."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    waves = Waves(Perturbed(x.detach(), -x.detach()), generator)
    fields, divergence = waves(x)
    assert fields.shape == (5, len(waves), 3)
    for j in range(len(waves)):
        total = 0.0
        for i in range(3):
            (slope,) = torch.autograd.grad(fields[:, j, i].sum(), x, retain_graph=True, allow_unused=True)
            total = total + (0.0 if slope is None else slope[:, i])
        assert torch.allclose(torch.as_tensor(total, dtype=torch.float64).expand(5), divergence[:, j])


def test_copies_of_a_row_are_not_counted_as_independent():
    values = torch.randn(100, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = Perturbed(torch.zeros(400, 1), torch.ones(400, 1), copies=4)
    assert torch.allclose(at.independent(values.repeat_interleave(4, 0)), values)
    t = Terms(values, torch.ones(1, 1, dtype=torch.float64), 1.0)
    assert t.test(0.0).floor == pytest.approx(float(values.std()) / 10)
    assert t.test(10.0).p == 1.0


def test_the_budget_chooses_n():
    small, large = (sd.verify.check_score(EXACT, VP, RING, times=[0.1], budget=b) for b in (0.02, 0.6))
    assert small.rows[1].detectable > large.rows[1].detectable
    counts = [int(report.notes[0].split(" samples")[0].split()[-1].replace(",", "")) for report in (small, large)]
    assert 1000 <= counts[0] < counts[1]


def test_an_edge_that_no_sample_has_seen_is_no_evidence():
    """A board of boxes under next to no noise: its score is 0 but for a layer that 500 samples miss."""
    score = sd.ExactScore(sd.VE(), D.Checkerboard())
    x = score.sample(500, 1e-5, seed=0)
    assert float((score.noise(x, 1e-5).norm(dim=1) > 0.1).double().mean()) < 0.01
    for seed in range(5):
        assert check(score, sd.VE(), D.Checkerboard(), n=500, times=[1e-5, 1e-3], seed=seed).passed


def test_what_is_refused():
    for options, message in (
        ({}, "either density"),
        ({"density": RING, "data": HELD_OUT}, "either density"),
        ({"density": D.Banana()}, r"no closed form under VP.*data="),
        ({"data": HELD_OUT[:10]}, "10 rows"),
        ({"data": HELD_OUT.clone().fill_(math.nan)}, "NaN"),
        ({"density": RING, "tolerance": 0.0}, "tolerance"),
        ({"density": RING, "times": [2.0]}, "outside"),
        ({"density": RING, "budget": -1.0}, "budget"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            sd.verify.check_score(EXACT, VP, **options)
    with pytest.raises(TypeError, match="LinearSDE"):
        sd.verify.check_score(lambda x, t: -x, sd.Overdamped(RING), data=HELD_OUT)


@pytest.mark.soak
def test_false_alarms():
    """200 repetitions of the true case, each at level 1e-4: one alarm has probability 0.02."""
    alarms = [seed for seed in range(100) if not check(EXACT, n=400, seed=seed).passed]
    alarms += [s for s in range(100) if not sd.verify.check_score(EXACT, VP, data=HELD_OUT, n=400, seed=s).passed]
    assert not alarms


@pytest.mark.soak
def test_a_weight_is_seen_by_data_alone_where_there_are_enough():
    """The relative error is 0.03 at most: 3,000 rows say that they could not see it, 60,000 see it."""
    few = sd.verify.check_score(MUTANTS["one weight x 1.3"], VP, data=HELD_OUT, n=1500)
    assert few.passed
    many = sd.verify.check_score(MUTANTS["one weight x 1.3"], VP, data=RING.sample(60_000, seed=5), n=20_000)
    assert not many.passed


# ---- processes that are linear by their f and g alone ------------------------------------------------------------------------


class Plain(sd.SDE):
    """OU in three lines."""

    t_max = 5.0

    def f(self, x, t):
        return -0.5 * x

    def g(self, x, t):
        return 1.0


class Shifted(Plain):
    def f(self, x, t):
        return 3 - x


AFFINE = {
    "CLD": (sd.CLD, lambda: sd.densities.gaussian((1.0, -2.0), 0.5)),
    "correlated": (lambda: sd.CorrelatedOU(torch.tensor([[1.0, 0.0], [0.6, 0.8]])), lambda: sd.densities.ring(8)),
    "blurring": (lambda: sd.Blurring((2,)), lambda: sd.densities.ring(8)),
    "offset": (Shifted, lambda: sd.densities.ring(8)),
}


def test_three_lines_are_a_linear_process_for_every_check():
    """What needs alpha and sigma derives them from f and g: the same numbers as from a process that is linear by its type."""
    plain, density = Plain(), sd.densities.ring(8)
    exact, ou = sd.ExactScore(plain, density), sd.OU(t_max=5.0, t_min=0.0)
    found = sd.verify.check_score(exact, plain, density, times=[0.3, 2.0], n=1_000)
    same = sd.verify.check_score(sd.ExactScore(ou, density), ou, density, times=[0.3, 2.0], n=1_000)
    assert found.passed and found.errors[0].log_snr == pytest.approx(same.errors[0].log_snr, rel=1e-8)
    wrong = sd.verify.check_score(lambda x, t: 1.1 * exact(x, t), plain, density, n=1_000)
    assert not wrong.passed and wrong.errors[3].relative == pytest.approx(0.1, rel=1e-4)
    held = sd.verify.check_score(exact, plain, data=density.sample(600, seed=0), n=1_000, tolerance=0.1)
    assert held.passed
    there = sd.verify.exchangeability(plain, density, n=1_000)
    steep = sd.verify.exchangeability(plain, density, n=1_000, score=lambda x, t: 1.5 * exact(x, t))
    assert there.passed and not steep.passed
    found = sd.verify.error_budget(exact, plain, density, sd.EulerMaruyama(), steps=10, n=500, repeats=2)
    assert found.parts[1].alone.value > 0.001


@pytest.mark.parametrize("name", AFFINE)
def test_scores_of_coupled_processes(name):
    """Against the law, in terms of the score itself; what needs one alpha and one sigma says so."""
    sde, density = AFFINE[name][0](), AFFINE[name][1]()
    exact = sd.ExactScore(sde, density)
    assert sd.verify.check_score(exact, sde, density, n=1_000).passed
    wrong = sd.verify.check_score(lambda x, t: 1.1 * exact(x, t), sde, density, n=1_000)
    assert all(abs(at.relative - 0.1) < 1e-6 for at in wrong.errors) and not wrong.passed
    for call in (
        lambda: sd.verify.check_score(exact, sde, data=density.sample(600, seed=0)),
        lambda: sd.verify.error_budget(exact, sde, density, sd.EulerMaruyama(), steps=10),
        lambda: sd.verify.exchangeability(sde, density),
    ):
        with pytest.raises(TypeError, match=rf"{type(sde).__name__}.*(verify\.Law|duality)"):
            call()
