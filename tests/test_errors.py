"""Every mistake has an error of its own, which names what was seen and the cure."""

from __future__ import annotations

import math

import pytest
import torch

import sdediff as sd


def score(x, t):
    return -x


VP = sd.VP()
BACK, FLOW = VP.reverse(score), VP.probability_flow(score)
EULER, SCIPY, TORCHSDE = sd.EulerMaruyama(), sd.Scipy(), sd.TorchSDE()
X = torch.ones(4, 2)


def solve(process=BACK, x=X, solver=EULER, **kwargs):
    if isinstance(solver, sd.Solver) and not {"steps", "dt", "grid"} & set(kwargs):
        kwargs["steps"] = 5
    return sd.solve(process, x, solver=solver, **kwargs)


def sample(process=BACK, n=4, solver=EULER, **kwargs):
    return sd.sample(process, n, **({"solver": solver, "steps": 5, "event_shape": (2,)} | kwargs))


def custom(f=lambda x, t: -x, g=lambda x, t: 1.0):
    """An SDE from two functions."""

    class Custom(sd.SDE):
        def f(self, x, t):
            return f(x, t)

        def g(self, x, t):
            return g(x, t)

    return Custom()


def raises(error, message):
    return pytest.raises(error, match=message)


# ---- states -----------------------------------------------------------------------------------------------------

BAD_STATES = [
    ([1.0, 2.0], TypeError, r"x must be a torch.Tensor of shape \(B, \*event\), got list"),
    (torch.ones(3, dtype=torch.int64), TypeError, r"real floating-point tensor, got torch.int64: use x.float\(\)"),
    (torch.ones(3, dtype=torch.bool), TypeError, r"real floating-point tensor, got torch.bool: use x.float\(\)"),
    (torch.ones(3, dtype=torch.complex64), TypeError, r"real floating-point tensor, got torch.complex64: .*x.real"),
    (torch.tensor(1.0), ValueError, r"x has shape \(\); a state needs a batch axis: use x.reshape\(1\)"),
    (torch.ones(0, 2), ValueError, r"x has shape \(0, 2\): the batch is empty, give at least one sample"),
]
bad_states = pytest.mark.parametrize(("x", "error", "message"), BAD_STATES, ids=[str(b[2])[:24] for b in BAD_STATES])


@bad_states
def test_states_everywhere(x, error, message):
    """The same answer from a solve, a drift, a noise, a score."""
    for call in (
        lambda: solve(x=x),
        lambda: VP.drift(x, 0.5),
        lambda: BACK.drift(x, 0.5),
        lambda: custom().diffusion(x, 0.5),
        lambda: custom().gram_divergence(x, 0.5),
        lambda: sd.FunctionScore(score)(x, 0.5),
    ):
        with raises(error, message):
            call()
    with raises(
        error, message.replace("x has", "x0 has").replace("x must", "x0 must").replace("use x.", "use x0.")[:30]
    ):
        VP.marginal(x, 0.5)


def test_not_finite_at_the_start():
    x = torch.ones(6, 2)
    x[1, 0], x[4, 1] = math.nan, math.inf
    with raises(ValueError, r"x has NaN or infinite entries in 2 of 6 samples \(first: \[1, 4\]\). Remove or repair"):
        solve(x=x)
    with raises(ValueError, r"in 1 of 3 samples \(first: \[1\]\)"):
        solve(x=torch.tensor([1.0, math.nan, 2.0]))


# ---- times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (1.5, ValueError, r"t = 1.5 is outside \[0, 1\], the domain of this process"),
        (-0.1, ValueError, r"t = -0.1 is outside \[0, 1\]"),
        (-1e-4, ValueError, r"t = -0.0001 is outside \[0, 1\]"),
        (math.nan, ValueError, r"t = nan is outside \[0, 1\]"),
        (torch.tensor(1.5), ValueError, r"t = 1.5 is outside \[0, 1\]"),
        (torch.tensor([0.1, 0.2, 1.5, 0.3]), ValueError, r"t = 1.5 is outside \[0, 1\]"),
        (torch.tensor([0.1, math.nan, 0.5, 0.3]), ValueError, r"t = nan is outside \[0, 1\]"),
        (
            torch.tensor([0.1, 0.2]),
            ValueError,
            r"t has shape \(2,\) beside x of shape \(4, 2\).*one time per sample, shape \(4,\)",
        ),
        (torch.tensor([0.1]), ValueError, r"t has shape \(1,\) beside x of shape \(4, 2\)"),
        (torch.full((1, 4), 0.1), ValueError, r"t has shape \(1, 4\) beside x"),
        (torch.full((4, 2), 0.1), ValueError, r"t has shape \(4, 2\) beside x"),
        (torch.tensor(0.1 + 0j), TypeError, "t is complex; times are real numbers"),
        ("0.5", TypeError, "t must be a number or a tensor, got str"),
        ([0.1, 0.2, 0.3, 0.4], TypeError, "t must be a number or a tensor, got list"),
    ],
    ids=str,
)
def test_times(t, error, message):
    for call in (
        lambda: BACK.drift(X, t),
        lambda: VP.diffusion(X, t),
        lambda: sd.ExactScore(VP, sd.densities.ring(3))(X, t),
    ):
        with raises(error, message):
            call()


def test_rounded_ends_are_inside():
    """The ends of a clock survive a round trip through float32, on long clocks too."""
    for t_max in (0.1, 1.0, 10.1, 1000.3, 123456.7):
        sde = sd.VP(0.1, 1.0, t_max=t_max)
        assert torch.isfinite(sde.drift(X, torch.full((4,), t_max))).all()
        assert torch.isfinite(sde.drift(X, torch.tensor(t_max))).all()
        with raises(ValueError, "outside"):
            sde.drift(X, t_max * 1.001)
    edm = sd.EDM()  # √(2t): a time that rounds to just below 0 is 0, not NaN
    for t in (-1e-12, torch.tensor(-1e-7), torch.tensor([-1e-7, 0.0, 0.0, 1.0])):
        assert (edm.diffusion(X, t) @ X)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"t0": 2.0}, ValueError, r"t0 = 2 is outside \[0, 1\], the domain of LinearReverse"),
        ({"t1": -0.5}, ValueError, r"t1 = -0.5 is outside \[0, 1\]"),
        ({"t0": math.nan}, ValueError, r"t0 = nan is outside \[0, 1\]"),
        ({"t0": 0.5, "t1": 0.5}, ValueError, "t0 = t1 = 0.5: there is nothing to solve"),
        (
            {"t0": 0.1, "t1": 0.9},
            ValueError,
            "LinearReverse has noise that flows with falling t and cannot be solved from 0.1 to 0.9: exchange t0 and t1",
        ),
        (
            {"process": VP, "t0": 0.9, "t1": 0.1},
            ValueError,
            r"VP has noise that flows with rising t and cannot be solved from 0.9 to 0.1.*use sde.reverse\(score\)",
        ),
        ({"process": VP, "grid": [0.9, 0.5, 0.1]}, ValueError, "VP has noise that flows with rising t"),
        (
            {"process": custom(), "solver": TORCHSDE, "steps": 3, "t0": 0.9, "t1": 0.1},
            ValueError,
            "flows with rising t",
        ),
        ({"steps": 0}, ValueError, "steps = 0: a solve needs at least one step"),
        ({"steps": -1}, ValueError, "steps = -1: a solve needs at least one step"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number, got 2.5"),
        (
            {"grid": [1.0, 0.3, 0.5, 0.1]},
            ValueError,
            "The grid is not strictly monotone: nodes 1 and 2 are 0.3 and 0.5",
        ),
        ({"grid": [1.0, 0.5, 0.1], "steps": 2}, ValueError, "needs exactly one of steps=, dt= and grid="),
        ({"grid": [0.9, 0.1], "t0": 0.7}, ValueError, "grid runs from 0.9 to 0.1, the solve from t0 = 0.7 to t1 = 0.1"),
        ({"save_at": [1.7]}, ValueError, r"save_at must hold times inside the solve \[0.001, 1\], got \[1.7"),
        (
            {"process": FLOW, "solver": SCIPY, "steps": 5},
            ValueError,
            "Scipy chooses its own steps: leave out steps= and",
        ),
        (
            {"process": FLOW, "solver": SCIPY, "dt": 0.1},
            ValueError,
            "Scipy chooses its own steps: leave out dt= and set",
        ),
        ({"process": FLOW, "solver": SCIPY, "grid": [1, 0.1]}, ValueError, "leave out grid= and set its tolerances"),
        ({"solver": TORCHSDE}, ValueError, "TorchSDE steps uniformly: give exactly one of steps= and dt="),
        ({"solver": TORCHSDE, "grid": [1.0, 0.1]}, ValueError, "TorchSDE steps uniformly"),
        ({"solver": TORCHSDE, "dt": -0.1}, ValueError, "dt = -0.1 must be a positive number"),
        ({"solver": TORCHSDE, "steps": 0}, ValueError, "steps = 0: a solve needs at least one step"),
    ],
)
def test_where_to_solve(kwargs, error, message):
    with raises(error, message):
        solve(**kwargs)


def test_an_endless_clock():
    class Endless(sd.SDE):
        t_max = math.inf

        def f(self, x, t):
            return -x

        def g(self, x, t):
            return 1.0

    with raises(ValueError, "The clock of Endless does not end: give t0 and t1"):
        solve(Endless())
    assert torch.isfinite(solve(Endless(), t1=2.0).x).all()


# ---- what a user's functions return --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x, t: x.sum(1), ValueError, r"Custom.f returned shape \(4,\) for x of shape \(4, 2\).*keepdim"),
        (lambda x, t: x[:1], ValueError, r"Custom.f returned shape \(1, 2\) for x of shape \(4, 2\)"),
        (lambda x, t: torch.zeros(2), ValueError, r"Custom.f returned shape \(2,\).*\(d,\) tensor that broadcast"),
        (lambda x, t: 0.0, TypeError, r"Custom.f returned float for x of shape \(4, 2\).*torch.zeros_like\(x\)"),
        (lambda x, t: None, TypeError, "Custom.f returned NoneType"),
        (lambda x, t: x + 0j, TypeError, "Custom.f returned a complex tensor"),
    ],
)
def test_drifts(f, error, message):
    for call in (
        lambda: custom(f).drift(X, 0.5),
        lambda: solve(custom(f)),
        lambda: custom(f).reverse(score).drift(X, 0.5),
    ):
        with raises(error, message):
            call()


@pytest.mark.parametrize(
    ("g", "error", "message"),
    [
        (
            lambda x, t: torch.ones(2),
            ValueError,
            r"Custom.g returned shape \(2,\) for x of shape \(4, 2\). One coefficient per coordinate.*g.reshape\(1, ..., d\)",
        ),
        (lambda x, t: torch.ones(4), ValueError, r"returned shape \(4,\).*one per sample is g.reshape\(-1, 1\)"),
        (lambda x, t: torch.ones(4, 2, 2), ValueError, r"returned shape \(4, 2, 2\).*a matrix is sdediff.Dense\(G\)"),
        (lambda x, t: torch.ones(4, 3), ValueError, r"returned shape \(4, 3\), which does not broadcast to x"),
        (lambda x, t: torch.ones(2, 1), ValueError, r"returned shape \(2, 1\), which does not broadcast to x"),
        (lambda x, t: None, TypeError, "Custom.g returned NoneType; return a number, a tensor with x.ndim = 2 axes"),
        (lambda x, t: 1j, TypeError, "Custom.g returned complex"),
        (
            lambda x, t: torch.ones(1, 2) * 1j,
            TypeError,
            "Custom.g returned a complex tensor; noise coefficients are real",
        ),
        (lambda x, t: sd.Dense(torch.eye(2)), ValueError, r"Dense\(G\) with G of shape \(2, 2\).*use G\[None\]"),
        (
            lambda x, t: sd.Dense(torch.ones(4, 3, 2)),
            ValueError,
            r"G of shape \(4, 3, 2\).*must have shape \(4, 2, m\)",
        ),
        (lambda x, t: sd.Dense(torch.ones(3, 2, 2)), ValueError, r"G of shape \(3, 2, 2\) for x of shape \(4, 2\)"),
    ],
)
def test_noise_coefficients(g, error, message):
    """A g that would broadcast by accident above all."""
    process = custom(g=g)
    for call in (
        lambda: process.diffusion(X, 0.5),
        lambda: solve(process),
        lambda: process.reverse(score).drift(X, 0.5),
        lambda: solve(process, solver=TORCHSDE, steps=3),
    ):
        with raises(error, message):
            call()


def test_a_vector_is_refused_even_where_b_equals_d():
    """x (2, 2) and g (2,): it would broadcast, over the wrong axis or the right one."""
    with raises(ValueError, r"returned shape \(2,\) for x of shape \(2, 2\)"):
        custom(g=lambda x, t: torch.ones(2)).diffusion(torch.ones(2, 2), 0.5)
    with raises(ValueError, r"returned Dense noise, which needs states of shape \(B, d\); x has shape \(2, 2, 2\)"):
        custom(g=lambda x, t: sd.Dense(torch.ones(1, 2, 2))).diffusion(torch.ones(2, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x, t: x[:, :1], ValueError, r"the score returned shape \(4, 1\) for x of shape \(4, 2\)"),
        (lambda x, t: x.sum(1), ValueError, r"the score returned shape \(4,\)"),
        (lambda x, t: 1.0, TypeError, "the score returned float"),
    ],
)
def test_scores(wrong, error, message):
    for process in (VP.reverse(wrong), VP.probability_flow(wrong), custom().reverse(wrong)):
        with raises(error, message):
            process.drift(X, 0.5)
        with raises(error, message):
            solve(process)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VP.reverse(3), TypeError, r"score must be callable as score\(x, t\), got int"),
        (lambda: VP.reverse(score, -1.0), ValueError, "stochasticity = -1.0 must be finite and >= 0"),
        (lambda: custom().reverse(score, math.nan), ValueError, "stochasticity = nan must be finite and >= 0"),
        (lambda: VP.reverse(score, "1"), TypeError, "stochasticity must be a number or a function of t, got str"),
        (lambda: VP.reverse(score, diffusion=-1.0), ValueError, "diffusion = -1.0 must be finite and >= 0"),
        (lambda: VP.reverse(score, 0.5, diffusion=1.0), ValueError, "Give either stochasticity or diffusion"),
        (lambda: VP.reverse(score, "1", diffusion=1.0), TypeError, "stochasticity must be a number or a function of t"),
        (lambda: sd.CLD().reverse(score, -1.0), ValueError, "stochasticity = -1.0 must be finite and >= 0"),
        (lambda: sd.CLD().reverse(score, "0"), TypeError, "stochasticity must be a number or a function of t, got str"),
        (lambda: sd.CLD().reverse(score, diffusion=-1.0), ValueError, "diffusion = -1.0 must be finite and >= 0"),
        (lambda: sd.CLD().reverse(score, 0.5, diffusion=1.0), ValueError, "Give either stochasticity or diffusion"),
        (lambda: sd.CLD().reverse(score, torch.ones(2)), TypeError, "got Tensor"),
        (
            lambda: custom().reverse(score, lambda t: t, diffusion=1.0),
            ValueError,
            "Give either stochasticity or diffusion",
        ),
        (
            lambda: sd.FunctionScore(score).noise(X, 0.5),
            ValueError,
            r"no linear process.*FunctionScore\(function, sde",
        ),
        (lambda: sd.FunctionScore(score).data(X, 0.5), ValueError, r"belongs to no linear process"),
        (lambda: sd.FunctionScore(score).example(X, torch.tensor(0.5), X), ValueError, r"belongs to no linear process"),
        (lambda: sd.ExactScore(3, sd.densities.ring(3)), TypeError, "ExactScore needs an SDE, got int"),
        (lambda: sd.FunctionScore(score, VP).to(custom()), TypeError, "A score moves to a LinearSDE, got Custom"),
        (lambda: sd.FunctionScore(score).to(VP), ValueError, "This score belongs to no process"),
    ],
)
def test_reversals(make, error, message):
    with raises(error, message):
        make()


# ---- solvers ----------------------------------------------------------------------------------------------------

GENERAL = custom()
GENERAL_BACK = GENERAL.reverse(score)


@pytest.mark.parametrize(
    ("process", "solver", "error", "message"),
    [
        (GENERAL, sd.ExactTransition(), TypeError, "ExactTransition needs a linear SDE, got Custom: use EulerMaruyama"),
        (BACK, sd.ExactTransition(), TypeError, "ExactTransition needs a linear SDE, got LinearReverse"),
        (
            GENERAL_BACK,
            sd.ReverseDiffusion(),
            TypeError,
            "needs the reversal of a linear SDE, got Reverse: use EulerMaruyama",
        ),
        (GENERAL_BACK, sd.Ancestral(), TypeError, "Ancestral needs the reversal of a linear SDE, got Reverse"),
        (VP, sd.Ancestral(), TypeError, "Ancestral needs the reversal of a linear SDE, got VP"),
        (VP.reverse(score, 0.5), sd.Ancestral(), ValueError, "the reversal with stochasticity 1; use EulerMaruyama"),
        (FLOW, sd.Ancestral(), ValueError, "the reversal with stochasticity 1.*or Heun for the probability flow"),
        (
            GENERAL_BACK,
            sd.PredictorCorrector(EULER),
            TypeError,
            "PredictorCorrector needs the reversal of a linear SDE",
        ),
        (BACK, sd.PredictorCorrector(sd.Heun()), TypeError, "Heun needs an ODE, got LinearReverse"),
        (BACK, sd.Heun(), TypeError, r"Heun needs an ODE, got LinearReverse: solve sde.probability_flow\(score\)"),
        (GENERAL, sd.RK4(), TypeError, "RK4 needs an ODE, got Custom"),
        (BACK, sd.Scipy(), TypeError, "Scipy needs an ODE, got LinearReverse: solve sde.probability_flow.*or TorchSDE"),
        (BACK, sd.EulerMaruyama, TypeError, r"solver must be a solver object.*write EulerMaruyama\(\)"),
        (BACK, "euler", TypeError, r"solver must be a solver object such as EulerMaruyama\(\), got 'euler'"),
        (VP.drift, EULER, TypeError, "process must be an SDE, got method"),
        (sd.VP, EULER, TypeError, r"process must be an SDE, got the class VP: write VP\(...\)"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_solvers_and_processes(process, solver, error, message):
    with raises(error, message):
        sd.solve(process, X, solver=solver, steps=5)
    with raises(error, message):
        sd.sample(process, 4, x=X, solver=solver, steps=5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sd.Langevin(r=0.0), ValueError, r"r = 0.0 must lie in \(0, 1\)"),
        (lambda: sd.Langevin(r=1.5), ValueError, r"r = 1.5 must lie in \(0, 1\).*stable below sigma²"),
        (lambda: sd.Langevin(steps=0), ValueError, "steps = 0: a corrector takes at least one step"),
        (lambda: sd.RungeKutta([[], [1.0]], [0.5], 2), ValueError, "one row per stage, row i of length i"),
        (lambda: sd.RungeKutta([[], [0.5, 0.5]], [0.5, 0.5], 2), ValueError, "one row per stage, row i of length i"),
        (
            lambda: sd.RungeKutta([[], [1.0]], [0.5, 0.4], 2),
            ValueError,
            "weights b sum to 0.9; a consistent method needs 1",
        ),
        (lambda: sd.Scipy("RK54"), ValueError, "method = 'RK54' is none of solve_ivp's: RK45, RK23"),
        (lambda: sd.Scipy(rtol=0.0), ValueError, "rtol = 0.0 must be positive"),
        (lambda: sd.Scipy(atol=-1.0), ValueError, "atol = -1.0 must be positive"),
        (lambda: sd.Scipy(max_evaluations=0), ValueError, "max_evaluations = 0: ask for a positive whole number"),
        (lambda: sd.Scipy(max_evaluations=2.5), TypeError, "max_evaluations must be a positive whole number, got 2.5"),
        (lambda: sd.TorchSDE("heun"), ValueError, "method = 'heun' is none of torchsde's Itô methods: euler, milstein"),
        (
            lambda: solve(FLOW, solver=SCIPY, differentiable=True),
            ValueError,
            "SciPy keeps no graph: for gradients use RK4",
        ),
    ],
)
def test_solver_parameters(make, error, message):
    with raises(error, message):
        make()


def test_infinite_coefficients():
    """f and g of a straight path are infinite at t = 1: said before the first step, with the cure."""
    path = sd.RectifiedFlow()
    back = path.reverse(sd.FunctionScore(score, path))
    for solver in (EULER,):
        with raises(ValueError, r"from t = 1 has infinite coefficients.*t0 = 0.999 t_max"):
            sd.solve(back, X, solver=solver, steps=5)
    assert torch.isfinite(sd.solve(back, X, solver=EULER, t0=0.999, steps=5).x).all()


ANY = (EULER, sd.StochasticHeun(), sd.AdaptiveHeun())


@pytest.mark.parametrize(
    ("sde", "solver"),
    [
        *((custom(), solver) for solver in ANY),
        *((VP, solver) for solver in (*ANY, sd.DDIM())),
        *((sd.CorrelatedOU(torch.eye(2), t_max=1.0), solver) for solver in (*ANY, sd.CoupledMultistep())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stochasticity_that_is_no_number_is_named(sde, solver):
    """And not f, g or the score; one that is finite wherever it is asked for goes through."""
    arguments = {"t0": 0.9, "t1": 0.1} | ({} if isinstance(solver, sd.AdaptiveHeun) else {"steps": 5})
    for eta, said in (
        (lambda t: (t - 0.5) ** 0.5, "nan at t = 0"),
        (lambda t: 1 / (1 + 0 * t - 1), "inf at t = 0.[89]"),
    ):
        with raises(ValueError, f"^stochasticity is {said}.*: it must be a finite number at every time"):
            sd.solve(sde.reverse(score, eta), X, solver=solver, **arguments)
    assert torch.isfinite(sd.solve(sde.reverse(score, lambda t: 0.5 + t), X, solver=solver, **arguments).x).all()


@pytest.mark.parametrize(
    "sde", [custom(), VP, sd.CorrelatedOU(torch.eye(2), t_max=1.0)], ids=lambda v: type(v).__name__
)
def test_a_noise_coefficient_that_is_no_number_is_named(sde):
    back = sde.reverse(score, diffusion=lambda t: math.nan)
    for solver in ANY[:2]:
        with raises(ValueError, "^diffusion is nan at t = 0.9: it must be a finite number at every time"):
            sd.solve(back, X, solver=solver, t0=0.9, t1=0.1, steps=5)


def test_unknown_arguments_are_refused():
    for call in (solve, sample):
        with raises(TypeError, "n_steps"):
            call(n_steps=5)
        with raises(TypeError, "rtol"):
            call(rtol=1e-3)


# ---- sample -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n": 0}, ValueError, "n = 0: ask for a positive whole number"),
        ({"n": -2}, ValueError, "n = -2: ask for a positive whole number"),
        ({"n": 2.0}, TypeError, "n must be a positive whole number, got 2.0"),
        ({"n": True}, TypeError, "n must be a positive whole number, got True"),
        ({"batch_size": 0}, ValueError, "batch_size = 0: ask for a positive whole number"),
        (
            {"event_shape": None},
            ValueError,
            r"shape of one sample is unknown: pass event_shape=, e.g. event_shape=\(2,\)",
        ),
        ({"event_shape": 2}, TypeError, r"event_shape = 2 must be a tuple.*event_shape=\(2,\)"),
        ({"x": X, "n": 5, "event_shape": None}, ValueError, "n = 5, but x holds 4 starting states"),
        ({"x": X}, ValueError, r"x= fixes the shape.*leave out event_shape"),
        ({"t0": 0.5}, ValueError, "The prior is the law at t_max = 1, not at t0 = 0.5: give x="),
        ({"process": VP}, ValueError, "The prior is the law at t_max = 1, not at t0 = 0: give x="),
        (
            {"process": GENERAL_BACK},
            NotImplementedError,
            r"Custom has no known law at t_max = 1.*sample\(process, n, x=...\)",
        ),
        ({"cond": torch.arange(3)}, ValueError, r"cond has shape \(3,\) for 4 samples: give one condition per sample"),
        ({"cond": torch.arange(2), "batch_size": 2}, ValueError, r"cond has shape \(2,\) for 4 samples"),
        ({"noise": sd.PerSample([1, 2])}, ValueError, "PerSample has 2 seeds for a batch of 4"),
        ({"noise": sd.PerSample([1, 2]), "batch_size": 2}, ValueError, "PerSample has 2 seeds for a batch of 4"),
        ({"dtype": torch.int64}, TypeError, r"dtype = torch.int64 must be a real floating-point dtype"),
    ],
)
def test_sampling(kwargs, error, message):
    with raises(error, message):
        sample(**kwargs)


@pytest.mark.parametrize(
    ("process", "cond", "message"),
    [
        (VP, torch.arange(4), "cond= goes to a score, and VP has none"),
        (BACK, torch.arange(3), r"cond has shape \(3,\) for a batch of 4: give one condition per sample"),
        (VP.reverse(sd.ExactScore(VP, sd.densities.ring(3))), torch.arange(4), "An exact score takes no condition"),
    ],
)
def test_conditions(process, cond, message):
    with raises(ValueError, message):
        solve(process, cond=cond)


def test_guidance_needs_a_condition():
    guided = sd.ClassifierFree(sd.FunctionScore(lambda x, t, cond=None: -x, VP), 2.0, null=torch.zeros(1))
    with raises(ValueError, "Guided sampling needs a condition: pass cond= to solve or sample"):
        solve(VP.reverse(guided))


def test_denoising_is_checked_before_the_solve():
    """Not after an hour of it."""
    asked = []

    def slow(x, t):
        asked.append(t)
        return -x

    with raises(ValueError, "denoise=True needs the reversal of a linear process"):
        solve(GENERAL.reverse(slow), denoise=True)
    assert not asked


# ---- states that stop being finite --------------------------------------------------------------------------------


def breaking(at, rows):
    """A score that is NaN for these samples from t <= at on."""

    def function(x, t):
        value = -x.clone()
        if float(t) <= at:
            value[rows] = math.nan
        return value

    return function


@pytest.mark.parametrize(
    "noise",
    [{"seed": 3}, {"noise": sd.PerSample(range(4))}, {"generator": None}, {}],
    ids=["seed", "per sample", "generator", "none"],
)
@pytest.mark.parametrize(
    ("solver", "flow"),
    [
        (EULER, False),
        (sd.ReverseDiffusion(), False),
        (sd.PredictorCorrector(EULER), False),
        (sd.Heun(), True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_nan_from_a_score(solver, flow, noise):
    """At step k, from t_k: says k, t, which samples, and holds the last finite state. Replayed on the same noise."""
    if "generator" in noise:
        noise = {"generator": torch.Generator().manual_seed(9)}
        noise["generator"].manual_seed(9)
    torch.manual_seed(11)
    function = breaking(0.55, [1, 3])
    process = VP.probability_flow(function) if flow else VP.reverse(function)
    states = []
    with pytest.raises(sd.NonFiniteError) as caught:
        solve(process, solver=solver, t1=0.0, steps=10, callback=lambda k, t, x: states.append(x.clone()), **noise)
    error = caught.value
    # The first evaluation at t <= 0.55 is at t = 0.5: that of step 5, or one look-ahead earlier where the step's end is asked
    first = 4 if isinstance(solver, (sd.PredictorCorrector, sd.Heun)) else 5
    assert error.step == first and error.t == pytest.approx(1 - 0.1 * (first + 1)) and error.samples == [1, 3]
    assert torch.isfinite(error.state).all() and torch.equal(error.state, states[first - 1])
    message = f"in step {first}, from t = {1 - 0.1 * first:g} to t = {1 - 0.1 * (first + 1):g}, for 2 of 4 samples"
    assert message in str(error) and "[1, 3]" in str(error) and ".state" in str(error)
    assert isinstance(error, sd.SolveError)


def test_nan_says_which_samples_of_all_batches():
    """sample(batch_size=): the numbers are those of the n samples, not of the batch."""

    def function(x, t):
        return torch.where((x - 5).abs() < 1e-6, math.nan, -x) if float(t) == 1.0 else -x

    x = torch.zeros(7, 2)
    x[5] = 5
    with pytest.raises(sd.NonFiniteError, match=r"sample.*5") as caught:
        sd.sample(VP.reverse(function), 7, x=x, solver=EULER, steps=4, batch_size=2, seed=0)
    assert caught.value.samples == [5]


def test_nan_that_does_not_come_back():
    """A score that answers differently when asked again: said, with what it usually is."""
    calls = [0]

    def fickle(x, t):
        calls[0] += 1
        return x * math.nan if calls[0] == 2 else -x

    with pytest.raises(
        sd.NonFiniteError, match=r"does not give the same value twice \(dropout\? put the network in eval"
    ):
        solve(VP.reverse(fickle))


@pytest.mark.parametrize("method", ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"])
def test_nan_in_scipy(method):
    with pytest.raises(
        sd.NonFiniteError, match=r"The drift is NaN or infinite at t = .* for 2 of 4 samples \(first: \[1, 3\]"
    ):
        solve(VP.probability_flow(breaking(0.5, [1, 3])), solver=sd.Scipy(method))


@pytest.mark.parametrize("save_at", [None, [0.8, 0.3]])
@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_nan_in_torchsde(method, save_at):
    """torchsde steps on with NaN to the end: sample, step and time are those where it began."""
    solver = sd.TorchSDE(method)
    with pytest.raises(sd.NonFiniteError, match=r"from t = 0\.\d to t = 0\.\d, for 2 of 4 samples") as caught:
        solve(VP.reverse(breaking(0.55, [1, 3])), solver=solver, t1=0.0, steps=10, save_at=save_at, seed=3)
    error = caught.value
    first = 4 if method == "srk" else 5  # the first to ask for the score at t <= 0.55
    assert error.samples == [1, 3] and error.step == first and error.t == pytest.approx(0.9 - 0.1 * first)
    assert f"in step {first}, from t = {1 - 0.1 * first:g} to" in str(error)
    seen = []
    process = VP.reverse(lambda x, t: (seen.append((float(t), x)), -x)[1])
    solve(process, solver=solver, t1=0.0, steps=10, save_at=save_at, seed=3)
    assert any(abs(t - 1 + 0.1 * first) < 1e-6 and torch.equal(error.state, x) for t, x in seen)
    assert str(error).endswith("The last finite state is in .state.")


def test_nan_in_torchsde_without_a_bad_drift():
    """At the first step of all, and in the last, whose result no drift sees; a fickle one is found at the end at least."""
    with pytest.raises(sd.NonFiniteError, match="in step 0, from t = 1 to") as caught:
        solve(VP.reverse(lambda x, t: x * math.nan), solver=TORCHSDE, steps=5)
    assert torch.equal(caught.value.state, X) and caught.value.samples == [0, 1, 2, 3]
    huge = sd.VP().reverse(lambda x, t: x * 0 + (3e38 if float(t) < 0.3 else 0.0))
    with pytest.raises(sd.NonFiniteError, match=r"in step 3, from t = 0\.25 to t = 0,") as caught:
        solve(huge, solver=TORCHSDE, t1=0.0, steps=4)
    assert torch.isfinite(caught.value.state).all()
    calls = [0]

    def fickle(x, t):
        calls[0] += 1
        return x * math.nan if calls[0] == 3 else -x

    with pytest.raises(sd.NonFiniteError, match=r"for 4 of 4 samples") as caught:
        solve(VP.reverse(fickle), solver=TORCHSDE, steps=5)
    assert ".state" not in str(caught.value) and caught.value.state is None


def test_errors_of_a_score_pass_unchanged():
    class Mine(Exception):
        pass

    def function(x, t):
        raise Mine("mine")

    for solver in (EULER, sd.Heun(), SCIPY, sd.Scipy("LSODA"), TORCHSDE):
        process = VP.reverse(function) if solver in (EULER, TORCHSDE) else VP.probability_flow(function)
        with raises(Mine, "mine"):
            solve(process, solver=solver, **({"steps": 3} if solver is TORCHSDE else {}))
