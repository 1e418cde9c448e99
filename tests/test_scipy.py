"""SciPy's integrators: exact on a flow that has a closed form, and never quiet when they fail."""

from __future__ import annotations

import math
import warnings

import pytest
import scipy.integrate
import torch

import sdediff as sd

METHODS = ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"]
methods = pytest.mark.parametrize("method", METHODS)
MU, S2, BETA = 0.7, 0.09, 3.0


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean(t):
    return MU * math.exp(-BETA * t / 2)


def var(t):
    return 1 + (S2 - 1) * math.exp(-BETA * t)


def exact_score(x, t):
    return -(x - MU * torch.exp(-BETA * t / 2)) / (1 + (S2 - 1) * torch.exp(-BETA * t))


def transported(x, s, t):
    """The flow of a Gaussian: m(t) + √(v(t)/v(s)) (x - m(s))."""
    return mean(t) + math.sqrt(var(t) / var(s)) * (x - mean(s))


FLOW = sd.VP(BETA, BETA).probability_flow(exact_score)


@methods
def test_exact_flow(method):
    """To 1e-6 in float64, at the end and at saved times, from noise to data and back."""
    x = randn(6, 2)
    solver = sd.Scipy(method, rtol=1e-8 if method == "RK23" else 1e-9, atol=1e-9)
    out = sd.solve(FLOW, x, solver=solver, t0=1.0, t1=1e-3, save_at=[0.6, 0.05])
    assert out.ts.tolist() == [0.6, 0.05, 1e-3]
    for t, state in zip(out.ts.tolist(), out.xs, strict=True):
        assert float((state - transported(x, 1.0, t)).abs().max()) < 1e-6
    back = sd.solve(FLOW, out.x, solver=solver, t0=1e-3, t1=1.0)
    assert float((back.x - x).abs().max()) < 1e-6


@pytest.mark.parametrize("method", ["RK45", "Radau", "BDF", "LSODA"])
@pytest.mark.parametrize("shape", [(3,), (3, 1, 2, 2), (2, 2)], ids=str)
def test_shapes(method, shape):
    """The structure of the Jacobian that implicit methods are told must hold for events of any shape."""

    def coupled(x, t):  # coordinates of a sample act on each other, samples do not
        flat = x.reshape(x.shape[0], -1)
        return (exact_score(flat, t) + 0.3 * torch.tanh(flat.roll(1, 1))).reshape(x.shape)

    flow = sd.VP(BETA, BETA).probability_flow(coupled)
    x = randn(*shape)
    out = sd.solve(flow, x, solver=sd.Scipy(method, rtol=1e-6, atol=1e-7), t1=0.2).x
    reference = sd.solve(flow, x, solver=sd.RK4(), t1=0.2, steps=100).x
    assert float((out - reference).abs().max()) < 1e-4


def test_implicit_methods_use_the_structure():
    """Samples do not mix, so a Jacobian costs as many evaluations as a state has coordinates, not as a batch has numbers."""
    calls = {}
    for batch in (2, 40):
        for method in ("Radau", "BDF", "LSODA"):
            out = sd.solve(FLOW, randn(batch, 2), solver=sd.Scipy(method), t1=0.05)
            calls[method, batch] = out.stats["nfe"]
    for method in ("Radau", "BDF", "LSODA"):
        assert calls[method, 40] < 1.5 * calls[method, 2]


def test_a_class_of_scipy_s_own():
    x = randn(3, 2)
    for method in (scipy.integrate.DOP853, scipy.integrate.BDF):
        out = sd.solve(FLOW, x, solver=sd.Scipy(method, rtol=1e-9, atol=1e-10), t1=0.1)
        assert float((out.x - transported(x, 1.0, 0.1)).abs().max()) < 1e-6


def test_counts_are_scipy_s():
    x = randn(3, 2)
    evaluations = [0]

    def drift(t, y):
        evaluations[0] += 1
        state = torch.from_numpy(y).reshape(3, 2)
        return FLOW.drift(state, t).reshape(-1).numpy()

    result = scipy.integrate.solve_ivp(drift, (1.0, 0.1), x.reshape(-1).numpy(), rtol=1e-5, atol=1e-5)
    out = sd.solve(FLOW, x, solver=sd.Scipy(), t1=0.1)
    assert out.stats["nfe"] == evaluations[0] == result.nfev
    assert out.stats["steps"] == len(result.t) - 1
    torch.testing.assert_close(out.x.reshape(-1), torch.from_numpy(result.y[:, -1].copy()), rtol=0, atol=0)


def test_ordinary_equations_run_both_ways():
    class Growth(sd.ODE):
        def f(self, x, t):
            return x * t

    out = sd.solve(
        Growth(), torch.ones(2, dtype=torch.float64), solver=sd.Scipy(rtol=1e-10, atol=1e-10), t0=0.0, t1=1.0
    )
    assert out.x.tolist() == pytest.approx([math.exp(0.5)] * 2, rel=1e-8)
    assert out.stats["nfe"] == 0  # no score


def test_single_precision():
    """float32 states: solved in float64 around a float32 drift, answered in float32; finer tolerances are warned of."""
    x = randn(5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = sd.solve(FLOW, x.float(), solver=sd.Scipy(rtol=1e-6, atol=1e-6), t1=0.01)
        sd.solve(FLOW, x, solver=sd.Scipy(rtol=1e-10, atol=1e-10), t1=0.01)
    assert out.x.dtype == torch.float32
    assert float((out.x.double() - transported(x, 1.0, 0.01)).abs().max()) < 1e-4
    with pytest.warns(
        UserWarning, match=r"finer than a torch.float32 drift can tell.*rtol, atol >= 1e-6 or a float64"
    ) as caught:
        sd.solve(FLOW, x.float(), solver=sd.Scipy(rtol=1e-8), t1=0.1)
    assert caught[0].filename == __file__  # the line that called solve


def test_evaluations_are_bounded():
    """A right-hand side that no step size tames would go on for ever."""

    def rough(x, t):
        return torch.sin(1e7 * x)

    with pytest.raises(sd.SolveError, match=r"max_evaluations = 200 at t = .*loosen the tolerances or raise the bound"):
        sd.solve(sd.VP().probability_flow(rough), randn(3, 2), solver=sd.Scipy(max_evaluations=200))


def test_giving_up_is_an_error():
    """The solution of x' = x² from 1 is infinite at t = 1: SciPy's step underflows before."""

    class Explosion(sd.ODE):
        t_max = 2.0

        def f(self, x, t):
            return x * x

    for method in ("RK45", "Radau", "LSODA"):
        with pytest.raises(sd.SolveError):
            sd.solve(Explosion(), torch.ones(1, dtype=torch.float64), solver=sd.Scipy(method), t0=0.0, t1=2.0)
    with pytest.raises(sd.SolveError, match=r"SciPy's RK45 stopped at t = 1 before t = 2: .*step size.*Loosen rtol"):
        sd.solve(Explosion(), torch.ones(1, dtype=torch.float64), solver=sd.Scipy("RK45"), t0=0.0, t1=2.0)


@methods
def test_late_nan(method):
    """NaN from the middle of the interval on, where LSODA alone reports success."""

    def breaking(x, t):
        return exact_score(x, t) if float(t) > 0.5 else torch.full_like(x, math.nan)

    with pytest.raises(sd.NonFiniteError) as caught:
        sd.solve(sd.VP(BETA, BETA).probability_flow(breaking), randn(3, 2), solver=sd.Scipy(method))
    assert caught.value.samples == [0, 1, 2] and caught.value.t <= 0.5


def test_the_starting_state_is_left_alone():
    x = randn(3, 2)
    before = x.clone()
    out = sd.solve(FLOW, x, solver=sd.Scipy(), t1=0.1, save_at=[1.0, 0.5])
    assert torch.equal(x, before) and torch.equal(out.xs[0], before)
