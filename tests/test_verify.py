"""The checks check themselves: statistics of the right level, identities that hold, and mutants that they must reject."""

from __future__ import annotations

import json
import math

import matplotlib.figure
import pytest
import torch
from scipy import stats

import sdediff as sd
from sdediff.verify import halving, identity, laws, report, statistics
from sdediff.verify.operator import fokker_planck, residual
from sdediff.verify.worst import Worst

D = sd.densities
PROCESSES = {
    "OU": (sd.OU(), (0.01, 1.0, 9.0)),
    "VP": (sd.VP(), (1e-3, 0.3, 1.0)),
    "SubVP": (sd.SubVP(), (1e-3, 0.3, 1.0)),
    "CustomVP": (sd.CustomVP(lambda t: 1 + 5 * t**2), (1e-3, 0.4, 1.0)),
    "CosineVP": (sd.CosineVP(), (1e-3, 0.5, 0.99)),
    "VE": (sd.VE(), (1e-3, 0.5, 1.0)),
    "EDM": (sd.EDM(), (0.002, 1.0, 80.0)),
    "RectifiedFlow": (sd.RectifiedFlow(), (1e-3, 0.5, 0.99)),
}
MIXTURES = {
    "ring": D.ring(8),
    "full": D.anisotropic(3, weights=[1.0, 2.0, 3.0]),
    "gaussian": D.gaussian((1.0, -2.0), 0.5),
    "line": D.bimodal(),
    "image": D.gaussian(torch.zeros(1, 2, 2), 0.7),
}
SMOOTH = {"banana": D.Banana(), "funnel": D.Funnel(2, 1.0), "full": MIXTURES["full"]}
BIG, SMALL = 1e-9, 1e-4
"""A residual must be below the first where all is right and, in a test of a mutant, above the second where it is not."""


def exact(sde, density, t, **options):
    """The residuals of the exact part, by name."""
    rows = sd.verify.langevin_identity(sde, density, t, particles=False, **options).rows
    return {row.what.split(",")[-1].strip(): row.statistic for row in rows}


# ---- the operator ---------------------------------------------------------------------------------------------


def test_operator_by_hand():
    """b = (x y, -x), G = [[x, 0], [1, y]], log p = -(x² + y⁴)/2: every term of L*p/p, by hand."""
    points = torch.tensor([[0.7, -0.4], [1.3, 0.9]], dtype=torch.float64)
    x, y = points.unbind(1)

    def diffusion(v):
        a, b = v.unbind(1)
        rows = [torch.stack([a, 0 * a], 1), torch.stack([1 + 0 * a, b], 1)]
        return sd.Dense(torch.stack(rows, 1))

    terms = fokker_planck(
        lambda v: torch.stack([v[:, 0] * v[:, 1], -v[:, 0]], 1),
        diffusion,
        lambda v: -0.5 * (v[:, 0] ** 2 + v[:, 1] ** 4),
        points,
    )
    # D = [[x², x], [x, 1 + y²]]; ∇·D = (2x, 1 + 2y); ∇·∇·D = 4; ∇log p = (-x, -2y³); Hessian diag(-1, -6y²)
    assert torch.allclose(terms[0], -y)
    assert torch.allclose(terms[1], x * x * y - 2 * x * y**3)
    assert torch.allclose(terms[2], torch.full_like(x, 2.0))
    assert torch.allclose(terms[3], -2 * x * x - 2 * y**3 * (1 + 2 * y))
    assert torch.allclose(terms[4], 0.5 * (-x * x - 6 * y**2 * (1 + y * y)))
    assert torch.allclose(terms[5], 0.5 * (x**4 + 4 * x * x * y**3 + 4 * y**6 * (1 + y * y)))


def test_residual_is_relative_to_the_largest_term():
    assert residual(torch.tensor([[1.0, 100.0], [-1.0, -99.0]])) == pytest.approx(0.01)
    assert residual(torch.zeros(3, 4)) == 0
    assert math.isnan(residual(torch.tensor([[1.0, math.nan], [-1.0, 1.0]])))
    assert math.isnan(residual(torch.tensor([[math.inf], [1.0]])))


# ---- the identity, exactly ------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", MIXTURES)
@pytest.mark.parametrize("process", PROCESSES)
def test_identity_of_every_process(process, density):
    """Sum, forward half, backward half and start, at several t: residuals of at most 1e-9."""
    sde, times = PROCESSES[process]
    for t in times:
        found = exact(sde, MIXTURES[density], t)
        assert len(found) == 4 and max(found.values()) <= BIG, (t, found)


class Swirl(sd.SDE):
    """A drift that turns, and matrix noise that depends on all of the state and on t."""

    def f(self, x, t):
        return torch.stack([-x[:, 1] - x[:, 0] ** 3, x[:, 0] * t], 1)

    def g(self, x, t):
        a, b = x.unbind(1)
        first = torch.stack([1 + 0.3 * a.sin(), 0.4 * b * t, 0.1 * a * b], 1)
        second = torch.stack([0.2 * a * b, 1.5 + 0.5 * (a * b).cos(), 0.3 + 0.0 * a], 1)
        return sd.Dense(torch.stack([first, second], 1))


class Crossed(Swirl):
    """Diagonal noise, each entry of which depends on both coordinates."""

    def g(self, x, t):
        a, b = x[:, :1], x[:, 1:]
        return torch.cat([1 + 0.2 * (a + 2 * b).tanh(), 1.2 + 0.4 * (a * b).sin()], 1)


@pytest.mark.parametrize("density", SMOOTH)
@pytest.mark.parametrize("kind", [Swirl, Crossed])
def test_identity_with_noise_that_depends_on_the_state(kind, density):
    assert exact(kind(), SMOOTH[density], 0.7)["forward + backward"] <= BIG
    tripled = exact(kind(), SMOOTH[density], 0.7, score=lambda x, t: 3 * SMOOTH[density].score(x))
    assert tripled["forward + backward"] > SMALL


@pytest.mark.parametrize("friction", [1.3, torch.tensor([[2.0, 0.7], [0.7, 1.0]])])
def test_identity_of_langevin_dynamics_itself(friction):
    target = MIXTURES["full"]
    assert exact(sd.Underdamped(target, friction, 0.6), sd.Phase(target, 0.6), 0.0)["forward + backward"] <= BIG
    reversible = sd.Overdamped(target, lambda x: Swirl().g(x, 0.5))
    assert exact(reversible, target, 0.0)["forward + backward"] <= BIG
    assert sd.verify.stationary(reversible, target).passed
    assert not sd.verify.stationary(reversible, SMOOTH["banana"]).passed


def test_identity_along_a_law_of_ones_own():
    """A subclass of Law that moves: Brownian motion with drift 1 and noise 2 from a point."""

    class Moving(sd.verify.Law):
        event_shape = (1,)

        def log_prob(self, x, t):
            t = t.reshape(-1) if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64)
            return -0.5 * (x[:, 0] - t * self.speed) ** 2 / (4 * t) - 0.5 * torch.log(8 * math.pi * t)

        def sample(self, n, t, generator):
            z = torch.randn(n, 1, generator=generator, dtype=torch.float64)
            return self.speed * t + 2 * t**0.5 * z

    class Drifting(sd.SDE):
        def f(self, x, t):
            return torch.ones_like(x)

        def g(self, x, t):
            return 2.0

    law = Moving()
    law.speed = 1.0
    assert sd.verify.langevin_identity(Drifting(), law, 0.5, n=5_000).passed
    assert len(exact(Drifting(), law, 0.5)) == 3
    law.speed = 1.1
    found = exact(Drifting(), law, 0.5)
    assert found["forward + backward"] <= BIG < SMALL < found["forward"]


# ---- mutants --------------------------------------------------------------------------------------------------


class Broken(sd.VP):
    """VP whose reversal is wrong in one way."""

    def __init__(self, how=""):
        super().__init__()
        self.how = how

    def reverse(self, score, stochasticity=1.0, *, diffusion=None):
        return BrokenReverse(self, super().reverse(score, stochasticity))


class BrokenReverse(sd.SDE):
    direction = -1

    def __init__(self, sde, good):
        self.sde, self.good = sde, good

    def f(self, x, t):
        forward = self.sde.drift(x, t)
        pull = forward - self.good.drift(x, t)
        return forward - {"sign": -1.0, "half": 0.5}.get(self.sde.how, 1.0) * pull

    def g(self, x, t):
        return {"noise": math.sqrt(2)}.get(self.sde.how, 1.0) * self.good.diffusion(x, t)


class NoDivergence(Swirl):
    """Its reversal forgets ∇·(GGᵀ)."""

    def gram_divergence(self, x, t):
        return torch.zeros_like(x)


class Steep(sd.SDE):
    """Noise that grows with the distance from the origin: ∇·(GGᵀ) = 2x."""

    def f(self, x, t):
        return -x

    def g(self, x, t):
        return (1 + x.square().sum(1, keepdim=True)).sqrt()


class SteepNoDivergence(Steep):
    gram_divergence = NoDivergence.gram_divergence


class SummedDivergence(Crossed):
    """Its ∇·(GGᵀ) sums the Jacobian instead of taking its diagonal."""

    def gram_divergence(self, x, t):
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad((self.g(at, t) ** 2).sum(), at, create_graph=True)[0]


class UnscheduledVE(sd.VE):
    """The kernel with σ_s²(t) instead of σ_s²(t) - σ_s²(0)."""

    def variance(self, t):
        return super().variance(t) + self.sigma_min**2


class WrongKernel(sd.VP):
    """f and g of VP, the variance off by 1 %."""

    def variance(self, t):
        return 1.01 * super().variance(t)


RING = MIXTURES["ring"]
SCORE = sd.ExactScore(sd.VP(), RING)
BAD_SCORES = {
    "x 1.1": lambda x, t: 1.1 * SCORE(x, t),
    "minus": lambda x, t: -SCORE(x, t),
    "stale": lambda x, t: SCORE(x, t + 0.005),
    "dropped mode": sd.ExactScore(sd.VP(), D.Mixture(RING.means[:7], std=0.1)),
    "weight x 1.3": sd.ExactScore(sd.VP(), D.ring(8, weights=[1.3, 1, 1, 1, 1, 1, 1, 1])),
}


def test_the_harness_of_the_mutants_is_sound():
    assert max(exact(Broken(), RING, 0.2).values()) <= BIG


@pytest.mark.parametrize("how", ["sign", "half", "noise"])
def test_wrong_reversals_are_rejected_exactly(how):
    found = exact(Broken(how), RING, 0.2)
    assert found["forward + backward"] > SMALL and found["backward"] > SMALL
    assert found["forward"] <= BIG  # and the half that is right is not blamed


@pytest.mark.parametrize("bad", BAD_SCORES)
def test_wrong_scores_are_rejected_exactly(bad):
    found = exact(sd.VP(), RING, 0.1, score=BAD_SCORES[bad])
    assert found["forward + backward"] > SMALL and found["backward"] > SMALL and found["forward"] <= BIG


@pytest.mark.parametrize("kind", [NoDivergence, SummedDivergence])
def test_wrong_divergences_are_rejected_exactly(kind):
    assert exact(kind(), MIXTURES["full"], 0.7)["forward + backward"] > SMALL


def test_wrong_kernels_are_rejected_exactly():
    """Neither can be seen in the sum: it vanishes for any law. The halves see one, the start of the kernel the other."""
    found = exact(WrongKernel(), RING, 0.3)
    assert found["forward + backward"] <= BIG and found["forward"] > SMALL and found["backward"] > SMALL
    report = sd.verify.langevin_identity(UnscheduledVE(0.1, 50.0), RING, 0.3, particles=False)
    assert [row.what for row in report.rows if not row.passed] == ["α(0) = 1, σ(0) = 0"]
    scored = exact(sd.VE(0.1, 50.0), RING, 0.3, score=sd.ExactScore(UnscheduledVE(0.1, 50.0), RING))
    assert scored["forward + backward"] > SMALL


# ---- the identity, by particles -------------------------------------------------------------------------------


def by_particles(sde, density, t, **options):
    rows = sd.verify.langevin_identity(sde, density, t, **options).rows
    return [row for row in rows if row.p is not None]


@pytest.mark.parametrize(
    ("sde", "density", "t"),
    [
        (sd.VP(), RING, 0.1),
        (sd.EDM(), MIXTURES["full"], 0.5),
        (Swirl(), MIXTURES["full"], 0.7),
        (Crossed(), D.Banana(), 0.7),
    ],
    ids=["VP", "EDM", "matrix", "diagonal"],
)
def test_identity_by_particles(sde, density, t):
    rows = by_particles(sde, density, t, n=4_000)
    assert len(rows) == 4 and all(row.passed for row in rows), rows
    assert all(row.detectable < 0.15 for row in rows)


@pytest.mark.parametrize("bad", ["x 1.1", "minus", "stale", "dropped mode"])
def test_wrong_scores_are_rejected_by_particles(bad):
    n = 5_000 if bad in ("minus", "dropped mode") else 20_000
    rows = by_particles(sd.VP(), RING, 0.1, score=BAD_SCORES[bad], n=n)
    for way in ("at once", "in turn"):
        assert any(not row.passed for row in rows if way in row.what), rows


@pytest.mark.parametrize("how", ["sign", "half", "noise"])
def test_wrong_reversals_are_rejected_by_particles(how):
    rows = by_particles(Broken(how), RING, 0.1, n=4_000)
    assert all(not row.passed for row in rows if "means" in row.what), rows


def test_a_missing_divergence_is_rejected_by_particles():
    density = D.gaussian((0.0, 0.0), 1.0)
    assert all(row.passed for row in by_particles(Steep(), density, 0.5, n=4_000))
    rows = by_particles(SteepNoDivergence(), density, 0.5, n=4_000)
    assert all(not row.passed for row in rows if "means" in row.what), rows


def test_particles_stand_where_the_law_is_not():
    """A law whose sampler and density disagree is seen too: particles start from one and are tested against the other."""

    class Shifted(laws.Fixed):
        def sample(self, n, t, generator):
            return super().sample(n, t, generator) + 0.2

    rows = by_particles(sd.OU(), Shifted(MIXTURES["full"]), 1.0, n=10_000)
    assert all(not row.passed for row in rows if "projections" in row.what)


def test_halves_at_once_and_in_turn():
    """One step from x: x + h(f + b) + G dW₁ + G dW₂ at once; in turn, the second half starts where the first ended."""
    vp, t, h = sd.VP(), 0.2, 0.01
    pair = identity._Pair(identity._Half(vp, t), identity._Half(vp.reverse(SCORE), t))
    x, dw = RING.to(dtype=torch.float64).sample(5, seed=0), (normals(5, 2), normals(5, 2, seed=1))
    g, beta = float(vp.beta(torch.tensor(t, dtype=torch.float64))) ** 0.5, 0.1 + 19.9 * t
    forward = x - 0.5 * beta * x * h + g * dw[0]
    at_once = forward + h * (0.5 * beta * x + beta * SCORE(x, t)) + g * dw[1]
    in_turn = forward + h * (0.5 * beta * forward + beta * SCORE(forward, t)) + g * dw[1]
    assert torch.allclose(pair.step(x, h, dw, split=False), at_once, atol=1e-12)
    assert torch.allclose(pair.step(x, h, dw, split=True), in_turn, atol=1e-12)


# ---- duality --------------------------------------------------------------------------------------------------

FAST = {"n": 5_000, "steps": 100, "times": [0.03, 0.3]}


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_duality_holds(eta):
    found = sd.verify.duality(sd.VP(), RING, eta=eta, **FAST)
    assert found.passed, found
    assert len(found.rows) == 8 and all(row.detectable < 0.5 for row in found.rows)


def test_duality_takes_other_solvers():
    for solver, eta in ((sd.Ancestral(), 1.0), (sd.Heun(), 0.0), (sd.Scipy("RK45"), 0.0)):
        found = sd.verify.duality(sd.VP(), MIXTURES["full"], solver=solver, eta=eta, n=2_000, steps=100, times=[0.2])
        assert found.passed, found


@pytest.mark.parametrize("process", ["EDM", "RectifiedFlow", "VE"])
def test_duality_of_other_clocks(process):
    """Default times: six, evenly spread in log SNR, in a process that may be infinite at its end."""
    sde = PROCESSES[process][0]
    found = sd.verify.duality(sde, MIXTURES["full"], n=2_000, steps=100)
    assert found.passed, found
    assert len({row.what.split(":")[0] for row in found.rows}) == 6


def test_duality_of_a_stationary_law():
    """Reversible dynamics with noise that depends on the state: the law does not move, whichever way time runs."""
    density, root = D.Banana(), lambda x: 0.5 + 0.3 * x.square().sum(1, keepdim=True).tanh()
    sde = sd.Overdamped(density, root, t_max=0.5)
    assert sd.verify.duality(sde, density, n=4_000, steps=100, times=[0.2]).passed
    assert not sd.verify.duality(sde, MIXTURES["full"], score=sde.score, n=4_000, steps=100, times=[0.2]).passed


@pytest.mark.parametrize("bad", ["x 1.1", "minus", "dropped mode", "weight x 1.3", "noise", "half"])
def test_duality_rejects(bad):
    sde = Broken(bad) if bad in ("noise", "half") else sd.VP()
    found = sd.verify.duality(sde, RING, score=BAD_SCORES.get(bad), n=6_000, steps=200, times=[0.3])
    assert not found.passed
    if bad in ("dropped mode", "weight x 1.3"):
        assert any(not row.passed for row in found.rows if "occupancy" in row.what)
    if bad in ("x 1.1", "noise"):
        assert any(not row.passed for row in found.rows if "log density" in row.what)


def test_too_coarse_a_solver_shows_nothing():
    """With two steps the solver's own error is beyond what is allowed for: the check fails rather than excuse it."""
    assert not sd.verify.duality(sd.VP(), RING, n=5_000, steps=4, times=[0.03]).passed


def test_a_bias_is_allowed_for_only_within_reason():
    """A coarse chain that is far away excuses 0.1 sd, and 0.1 in F, of the fine one; not more."""
    x, far, u = normals(4_000, 1), normals(4_000, 1) + 3, torch.ones(1, dtype=torch.float64)
    law = laws.Fixed(D.gaussian((0.0,)))
    for shift, good in ((0.05, True), (0.5, False)):
        fine = x + shift
        assert (halving.mean_test(fine[:, 0], far[:, 0], 0.0, 1.0).p > 0.01) == good
        assert (halving.projection_test(law, 0.0, u, fine, far, x).p > 0.01) == good


def test_halving_shares_one_path():
    """On pure noise with uneven steps the coarse and the fine end are the same point, to rounding."""

    class Noise(sd.SDE):
        t_max = 2.0

        def f(self, x, t):
            return torch.zeros_like(x)

        def g(self, x, t):
            return 1.0

    x = torch.zeros(1_000, 1, dtype=torch.float64)
    nodes = torch.tensor([0.0, 0.1, 0.5, 0.6, 2.0], dtype=torch.float64)
    coarse, fine = halving.solve_halved(Noise(), x, sd.EulerMaruyama(), nodes, seed=3)
    assert torch.allclose(coarse, fine, atol=1e-12)
    assert statistics.z_test(fine**2, 2.0).p > 1e-6
    other = halving.solve_halved(Noise(), x, sd.EulerMaruyama(), nodes, seed=4)[1]
    assert not torch.allclose(fine, other)


def test_the_bias_that_is_allowed_is_that_of_the_solver():
    """Euler-Maruyama for dx = -x dt on a grid: the allowance covers the true error of the finer chain, within 20 %."""
    x = torch.full((4, 1), 1.0, dtype=torch.float64)
    nodes = torch.linspace(0, 1, 41, dtype=torch.float64)

    class Decay(sd.ODE):
        def f(self, x, t):
            return -x

    coarse, fine = halving.solve_halved(Decay(), x, sd.EulerMaruyama(), nodes, seed=0)
    error, allowed = math.exp(-1) - float(fine[0]), float((fine - coarse)[0])
    assert error < allowed * 1.02 and allowed < 1.2 * error
    assert halving.mean_test(fine[:, 0], coarse[:, 0], math.exp(-1), 1.0).p == pytest.approx(1.0) or error > allowed


# ---- statistics -----------------------------------------------------------------------------------------------


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level_of(rejections, level):
    """The p-value of a number of rejections among trials under the claimed level: it must not be exceeded."""
    return stats.binomtest(sum(rejections), len(rejections), level, alternative="greater").pvalue


def test_detectable_effects():
    """The figures of the theory: at level 1e-5 and power .99, a bias of .01 sd and of 1 % of a Gaussian variance."""
    assert statistics.detectable_effect(455_000, 1.0, 1e-5, 0.99) == pytest.approx(0.01, rel=1e-3)
    assert statistics.detectable_effect(910_000, 2.0, 1e-5, 0.99) == pytest.approx(0.01, rel=1e-3)
    assert statistics.detectable_effect(910_000, 2.0, 1e-5) == pytest.approx(0.01, rel=1e-3)


def test_z_test_level_and_power():
    level, n = 0.02, 400
    effect = statistics.detectable_effect(n, 1.0, level)
    null = [statistics.z_test(row).p <= level for row in normals(3_000, n)]
    assert level_of(null, level) > 1e-4 and level_of(null, 0.5 * level) < 1e-2
    seen = [statistics.z_test(row + effect).p <= level for row in normals(3_000, n, seed=1)]
    assert stats.binomtest(sum(seen), len(seen), 0.99).pvalue > 1e-4


def test_z_test_with_a_margin():
    """An effect as large as the margin is not rejected more often than the level says; a larger one is."""
    level, n = 0.02, 400
    at_margin = [statistics.z_test(row + 0.5, margin=0.5).p <= level for row in normals(2_000, n)]
    assert level_of(at_margin, level) > 1e-4
    beyond = statistics.z_test(normals(n) + 0.5, margin=0.5)
    assert statistics.z_test(normals(n) + 0.5 + 0.3, margin=0.5).p < level
    assert beyond.detectable(level) == pytest.approx(0.5 + 0.236, abs=0.03)


def test_ks_agrees_with_scipy():
    for n, shift in ((50, 0.0), (2_000, 0.02), (2_000, 0.05)):
        u = torch.special.ndtr(normals(n) + shift)
        theirs = stats.kstest(u.numpy(), "uniform")
        ours = statistics.ks_test(u)
        assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-9)
        assert ours.p == pytest.approx(theirs.pvalue, rel=0.03) or (ours.p > 0.5 and ours.p >= theirs.pvalue)
    x, y = normals(3_000), 1.1 * normals(5_000, seed=1)
    theirs = stats.ks_2samp(x.numpy(), y.numpy(), method="asymp")
    ours = statistics.ks_two_sample(x, y)
    assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=0.1)


def test_ks_sees_what_it_claims_and_allows_its_margin():
    level, n = 0.02, 500
    effect = statistics.ks_test(torch.rand(n, dtype=torch.float64)).detectable(level)
    generator = torch.Generator().manual_seed(0)
    seen, allowed = [], []
    for _ in range(400):
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        moved = torch.where(u < effect, torch.zeros_like(u), u)  # F is off by `effect` at 0+
        seen.append(statistics.ks_test(moved).p <= level)
        allowed.append(statistics.ks_test(moved, margin=effect).p <= level)
    assert sum(seen) >= 392 and level_of(allowed, level) > 1e-4


def test_retry_has_its_level():
    """Uniform p-values: the two ways to fail add up to the level; and a test is repeated only in doubt."""
    uniform = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    level, failed, repeated = 0.01, 0, 0

    def outcome(p):
        return statistics.Outcome(0.0, 0.0, p, lambda level: 0.0)

    for first, second in uniform:
        again = []
        decided, limit = statistics.retry(outcome(first), lambda s=second, a=again: a.append(1) or outcome(s), level)
        failed, repeated = failed + (decided.p <= limit), repeated + bool(again)
    assert failed / len(uniform) == pytest.approx(level, rel=0.11)  # 5 standard errors
    assert repeated / len(uniform) == pytest.approx(math.sqrt(0.005), rel=0.04)


def test_bonferroni_and_the_worst_of_several():
    assert statistics.bonferroni([0.01, 0.2, 0.3]) == pytest.approx(0.03)
    assert statistics.bonferroni([0.6, 0.9]) == 1.0
    small, large = statistics.z_test(normals(100)), statistics.z_test(normals(100, seed=1) + 1)
    joint = statistics.worst([small, large])
    assert joint.statistic == large.statistic and joint.p == pytest.approx(2 * large.p)
    assert joint.detectable(0.01) == pytest.approx(large.detectable(0.005))


def test_broken_samples_fail_every_test():
    bad = normals(100)
    bad[3] = math.nan
    for outcome in (
        statistics.z_test(bad),
        statistics.z_test(bad, margin=1.0),
        statistics.ks_test(bad),
        statistics.ks_two_sample(bad, normals(100)),
    ):
        assert outcome.p == 0.0


def test_projections_of_mixtures():
    """The law of a projection in closed form against samples, for isotropic and full covariances and for images."""
    for name, density in MIXTURES.items():
        law = laws.law_of(sd.VP(), density)
        x = law.sample(20_000, 0.2, torch.Generator().manual_seed(0)).reshape(20_000, -1)
        u = normals(x.shape[1], seed=4)
        line = law.shadow(u, 0.2)
        y = x @ u
        assert statistics.ks_test(line.cdf(y)).p > 1e-6, name
        assert statistics.z_test(y, line.mean).p > 1e-6, name
        assert statistics.z_test((y - line.mean) ** 2, line.variance).p > 1e-6, name
        assert statistics.ks_test(line.cdf(1.1 * y + 0.1)).p < 1e-6, name


def test_what_a_law_says_of_its_change():
    """N(m e^{-t/2}, v) with v = 1 + (s² - 1) e^{-t} under OU: its gradient and rate by hand, whatever its score claims."""
    law, x, t, m, s2 = laws.law_of(sd.OU(), D.gaussian(torch.full((1,), 0.5), 0.25)), normals(5, 1), 0.4, 0.5, 0.0625
    mean, v = m * math.exp(-t / 2), 1 + (s2 - 1) * math.exp(-t)
    y, dv = x - mean, -(s2 - 1) * math.exp(-t)
    rate = -0.5 * y * mean / v + 0.5 * dv * (y**2 / v - 1) / v
    assert torch.allclose(law.gradient(x, t), -y / v, rtol=1e-12, atol=0)
    assert torch.allclose(law.rate(x, t), rate[:, 0], rtol=1e-12, atol=0)
    still = laws.Fixed(D.gaussian(torch.zeros(1), 0.3))
    assert torch.equal(still.rate(x, t), torch.zeros(5, dtype=torch.float64))


def test_on_the_line_there_is_one_projection():
    found = sd.verify.duality(sd.VP(), D.bimodal(), times=[0.3], n=1_000)
    assert next(row.what for row in found.rows) == "t = 0.3: law of 1 projection" and found.passed


# ---- reports --------------------------------------------------------------------------------------------------


def sample_report(p=0.4):
    outcome = statistics.Outcome(-0.0123, 0.02, p, lambda level: 0.08, "sd")
    rows = (
        report.exact_row("an identity", 3e-15, 1e-9),
        *report.judge(lambda n, seed: {"a <mean>": outcome}, 100, 0, 1e-3),
    )
    return sd.verify.Report("A title", rows, ("a note & more",))


def test_report_prints_a_table():
    lines = str(sample_report()).splitlines()
    header, exact_line, test_line = lines[2], lines[4], lines[5]
    for column, cells in (("limit", ("≤ 1e-09", "p > 5.0e-04")), ("verdict", ("PASS", "PASS"))):
        assert [line.index(cell) for line, cell in zip((exact_line, test_line), cells, strict=True)] == [
            header.index(column)
        ] * 2
    assert lines[0] == "A title" and lines[-1] == "PASS: all 2 checks." and "0.08 sd" in test_line
    assert "a note & more" in lines[-2]
    failed = str(sample_report(1e-5)).splitlines()
    assert failed[-1] == "FAIL: 1 of 2 checks: a <mean>." and "FAIL" in failed[5]


def test_report_without_rows_or_with_nan_fails():
    assert not sd.verify.Report("empty", ()).passed
    assert not report.exact_row("broken", math.nan, 1e-9).passed
    assert report.exact_row("broken", math.nan, 1e-9).excess == math.inf
    assert report.exact_row("fine", 1e-12, 1e-9).excess == pytest.approx(-3)


@pytest.mark.parametrize("errors", [[math.nan, 1e-12], [1e-12, math.nan, 2e-12], [0.5, 1e-12, math.nan, 0.7]], ids=str)
def test_nan_at_one_time_is_not_forgotten_at_the_next(errors):
    worst = Worst()
    for k, error in enumerate(errors):
        worst.seen(error, f"time {k}")
    row = worst.row("broken", 1e-9)
    assert math.isnan(row.statistic) and not row.passed and row.detail == f"time {errors.index(math.nan)}"


def test_the_worst_error_and_where_it_was():
    worst = Worst()
    assert worst.row("nothing", 1e-9).passed and worst.row("nothing", 1e-9).statistic == 0
    for error in (2e-12, 5e-12, 5e-12, 1e-12):
        worst.seen(error, str(error))
    assert worst.row("fine", 1e-9).statistic == 5e-12 and worst.row("fine", 1e-9).passed
    assert worst.row("coarse", 4e-12).detail == "5e-12" and not worst.row("coarse", 4e-12).passed


def test_a_process_that_is_nan_between_times_at_which_it_is_not():
    class Gap(sd.VP):
        def gram_divergence(self, x, t):
            return super().gram_divergence(x, t) * (math.nan if 0.2 < float(t) < 0.45 else 1.0)

    found = sd.verify.check_sde(Gap(), n=1_000)
    (broken,) = (row for row in found.rows if not row.passed)
    assert broken.what.startswith("∇·(GGᵀ)") and math.isnan(broken.statistic)


def test_report_as_json_and_html():
    content = json.loads(sample_report(1e-5).to_json())
    assert content["passed"] is False and content["rows"][0]["p"] is None
    assert content["rows"][1] | {"limit": 1} == {
        "what": "a <mean>", "statistic": -0.0123, "floor": 0.02, "limit": 1, "p": 1e-5, "detectable": 0.08,
        "unit": "sd", "passed": False, "detail": "",
    }  # fmt: skip
    broken = sd.verify.Report("nan", (report.exact_row("broken", math.nan, 1e-9),))
    assert json.loads(broken.to_json())["rows"][0]["statistic"] is None
    page = sample_report(1e-5).to_html()
    assert "a &lt;mean&gt;" in page and "a note &amp; more" in page and page.count("<tr") == 3
    assert "FAIL: 1 of 2 checks" in page


def test_report_plots_each_row_on_its_side_of_the_limit():
    figure = sample_report(1e-7).plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].patches]
    assert ends == pytest.approx([math.log10(3e-15 / 1e-9), math.log10(5e-4 / 1e-7)])


def test_judge_repeats_doubtful_tests_alone_with_more_samples():
    calls = []

    def panel(n, seed):
        calls.append((n, seed))
        doubtful = 0.01 if len(calls) == 1 else 0.9
        values = {"clear": 0.5, "doubtful": doubtful, "wrong": 1e-9}
        return {name: statistics.Outcome(0.0, 0.0, p, lambda level: 1.0) for name, p in values.items()}

    rows = {row.what: row for row in report.judge(panel, 100, 7, 3e-3)}
    assert len(calls) == 2 and calls[1][0] == 400 and calls[1][1] != 7
    assert {name: row.passed for name, row in rows.items()} == {"clear": True, "doubtful": True, "wrong": False}
    assert all(row.passed == (row.p > row.limit) for row in rows.values())
    assert rows["doubtful"].limit == pytest.approx(math.sqrt(5e-4))
    assert rows["clear"].p == 0.5 and rows["doubtful"].p == 0.9 and rows["clear"].limit == pytest.approx(5e-4)


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sd.verify.langevin_identity(sd.VP().reverse(SCORE), RING, 0.3), "before its reversal"),
        (lambda: sd.verify.langevin_identity(sd.VP().probability_flow(SCORE), RING, 0.3), "no forward SDE"),
        (lambda: sd.verify.langevin_identity(sd.VP(), RING, 1.5), "outside"),
        (lambda: sd.verify.duality(sd.VP().reverse(SCORE), RING), "before its reversal"),
        (lambda: sd.verify.duality(sd.VP(), RING, times=[1.0]), "not inside"),
        (lambda: sd.verify.duality(sd.VP(), RING, steps=101), "must be even"),
        (lambda: sd.verify.duality(sd.Overdamped(RING), RING), "set its t_max"),
    ],
)
def test_refused_with_a_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_density_beside_a_process_of_ones_own_is_its_law_at_0():
    """f and g alone: the kernel is found, and the data are not taken for a law that stands still."""

    class Own(sd.SDE):
        def f(self, x, t):
            return -x

        def g(self, x, t):
            return 1 + t

    report = sd.verify.duality(Own(), sd.densities.ring(5), n=1000)
    assert report.passed and "diffused" in report.notes[0]
