"""torchsde's solvers against Euler's formula on the very same Brownian path, against exact laws, and their gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torchsde

import sdediff as sd

MU, S2 = 0.7, 0.09


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def beta(t, b0, b1):
    return b0 + (b1 - b0) * t


def total(t, b0, b1):
    return b0 * t + (b1 - b0) * t * t / 2


RATES = {"constant": (3.0, 3.0), "linear": (0.1, 20.0)}
rates = pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())


def exact_score(rate):
    def score(x, t):
        e = torch.exp(torch.as_tensor(-total(t, *rate)))
        return -(x - MU * torch.sqrt(e)) / (1 + (S2 - 1) * e)

    return score


class Known(sd.PerSample):
    """A recipe whose integer is known, so that the test can draw torchsde's path for itself."""

    independent = False

    def __init__(self, integer):
        self.known = integer

    def check(self, batch):
        pass

    def frozen(self):
        return self

    def integer(self):
        return self.known


@pytest.fixture
def path(monkeypatch):
    """The increments that torchsde was given, in order: (from, to, ΔW). Its path depends on how it is asked."""
    asked = []

    class Recorded(torchsde.BrownianInterval):
        def __call__(self, ta, tb=None, **kwargs):
            out = super().__call__(ta, tb, **kwargs)
            asked.append((float(ta), float(tb), out))
            return out

    monkeypatch.setattr(torchsde, "BrownianInterval", Recorded)
    return asked


@rates
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("n", [5, 25, 100])
@pytest.mark.parametrize("shape", [(4,), (4, 4), (2, 3, 2)], ids=str)
def test_euler_is_its_recursion(rate, eta, n, shape, path):
    """f - ½(1 + η²)βs with noise η√β, written out, on the same increments: 1e-6 (steps are a hair longer for torchsde)."""
    sde, x = sd.VP(*rate), randn(*shape)
    score = exact_score(rate)
    t1 = 1e-3
    out = sd.solve(sde.reverse(score, eta), x, solver=sd.TorchSDE(), t1=t1, steps=n, noise=Known(42)).x
    assert len(path) == n
    for k, (a, b, dw) in enumerate(path):
        t, h, e = 1 + (t1 - 1) * k / n, (1 - t1) / n, beta(1 + (t1 - 1) * k / n, *rate)
        assert (a, b) == (pytest.approx(-t, abs=1e-6), pytest.approx(h - t, abs=1e-6))
        drift = -0.5 * e * x - 0.5 * (1 + eta**2) * e * score(x, torch.tensor(t, dtype=torch.float64))
        x = x - h * drift + eta * math.sqrt(e) * dw.reshape(shape)
    torch.testing.assert_close(out, x, rtol=1e-6, atol=1e-6)


def test_forward_euler_with_matrix_noise(path):
    """General noise, three Brownian motions on two coordinates, a matrix that depends on the state."""

    def matrix(x):
        rows = [1 + 0 * x[:, 0], 0.3 * x[:, 1], 0.2 + 0 * x[:, 0], 0.1 * x[:, 0], 0.5 + 0 * x[:, 0], torch.sin(x[:, 1])]
        return torch.stack(rows, 1).reshape(-1, 2, 3)

    class Tall(sd.SDE):
        def f(self, x, t):
            return -x * (1 + t)

        def g(self, x, t):
            return sd.Dense(matrix(x))

    x, n = randn(5, 2), 20
    out = sd.solve(Tall(), x, solver=sd.TorchSDE(), steps=n, noise=Known(7)).x
    want = x
    for k, (_, _, dw) in enumerate(path):
        want = want - want * (1 + k / n) / n + (matrix(want) @ dw[..., None])[..., 0]
    assert len(path) == n and path[0][2].shape == (5, 3)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)


@rates
@pytest.mark.parametrize(("n", "count"), [(5, 20_000), (25, 10_000), (100, 6_000), (800, 4_000)])
def test_law_of_samples(rate, n, count, assert_law):
    """The exact law of reverse Euler-Maruyama by M <- aM + hcm, V <- a²V + βh. Level and power: see conftest."""
    t1 = 1e-3
    mean, var = MU * math.exp(-total(1, *rate) / 2), 1 + (S2 - 1) * math.exp(-total(1, *rate))
    start = mean + math.sqrt(var) * randn(count, 1, seed=n).float()
    nodes = [1 + (t1 - 1) * k / n for k in range(n)] + [t1]
    for t, s in pairwise(nodes):
        b, h = beta(t, *rate), t - s
        m, v = MU * math.exp(-total(t, *rate) / 2), 1 + (S2 - 1) * math.exp(-total(t, *rate))
        c = b / v
        a = 1 + h * (b / 2 - c)
        mean, var = a * mean + h * c * m, a * a * var + b * h
    back = sd.VP(*rate).reverse(exact_score(rate))
    out = sd.solve(back, start, solver=sd.TorchSDE(), t1=t1, steps=n, seed=n).x
    assert out.dtype == torch.float32
    assert_law(out, mean, var)


@pytest.mark.parametrize("method", ["milstein", "srk"])
def test_other_methods(method, assert_law):
    """On the reverse SDE of a Gaussian at 200 steps: the exact p_t, whose bias is below the 15 % that n = 6,000 sees."""
    rate, t1, n = (3.0, 3.0), 0.05, 6_000
    mean, var = MU * math.exp(-1.5), 1 + (S2 - 1) * math.exp(-3)
    start = mean + math.sqrt(var) * randn(n, 1).float()
    out = sd.solve(
        sd.VP(*rate).reverse(exact_score(rate)), start, solver=sd.TorchSDE(method), t1=t1, steps=200, seed=1
    ).x
    assert_law(out, MU * math.exp(-1.5 * t1), 1 + (S2 - 1) * math.exp(-3 * t1))


def test_milstein_s_correction_on_a_falling_clock(path):
    """½gg'(ΔW² - |h|) for diagonal noise that depends on the state: one step by hand."""

    class Geometric(sd.SDE):
        def f(self, x, t):
            return 0.3 * x

        def g(self, x, t):
            return 0.8 * x

    x = torch.ones(6, 1, dtype=torch.float64) + randn(6, 1).abs()
    for process, (t0, t1) in ((Geometric(), (0.0, 0.2)), (Geometric().reverse(lambda x, t: -x), (1.0, 0.8))):
        out = sd.solve(process, x, solver=sd.TorchSDE("milstein"), t0=t0, t1=t1, steps=1, noise=Known(3)).x
        dw = path[-1][2]
        # reverse drift: 0.3x - (∇·D + Ds) = 0.3x - (2·0.64x - 0.64x³)
        drift = 0.3 * x if t1 > t0 else 0.3 * x - (1.28 * x - 0.64 * x**3)
        want = x + drift * (t1 - t0) + 0.8 * x * dw + 0.5 * 0.64 * x * (dw**2 - 0.2)
        torch.testing.assert_close(out, want, rtol=1e-7, atol=1e-9)


def test_an_ode_has_no_noise():
    flow, x = sd.VP().probability_flow(exact_score((0.1, 20.0))), randn(3, 2)
    out = sd.solve(flow, x, solver=sd.TorchSDE(), steps=9, seed=0).x
    torch.testing.assert_close(out, sd.solve(flow, x, solver=sd.EulerMaruyama(), steps=9).x, rtol=1e-6, atol=1e-6)


# ---- steps, counts, seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t1", "kwargs", "steps"), [
    (0.0, {"steps": 50}, 50),
    (0.001, {"steps": 7}, 7),
    (0.0, {"dt": 0.1}, 10),
    (0.05, {"dt": 0.1}, 10),
    (0.0, {"steps": 10, "save_at": [0.25, 0.5, 1.0]}, 11),
    (0.0, {"dt": 5.0}, 1),
])  # fmt: skip
def test_as_many_steps_as_asked_for(t1, kwargs, steps):
    """No sliver of a step from rounding, and each step evaluated once; torchsde looks at shapes once per stretch."""
    times = []

    def score(x, t):
        times.append(float(t))
        return -x

    out = sd.solve(sd.VP().reverse(score), randn(2, 2), solver=sd.TorchSDE(), t1=t1, seed=0, **kwargs)
    assert out.stats["steps"] == steps
    stretches = 3 if "save_at" in kwargs else 1
    assert out.stats["nfe"] == out.stats["score_calls"] == len(times) == steps + stretches
    assert all(0 <= t <= 1 for t in times)


def test_float32_times_do_not_accumulate():
    """float32 states over a long clock in many steps: as many steps as asked for, of equal length."""
    times = []

    def score(x, t):
        times.append(float(t))
        return -x

    out = sd.solve(sd.OU().reverse(score), randn(2, 2).float(), solver=sd.TorchSDE(), steps=1000, seed=0)
    assert out.stats["steps"] == 1000
    h = (10.0 - 1e-3) / 1000
    assert max(abs(a - (10.0 - k * h)) for k, a in enumerate(times[1:])) < 1e-5


def test_seeds():
    """The seed decides, torch's and NumPy's global generators do not; batches of a sample differ."""
    back, x = sd.VP().reverse(lambda x, t: -x), torch.zeros(4, 2)

    def run(**kwargs):
        return sd.solve(back, x, solver=sd.TorchSDE(), steps=5, **kwargs).x

    first = run(seed=3)
    torch.manual_seed(99)
    assert torch.equal(run(seed=3), first) and not torch.equal(run(seed=4), first)
    torch.manual_seed(5)
    second = run()
    torch.manual_seed(5)
    assert torch.equal(run(), second) and not torch.equal(run(), second)
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(run(generator=generator), run(generator=generator))
    out = sd.sample(back, 4, x=x, solver=sd.TorchSDE(), steps=5, seed=0, batch_size=2).x
    assert len({tuple(row.tolist()) for row in out}) == 4


def test_saved_states_lie_on_one_path(path):
    """Stretches between saved times take their increments from one path, end to end."""

    class Brownian(sd.SDE):
        def f(self, x, t):
            return torch.zeros_like(x)

        def g(self, x, t):
            return 1.0

    x = torch.zeros(5, 1, dtype=torch.float64)
    out = sd.solve(Brownian(), x, solver=sd.TorchSDE(), steps=4, save_at=[0.3, 0.5], noise=Known(1))
    ends = [0.0, 0.15, 0.3, 0.5, 0.75, 1.0]
    assert [a for a, _, _ in path] == pytest.approx(ends[:-1], abs=1e-6)
    assert [b for _, b, _ in path] == pytest.approx(ends[1:], abs=1e-6)
    sums = torch.stack([dw for _, _, dw in path]).cumsum(0)
    torch.testing.assert_close(out.xs, sums[[1, 2, 4]])


# ---- gradients --------------------------------------------------------------------------------------------------


WRAPPED = {
    "network": lambda net, sde: sd.NoisePrediction(sde, net),
    "function": lambda net, sde: sd.FunctionScore(lambda x, t, cond=None: -net(x, t, cond), sde),
    "guided": lambda net, sde: sd.ClassifierFree(
        sd.NoisePrediction(sde, net), 1.5, null=torch.zeros(1, dtype=torch.float64)
    ),
    "moved": lambda net, sde: sd.NoisePrediction(sd.VP(1.0, 2.0), net).to(sde),
}


@pytest.mark.parametrize(
    ("name", "condition"), [(name, c) for name in WRAPPED for c in (False, True) if c or name != "guided"]
)
def test_adjoint_gradients(name, condition, learned):
    """The stochastic adjoint against backpropagation through the steps, for parameters however deeply wrapped.

    Its own error is of the order of the step; at 100 steps 10 % of the gradient, a missing term is 100 %.
    """
    sde, net = sd.VP(1.0, 2.0), learned()
    score = WRAPPED[name](net, sde)
    cond = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64) if condition else None
    x = randn(3, 2)
    gradients = []
    for adjoint in (False, True):
        net.zero_grad()
        start = x.clone().requires_grad_()
        arguments = {"t0": 0.8, "t1": 0.3, "steps": 100, "noise": Known(5), "differentiable": True, "cond": cond}
        if name == "function" and adjoint:  # its parameters cannot be seen
            with pytest.raises(ValueError, match=r"finds no parameters.*NoisePrediction"):
                sd.solve(sde.reverse(score), start.detach(), solver=sd.TorchSDE(adjoint=True), **arguments)
            return
        out = sd.solve(sde.reverse(score), start, solver=sd.TorchSDE(adjoint=adjoint), **arguments)
        out.x.square().sum().backward()
        gradients.append([g.clone() for g in (start.grad, net.a.grad, net.b.grad)])
    for through_steps, by_adjoint in zip(*gradients, strict=True):
        size = float(through_steps.abs().max())
        assert size > 0.05
        assert float((through_steps - by_adjoint).abs().max()) < 0.1 * size


def test_adjoint_costs_nothing_unasked(learned):
    """adjoint=True without differentiable=True is a plain solve."""
    back, x = sd.VP().reverse(sd.NoisePrediction(sd.VP(), learned())), randn(3, 2)
    arguments = {"steps": 5, "noise": Known(2)}
    plain = sd.solve(back, x, solver=sd.TorchSDE(), **arguments).x
    assert torch.equal(plain, sd.solve(back, x, solver=sd.TorchSDE(adjoint=True), **arguments).x)


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_milstein_and_matrix_noise():
    class Matrix(sd.SDE):
        def f(self, x, t):
            return -x

        def g(self, x, t):
            return sd.Dense(torch.eye(2, dtype=x.dtype)[None])

    for method in ("milstein", "srk"):
        with pytest.raises(TypeError, match=r"TorchSDE needs diagonal noise.*Dense noise.*use EulerMaruyama"):
            sd.solve(Matrix(), randn(3, 2), solver=sd.TorchSDE(method), steps=3)


def test_milstein_needs_each_coefficient_to_ignore_other_coordinates():
    """∂g_i/∂x_j off the diagonal is left out by these schemes, silently: refused."""

    class Entangled(sd.SDE):
        def f(self, x, t):
            return -x

        def g(self, x, t):
            return 1 + 0.3 * torch.tanh(x.roll(1, 1))

    for method in ("milstein", "srk"):
        with pytest.raises(
            ValueError,
            match=r"TorchSDE needs a diffusion whose g_i.*here.*g_1 depends on x_0",
        ):
            sd.solve(Entangled(), randn(3, 2), solver=sd.TorchSDE(method), steps=3)
    assert torch.isfinite(sd.solve(Entangled(), randn(3, 2), solver=sd.TorchSDE(), steps=3).x).all()
