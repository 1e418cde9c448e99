r"""Reversal: the whole family against formulas written out by hand, for every kind of noise, state and time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdediff as sd

F64 = torch.float64


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(got, want, tolerance=1e-9):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# ---- three SDEs with noise that depends on the state -----------------------------------------------------------


def matrix(x):
    """G(x), 2 x 2, every entry a function of both coordinates."""
    a, b = x[:, 0], x[:, 1]
    rows = [
        1 + 0.3 * torch.sin(a) * b,
        0.2 * a + 0.1 * b**2,
        0.1 * torch.exp(-(b**2)) + 0.2 * a,
        1.2 + torch.cos(a - b),
    ]
    return torch.stack(rows, 1).reshape(-1, 2, 2)


def energy_score(x):
    """-∇U of U = x⁴/4 + y²/2 + xy/3."""
    a, b = x[:, 0], x[:, 1]
    return -torch.stack([a**3 + b / 3, b + a / 3], 1)


def matrix_divergence(x):
    """(∇·D)_i = Σ_j ∂_j D_ij, one sample at a time with torch.func."""

    def gram(point):
        g = matrix(point[None])[0]
        return g @ g.T

    jacobian = torch.func.vmap(torch.func.jacrev(gram))(x)  # (B, i, j, k) = ∂_k D_ij
    return torch.einsum("bijj->bi", jacobian)


class Reversible(sd.SDE):
    """½(∇·D + D s) dt + G dW, which leaves exp(-U) invariant and looks the same backwards."""

    def f(self, x, t):
        g = matrix(x)
        return 0.5 * (matrix_divergence(x) + (g @ g.mT @ energy_score(x)[..., None])[..., 0])

    def g(self, x, t):
        return sd.Dense(matrix(x))


class Tall(sd.SDE):
    """Matrix noise of 3 dimensions on 2 coordinates, one and the same matrix for all samples, growing with t."""

    G = torch.tensor([[[1.0, 0.2, -0.4], [0.0, 0.7, 0.3]]], dtype=torch.float64)

    def f(self, x, t):
        return torch.sin(x)

    def g(self, x, t):
        scale = 1 + t
        return sd.Dense(self.G.to(x.dtype) * (scale if scale.ndim == 0 else scale.unsqueeze(-1)))


WEIGHTS = torch.tensor([[0.3, -0.8, 0.5], [0.1, 0.4, -0.2], [-0.6, 0.2, 0.9]], dtype=torch.float64)


class Entangled(sd.SDE):
    """Diagonal noise whose every entry depends on every coordinate and on t."""

    def f(self, x, t):
        return -x

    def g(self, x, t):
        return (1.5 + t) + torch.tanh(x @ WEIGHTS.T.to(x.dtype))

    @staticmethod
    def divergence(x, t):
        """∂_i g_i² = 2 g_i (1 - tanh²) W_ii: not the sum over the row."""
        th = torch.tanh(x @ WEIGHTS.T)
        return 2 * (1.5 + t + th) * (1 - th**2) * WEIGHTS.diagonal()


def test_reversible_dynamics_reverse_into_themselves():
    """Reverse drift = - forward drift, the flow stands still: 1e-9, with state-dependent matrix noise."""
    sde, x = Reversible(), 2 * randn(64, 2)
    score = lambda x, t: energy_score(x)  # noqa: E731
    close(sde.reverse(score).drift(x, 0.4), -sde.drift(x, 0.4))
    close(sde.probability_flow(score).drift(x, 0.4), torch.zeros_like(x))
    close(sde.reverse(score, 0.0).drift(x, 0.4), torch.zeros_like(x))
    assert sde.drift(x, 0.4).abs().max() > 1  # there was something to cancel
    assert torch.equal(sde.reverse(score).diffusion(x, 0.4).matrix, matrix(x))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_reversal_with_matrix_noise(eta):
    """f - ½(1 + η²)(∇·D + D s), noise ηG, for a score that has nothing to do with the process."""
    sde, x = Reversible(), randn(16, 2)
    score = lambda x, t: torch.cos(3 * x) * (1 + t)  # noqa: E731
    g, s = matrix(x), torch.cos(3 * x) * 1.4
    pull = matrix_divergence(x) + (g @ g.mT @ s[..., None])[..., 0]
    back = sde.reverse(score, eta)
    close(back.drift(x, 0.4), sde.f(x, None) - 0.5 * (1 + eta**2) * pull)
    z = randn(16, 2, seed=1)
    want = eta * (g @ z[..., None])[..., 0]
    close(back.diffusion(x, 0.4) @ z, want) if eta else close(torch.zeros_like(x), want)
    assert back.direction == (-1 if eta else 0)


def test_matrix_divergence():
    sde, x = Reversible(), randn(64, 2)
    close(sde.gram_divergence(x, 0.2), matrix_divergence(x))
    assert matrix_divergence(x).abs().max() > 0.5
    assert torch.equal(Tall().gram_divergence(x, 0.2), torch.zeros_like(x))


def test_diagonal_divergence_is_the_diagonal():
    """A diagonal g of all coordinates: 1e-9, at one time or at one for each sample."""
    sde, x = Entangled(), randn(5, 3)
    close(sde.gram_divergence(x, 0.3), Entangled.divergence(x, 0.3))
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    close(sde.gram_divergence(x, t), Entangled.divergence(x, t[:, None]))
    score = lambda x, t: -x  # noqa: E731
    want = -x - Entangled.divergence(x, 0.3) + x * (sde.g(x, 0.3) ** 2)
    close(sde.reverse(score).drift(x, 0.3), want)
    full = torch.func.vmap(torch.func.jacrev(lambda p: sde.g(p[None], 0.3)[0] ** 2))(x)
    assert (full.sum(2) - full.diagonal(dim1=1, dim2=2)).abs().max() > 0.1  # the two differ here


def test_one_coefficient_for_all_coordinates_of_a_sample():
    """g of shape (B, 1, 1) that depends on the whole state: still the diagonal of the Jacobian."""

    class Radial(sd.SDE):
        def f(self, x, t):
            return torch.zeros_like(x)

        def g(self, x, t):
            return (1 + x.square().sum((1, 2), keepdim=True)).sqrt()

    x = randn(4, 2, 3)
    close(Radial().gram_divergence(x, 0.0), 2 * x)
    close(Radial().probability_flow(lambda x, t: torch.zeros_like(x)).drift(x, 0.0), -x)


def test_tall_matrices():
    sde, x, z = Tall(), randn(7, 2), randn(7, 3, seed=1)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    G = Tall.G[0]
    noise = sde.diffusion(x, t)
    assert noise.noise_shape(x) == (7, 3)
    close(noise @ z, (1 + t)[:, None] * (z @ G.T), 1e-12)
    close(noise.gram(x), (1 + t)[:, None] ** 2 * (x @ G @ G.T), 1e-12)
    eta = lambda t: 0.5 + t  # noqa: E731
    back = sde.reverse(lambda x, t: -x, eta)
    close(back.diffusion(x, t) @ z, ((0.5 + t) * (1 + t))[:, None] * (z @ G.T), 1e-12)
    weight = (0.5 * (1 + (0.5 + t) ** 2) * (1 + t) ** 2)[:, None]
    close(back.drift(x, t), torch.sin(x) + weight * (x @ G @ G.T), 1e-12)
    close(back.drift(x, 0.25), torch.sin(x) + 0.5 * (1 + 0.75**2) * 1.25**2 * (x @ G @ G.T), 1e-12)


class Noises:
    """One operator of each shape, at states x of the shape it needs."""

    x = randn(3, 2, seed=1)
    blur = sd.Blurring((2, 2))
    image = randn(3, 2, 2, seed=2)
    every = (
        (sd.Diagonal(0.7), x),
        (sd.Diagonal(torch.tensor(-0.7, dtype=torch.float64)), x),
        (sd.Diagonal(randn(1, 2, 1, seed=3)), image),
        (sd.Diagonal(randn(3, 2, seed=4)), x),
        (sd.Dense(randn(1, 2, 3, seed=5)), x),
        (sd.Dense(randn(3, 2, 2, seed=6)), x),
        (blur.diffusion(image, 0.4), image),
        (blur.diffusion(image, torch.tensor([0.2, 0.4, 0.6])), image),
    )


@pytest.mark.parametrize(("noise", "x"), Noises.every)
def test_all_noise_answers_the_same_questions(noise, x):
    """G column by column from what it does; all else it says is of this matrix."""
    size = noise.noise_shape(x)[1:].numel()
    units = torch.eye(size, dtype=x.dtype).reshape(size, 1, *noise.noise_shape(x)[1:])
    matrix = torch.stack([(noise @ unit.expand(noise.noise_shape(x))).flatten(1) for unit in units], 2)  # (B, D, m)
    gram = matrix @ matrix.mT
    close(noise.gram_matrix(x), gram, 1e-13)
    v = randn(*x.shape, seed=7)
    close(noise.gram(v).flatten(1), (gram @ v.flatten(1).unsqueeze(2)).squeeze(2), 1e-13)
    close((-2.0 * noise).gram_matrix(x), 4 * gram, 1e-13)
    if noise.diagonal:
        close(torch.diag_embed(noise.entries(x).flatten(1)), matrix, 0)
    elif noise.additive:
        with pytest.raises(TypeError, match="BlockNoise only applies it"):
            noise.entries(x)
    else:
        close(noise.entries(x), matrix, 0)
    assert not noise.correction(x).any() and not noise.gram_divergence(x).any()
    learned = torch.ones((), dtype=x.dtype, requires_grad=True) * noise
    assert learned.requires_grad and not learned.detached().requires_grad
    close(learned.detached() @ units[0].expand(noise.noise_shape(x)), noise @ units[0].expand(noise.noise_shape(x)), 0)
    twin = (2 * learned).gram_matrix(x)  # and the graph stays where it is wanted
    assert twin.requires_grad and bool((twin != gram).any())


def test_corrections_of_noise_that_depends_on_the_state():
    """Σ_jk G_jk ∂_j G_ik, one sample at a time with torch.func; g_i ∂_i g_i by hand where only the diagonal counts."""
    x = randn(5, 2, seed=1).requires_grad_()
    crossed = torch.exp(x) * x.flip(1)
    close(sd.Diagonal(crossed).correction(x), crossed * crossed, 1e-13)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: matrix(point[None])[0]))(x)  # (B, i, k, j)
    close(sd.Dense(matrix(x)).correction(x), torch.einsum("bjk,bikj->bi", matrix(x), jacobian), 1e-13)


# ---- the family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [Reversible(), Tall(), sd.VP(), sd.SubVP(), sd.EDM(t_max=1.0)])
def test_free_noise(sde):
    """f - ½(∇·D + D s) - ½ w² s, noise w(t)."""
    x, z = randn(6, 2), randn(6, 2, seed=1)
    score = lambda x, t: torch.sin(x)  # noqa: E731
    back = sde.reverse(score, diffusion=lambda t: 0.3 + 2 * t)
    flow = sde.probability_flow(score)
    w = 0.3 + 2 * 0.4
    close(back.drift(x, 0.4), flow.drift(x, 0.4) - 0.5 * w**2 * torch.sin(x), 1e-12)
    close(back.diffusion(x, 0.4) @ z, w * z, 1e-12)
    constant = sde.reverse(score, diffusion=0.7)
    close(constant.drift(x, 0.4), flow.drift(x, 0.4) - 0.5 * 0.49 * torch.sin(x), 1e-12)
    assert back.direction == -1 and flow.direction == 0


LINEAR = [
    sd.OU(),
    sd.VP(),
    sd.SubVP(),
    sd.VE(),
    sd.EDM(),
    sd.CosineVP(),
    sd.RectifiedFlow(),
    sd.CustomVP(lambda t: 1 + t),
]
linear = pytest.mark.parametrize("sde", LINEAR, ids=lambda s: type(s).__name__)


def plain(sde):
    """The same SDE without its structure, so that the general formulas are used."""

    class Plain(sd.SDE):
        t_max = sde.t_max

        def f(self, x, t):
            return sde.drift(x, t)

        def g(self, x, t):
            return sde.diffusion(x, t).value

    return Plain()


@linear
@pytest.mark.parametrize("kind", [0.0, 0.5, 1.0, "eta(t)", "w(t)", "flow"])
def test_linear_and_general_reversals_are_equal(sde, kind):
    x = randn(5, 2, 3)
    score = lambda x, t: -torch.tanh(x) + 0.1  # noqa: E731
    t = torch.tensor([0.05, 0.2, 0.5, 0.7, 0.9], dtype=torch.float64) * sde.t_max
    arguments = {"eta(t)": {"stochasticity": lambda t: 0.3 + t}, "w(t)": {"diffusion": lambda t: 0.3 + t}}
    for time in (0.6 * sde.t_max, t):
        if kind == "flow":
            one, two = sde.probability_flow(score), plain(sde).probability_flow(score)
        else:
            chosen = arguments.get(kind, {"stochasticity": kind})
            one, two = sde.reverse(score, **chosen), plain(sde).reverse(score, **chosen)
        want = two.drift(x, time)
        close(one.drift(x, time), want, 1e-11)
        z = randn(5, 2, 3, seed=2)
        close(one.diffusion(x, time) @ z, two.diffusion(x, time) @ z, 1e-12)
        assert one.direction == two.direction


@linear
def test_drifts_along_a_grid_are_the_drift(sde):
    """What fixed-step solvers prepare is what ``drift`` gives."""
    x = randn(4, 3)
    score = sd.FunctionScore(lambda x, t: -torch.tanh(x) * (1 + t), sde)
    times = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64) * sde.t_max
    for process in (sde, sde.reverse(score), sde.reverse(score, 0.5), sde.probability_flow(score)):
        for t, drift in zip(times, process.drifts(times), strict=True):
            close(drift(x), process.drift(x, t), 1e-12)


@linear
def test_affine_form(sde):
    """a x + b s, noise w: what exponential solvers are told is the drift that others see."""
    x, score = randn(4, 3), sd.FunctionScore(lambda x, t: -torch.tanh(x), sde)
    times = torch.tensor([0.8, 0.3], dtype=torch.float64) * sde.t_max
    for process in (sde.reverse(score, 0.5), sde.reverse(score, diffusion=0.4), sde.probability_flow(score)):
        a, b, w = process.affine(times)
        for k, t in enumerate(times):
            close(a[k] * x + b[k] * score(x, t), process.drift(x, t), 1e-11)
            close(w[k] * x, process.diffusion(x, t) @ x, 1e-12)
            g = float(sde.diffusion(x, t).value)
            assert float(process.eta(t)) == pytest.approx(float(w[k]) / g, rel=1e-12)


@pytest.mark.parametrize("sde", [Reversible(), Entangled(), sd.VP(), sd.EDM(), sd.RectifiedFlow()])
def test_reverse_of_reverse_is_the_original(sde):
    score = lambda x, t: -x  # noqa: E731
    back = sde.reverse(score)
    assert back.reverse() is sde
    assert back.reverse(score) is sde
    assert back.reverse(back.score) is sde
    x = randn(4, 3 if isinstance(sde, Entangled) else 2)
    again = back.reverse(lambda x, t: -x)  # an equal score, but another function: computed, and equal
    assert again.direction == sde.direction == 1
    close(again.drift(x, 0.5), sde.drift(x, 0.5))
    close(again.diffusion(x, 0.5) @ x[:, :2], sde.diffusion(x, 0.5) @ x[:, :2]) if x.shape[1] == 2 else None


@pytest.mark.parametrize("sde", [Reversible(), sd.VP()])
def test_reversing_a_partly_stochastic_reversal(sde):
    """From f - ½(1+η²)P and noise ηG, run backwards: f - ½(1-η²)P and noise ηG, on a rising clock."""
    score = lambda x, t: -torch.tanh(x)  # noqa: E731
    x, eta = randn(5, 2), 0.6
    twice = sde.reverse(score, eta).reverse(score)
    flow, f = sde.probability_flow(score).drift(x, 0.5), sde.drift(x, 0.5)
    pull = 2 * (f - flow)
    close(twice.drift(x, 0.5), f - 0.5 * (1 - eta**2) * pull)
    close(twice.diffusion(x, 0.5) @ x, eta * (sde.diffusion(x, 0.5) @ x))
    assert twice.direction == 1
    close(sde.reverse(score, eta).probability_flow(score).drift(x, 0.5), flow)
    # a free noise: the pull of the flow is that of w, and changes sign with the clock
    w = 0.8
    want = flow + 0.5 * w**2 * score(x, 0.5)
    close(sde.reverse(score, diffusion=w).reverse(score).drift(x, 0.5), want)
    close(sde.reverse(score, eta).reverse(score, diffusion=w).drift(x, 0.5), want)


def test_flows_and_odes_are_their_own_reversal():
    flow = sd.VP().probability_flow(lambda x, t: -x)
    assert flow.reverse() is flow and flow.direction == 0

    class Spiral(sd.ODE):
        def f(self, x, t):
            return -x

    ode = Spiral()
    assert ode.reverse() is ode and ode.diffusion(torch.ones(2), 0.1).value == 0.0


def test_flow_where_alpha_vanishes():
    """At t = 1 of a straight path f and g are infinite, and the flow ε̂ - x̂_0 finite: exact for N(μ, s²) data."""
    mu, s2 = 0.7, 0.09
    sde = sd.RectifiedFlow()
    score = sd.FunctionScore(lambda x, t: -(x - (1 - t) * mu) / ((1 - t) ** 2 * s2 + t * t), sde)

    class Known(sd.FunctionScore):
        """The same law by its posterior mean, which is known at t = 1 too."""

        form = sd.forms.DataForm()

    def mean(x, t):
        v = (1 - t) ** 2 * s2 + t * t
        return mu + (1 - t) * s2 / v * (x - (1 - t) * mu)

    known = Known(mean, sde)
    x = randn(6, 1)
    close(sde.probability_flow(known).drift(x, 1.0), x - mu, 1e-12)
    for t in (0.2, 0.9):
        close(sde.probability_flow(known).drift(x, t), sde.probability_flow(score).drift(x, t), 1e-11)
    cosine = sd.CosineVP()
    rate = -0.5 * math.pi / 1.008 / math.cos(0.5 * math.pi * 0.008 / 1.008)  # α'(1); σ'(1) = 0 as σ² = 1 - α²
    at_end = cosine.probability_flow(Known(lambda x, t: torch.full_like(x, mu), cosine)).drift(x, 1.0)
    close(at_end, torch.full_like(x, rate * mu), 1e-12)


# ---- shapes, times and dtypes ------------------------------------------------------------------------------------


class Recorder(sd.SDE):
    """Notes how times arrive."""

    def __init__(self):
        self.seen = []

    def f(self, x, t):
        self.seen.append((t.shape, t.dtype))
        return -x * t

    def g(self, x, t):
        self.seen.append((t.shape, t.dtype))
        return 1 + t


SHAPES = [(4,), (4, 3), (4, 4), (4, 2, 3, 3)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
def test_how_times_arrive(shape):
    """() in float64, or (B, 1, ..., 1) in at least float32: in f, in g, in scores; whatever the caller gave."""
    x = randn(*shape).float()
    ones = (1,) * (len(shape) - 1)
    t32, t16 = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.25, 0.5, 0.5, 0.75], dtype=torch.bfloat16)
    given_and_want = [
        (0.5, (), torch.float64),
        (1, (), torch.float64),
        (torch.tensor(0.5), (), torch.float64),
        (torch.tensor(1), (), torch.float64),
        (t32, (4, *ones), torch.float32),
        (t16, (4, *ones), torch.float32),
        (t32.double(), (4, *ones), torch.float64),
        (t32.reshape(4, *ones), (4, *ones), torch.float32),
    ]
    for t, want, dtype in given_and_want:
        sde, seen = Recorder(), []

        def score(x, t, seen=seen):
            seen.append((t.shape, t.dtype))
            return -x

        sde.drift(x, t), sde.diffusion(x, t), sd.FunctionScore(score)(x, t)
        sde.reverse(score).drift(x, t), sde.gram_divergence(x, t)
        assert sde.seen and len(seen) == 2
        assert set(sde.seen + seen) == {(want, dtype)}


PROCESSES = {
    "vp": lambda score: sd.VP().reverse(score),
    "sub-vp-flow": lambda score: sd.SubVP().probability_flow(score),
    "edm-eta": lambda score: sd.EDM(t_max=1.0).reverse(score, lambda t: 0.5 + t),
    "flow-w": lambda score: sd.RectifiedFlow().reverse(score, diffusion=lambda t: 0.5 + t),
    "general": lambda score: Recorder().reverse(score),
    "general-eta": lambda score: Recorder().reverse(score, lambda t: 0.5 + t),
    "forward": lambda score: sd.VP(),
    "custom": lambda score: sd.CustomVP(lambda t: 1 + t).reverse(score),
}


@shapes
@pytest.mark.parametrize("name", PROCESSES)
def test_a_batch_is_its_samples(shape, name):
    """Sample i with its own time t_i gives what it gives alone at t_i: nothing broadcasts across, with B = d either."""
    process = PROCESSES[name](lambda x, t: -torch.tanh(x) * (1 + t))
    x, z = randn(*shape), randn(*shape, seed=1)
    t = torch.tensor([0.11, 0.36, 0.62, 0.87], dtype=torch.float64)
    drift, noise = process.drift(x, t), process.diffusion(x, t) @ z
    assert drift.shape == noise.shape == x.shape
    for i in range(4):
        at = float(t[i])
        close(drift[i : i + 1], process.drift(x[i : i + 1], at), 1e-12)
        close(noise[i : i + 1], process.diffusion(x[i : i + 1], at) @ z[i : i + 1], 1e-12)
    column = t.reshape(4, *(1,) * (len(shape) - 1))
    assert torch.equal(process.drift(x, column), drift)
    constant = torch.full((4,), 0.3, dtype=torch.float64)
    for same in (0.3, torch.tensor(0.3, dtype=torch.float64), constant):
        close(process.drift(x, same), process.drift(x, 0.3), 1e-12)


@shapes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PROCESSES)
def test_dtypes_stay(shape, dtype, name):
    """A state keeps its dtype through drifts, noise, divergences and scores, whatever the time's; values stay right."""
    process = PROCESSES[name](lambda x, t: -torch.tanh(x) * (1 + t))
    x = randn(*shape).to(dtype)
    exact = process.drift(x.double(), 0.5)
    for t in (0.5, torch.tensor(0.5), torch.full((4,), 0.5), torch.full((4,), 0.5, dtype=torch.float64)):
        drift = process.drift(x, t)
        assert drift.dtype == dtype
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(drift.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))
        assert (process.diffusion(x, t) @ x).dtype == dtype
        assert process.gram_divergence(x, t).dtype == dtype


@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(0.01, 1.0),
    st.floats(0, 2),
)
def test_any_shape(event, batch, dtype, t, eta):
    """f - ½(1 + η²)g²s on VP for states of any shape."""
    x = randn(batch, *event).to(dtype)
    beta = 0.1 + 19.9 * t
    got = sd.VP().reverse(lambda x, t: torch.sin(x), eta).drift(x, t)
    want = -0.5 * beta * x - 0.5 * (1 + eta**2) * beta * torch.sin(x)
    assert got.dtype == dtype and got.shape == x.shape
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# ---- gradients ---------------------------------------------------------------------------------------------------


def test_drifts_of_reversals_are_differentiable():
    """With ∇·D inside: second derivatives of G, against finite differences."""
    back = Reversible().reverse(lambda x, t: -torch.tanh(x))
    x = randn(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: back.drift(x, 0.3), (x,), eps=1e-6, atol=1e-7)
    entangled = Entangled().reverse(lambda x, t: -torch.tanh(x))
    y = randn(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: entangled.drift(y, 0.3), (y,), eps=1e-6, atol=1e-7)


def test_no_graph_is_left_behind():
    """Asked about a plain tensor, a reversal answers with one, although it differentiates inside."""
    x = randn(3, 2)
    back = Reversible().reverse(lambda x, t: -torch.tanh(x))
    assert not back.drift(x, 0.3).requires_grad and not x.requires_grad
    with torch.no_grad():
        close(back.drift(x, 0.3), back.drift(x.clone().requires_grad_(), 0.3))


def test_inference_mode_changes_nothing():
    """``enable_grad`` is void in inference mode: a divergence or a schedule's derivative would silently be 0 there."""

    class Kernel(sd.LinearSDE):
        def log_alpha(self, t):
            return -t * t

        def variance(self, t):
            return -torch.expm1(-2 * t * t)

    score = lambda x, t: -torch.tanh(x)  # noqa: E731
    x = randn(5, 3)
    for process in (Entangled().reverse(score), Kernel().reverse(score), sd.CosineVP().probability_flow(score)):
        for t in (0.3, torch.full((5,), 0.3, dtype=torch.float64)):
            want = process.drift(x, t)
            assert want.abs().max() > 0.1
            with torch.inference_mode():
                got, at_made_here = (
                    process.drift(x.clone(), t),
                    process.drift(x, torch.as_tensor(t, dtype=torch.float64).clone()),
                )
            close(got.clone(), want, 1e-13)
            close(at_made_here.clone(), want, 1e-13)


# ---- five lines ---------------------------------------------------------------------------------------------------


def test_a_process_in_three_lines(assert_law):
    """The README's custom SDE, simulated: x_t | x_0 is N(e^{-t/2} x_0, 1 - e^{-t})."""

    class Custom(sd.SDE):
        def f(self, x, t):
            return -0.5 * x

        def g(self, x, t):
            return 1.0

    x = sd.solve(Custom(), torch.full((20_000,), 2.0), solver=sd.EulerMaruyama(), steps=200, seed=0).x
    h = 1 / 200
    a = 1 - h / 2
    assert_law(x, 2 * a**200, h * (1 - a**400) / (1 - a**2))


class Growing(sd.SDE):
    """A matrix written for one time."""

    def f(self, x, t):
        return torch.zeros_like(x)

    def g(self, x, t):
        return sd.Dense(torch.tensor([[[1.0, 0.5], [0.0, 1.0]]], dtype=x.dtype) * (1 + 3 * t))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_matrix_written_for_one_time_serves_a_time_for_each_sample(batch):
    """(1, d, m) times t (B, 1) takes the times of other samples along its rows when B = d, and fails for another B."""
    x, t = torch.zeros(batch, 2, dtype=F64), torch.linspace(0.1, 0.9, batch, dtype=F64)
    got = Growing().diffusion(x, t).matrix
    for i in range(batch):
        assert torch.equal(got[i], Growing().diffusion(x[:1], float(t[i])).matrix[0])


def test_the_flow_of_such_a_matrix_by_steps_of_each_sample():
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=F64)
    flow = Growing().probability_flow(lambda x, t: -x / (1 + t))
    own = sd.solve(flow, x, solver=sd.DormandPrince(rtol=1e-9, atol=1e-9), t0=1.0, t1=0.1).x
    assert torch.allclose(own, sd.solve(flow, x, solver=sd.RK4(), steps=400, t0=1.0, t1=0.1).x, atol=1e-7)


def test_what_is_wrong_with_one_sample_is_said():
    class Broken(Growing):
        def g(self, x, t):
            return sd.Dense(torch.ones(1, 2, 3) @ torch.ones(1, 2, 2))

    with pytest.raises(RuntimeError, match="size"):
        Broken().diffusion(torch.zeros(3, 2), torch.rand(3))


def test_a_number_in_single_precision_squares_in_the_precision_of_the_state():
    class Constant(sd.SDE):
        def f(self, x, t):
            return torch.zeros_like(x)

        def g(self, x, t):
            return torch.tensor(0.3)

    x = torch.ones(2, 2, dtype=F64)
    square = float(torch.tensor(0.3)) ** 2
    assert torch.allclose(Constant().diffusion(x, 0.5).gram(x), torch.full_like(x, square), rtol=1e-15)
