"""Affine SDEs with matrix coefficients: kernels, predictions and exact scores, each against an independent computation."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal

import sdediff as sd
from sdediff import blocks
from sdediff.affine.moments import exponential

F64 = torch.float64


def tensor(*rows):
    return torch.tensor(rows, dtype=F64)


class Turning(sd.AffineSDE):
    """Matrices that do not commute, an offset, noise in one coordinate of three."""

    t_max = 2.0

    def drift_matrix(self, t):
        still = tensor([-1.0, 2.0, 0.0], [-3.0, -0.5, 0.3], [0.1, 0.2, -0.7])
        swing = tensor([0.0, -1.0, 1.0], [2.0, -1.0, 0.5], [0.3, 0.0, -0.2])
        return still + torch.sin(3 * t) * swing

    def offset(self, t):
        return tensor(1.0, 0.0, -2.0) * t

    def diffusion_matrix(self, t):
        return tensor([0.0], [0.0], [1.0]) * (1 + 0.5 * torch.cos(t))


class Chain(sd.AffineSDE):
    """Noise that reaches the first coordinate through two integrations."""

    def drift_matrix(self, t):
        return tensor([0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0])

    def diffusion_matrix(self, t):
        return tensor([0.0], [0.0], [1.0])


class PerCoordinate(sd.AffineSDE):
    """One number per coordinate of a state with four, and an offset."""

    def drift_matrix(self, t):
        return -(1 + t) * tensor(0.2, 0.5, 1.0, 3.0).reshape(4, 1, 1)

    def offset(self, t):
        return torch.cos(t) * tensor(1.0, -1.0, 0.0, 2.0).reshape(4, 1)

    def diffusion_matrix(self, t):
        return torch.sqrt(1 + t) * tensor(1.0, 0.5, 2.0, 1.0).reshape(4, 1, 1)


class Pairs(sd.AffineSDE):
    """Two blocks of two, each with matrices of its own, mixing noise."""

    def drift_matrix(self, t):
        return (1 + t) * tensor([[-1.0, 0.5], [-0.5, -0.3]], [[0.0, 1.0], [-1.0, -1.0]])

    def diffusion_matrix(self, t):
        return tensor([[1.0, 0.3], [0.2, 0.8]], [[0.5, 0.0], [-0.4, 1.0]]) * (1 + t)


class Uneven(Pairs):
    """Noise of its own for each coordinate of each block."""

    def diffusion_matrix(self, t):
        return torch.diag_embed(tensor([1.0, 0.5], [0.2, 2.0])) * (1 + t)


PROCESSES = [
    (Turning(), (3,)),
    (PerCoordinate(), (4,)),
    (Pairs(), (4,)),
    (Pairs(), (2, 2)),
    (Uneven(), (4,)),
    (sd.CLD(), (4,)),
    (sd.Blurring((2, 3), 1.5), (2, 3)),
    (sd.Blurring((2, 2, 3), channels=1), (2, 2, 3)),
]
each_process = pytest.mark.parametrize(
    ("sde", "shape"), PROCESSES, ids=[f"{type(sde).__name__}{len(shape)}" for sde, shape in PROCESSES]
)


def close(kernel, other, tolerance):
    """Scales relative to their largest entry, covariances per pair of coordinates."""
    size = other.scale.abs().amax((-2, -1), keepdim=True)
    deviation = torch.diagonal(other.covariance, dim1=-2, dim2=-1).sqrt()
    assert ((kernel.scale - other.scale).abs() <= tolerance * size).all()
    assert ((kernel.shift - other.shift).abs() <= tolerance * (1 + other.shift.abs().max())).all()
    pairs = deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    assert ((kernel.covariance - other.covariance).abs() <= tolerance * pairs).all()


# ---- kernels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1e-8, 1e-4, 0.05, 0.4, 1.0])
def test_langevin_kernel_is_the_matrix_exponential(t):
    """Van Loan's block exponential in 50 digits, for constant coefficients; entries from t³ to 1, each in its own digits."""
    cld = sd.CLD(beta=4.0, mass=0.25)
    mpmath.mp.dps = 50
    drift, noise = 4 * mpmath.matrix([[0, 4], [-1, -4]]), mpmath.matrix([[0, 0], [0, 8]])
    block = mpmath.zeros(4)
    block[:2, :2], block[:2, 2:], block[2:, 2:] = -drift, noise, drift.T
    power = mpmath.expm(block * mpmath.mpf(t), method="taylor")
    scale = power[2:, 2:].T
    covariance = scale * power[:2, 2:]
    kernel = cld.moments(torch.tensor(t, dtype=F64))
    for i in range(2):
        for j in range(2):
            assert float(kernel.scale[0, i, j]) == pytest.approx(float(scale[i, j]), rel=1e-10, abs=1e-14)
            pair = math.sqrt(float(covariance[i, i] * covariance[j, j]))
            assert float(kernel.covariance[0, i, j]) == pytest.approx(
                float(covariance[i, j]), rel=1e-9, abs=1e-12 * pair
            )


@pytest.mark.parametrize("t", [0.01, 0.7, 2.0])
def test_kernel_of_matrices_that_do_not_commute_solves_the_moment_equations(t):
    sde = Turning()

    def rate(at, y):
        a, b, root = (v.squeeze(0).numpy() for v in sde.coefficients(torch.tensor(at, dtype=F64)))
        phi, shift, cov = y[:9].reshape(3, 3), y[9:12], y[12:].reshape(3, 3)
        return np.concatenate([(a @ phi).ravel(), a @ shift + b.ravel(), (a @ cov + cov @ a.T + root @ root.T).ravel()])

    start = np.concatenate([np.eye(3).ravel(), np.zeros(12)])
    y = solve_ivp(rate, (0, t), start, method="DOP853", rtol=1e-13, atol=1e-17).y[:, -1]
    kernel = sde.moments(torch.tensor(t, dtype=F64))
    assert np.allclose(kernel.scale.ravel(), y[:9], rtol=0, atol=1e-12)
    assert np.allclose(kernel.shift.ravel(), y[9:12], rtol=0, atol=1e-12)
    assert np.allclose(kernel.covariance.ravel(), y[12:], rtol=1e-10, atol=0)


def test_small_covariances_keep_their_digits():
    for t in (1e-12, 1e-6, 1e-2):
        covariance = Chain().moments(torch.tensor(t, dtype=F64)).covariance[0]
        exact = tensor(
            [t**5 / 20, t**4 / 8, t**3 / 6], [t**4 / 8, t**3 / 3, t**2 / 2], [t**3 / 6, t**2 / 2, t]
        )  # fmt: skip
        assert ((covariance / exact - 1).abs() < 1e-12).all()
        root = blocks.root(covariance.unsqueeze(0))[0]
        assert ((root @ root.T / exact - 1).abs() < 1e-12).all()


@each_process
def test_kernel_obeys_f_and_g(sde, shape):
    """The moment equations by automatic differentiation in t, with A, b and LLᵀ taken from the process's own f and g."""
    t = torch.tensor(0.37 * sde.t_max, dtype=F64)
    d = math.prod(shape)
    x = torch.eye(d, dtype=F64).reshape(d, *shape)
    zero = torch.zeros(1, *shape, dtype=F64)
    offset = sde.split(sde.drift(zero, t))
    columns = sde.split(sde.drift(x, t)) - offset  # (d, n, k): A applied to unit states
    kernel, rate = torch.func.jvp(lambda u: _parts(sde.transition(0.1, u)), (t,), (torch.ones((), dtype=F64),))
    phi, shift, covariance = kernel
    own = sde.split(x)
    n = own.shape[1]
    drift = torch.linalg.lstsq(own.flatten(1), columns.flatten(1)).solution.T  # A on flattened blocks
    diffusion = torch.linalg.lstsq(own.flatten(1), sde.split(sde.diffusion(x, t).gram(x)).flatten(1)).solution.T
    phi, covariance, phi_rate, covariance_rate = (blocks.dense(v, n) for v in (phi, covariance, rate[0], rate[2]))
    shift, shift_rate = (v.expand(n, -1).flatten() for v in (shift, rate[1]))
    torch.testing.assert_close(phi_rate, drift @ phi, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shift_rate, drift @ shift + offset.flatten(), rtol=1e-9, atol=1e-9)
    expected = drift @ covariance + covariance @ drift.T + diffusion
    torch.testing.assert_close(covariance_rate, expected, rtol=1e-9, atol=1e-9)


def _parts(kernel):
    return kernel.scale, kernel.shift, kernel.covariance


@each_process
@given(times=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_transitions_compose(sde, shape, times):
    s, u, t = (v * sde.t_max for v in sorted(times))
    whole = sde.transition(s, t)
    close(sde.transition(s, u).then(sde.transition(u, t)), whole, 1e-8)
    if s == t:
        assert not whole.covariance.any()


def test_times_in_a_batch_are_times_one_by_one():
    sde = Turning()
    s, t = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=F64).sort(0).values * 2
    many = sde.transition(s, t)
    assert many.scale.shape == (5, 3, 1, 3, 3)
    for i in range(5):
        for j in range(3):
            close(sde.transition(s[i, j], t[i, j]), many.at((i, j)), 1e-13)
    first, own = sde.scales(0.4).kernel, sde.moments(torch.tensor(0.4, dtype=F64))
    close(first, own, 1e-14)


def test_kernels_are_differentiable_in_t():
    sde = Turning()
    t = torch.tensor([0.3, 1.1], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: _parts(sde.moments(u)), t, eps=1e-5)
    assert torch.autograd.gradcheck(lambda u: _parts(sde.transition(0.05, u)), t, eps=1e-5)


def test_one_process_in_four_structures_is_one_process():
    """a = -(1 + t), b = 2t, g = 1.5 as one shared number, a number per coordinate, blocks of two and a full matrix."""

    def process(m, k):
        class Same(sd.AffineSDE):
            def drift_matrix(self, t):
                return -(1 + t) * torch.eye(k, dtype=F64).expand(m, k, k)

            def offset(self, t):
                return 2 * t * torch.ones(1, k, dtype=F64)

            def diffusion_matrix(self, t):
                return 1.5 * torch.eye(k, dtype=F64)

        return Same()

    x0, z = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    ring = sd.densities.Mixture(torch.randn(3, 4, generator=torch.Generator().manual_seed(2), dtype=F64), std=0.4)
    expected = process(1, 1)
    for m, k in ((4, 1), (1, 2), (2, 2), (1, 4)):
        other = process(m, k)
        for t in (0.3, torch.linspace(0.1, 1, 5, dtype=F64)):
            torch.testing.assert_close(other.perturb(x0, t, z), expected.perturb(x0, t, z), rtol=1e-12, atol=1e-12)
            a, b = sd.ExactScore(other, ring), sd.ExactScore(expected, ring)
            torch.testing.assert_close(a(x0, t), b(x0, t), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(a.data(x0, t), b.data(x0, t), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other.log_snr(0.3), expected.log_snr(0.3), rtol=1e-12, atol=1e-12)


def test_exponential_of_two_by_two_matrices():
    generator = torch.Generator().manual_seed(0)
    small = 0.5 * torch.randn(200, 1, 2, 2, generator=generator, dtype=F64)
    parallel = tensor([0.0, 3.0], [0.0, 0.0]).reshape(1, 1, 2, 2)  # no two eigenvectors
    for matrix in (small, parallel, 1e-9 * small, 40 * small):
        torch.testing.assert_close(exponential(matrix), torch.linalg.matrix_exp(matrix), rtol=1e-11, atol=1e-13)


# ---- the process as a process -------------------------------------------------------------------------------------


@each_process
def test_noise_and_marginals_have_the_covariances_they_say(sde, shape):
    """R Rᵀ = C and G Gᵀ = L Lᵀ, column by column, in the coordinates of the state."""
    d, t = math.prod(shape), 0.6 * sde.t_max
    z = torch.eye(d, dtype=F64).reshape(d, *shape)
    x0 = torch.zeros_like(z)
    columns = (sde.perturb(x0, t, z) - sde.marginal(x0, t).mean).flatten(1)  # rows: R e
    n = sde.split(z).shape[1]
    basis = sde.split(z).flatten(1)  # state coordinates into blocks
    covariance = basis @ blocks.dense(sde.scales(t).kernel.covariance, n) @ basis.T
    torch.testing.assert_close(columns.T @ columns, covariance, rtol=1e-12, atol=1e-12)
    g = sde.diffusion(z, t)
    size = math.prod(g.noise_shape(z)[1:])
    driving = torch.eye(size, dtype=F64).reshape(size, *g.noise_shape(z)[1:])
    g = sde.diffusion(z.new_zeros(size, *shape), t)
    pushed = (g @ driving).flatten(1)
    torch.testing.assert_close(pushed.T @ pushed, sde.diffusion(z, t).gram(z).flatten(1), rtol=1e-12, atol=1e-12)
    half = (0.5 * g) @ driving
    torch.testing.assert_close(half.flatten(1), 0.5 * pushed)


@each_process
def test_noise_at_times_per_sample(sde, shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64) * sde.t_max
    back = sde.reverse(lambda x, t: -x, lambda t: 0.5 + t)
    for process in (sde, back):
        g = process.diffusion(x, t)
        z = torch.randn(g.noise_shape(x), generator=torch.Generator().manual_seed(1), dtype=F64)
        for i in range(3):
            alone = process.diffusion(x[i : i + 1], float(t[i]))
            torch.testing.assert_close((g @ z)[i], (alone @ z[i : i + 1])[0])
            torch.testing.assert_close(g.gram(x)[i], alone.gram(x[i : i + 1])[0])


def test_marginals_are_gaussians():
    sde, x0 = Turning(), torch.zeros(1, 3, dtype=F64)
    law = sde.marginal(x0, 0.9)
    kernel = sde.moments(torch.tensor(0.9, dtype=F64))
    reference = multivariate_normal(kernel.shift[0].numpy(), kernel.covariance[0].numpy())
    x = law.sample(7, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert np.allclose(law.log_prob(x), reference.logpdf(x.numpy()), rtol=1e-9)
    wide = sd.CLD().marginal(torch.zeros(1, 6, dtype=F64), 0.5)
    other = sd.CLD().marginal(torch.zeros(1, 2, dtype=F64), 0.5)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    apart = sum(other.log_prob(x[:, [i, i + 3]]) for i in range(3))  # three blocks, each (position, velocity)
    torch.testing.assert_close(wide.log_prob(x), apart)


def test_the_prior_is_the_law_at_the_end_of_data_at_0():
    sde = PerCoordinate()
    prior, marginal = sde.prior((4,)), sde.marginal(torch.zeros(1, 4, dtype=F64), 1.0)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(prior.log_prob(x), marginal.log_prob(x))
    torch.testing.assert_close(prior.from_noise(x), marginal.from_noise(x))


@each_process
def test_exact_transitions_have_the_law_of_the_kernel(sde, shape):
    """Two exact steps: the solver's affine map of start and noise against the transition, in every coordinate."""
    d = math.prod(shape)

    class Fixed(sd.Keyed):
        def open(self, x):
            class Stream:
                def unit(self, s, t, shape=None):
                    return noise.pop(0)

            return Stream()

    grid = [0.0, 0.2 * sde.t_max, 0.7 * sde.t_max]
    rows = []
    for k in range(3):  # start, first noise, second noise: one of them the unit vectors, the others 0
        unit = [
            torch.eye(d, dtype=F64).reshape(d, *shape) if j == k else torch.zeros(d, *shape, dtype=F64)
            for j in range(3)
        ]
        noise = unit[1:]
        end = sd.solve(sde, unit[0], solver=sd.ExactTransition(), grid=grid, noise=Fixed(0)).x
        noise = [torch.zeros(d, *shape, dtype=F64)] * 2
        rows.append(
            (end - sd.solve(sde, 0 * unit[0], solver=sd.ExactTransition(), grid=grid, noise=Fixed(0)).x).flatten(1)
        )
    kernel = sde.transition(0.0, grid[-1])
    basis = sde.split(torch.eye(d, dtype=F64).reshape(d, *shape))
    n, basis = basis.shape[1], basis.flatten(1)
    scale, covariance = (basis @ blocks.dense(v, n) @ basis.T for v in (kernel.scale, kernel.covariance))
    torch.testing.assert_close(rows[0].T, scale, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(rows[1].T @ rows[1] + rows[2].T @ rows[2], covariance, rtol=1e-9, atol=1e-11)


def test_time_of_inverts_the_log_snr():
    cld = sd.CLD()
    t = torch.tensor([0.01, 0.3, 0.9], dtype=F64)
    torch.testing.assert_close(cld.time_of(cld.log_snr(t)), t, rtol=1e-10, atol=1e-12)
    early = tensor([1e-14, 1e-9])  # relative to t, not to t_max, as for processes with one scale
    for sde in (Pairs(), sd.VP()):
        torch.testing.assert_close(sde.time_of(sde.log_snr(early)), early, rtol=1e-12, atol=0)
    assert (cld.log_snr(torch.linspace(0.001, 1, 50, dtype=F64)).diff() < 0).all()
    assert cld.log_snr(0.0) == math.inf


def test_states_in_half_the_precision_and_times_per_sample():
    sde, x0 = sd.CLD(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.linspace(0.01, 1, 6, dtype=F64)
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    fine, coarse = sde.perturb(x0, t, z), sde.perturb(x0.float(), t, z.float())
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), fine, rtol=1e-5, atol=1e-6)
    assert sde.drift(x0.float(), 0.3).dtype == torch.float32
    for i in range(6):
        torch.testing.assert_close(sde.perturb(x0[i : i + 1], float(t[i]), z[i : i + 1]), fine[i : i + 1])
        torch.testing.assert_close(sde.drift(x0, t)[i], sde.drift(x0, float(t[i]))[i])


# ---- scores -------------------------------------------------------------------------------------------------------


def mixtures(d):
    generator = torch.Generator().manual_seed(d)
    means = torch.randn(3, d, generator=generator, dtype=F64)
    factor = torch.randn(3, d, d, generator=generator, dtype=F64)
    full = sd.densities.Mixture(means, covariance=0.2 * factor @ factor.mT + 0.1 * torch.eye(d), weights=[1, 2, 3])
    return [sd.densities.Mixture(means, std=[0.2, 0.5, 1.0], weights=[3, 1, 2]).to(dtype=F64), full.to(dtype=F64)]


@pytest.mark.parametrize("kind", [0, 1], ids=["isotropic", "full"])
@pytest.mark.parametrize("sde", [Turning(), PerCoordinate(), Pairs(), sd.CLD()], ids=lambda p: type(p).__name__)
def test_exact_scores_are_those_of_the_mixture_that_arises(sde, kind):
    """Density by scipy from means and covariances put together here; score by automatic differentiation of it."""
    d = {Turning: 3, sd.CLD: 2}.get(type(sde), 4)
    data, t = mixtures(d)[kind], 0.4
    score = sd.ExactScore(sde, data)
    (size,) = score.event_shape
    n = size // sde._size[1]
    into = sde.split(torch.eye(size, dtype=F64)).flatten(1)  # state coordinates into blocks
    kernel = sde.moments(torch.tensor(t, dtype=F64))
    phi, noise = (into @ blocks.dense(v, n) @ into.T for v in (kernel.scale, kernel.covariance))
    shift = sde.join(kernel.shift.expand(1, n, -1), (1, size))[0]
    start = torch.zeros(3, size, size, dtype=F64)
    start[:, :d, :d] = data.covariances
    if size > d:
        start[:, d:, d:] = 0.04 * 0.25 * torch.eye(d)  # gamma M on velocities
    means = torch.zeros(3, size, dtype=F64)
    means[:, :d] = data.means
    laws = [
        multivariate_normal((phi @ m + shift).numpy(), (phi @ s @ phi.T + noise).numpy())
        for m, s in zip(means, start, strict=True)
    ]
    x = score.sample(6, t, seed=3)
    log_prob = np.log(sum(float(w) * law.pdf(x.numpy()) for w, law in zip(data.weights, laws, strict=True)))
    assert np.allclose(score.log_prob(x, t), log_prob, rtol=1e-9, atol=1e-9)
    assert np.allclose(score.law(t).log_prob(x), log_prob, rtol=1e-9, atol=1e-9)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_prob(at, t).sum(), at)
    torch.testing.assert_close(score(x, t), gradient, rtol=1e-8, atol=1e-9)
    # Tweedie: Phi E[x_0 | x] + c = x + C s, with the noise of the start in C
    covariance = into @ blocks.dense(sde.scales(t).kernel.covariance, n) @ into.T
    torch.testing.assert_close(score.data(x, t) @ phi.T, x + score(x, t) @ covariance - shift, rtol=1e-8, atol=1e-9)
    # times per sample
    times = torch.linspace(0.1, 0.9, 6, dtype=F64) * sde.t_max
    for view in (score, score.noise, score.data, score.log_prob):
        many = view(x, times)
        for i in range(6):
            torch.testing.assert_close(many[i], view(x[i : i + 1], float(times[i]))[0], rtol=1e-9, atol=1e-10)


def test_samples_of_an_exact_score_have_its_law(assert_law):
    score = sd.ExactScore(sd.CLD(), sd.densities.Mixture([[1.0]], std=0.5).to(dtype=F64))
    law, x = score.law(0.2), score.sample(50_000, 0.2, seed=0)
    for u in (tensor(1.0, 0.0), tensor(0.0, 1.0), tensor(0.6, -0.8)):
        assert_law(x @ u, float(law.means[0] @ u), float(u @ law.covariances[0] @ u))


def test_a_data_set_is_a_mixture_of_points():
    atoms = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    narrow = sd.densities.Mixture(atoms, std=1e-9)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    for view in ("__call__", "data", "noise"):
        a, b = (getattr(sd.ExactScore(Pairs(), law), view)(x, 0.5) for law in (sd.densities.Empirical(atoms), narrow))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(NotImplementedError, match="no closed form under a process with matrix coefficients"):
        sd.ExactScore(Pairs(), sd.densities.Boxes([[0.0] * 4], [[1.0] * 4]))(x, 0.5)


class Answer(torch.nn.Module):
    """A network that knows the answer."""

    event_shape = (4,)

    def __init__(self, view):
        super().__init__()
        self.view = view

    def forward(self, x, t):
        return self.view(x, t)


@pytest.mark.parametrize("sde", [Pairs(), PerCoordinate(), sd.CLD()], ids=lambda p: type(p).__name__)
def test_predictions_say_the_same_in_every_form(sde):
    data = mixtures(2 if isinstance(sde, sd.CLD) else 4)[1]
    exact = sd.ExactScore(sde, data)
    x, t = exact.sample(6, 0.4, seed=0), torch.linspace(0.2, 0.9, 6, dtype=F64)
    for wrapper, view in (
        (sd.NoisePrediction, exact.noise),
        (sd.DataPrediction, exact.data),
        (sd.ScorePrediction, exact),
    ):
        learned = wrapper(sde, Answer(view))
        torch.testing.assert_close(learned(x, t), exact(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(learned.noise(x, t), exact.noise(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(learned.data(x, t), exact.data(x, t), rtol=1e-7, atol=1e-7)
    function = sd.FunctionScore(exact, sde)
    torch.testing.assert_close(function.data(x, t), exact.data(x, t), rtol=1e-7, atol=1e-7)
    for wrapper in (sd.VelocityPrediction, sd.FlowPrediction):
        with pytest.raises(TypeError, match="mixes alpha and sigma, which are matrices"):
            wrapper(sde, Answer(exact))
    with pytest.raises(TypeError, match="one alpha and one sigma"):
        sd.Preconditioned(sde, Answer(exact), sigma_data=1.0)


def test_forms_of_ones_own():
    """A form without a coupled one is refused by name when it is wrapped; with one it says what the exact score says."""

    class Negated(sd.forms.NoiseForm):  # what its base says with matrices is wrong by a sign
        def score(self, p, x, alpha, sigma):
            return super().score(-p, x, alpha, sigma)

        def noise(self, p, x, alpha, sigma):
            return -p

    class Both(Negated):
        def coupled(self):
            return NegatedMatrices()

    class NegatedMatrices(sd.forms.CoupledNoise):
        def score(self, p, x, alpha, sigma):
            return super().score(-p, x, alpha, sigma)

        def noise(self, p, x, alpha, sigma):
            return -p

    class Renamed(sd.forms.NoiseForm):
        """Says what its base says."""

    def wrapped(form, view):
        return type("Wrapper", (sd.NoisePrediction,), {"form": form})(sde, Answer(view))

    sde, data = Pairs(), mixtures(4)[1]
    exact = sd.ExactScore(sde, data)
    x, t = exact.sample(6, 0.4, seed=0), torch.linspace(0.2, 0.9, 6, dtype=F64)
    with pytest.raises(TypeError, match=r"Negated mixes alpha and sigma, which are matrices.*a method coupled"):
        wrapped(Negated(), exact.noise)
    with pytest.raises(TypeError, match="Negated mixes"):
        sde.translated(Negated(), x, torch.tensor(0.5))
    for learned in (wrapped(Both(), lambda x, t: -exact.noise(x, t)), wrapped(Renamed(), exact.noise)):
        torch.testing.assert_close(learned(x, t), exact(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(learned.noise(x, t), exact.noise(x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wrapper", [sd.NoisePrediction, sd.DataPrediction, sd.ScorePrediction])
def test_the_minimiser_of_the_denoising_loss_is_the_exact_score(wrapper):
    """For one data point x_0 the target *is* the exact prediction, so that its loss is 0 sample by sample."""
    sde, atom = Pairs(), tensor([0.5, -1.0, 2.0, 0.1])
    exact = sd.ExactScore(sde, sd.densities.Empirical(atom))
    view = {sd.NoisePrediction: exact.noise, sd.DataPrediction: exact.data, sd.ScorePrediction: exact}[wrapper]
    loss = sd.training.DenoisingLoss(wrapper(sde, Answer(view)), times=sd.training.Uniform(t_min=0.05))
    x0 = atom.expand(64, 4)
    assert loss.per_sample(x0, generator=torch.Generator().manual_seed(0)).max() < 1e-16
    wrong = sd.training.DenoisingLoss(wrapper(sde, Answer(lambda x, t: 1.1 * view(x, t))), times=loss.times)
    assert wrong.per_sample(x0, generator=torch.Generator().manual_seed(0)).mean() > 1e-3


class LearnedBlur(sd.SDE):
    """Noise given by what it does, of a strength that wants a gradient, and no drift."""

    def __init__(self):
        self.blur, self.strength = sd.Blurring((2, 2)), torch.tensor(0.7, dtype=F64, requires_grad=True)

    def f(self, x, t):
        return torch.zeros_like(x)

    def g(self, x, t):
        return self.strength * self.blur.diffusion(x, t)


@pytest.mark.parametrize(
    "solver", [sd.StochasticHeun(), sd.Milstein(), sd.AdaptiveHeun(rtol=1.0, atol=1e6)], ids=lambda s: type(s).__name__
)
def test_learned_noise_that_is_only_applied(solver):
    """Nothing is corrected where noise is additive by its type, whether or not it wants a gradient."""
    sde, x = LearnedBlur(), torch.ones(400, 2, 2, dtype=F64)
    noise = sd.PerSample(range(400))
    steps = {} if isinstance(solver, sd.AdaptiveHeun) else {"steps": 4}
    drawn = sd.solve(sde, x, solver=solver, noise=noise, **steps).x
    sde.strength = sde.strength.detach()
    plain = sd.solve(sde, x, solver=solver, noise=noise, **steps).x
    assert float((drawn - plain).abs().max()) < 1e-13 and float(drawn.std()) > 0.1


# ---- reversal -----------------------------------------------------------------------------------------------------


def test_reversals_are_those_of_the_general_formula():
    sde = Pairs()
    score = sd.ExactScore(sde, mixtures(4)[1])
    x = score.sample(5, 0.5, seed=0)
    d = sde.diffusion(x, 0.5)
    for eta in (1.0, 0.4, lambda t: 0.5 + t):
        value = eta if isinstance(eta, float) else 1.0
        back = sde.reverse(score, eta)
        expected = sde.drift(x, 0.5) - 0.5 * (1 + value**2) * d.gram(score(x, 0.5))
        torch.testing.assert_close(back.drift(x, 0.5), expected)
        torch.testing.assert_close(back.diffusion(x, 0.5).gram(x), value**2 * d.gram(x))
    flow = sde.probability_flow(score)
    torch.testing.assert_close(flow.drift(x, 0.5), sde.drift(x, 0.5) - 0.5 * d.gram(score(x, 0.5)))
    assert sde.reverse(score).reverse() is sde
    assert type(sde.reverse(score, 0.0)) is type(flow)
    free = sde.reverse(score, diffusion=0.3)
    torch.testing.assert_close(free.drift(x, 0.5), flow.drift(x, 0.5) - 0.045 * score(x, 0.5))


@each_process
def test_langevin_identity(sde, shape):
    data = sd.densities.Mixture(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), std=0.6)
    score = sd.ExactScore(sde, data if not isinstance(sde, sd.CLD) else sd.densities.ring(3))
    if len(score.event_shape) == 1:
        assert sd.verify.langevin_identity(sde, score.law(0.4), 0.4, particles=False).passed


@each_process
def test_score_obeys_the_fokker_planck_equation(sde, shape):
    """∂_t log p + div f + f·s = ½ (D : ∇s + sᵀDs), all derivatives automatic: sees a wrong kernel, score, f or g."""
    data = sd.densities.Mixture(
        torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=F64), std=0.6
    ).to(dtype=F64)
    score = sd.ExactScore(sde, data if not isinstance(sde, sd.CLD) else sd.densities.ring(3).to(dtype=F64))
    t = torch.full((1,), 0.4 * sde.t_max, dtype=F64)
    for x in score.sample(2, 0.4 * sde.t_max, seed=1).split(1):
        rate = torch.autograd.functional.jacobian(lambda u, x=x: score.log_prob(x, u), t)[0, 0]
        s = score(x, t)
        hessian, slope = (
            torch.autograd.functional.jacobian(function, x).reshape(x.numel(), x.numel())
            for function in (lambda y: score(y, t), lambda y: sde.drift(y, t))
        )
        unit = torch.eye(x.numel(), dtype=F64).reshape(-1, *x.shape[1:])
        gram = sde.diffusion(unit, float(t)).gram(unit).reshape(x.numel(), x.numel())
        flat = s.flatten()
        transport = rate + slope.trace() + sde.drift(x, t).flatten() @ flat
        spread = 0.5 * ((gram * hessian).sum() + flat @ gram @ flat)
        assert abs(transport - spread) < 1e-7 * (abs(rate) + abs(slope.trace()) + abs(spread))


# ---- errors -------------------------------------------------------------------------------------------------------


class Jump(sd.AffineSDE):
    def drift_matrix(self, t):
        return torch.where(t < 0.3333, -1.0, -2.0) * torch.eye(2, dtype=F64)

    def diffusion_matrix(self, t):
        return torch.eye(2, dtype=F64)


class Unreached(sd.AffineSDE):
    """Noise along (1, 1) alone."""

    def drift_matrix(self, t):
        return -torch.eye(2, dtype=F64)

    def diffusion_matrix(self, t):
        return tensor([1.0, 0.0], [1.0, 0.0])


def test_errors_say_what_to_do():
    x = torch.zeros(3, 2, dtype=F64)
    with pytest.raises(ValueError, match=r"could not be derived.*smooth it, or end the clock"):
        Jump().moments(torch.tensor(0.5, dtype=F64))
    with pytest.raises(
        ValueError, match=r"singular: some combination of coordinates receives no noise.*start_covariance"
    ):
        Unreached().perturb(x, 0.5, x)
    with pytest.raises(ValueError, match=r"3 coordinates; CLD needs a multiple of 2"):
        sd.CLD().drift(torch.zeros(2, 3), 0.5)
    with pytest.raises(ValueError, match=r"5 coordinates; Pairs needs 4"):
        Pairs().drift(torch.zeros(2, 5), 0.5)
    with pytest.raises(ValueError, match=r"no noise yet.*ask at a later t"):
        Pairs().marginal(torch.zeros(1, 4), 0.0).log_prob(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="from s to a later t: exchange them"):
        sd.CLD().transition(0.5, 0.4)
    with pytest.raises(ValueError, match=r"noise has shape \(3, 1\)"):
        sd.CLD().perturb(x, 0.5, x[:, :1])
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\); states of this process have shape \(B, 4"):
        sd.ExactScore(sd.CLD(), sd.densities.ring(3))(x, 0.5)
    for solver in (sd.DDIM(), sd.UniPCSolver(), sd.DPMSolver2()):
        for process in (sd.CLD().reverse(lambda x, t: -x), sd.CLD().probability_flow(lambda x, t: -x)):
            with pytest.raises(
                TypeError, match=r"needs the reversal of a linear SDE, got Coupled.*use CoupledMultistep for"
            ):
                sd.solve(process, x, solver=solver, steps=3)
            assert torch.isfinite(sd.solve(process, x, solver=sd.CoupledMultistep(), steps=3).x).all()

    blur = sd.Blurring((2, 2))
    with pytest.raises(TypeError, match="wants the entries of the noise matrix"):
        sd.solve(blur, torch.zeros(2, 2, 2), solver=sd.TorchSDE(), steps=3)
    cld, learned = sd.CLD(), sd.NoisePrediction(sd.CLD(), Answer(lambda x, t: x))
    for weighting in (sd.training.NoiseError(), sd.training.Likelihood()):
        with pytest.raises(TypeError, match="matrices for alpha and sigma, and this weighting needs numbers"):
            sd.training.DenoisingLoss(learned, weighting=weighting)(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="A score of a CLD does not move"):
        learned.to(sd.VP())
    with pytest.raises(TypeError, match="A score moves to a LinearSDE, got CLD"):
        sd.FunctionScore(lambda x, t: -x, sd.VP()).to(cld)

    class Ragged(Pairs):
        def diffusion_matrix(self, t):
            return torch.ones(3, 2, 2, dtype=F64)

    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and diffusion_matrix \(3, 2, 2\)"):
        Ragged().drift(torch.zeros(1, 4), 0.5)


@pytest.mark.parametrize("width", [1.5, 20.0, 40.0])
@pytest.mark.parametrize("base", [sd.VP(), sd.VE(), sd.CosineVP()], ids=lambda base: type(base).__name__)
def test_transitions_of_a_blur_are_those_of_its_coefficients(width, base):
    """In closed form and by quadrature; the widest shrinks the finest detail to e^-12000, which takes thousands of panels.

    The coefficients of the last are infinite at t = 1, so that it has its closed form alone: there kernels compose.
    """
    sde = sd.Blurring((3, 4), width, base=base)
    s = torch.tensor([0.0, 0.0, 0.01, 0.1, 0.3, 0.3, 0.5, 0.9], dtype=F64)
    t = torch.tensor([1e-3, 0.2, 0.02, 0.1, 0.5, 0.301, 1.0, 1.0], dtype=F64)
    closed, middle = sde.transition(s, t), 0.5 * (s + t)
    others = [sde.transition(s, middle).then(sde.transition(middle, t))]
    if not base.reaches_pure_noise:
        others.append(sd.AffineSDE.between(sde, s, t))
    for other in others:
        torch.testing.assert_close(other.scale, closed.scale, rtol=1e-10, atol=1e-300)
        torch.testing.assert_close(other.covariance, closed.covariance, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("sde", [sd.CLD(), sd.Blurring((2, 2)), Pairs()], ids=lambda sde: type(sde).__name__)
def test_times_outside_the_clock_are_refused(sde):
    """The last panel of the quadrature, or the closed form, goes on beyond the clock."""
    outside = (-1.0, 1.01 * sde.t_max, torch.tensor([0.1, -0.01]), torch.tensor(math.nan))
    for t in outside:
        for call in (sde.scales, sde.log_snr, lambda u: sde.transition(0.1, u), lambda u: sde.transition(u, 0.5)):
            with pytest.raises(ValueError, match=r"is outside \[0, .*the domain of this process"):
                call(t)
    assert torch.equal(sde.scales(sde.t_max * (1 + 1e-7)).root, sde.scales(sde.t_max).root)


@pytest.mark.parametrize("sde", [sd.CLD(), sd.Blurring((2, 2)), Pairs()], ids=lambda sde: type(sde).__name__)
def test_a_time_and_its_rounding_are_the_same_for_a_transition(sde):
    """0.7 in float32 is a little less than in float64: no step at all, and none backward."""
    kernel = sde.transition(0.7, torch.tensor(0.7))
    eye = torch.eye(kernel.scale.shape[-1], dtype=F64).expand_as(kernel.scale)
    assert torch.equal(kernel.scale, eye) and not kernel.covariance.any() and not kernel.shift.any()
    with pytest.raises(ValueError, match="exchange them"):
        sde.transition(0.7, 0.6999)


def test_the_last_denoising_step_is_the_posterior_mean():
    cld = sd.CLD()
    score = sd.ExactScore(cld, sd.densities.ring(3).to(dtype=F64))
    x = score.sample(4, 1.0, seed=0)
    options = {"solver": sd.CoupledMultistep(), "steps": 5, "t1": 0.1}
    plain, denoised = (sd.solve(cld.probability_flow(score), x, denoise=d, **options).x for d in (False, True))
    torch.testing.assert_close(denoised, score.data(plain, 0.1))


def test_at_the_start_states_are_data_with_the_noise_of_the_start():
    x0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    cld = sd.CLD(gamma=0.09, mass=0.25)
    torch.testing.assert_close(cld.perturb(x0, 0.0, z), x0 + tensor([0.0, 0.15]) * z)
    torch.testing.assert_close(PerCoordinate().perturb(x0.repeat(1, 2), 0.0, z.repeat(1, 2)), x0.repeat(1, 2))
