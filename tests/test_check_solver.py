"""check_solver: every exported solver passes, every broken one does not, and a user's own gets a verdict."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import sdediff as sd
from sdediff.sde import Semilinear
from sdediff.solvers import Method, Orders
from sdediff.solvers.exponential import ExponentialMultistep, Polynomial
from sdediff.verify.affine_law import affine_map
from sdediff.verify.references import END, MEAN, STD, ClosedForms, GaussianData, Oscillator, ring_flow
from sdediff.verify.solver_orders import flow_order, law_row, order_of

F64 = torch.float64
TABLEAU = sd.SRIW1().tableau
SOLVERS = {
    **{
        kind.__name__: kind()
        for kind in (
            sd.EulerMaruyama, sd.Milstein, sd.StochasticHeun, sd.SRA1, sd.SRIW1, sd.SRI2, sd.Weak2, sd.ExactTransition,
            sd.ReverseDiffusion, sd.Ancestral, sd.Midpoint, sd.Heun, sd.RK4, sd.EDMHeun, sd.DDIM, sd.DPMSolver1,
            sd.DPMSolver2, sd.DPMSolver3, sd.DPMSolverPP2S, sd.DPMSolverPP2M, sd.DPMSolverPP3M, sd.DEIS, sd.IPNDM,
            sd.UniPCSolver, sd.SASolver, sd.ExponentialAdams, sd.SEEDS2, sd.SEEDS3, sd.DormandPrince, sd.Tsitouras,
            sd.BogackiShampine, sd.AdaptiveHeun, sd.BAOAB, sd.Scipy, sd.TorchDiffEq, sd.TorchSDE,
        )
    },
    "RungeKutta": sd.RungeKutta([[], [3 / 4]], [1 / 3, 2 / 3], order=2),
    "SRK": sd.SRK(TABLEAU, sd.SRIW1().orders),
    "ExponentialMultistep": sd.solvers.ExponentialMultistep(2),
    "ExponentialSingleStep": sd.solvers.ExponentialSingleStep([(0.5, [0])], [0, 1], 2),
    "PredictorCorrector": sd.PredictorCorrector(sd.EulerMaruyama()),
    "Restart": sd.Restart(sd.Heun(), low=0.1, high=0.3, inner=sd.grids.LogSNR(8)),
    "Checkpointed": sd.Checkpointed(sd.Heun()),
    "Ancestral, widest": sd.Ancestral(widest=True),
    "EDMHeun, churn": sd.EDMHeun(10.0),
    "DDIM, own eta": sd.DDIM(0.5),
}  # fmt: skip
IN_EVERY_RUN = {
    "EulerMaruyama", "ExactTransition", "Ancestral", "Heun", "EDMHeun, churn", "DDIM, own eta", "DPMSolverPP2M",
    "ExponentialAdams", "PredictorCorrector", "Restart", "DormandPrince", "BAOAB", "Scipy",
}  # fmt: skip


def check(solver, n=4000, **options):
    return sd.verify.check_solver(solver, n=n, **options)


def failed(report) -> list[str]:
    return [row.what for row in report.rows if not row.passed]


def some_in_soak(names, now):
    """All of them, those not named left to the long run."""
    return [pytest.param(name, marks=() if name in now else pytest.mark.soak) for name in names]


@pytest.mark.parametrize("name", some_in_soak(SOLVERS, IN_EVERY_RUN))
def test_solvers_pass(name):
    report = check(SOLVERS[name])
    assert report.passed, str(report)


def test_no_exported_solver_is_left_out():
    exported = {name for name in sd.__all__ if inspect.isclass(kind := getattr(sd, name)) and issubclass(kind, Method)}
    abstract = {"Solver"}
    coupled = {name for name in exported if name.startswith("Coupled")}  # matrix processes: tested with these
    assert exported - abstract - coupled <= {name.split(",")[0] for name in SOLVERS}


# ---- a user's own --------------------------------------------------------------------------------------------------


class Own(sd.Solver):
    """Euler-Maruyama as a user would write it, to be broken in one way at a time."""

    orders = Orders(strong=0.5, strong_additive=1.0, weak=1.0, ode=1.0)

    def step(self, process, x, s, t, noise):
        g = process.diffusion(x, s)
        return x + process.drift(x, s) * (t - s) + g @ noise.increment(s, t, g.noise_shape(x))


class AdamsBashforth(sd.Solver):
    requires, instead = sd.ODE, "solve sde.probability_flow(score)"
    orders = Orders(ode=2.0)
    half = 0.5

    def prepare(self, process, grid, noise):
        drifts, h, slopes = process.drifts(grid[:-1]), grid.diff().tolist(), []

        def advance(k, x):
            slopes.append(drifts[k](x))
            w = self.half * h[k] / h[k - 1] if k else 0.0
            return x + h[k] * ((1 + w) * slopes[-1] - w * slopes[-2 if k else -1])

        return advance


class ImprovedEuler(sd.Solver):
    """Claims nothing."""

    def step(self, process, x, s, t, noise):
        h, g = t - s, process.diffusion(x, s)
        dw = g @ noise.increment(s, t, g.noise_shape(x))
        first = process.drift(x, s)
        return x + 0.5 * h * (first + process.drift(x + h * first + dw, t)) + dw


@pytest.mark.parametrize("solver", [AdamsBashforth(), ImprovedEuler()], ids=lambda s: type(s).__name__)
def test_solvers_of_ones_own_pass(solver):
    report = check(solver)
    assert report.passed, str(report)


def test_what_cannot_be_taken_is_said():
    report = check(AdamsBashforth())
    assert any("needs an ODE" in text for text in report.unchecked)
    assert {row.what.split(":")[0] for row in report.rows} >= {
        "order on a mixture's flow",
        "mirrored steps on a falling clock",
    }


# ---- mutants -------------------------------------------------------------------------------------------------------


def shifted(index):
    """Steps taken with the length of another step."""

    def prepare(self, process, grid, noise):
        nodes, h = grid.tolist(), grid.diff().tolist()

        def advance(k, x):
            g, dt = process.diffusion(x, nodes[k]), h[index(k, len(h))]
            dw = noise.unit(nodes[k], nodes[k + 1], g.noise_shape(x)) * abs(dt) ** 0.5
            return x + process.drift(x, nodes[k]) * dt + g @ dw

        return advance

    return prepare


def timed(drift, diffusion):
    """Drift and noise taken at other times than they should be."""

    def prepare(self, process, grid, noise):
        nodes = grid.tolist()

        def advance(k, x):
            s, t = nodes[k], nodes[k + 1]
            g = process.diffusion(x, nodes[diffusion(k)])
            return x + process.drift(x, nodes[drift(k)]) * (t - s) + g @ noise.increment(s, t, g.noise_shape(x))

        return advance

    return prepare


def broken(name, base=Own, **parts):
    return type(name, (base,), parts)()


def noisy(change):
    """Euler-Maruyama with another increment: change(increment, h, noise)."""

    def step(self, process, x, s, t, noise):
        g = process.diffusion(x, s)
        dw = change(noise.increment(s, t, g.noise_shape(x)), t - s, noise)
        return x + process.drift(x, s) * (t - s) + g @ dw

    return step


def reused(self, process, grid, noise):
    nodes, kept = grid.tolist(), []

    def advance(k, x):
        s, t = nodes[k], nodes[k + 1]
        g = process.diffusion(x, s)
        kept.append(noise.unit(s, t, g.noise_shape(x))) if not kept else None
        return x + process.drift(x, s) * (t - s) + g @ kept[0] * abs(t - s) ** 0.5

    return advance


def idle_at_the_end(self, process, grid, noise):
    good = sd.Solver.prepare(self, process, grid, noise)
    return lambda k, x: x if k == len(grid) - 2 else good(k, x)


class Spoiled(Polynomial):
    def weights(self, *args):
        weights = super().weights(*args)
        if weights.shape[1] == 2:
            weights[:, 1] *= 1.05
            weights[:, 0] -= 0.05 / 1.05 * weights[:, 1]
        return weights


class Loose(sd.DormandPrince):
    """Controls a thousandth of its error."""

    def open(self, samples, x, t, noise):
        attempts = super().open(samples, x, t, noise)
        plain = attempts.attempt
        attempts.attempt = lambda *a: (lambda new, error: (new, 1e-4 * error))(*plain(*a))
        return attempts


class Shy(sd.Heun):
    """Better than it says."""

    def __init__(self):
        super().__init__()
        self.orders = Orders(ode=1.0)


class Unrelaxed(sd.BAOAB):
    """BAOAB on a process with other friction."""

    def prepare(self, process, grid, noise):
        other = sd.Underdamped(process.position_score, 1.1 * process.friction, process.mass, at=0.0)
        return super().prepare(other, grid, noise)


class Uncounted(Own):
    requires = Semilinear

    def step(self, process, x, s, t, noise):
        process.score.predict(x, torch.tensor(s, dtype=F64), None)
        return super().step(process, x, s, t, noise)


class Backend(sd.solvers.Integrator):
    """Couples samples, and does not say so."""

    requires = sd.ODE

    def integrate(self, process, x, interval):
        stats = sd.Scipy("RK45", rtol=1e-4, atol=1e-4).integrate(process, x, interval)
        return stats


MUTANTS = {
    "√2 noise": (broken("Root", step=noisy(lambda dw, h, z: 2**0.5 * dw)), "law on Gaussian"),
    "1 % more noise": (broken("Percent", step=noisy(lambda dw, h, z: 1.01 * dw)), "law on Gaussian"),
    "h for √h": (broken("H", step=noisy(lambda dw, h, z: z.normal(dw.shape) * abs(h))), "law on Gaussian"),
    "one number for all samples": (broken("Shared", step=noisy(lambda dw, h, z: dw[:1].expand_as(dw))), "a sample depends"),
    "numbers from elsewhere": (
        broken("Elsewhere", step=noisy(lambda dw, h, z: torch.randn_like(dw) * abs(h) ** 0.5)), "the same seed",
    ),
    "noise used again": (broken("Reused", prepare=reused), "law on Gaussian"),
    "sign of h": (
        broken("Sign", step=lambda self, p, x, s, t, z: Own.step(self, p, x, s, t, z) - 2 * min(t - s, 0.0) * p.drift(x, s)),
        "mirrored steps",
    ),
    "drift of the step before": (broken("Stale", prepare=timed(lambda k: max(k - 1, 0), lambda k: k)), "looks inside"),
    "noise of the step before": (broken("StaleG", prepare=timed(lambda k: k, lambda k: max(k - 1, 0))), "looks inside"),
    "length of the step before": (broken("Shift", prepare=shifted(lambda k, n: k - 1)), "depends on no later node"),
    "the same on reversals alone": (
        broken("Semi", prepare=shifted(lambda k, n: max(k - 1, 0)), requires=Semilinear), "a tiny last step",
    ),
    "length of the next step": (broken("Ahead", prepare=shifted(lambda k, n: min(k + 1, n - 1))), "reaches every node"),
    "no last step": (broken("Idle", prepare=idle_at_the_end), "reaches every node"),
    "pulled to the batch's mean": (
        broken("Mean", step=lambda self, p, x, s, t, z: Own.step(self, p, x, s, t, z) + 0.01 * (t - s) * (x.mean(0) - x)),
        "a sample depends",
    ),
    "order 2 claimed": (broken("Proud", orders=Orders(weak=2.0, ode=2.0)), "order on a mixture's flow"),
    "weak order 2 claimed": (broken("Weak", orders=Orders(weak=2.0), requires=Semilinear), "law on Gaussian"),
    "strong order 1 claimed": (broken("Strong", orders=Orders(strong=1.0)), "strong order on closed forms"),
    "Heun's order understated": (Shy(), "order on a mixture's flow"),
    "multistep coefficient": (broken("Adams", AdamsBashforth, half=0.45), "order on a mixture's flow"),
    "exponential coefficient": (ExponentialMultistep(2, rule=Spoiled()), "order on a mixture's flow"),
    "evaluations not counted": (Uncounted(), "evaluations are counted"),
    "error not controlled": (Loose(), "error beside the tolerance"),
    "friction": (Unrelaxed(), "law of an oscillator"),
    "couples samples unsaid": (Backend(), "a sample depends"),
    "crash": (broken("Crash", step=lambda self, p, x, s, t, z: p.nothing), "law on Gaussian"),
}  # fmt: skip


REJECTED_IN_EVERY_RUN = {
    "√2 noise", "h for √h", "noise used again", "sign of h", "drift of the step before", "the same on reversals alone",
    "weak order 2 claimed", "evaluations not counted", "multistep coefficient", "Heun's order understated",
    "error not controlled", "friction", "couples samples unsaid", "crash",
}  # fmt: skip


@pytest.mark.parametrize("name", some_in_soak(MUTANTS, REJECTED_IN_EVERY_RUN))
def test_mutants_are_rejected(name):
    solver, seen_by = MUTANTS[name]
    report = check(solver, n=2000)
    assert any(what.startswith(seen_by) for what in failed(report)), str(report)


def test_a_crash_is_told_with_its_place():
    report = check(MUTANTS["crash"][0])
    assert "AttributeError" in str(report) and "test_check_solver.py" in str(report)


def test_samples_are_held_against_the_law_read_off():
    """What the read-off cannot see: real numbers of another law than the stream's own."""

    class Loud(sd.noise.Seeded):
        def open(self, x):
            stream = super().open(x)
            plain = stream.normal
            stream.normal = lambda shape=None: 1.1 * plain(shape)
            stream.unit = lambda s, t, shape=None: 1.1 * plain(shape)
            return stream

    class WithLoud(Own):
        def prepare(self, process, grid, noise):
            known = type(noise).__name__ in ("_OneByOneStream", "_PathStream", "KeyedStream")
            loud = noise if known else Loud(torch.Generator().manual_seed(0)).open(torch.zeros(2000, 3, dtype=F64))
            nodes = grid.tolist()
            return lambda k, x: self.step(process, x, nodes[k], nodes[k + 1], loud if len(x) == 2000 else noise)

    assert any(what.startswith("samples") and "variance" in what for what in failed(check(WithLoud(), n=2000)))


# ---- the references themselves -------------------------------------------------------------------------------------


def test_the_law_read_off_is_the_printed_recursion():
    """Euler-Maruyama on the reversal of Gaussian data: M <- aM + hcm, V <- a²V + g²h."""
    data = GaussianData()
    back, steps = data.sde.reverse(data.score), 25
    found = affine_map(back, sd.EulerMaruyama(), 3, t0=1.0, t1=END, steps=steps)
    assert found.gains.shape == (3 * steps, 3) and found.own == 0 and found.noisy
    m, v = data.law(1.0)
    mean, covariance = found.law(m, v.diag())
    for k in range(steps):
        t, h = 1.0 + (END - 1.0) * k / steps, (1.0 - END) / steps
        beta = 0.1 + 19.9 * t
        mt, vt = data.law(t)
        a = 1 + h * (beta / 2 - beta / vt)
        m, v = a * m + h * beta / vt * mt, a * a * v + beta * h
    assert torch.allclose(mean, m, rtol=1e-10) and torch.allclose(covariance, v.diag(), rtol=1e-10, atol=1e-12)


def test_the_area_under_a_path_is_no_noise_of_the_solver_s_own():
    data = GaussianData()
    back = data.sde.reverse(data.score)
    found = affine_map(back, sd.SRA1(), 3, t0=1.0, t1=END, steps=4)
    assert found.own == 0 and len(found.gains) == 2 * 4 * 3
    corrected = affine_map(back, sd.PredictorCorrector(sd.EulerMaruyama()), 3, t0=1.0, t1=END, steps=4)
    assert corrected.own == 4 and len(corrected.gains) == 2 * 4 * 3


def test_the_order_of_a_law():
    """From below, at the finest steps; more are taken where too few show it, and a floor is found out."""
    assert law_row("", lambda n: 1 / n, 1.0, 0.1).passed and not law_row("", lambda n: 1 / n, 2.0, 0.1).passed
    assert law_row("", lambda n: 1 / n**2, 1.0, 0.1).passed
    assert law_row("", lambda n: 1 / n**2 + 30 / n**3, 2.0, 0.1).passed
    assert not law_row("", lambda n: 1 / n + 0.01, 1.0, 0.1).passed
    assert law_row("", lambda n: 0.09, None, 0.1).passed and not law_row("", lambda n: 0.11, None, 0.1).passed
    assert (
        not law_row("", lambda n: math.nan, 1.0, 0.1).passed and not law_row("", lambda n: math.nan, None, 0.1).passed
    )
    assert law_row("", lambda n: 1e-12, 2.0, 0.1).passed


def test_the_law_of_the_data():
    data = GaussianData()
    for k in range(3):
        exact = sd.ExactScore(data.sde, sd.densities.Mixture([[float(MEAN[k])]], std=float(STD[k])))
        for t in (0.05, 0.4, 1.0):
            assert float(data.law(t)[0][k]) == pytest.approx(float(exact.law(t).means[0, 0]))
            assert float(data.law(t)[1][k]) == pytest.approx(float(exact.law(t).variances[0, 0]))
            x = torch.randn(5, 3, dtype=F64)
            assert torch.allclose(data.score(x, t)[:, k : k + 1], exact(x[:, k : k + 1], t))


def test_the_law_of_the_oscillator():
    """Its rates of change at t, by differences, are those of the moment equations."""
    well, t, h = Oscillator(), 0.7, 1e-5
    a = torch.tensor([[0.0, 1.0], [-1.0, -well.friction]], dtype=F64)
    noise = torch.tensor([[0.0, 0.0], [0.0, 2 * well.friction]], dtype=F64)
    (m, c), (m0, c0), (m1, c1) = well.law(t), well.law(t - h), well.law(t + h)
    assert torch.allclose((m1 - m0) / (2 * h), a @ m, atol=1e-8)
    assert torch.allclose((c1 - c0) / (2 * h), a @ c + c @ a.T + noise, atol=1e-8)


def test_closed_forms_solve_their_equation():
    """Itô's formula: ∂_w x = g(x), ∂_u x + ½ ∂_ww x = f(x), by differences in w and by the chain in u at u = 1."""
    process, w, h = ClosedForms(), torch.tensor([[0.3, -0.4, 0.2]], dtype=F64), 1e-4
    x, up, down = process.exact(w), process.exact(w + h), process.exact(w - h)
    one = torch.ones((), dtype=F64)
    assert torch.allclose((up - down) / (2 * h), process.noise_at(x, one), rtol=1e-6)
    curve = (up - 2 * x + down) / h**2
    rate_u = torch.stack([(process.a - 0.5 * process.b**2) * x[:, 0], 0 * x[:, 1], x[:, 2]], 1)
    assert torch.allclose(rate_u + 0.5 * curve, process.drift_at(x, one), rtol=1e-5)


def test_the_map_of_the_flow():
    """Against another method, extrapolated."""
    flow, x, exact = ring_flow()
    ends = [sd.solve(flow, x, solver=sd.RK4(), grid=sd.grids.LogSNR(n), t0=1.0, t1=END).x for n in (1000, 2000)]
    assert float((ends[1] + (ends[1] - ends[0]) / 15 - exact).norm(dim=1).median()) < 1e-11


def test_an_order_has_an_interval():
    """On errors of known order it holds the truth, and shrinks as the root of the paths; geometric means are robust."""
    generator = torch.Generator().manual_seed(0)
    size = 1 + torch.rand(3, 6400, generator=generator, dtype=F64)
    errors = size * torch.tensor([[2.0**-k] for k in range(3)], dtype=F64) ** 1.5
    order, half = order_of(errors, 1e-4)
    assert abs(order - 1.5) < half < 0.05 and 1.5 < order_of(errors[:, :1600], 1e-4)[1] / half < 2.7
    errors[0, 0] *= 1e5
    assert abs(order_of(errors, 1e-4, geometric=True)[0] - 1.5) < 0.05 < order_of(errors, 1e-4)[0] - 1.5


def test_the_order_of_a_flow_is_that_of_its_errors():
    row = flow_order(sd.RK4(), 1e-4)
    assert row.passed and "claimed 4" in row.what and row.floor < 0.05
    assert math.isclose(float(row.what.split(": ")[1].split(",")[0]), 4.0, abs_tol=0.05)


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"EulerMaruyama\(\)"):
        sd.verify.check_solver(sd.EulerMaruyama)
    with pytest.raises(TypeError, match="solver object"):
        sd.verify.check_solver("euler")
    with pytest.raises(ValueError, match="budget"):
        sd.verify.check_solver(sd.Heun(), budget=-1.0)
