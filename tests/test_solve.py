"""solve and sample: what is saved, counted, passed on and cut short."""

from __future__ import annotations

import math
import time

import pytest
import torch

import sdediff as sd
from sdediff.noise import Noise, Stream
from sdediff.score import Score
from sdediff.suited import process_for


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Counting(Score):
    """A score that counts for itself how often it is asked, and about how many rows."""

    def __init__(self, sde=None, event_shape=None):
        self.sde, self.event_shape = sde, event_shape
        self.calls, self.rows_seen, self.times, self.conditions = 0, 0, [], []

    def predict(self, x, t, cond):
        self.calls += 1
        self.rows_seen += x.shape[0]
        self.times.append(t.detach().clone())
        self.conditions.append(cond)
        shift = 0.0 if cond is None else 0.1 * cond.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
        return -(x - shift)


VP = sd.VP()

# ---- what is saved --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [sd.EulerMaruyama(), sd.RK4(), sd.Scipy(rtol=1e-8, atol=1e-8), sd.TorchSDE()])
def test_save_at_lands_exactly(solver):
    """The states are those at the times asked for, not the nearest nodes or a line between them."""
    flow = VP.probability_flow(lambda x, t: -x / 4)  # x' = -½β(1 - ¼) x
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    saves = [0.123, 0.9, 0.5]
    steps = {} if isinstance(solver, sd.Scipy) else {"steps": 2000}
    out = sd.solve(flow, x, solver=solver, t0=1.0, t1=0.05, save_at=saves, **steps)
    assert out.ts.tolist() == [0.9, 0.5, 0.123, 0.05] and out.ts.dtype == torch.float64
    assert out.xs.shape == (4, 1, 2) and torch.equal(out.xs[-1], out.x)

    def total(t):
        return 0.1 * t + 9.95 * t * t

    for t, state in zip(out.ts.tolist(), out.xs, strict=True):
        exact = x * math.exp(0.375 * (total(1.0) - total(t)))
        tolerance = 2e-2 if isinstance(solver, (sd.EulerMaruyama, sd.TorchSDE)) else 1e-6
        torch.testing.assert_close(state, exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("solver", [sd.EulerMaruyama(), sd.TorchSDE()], ids=["euler", "torchsde"])
def test_saved_variance_is_not_interpolated(solver, assert_law):
    """Between the nodes of the steps asked for, Brownian motion at t has variance t (a line halves it in mid-step).

    n = 20,000: a variance off by 8 % is seen.
    """

    class Brownian(sd.SDE):
        def f(self, x, t):
            return torch.zeros_like(x)

        def g(self, x, t):
            return 1.0

    x = torch.zeros(20_000, 1)
    out = sd.solve(Brownian(), x, solver=solver, steps=2, save_at=[0.25, 0.75], seed=1)
    assert out.ts.tolist() == [0.25, 0.75, 1.0]
    for t, state in zip(out.ts.tolist(), out.xs, strict=True):
        assert_law(state, 0.0, t)
    assert_law(out.xs[1] - out.xs[0], 0.0, 0.5)


def test_saving_changes_nodes_and_counts_them():
    score = Counting()
    process = VP.reverse(score)
    plain = sd.solve(process, randn(3, 2), solver=sd.EulerMaruyama(), steps=4, seed=0)
    assert plain.ts.tolist() == [VP.t_min] and plain.xs.shape == (1, 3, 2) and plain.stats["steps"] == 4
    out = sd.solve(
        process, randn(3, 2), solver=sd.EulerMaruyama(), t1=0.0, steps=4, save_at=[0.9, 0.5, 0.0, 1.0], seed=0
    )
    assert out.ts.tolist() == [1.0, 0.9, 0.5, 0.0]
    assert out.stats["steps"] == 5 == out.stats["nfe"] == out.stats["score_calls"]  # 0.5 was a node before
    assert torch.equal(out.xs[0], randn(3, 2)) and torch.equal(out.xs[-1], out.x)


def test_saved_states_are_kept_as_they_were():
    """Later steps, which work in place on what they make, do not reach into saved states or the caller's x."""
    x = randn(3, 2)
    before = x.clone()
    seen = []
    out = sd.solve(
        VP.reverse(lambda x, t: -x), x, solver=sd.EulerMaruyama(), steps=8, save_at=[1.0, 0.75, 0.5, 0.25], seed=0,
        callback=lambda k, t, y: seen.append((t, y.clone())),
    )  # fmt: skip
    assert torch.equal(x, before) and torch.equal(out.xs[0], before)
    by_time = dict(seen)
    for t, state in zip(out.ts.tolist()[1:], out.xs[1:], strict=True):
        assert torch.equal(by_time[t], state)


# ---- what is counted ------------------------------------------------------------------------------------------


def counted(score, process, x, **kwargs):
    out = sd.solve(process, x, **kwargs)
    return out.stats, score.calls, score.rows_seen / x.shape[0]


@pytest.mark.parametrize(
    ("solver", "flow", "per_step"),
    [
        (sd.EulerMaruyama(), False, 1),
        (sd.ReverseDiffusion(), False, 1),
        (sd.Ancestral(), False, 1),
        (sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(steps=3)), False, 4),
        (sd.Heun(), True, 2),
        (sd.Midpoint(), True, 2),
        (sd.RK4(), True, 4),
        (sd.PredictorCorrector(sd.Heun()), True, 3),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, sd.Solver) else None,
)
def test_counts_of_fixed_steps(solver, flow, per_step):
    score = Counting(VP)
    process = VP.probability_flow(score) if flow else VP.reverse(score)
    stats, calls, each = counted(score, process, randn(5, 2), solver=solver, steps=7)
    assert stats["nfe"] == stats["score_calls"] == calls == each == 7 * per_step
    assert stats["steps"] == 7 and stats["rejected"] == 0 and stats["seconds"] > 0
    assert isinstance(stats["nfe"], int)


@pytest.mark.parametrize(
    "solver", [sd.Scipy(), sd.Scipy("Radau"), sd.Scipy("LSODA"), sd.TorchSDE(), sd.TorchSDE("srk")]
)
def test_counts_of_integrators(solver):
    score = Counting(VP)
    process = VP.probability_flow(score) if isinstance(solver, sd.Scipy) else VP.reverse(score)
    steps = {} if isinstance(solver, sd.Scipy) else {"steps": 6}
    stats, calls, each = counted(score, process, randn(3, 2), solver=solver, t1=0.05, save_at=[0.5], **steps)
    assert stats["nfe"] == each and stats["score_calls"] == calls > 5
    assert stats["steps"] > 3


@pytest.mark.parametrize("solver", [sd.Heun(), sd.Scipy()], ids=["heun", "scipy"])
def test_counts_with_guidance_and_batches(solver):
    """Classifier-free guidance asks twice, and is counted twice; batches of 4, 4 and 2 are counted each."""
    score = Counting(VP, event_shape=(2,))
    guided = sd.ClassifierFree(score, 2.0, null=torch.zeros(1))
    cond = torch.arange(10.0)
    arguments = {"steps": 3} if isinstance(solver, sd.Heun) else {}
    out = sd.sample(VP.probability_flow(guided), 10, solver=solver, cond=cond, batch_size=4, seed=0, **arguments)
    assert out.stats["score_calls"] == score.calls
    assert out.stats["nfe"] == pytest.approx(score.rows_seen / 10, rel=1e-12)
    if isinstance(solver, sd.Heun):
        assert out.stats["nfe"] == 12 and out.stats["score_calls"] == 36 and out.stats["steps"] == 3


def test_a_score_made_of_scores_is_not_counted_twice():
    inner = Counting(VP)
    outer = sd.FunctionScore(lambda x, t: inner(x, t) + 0.5 * inner(2 * x, t), VP)
    out = sd.solve(VP.reverse(outer), randn(3, 2), solver=sd.EulerMaruyama(), steps=4)
    assert inner.calls == 8 == out.stats["nfe"] == out.stats["score_calls"]
    moved = Counting(VP)
    out = sd.solve(sd.OU().reverse(moved.to(sd.OU())), randn(3, 2), solver=sd.EulerMaruyama(), t0=5.0, steps=4)
    assert moved.calls == 4 == out.stats["nfe"]


def test_exact_scores_count():
    """The fused path along a grid counts like a call."""
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.ring(8))
    out = sd.sample(sde.reverse(score), 16, solver=sd.EulerMaruyama(), steps=5, seed=0)
    assert out.stats["nfe"] == 5 == out.stats["score_calls"]
    out = sd.sample(sde.probability_flow(score), 16, solver=sd.Heun(), steps=5, seed=0, batch_size=10)
    assert out.stats["nfe"] == 10 and out.stats["score_calls"] == 20


def test_nothing_is_counted_where_no_score_is():
    out = sd.solve(VP, randn(3, 2), solver=sd.EulerMaruyama(), steps=4)
    assert out.stats["nfe"] == 0 == out.stats["score_calls"] and out.stats["steps"] == 4


def test_final_denoise():
    """``denoise=True``: the data prediction at t1, at one more evaluation, beside the saved states."""
    score = Counting(VP)
    x = randn(4, 2)
    plain = sd.solve(VP.reverse(score), x, solver=sd.EulerMaruyama(), steps=5, seed=0)
    out = sd.solve(VP.reverse(score), x, solver=sd.EulerMaruyama(), steps=5, seed=0, denoise=True)
    assert out.stats["nfe"] == 6 and torch.equal(out.xs, plain.xs)
    alpha = math.exp(-0.5 * (0.1e-3 + 9.95e-6))
    torch.testing.assert_close(out.x, plain.x * (1 - (1 - alpha**2)) / alpha, rtol=1e-12, atol=0)
    whole = sd.sample(VP.reverse(score), 4, x=x, solver=sd.EulerMaruyama(), steps=5, seed=0, denoise=True, batch_size=4)
    assert torch.equal(whole.x, out.x)


# ---- conditions -------------------------------------------------------------------------------------------------


def test_conditions_travel_with_their_samples():
    """Sliced with the batch, alone, in containers, with per-sample noise: sample i sees condition i."""
    score = Counting(VP, event_shape=(2,))
    process, cond = VP.reverse(score), torch.arange(7.0)
    seeds = sd.PerSample(range(7))
    arguments = {"solver": sd.EulerMaruyama(), "steps": 4, "noise": seeds}
    together = sd.sample(process, 7, cond=cond, **arguments).x
    assert all(torch.equal(c, cond) for c in score.conditions)
    by_two = sd.sample(process, 7, cond=cond, batch_size=2, **arguments).x
    assert torch.equal(together, by_two)
    assert [tuple(c.tolist()) for c in score.conditions[4::4]] == [(0, 1), (2, 3), (4, 5), (6,)]
    none = sd.sample(process, 7, **arguments).x
    assert torch.equal(none[0], together[0]) and not torch.equal(none[1], together[1])


def test_conditions_in_containers():
    seen = []

    def score(x, t, cond=None):
        seen.append(cond)
        return -x

    cond = {"label": torch.arange(5), "scale": 3.0, "pair": (torch.ones(5, 2), torch.ones(2))}
    sd.sample(VP.reverse(score), 5, solver=sd.EulerMaruyama(), steps=1, event_shape=(2,), cond=cond, batch_size=3)
    assert [c["label"].tolist() for c in seen] == [[0, 1, 2], [3, 4]]
    assert all(c["scale"] == 3.0 and c["pair"][1].shape == (2,) for c in seen)
    assert [c["pair"][0].shape[0] for c in seen] == [3, 2]


def test_guidance_is_its_formula():
    """ε̂ = ε̂_∅ + w(ε̂_c - ε̂_∅): with this score, s = -(x - 0.1 (w c))."""
    score = Counting(VP)
    guided = sd.ClassifierFree(score, 3.0, null=torch.tensor(0.0))
    x, cond = randn(4, 2), torch.arange(4.0, dtype=torch.float64)
    torch.testing.assert_close(guided(x, 0.5, cond), -(x - 0.1 * 3.0 * cond[:, None]), rtol=1e-12, atol=1e-12)


# ---- callback, progress, Ctrl-C --------------------------------------------------------------------------------


def test_callback():
    """After each step: its number, the time reached, the state there."""
    seen = []
    out = sd.solve(
        VP.reverse(lambda x, t: -x), randn(3, 2), solver=sd.EulerMaruyama(), t1=0.0, steps=4, seed=0,
        callback=lambda k, t, x: seen.append((k, t, x)),
    )  # fmt: skip
    assert [(k, t) for k, t, _ in seen] == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]
    assert torch.equal(seen[-1][2], out.x)


def test_progress_shows_after_two_seconds(capsys):
    """A quick solve stays silent; a slow one shows a bar on stderr; neither changes the result."""
    x = randn(3, 2)
    arguments = {"solver": sd.EulerMaruyama(), "steps": 4, "seed": 0}
    quiet = sd.solve(VP.reverse(lambda x, t: -x), x, progress=True, **arguments)
    assert capsys.readouterr().err == ""

    def slow(x, t):
        time.sleep(0.6)
        return -x

    loud = sd.solve(VP.reverse(slow), x, progress=True, **arguments)
    assert "solving" in capsys.readouterr().err
    assert torch.equal(quiet.x, loud.x)


@pytest.mark.parametrize("solver", [sd.EulerMaruyama(), sd.Scipy()], ids=["fixed", "scipy"])
def test_ctrl_c_keeps_what_is_finished(solver):
    """Stopped in the third batch of 3: the first six samples, and a note."""
    arguments = {"solver": solver, "event_shape": (2,), "seed": 0, "batch_size": 3}
    if isinstance(solver, sd.Solver):
        arguments["steps"] = 4

    def flow(last_batch):
        begun = 0

        def score(x, t):
            nonlocal begun
            begun += float(t) == VP.t_max  # one evaluation at the start of each batch
            if begun == last_batch:
                raise KeyboardInterrupt
            return -x / 2

        return VP.probability_flow(score)

    whole = sd.sample(flow(None), 8, **arguments)
    assert "interrupted" not in whole.stats and whole.x.shape == (8, 2)
    part = sd.sample(flow(3), 8, **arguments)
    assert part.stats["interrupted"] is True
    assert torch.equal(part.x, whole.x[:6])
    with pytest.raises(KeyboardInterrupt):
        sd.sample(flow(1), 8, **arguments)


def test_ctrl_c_from_a_callback():
    batches = [0]

    def callback(k, t, x):
        batches[0] += k == 0
        if batches[0] == 3:
            raise KeyboardInterrupt

    process = VP.reverse(Counting(VP, event_shape=(2,)))
    out = sd.sample(process, 8, solver=sd.EulerMaruyama(), steps=4, seed=0, batch_size=3, callback=callback)
    assert out.x.shape == (6, 2) and out.stats["interrupted"] is True and out.stats["score_calls"] == 8
    with pytest.raises(KeyboardInterrupt):
        batches[0] = 2
        sd.sample(process, 8, solver=sd.EulerMaruyama(), steps=4, seed=0, batch_size=3, callback=callback)


# ---- where states live ------------------------------------------------------------------------------------------


def test_sample_asks_the_score(assert_law):
    """Event shape, device and dtype from the density; the prior of the process."""
    sde = sd.VP()
    density = sd.densities.ring(8).to(dtype=torch.float64)
    out = sd.sample(sde.reverse(sd.ExactScore(sde, density)), 5, solver=sd.EulerMaruyama(), steps=3, seed=0)
    assert out.x.shape == (5, 2) and out.x.dtype == torch.float64
    low = sd.sample(
        sde.reverse(sd.ExactScore(sde, density)), 5, solver=sd.EulerMaruyama(), steps=3, seed=0, dtype=torch.bfloat16
    )
    assert low.x.dtype == torch.bfloat16
    ve = sd.VE(sigma_max=30.0)
    still = sd.sample(ve.reverse(lambda x, t: torch.zeros_like(x), diffusion=0.0), 20_000, solver=sd.EulerMaruyama(),
                      steps=1, seed=0, event_shape=(1,)).x  # fmt: skip
    assert_law(still, 0.0, 30.0**2 - 0.01**2)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 4), (4, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "solver",
    [sd.EulerMaruyama(), sd.ReverseDiffusion(), sd.Ancestral(), sd.PredictorCorrector(sd.EulerMaruyama()), sd.Heun(),
     sd.RK4(), sd.Scipy(), ],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_states_of_any_shape_and_dtype(solver, dtype, shape):
    """The same numbers as the flattened state in float64, up to the rounding of the dtype."""
    sde = sd.VP(0.1, 2.0)
    score = sd.FunctionScore(lambda x, t: -torch.tanh(x) * (1 + t), sde)
    ode = isinstance(solver, (sd.RungeKutta, sd.Scipy))
    process = sde.probability_flow(score) if ode else sde.reverse(score)

    class Known(Noise, Stream):
        """The same normals for every dtype and shape."""

        def open(self, x):
            self.like, self.generator = x, torch.Generator().manual_seed(1)
            return self

        def normal(self, shape=None):
            z = torch.randn(self.like.numel(), generator=self.generator, dtype=torch.float64)
            return z.reshape(self.like.shape).to(self.like.dtype)

        def initial(self, shape, device, dtype):
            raise AssertionError

        def integer(self):
            return 7

    arguments = {} if isinstance(solver, sd.Scipy) else {"steps": 5}
    x = randn(*shape).to(dtype)
    out = sd.solve(process, x, solver=solver, t1=0.1, noise=Known(), **arguments)
    assert out.x.dtype == dtype and out.x.shape == x.shape and out.xs.dtype == dtype
    flat = sd.solve(process, x.double().reshape(-1), solver=solver, t1=0.1, noise=Known(), **arguments)
    tolerance = max(30 * torch.finfo(dtype).eps, 1e-4 if isinstance(solver, sd.Scipy) else 0)
    torch.testing.assert_close(out.x.double().reshape(-1), flat.x, rtol=tolerance, atol=tolerance)


# ---- gradients ----------------------------------------------------------------------------------------------------


class Learned(torch.nn.Module):
    """A score with two parameters."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x, t):
        return -self.a * torch.tanh(x) + self.b * t


def by_differences(function, parameter, eps=1e-6):
    gradient = torch.zeros_like(parameter)
    for i in range(parameter.numel()):
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[i] += sign * eps
                gradient.view(-1)[i] += sign * function() / (2 * eps)
                parameter.view(-1)[i] -= sign * eps
    return gradient


class Multiplicative(sd.SDE):
    """A general SDE, so that the reversal differentiates g inside."""

    def f(self, x, t):
        return -x

    def g(self, x, t):
        return 1 + 0.3 * torch.tanh(x * torch.tensor([1.0, 2.0], dtype=x.dtype))


@pytest.mark.parametrize(
    ("solver", "make"),
    [
        (sd.EulerMaruyama(), lambda score: VP.reverse(score)),
        (sd.EulerMaruyama(), lambda score: Multiplicative().reverse(score)),
        (sd.ReverseDiffusion(), lambda score: VP.reverse(score, 0.5)),
        (sd.Ancestral(), lambda score: VP.reverse(score)),
        (sd.PredictorCorrector(sd.EulerMaruyama()), lambda score: VP.reverse(score)),
        (sd.Heun(), lambda score: VP.probability_flow(score)),
        (sd.RK4(), lambda score: Multiplicative().probability_flow(score)),
        (sd.TorchSDE(), lambda score: VP.reverse(score)),
    ],
)
def test_gradients_through_a_solve(solver, make):
    """differentiable=True: with respect to the start and to the score's parameters, as finite differences have it."""
    net = Learned()
    process = make(sd.FunctionScore(net, VP))
    x = randn(4, 2).requires_grad_()

    def loss(differentiable=False):
        out = sd.solve(process, x, solver=solver, t0=0.6, t1=0.1, steps=6, seed=3, differentiable=differentiable,
                       save_at=[0.3])  # fmt: skip
        return (out.x.square() + out.xs[0].sin()).sum()

    value = loss(differentiable=True)
    assert float(value.detach()) == pytest.approx(float(loss()), rel=1e-12)
    value.backward()
    for parameter in (x, net.a, net.b):
        want = by_differences(lambda: float(loss()), parameter.detach())
        torch.testing.assert_close(parameter.grad, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_for_a_learned_diffusion(dense):
    """g's parameters act through the noise, through Ds and through ∇·D, from the first step on, x itself wanting none."""

    class Neural(sd.SDE, torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.a = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def f(self, x, t):
            return -x

        def g(self, x, t):
            g = 1 + self.a * torch.tanh(x)
            return sd.Dense(torch.diag_embed(g)) if dense else g

    sde, x = Neural(), randn(4, 2)

    def loss(differentiable=False):
        back = sde.reverse(lambda x, t: -x)
        out = sd.solve(
            back, x, solver=sd.EulerMaruyama(), t0=0.5, t1=0.3, steps=2, seed=0, differentiable=differentiable
        )
        return out.x.square().sum()

    loss(differentiable=True).backward()
    want = by_differences(lambda: float(loss()), sde.a.detach())
    torch.testing.assert_close(sde.a.grad, want, rtol=1e-6, atol=1e-7)


def test_no_graph_unless_asked():
    net = Learned()
    x = randn(3, 2).requires_grad_()
    for solver in (sd.EulerMaruyama(), sd.TorchSDE()):
        out = sd.solve(VP.reverse(sd.FunctionScore(net, VP)), x, solver=solver, steps=2, seed=0)
        assert not out.x.requires_grad
    assert torch.is_grad_enabled()


def test_solving_in_inference_mode():
    with torch.inference_mode():
        inside = sd.solve(
            Multiplicative().reverse(lambda x, t: -x), randn(3, 2), solver=sd.EulerMaruyama(), steps=5, seed=0
        )
    outside = sd.solve(
        Multiplicative().reverse(lambda x, t: -x), randn(3, 2), solver=sd.EulerMaruyama(), steps=5, seed=0
    )
    torch.testing.assert_close(inside.x.clone(), outside.x, rtol=1e-12, atol=0)


# ---- both ways, and one's own ------------------------------------------------------------------------------------


def test_a_flow_runs_both_ways():
    flow = VP.probability_flow(lambda x, t: -x / 2)
    x = randn(3, 2)
    there = sd.solve(flow, x, solver=sd.RK4(), t0=0.1, t1=0.9, steps=300).x
    back = sd.solve(flow, there, solver=sd.RK4(), t0=0.9, t1=0.1, steps=300).x
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)


def test_default_ends():
    """A forward process from 0 to t_max, a reversal or a flow from t_max to t_min, nodes from their first to their last."""
    x = randn(2, 1)
    for process, want in ((sd.EDM(), (0.0, 80.0)), (sd.EDM().reverse(lambda x, t: -x), (80.0, 0.002))):
        first = []
        out = sd.solve(process, x, solver=sd.EulerMaruyama(), steps=2, callback=lambda k, t, x, f=first: f.append(t))
        assert first[-1] == want[1] == float(out.ts[-1])
        assert first[0] == pytest.approx(sum(want) / 2)
    out = sd.solve(VP.reverse(lambda x, t: -x), x, solver=sd.EulerMaruyama(), grid=[0.7, 0.4, 0.2], save_at=[0.7])
    assert out.ts.tolist() == [0.7, 0.2]


def test_reverse_of_reverse_is_solved_forwards():
    back = VP.reverse(lambda x, t: -x, 0.5)
    out = sd.solve(back.reverse(), randn(2, 1), solver=sd.EulerMaruyama(), steps=3)
    assert float(out.ts[-1]) == 1.0


def test_a_solver_in_seven_lines():
    """The stochastic Heun step of Itô form (drift averaged over the step), with nothing to register."""

    class HeunDrift(sd.Solver):
        def step(self, process, x, s, t, noise):
            dw = process.diffusion(x, s) @ noise.increment(s, t)
            guess = x + process.drift(x, s) * (t - s) + dw
            return x + (process.drift(x, s) + process.drift(guess, t)) * (0.5 * (t - s)) + dw

    flow, x = VP.probability_flow(lambda x, t: -x / 2), randn(3, 2)
    mine = sd.solve(flow, x, solver=HeunDrift(), steps=20).x
    torch.testing.assert_close(mine, sd.solve(flow, x, solver=sd.Heun(), steps=20).x, rtol=1e-12, atol=1e-12)
    seen = sd.solve(VP.reverse(Counting()), x, solver=HeunDrift(), steps=20, seed=0)
    assert seen.stats["nfe"] == 60


def test_a_solution_prints_its_counts():
    out = sd.solve(VP.reverse(Counting()), randn(3, 2), solver=sd.EulerMaruyama(), steps=20, seed=0)
    assert "3 samples" in str(out) and "nfe 20" in str(out) and "steps 20" in str(out)


@pytest.mark.parametrize(
    "solver", [sd.EulerMaruyama(), sd.DDIM(), sd.TorchSDE(), sd.Scipy(), sd.Tsitouras(), sd.AdaptiveHeun()]
)
def test_a_solver_says_whether_it_chooses_its_steps(solver):
    """It says so just where solve refuses steps=."""
    process = process_for(solver, VP, lambda x, t: -x)
    try:
        sd.solve(process, randn(2, 2), t0=0.5, t1=0.4, solver=solver, steps=2, seed=0)
        refused = False
    except ValueError as error:
        assert "steps" in str(error)
        refused = True
    assert solver.chooses_steps == refused
