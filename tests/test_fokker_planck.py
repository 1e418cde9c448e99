"""The Fokker-Planck solver: its matrix against the operator by derivatives, its laws against closed forms, its orders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse.linalg import expm_multiply

import sdediff as sd
from sdediff.affine.noise import BlockNoise
from sdediff.verify.operator import fokker_planck as operator

D = sd.densities
LEVEL = 1e-7
"""False-alarm rate of one statistical check; this file makes two."""


class Rotating(sd.SDE):
    """Everything at once: a drift that turns, and a root that depends on both coordinates, of changing correlation."""

    def f(self, x, t):
        a, b = x.unbind(1)
        return torch.stack([b - 0.5 * a * (1 + t), -a - 0.3 * b + 0.2 * torch.sin(a)], 1)

    def g(self, x, t):
        a, b = x.unbind(1)
        first = torch.stack([1 + 0.2 * torch.cos(b), 0.3 * torch.sin(a)], 1)
        second = torch.stack([0.2 * torch.cos(a + b), 0.9 + 0.2 * torch.sin(b)], 1)
        return sd.Dense(torch.stack([first, second], 1))


class Multiplicative(sd.SDE):
    """On the line, with noise that depends on the state."""

    def f(self, x, t):
        return torch.sin(2 * x) - 0.8 * x

    def g(self, x, t):
        return (0.6 + 0.3 * torch.cos(x)) * (1 + 0.5 * t)


class Rigid(sd.SDE):
    """A drift that outruns the noise by far, noise that vanishes on half of the plane."""

    def f(self, x, t):
        return 1e4 * x.flip(1) * torch.tensor([[1.0, -1.0]])

    def g(self, x, t):
        return x.clamp_min(0)


def normal(d, std=1.0):
    return D.Mixture(torch.zeros(1, d), std=std)


def slope(errors: list[float]) -> float:
    """The order seen from one halving to the next, the last two."""
    return math.log2(errors[-2] / errors[-1])


# ---- the matrix ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sde", "cells"),
    [
        (Rotating(), sd.Cells((-3, -2), (3, 2.5), (30, 24))),
        (Rigid(), sd.Cells((-3, -3), (3, 3), 20)),
        (Multiplicative(), sd.Cells(-3, 3, 50)),
        (sd.OU().reverse(lambda x, t: -x), sd.Cells((-3, -3), (3, 3), 20)),
        (sd.CIR(), sd.Cells(0, 5, 50)),
    ],
)
def test_mass_moves_between_neighbours_and_none_is_lost(sde, cells):
    matrix = sd.FokkerPlanck(sde, cells).generator(0.4).tocoo()
    away = matrix.row != matrix.col
    assert matrix.data[away].min() >= 0 and matrix.data[away].max() > 0
    size = abs(matrix.data).max()
    assert abs(matrix.sum(0)).max() <= 1e-14 * size
    spread = np.abs(np.subtract(*(np.stack(np.unravel_index(i, cells.count)) for i in (matrix.row, matrix.col)))).max()
    assert spread == 1


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize(("sde", "d"), [(Rotating(), 2), (Multiplicative(), 1)])
def test_the_matrix_is_the_operator_to_second_order(sde, d, falling):
    """Against derivatives taken by automatic differentiation of a root read off column by column, at the same points."""
    if falling:  # a reversal, seen in the direction of its noise: minus its drift
        sde = sde.reverse(lambda x, t: -0.7 * x)
        flipped = lambda x: -sde.drift(x, 0.4)  # noqa: E731
    law = D.Mixture(torch.tensor([[0.4] * d, [-0.6] * d]), std=0.6).to(dtype=torch.float64)
    errors = []
    for n in (40, 80, 160):
        cells = sd.Cells([-2.0] * d, [2.0] * d, n)
        x = cells.centres
        p = law.log_prob(x).exp()
        drift = flipped if falling else (lambda x: sde.drift(x, 0.4))
        exact = operator(drift, lambda x: sde.diffusion(x, 0.4), law.log_prob, x).sum(0) * p
        found = torch.from_numpy(sd.FokkerPlanck(sde, cells).generator(0.4) @ p.numpy())
        inner = (x.abs() < 1.8).all(1)
        errors.append(float((found - exact)[inner].abs().max()))
    assert errors[-1] < 2e-2 * float(exact.abs().max())
    assert 1.85 < slope(errors) < 2.2, errors


def test_without_noise_the_matrix_is_upwind():
    """Of first order: a Markov chain between neighbours cannot do better; the solver does, see below."""

    class Turn(sd.ODE):
        def f(self, x, t):
            return torch.cos(x)

    errors = []
    law = normal(1).to(dtype=torch.float64)
    for n in (100, 200, 400):
        x = (cells := sd.Cells(-3, 3, n)).centres
        p = law.log_prob(x).exp()
        exact = operator(torch.cos, lambda x: sd.Diagonal(0.0), law.log_prob, x).sum(0) * p
        found = torch.from_numpy(sd.FokkerPlanck(Turn(), cells).generator(0.0) @ p.numpy())
        errors.append(float((found - exact)[x[:, 0].abs() < 2.5].abs().max()))
    assert 0.9 < slope(errors) < 1.1, errors


# ---- time ---------------------------------------------------------------------------------------------------------


class Woven(sd.AffineSDE):
    """Correlated noise of constant coefficients."""

    def drift_matrix(self, t):
        return torch.tensor([[-1.0, 0.5], [-0.5, -0.3]], dtype=torch.float64)

    def diffusion_matrix(self, t):
        return torch.tensor([[1.0, 0.3], [0.2, 0.8]], dtype=torch.float64)


class WovenByAction(sd.SDE):
    """The same noise, given by what it does to states."""

    def f(self, x, t):
        return Woven().f(x, t)

    def g(self, x, t):
        return BlockNoise(Woven(), Woven().diffusion_matrix(t).to(x)[None])


def test_noise_given_by_what_it_does():
    """Its matrix is that of its entries; noise taken for diagonal would lose the mixed derivatives."""
    cells = sd.Cells((-3, -3), (3, 3), 12)
    assert isinstance(Woven().diffusion(torch.zeros(1, 2), 0.5), sd.Dense)
    matrix, action = (sd.FokkerPlanck(sde, cells).generator(0.5).toarray() for sde in (Woven(), WovenByAction()))
    assert float(np.abs(matrix - action).max()) < 1e-12 * float(np.abs(matrix).max())


def errors_of_steps(solver, start, exact):
    laws = (solver.solve(start, t0=0.0, t1=1.0, steps=steps, save_at=[1.0]).p[-1] for steps in (8, 16, 32, 64))
    return [0.5 * float((law - exact).abs().sum()) * solver.cells.volume for law in laws]


class Spreading(sd.SDE):
    """Noise alone, correlated in the plane."""

    def f(self, x, t):
        return torch.zeros_like(x)

    def g(self, x, t):
        d = x.shape[1]
        return sd.Dense(torch.tensor([[[1.0, 0.0], [0.5, 0.8]]], dtype=x.dtype)[:, :d, :d])


@pytest.mark.parametrize("d", [1, 2])
def test_noise_is_stepped_in_second_order(d):
    """Against the exponential of the matrix, which is all of the solver where nothing drifts."""
    solver = sd.FokkerPlanck(Spreading(), sd.Cells([-4.0] * d, [4.0] * d, 48))
    start = D.Mixture(torch.tensor([[0.8] * d, [-1.0] * d]), std=0.5)
    first = solver.cells.averages(start)
    exact = expm_multiply(solver.generator(0.0).tocsc(), (first / first.sum() / solver.cells.volume).flatten().numpy())
    errors = errors_of_steps(solver, start, torch.from_numpy(exact).reshape(first.shape))
    assert errors[-1] < 1e-3 and 1.8 < slope(errors) < 2.3, errors


@pytest.mark.parametrize(("sde", "d"), [(Rotating(), 2), (Multiplicative(), 1)])
def test_steps_are_of_second_order(sde, d):
    """Against steps far shorter: what they converge to is held against exact laws below."""
    solver = sd.FokkerPlanck(sde, sd.Cells([-4.0] * d, [4.0] * d, 48))
    start = D.Mixture(torch.tensor([[0.8] * d, [-1.0] * d]), std=0.5)
    errors = errors_of_steps(solver, start, solver.solve(start, t0=0.0, t1=1.0, steps=1024, save_at=[1.0]).p[-1])
    assert errors[-1] < 1e-3 and 1.8 < slope(errors) < 2.3, errors


def test_steps_are_of_second_order_where_coefficients_depend_on_time():
    data = D.Mixture(torch.tensor([[1.0], [-1.0]]), std=0.3)
    solver = sd.FokkerPlanck(sd.VP(), sd.Cells(-5, 5, 400))
    laws = [solver.solve(data, t0=0.0, t1=0.5, steps=steps).p[-1] for steps in (80, 160, 320)]
    differences = [float((a - b).abs().sum()) for a, b in zip(laws[1:], laws[:-1], strict=True)]
    assert 1.8 < slope(differences) < 2.3, differences


def test_adapted_steps_keep_to_their_tolerance():
    data = D.Mixture(torch.tensor([[1.0], [-1.0]]), std=0.2)
    solver = sd.FokkerPlanck(sd.VP(), sd.Cells(-5, 5, 200))
    fine = solver.solve(data, t0=0.0, t1=1.0, steps=4000, save_at=[0.3, 1.0])
    counts = []
    for tolerance in (1e-2, 1e-3, 1e-4):
        law = solver.solve(data, t0=0.0, t1=1.0, tolerance=tolerance, save_at=[0.3, 1.0])
        assert law.ts.tolist() == [0.3, 1.0]
        assert law.stats["time_error"] <= tolerance
        off = 0.5 * (law.p - fine.p).abs().sum(1).max() * solver.cells.volume
        assert 0.005 * tolerance < float(off) < tolerance, (tolerance, float(off))
        counts.append(law.stats["steps"])
    assert 2.2 < counts[2] / counts[1] < 4.5  # √10, as a second-order method may


def test_positive_and_conservative_at_any_step():
    """From a single cell, with steps far beyond what an explicit method would bear, along every direction."""
    for sde, cells in (
        (Rotating(), sd.Cells((-3, -3), (3, 3), 60)),
        (Rigid(), sd.Cells((-3, -3), (3, 3), 40)),
        (sd.OU(), sd.Cells(-4, 4, 500)),
    ):
        x = torch.full((1, len(cells.count)), 0.51, dtype=torch.float64)
        for steps in (1, 3, 40):
            law = sd.FokkerPlanck(sde, cells).solve(x, t0=0.0, t1=0.8, steps=steps)
            assert float(law.p.min()) >= 0
            assert law.stats["mass_error"] < 1e-10
            assert bool(law.p.isfinite().all())


def test_mass_over_thousands_of_steps():
    law = sd.FokkerPlanck(sd.VP(), sd.Cells(-6, 6, 300)).solve(normal(1, std=0.5), steps=5000, save_at=[1.0])
    assert law.stats["mass_error"] < 1e-10 and law.stats["steps"] == 5000


# ---- exact laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [sd.OU(), sd.VP(), sd.SubVP()], ids=lambda s: type(s).__name__)
def test_mixtures_in_the_plane_at_400_cells_a_side(sde):
    data = D.ring(8, std=0.15)
    exact = sd.ExactScore(sde, data)
    law = sd.FokkerPlanck(sde, sd.Cells((-4.2, -4.2), (4.2, 4.2), 400)).solve(data, t0=0.0, t1=0.02, steps=5)
    for t in (0.02, 0.4):
        if t > 0.02:
            law = sd.FokkerPlanck(sde, law.cells).solve(law.p[-1], t0=0.02, t1=t, steps=18, save_at=[t])
        assert law.total_variation(exact.law(t), t) <= 1e-3
    assert law.stats["mass_error"] < 1e-10 and law.stats["at_walls"] < 1e-4


@pytest.mark.soak
@pytest.mark.parametrize("sde", [sd.OU(), sd.VP(), sd.SubVP()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "data", [D.ring(8, std=0.15), D.grid(3, std=0.15), D.moons(std=0.15)], ids=["ring", "grid", "moons"]
)
def test_mixtures_in_the_plane_adapted(sde, data):
    exact = sd.ExactScore(sde, data)
    law = sd.FokkerPlanck(sde, sd.Cells((-5, -5), (5, 5), 400)).solve(
        data, t0=0.0, t1=1.0, tolerance=1e-3, save_at=[0.1, 0.5, 1.0]
    )
    for t in law.ts.tolist():
        assert law.total_variation(exact.law(t), t) <= 1e-3


def test_laws_are_of_second_order_in_the_cells():
    """In the plane and on the line, with the steps so short that they do not matter."""
    for d, steps, sizes in ((1, 800, (60, 120, 240)), (2, 60, (60, 120, 240))):
        data = D.Mixture(torch.tensor([[0.7] * d, [-0.7] * d]), std=0.25)
        exact, errors = sd.ExactScore(sd.OU(), data).law(0.1), []
        for n in sizes:
            law = sd.FokkerPlanck(sd.OU(), sd.Cells([-3.0] * d, [3.0] * d, n)).solve(data, t0=0, t1=0.1, steps=steps)
            errors.append(law.total_variation(exact, 0.1))
        assert 1.85 < slope(errors) < 2.15, (d, errors)


@pytest.mark.parametrize("rate", [1.0, -1.0], ids=["outwards", "inwards"])
def test_second_order_without_any_noise(rate):
    """dx = ± x dt moves a mixture to a mixture, with flow to the left and to the right."""

    class Scaling(sd.ODE):
        def f(self, x, t):
            return rate * x

    means, grown = torch.tensor([[-1.0], [0.6]]), math.exp(0.5 * rate)
    start, end = D.Mixture(means, std=0.25), D.Mixture(grown * means, std=0.25 * grown)
    errors = []
    for n in (100, 200, 400, 800):
        law = sd.FokkerPlanck(Scaling(), sd.Cells(-5, 5, n)).solve(start, t0=0.0, t1=0.5, steps=4 * n, save_at=[0.5])
        errors.append(law.total_variation(end, 0.5))
        assert float(law.p.min()) >= 0 and law.stats["mass_error"] < 1e-12
    assert errors[-1] < 5e-4 and 1.7 < slope(errors) < 2.6, errors


def gbm():
    sde = sd.GeometricBrownianMotion(0.3, 0.6)
    return (
        sde,
        sd.KernelScore(sde, torch.tensor([[1.0], [2.0]]), torch.tensor([0.3, 0.7])),
        (0.3, 1.0),
        sd.Cells(0, 24, 1600),
    )


def cir():
    sde = sd.CIR(1.0, 1.0, 0.7)
    return sde, sd.KernelScore(sde, torch.tensor([[0.4], [2.0]])), (0.2, 1.0), sd.Cells(0, 8, 800)


def jacobi():
    sde = sd.Jacobi(2.0, 3.0)
    return sde, sd.KernelScore(sde, torch.tensor([[0.2], [0.8]])), (0.1, 0.6), sd.Cells(0, 1, 300)


class At(D.Density):
    """p_t of a score that knows it."""

    event_shape, dtype = (1,), torch.float64

    def __init__(self, score, t):
        self.exact, self.t = score, t

    def draw(self, n, generator):
        return self.exact.sample(n, self.t, generator=generator)

    def log_prob(self, x):
        return self.exact.log_prob(x, self.t)


@pytest.mark.parametrize("case", [gbm, cir, jacobi], ids=lambda c: c.__name__)
def test_state_dependent_noise_against_exact_kernels(case):
    """Two derivations that share nothing: a kernel in closed form, and a grid that knows f and g alone."""
    sde, exact, (s, t), cells = case()
    law = sd.FokkerPlanck(sde, cells).solve(At(exact, s), t0=s, t1=t, save_at=[s, 0.5 * (s + t), t])
    plain, law = law, law if case is gbm else law.relative(sde.invariant((1,)))
    x = cells.centres
    for u in law.ts.tolist()[1:]:
        assert law.total_variation(At(exact, u), u) < 2e-4
        p, d = exact.log_prob(x, u).exp(), sde.g(x, torch.tensor(0.0))[:, 0] ** 2
        p = torch.where(p > 1e-4 * p.max(), p, 0.0)
        truth = exact(x, u)
        error, before = (p * d * (known.score(x, u) - truth).square()[:, 0] for known in (law, plain))
        size = (p * d * truth.square()[:, 0]).sum()
        assert float(error[3:-3].sum() / size) < 1e-5  # 0.3 % of the score
        assert case is gbm or float(error.sum() / size) < 2e-4  # at the walls as well
        assert case is not jacobi or error.sum() < 0.5 * before.sum()
        log_error = (p * (law.log_prob(x, u) - exact.log_prob(x, u)).abs()).sum() / p.sum()
        assert float(log_error) < 1e-3


@pytest.mark.parametrize("case", [gbm, cir, jacobi], ids=lambda c: c.__name__)
def test_the_grid_tells_a_wrong_process(case):
    """What the test above would see of noise that is 2 % too strong."""
    sde, exact, (s, t), cells = case()

    class Loud(type(sde)):
        def g(self, x, t):
            return 1.02 * super().g(x, t)

    sde.__class__ = Loud
    law = sd.FokkerPlanck(sde, cells).solve(At(exact, s), t0=s, t1=t, save_at=[t])
    assert law.total_variation(At(exact, t), t) > 2e-3


def test_langevin_settles_in_its_law():
    target = D.Mixture(torch.tensor([[-1.0], [1.2]]), weights=[1.0, 2.0], std=0.5)

    def root(x):
        return 0.8 + 0.4 * torch.sin(2 * x)

    cells = sd.Cells(-4, 4, 400)
    for g in (1.0, root):
        solver = sd.FokkerPlanck(sd.Overdamped(target, g), cells)
        stays = solver.solve(target, t0=0.0, t1=2.0, save_at=[2.0])
        assert stays.total_variation(target, 2.0) < 5e-4
        comes = solver.solve(normal(1), t0=0.0, t1=60.0, tolerance=1e-3, save_at=[0.1, 60.0])
        assert comes.total_variation(target, 60.0) < 1e-3 < comes.total_variation(target, 0.1)


def test_underdamped_langevin_keeps_its_law():
    """No noise on one axis, and of second order all the same."""
    target, errors = normal(1), []
    for n in (50, 100):
        sde = sd.Underdamped(target, friction=1.0)
        law = sd.FokkerPlanck(sde, sd.Cells((-5, -5), (5, 5), n)).solve(
            sd.Phase(target), t0=0.0, t1=0.5, steps=40, save_at=[0.5]
        )
        errors.append(law.total_variation(sd.Phase(target), 0.5))
    assert errors[1] < 5e-4 and 1.7 < slope(errors) < 2.6, errors


# ---- backwards ----------------------------------------------------------------------------------------------------


def test_there_and_back_on_the_grid():
    """The law of the reversal, driven by the grid's own score and run to the start, is the law that it started with."""
    cells, sde = sd.Cells(-4, 4, 400), Multiplicative()
    data = D.Mixture(torch.tensor([[-1.0], [1.0]]), std=0.3)
    law = sd.FokkerPlanck(sde, cells).solve(data, t0=0.0, t1=0.5)
    for eta in (1.0, 0.5):
        back = sde.reverse(law.score, eta)
        again = sd.FokkerPlanck(back, cells).solve(law.at(0.5), t0=0.5, t1=0.0, save_at=[0.0])
        assert again.total_variation(data, 0.0) < 2e-3

    class Forgetful(Multiplicative):
        def gram_divergence(self, x, t):
            return torch.zeros_like(x)

    wrong = sd.FokkerPlanck(Forgetful().reverse(law.score), cells).solve(law.at(0.5), t0=0.5, t1=0.0, save_at=[0.0])
    assert wrong.total_variation(data, 0.0) > 2e-2


def test_particles_back_with_the_score_of_the_grid():
    """400 steps of 20,000 particles against the data: Kolmogorov-Smirnov at LEVEL sees a distance of 0.02."""
    sde = Multiplicative()
    data = D.Mixture(torch.tensor([[-1.0], [1.0]]), std=0.3).to(dtype=torch.float64)
    law = sd.FokkerPlanck(sde, sd.Cells(-4, 4, 200)).solve(data, t0=0.0, t1=0.5)
    start = law.sample(20_000, 0.5, seed=1)
    x = sd.solve(sde.reverse(law.score), start, t0=0.5, t1=0.0, solver=sd.EulerMaruyama(), steps=400, seed=2).x

    def cdf(v):
        return 0.5 * (stats.norm.cdf(v, -1, 0.3) + stats.norm.cdf(v, 1, 0.3))

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > LEVEL


# ---- what comes back ----------------------------------------------------------------------------------------------


def test_log_prob_and_score_between_cells_and_times():
    data = D.Mixture(torch.tensor([[0.8, 0.2], [-0.8, 0.0]]), std=0.4).to(dtype=torch.float64)
    exact = sd.ExactScore(sd.OU(), data)
    x = data.sample(500, seed=0)
    times = torch.linspace(0.1, 0.9, 500, dtype=torch.float64)
    errors = []
    for n in (60, 120):
        law = sd.FokkerPlanck(sd.OU(), sd.Cells((-5, -5), (5, 5), n)).solve(data, t0=0.0, t1=1.0, steps=100)
        for t in (0.37, times):
            assert (law.log_prob(x, t) - exact.log_prob(x, t)).abs().max() < (0.06 if n == 60 else 0.015)
        errors.append(float((law.score(x, times) - exact(x, times)).square().mean().sqrt()))
    assert errors[1] < 0.015 and slope(errors) > 1.7, errors
    part = law.score(x[7:8], float(times[7]))
    assert torch.allclose(part, law.score(x, times)[7:8], atol=1e-12)


def test_the_score_is_the_gradient_and_is_continuous():
    data = D.Mixture(torch.tensor([[0.8, 0.2], [-0.8, 0.0]]), std=0.4).to(dtype=torch.float64)
    cells = sd.Cells((-3, -3), (3, 3), 40)
    law = D.Mixture(data.means, std=0.5)
    grid = sd.GridDensity(cells, cells.averages(law))
    x = data.sample(300, seed=1)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(grid.log_prob(at).sum(), at)
    assert torch.allclose(gradient, grid.score(x), atol=1e-10)
    edge = torch.tensor([[cells.axis(0)[17].item(), 0.1]], dtype=torch.float64)
    assert (grid.score(edge - 1e-9) - grid.score(edge + 1e-9)).abs().max() < 1e-6
    far = torch.tensor([[100.0, 0.0], [0.0, -50.0]], dtype=torch.float64)
    assert grid.log_prob(far).tolist() == [-math.inf] * 2
    assert torch.allclose(grid.score(far[:1]), grid.score(torch.tensor([[3.0, 0.0]], dtype=torch.float64)))
    assert grid.score(x.float()).dtype == torch.float32


def test_a_cubic_is_interpolated_without_error():
    cells = sd.Cells((0, -1), (2, 3), (9, 7))
    a, b = (cells.axis(i) for i in (0, 1))
    log_p = (0.3 * a**3 - a)[:, None] * (1 + 0.2 * b - 0.1 * b**3)
    grid = sd.GridDensity(cells, log_p.exp())
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.9 + torch.tensor(
        [0.05, -0.9]
    )
    u, v = x.unbind(1)
    assert torch.allclose(grid.log_prob(x), (0.3 * u**3 - u) * (1 + 0.2 * v - 0.1 * v**3), atol=1e-11)
    assert torch.allclose(grid.score(x)[:, 1], (0.3 * u**3 - u) * (0.2 - 0.3 * v**2), atol=1e-10)


def test_marginals_and_samples():
    data = D.Mixture(torch.tensor([[1.0, -0.5], [-1.0, 0.5]]), std=torch.tensor([0.3, 0.6]), weights=[0.25, 0.75])
    cells = sd.Cells((-3, -4), (3, 4), (60, 80))
    law = sd.FokkerPlanck(sd.OU(), cells).solve(data, t0=0.0, t1=0.1, steps=10, save_at=[0.0, 0.1])
    for axis in (0, 1):
        at, p = law.marginal(axis, 0.0)
        marginal = sum(
            w * stats.norm.pdf(at, m, s)
            for w, m, s in zip((0.25, 0.75), data.means[:, axis].tolist(), (0.3, 0.6), strict=True)
        )
        assert float(np.abs(p.numpy() - marginal).max()) < 0.01
        assert abs(float(p.sum()) * cells.widths[axis] - 1) < 1e-12
    x = law.sample(100_000, 0.1, seed=0)
    centres = cells.centres
    mass = (law.at(0.1).p.flatten() * cells.volume)[:, None]
    mean, second = (mass * centres).sum(0), (mass * (centres**2 + torch.tensor(cells.widths) ** 2 / 12)).sum(0)
    z = (x.mean(0) - mean) / ((second - mean**2) / 1e5).sqrt()
    assert float(z.abs().max()) < stats.norm.isf(LEVEL / 8)
    assert torch.equal(x, law.sample(100_000, 0.1, seed=0))


def test_samples_start_a_law():
    x = torch.tensor([[0.05], [0.05], [1.05], [-3.0], [3.0]])
    counted = sd.Cells(-3, 3, 60).counts(x)
    assert counted.nonzero().flatten().tolist() == [0, 30, 40, 59]
    assert abs(float(counted.sum()) * 0.1 - 1) < 1e-12 and counted[30] == 2 * counted[40]


def test_a_picture_of_it():
    law = sd.FokkerPlanck(sd.OU(), sd.Cells(-4, 4, 50)).solve(normal(1), t0=0.0, t1=1.0, steps=10)
    assert next(line.get_label() for line in law.plot().axes[0].lines) == "t = 0"
    plane = sd.FokkerPlanck(sd.OU(), sd.Cells((-4, -4), (4, 4), 20)).solve(normal(2), t0=0.0, t1=1.0, steps=2)
    assert [ax.get_title(loc="left") for ax in plane.plot([0.0, 0.5]).axes] == ["t = 0", "t = 0.5"]


# ---- errors -------------------------------------------------------------------------------------------------------


class Correlated(sd.SDE):
    """One noise for both coordinates, of different strengths."""

    def f(self, x, t):
        return -x

    def g(self, x, t):
        return sd.Dense(torch.tensor([[[1.0], [3.0]]]))


class Blows(sd.SDE):
    def f(self, x, t):
        return 1 / (x - 0.5) if float(t) > 0.3 else -x

    def g(self, x, t):
        return 1.0


def box(n=20, d=2):
    return sd.Cells([-4.0] * d, [4.0] * d, n)


def test_one_noise_for_both_needs_cells_to_match():
    with pytest.raises(ValueError, match=r"so correlated .* Cells with h_1/h_2 near 0.333 may do"):
        sd.FokkerPlanck(Correlated(), box()).solve(normal(2), t1=0.1, steps=1)
    cells = sd.Cells((-4, -12), (4, 12), 60)
    law = sd.FokkerPlanck(Correlated(), cells).solve(normal(2), t0=0.0, t1=0.3, steps=30)
    mass = law.p[-1].flatten() * cells.volume
    x = cells.centres
    decay = math.exp(-0.6)
    # Cov = e^{-2t} I + (1 - e^{-2t})/2 G G'
    expected = decay * torch.eye(2) + 0.5 * (1 - decay) * torch.tensor([[1.0, 3.0], [3.0, 9.0]])
    found = (x * mass[:, None]).T @ x
    assert (found - expected).abs().max() < 0.25  # upwind along the axes, which have no noise of their own
    assert abs(float(found[0, 1]) - float(expected[0, 1])) < 0.02


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sd.Cells((0, 0, 0), (1, 1, 1)), ValueError, "one or two axes; low has 3.*simulate particles"),
        (lambda: sd.Cells(1.0, 0.0), ValueError, r"low = \(1.0,\) must be finite and below"),
        (lambda: sd.Cells(0.0, math.nan), ValueError, "must be finite"),
        (lambda: sd.Cells("a", 1.0), TypeError, "low must be a number, or one for each axis, got 'a'"),
        (lambda: sd.Cells(0, 1, 2), ValueError, "at least 4 cells"),
        (lambda: sd.Cells(0, 1, 10**9), ValueError, "at most 16,777,216"),
        (lambda: sd.Cells(0, 1, 2.5), TypeError, "count must be"),
        (lambda: sd.Cells((0, 0), (1, 1), (5, True)), TypeError, "whole number of cells"),
        (lambda: sd.FokkerPlanck(D.ring(4), box()), TypeError, "sde must be an SDE, got Mixture"),
        (lambda: sd.FokkerPlanck(sd.OU(), 400), TypeError, r"Cells\(low, high, count\), got int"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(normal(3)), ValueError, r"shape \(3,\), the cells need \(2,\)"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(normal(2, std=5.0)), ValueError, "holds a mass of 0.*enlarge"),
        (
            lambda: sd.FokkerPlanck(sd.OU(), box()).solve(torch.full((3, 2), 9.0)),
            ValueError,
            "3 of 3 samples lie outside",
        ),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(torch.ones(3, 1)), ValueError, r"need samples \(B, 2\)"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(torch.full((20, 20), -1.0)), ValueError, "not negative"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve("ring"), TypeError, "str is no density"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(normal(2), steps=3, tolerance=0.1), ValueError, "not both"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(normal(2), tolerance=0.0), ValueError, "between 0 and 1"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(normal(2), steps=0), ValueError, "at least one step"),
        (lambda: sd.FokkerPlanck(sd.OU(), box()).solve(normal(2), t0=3.0, t1=1.0), ValueError, "flows with rising t"),
        (
            lambda: sd.FokkerPlanck(sd.OU(), box(40, 1)).solve(torch.zeros(1, 1), tolerance=1e-6, max_steps=20),
            sd.SolveError,
            "took 20 steps .* raise tolerance or max_steps",
        ),
        (
            lambda: sd.FokkerPlanck(Blows(), sd.Cells(-4.05, 3.95, 80)).solve(normal(1), steps=2),
            ValueError,
            None,
        ),
    ],
)
def test_errors_name_the_cure(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_not_finite_coefficients_are_placed():
    with pytest.raises(
        ValueError, match=r"drift of Blows is NaN or infinite at t = 0.75 in 1 cells, such as x = \[0.5\]"
    ):
        sd.FokkerPlanck(Blows(), sd.Cells(-4.0, 5.0, 9)).solve(normal(1, std=0.5), steps=2)


def test_times_that_were_not_saved():
    law = sd.FokkerPlanck(sd.OU(), box(20, 1)).solve(normal(1), t0=0.0, t1=1.0, steps=4, save_at=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"t = 0.7 was not saved; the nearest is 0.5"):
        law.at(0.7)
    with pytest.raises(ValueError, match=r"t = 0.2 lies outside the saved times, 0.5 to 1"):
        law.score(torch.zeros(3, 1), 0.2)
    with pytest.raises(ValueError, match=r"needs states \(B, 1\)"):
        law.score(torch.zeros(3, 2), 0.7)
    with pytest.raises(ValueError, match="axis = 1 is none of the axes"):
        law.marginal(1, 0.5)


def test_a_law_is_not_asked_at_nan():
    law = sd.FokkerPlanck(sd.OU(), sd.Cells(-4, 4, 40)).solve(normal(1, 0.5), t1=0.2, steps=2)
    x = torch.tensor([[0.1], [math.nan]])
    for ask in (
        lambda: law.score(x, 0.1),
        lambda: law.log_prob(x, 0.1),
        lambda: law.at(0.2).score(x),
        lambda: law.at(0.2).log_prob(x),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            ask()
