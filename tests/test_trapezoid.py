"""The exponential trapezoidal rule for reversals with noise of processes with matrix coefficients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_coupled import COUPLED, Full, response

import sdediff as sd
from sdediff import CoupledTrapezoid
from sdediff.grids import Power
from sdediff.solvers.exponential import in_log_snr
from sdediff.solvers.exponential.propagators import propagators

F64 = torch.float64
CLD = sd.CLD()


def single(std, sde=CLD):
    return sd.ExactScore(sde, sd.densities.Mixture([[1.0]], std=std).to(dtype=F64))


def law_of(solver, score, grid, t1, eta=1.0):
    """Mean and covariance at t1 on Gaussian data of one coordinate, exactly: from the responses to start and noises."""
    process = score.sde.reverse(score, eta)
    nodes = sd.grids.resolve(process, 1.0, t1, grid=grid)
    base, matrix, noises = response(process, solver, nodes, 2)
    start = score.law(1.0)
    return base + matrix @ start.means[0], matrix @ start.covariances[0] @ matrix.T + noises.T @ noises


def position_error(solver, score, grid, t1=1e-3):
    """sqrt(2 KL) of the position at t1: for small errors about that of its standard deviation times sqrt(2)."""
    mean, covariance = law_of(solver, score, grid, t1)
    exact = score.law(t1)
    ratio = float(covariance[0, 0] / exact.covariances[0, 0, 0])
    shift = float((mean - exact.means[0])[0].square() / exact.covariances[0, 0, 0])
    return math.sqrt(max(ratio - 1 - math.log(ratio) + shift, 0.0))


# ---- the rule -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_on_gaussian_data_the_implicit_equation_is_solved(std, eta):
    """x_s = Psi x + T p(x) + W (p(x_s) - p(x)) + R z, solved here with the gain of the exact posterior: 1e-9.

    All steps but the last, which has no evaluation at its end and uses its guess.
    """
    score = single(std)
    nodes = sd.grids.resolve(CLD, 1.0, 1e-2, grid=Power(9, 2.0))
    steps = propagators(CLD, nodes, torch.full((9,), eta**2, dtype=F64))
    kernel = CLD.scales(nodes).kernel
    column = torch.tensor([[1.0], [0.0]], dtype=F64)
    gains = []
    for scale, noise in zip(kernel.scale[:, 0], kernel.covariance[:, 0], strict=True):
        spread = scale @ column
        gains.append(std**2 * column @ spread.T @ torch.linalg.inv(noise + std**2 * spread @ spread.T))
    covariance = score.law(1.0).covariances[0]
    for k in range(8):
        end, _ = steps.weights(in_log_snr, CLD, k, range(k + 1, k - 1, -1))[:, 0]
        left = torch.eye(2, dtype=F64) - end @ gains[k + 1]
        matrix = torch.linalg.solve(left, steps.psi[k, 0] + (steps.total[k, 0] - end) @ gains[k])
        noise = torch.linalg.solve(left, torch.linalg.cholesky(steps.noise[k, 0]))
        earlier, covariance = covariance, matrix @ covariance @ matrix.T + noise @ noise.T
    joint = matrix @ earlier  # of the states at nodes 8 and 7
    # the last step, explicit: the prediction at node 8 and its guess from the change since node 7
    end = steps.weights(in_log_snr, CLD, 8, range(9, 7, -1))[0, 0]
    now = steps.psi[8, 0] + (steps.total[8, 0] + 0.5 * end) @ gains[8]
    before = -0.5 * end @ gains[7]
    covariance = (
        now @ covariance @ now.T
        + now @ joint @ before.T
        + before @ joint.T @ now.T
        + before @ earlier @ before.T
        + steps.noise[8, 0]
    )
    got_mean, got = law_of(CoupledTrapezoid(max(1.5, std)), score, Power(9, 2.0), 1e-2, eta)
    torch.testing.assert_close(got, covariance, rtol=1e-9, atol=1e-12)
    if eta == 1:  # where the prediction is a martingale, its mean stays right whatever the steps
        torch.testing.assert_close(got_mean, score.law(1e-2).means[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("sde", COUPLED, ids=lambda p: type(p).__name__)
def test_data_of_one_point_come_back_exactly(sde):
    """The prediction is constant, so any steps are exact, on scalar, diagonal, block and full matrices."""
    shape = {"Full": (3,), "Blurring": (2, 3)}.get(type(sde).__name__, (2,))
    point = torch.arange(1.0, math.prod(shape) + 1, dtype=F64).reshape(1, *shape)
    atom, x0 = sd.ExactScore(sde, sd.densities.Empirical(point)), sde.lift(point)
    start, end = sde.marginal(x0, sde.t_max), sde.marginal(x0, 0.05)
    z = torch.randn(5, start.mean[0].numel(), generator=torch.Generator().manual_seed(0), dtype=F64)
    x = start.from_noise(z.reshape(5, *start.mean.shape[1:]))
    flow = sd.solve(sde.probability_flow(atom), x, solver=CoupledTrapezoid(), grid=Power(6, 2.0), t1=0.05).x
    exact = sd.solve(sde.probability_flow(atom), x, solver=sd.CoupledMultistep(1), steps=1, t1=0.05).x
    torch.testing.assert_close(flow, exact, rtol=1e-8, atol=1e-8)
    many = start.from_noise(
        torch.randn(20_000, *start.mean.shape[1:], dtype=F64, generator=torch.Generator().manual_seed(1))
    )
    got = sd.solve(sde.reverse(atom), many, solver=CoupledTrapezoid(), grid=Power(6, 2.0), t1=0.05, seed=2).x
    white = end.scales.whiten(got - end.mean).flatten(1)
    squares = (white.square().sum() - white.numel()) / math.sqrt(2 * white.numel())
    assert abs(float(squares)) < 4.9 and float((white.mean(0) * math.sqrt(20_000)).abs().max()) < 5.3


# ---- orders -------------------------------------------------------------------------------------------------------------


def test_weak_order_two():
    """Exact laws on Gaussian data, position and velocity."""
    score, exact = single(0.5), single(0.5).law(0.05)
    deviation = exact.covariances[0].diagonal().sqrt()

    def error(n):
        mean, covariance = law_of(CoupledTrapezoid(), score, Power(n, 2.0), 0.05)
        assert float(((mean - exact.means[0]) / deviation).abs().max()) < 1e-8
        return float(((covariance - exact.covariances[0]) / (deviation[:, None] * deviation)).abs().max())

    assert 1.8 < math.log2(error(160) / error(320)) < 2.3
    assert CoupledTrapezoid.orders.weak == 2


@pytest.mark.parametrize("sde", [CLD, Full()], ids=lambda p: type(p).__name__)
def test_order_two_on_the_flow_of_a_mixture(sde):
    """With the secant of one number, which is not the Jacobian of a mixture: that touches the constant only."""
    means = [[1.0, 0.0], [-0.6, 0.4]] if sde is CLD else [[1.0, 0.0, 0.3], [-0.6, 0.4, 0.0]]
    score = sd.ExactScore(sde, sd.densities.Mixture(means, std=[0.5, 0.7], weights=[1, 2]).to(dtype=F64))
    flow, x = sde.probability_flow(score), score.sample(20, 1.0, seed=0)
    truth = sd.solve(flow, x, solver=sd.Scipy("DOP853", rtol=1e-12, atol=1e-13), t1=0.05).x
    errors = [
        float(
            (sd.solve(flow, x, solver=CoupledTrapezoid(), grid=Power(n, 2.0), t1=0.05).x - truth).square().mean().sqrt()
        )
        for n in (80, 160)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.2


# ---- worth four of Euler's ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 15, 20, 30, 40])
@pytest.mark.parametrize("std", [0.1, 0.5])
def test_an_evaluation_is_worth_eight_of_euler_on_a_mode(n, std):
    """Exact laws, Euler-Maruyama on the best of three grids."""
    score = single(std)
    euler = min(position_error(sd.EulerMaruyama(), score, Power(8 * n, power)) for power in (1.0, 2.0, 3.0))
    assert position_error(CoupledTrapezoid(), score, Power(n, 3.0)) < euler


def test_velocities_come_right_later_than_positions():
    """By exact law: with 20 evaluations their standard deviation is off by more than a tenth, with 320 by less than .01."""
    score = single(0.1)
    exact = score.law(1e-3).covariances[0].diagonal()
    position, velocity = (law_of(CoupledTrapezoid(), score, Power(20, 3.0), 1e-3)[1].diagonal() / exact).sqrt() - 1
    assert abs(float(position)) < 0.01 and abs(float(velocity)) > 0.1
    later = law_of(CoupledTrapezoid(), score, Power(320, 3.0), 1e-3)[1].diagonal() / exact
    assert float((later.sqrt() - 1).abs().max()) < 0.01


RING = sd.densities.ring(8, weights=[1, 2, 3, 4, 5, 6, 7, 8]).to(dtype=F64)


class Spectrum:
    """How far positions are from the exact law: root mean square difference of characteristic functions.

    At frequencies of size 1, 3 and 10, which is at lengths of the ring, of the gap between modes and of a mode. The sampling
    error of n samples, known exactly, is taken off.
    """

    def __init__(self, score, t):
        law, generator = score.law(t), torch.Generator().manual_seed(5)
        means, covariances = law.means[:, :2], law.covariances[:, :2, :2]
        self.at = [s * torch.randn(300, 2, generator=generator, dtype=F64) for s in (1.0, 3.0, 10.0)]
        self.exact = []
        for w in self.at:
            damped = torch.exp(-0.5 * torch.einsum("fi,kij,fj->kf", w, covariances, w)) * law.weights[:, None]
            phase = means @ w.T
            self.exact.append(torch.complex((damped * phase.cos()).sum(0), (damped * phase.sin()).sum(0)))

    def errors(self, x):
        found = []
        for w, exact in zip(self.at, self.exact, strict=True):
            seen = torch.exp(1j * (x[:, :2] @ w.T)).mean(0)
            square = (seen - exact).abs().square().mean() - (1 - exact.abs().square().mean()) / len(x)
            found.append(float(square.clamp_min(0).sqrt()))
        return found


def worth_four(n, samples, powers):
    """Errors of the rule with n evaluations on a ring of uneven weights, and the smallest of Euler's with 4 n."""
    score = sd.ExactScore(CLD, RING)
    back, spectrum = CLD.reverse(score), Spectrum(score, 1e-3)
    start = score.sample(samples, 1.0, seed=1)

    def errors(solver, count, power):
        return spectrum.errors(sd.solve(back, start, solver=solver, grid=Power(count, power), t1=1e-3, seed=2).x)

    euler = [errors(sd.EulerMaruyama(), 4 * n, power) for power in powers]
    return errors(CoupledTrapezoid(), n, 3.0), [min(column) for column in zip(*euler, strict=True)]


def test_an_evaluation_is_worth_four_of_euler_on_the_ring():
    """15 against 60, at all three lengths; 30,000 samples tell errors of .003 from 0."""
    mine, euler = worth_four(15, 30_000, (3.0,))
    assert all(a < b for a, b in zip(mine, euler, strict=True)), (mine, euler)


@pytest.mark.soak
@pytest.mark.parametrize("n", [12, 15, 20, 30])
def test_an_evaluation_is_worth_four_of_euler_on_the_ring_at_length(n):
    mine, euler = worth_four(n, 200_000, (2.0, 3.0))
    assert all(a < b for a, b in zip(mine, euler, strict=True)), (mine, euler)


# ---- conventions --------------------------------------------------------------------------------------------------------


def test_each_step_is_one_evaluation_and_each_sample_its_own():
    score = sd.ExactScore(CLD, RING)
    back, x = CLD.reverse(score), score.sample(6, 1.0, seed=1)
    told = {"solver": CoupledTrapezoid(), "grid": Power(10, 3.0), "t1": 1e-3}
    sol = sd.solve(back, x, noise=sd.PerSample(list(range(6))), **told)
    assert sol.stats["nfe"] == sol.stats["score_calls"] == 10
    part = sd.solve(back, x[2:4], noise=sd.PerSample([2, 3]), **told).x
    torch.testing.assert_close(part, sol.x[2:4], rtol=1e-9, atol=1e-9)
    narrow = sd.solve(back, x.float(), noise=sd.PerSample(list(range(6))), **told).x
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(CLD.position(narrow).double(), CLD.position(sol.x), rtol=0, atol=2e-3)


def test_a_score_with_a_say_in_velocities_is_heard():
    """What a learned score predicts outside the directions of the data goes through unchanged, to the order of the rule."""
    exact = sd.ExactScore(CLD, RING)
    score = sd.FunctionScore(lambda x, t: exact(x, t) + 0.5 * torch.tanh(x.flip(1)), CLD)
    flow, x = CLD.probability_flow(score), exact.sample(10, 1.0, seed=0)
    truth = sd.solve(flow, x, solver=sd.Scipy("DOP853", rtol=1e-11, atol=1e-12), t1=0.2).x
    errors = [
        float(
            (sd.solve(flow, x, solver=CoupledTrapezoid(), grid=Power(n, 2.0), t1=0.2).x - truth).square().mean().sqrt()
        )
        for n in (40, 80, 160)
    ]
    assert all(1.7 < math.log2(a / b) < 2.4 for a, b in itertools.pairwise(errors)), errors


def test_errors_of_a_score_near_the_end_are_not_carried_on():
    """A noise prediction off by .5 where t > .5, which is by a hundred in the data, leaves no trace; unlimited it does.

    4,000 samples tell errors of .01 from 0.
    """
    exact = sd.ExactScore(CLD, RING)

    def wrong(x, t):
        off = 0.5 * torch.cos(5 * x) * (t > 0.5).double().reshape(-1, 1)
        return exact(x, t) - CLD.scales(t).pull(off)  # s = -R^-T eps

    back, x = CLD.reverse(sd.FunctionScore(wrong, CLD)), exact.sample(4000, 1.0, seed=1)
    spectrum = Spectrum(exact, 1e-3)

    def errors(solver):
        return spectrum.errors(sd.solve(back, x, solver=solver, grid=Power(20, 3.0), t1=1e-3, seed=2).x)

    assert max(errors(CoupledTrapezoid())) < 0.03
    assert errors(CoupledTrapezoid(1e6))[0] > 0.06


def test_refusals():
    with pytest.raises(ValueError, match="max_std"):
        CoupledTrapezoid(0.0)
    score = sd.ExactScore(CLD, RING)
    x = score.sample(3, 1.0, seed=0)
    with pytest.raises(ValueError, match=r"cannot reach t = 0.*t1 > 0, such as 0.001"):
        sd.solve(CLD.reverse(score), x, solver=CoupledTrapezoid(), steps=5, t1=0.0)
    with pytest.raises(TypeError, match="use SASolver"):
        sd.solve(sd.VP().reverse(lambda x, t: -x), x, solver=CoupledTrapezoid(), steps=5)


def slope_of(law):
    """The derivative of the end, and its central difference, by a shift of the start."""
    exact = sd.ExactScore(CLD, law)
    x, back = exact.sample(4, 1.0, seed=0), CLD.reverse(exact)

    def end(shift):
        told = {"solver": CoupledTrapezoid(), "grid": Power(5, 2.0), "t1": 0.05, "seed": 1}
        return sd.solve(back, x + shift, differentiable=True, **told).x.sum()

    shift = torch.zeros((), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(shift), shift)
    up, down = (float(end(torch.tensor(h, dtype=F64))) for h in (1e-6, -1e-6))
    return float(slope), (up - down) / 2e-6


def test_gradients_reach_the_start():
    slope, difference = slope_of(RING)
    assert slope == pytest.approx(difference, rel=1e-6)


def test_a_prediction_that_never_changes_gives_no_quiet_nan():
    """Data of one point: the secant is 0 over 0, and its derivative too."""
    slope, difference = slope_of(sd.densities.Empirical(torch.ones(1, 2, dtype=F64)))
    assert slope == pytest.approx(difference, rel=1e-6)
