"""Kernels from f and g alone: right where they exist, refused by name where they do not."""

from __future__ import annotations

import copy
import gc
import math
import time
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdediff as sd
from sdediff import blocks

F64 = torch.float64
TIMES = torch.tensor([1e-6, 1e-3, 0.1, 0.37, 0.5, 0.9, 1.0], dtype=F64)


def sde_of(f, g, **attributes):
    """An SDE from two functions."""
    return type("Custom", (sd.SDE,), {"f": lambda self, x, t: f(x, t), "g": lambda self, x, t: g(x, t), **attributes})()


def beta(t):
    return 0.1 + 19.9 * t


def integral(t):
    return 0.1 * t + 9.95 * t * t


OU = sde_of(lambda x, t: -0.5 * x, lambda x, t: 1.0)
VP = sde_of(lambda x, t: -0.5 * beta(t) * x, lambda x, t: torch.sqrt(beta(t)))
SUBVP = sde_of(
    lambda x, t: -0.5 * beta(t) * x, lambda x, t: torch.sqrt(beta(t) * -torch.expm1(-2 * integral(t))) + 0 * x
)
VE = sde_of(lambda x, t: torch.zeros_like(x), lambda x, t: 0.01 * 5000**t * math.sqrt(2 * math.log(5000)))


def langevin(rate=4.0, mass=0.25, friction=1.0):
    def f(x, t):
        q, v = x.chunk(2, 1)
        return rate * torch.cat([v / mass, -q - friction / mass * v], 1)

    def g(x, t):
        q, v = torch.zeros_like(x).chunk(2, 1)
        return torch.cat([q, v + math.sqrt(2 * friction * rate)], 1)[:1]

    return sde_of(f, g)


# ---- against closed forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("custom", "alpha", "variance"),
    [
        (OU, lambda t: torch.exp(-t / 2), lambda t: -torch.expm1(-t)),
        (VP, lambda t: torch.exp(-integral(t) / 2), lambda t: -torch.expm1(-integral(t))),
        (SUBVP, lambda t: torch.exp(-integral(t) / 2), lambda t: torch.expm1(-integral(t)) ** 2),
        (VE, torch.ones_like, lambda t: 1e-4 * torch.expm1(2 * t * math.log(5000))),
    ],
    ids=["OU", "VP", "subVP", "VE"],
)
def test_kernels_of_the_usual_processes(custom, alpha, variance):
    """Relative to 1e-10 at every t down to 1e-6, in less than 0.2 s (the best of three: the machine is shared)."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        process = sd.as_linear(copy.copy(custom), (2,))
        process.variance(TIMES)
        seconds.append(time.perf_counter() - started)
    assert isinstance(process, sd.LinearSDE)
    torch.testing.assert_close(process.alpha(TIMES), alpha(TIMES), rtol=1e-10, atol=0)
    torch.testing.assert_close(process.variance(TIMES), variance(TIMES), rtol=1e-10, atol=0)
    torch.testing.assert_close(process.sigma(TIMES), variance(TIMES).sqrt(), rtol=1e-10, atol=0)
    assert min(seconds) < 0.2
    mid, end = process.transition(0.2, 0.5), process.transition(0.5, 0.8)
    whole = process.transition(0.2, 0.8)
    torch.testing.assert_close(mid.scale * end.scale, whole.scale, rtol=1e-8, atol=0)
    torch.testing.assert_close(end.scale**2 * mid.variance + end.variance, whole.variance, rtol=1e-8, atol=0)


def test_kernel_of_langevin():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        process = sd.as_linear(langevin(), (6,))
        got = process.moments(TIMES)
        seconds.append(time.perf_counter() - started)
    want = sd.CLD(beta=4.0, mass=0.25).moments(TIMES)  # itself against the matrix exponential, in test_affine
    assert got.scale.shape == (7, 1, 2, 2)  # three blocks that share one matrix
    torch.testing.assert_close(got.scale, want.scale, rtol=1e-10, atol=1e-12)
    deviation = torch.diagonal(want.covariance, dim1=-2, dim2=-1).sqrt()
    pairs = deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    assert ((got.covariance - want.covariance).abs() < 1e-10 * pairs).all()
    assert min(seconds) < 0.2


# ---- structures -------------------------------------------------------------------------------------------------------

A = torch.tensor([[-1.0, 0.5, 0.0], [0.2, -0.4, 1.0], [0.0, -1.0, -0.3]], dtype=F64)
G = torch.tensor([[1.0, 0.2], [0.0, 0.5], [0.3, 0.3]], dtype=F64)


def neighbours(x, t):
    """Position and velocity side by side, (B, n, 2)."""
    q, v = x.unbind(-1)
    return torch.stack([v, -q - v], -1) * (1 + t)


@pytest.mark.parametrize(
    ("custom", "shape", "matrices"),
    [
        (sde_of(lambda x, t: -x, lambda x, t: sd.Dense(torch.eye(3)[None])), (3,), None),
        (sde_of(lambda x, t: 0 * x, lambda x, t: 1.0 + 0 * t), (), None),
        (sde_of(lambda x, t: -x * t, lambda x, t: torch.ones_like(x)), (2, 3, 4), None),
        (sde_of(lambda x, t: 1 - x, lambda x, t: 1.0), (3,), (1, 1)),
        (sde_of(lambda x, t: -x * torch.arange(3).to(x), lambda x, t: 1.0), (3,), (3, 1)),
        (sde_of(lambda x, t: -x, lambda x, t: 1.0 + torch.arange(3).to(x)[None]), (3,), (3, 1)),
        (langevin(), (4,), (1, 2)),
        (langevin(), (2, 3, 3), (1, 2)),
        (sde_of(neighbours, lambda x, t: 1.0), (5, 2), (1, 2)),
        (sde_of(neighbours, lambda x, t: 1.0 + torch.arange(5.0).to(x).reshape(1, 5, 1)), (5, 2), (5, 2)),
        (sde_of(lambda x, t: x @ A.T.to(x), lambda x, t: 1.0), (3,), (1, 3)),
        (sde_of(lambda x, t: -x, lambda x, t: sd.Dense(G.to(x)[None])), (3,), (1, 3)),
        (sde_of(lambda x, t: x.flip(1) - 2 * x, lambda x, t: 1.0), (6,), (1, 6)),
    ],
    # Named by shape alone: a process is named by its address, which differs between workers.
    ids=lambda value: str(value) if isinstance(value, tuple | None) else "",
)
def test_the_coarsest_structure_is_found_and_is_right(custom, shape, matrices):
    """f back from the coefficients at random states and times, and the kernel of a short interval from f and g."""
    process = sd.as_linear(custom, shape)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.rand(4, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(process.drift(x, t), custom.drift(x, t))
    torch.testing.assert_close(process.diffusion(x, t).gram(x), custom.diffusion(x, t).gram(x))
    if matrices is None:
        assert isinstance(process, sd.LinearSDE)
        assert torch.allclose(sd.LinearSDE.f(process, x, t.reshape(4, *[1] * len(shape))), custom.drift(x, t))
        return
    assert isinstance(process, sd.AffineSDE) and process._size == matrices
    torch.testing.assert_close(sd.AffineSDE.f(process, x, t.reshape(4, *[1] * len(shape))), custom.drift(x, t))
    d = math.prod(shape)
    unit = torch.eye(d, dtype=F64).reshape(d, *shape)
    drift = (custom.drift(unit, 0.4) - custom.drift(0 * unit, 0.4)).flatten(1).T
    gram = custom.diffusion(unit, 0.4).gram(unit).flatten(1).T
    h = 1e-6  # Phi = I + hA + O(h²) and Sigma = h (D + h/2 (AD + DAᵀ)) + O(h³) about the middle of a short interval
    kernel = process.transition(0.4 - h / 2, 0.4 + h / 2)
    into = process.split(unit).flatten(1)
    n = process.split(unit).shape[1]
    phi, covariance = (into @ blocks.dense(v, n) @ into.T for v in (kernel.scale, kernel.covariance))
    eye = torch.eye(d, dtype=F64)
    torch.testing.assert_close((phi - eye) / h, drift + h / 2 * drift @ drift, rtol=0, atol=1e-7)
    torch.testing.assert_close(covariance / h, gram + h / 2 * (drift @ gram + gram @ drift.T), rtol=0, atol=1e-7)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 5), r=st.integers(1, 6))
def test_random_affine_processes_are_recognised(seed, d, r):
    generator = torch.Generator().manual_seed(seed)
    a, c, root = (torch.randn(s, generator=generator, dtype=F64) for s in ((d, d), (d,), (d, max(r, d))))
    custom = sde_of(lambda x, t: (1 + t) * (x @ a.T.to(x)) + c.to(x) * t, lambda x, t: sd.Dense(root.to(x)[None]))
    process = sd.as_linear(custom, (d,))
    x0 = torch.randn(1, d, generator=generator, dtype=F64)
    law = process.marginal(x0, 0.7) if isinstance(process, sd.AffineSDE) else None
    if law is None:  # one coordinate whose offset is not 0 is affine too
        raise AssertionError("an offset was overlooked")
    # m' = A m + b by a fine Runge-Kutta recursion
    m, steps = x0.clone(), 200
    for k in range(steps):
        t, h = 0.7 * k / steps, 0.7 / steps
        k1 = custom.drift(m, t)
        k2 = custom.drift(m + h / 2 * k1, t + h / 2)
        k3 = custom.drift(m + h / 2 * k2, t + h / 2)
        m = m + h / 6 * (k1 + 2 * k2 + 2 * k3 + custom.drift(m + h * k3, min(1.0, t + h)))
    torch.testing.assert_close(law.mean, m, rtol=1e-5, atol=1e-6)


# ---- without being asked --------------------------------------------------------------------------------------------


class Three(sd.SDE):
    def f(self, x, t):
        return -0.5 * beta(t) * x

    def g(self, x, t):
        return beta(t) ** 0.5


def test_three_lines_have_all_that_a_linear_process_has():
    ring = sd.densities.ring(8).to(dtype=F64)
    custom, reference = Three(), sd.VP(t_min=0.0)
    score, exact = sd.ExactScore(custom, ring), sd.ExactScore(reference, ring)
    x = exact.sample(20, 1.0, seed=0)
    for t in (0.3, torch.linspace(0.05, 1, 20, dtype=F64)):
        torch.testing.assert_close(score(x, t), exact(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(score.log_prob(x, t), exact.log_prob(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(custom.perturb(x, t, x.flip(0)), reference.perturb(x, t, x.flip(0)))
    torch.testing.assert_close(custom.marginal(x, 0.2).log_prob(x), reference.marginal(x, 0.2).log_prob(x))
    grid = sd.grids.LogSNR(15)
    for process in (custom, Three()):  # a second one of the same class is the same process
        for make in (lambda p, s: p.reverse(s), lambda p, s: p.probability_flow(s), lambda p, s: p.reverse(s, 0.5)):
            for solver in (sd.EulerMaruyama(), sd.DPMSolverPP2M(), sd.DDIM()):
                mine, theirs = (
                    sd.solve(make(p, s), x, solver=solver, grid=grid, t1=1e-3, seed=1).x
                    for p, s in ((process, score), (reference, exact))
                )
                torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    samples = sd.sample(custom.reverse(score), 8, solver=sd.Ancestral(), steps=20, t1=1e-3, seed=0)
    assert samples.x.shape == (8, 2)


def test_a_function_is_a_score_of_a_process_of_two_functions():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    mine, theirs = (sd.FunctionScore(lambda x, t: -x, p) for p in (Three(), sd.VP()))
    torch.testing.assert_close(mine.noise(x, 0.3), theirs.noise(x, 0.3))
    torch.testing.assert_close(mine.data(x, 0.3), theirs.data(x, 0.3))
    bent = sd.FunctionScore(lambda x, t: -x, sde_of(lambda x, t: x - x**3, lambda x, t: 1.0))
    assert torch.equal(bent(x, 0.3), -x)
    with pytest.raises(ValueError, match="belongs to no linear process"):
        bent.noise(x, 0.3)


def test_three_lines_train():
    """The loss on a batch is that of the process itself, and its gradient too."""
    torch.manual_seed(0)
    net = sd.networks.MLP((2,), width=16, depth=1)
    x0 = sd.densities.ring(4).sample(64, seed=0)
    losses = []
    for process in (Three(), sd.VP(t_min=0.0)):
        loss = sd.training.DenoisingLoss(sd.NoisePrediction(process, net))
        value = loss(x0, generator=torch.Generator().manual_seed(1))
        (gradient, *_) = torch.autograd.grad(value, list(net.parameters()))
        losses.append((value.detach(), gradient))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    fit = sd.training.fit(sd.NoisePrediction(Three(), net), x0, steps=3, batch_size=32, seed=0, progress=False)
    assert len(fit.losses) == 3
    with pytest.raises(ValueError, match="give event_shape="):
        sd.NoisePrediction(Three(), torch.nn.Identity())


def test_a_coupled_process_of_two_functions_has_all_of_it_too():
    custom, cld = langevin(), sd.CLD(t_min=1e-3)
    data = sd.densities.Mixture([[1.0, 0.0, 0.0, 0.2], [-1.0, 0.5, 0.0, 0.0]], std=0.4).to(dtype=F64)
    score = sd.ExactScore(custom, data)  # a law of positions and velocities
    x = score.sample(10, 1.0, seed=0)
    kernel = cld.moments(torch.tensor(0.5, dtype=F64))
    deviation = math.sqrt(float((kernel.scale[0] @ kernel.scale[0].T * 0.16 + kernel.covariance[0])[0, 0]))
    law = score.law(0.5)
    assert float(law.covariances[0, 0, 0]) ** 0.5 == pytest.approx(deviation, rel=1e-10)
    back = custom.reverse(score)
    assert back.sde.origin is custom
    fine, coarse = (
        sd.solve(custom.probability_flow(score), x, solver=solver, grid=sd.grids.Power(n, 3.0), t1=1e-3).x
        for solver, n in ((sd.RK4(), 150), (sd.CoupledMultistep(), 100))
    )
    torch.testing.assert_close(coarse, fine, rtol=0, atol=2e-3)


def test_a_learned_score_comes_back_from_a_file(tmp_path):
    for process in (Three(), sd.CLD(beta=3.0)):
        learned = sd.NoisePrediction(process, sd.networks.MLP((4,), width=8, depth=1))
        sd.training.save(tmp_path / "score.safetensors", learned)
        given = (
            {"sde": Three()} if isinstance(process, Three) else {}
        )  # a class of the user's own cannot be in the file
        again = sd.training.load(tmp_path / "score.safetensors", **given).score
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again(x, 0.4), learned(x, 0.4))
        torch.testing.assert_close(again.data(x, 0.4), learned.data(x, 0.4))


def test_what_was_derived_in_inference_mode_can_be_differentiated_later():
    custom, cld, x = Three(), sd.CLD(), torch.randn(3, 4, requires_grad=True)
    with torch.inference_mode():
        custom.perturb(torch.ones(3, 4), 0.3, torch.ones(3, 4))
        cld.perturb(torch.ones(3, 4), 0.3, torch.ones(3, 4))
    for process in (custom, cld):
        for t in (0.3, torch.tensor([0.1, 0.3, 0.5])):
            (slope,) = torch.autograd.grad(process.perturb(x, t, torch.ones(3, 4)).sum(), x)
            assert slope.abs().max() > 0


def test_what_is_derived_follows_the_process():
    class Rate(sd.SDE):
        def __init__(self, rate):
            self.rate = rate

        def f(self, x, t):
            return -self.rate * x

        def g(self, x, t):
            return 1.0

    rate = Rate(1.0)
    first = sd.as_linear(rate, (2,))
    assert sd.as_linear(rate, (2,)) is first and sd.as_linear(rate, (3,)) is not first
    x, z = torch.ones(1, 2, dtype=F64), torch.zeros(1, 2, dtype=F64)
    torch.testing.assert_close(rate.perturb(x, 0.5, z), x * math.exp(-0.5))
    rate.rate = 2.0
    torch.testing.assert_close(rate.perturb(x, 0.5, z), x * math.exp(-1.0))
    other = copy.copy(rate)
    other.rate = 3.0
    torch.testing.assert_close(other.perturb(x, 0.5, z), x * math.exp(-1.5))
    torch.testing.assert_close(rate.perturb(x, 0.5, z), x * math.exp(-1.0))
    # a score of rate 2 is none for a process of rate 3
    score = sd.ExactScore(rate, sd.densities.ring(3))
    assert isinstance(rate.reverse(score).sde, sd.LinearSDE) and isinstance(Rate(2.0).reverse(score).sde, sd.LinearSDE)
    assert isinstance(Rate(3.0).reverse(score).sde, Rate)
    gone = weakref.ref(rate)
    del rate, score, first
    gc.collect()
    assert gone() is None


def test_kernels_are_differentiable_in_t():
    t = torch.tensor([0.2, 0.7], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: sd.as_linear(VP, (2,)).variance(u), t)
    process = sd.as_linear(langevin(), (4,))
    assert torch.autograd.gradcheck(lambda u: process.moments(u).covariance, t, eps=1e-5)


def test_a_drift_in_single_precision_is_affine_too():
    layer = torch.nn.Linear(3, 3)
    custom = sde_of(lambda x, t: layer(x), lambda x, t: 1.0)
    process = sd.as_linear(custom, (3,))
    a = process.coefficients(torch.tensor(0.5, dtype=F64))[0][0]
    torch.testing.assert_close(a.float(), layer.weight.detach(), rtol=1e-5, atol=1e-6)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("custom", "coordinates", "what"),
    [
        (sde_of(lambda x, t: x - x**3, lambda x, t: 1.0), {0, 1, 2}, "drift"),
        (sde_of(lambda x, t: -x.abs(), lambda x, t: 1.0), {0, 1, 2}, "drift"),
        (sde_of(lambda x, t: -x + torch.sin(x[:, :1]) * torch.eye(3)[2].to(x), lambda x, t: 1.0), {2}, "drift"),
        (sde_of(lambda x, t: torch.where(t > 0.9, -x * x, -x), lambda x, t: 1.0), {0, 1, 2}, "drift"),
        (sde_of(lambda x, t: -x + 1e-3 * x * x[:, :1], lambda x, t: 1.0), {0, 1, 2}, "drift"),
        (sde_of(lambda x, t: -x.clamp(-50, 50), lambda x, t: 1.0), {0, 1, 2}, "drift"),
        (sde_of(lambda x, t: -x, lambda x, t: 0.5 * x), {0, 1, 2}, "noise"),
        (sde_of(lambda x, t: -x, lambda x, t: 1 + 0.01 * torch.tanh(x[:, :1]) * torch.eye(3)[1].to(x)), {1}, "noise"),
        (sde_of(lambda x, t: -x, lambda x, t: sd.Dense(torch.diag_embed(1 + x * x))), {0, 4, 8}, "noise"),
    ],
    ids=["cubic", "absolute", "one coordinate", "late", "small", "far out", "geometric", "one noise", "matrix noise"],
)
def test_a_process_that_is_not_affine_is_told_so(custom, coordinates, what):
    with pytest.raises(sd.NotAffineError) as caught:
        sd.as_linear(custom, (3,))
    error, message = caught.value, str(caught.value)
    assert set(error.coordinates) <= coordinates and error.coordinates and error.size > 3e-6
    assert f"The {what} of Custom" in message and f"t = {error.t:.4g}" in message
    assert f"{float(error.x[0]):.4g}" in message and str(error.coordinates[:5])[:-1] in message
    for cure in ("EulerMaruyama", "score matching", "Fokker-Planck"):
        assert cure in message
    with pytest.raises(sd.NotAffineError):
        sd.ExactScore(custom, sd.densities.Mixture([[0.0, 0.0, 0.0]], std=1.0))
    with pytest.raises(sd.NotAffineError):
        custom.perturb(torch.ones(2, 3), 0.5, torch.ones(2, 3))


def test_the_point_that_an_error_names_shows_it():
    custom = sde_of(lambda x, t: x - 0.1 * x**3, lambda x, t: 1.0)
    with pytest.raises(sd.NotAffineError) as caught:
        sd.as_linear(custom, (2,))
    x, t = caught.value.x.unsqueeze(0), caught.value.t
    affine = x  # the part of f that is
    assert ((custom.drift(x, t) - affine).abs() > caught.value.size * 0.01 * affine.abs()).all()


def test_other_refusals():
    with pytest.raises(ValueError, match="another drift in another batch"):
        sd.as_linear(sde_of(lambda x, t: x.mean(0, keepdim=True) - x, lambda x, t: 1.0), (2,))
    with pytest.raises(ValueError, match="has no noise"):
        sd.as_linear(sde_of(lambda x, t: -x, lambda x, t: 0.0), (2,))
    back = sde_of(lambda x, t: -x, lambda x, t: 1.0).reverse(lambda x, t: -x)
    with pytest.raises(TypeError, match="belongs to a forward SDE with noise, and Reverse is none"):
        sd.as_linear(back, (2,))
    with pytest.raises(TypeError, match="and int is none"):
        sd.as_linear(3, (2,))
    with pytest.raises(ValueError, match=r"unknown: give event_shape="):
        sd.as_linear(OU)
    with pytest.raises(ValueError, match="must be finite"):
        sd.as_linear(sde_of(lambda x, t: -x, lambda x, t: 1.0, t_max=math.inf), (2,))
    with pytest.raises(ValueError, match="couples the 600 coordinates"):
        sd.as_linear(sde_of(lambda x, t: x.flip(1) - 2 * x, lambda x, t: 1.0), (600,))
    short = sd.as_linear(OU, (2,))
    with pytest.raises(ValueError, match=r"At t_max = 1 the data still stand 0.76 : 1.*x=score.sample\(n, t_max\)"):
        sd.sample(OU.reverse(sd.ExactScore(OU, sd.densities.ring(3))), 4, solver=sd.EulerMaruyama(), steps=3)
    assert float(short.prior((2,), std=1.0).std) == pytest.approx(1.0)
    assert sd.as_linear(VE, (2,)).prior((2,)).std > 40
    assert sd.as_linear(sd.VP(), (2,)) and isinstance(sd.as_linear(sd.CLD()), sd.CLD)


def test_a_weak_coupling_at_one_time_is_seen_beside_large_coefficients_at_another():
    """Judged against the largest coefficient of all times, both would have passed for uncoupled."""

    class Early(sd.SDE):
        def f(self, x, t):
            return -0.1 * 1e4**t * x + 1e-3 * torch.exp(-20 * torch.as_tensor(t)) * x.flip(1)

        def g(self, x, t):
            return 1.0

    class Uneven(sd.SDE):
        def f(self, x, t):
            return -x * torch.tensor([1.0, 1.0 + 2e-6], dtype=x.dtype)

        def g(self, x, t):
            return 1.0

    x0 = torch.eye(2, dtype=torch.float64)
    own = sd.as_linear(Early(), (2,))
    early = (own.marginal(x0, 0.1).mean[0, 1], own.marginal(x0, 0.1).mean[1, 0])
    drift = [[-0.1 * 1e4**s, 1e-3 * math.exp(-20 * s)] for s in [0.1 * (k + 0.5) / 2000 for k in range(2000)]]
    decay = sum(a for a, _ in drift) * 0.1 / 2000
    coupling = sum(c for _, c in drift) * 0.1 / 2000  # both matrices commute, so the integrals exponentiate
    for value in early:
        assert float(value) == pytest.approx(math.exp(decay) * math.sinh(coupling), rel=1e-6)
    uneven = sd.as_linear(Uneven(), (2,)).marginal(torch.ones(1, 2, dtype=torch.float64), 1.0).mean[0]
    assert float(uneven[1] / uneven[0]) == pytest.approx(math.exp(-2e-6), abs=1e-12)


def test_a_drift_that_is_nan_is_called_that():
    class Broken(sd.SDE):
        def f(self, x, t):
            return x * math.nan

        def g(self, x, t):
            return 1.0

    with pytest.raises(ValueError, match="NaN or infinite at t = "):
        sd.as_linear(Broken(), (2,))


@pytest.mark.parametrize("shape", [(0,), (-1,), (2.0,), "ab"])
def test_shapes_of_a_state_are_positive_whole_numbers(shape):
    class Plain(sd.SDE):
        def f(self, x, t):
            return -x

        def g(self, x, t):
            return 1.0

    for ask in (lambda: sd.as_linear(Plain(), shape), lambda: sd.CLD().prior(shape), lambda: sd.VP().prior(shape)):
        with pytest.raises((ValueError, TypeError), match="event_shape"):
            ask()
    with pytest.raises(TypeError, match="density must be a Density"):
        sd.ExactScore(sd.VP(), 3)
    with pytest.raises(TypeError, match=r"noise must be a torch\.Tensor"):
        sd.CLD().perturb(torch.zeros(1, 4), 0.3, None)


class Quick(sd.SDE):
    """dx = -r (x - sin t) dt + dW, r a rate (d,) that is large beside 1/t_max."""

    def __init__(self, *rates):
        self.rates = torch.tensor(rates, dtype=torch.float64)

    def f(self, x, t):
        return -self.rates * (x - torch.sin(t))

    def g(self, x, t):
        return 1.0


@pytest.mark.parametrize("rates", [(3e3, 3e3), (3e3, 10.0)])
def test_kernels_of_large_rates(rates):
    """Against the closed form: the mean is ∫ r e^(-r(t-u)) sin u du from x_0 = 0, the variance (1 - e^(-2rt))/2r."""
    process, x = sd.as_linear(Quick(*rates), (2,)), torch.zeros(1, 2, dtype=torch.float64)
    r = torch.tensor(rates, dtype=torch.float64)
    for t in (1e-5, 1e-3, 0.1, 0.5, 1.0):
        mean = r * (r * math.sin(t) - math.cos(t) + torch.exp(-r * t)) / (1 + r * r)
        variance = -torch.expm1(-2 * r * t) / (2 * r)
        law = process.marginal(x, t)
        spread = law.from_noise(torch.ones_like(x)) - law.mean
        torch.testing.assert_close(law.mean[0], mean, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(spread[0].square(), variance, rtol=1e-10, atol=0)
