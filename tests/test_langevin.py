"""Langevin dynamics: stationary laws by the Fokker-Planck operator, exact recursions, exact tests of MALA."""

from __future__ import annotations

import math

import pytest
import torch

import sdediff as sd
from sdediff import langevin
from sdediff.checks import as_time
from sdediff.verify.exchangeability import symmetry_test
from sdediff.verify.statistics import ks_test, z_test

D = sd.densities
LEVEL = 1e-7
"""False-alarm rate of one statistical check; this file makes fewer than 50."""


def mixture():
    return D.anisotropic(3, radius=1.0, std=(0.8, 0.4), weights=[1.0, 2.0, 3.0])


def matrix(x):
    """A root that depends on every coordinate, neither symmetric nor square."""
    a, b = x.unbind(1)
    first = torch.stack([1 + 0.3 * a.sin(), 0.4 * b, 0.1 * a * b], 1)
    second = torch.stack([0.2 * a * b, 1.5 + 0.5 * (a * b).cos(), 0.3 + 0.0 * a], 1)
    return sd.Dense(torch.stack([first, second], 1))


def crossed(x):
    """A diagonal root each of whose entries depends on both coordinates."""
    a, b = x[:, :1], x[:, 1:]
    return torch.cat([1 + 0.2 * (a + 2 * b).tanh(), 1.2 + 0.4 * (a * b).sin()], 1)


ROOTS = {
    "number": 0.7,
    "tensor": torch.tensor([[0.5, 2.0]]),
    "dense": sd.Dense(torch.tensor([[[1.0, 0.3, 0.0], [0.0, 0.8, 0.2]]])),
    "one for all": lambda x: 1 + 0.3 * x.square().sum(1, keepdim=True).tanh(),
    "crossed": crossed,
    "matrix": matrix,
}
TARGETS = {
    "ring": D.ring(5, std=0.4),
    "mixture": mixture(),
    "banana": D.Banana(),
    "funnel": D.Funnel(2, 1.0),
    "distribution": torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
    ),
}


# ---- overdamped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("root", ROOTS)
def test_overdamped_leaves_its_target_alone(root, target):
    report = sd.verify.stationary(sd.Overdamped(TARGETS[target], ROOTS[root]), TARGETS[target])
    assert report.passed, report


def test_overdamped_by_hand():
    r"""G = diag(√(1 + b²), √(1 + a²)) has ∇·D = 0; G = (1 + a²)^½ I has ∇·D = (2a, 0)."""
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    score = -x
    a, b = x[:, :1], x[:, 1:]
    crosswise = sd.Overdamped(lambda x, t: -x, lambda x: (1 + x.flip(1).square()).sqrt())
    assert torch.allclose(crosswise.drift(x, 3.0), score * torch.cat([1 + b**2, 1 + a**2], 1), atol=1e-14)
    along = sd.Overdamped(lambda x, t: -x, lambda x: (1 + x[:, :1].square()).sqrt())
    expected = torch.cat([2 * a, 0 * a], 1) + score * (1 + a**2)
    assert torch.allclose(along.drift(x, 3.0), expected, atol=1e-14)
    z = torch.ones_like(x)
    assert torch.allclose(along.diffusion(x, 3.0) @ z, (2 * (1 + a**2)).sqrt() * z, atol=1e-14)


@pytest.mark.parametrize("root", ["matrix", "crossed", "number"])
def test_reversible(root):
    """With the score of its law, the reversal of overdamped dynamics has minus its drift and the flow stands still."""
    target = mixture().to(dtype=torch.float64)
    sde = sd.Overdamped(target, ROOTS[root])
    x = target.sample(64, seed=0)
    forward = sde.drift(x, 1.0)
    assert (sde.reverse(sde.score).drift(x, 1.0) + forward).abs().max() < 1e-12
    assert sde.probability_flow(sde.score).drift(x, 1.0).abs().max() < 1e-9
    assert forward.abs().max() > 1  # neither is true of a drift that vanishes


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_reversals_keep_the_law_too(eta):
    """On a falling clock, with any stochasticity; a reversal that drifts like another one does not."""
    target = mixture()
    sde = sd.Overdamped(target, matrix)
    back = sde.reverse(sde.score, eta)
    assert sd.verify.stationary(back, target).passed
    back.stochasticity = 0.9 * eta
    assert sd.verify.stationary(back, target).passed
    back.g = lambda x, t: eta * sde.diffusion(x, t)
    assert not sd.verify.stationary(back, target).passed


def test_without_the_divergence_the_law_is_another():
    class Forgetful(sd.Overdamped):
        def f(self, x, t):
            return self._root(x).gram(self.score(x, t))

    for root in ("matrix", "crossed", "one for all"):
        report = sd.verify.stationary(Forgetful(mixture(), ROOTS[root]), mixture())
        assert not report.passed and report.rows[0].statistic > 1e-2


def test_half_speed_and_wrong_noise_are_told_apart():
    class Scaled(sd.Overdamped):
        drift_factor, noise_factor = 0.5, math.sqrt(0.5)

        def f(self, x, t):
            return self.drift_factor * super().f(x, t)

        def g(self, x, t):
            return self.noise_factor * super().g(x, t)

    assert sd.verify.stationary(Scaled(mixture()), mixture()).passed
    Scaled.noise_factor = 1.0
    assert not sd.verify.stationary(Scaled(mixture()), mixture()).passed


def test_a_score_is_held_at_its_time():
    vp, data, t = sd.VP(), D.ring(4), 0.3
    alpha, sigma = float(vp.alpha(t)), float(vp.sigma(t))
    p_t = D.Mixture(alpha * data.means, std=math.hypot(alpha * 0.1, sigma))
    score = sd.ExactScore(vp, data)
    for held in (score, lambda x, t: score(x, t)):
        assert sd.verify.stationary(sd.Overdamped(held, at=t), p_t, t=5.0).passed
        assert not sd.verify.stationary(sd.Overdamped(held, at=t + 0.01), p_t).passed


def test_a_plain_score_sees_the_clock():
    sde = sd.Overdamped(lambda x, t: -x * t)
    x = torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(sde.drift(x, 2.0), -2 * x)
    assert torch.equal(sde.drift(x, torch.tensor([1.0, 2.0, 3.0])), -x * as_time(torch.tensor([1.0, 2.0, 3.0]), x))


def test_solvers_take_it_and_count_its_score():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    sol = sd.solve(sd.Overdamped(mixture()), x, t0=0, t1=1, steps=7, solver=sd.EulerMaruyama(), seed=0)
    assert sol.stats["nfe"] == 7
    with pytest.raises(ValueError, match="does not end"):
        sd.solve(sd.Overdamped(mixture()), x, steps=7, solver=sd.EulerMaruyama())


# ---- the unadjusted algorithm: exact recursions on a Gaussian -------------------------------------------------


@pytest.mark.parametrize(("steps", "h"), [(1, 0.5), (3, 0.4), (40, 0.3)])
def test_unadjusted_law_and_its_bias(steps, h, assert_law):
    r"""Euler-Maruyama: M ← (1 - h/v)M, V ← (1 - h/v)²V + 2h, which tends to v/(1 - h/2v): a bias proportional to h."""
    v, mean, variance = 0.8, 1.0, 0.2
    x = mean + math.sqrt(variance) * torch.randn(
        200_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    sde = sd.Overdamped(D.gaussian((0.0,), math.sqrt(v)))
    end = sd.solve(sde, x, t0=0, t1=steps * h, steps=steps, solver=sd.EulerMaruyama(), seed=2).x
    for _ in range(steps):
        mean, variance = (1 - h / v) * mean, (1 - h / v) ** 2 * variance + 2 * h
    assert_law(end, mean, variance)
    if steps == 40:
        assert variance == pytest.approx(v / (1 - h / (2 * v)), rel=1e-6)
        with pytest.raises(AssertionError, match="variance"):
            assert_law(end, mean, v)  # the bias, 23 % of the variance, is there and is seen


# ---- underdamped ----------------------------------------------------------------------------------------------

FRICTION = {
    "number": 1.7,
    "vector": torch.tensor([0.5, 2.0]),
    "matrix": torch.tensor([[2.0, 0.7], [0.7, 1.0]]),
}
MASS = {"number": 0.6, "vector": torch.tensor([0.3, 2.0])}


@pytest.mark.parametrize("target", ["mixture", "banana"])
@pytest.mark.parametrize("mass", MASS)
@pytest.mark.parametrize("friction", FRICTION)
def test_underdamped_leaves_its_phase_law_alone(friction, mass, target):
    sde = sd.Underdamped(TARGETS[target], FRICTION[friction], MASS[mass])
    assert sd.verify.stationary(sde, sd.Phase(TARGETS[target], MASS[mass])).passed


@pytest.mark.parametrize("friction", FRICTION)
def test_underdamped_with_another_mass_friction_or_noise_is_seen(friction):
    target, mass = mixture(), MASS["vector"]
    law = sd.Phase(target, mass)
    sde = sd.Underdamped(target, FRICTION[friction], mass)

    def passes():
        return sd.verify.stationary(sde, law).passed

    assert passes()
    sde._kick = sde._kick * math.sqrt(2)
    assert not passes()
    sde = sd.Underdamped(target, FRICTION[friction], MASS["number"])
    assert not passes()
    sde = sd.Underdamped(target, FRICTION[friction], mass)
    sde.friction = -sde.friction
    assert not passes()


def test_phase_score_and_reversal():
    """The score of the phase law is (s(q), -m v); the reversal turns the sign of the friction and nothing else."""
    target, mass = mixture().to(dtype=torch.float64), MASS["vector"]
    sde, law = sd.Underdamped(target, 1.3, mass), sd.Phase(target, mass)
    x = law.sample(32, seed=0)
    assert torch.allclose(sde.score(x, 0.0), law.score(x), atol=1e-12)
    q, v = x.chunk(2, 1)
    expected = torch.cat([v, (target.score(q) + 1.3 * v) / mass], 1)
    assert torch.allclose(sde.reverse(sde.score).drift(x, 0.0), expected, atol=1e-12)


def test_phase_law():
    """log p(q, v) = log p(q) + log N(v; 0, 1/m), and its samples have that velocity variance, apart from the positions."""
    target, mass = D.gaussian((0.0, 1.0), 0.5).to(dtype=torch.float64), torch.tensor([0.5, 4.0])
    law = sd.Phase(target, mass)
    x = law.sample(100_000, seed=3)
    joint = torch.distributions.Normal(
        torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64),
        torch.tensor([0.5, 0.5, 2**0.5, 0.5], dtype=torch.float64),
    )
    assert torch.allclose(law.log_prob(x), joint.log_prob(x).sum(1), atol=1e-12)
    for u, std in zip(x.T, joint.stddev, strict=True):
        assert z_test((u - u.mean()) ** 2, float(std**2)).p > LEVEL
    assert z_test((x[:, 0] - x[:, 0].mean()) * x[:, 2]).p > LEVEL


def underdamped_gaussian(friction, mass=0.6):
    """Dynamics of a Gaussian target, and its Euler-Maruyama recursion h -> (A, Q) with Σ ← AΣAᵀ + Q, built by hand."""
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    zero, one = torch.zeros_like(precision), torch.eye(2, dtype=torch.float64)
    drag = FRICTION["matrix"].double() if friction == "matrix" else FRICTION[friction] * one
    generator = torch.cat([torch.cat([zero, one], 1), torch.cat([-precision, -drag], 1) / mass])
    noise = torch.block_diag(zero, 2 * drag / mass**2)
    sde = sd.Underdamped(lambda q, t: -q @ precision, FRICTION[friction], mass)
    equilibrium = torch.block_diag(precision.inverse(), one / mass)
    return sde, lambda h: (torch.eye(4, dtype=torch.float64) + h * generator, h * noise), equilibrium


@pytest.mark.parametrize("friction", ["number", "matrix"])
def test_underdamped_by_particles(friction):
    """On a Gaussian every covariance of an Euler-Maruyama chain is known exactly, however far from equilibrium."""
    h, steps = 0.1, 20
    sde, recursion, _ = underdamped_gaussian(friction)
    covariance = torch.diag(torch.tensor([1.0, 0.2, 0.1, 3.0], dtype=torch.float64))
    x = torch.randn(150_000, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    end = {"t0": 0, "t1": h * steps, "steps": steps, "solver": sd.EulerMaruyama(), "seed": 6}
    x = sd.solve(sde, x @ covariance.sqrt(), **end).x
    a, noise = recursion(h)
    for _ in range(steps):
        covariance = a @ covariance @ a.T + noise
    for i in range(4):
        for j in range(i + 1):
            outcome = z_test(x[:, i] * x[:, j], float(covariance[i, j]))
            assert outcome.p > LEVEL, (i, j, outcome)


@pytest.mark.parametrize("friction", ["number", "matrix"])
def test_underdamped_bias_is_proportional_to_the_step(friction):
    """The chain's own stationary covariance differs from equilibrium by O(h): the recursion's limit, no sampling."""
    _, recursion, equilibrium = underdamped_gaussian(friction)

    def bias(h):
        a, noise = recursion(h)
        covariance = equilibrium.clone()
        for _ in range(int(40 / h)):
            covariance = a @ covariance @ a.T + noise
        return covariance - equilibrium

    coarse, fine = bias(0.02), bias(0.01)
    assert (fine.abs().max() < 0.06) and (coarse - 2 * fine).abs().max() < 0.1 * coarse.abs().max()


def test_light_particles_follow_the_overdamped_path():
    """At small mass and unit friction the positions follow overdamped dynamics with the same noise, to O(√m)."""
    gaps = []
    for mass in (1e-2, 1e-3):
        h = mass / 10
        sde, slow = sd.Underdamped(lambda q, t: -q, 1.0, mass), sd.Overdamped(lambda q, t: -q)
        state, p = torch.zeros(500, 2, dtype=torch.float64), torch.zeros(500, 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        for _ in range(round(0.1 / h)):
            dw = h**0.5 * torch.randn(500, 2, generator=generator, dtype=torch.float64)
            state = state + h * sde.drift(state, 0.0) + sde.diffusion(state, 0.0) @ dw
            p = p + h * slow.drift(p, 0.0) + slow.diffusion(p, 0.0) @ dw[:, 1:]
        gaps.append(float((state[:, :1] - p).square().mean().sqrt()))
    assert gaps[0] < 2 * math.sqrt(1e-2) and 2.5 < gaps[0] / gaps[1] < 4, gaps  # √10 = 3.16


# ---- Metropolis-adjusted --------------------------------------------------------------------------------------


def exact_cdf(target, x):
    """The distribution function of a one-dimensional mixture."""
    z = (x - target.means.T) / target.variances.sqrt().T
    return torch.special.ndtr(z) @ target.weights


def run_mala(step=0.25, n=8, size=20_000):
    """Chains started in the law of two modes of unequal width, and that law."""
    target = D.Mixture([[-1.0], [1.0]], std=[0.7, 0.3], weights=[0.6, 0.4]).to(dtype=torch.float64)
    return target, sd.mala(target, target.sample(size, seed=1), step, n, seed=2)


def test_mala_is_exact_at_a_large_step():
    """KS at n = 20,000 sees 0.025 in F; here the unadjusted algorithm is off by more than that."""
    target, chains = run_mala()
    assert 0.5 < float(chains.acceptance.mean()) < 0.8  # the correction has work to do
    assert ks_test(exact_cdf(target, chains.x)).p > LEVEL


@pytest.mark.parametrize("broken", ["no correction", "no proposal ratio", "proposal ratio upside down"])
def test_mala_broken_is_seen(monkeypatch, broken):
    honest = langevin._log_proposal
    if broken == "no correction":
        monkeypatch.setattr(torch.special, "log_ndtr", lambda z: torch.full_like(z, -math.inf))
    else:
        factor = 0.0 if broken == "no proposal ratio" else -1.0
        monkeypatch.setattr(langevin, "_log_proposal", lambda *args: factor * honest(*args))
    target, chains = run_mala()
    assert ks_test(exact_cdf(target, chains.x)).p < LEVEL


def test_mala_keeps_nothing_but_the_state():
    """Five steps are five times one step, with one generator: score and density are those of the present state."""
    target, x = mixture().to(dtype=torch.float64), mixture().to(dtype=torch.float64).sample(200, seed=0)
    whole = sd.mala(target, x, 0.2, 5, generator=torch.Generator().manual_seed(1))
    generator, accepted = torch.Generator().manual_seed(1), 0
    for _ in range(5):
        chains = sd.mala(target, x, 0.2, 1, generator=generator)
        x, accepted = chains.x, accepted + chains.acceptance
    assert torch.allclose(whole.x, x, atol=1e-12) and torch.allclose(whole.acceptance, accepted / 5)
    assert 0.1 < float(whole.acceptance.mean()) < 0.9


def test_mala_reversible():
    """In its stationary law (x, x') is exchangeable: an exact sign-flip test of x²x' - x'²x and x³x' - x'³x."""
    target = D.Mixture([[-1.0], [1.0]], std=[0.7, 0.3], weights=[0.6, 0.4]).to(dtype=torch.float64)
    x = target.sample(5_000, seed=3)
    y = sd.mala(target, x, 0.25, 1, seed=4).x
    for power in (2, 3):
        assert symmetry_test((x**power * y - y**power * x).flatten()).p > 1e-3
    drifted = x + 0.25 * target.score(x)  # what a chain without noise and correction does is not reversible
    assert symmetry_test((x**3 * drifted - drifted**3 * x).flatten()).p < 1e-3


def test_mala_acceptance():
    """The mean acceptance of one step in N(0, 1), against quadrature over x and the noise."""
    h, size = 0.8, 100_000
    target = D.gaussian((0.0,)).to(dtype=torch.float64)
    chains = sd.mala(target, target.sample(size, seed=5), h, 1, seed=6)
    grid = torch.linspace(-8, 8, 801, dtype=torch.float64)
    x, z = grid[:, None], grid[None, :]
    y = (1 - h) * x + math.sqrt(2 * h) * z
    forward, backward = -(z**2) / 2, -((x - (1 - h) * y) ** 2) / (4 * h)
    accept = ((x**2 - y**2) / 2 + backward - forward).exp().clamp(max=1)
    weight = (-(x**2 + z**2) / 2).exp() / (2 * math.pi) * 0.02**2
    expected = float((accept * weight).sum())
    assert 0.2 < expected < 0.95
    assert z_test(chains.acceptance, expected).p > LEVEL


def test_mala_finds_its_target_from_elsewhere():
    target = D.Mixture([[-1.0], [1.0]], std=[0.7, 0.5], weights=[0.6, 0.4]).to(dtype=torch.float64)
    x = 0.1 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert ks_test(exact_cdf(target, sd.mala(target, x, 0.3, 2, seed=8).x)).p < LEVEL
    assert ks_test(exact_cdf(target, sd.mala(target, x, 0.3, 60, seed=8).x)).p > LEVEL


class Half(D.Density):
    """The half-normal law: -inf outside, where its score means nothing."""

    event_shape = (1,)

    def draw(self, n, generator):
        return torch.randn(n, 1, generator=generator, dtype=torch.float64).abs()

    def log_prob(self, x):
        return torch.where(x[:, 0] < 0, -math.inf, -0.5 * x[:, 0] ** 2)

    def score(self, x):
        return torch.where(x < 0, math.nan, -x)


def test_mala_stays_in_the_support():
    chains = sd.mala(Half(), Half().to(dtype=torch.float64).sample(20_000, seed=0), 0.3, 10, seed=1)
    assert (chains.x >= 0).all()
    assert ks_test(2 * torch.special.ndtr(chains.x) - 1).p > LEVEL


def test_mala_depends_on_its_seed_alone_and_chains_on_theirs():
    target = mixture()
    x = target.sample(6, seed=0)
    one, two = (sd.mala(target, x, 0.1, 5, seed=3).x for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, sd.mala(target, x, 0.1, 5, seed=4).x)
    whole = sd.mala(target, x, 0.1, 5, noise=sd.PerSample(range(6))).x
    part = sd.mala(target, x[2:4], 0.1, 5, noise=sd.PerSample([2, 3])).x
    assert torch.allclose(whole[2:4], part, atol=1e-6)


def test_mala_on_images():
    """Any event shape: the mean of each pixel of N(c, 0.3² I)."""
    target = D.gaussian(torch.full((1, 3, 3), 0.5), 0.3)
    chains = sd.mala(target, target.sample(4_000, seed=0), 0.02, 5, seed=1)
    assert chains.x.shape == (4_000, 1, 3, 3)
    assert z_test(chains.x.reshape(4_000, -1).mean(1), 0.5).p > LEVEL
    assert float(chains.acceptance.mean()) < 0.99


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sd.Overdamped(sd.ExactScore(sd.VP(), D.ring(3))), "belongs to VP.*at="),
        (lambda: sd.Overdamped(D.ring(3), at=0.1), "a density does not"),
        (lambda: sd.Underdamped(D.ring(3), friction=-1.0), "friction must be a positive"),
        (lambda: sd.Underdamped(D.ring(3), mass=0.0), "mass must be a positive"),
        (lambda: sd.Underdamped(D.ring(3), friction=torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "positive definite"),
        (lambda: sd.Underdamped(D.ring(3), friction=torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: sd.Underdamped(D.ring(3)).drift(torch.zeros(2, 3), 0.0), "an underdamped state is"),
        (lambda: sd.Phase(D.bimodal()), "positions of shape"),
        (lambda: sd.Overdamped(D.ring(3), torch.ones(2)).drift(torch.zeros(4, 2), 0.0), "root returned shape"),
        (lambda: sd.mala(D.ring(3), torch.zeros(4, 2), 0.0, 5), "step = 0"),
        (lambda: sd.mala(D.ring(3), torch.zeros(4, 2), 0.1, 0), "at least one step"),
        (lambda: sd.mala(Half(), torch.full((4, 1), -1.0), 0.1, 1), "log_prob"),
    ],
)
def test_refused_with_a_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mala_names_the_chains_that_broke():
    class Broken(D.Density):
        event_shape = (1,)

        def draw(self, n, generator):
            return torch.zeros(n, 1, dtype=torch.float64)

        def log_prob(self, x):
            return torch.where(x[:, 0] > 90, math.nan, 0.0 * x[:, 0])

    x = torch.tensor([[0.0], [89.999], [0.0]])
    with pytest.raises(sd.NonFiniteError, match="in 1 of 3 chains") as caught:
        sd.mala(Broken(), x, 0.01, 200, seed=0)
    assert caught.value.samples == [1] and torch.isfinite(caught.value.state).all()
