"""Gradients through solves: checkpointed ones equal plain ones and need little memory; adaptive ones have closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import sdediff as sd
from sdediff.predictions import NoisePrediction
from sdediff.solvers import AdaptiveHeun, Remembering, Solver

MU, S2, BETA = 0.7, 0.09, 3.0
END = 1e-2


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """A small network; dropout shows whether torch's own random state is repeated."""

    event_shape = (2,)

    def __init__(self, width=16, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2)
            ).double()

    def forward(self, x, t):
        return self.layers(torch.cat([x, t.unsqueeze(1).to(x)], 1))


def learned(width=16, dropout=0.0):
    sde, net = sd.VP(), Net(width, dropout)
    score = NoisePrediction(sde, net)
    return sde.reverse(score), sde.probability_flow(score), list(net.parameters())


def gradients(process, parameters, solver, x=None, **kw):
    """The final state and the gradients by start and parameters of a loss that looks at a saved state too."""
    torch.manual_seed(5)  # for dropout
    x = (randn(8, 2) if x is None else x).requires_grad_()
    out = sd.solve(process, x, solver=solver, t0=1.0, t1=END, differentiable=True, **kw)
    loss = out.x.square().sum() + (out.xs[0] ** 3).sum()
    return out, torch.autograd.grad(loss, [x, *parameters])


def same(one, other, tolerance=1e-12):
    return all(
        (a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max())) for a, b in zip(one, other, strict=True)
    )


# ---- checkpointed solvers ---------------------------------------------------------------------------------------------------

NOISES = {
    "seed": lambda: {"seed": 3},
    "per sample": lambda: {"noise": sd.PerSample(range(8))},
    "path": lambda: {"noise": sd.BrownianPath(0.0, 1.0, 7, parts=20)},
    "antithetic": lambda: {"noise": sd.Antithetic(4)},
}
REVERSALS = {
    "Euler-Maruyama": sd.EulerMaruyama(),
    "Langevin corrector": sd.PredictorCorrector(sd.DPMSolverPP2M()),
    "SRA1": sd.SRA1(),
    "multistep": sd.DPMSolverPP2M(),
}
FLOWS = {"Heun": sd.Heun(), "DPM++ 2M": sd.DPMSolverPP2M(), "UniPC": sd.UniPCSolver(3)}


@pytest.mark.parametrize("every", [None, 1, 7, 100])
@pytest.mark.parametrize("name", REVERSALS)
def test_same_gradients_on_a_reversal(name, every):
    """Random numbers are drawn again as they were, whatever recipe they come from; multistep solvers find their memory."""
    process, _, parameters = learned()
    for noise in NOISES.values():
        kw = {"steps": 20, "save_at": [0.503, END]}
        plain, expected = gradients(process, parameters, REVERSALS[name], **kw, **noise())
        out, found = gradients(process, parameters, sd.Checkpointed(REVERSALS[name], every=every), **kw, **noise())
        assert torch.equal(out.x, plain.x) and out.stats["nfe"] == plain.stats["nfe"]
        assert same(expected, found)


@pytest.mark.parametrize("name", FLOWS)
def test_same_gradients_on_a_flow(name):
    _, process, parameters = learned(dropout=0.2)  # torch's own random state is found again too
    kw = {"steps": 20, "save_at": [0.5, END]}
    plain, expected = gradients(process, parameters, FLOWS[name], **kw)
    out, found = gradients(process, parameters, sd.Checkpointed(FLOWS[name]), **kw)
    assert torch.equal(out.x, plain.x) and same(expected, found)


def test_second_derivatives_and_a_score_that_differentiates():
    """A score by autograd inside the step; the gradient of the gradient; a second pass over the same graph."""
    sde = sd.VP(BETA, BETA)

    def score(x, t):
        at = x if x.requires_grad else x.detach().requires_grad_()
        return -torch.autograd.grad((at**4 / 4 - at**2 / 2).sum(), at, create_graph=True)[0]

    found = []
    for solver in (sd.Heun(), sd.Checkpointed(sd.Heun(), every=4)):
        x = randn(3, 2).requires_grad_()
        out = sd.solve(sde.probability_flow(score), x, solver=solver, t0=1.0, t1=0.5, steps=11, differentiable=True)
        (first,) = torch.autograd.grad(out.x.sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(out.x.sum(), x, retain_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        assert torch.equal(first.detach(), again)
        found.append((first.detach(), second))
    assert same(*found)


def test_mixed_precision_is_found_again():
    """The forward pass under autocast, the backward pass outside of it, as training loops have it."""
    _, process, parameters = learned()
    found = []
    for solver in (sd.Heun(), sd.Checkpointed(sd.Heun())):
        x = randn(4, 2).float().requires_grad_()
        for p in parameters:
            p.data = p.data.float()
        with torch.autocast("cpu", torch.bfloat16):
            out = sd.solve(process, x, solver=solver, t0=1.0, t1=END, steps=9, differentiable=True)
            loss = out.x.square().sum()
        found.append(torch.autograd.grad(loss, [x, *parameters]))
    assert same(*found, tolerance=0.0)


def peak_memory(function) -> int:
    """The largest number of bytes alive at once while a function runs, above what was alive before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for _, size in sorted(events, key=lambda e: e[0]):
        alive += size
        most = max(most, alive)
    return most


def memory_of(solver, steps, **kw):
    process, flow, parameters = learned(width=256)
    x = randn(64, 2)

    def run():
        out = sd.solve(
            flow if solver.orders.ode == 5 else process, x, solver=solver, t0=1.0, t1=END, differentiable=True, **kw,
            **({} if steps is None else {"steps": steps}), seed=0,
        )  # fmt: skip
        torch.autograd.grad(out.x.square().sum(), parameters)
        run.steps = out.stats["steps"]

    return peak_memory(run), run


def test_memory_grows_as_the_root_of_the_steps():
    """Sixteen times the steps: sixteen times the memory of the plain solve, four times that of the checkpointed one."""
    plain = [memory_of(sd.EulerMaruyama(), n)[0] for n in (16, 256)]
    bounded = [memory_of(sd.Checkpointed(sd.EulerMaruyama()), n)[0] for n in (16, 256)]
    assert plain[1] / plain[0] > 12
    assert bounded[1] / bounded[0] < 4.5
    assert bounded[1] < plain[1] / 8


def test_memory_of_adaptive_gradients():
    """Three times the steps: less than twice the memory, and far less than the slopes of all steps would take."""
    found = [memory_of(sd.Tsitouras(rtol=tol, atol=tol), None) for tol in (1e-4, 1e-7)]
    (small, first), (large, second) = found
    assert second.steps.max() > 3 * first.steps.max()
    assert large < 2 * small
    assert large < int(second.steps.max()) * 6 * 64 * 256 * 8 / 4


def test_without_a_graph_it_is_the_solver_itself():
    process, _, _ = learned()
    plain, wrapped = (
        sd.solve(process, randn(4, 2), solver=s, steps=9, t1=END, seed=1)
        for s in (sd.EulerMaruyama(), sd.Checkpointed(sd.EulerMaruyama()))
    )
    assert torch.equal(plain.x, wrapped.x) and not wrapped.x.requires_grad
    assert sd.Checkpointed(sd.Heun()).orders == sd.Heun().orders
    with pytest.raises(TypeError, match="an ODE"):
        sd.solve(process, randn(4, 2), solver=sd.Checkpointed(sd.Heun()), steps=9)


class Leapfrog(Solver):
    """A two-step method that remembers; ``honest`` says so."""

    def __init__(self, honest):
        self.honest = honest

    def prepare(self, process, grid, noise):
        nodes, past = grid.tolist(), []

        def advance(k, x):
            slope = process.drift(x, nodes[k])
            used = 1.5 * slope - 0.5 * past[0] if past else slope
            past[:] = [slope]
            return x + (nodes[k + 1] - nodes[k]) * used

        return Remembering(advance, past) if self.honest else advance


def test_memory_that_is_not_declared_is_found_out():
    """A hidden memory, a random score, a parameter changed before the backward pass: an error, not a wrong gradient."""
    _, process, parameters = learned()
    kw = {"steps": 12}
    _, expected = gradients(process, parameters, Leapfrog(True), **kw)
    _, found = gradients(process, parameters, sd.Checkpointed(Leapfrog(True)), **kw)
    assert same(expected, found)
    with pytest.raises(RuntimeError, match="did not give the same state again"):
        gradients(process, parameters, sd.Checkpointed(Leapfrog(False)), **kw)
    generator = torch.Generator().manual_seed(0)
    noisy = sd.VP().probability_flow(lambda x, t: -x * torch.rand((), generator=generator, dtype=x.dtype))
    with pytest.raises(RuntimeError, match="The score or drift is random"):
        gradients(noisy, [], sd.Checkpointed(sd.Heun()), **kw)
    out = sd.solve(
        process, randn(4, 2), solver=sd.Checkpointed(sd.Heun()), t0=1.0, t1=END, steps=9, differentiable=True
    )
    with torch.no_grad():
        parameters[0] += 0.1
    with pytest.raises(RuntimeError, match="parameters were changed"):
        out.x.sum().backward()


def test_what_it_refuses():
    with pytest.raises(TypeError, match="fixed-step solver"):
        sd.Checkpointed(sd.Tsitouras())
    for every in (0, 2.5):
        with pytest.raises(ValueError, match="every"):
            sd.Checkpointed(sd.Heun(), every=every)


# ---- adaptive solvers -------------------------------------------------------------------------------------------------------


def scale(s, t):
    """dx(t)/dx(s) along the flow of a Gaussian: √(v(t)/v(s))."""
    v = [1 + (S2 - 1) * math.exp(-BETA * u) for u in (s, t)]
    return math.sqrt(v[1] / v[0])


FLOW = sd.VP(BETA, BETA).probability_flow(
    lambda x, t: -(x - MU * torch.exp(-BETA * t / 2)) / (1 + (S2 - 1) * torch.exp(-BETA * t))
)
SOLVERS = [sd.Tsitouras, sd.DormandPrince, sd.TorchDiffEq]


def made(solver, **kw):
    return solver(rtol=1e-9, atol=1e-9, **kw)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_by_the_start_is_that_of_the_exact_flow(solver):
    """At the end and at a saved time, on both clocks, to the tolerance."""
    solver = made(solver)
    for t0, between, t1 in ((1.0, 0.4, 0.0), (0.0, 0.4, 1.0)):
        x = randn(5, 2).requires_grad_()
        out = sd.solve(FLOW, x, solver=solver, t0=t0, t1=t1, save_at=[between], differentiable=True)
        weights = randn(5, 2, seed=1)
        (gradient,) = torch.autograd.grad((weights * out.xs[0]).sum() + out.x.sum(), x)
        assert torch.allclose(gradient, weights * scale(t0, between) + scale(t0, t1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", [*SOLVERS, "adjoint"])
def test_gradient_by_the_parameters(solver):
    """Of a network's flow, against many steps of RK4, to a millionth."""
    solver = made(sd.TorchDiffEq, adjoint=True) if solver == "adjoint" else made(solver)
    _, process, parameters = learned()
    _, expected = gradients(process, parameters, sd.RK4(), grid=sd.grids.Quadratic(300), save_at=[0.5])
    out, found = gradients(process, parameters, solver, save_at=[0.5])
    assert same(expected, found, tolerance=1e-6)
    assert not out.xs.isnan().any()


def test_states_and_counts_with_the_graph():
    """The same states as without; the second pass is counted: six more evaluations a step, and the first slope again."""
    _, process, _ = learned()
    x, solver = randn(6, 2), sd.Tsitouras()
    plain = sd.solve(process, x, solver=solver, t0=1.0, t1=END, save_at=[0.3])
    graph = sd.solve(process, x.requires_grad_(), solver=solver, t0=1.0, t1=END, save_at=[0.3], differentiable=True)
    assert torch.allclose(plain.xs, graph.xs.detach(), rtol=0, atol=1e-12)
    assert torch.equal(graph.stats["nfe"], plain.stats["nfe"] + 1 + 6 * plain.stats["steps"])
    assert torch.equal(graph.stats["steps"], plain.stats["steps"])


class Geometric(sd.SDE):
    """dx = a x dt + b x dW, whose solution is proportional to its start."""

    def __init__(self):
        self.a = nn.Parameter(torch.tensor(1.01, dtype=torch.float64))

    def f(self, x, t):
        return self.a * x

    def g(self, x, t):
        return 0.6 * x


def test_gradient_of_adaptive_sde_steps():
    """By the start: x_T/x_0, path by path. By a parameter of the drift: T x_T up to the error of the steps."""
    process, x = Geometric(), (1 + randn(50, 1) ** 2).requires_grad_()
    out = sd.solve(process, x, solver=AdaptiveHeun(rtol=1e-9, atol=3e-3), t0=0.0, t1=1.0, seed=0, differentiable=True)
    assert int(out.stats["rejected"].sum()) > 10
    by_start, by_rate = torch.autograd.grad(out.x.sum(), [x, process.a])
    assert torch.allclose(by_start, (out.x / x).detach(), rtol=1e-10)
    assert float(by_rate) == pytest.approx(float(out.x.detach().sum()), rel=0.03)


def test_a_rejected_overflow_does_not_reach_the_gradient():
    """Steps that overflow are rejected; their infinities must not come back as NaN."""

    class Steep(sd.ODE):
        def f(self, x, t):
            return -torch.exp(5 * x)

    x = torch.full((2, 1), 4.0, dtype=torch.float64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = sd.solve(Steep(), x, solver=sd.Tsitouras(rtol=1e-8, atol=1e-8), t0=0.0, t1=1.0, differentiable=True)
    assert int(out.stats["rejected"].max()) > 0
    (gradient,) = torch.autograd.grad(out.x.sum(), x)
    assert torch.allclose(gradient, torch.full_like(gradient, math.exp(-20) / (math.exp(-20) + 5)), rtol=1e-3)
