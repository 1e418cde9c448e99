"""Critically damped Langevin, correlated OU, blurring, and the exponential solver that carries matrices."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy import stats

import sdediff as sd
from sdediff.noise import Stream
from sdediff.solvers.exponential import (
    CoupledMultistep,
    ExponentialMultistep,
    Polynomial,
    in_log_snr,
    in_noise_level,
    in_power,
    in_time,
)
from sdediff.solvers.exponential.propagators import propagators

F64 = torch.float64
RING = sd.densities.ring(8).to(dtype=F64)


# ---- processes ----------------------------------------------------------------------------------------------------------


def test_cld_has_the_coefficients_of_its_source():
    cld = sd.CLD(beta=4.0, mass=0.25)
    assert cld.friction == pytest.approx(1.0)  # critical: Gamma² = 4 M
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=F64)
    drift = cld.drift(x, 0.3)
    torch.testing.assert_close(drift, torch.tensor([[48.0, 64.0, -4 - 48.0, -8 - 64.0]], dtype=F64))
    torch.testing.assert_close(
        (cld.diffusion(x, 0.3) @ torch.ones_like(x))[0], math.sqrt(8) * torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=F64)
    )
    assert torch.equal(cld.lift(x)[:, :4], x) and not cld.lift(x)[:, 4:].any()
    assert torch.equal(cld.position(x), x[:, :2]) and torch.equal(cld.velocity(x), x[:, 2:])


@pytest.mark.parametrize("mass", [0.25, 2.0])
def test_cld_ends_in_its_equilibrium(mass):
    """N(0, I) N(0, M I), stationary in the sense of Fokker and Planck, and the end of a long clock."""
    cld = sd.CLD(beta=4.0, mass=mass, t_max=10.0)
    end = cld.scales(10.0).kernel
    torch.testing.assert_close(end.covariance[0], torch.diag(torch.tensor([1.0, mass], dtype=F64)), rtol=0, atol=1e-6)
    assert end.scale.abs().max() < 1e-6
    law = sd.densities.Mixture([[0.0, 0.0]], covariance=torch.diag(torch.tensor([1.0, mass], dtype=F64)))
    assert sd.verify.stationary(cld, law).passed


def test_critical_damping_forgets_fastest():
    """The slowest rate of decay is largest where Gamma² = 4 M."""

    def slowest(friction):
        (matrix,) = sd.CLD(friction=friction).coefficients(torch.tensor(0.5, dtype=F64))[0]
        return -float(torch.linalg.eigvals(matrix).real.max())

    assert slowest(1.0) == pytest.approx(8.0, rel=1e-6)
    assert slowest(1.0) > slowest(0.9) + 0.5 and slowest(1.0) > slowest(1.1) + 0.5


def test_hybrid_kernel_averages_over_the_velocities():
    """N(Phi (x_0, 0), Sigma + Phi diag(0, gamma M) Phiᵀ), against the mean over 20,000 velocities within 5 standard errors."""
    cld, t = sd.CLD(gamma=0.5), 0.1
    kernel = cld.moments(torch.tensor(t, dtype=F64))
    phi, sigma = kernel.scale[0], kernel.covariance[0]
    extra = phi @ torch.diag(torch.tensor([0.0, 0.5 * 0.25], dtype=F64)) @ phi.T
    torch.testing.assert_close(cld.scales(t).kernel.covariance[0], sigma + extra)
    x0 = torch.tensor([[1.5]], dtype=F64)
    law = cld.marginal(cld.lift(x0), t)
    x = law.from_noise(torch.tensor([[0.7, -0.4]], dtype=F64))
    v = math.sqrt(0.125) * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    conditional = torch.distributions.MultivariateNormal(torch.cat([x0.expand_as(v), v], 1) @ phi.T, sigma)
    density = conditional.log_prob(x).exp()
    error = 5 * float(density.std()) / math.sqrt(len(v))
    assert abs(float(density.mean()) - float(law.log_prob(x).exp())) < error < 0.1 * float(density.mean())


def test_correlated_ou_has_the_kernel_of_its_matrices():
    """K = I: e^{-t/2} and (1 - e^{-t}) LLᵀ; in general the Lyapunov equation at the end."""
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=F64)
    t = torch.tensor([1e-6, 0.1, 2.0], dtype=F64)
    kernel = sd.CorrelatedOU(factor).moments(t)
    gram = factor @ factor.T
    torch.testing.assert_close(kernel.covariance[:, 0], -torch.expm1(-t).reshape(3, 1, 1) * gram, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        kernel.scale[:, 0], torch.exp(-t / 2).reshape(3, 1, 1) * torch.eye(2), rtol=1e-12, atol=0
    )
    rates = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=F64)
    end = sd.CorrelatedOU(factor, rates, beta=2.0, t_max=40.0).scales(40.0).kernel.covariance[0]
    torch.testing.assert_close(rates @ end + end @ rates.T, 2 * gram, rtol=1e-9, atol=1e-9)
    data = sd.densities.Mixture([[0.0, 0.0]], covariance=gram)
    law = sd.ExactScore(sd.CorrelatedOU(factor), data).law(1.3)
    torch.testing.assert_close(law.covariances[0], gram)  # the data's own covariance stays


def test_blurring_is_what_it_says_in_pixels():
    """Against a cosine transform of scipy's; the kernel from the coefficients against the closed form."""
    from scipy.fft import dctn, idctn

    shape = (2, 5, 4)
    sde = sd.Blurring(shape, 1.5, channels=1)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (0.2, 0.7):
        tau = 0.5 * 1.5**2 * math.sin(math.pi * t / 2) ** 4
        rates = (math.pi**2) * (
            (torch.arange(5.0).double() / 5).square()[:, None] + (torch.arange(4.0).double() / 4).square()
        )
        coefficients = dctn(x.numpy(), axes=(2, 3), norm="ortho") * torch.exp(-rates * tau).numpy()
        mean = float(sd.VP().alpha(t)) * torch.from_numpy(idctn(coefficients, axes=(2, 3), norm="ortho"))
        law = sde.marginal(x, t)
        torch.testing.assert_close(law.mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(law.from_noise(x) - mean, sd.VP().sigma(t) * x, rtol=1e-10, atol=1e-12)
    t = torch.tensor([1e-6, 0.05, 0.6, 1.0], dtype=F64)
    closed, derived = sde.moments(t), sd.AffineSDE.moments(sde, t)
    torch.testing.assert_close(derived.scale, closed.scale, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(derived.covariance, closed.covariance, rtol=1e-9, atol=0)


def test_a_wide_blur_leaves_the_mean():
    sde = sd.Blurring((8,), 40.0, base=sd.VE(sigma_min=1e-3, sigma_max=1e-2))
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(sde.marginal(x, 1.0).mean, x.mean(1, keepdim=True).expand_as(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sd.CLD(mass=-1.0), "mass = -1.0 must be a positive"),
        (lambda: sd.CLD(beta=-1.0), "beta = -1.0 must be finite"),
        (lambda: sd.CLD(t_min=0.0), "at t = 0 positions have no noise yet"),
        (lambda: sd.CLD().lift(torch.zeros(3)), "no axis to append velocities to"),
        (lambda: sd.CorrelatedOU(torch.ones(3)), r"shape \(d, r\)"),
        (lambda: sd.CorrelatedOU(torch.eye(2), torch.eye(3)), r"it must be \(2, 2\)"),
        (lambda: sd.CorrelatedOU(torch.eye(2), -torch.eye(2)), "must pull towards 0"),
        (lambda: sd.Blurring((3, 4), channels=2), "leave no axis"),
        (lambda: sd.Blurring((3, 4)).drift(torch.zeros(1, 4, 3), 0.5), r"blurs states of shape \(3, 4\)"),
        (lambda: CoupledMultistep(5), "must be 1, 2, 3 or 4"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- propagators --------------------------------------------------------------------------------------------------------


class Full(sd.AffineSDE):
    t_min = 1e-3

    def drift_matrix(self, t):
        still = torch.tensor([[-1.0, 2.0, 0.0], [-3.0, -0.5, 0.3], [0.1, 0.2, -0.7]], dtype=F64)
        swing = torch.tensor([[0.0, -1.0, 1.0], [2.0, -1.0, 0.5], [0.3, 0.0, -0.2]], dtype=F64)
        return still + torch.sin(3 * t) * swing

    def offset(self, t):
        return torch.tensor([1.0, 0.0, -2.0], dtype=F64) * t

    def diffusion_matrix(self, t):
        return torch.tensor([[1.0, 0.0], [0.5, 0.3], [0.0, 1.0]], dtype=F64) * (1 + 0.5 * torch.cos(t))


COUPLED = [sd.CLD(), Full(), sd.CorrelatedOU(torch.tensor([[1.0, 0.0], [0.8, 0.3]]), t_max=2.0), sd.Blurring((2, 3))]
GRID = torch.tensor([1.0, 0.6, 0.2, 0.01, 0.002], dtype=F64)


@pytest.mark.parametrize("sde", COUPLED, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 2.0])
def test_a_step_carries_the_law_from_one_time_to_the_next(sde, eta):
    """Psi C_t Psiᵀ + noise = C_s: for a data set of one point the step is exact in law, whatever eta."""
    steps = propagators(sde, GRID, torch.full((4,), eta**2, dtype=F64))
    c = sde.scales(GRID).kernel.covariance
    after = steps.psi @ c[:-1] @ steps.psi.mT + steps.noise
    deviation = torch.diagonal(c[1:], dim1=-2, dim2=-1).sqrt()
    assert ((after - c[1:]).abs() < 1e-9 * deviation.unsqueeze(-1) * deviation.unsqueeze(-2)).all()
    # a constant prediction is integrated exactly, by the quadrature too
    torch.testing.assert_close(steps.weight.sum(1), steps.total, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sde", COUPLED, ids=lambda p: type(p).__name__)
def test_propagator_of_the_reverse_sde_is_the_gain_of_bayes(sde):
    """eta = 1: Psi = C_s Phi(t, s)ᵀ C_t⁻¹, and the noise the covariance of x_s given x_t and x_0."""
    steps = propagators(sde, GRID, torch.ones(4, dtype=F64))
    c = sde.scales(GRID).kernel.covariance
    phi = sde.transition(GRID[1:], GRID[:-1]).scale
    gain = c[1:] @ phi.mT @ torch.linalg.inv(c[:-1])
    size = torch.diagonal(c[1:], dim1=-2, dim2=-1).sqrt()
    back = torch.diagonal(c[:-1], dim1=-2, dim2=-1).sqrt()
    assert (((steps.psi - gain).abs()) * back.unsqueeze(-2) < 1e-8 * size.unsqueeze(-1)).all()
    noise = c[1:] - gain @ c[:-1] @ gain.mT
    assert ((steps.noise - noise).abs() < 1e-8 * size.unsqueeze(-1) * size.unsqueeze(-2)).all()


class Plain(sd.AffineSDE):
    """VP as an affine SDE."""

    t_min = 1e-3

    def drift_matrix(self, t):
        return -0.5 * (0.1 + 19.9 * t)

    def diffusion_matrix(self, t):
        return torch.sqrt(0.1 + 19.9 * t)


VARIABLES = {"ell": in_log_snr, "level": in_noise_level, "power": in_power(0.65)}


@pytest.mark.parametrize(
    ("order", "corrector", "variable"),
    [
        *(
            pytest.param(order, corrector, variable, id=f"{order}-{corrector}-{name}")
            for order in (1, 2, 3, 4)
            for corrector in (False, True)
            for name, variable in VARIABLES.items()
        ),
        pytest.param(3, False, in_time, id="3-False-t"),  # a bisection for every node: one case tells
    ],
)
def test_with_one_number_it_is_the_scalar_solver(order, corrector, variable):
    mine, theirs = sd.ExactScore(Plain(), RING), sd.ExactScore(sd.VP(), RING)
    x = theirs.sample(16, 1.0, seed=0)
    rule = Polynomial(variable)
    scalar = ExponentialMultistep(order, rule=rule, corrector=rule if corrector else None)
    grid = sd.grids.resolve(sd.VP(), 1.0, 1e-3, grid=sd.grids.LogSNR(12))
    for eta in (0.6,) if variable is in_time else (0.0, 0.6, 1.0):
        a = sd.solve(
            mine.sde.reverse(mine, eta), x, solver=CoupledMultistep(order, variable=variable, corrector=corrector),
            grid=grid, seed=3,
        ).x  # fmt: skip
        b = sd.solve(theirs.sde.reverse(theirs, eta), x, solver=scalar, grid=grid, seed=3).x
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("order", "corrector", "named"), [(3, True, 4), (2, True, 3), (3, False, 3)])
def test_strong_guidance_lowers_its_order_too(order, corrector, named):
    """To 2, the corrector's included, with a warning: as the scalar solver of that order."""
    mine, theirs = sd.ExactScore(Plain(), RING), sd.ExactScore(sd.VP(), RING)
    mine.guidance, rule = 5.0, Polynomial(in_power(0.65))
    x = theirs.sample(16, 1.0, seed=0)
    scalar = ExponentialMultistep(2, rule=rule, corrector=rule if corrector else None, corrector_order=1)
    grid = sd.grids.resolve(sd.VP(), 1.0, 1e-3, grid=sd.grids.LogSNR(12))
    with pytest.warns(UserWarning, match=f"weight 5 .* order {named} is lowered to 2"):
        a = sd.solve(
            mine.sde.probability_flow(mine), x, solver=CoupledMultistep(order, corrector=corrector), grid=grid
        ).x
    b = sd.solve(sd.VP().probability_flow(theirs), x, solver=scalar, grid=grid).x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for low in (CoupledMultistep(2, corrector=False), CoupledMultistep(1)):
            sd.solve(mine.sde.probability_flow(mine), x[:1], solver=low, grid=grid)


def test_where_the_prediction_is_constant_two_steps_are_exact():
    """Data of one point, under matrices that do not commute and an offset: the flow against DOP853, and the mean with noise."""
    sde, atom = Full(), torch.tensor([[0.5, -1.0, 2.0]], dtype=F64)
    score = sd.ExactScore(sde, sd.densities.Empirical(atom))
    flow, x = sde.probability_flow(score), score.sample(6, 1.0, seed=0)
    truth = sd.solve(flow, x, solver=sd.Scipy("DOP853", rtol=1e-12, atol=1e-13), t1=0.05).x
    for order in (1, 3):
        got = sd.solve(flow, x, solver=CoupledMultistep(order), grid=[1.0, 0.4, 0.05]).x
        torch.testing.assert_close(got, truth, rtol=0, atol=1e-8)
    nodes = torch.tensor([1.0, 0.4, 0.05], dtype=F64)
    base, matrix, noises = response(sde.reverse(score), CoupledMultistep(1), nodes, 3)
    start, end = sde.marginal(atom, 1.0), sde.marginal(atom, 0.05)
    torch.testing.assert_close(base + matrix @ start.mean[0], end.mean[0], rtol=0, atol=1e-9)
    covariance = matrix @ start.scales.kernel.covariance[0] @ matrix.T + noises.T @ noises
    torch.testing.assert_close(covariance, end.scales.kernel.covariance[0], rtol=1e-8, atol=1e-12)


# ---- orders -------------------------------------------------------------------------------------------------------------

MIXTURE = sd.densities.Mixture([[1.0, 0.0], [-0.6, 0.4]], std=[0.5, 0.7], weights=[1, 2]).to(dtype=F64)


@pytest.fixture(scope="module")
def mixture_flow():
    score = sd.ExactScore(sd.CLD(), MIXTURE)
    flow, x = sd.CLD().probability_flow(score), score.sample(20, 1.0, seed=0)
    truth = sd.solve(flow, x, solver=sd.Scipy("DOP853", rtol=1e-12, atol=1e-13), t1=0.05).x
    return flow, x, truth


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("corrector", [False, True])
def test_order_on_the_flow_of_a_mixture(mixture_flow, order, corrector):
    flow, x, truth = mixture_flow
    solver = CoupledMultistep(order, corrector=corrector)
    errors = [
        float((sd.solve(flow, x, solver=solver, grid=sd.grids.Power(n, 2.0), t1=0.05).x - truth).square().mean().sqrt())
        for n in (80, 160)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - solver.orders.ode) < 0.2
    assert solver.orders.ode == order + corrector


def response(process, solver, nodes, d):
    """The affine map of a solver where the score is affine: x -> base + M x + sum of R z over the noises."""
    count = len(nodes) - 1
    rows = [(-1, 0)] * (d + 1) + [(k, i) for k in range(count) for i in range(d)]

    class Unit(Stream):
        step = 0

        def normal(self, shape=None):
            z = torch.zeros(len(rows), d, dtype=F64)
            for row, (k, i) in enumerate(rows):
                z[row, i] = float(k == self.step)
            self.step += 1
            return z

    x = torch.zeros(len(rows), d, dtype=F64)
    x[1 : d + 1] = torch.eye(d, dtype=F64)
    advance = solver.prepare(process, nodes, Unit())
    for k in range(count):
        x = advance(k, x)
    return x[0], (x[1 : d + 1] - x[0]).T, x[d + 1 :] - x[0]


GAUSSIAN = sd.ExactScore(sd.CLD(), sd.densities.Mixture([[1.0]], std=0.5).to(dtype=F64))


def law_error(solver, n, power, eta=1.0):
    """The largest error of mean and covariance at t = 0.05, in standard deviations and their products: no sampling."""
    process = GAUSSIAN.sde.reverse(GAUSSIAN, eta)
    nodes = sd.grids.resolve(process, 1.0, 0.05, grid=sd.grids.Power(n, power))
    base, matrix, noises = response(process, solver, nodes, 2)
    start, end = GAUSSIAN.law(1.0), GAUSSIAN.law(0.05)
    mean = base + matrix @ start.means[0]
    covariance = matrix @ start.covariances[0] @ matrix.T + noises.T @ noises
    deviation = end.covariances[0].diagonal().sqrt()
    pairs = deviation[:, None] * deviation
    return max(
        float(((mean - end.means[0]) / deviation).abs().max()),
        float(((covariance - end.covariances[0]) / pairs).abs().max()),
    )


@pytest.mark.parametrize(("order", "corrector"), [(1, False), (2, False), (2, True), (3, False)])
def test_weak_order_with_noise(order, corrector):
    """On Gaussian data the law that a solver gives follows exactly from its responses to start and noises."""
    solver = CoupledMultistep(order, corrector=corrector)
    slope = math.log2(law_error(solver, 160, 2.0) / law_error(solver, 320, 2.0))
    claimed = solver.orders.weak
    assert claimed == min(2, order + corrector)
    # with a corrector the last tenths come late: 1.80 here, 1.96 from 320 to 640
    assert claimed - (0.25 if corrector else 0.1) < slope < claimed + (0.1 if order == 1 else 0.6)


# ---- the ring -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ring():
    cld = sd.CLD()
    score = sd.ExactScore(cld, RING)
    return cld, score


LEVEL = 1e-6
"""Of each test of a sample below; there are 30 of them, so 3e-5 for this file."""


def recovered(x, law, level=LEVEL):
    """Modes, their means and variance, projections, energy distance (of 1,000): n samples against the exact law.

    At n = 4,000 and this level it sees, with probability .99: the variance within modes off by 10 %, a mean of modes by .11
    standard deviations along any axis, a weight of one mode by 30 %.
    """
    inside = sd.metrics.within_mode(x, law)
    assert sd.metrics.mode_occupancy(x, law).p_value > level
    assert inside.p_value > level, f"variance within modes off by {inside.variance:.3f}"
    assert sd.metrics.ks_projections(x, law).p_value > level
    floor = sd.metrics.noise_floor(sd.metrics.energy_distance, law, 1000, repeats=12, seed=5)
    distance = sd.metrics.energy_distance(x[:1000], law.sample(1000, seed=77))
    assert distance < floor.mean + stats.t.isf(level, 11) * float(floor.values.std())


@pytest.mark.parametrize("kind", ["reverse", "flow"])
def test_the_ring_comes_back_from_the_joint_score(ring, kind):
    """Positions at t_min against the exact p at t_min, started from the exact law at t_max."""
    cld, score = ring
    process = cld.reverse(score) if kind == "reverse" else cld.probability_flow(score)
    start = score.sample(4000, 1.0, seed=1)
    solver = CoupledMultistep(2) if kind == "reverse" else CoupledMultistep()
    x = sd.solve(process, start, solver=solver, grid=sd.grids.Power(160, 3.0), t1=1e-3, seed=2).x
    joint = score.law(1e-3)
    positions = sd.densities.Mixture(joint.means[:, :2], covariance=joint.covariances[:, :2, :2]).to(dtype=F64)
    recovered(cld.position(x), positions)
    velocities = joint.covariances[:, 2:, 2:]
    assert torch.allclose(velocities, velocities[:1])
    spread = cld.velocity(x) - joint.means[0, 2:]
    q = float(spread.square().sum() / velocities[0, 0, 0])
    assert 2 * min(stats.chi2.cdf(q, 8000), stats.chi2.sf(q, 8000)) > LEVEL


def test_a_score_that_is_ten_percent_off_is_seen(ring):
    cld, score = ring
    start = score.sample(4000, 1.0, seed=1)
    for wrong in (lambda x, t: 1.1 * score(x, t), lambda x, t: score(x * torch.tensor([1.0, 1, 1.1, 1.1]).to(x), t)):
        process = cld.reverse(sd.FunctionScore(wrong, cld))
        x = sd.solve(process, start, solver=CoupledMultistep(2), grid=sd.grids.Power(80, 3.0), t1=1e-3, seed=2).x
        with pytest.raises(AssertionError):
            recovered(cld.position(x), RING)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (sd.EulerMaruyama(), {"steps": 800}),
        (sd.StochasticHeun(), {"grid": sd.grids.Power(200, 2.0)}),
        (sd.SRA1(), {"grid": sd.grids.Power(200, 2.0)}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_general_solvers_take_the_reverse_sde(ring, solver, options):
    cld, score = ring
    start = score.sample(1500, 1.0, seed=1)
    x = sd.solve(cld.reverse(score), start, solver=solver, t1=1e-3, seed=2, **options).x
    recovered(cld.position(x), RING)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (sd.Heun(), {"grid": sd.grids.Power(500, 3.0)}),
        (sd.RK4(), {"grid": sd.grids.Power(150, 3.0)}),
        (sd.DormandPrince(rtol=1e-6, atol=1e-6), {}),
        (sd.CoupledMultistep(), {"grid": sd.grids.Power(200, 3.0)}),
        (sd.CoupledMultistep(4), {"grid": sd.grids.LogSNR(200)}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_solvers_agree_on_the_flow(ring, ring_flow, solver, options):
    cld, _ = ring
    flow, x, truth = ring_flow
    got = sd.solve(flow, x, solver=solver, t1=1e-3, **options).x
    assert (cld.position(got) - cld.position(truth)).norm(dim=1).median() < 2e-4


@pytest.fixture(scope="module")
def ring_flow(ring):
    cld, score = ring
    flow, x = cld.probability_flow(score), score.sample(8, 1.0, seed=4)
    return flow, x, sd.solve(flow, x, solver=sd.Scipy("DOP853", rtol=1e-10, atol=1e-10), t1=1e-3).x


def test_an_exponential_step_is_worth_four_of_euler_on_the_flow(ring):
    """Root mean square error of positions, the best of three grids for Euler: it is worth at least sixteen."""
    cld, score = ring
    flow, x = cld.probability_flow(score), score.sample(100, 1.0, seed=1)
    truth = sd.solve(flow, x, solver=CoupledMultistep(), grid=sd.grids.Power(300, 3.0), t1=1e-3).x

    def error(solver, n, power):
        y = sd.solve(flow, x, solver=solver, grid=sd.grids.Power(n, power), t1=1e-3).x
        return float(cld.position(y - truth).square().sum(1).mean().sqrt())

    euler = min(error(sd.EulerMaruyama(), 320, power) for power in (1.0, 2.0, 3.0))
    assert error(CoupledMultistep(), 20, 3.0) < euler


def test_an_exponential_step_is_worth_four_of_euler_with_noise():
    """Exact laws on Gaussian data, the best of three grids for Euler-Maruyama."""
    euler = min(law_error(sd.EulerMaruyama(), 160, power) for power in (1.0, 2.0, 3.0))
    assert law_error(CoupledMultistep(2), 40, 2.0) < euler


# ---- conventions --------------------------------------------------------------------------------------------------------


def test_each_step_is_one_evaluation_and_each_sample_has_its_own_noise(ring):
    cld, score = ring
    back, x = cld.reverse(score), score.sample(6, 1.0, seed=1)
    grid = sd.grids.Power(10, 3.0)
    sol = sd.solve(back, x, solver=CoupledMultistep(), grid=grid, t1=1e-3, noise=sd.PerSample(list(range(6))))
    assert sol.stats["nfe"] == sol.stats["score_calls"] == 10
    part = sd.solve(back, x[2:4], solver=CoupledMultistep(), grid=grid, t1=1e-3, noise=sd.PerSample([2, 3])).x
    torch.testing.assert_close(part, sol.x[2:4], rtol=1e-9, atol=1e-9)
    coarse = sd.solve(back, x.float(), solver=CoupledMultistep(), grid=grid, t1=1e-3, seed=0).x
    assert coarse.dtype == torch.float32
    narrow = sd.solve(cld.probability_flow(score), x.float(), solver=CoupledMultistep(), grid=grid, t1=0.01).x
    wide = sd.solve(cld.probability_flow(score), x, solver=CoupledMultistep(), grid=grid, t1=0.01).x
    torch.testing.assert_close(cld.position(narrow).double(), cld.position(wide), rtol=1e-3, atol=1e-3)


def test_refusals_of_the_solver(ring):
    cld, score = ring
    x = score.sample(3, 1.0, seed=0)
    with pytest.raises(ValueError, match=r"cannot reach t = 0.*t1 > 0, such as 0.001"):
        sd.solve(cld.reverse(score), x, solver=CoupledMultistep(), steps=5, t1=0.0)
    with pytest.raises(ValueError, match="needs a reversal with noise"):
        sd.solve(cld.probability_flow(score), x, solver=CoupledMultistep(stochasticity=1.0), steps=5)
    with pytest.raises(TypeError, match="use ExponentialMultistep"):
        sd.solve(sd.VP().reverse(lambda x, t: -x), x, solver=CoupledMultistep(), steps=5)
    own = sd.solve(cld.reverse(score, 0.7), x, solver=CoupledMultistep(), steps=5, seed=0).x
    told = sd.solve(cld.reverse(score), x, solver=CoupledMultistep(stochasticity=0.7), steps=5, seed=0).x
    torch.testing.assert_close(own, told)


def test_blurred_images_come_back():
    """Two images and one pixel of noise between them: the flow leads to one of them."""
    images = torch.zeros(2, 1, 4, 4, dtype=F64)
    images[0, 0, :2], images[1, 0, :, 2:] = 1.0, 1.0
    sde = sd.Blurring((1, 4, 4), 2.0, channels=1)
    score = sd.ExactScore(sde, sd.densities.Mixture(images, std=0.05).to(dtype=F64))
    flow = sde.probability_flow(score)
    for process, solver in ((flow, CoupledMultistep()), (sde.reverse(score), CoupledMultistep(2))):
        x = sd.sample(process, 40, solver=solver, grid=sd.grids.Power(40, 2.0), t1=1e-3, seed=0).x
        nearest = (x.unsqueeze(1) - images).flatten(2).norm(dim=2).min(1).values
        assert nearest.max() < 0.05 * math.sqrt(stats.chi2.isf(1e-8, 16)) * 1.2
        assert {int(i) for i in (x.unsqueeze(1) - images).flatten(2).norm(dim=2).argmin(1)} == {0, 1}


def test_cld_learns_its_joint_score():
    """Denoising (hybrid) score matching: a linear network on Gaussian data finds the exact score, which is linear."""
    cld = sd.CLD()
    data = sd.densities.Mixture([[0.0]], std=0.7)
    exact = sd.ExactScore(cld, data)
    t = 0.35

    class Linear(torch.nn.Module):
        event_shape = (2,)

        def __init__(self):
            super().__init__()
            self.matrix = torch.nn.Parameter(torch.zeros(2, 2))

        def forward(self, x, t):
            return x @ self.matrix.T

    learned = sd.NoisePrediction(cld, Linear())
    x0 = cld.lift(data.sample(40_000, seed=0))
    z = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    state, target = learned.example(x0, torch.tensor(t, dtype=F64), z)
    assert torch.equal(target, z)
    learned.net.matrix.data = torch.linalg.lstsq(state, target).solution.T  # the minimiser of the loss on these
    probe = torch.eye(2)
    error = (learned(probe, 0.35) - exact(probe, 0.35)).abs() / exact(probe, 0.35).abs().max()
    assert error.max() < 0.05  # 5 standard errors: each entry is known to 1/√40,000 of the largest, times the condition
    loss = sd.training.DenoisingLoss(learned, times=sd.training.Uniform(t_min=0.35, t_max=0.3501))
    best = loss(x0[:2000], generator=torch.Generator().manual_seed(2)).detach()
    learned.net.matrix.data *= 1.2
    assert loss(x0[:2000], generator=torch.Generator().manual_seed(2)) > best
    untrained = sd.NoisePrediction(cld, sd.networks.MLP((2,), width=16, depth=1))
    fit = sd.training.fit(
        untrained, x0[:512], steps=60, batch_size=128, lr=3e-3, warmup=5, held_out=0.0, seed=0, progress=False
    )
    assert fit.losses[-10:].mean() < 0.7 * fit.losses[:5].mean()
