"""torchdiffeq as a backend: exact on a flow with a closed form, inside its interval, counted, and never quiet when it fails."""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch

import sdediff as sd

METHODS = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
MU, S2, BETA = 0.7, 0.09, 3.0


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Flow(sd.ODE):
    """The flow of a Gaussian under VP; keeps the times it was asked for."""

    def __init__(self):
        self.times = []

    def f(self, x, t):
        self.times.append(float(t.reshape(-1)[0]))
        return -0.5 * BETA * (x - (x - MU * torch.exp(-BETA * t / 2)) / (1 + (S2 - 1) * torch.exp(-BETA * t)))


def transported(x, s, t):
    variances = [1 + (S2 - 1) * math.exp(-BETA * u) for u in (s, t)]
    means = [MU * math.exp(-BETA * u / 2) for u in (s, t)]
    return means[1] + math.sqrt(variances[1] / variances[0]) * (x - means[0])


@pytest.mark.parametrize("method", METHODS)
def test_exact_flow_on_both_clocks(method):
    """At saved times and at the end, for any event shape; nothing is evaluated outside the interval."""
    tol = 1e-6 if method in ("fehlberg2", "adaptive_heun") else 1e-9
    for shape, (t0, t1), wanted in (((4, 2), (1.0, 0.0), [0.6, 0.05]), ((3, 1, 2, 2), (0.0, 1.0), [0.05, 0.6])):
        flow, x = Flow(), randn(*shape)
        out = sd.solve(flow, x, solver=sd.TorchDiffEq(method, rtol=tol, atol=tol), t0=t0, t1=t1, save_at=wanted)
        assert out.ts.tolist() == [*wanted, t1]
        for t, state in zip(out.ts.tolist(), out.xs, strict=True):
            assert float((state - transported(x, t0, t)).abs().max()) < 1000 * tol
        assert 0 <= min(flow.times) < 1e-300 and 1 - 1e-12 < max(flow.times) <= 1


def test_counts():
    """Evaluations of the score, per sample; the steps taken and rejected: six evaluations each, three at the start."""
    sde, calls = sd.VP(), []
    data = sd.ExactScore(sde, sd.densities.ring(8))

    def score(x, t):
        calls.append(len(x))
        return data(x, t)

    out = sd.solve(sde.probability_flow(score), randn(7, 2), solver=sd.TorchDiffEq(), t0=1.0, t1=1e-3)
    assert out.stats["nfe"] == out.stats["score_calls"] == len(calls)
    assert set(calls) == {7}
    assert len(calls) == 3 + 6 * (out.stats["steps"] + out.stats["rejected"])
    assert out.stats["rejected"] > 0


def test_float32_and_accuracy_on_the_ring():
    """Within a tenfold of the tolerance of the native pair's answer."""
    sde = sd.VP()
    flow = sde.probability_flow(sd.ExactScore(sde, sd.densities.ring(8)))
    x = randn(32, 2)
    exact = sd.solve(flow, x, solver=sd.DormandPrince(rtol=1e-10, atol=1e-10), t0=1.0, t1=1e-3).x
    for dtype in (torch.float32, torch.float64):
        out = sd.solve(flow, x.to(dtype), solver=sd.TorchDiffEq(rtol=1e-5, atol=1e-5), t0=1.0, t1=1e-3)
        assert out.x.dtype == dtype
        assert float((out.x.double() - exact).norm(dim=1).median()) < 1e-4
    with pytest.warns(UserWarning, match=r"finer than a torch.float32 drift can tell.*rtol, atol >= 1e-6") as caught:
        sd.solve(flow, x.float(), solver=sd.TorchDiffEq(rtol=1e-7, atol=1e-5), t0=1.0, t1=0.9)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.solve(flow, x, solver=sd.TorchDiffEq(rtol=1e-7, atol=1e-5), t0=1.0, t1=0.9)


class Plain(sd.ODE):
    def __init__(self, function):
        self.function = function

    def f(self, x, t):
        return self.function(x, t)


def test_failures_are_named():
    """NaN in some samples, a singularity, the bound on evaluations."""
    x = torch.tensor([[0.25], [2.0], [0.25]], dtype=torch.float64)
    half_nan = Plain(lambda x, t: torch.where((x > 1) & (t > 0.3), math.nan, -x))
    with pytest.raises(sd.NonFiniteError, match=r"for 1 of 3 samples \(first: \[1\]\)") as caught:
        sd.solve(half_nan, x, solver=sd.TorchDiffEq(), t0=0.0, t1=1.0)
    assert caught.value.samples == [1] and 0.3 < caught.value.t < 1
    with pytest.raises(sd.SolveError):
        sd.solve(Plain(lambda x, t: x * x), x, solver=sd.TorchDiffEq(), t0=0.0, t1=1.0)
    with pytest.raises(sd.SolveError, match="max_evaluations = 40 at t = "):
        sd.solve(Flow(), x, solver=sd.TorchDiffEq(rtol=1e-9, atol=1e-9, max_evaluations=40), t0=1.0, t1=0.0)


def test_an_underflow_of_torchdiffeq_is_named(monkeypatch):
    """What torchdiffeq says by assertion becomes an error that names the time."""
    import torchdiffeq

    def odeint(drift, x, times, **kw):
        drift(times[0] - 0.25, x)
        raise AssertionError("underflow in dt 0.0")

    monkeypatch.setattr(torchdiffeq, "odeint", odeint)
    with pytest.raises(sd.SolveError, match=r"dopri5 stopped at t = 0.75 before t = 0: underflow in dt 0.0. Loosen"):
        sd.solve(Flow(), randn(2, 1), solver=sd.TorchDiffEq(), t0=1.0, t1=0.0)


def test_what_it_refuses(monkeypatch):
    sde = sd.VP()
    with pytest.raises(ValueError, match="fixed steps use RK4"):
        sd.TorchDiffEq("rk4")
    for bad in ({"rtol": 0.0}, {"atol": -1.0}, {"rtol": math.inf}, {"atol": math.nan}, {"max_evaluations": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            sd.TorchDiffEq(**bad)
    with pytest.raises(TypeError, match="TorchSDE for an SDE"):
        sd.solve(sde.reverse(lambda x, t: -x), randn(2, 1), solver=sd.TorchDiffEq())
    with pytest.raises(ValueError, match="couples the samples"):
        sd.solve(Flow(), randn(2, 1), solver=sd.TorchDiffEq(), noise=sd.PerSample([1, 2]))
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install 'sdediff\[bench\]'"):
        sd.solve(Flow(), randn(2, 1), solver=sd.TorchDiffEq(), t0=1.0, t1=0.0)


def test_the_adjoint_stays_inside_its_interval():
    """Backwards torchdiffeq guesses its first step itself, here longer than the interval: nothing beyond t_max is asked."""
    flow, x = Flow(), randn(3, 1).requires_grad_()
    out = sd.solve(flow, x, solver=sd.TorchDiffEq(adjoint=True), t0=1.0, t1=0.9999, differentiable=True)
    (gradient,) = torch.autograd.grad(out.x.sum(), x)
    assert min(flow.times) >= 0.9999 and max(flow.times) <= 1.0
    step = transported(torch.ones(()).double(), 1.0, 0.9999) - transported(torch.zeros(()).double(), 1.0, 0.9999)
    assert torch.allclose(gradient, step.expand_as(gradient), rtol=1e-6)


# ---- the adjoint's parameters -------------------------------------------------------------------------------------


class Neural(sd.ODE):
    """A process of one's own that keeps networks and a parameter under names of its own, some in a list."""

    def __init__(self, net):
        self.parts, self.gain = [net], torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.itself = self

    def f(self, x, t):
        return -self.gain * self.parts[0](x, t)


SDE = sd.VP(1.0, 2.0)
LIMIT = 50.0  # beyond reach: across the kinks of a limit that bites, gradients through the steps are off by 1e-2


def guided(net):
    return sd.ClassifierFree(sd.NoisePrediction(SDE, net), 1.5, null=torch.zeros(1, dtype=torch.float64))


WRAPPED = {
    "network": lambda net: SDE.probability_flow(sd.NoisePrediction(SDE, net)),
    "function": lambda net: SDE.probability_flow(sd.FunctionScore(net, SDE)),
    "method": lambda net: SDE.probability_flow(net.score),
    "guided": lambda net: SDE.probability_flow(guided(net)),
    "moved": lambda net: SDE.probability_flow(sd.NoisePrediction(sd.VP(1.0, 3.0), net).to(SDE)),
    "thresholded": lambda net: SDE.probability_flow(sd.Thresholded(sd.NoisePrediction(SDE, net), LIMIT)),
    "all at once": lambda net: sd.VP(1.0, 3.0).probability_flow(sd.Thresholded(guided(net), LIMIT).to(sd.VP(1.0, 3.0))),
    "process": Neural,
}
NEEDS_CONDITION = ("guided", "all at once")


@pytest.mark.parametrize(
    ("name", "condition"),
    [(n, c) for n in WRAPPED for c in (False, True) if (c or n not in NEEDS_CONDITION) and not (c and n == "process")],
)
def test_the_adjoint_reaches_every_parameter(name, condition, learned):
    """Against backpropagation through the same solver's steps, however deeply the network is wrapped."""
    net = learned()
    process = WRAPPED[name](net)
    cond = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64) if condition else None
    found = []
    for adjoint in (False, True):
        start = randn(3, 2).requires_grad_()
        solver = sd.TorchDiffEq(rtol=1e-8, atol=1e-8, adjoint=adjoint)
        out = sd.solve(process, start, solver=solver, t0=0.8, t1=0.3, differentiable=True, cond=cond)
        found.append(torch.autograd.grad(out.x.square().sum(), [start, net.a, net.b]))
    for through_steps, by_adjoint in zip(*found, strict=True):
        assert float(through_steps.abs().max()) > 0.05
        torch.testing.assert_close(by_adjoint, through_steps, rtol=1e-5, atol=1e-6)


def test_the_adjoint_refuses_to_do_nothing(learned):
    """No parameters, none that want gradients, and a start that wants none: an error and no quiet None."""
    net, x = learned(), randn(3, 2)
    hidden = SDE.probability_flow(lambda x, t: net.score(x, t))
    frozen = SDE.probability_flow(sd.NoisePrediction(SDE, learned().requires_grad_(False)))
    arguments = {"solver": sd.TorchDiffEq(adjoint=True), "t0": 0.8, "t1": 0.3}
    for flow in (hidden, frozen):
        with pytest.raises(ValueError, match=r"finds no parameters and x wants no gradient: .*NoisePrediction"):
            sd.solve(flow, x, differentiable=True, **arguments)
        plain = sd.solve(flow, x, **arguments).x
        by_start = sd.solve(flow, x.clone().requires_grad_(), differentiable=True, **arguments).x
        assert torch.equal(plain, by_start.detach()) and by_start.requires_grad
