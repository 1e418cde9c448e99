"""BAOAB: its every step against a recursion written apart, its laws and orders by exact linear algebra and by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from scipy.linalg import expm, solve_discrete_lyapunov

import sdediff as sd
from sdediff.noise import Noise, Stream

RNG = np.random.default_rng(0)
D = 3
_root = RNG.normal(size=(D, D))
PRECISION = _root @ _root.T / D + np.eye(D)  # of a Gaussian target
MASSES = {"unit": 1.0, "number": 2.5, "vector": np.array([0.5, 1.0, 3.0])}
_factor = RNG.normal(size=(D, D))
FRICTIONS = {"number": 0.7, "vector": np.array([0.2, 1.0, 5.0]), "matrix": _factor @ _factor.T + 0.5 * np.eye(D)}


class Given(Noise):
    """Hands out normals that are known, one (B, ...) per step."""

    def __init__(self, normals):
        self.normals = normals

    def open(self, x):
        return GivenStream(iter(self.normals))

    def integer(self):
        raise NotImplementedError

    def initial(self, shape, device, dtype):
        raise NotImplementedError


class GivenStream(Stream):
    def __init__(self, normals):
        self.normals = normals

    def normal(self, shape=None):
        z = next(self.normals)
        assert shape is None or z.shape == shape
        return z


def as_argument(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def dynamics(mass, friction, precision=PRECISION):
    matrix = torch.from_numpy(precision)
    return sd.Underdamped(lambda q, t: -q @ matrix, as_argument(friction), as_argument(mass))


def as_matrix(value):
    value = np.asarray(value, dtype=float)
    return value if value.ndim == 2 else np.diag(np.broadcast_to(value, D))


def recursion(mass, friction, h, precision=PRECISION):
    """(A, C): one step takes x to A x + C z. Written with matrix functions in place of the library's eigenvectors."""
    m, gamma, one, zero = as_matrix(mass), as_matrix(friction), np.eye(D), np.zeros((D, D))
    inverse = np.linalg.inv(m)
    kick = np.block([[one, zero], [-h / 2 * inverse @ precision, one]])
    drift = np.block([[one, h / 2 * one], [zero, one]])
    decay = expm(-h * inverse @ gamma)
    covariance = inverse - decay @ inverse @ decay.T  # N(0, 1/m) is kept
    relax = np.block([[one, zero], [zero, decay]])
    a = kick @ drift @ relax @ drift @ kick
    return a, kick @ drift @ np.block([[zero, zero], [zero, covariance]]) @ drift.T @ kick.T


def library_step(mass, friction, nodes, precision=PRECISION):
    """The library's (A, C C^T) over some steps, read off from known starts and normals."""
    process, n = dynamics(mass, friction, precision), len(nodes) - 1

    def run(x, normals):
        return sd.solve(process, x, solver=sd.BAOAB(), grid=nodes, noise=Given(normals)).x

    silent = [torch.zeros(2 * D, D, dtype=torch.float64)] * n
    a = run(torch.eye(2 * D, dtype=torch.float64), silent).T.numpy()
    covariance = np.zeros((2 * D, 2 * D))
    for k in range(n):
        normals = [torch.zeros(D, D, dtype=torch.float64)] * n
        normals[k] = torch.eye(D, dtype=torch.float64)
        response = run(torch.zeros(D, 2 * D, dtype=torch.float64), normals).T.numpy()
        covariance += response @ response.T
    return a, covariance


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("friction", FRICTIONS)
def test_every_step_is_that_of_the_recursion(mass, friction):
    """Three uneven steps, for all kinds of mass and friction, to 1e-12."""
    mass, friction = MASSES[mass], FRICTIONS[friction]
    nodes = [0.0, 0.3, 0.35, 0.8]
    a, covariance = library_step(mass, friction, nodes)
    expected_a, expected_c = np.eye(2 * D), np.zeros((2 * D, 2 * D))
    for h in np.diff(nodes):
        step, noise = recursion(mass, friction, h)
        expected_a, expected_c = step @ expected_a, step @ expected_c @ step.T + noise
    assert np.abs(a - expected_a).max() < 1e-12
    assert np.abs(covariance - expected_c).max() < 1e-12


def stationary(mass, friction, h, precision=PRECISION):
    """The stationary covariance of the library's steps of length h."""
    return solve_discrete_lyapunov(*library_step(mass, friction, [0.0, h], precision))


def test_stationary_law_of_a_gaussian():
    """Positions exact at any stable step; velocities M^-1 - h²/4 M^-1 K M^-1, so the error is O(h²), exactly."""
    mass, friction = MASSES["vector"], FRICTIONS["matrix"]
    inverse = np.linalg.inv(as_matrix(mass))
    for h in (0.8, 0.4, 0.05):
        s = stationary(mass, friction, h)
        assert np.abs(s[:D, :D] - np.linalg.inv(PRECISION)).max() < 1e-11
        assert np.abs(s[:D, D:]).max() < 1e-11
        assert np.abs(s[D:, D:] - (inverse - h * h / 4 * inverse @ PRECISION @ inverse)).max() < 1e-11


def test_stable_up_to_its_bound():
    """One mode of frequency ω: the spectral radius is below 1 for hω < 2 and above beyond."""
    for h, stable in ((1.98, True), (2.02, False)):
        a, _ = library_step(1.0, 0.3, [0.0, h], precision=np.eye(D))
        assert (np.abs(np.linalg.eigvals(a)).max() < 1) == stable


def slope(errors):
    """The order, from errors at steps that halve."""
    return float(np.polyfit(-np.arange(len(errors)), np.log2(errors), 1)[0])


@pytest.mark.parametrize("friction", FRICTIONS)
def test_weak_order_in_finite_time_on_a_gaussian(friction):
    """Mean and covariance at t = 1 from a point, against the matrix exponential: both of order 2 ± 0.2."""
    mass, friction = MASSES["vector"], FRICTIONS[friction]
    inverse, gamma = np.linalg.inv(as_matrix(mass)), as_matrix(friction)
    zero = np.zeros((D, D))
    generator = np.block([[zero, np.eye(D)], [-inverse @ PRECISION, -inverse @ gamma]])
    limit = np.block([[np.linalg.inv(PRECISION), zero], [zero, inverse]])
    flow = expm(generator)
    law = limit - flow @ limit @ flow.T
    means, covariances = [], []
    for n in (8, 16, 32):
        step, noise = recursion(mass, friction, 1 / n)
        a, c = np.eye(2 * D), np.zeros_like(law)
        for _ in range(n):
            a, c = step @ a, step @ c @ step.T + noise
        means.append(np.abs(a - flow).max())
        covariances.append(np.abs(c - law).max())
    assert abs(slope(means) - 2) < 0.2 and abs(slope(covariances) - 2) < 0.2


# ---- a double well, by quadrature -------------------------------------------------------------------------------------------

Q = np.linspace(-3.4, 3.4, 85)
V = np.linspace(-6.5, 6.5, 65)
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(10)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def well_score(q, t):
    """Of U = q⁴/4 - q²/2 + q/5: two wells of unequal depth, nothing symmetric."""
    return -(q**3) + q - 0.2


def expectations(n: int, length: float, values: np.ndarray) -> np.ndarray:
    """E[φ(x_T)] on the grid of starts: the library's step, its normal replaced by Gauss-Hermite nodes, carried back."""
    process = sd.Underdamped(well_score, friction=0.8)
    grid = np.stack(np.meshgrid(Q, V, indexing="ij"), -1).reshape(-1, 2)
    starts = torch.from_numpy(np.repeat(grid, len(POINTS), 0))
    z = torch.from_numpy(np.tile(POINTS, len(grid))).reshape(-1, 1)
    h = length / n
    ends = sd.solve(process, starts, solver=sd.BAOAB(), grid=[0.0, h], noise=Given([z])).x.numpy()
    ends = np.clip(ends, [Q[0], V[0]], [Q[-1], V[-1]])
    for _ in range(n):
        spline = RectBivariateSpline(Q, V, values, kx=5, ky=5)
        values = (spline.ev(ends[:, 0], ends[:, 1]).reshape(-1, len(POINTS)) @ WEIGHTS).reshape(len(Q), len(V))
    return values


def test_weak_order_in_finite_time_on_a_double_well():
    """E[q²] and E[qv] at T = 1/2 from three starts: order 2 ± 0.2 by successive differences, without
    sampling."""
    for values in (Q[:, None] ** 2 + 0 * V, Q[:, None] * V):
        found = [expectations(n, 0.5, values)[[42, 52, 30], [32, 38, 24]] for n in (4, 8, 16, 32)]
        differences = np.abs(np.diff(found, axis=0)).max(1)
        assert abs(slope(differences) - 2) < 0.2


def test_the_law_drifts_away_from_the_exact_one_by_the_second_order():
    """E[q²] after T = 4, started from the exact stationary law, less its exact value: order 2 ± 0.2, by quadrature."""
    law = np.exp(-(Q[:, None] ** 4 / 4 - Q[:, None] ** 2 / 2 + Q[:, None] / 5) - V**2 / 2)
    law /= law.sum()
    values = Q[:, None] ** 2 + 0 * V
    errors = [abs(float((law * (expectations(n, 4.0, values) - values)).sum())) for n in (20, 40, 80)]
    assert abs(slope(errors) - 2) < 0.2


# ---- the solver in use ------------------------------------------------------------------------------------------------------


def test_one_evaluation_a_step():
    calls = []

    def score(q, t):
        calls.append(float(t))
        return -q

    out = sd.solve(sd.Underdamped(score), torch.ones(4, 2), solver=sd.BAOAB(), t0=0.0, t1=1.0, steps=10, seed=0)
    assert len(calls) == out.stats["nfe"] == 11
    assert calls == pytest.approx([0.1 * k for k in range(11)], abs=1e-12)


def test_particles_keep_the_stationary_law(assert_law):
    """From exact samples, 50 steps of h = 0.2 on N(0, 0.25): positions stay, velocities shrink by the 4 % that h² predicts."""
    gaussian = sd.densities.Mixture([[0.0]], std=0.5)
    x = sd.Phase(gaussian).sample(40_000, seed=1).double()
    out = sd.solve(sd.Underdamped(gaussian), x, solver=sd.BAOAB(), t0=0.0, t1=10.0, steps=50, seed=2)
    assert_law(out.x[:, 0], 0.0, 0.25)
    assert_law(out.x[:, 1], 0.0, 1 - 0.2**2 / 4 * 4)


def test_what_it_refuses():
    with pytest.raises(TypeError, match="underdamped Langevin dynamics such as Underdamped, got OU"):
        sd.solve(sd.OU(), torch.ones(2, 2), solver=sd.BAOAB(), steps=3)
    process = sd.Underdamped(well_score)
    with pytest.raises(ValueError, match=r"\(B, 2d\)"):
        sd.solve(process, torch.ones(2, 3), solver=sd.BAOAB(), t0=0.0, t1=1.0, steps=3)
    with pytest.raises(ValueError, match="rising t"):
        sd.solve(process, torch.ones(2, 2), solver=sd.BAOAB(), t0=1.0, t1=0.0, steps=3)
