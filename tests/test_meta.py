"""Device safety without a device: on ``meta``, mixing devices raises and so does reading a value back.

Every fixed-step solver that the package exports is found and run, on every kind of process that it takes on the host; it must
take as many steps and evaluations there. So a new solver is tested without being named here, unless it needs arguments.
"""

from __future__ import annotations

import inspect

import pytest
import torch

import sdediff as sd
from sdediff import solvers
from sdediff.noise import Seeded

META = torch.device("meta")


class Own(sd.SDE):
    """Diagonal noise, each coefficient of its own coordinate."""

    def f(self, x, t):
        return -x * t

    def g(self, x, t):
        return 1 + 0.1 * torch.tanh(x)


class Additive(sd.SDE):
    def f(self, x, t):
        return -x

    def g(self, x, t):
        return 1 + t


class Matrix(sd.SDE):
    def f(self, x, t):
        return -x

    def g(self, x, t):
        return sd.Dense(torch.diag_embed(torch.exp(-x * x)) + 0.1)


def function(x, t):
    return -torch.tanh(x) * (1 + t)


VP, EDM, COSINE, CLD = sd.VP(), sd.EDM(), sd.CosineVP(), sd.CLD()
PROCESSES = {
    "forward": Own(),
    "additive": Additive(),
    "matrix": Matrix(),
    "reverse": Own().reverse(function, lambda t: 0.5 + t),
    "flow": Matrix().probability_flow(function),
    "linear": VP,
    "linear-reverse": VP.reverse(sd.FunctionScore(function, VP)),
    "linear-eta": EDM.reverse(sd.FunctionScore(function, EDM), 0.5),
    "linear-flow": EDM.probability_flow(sd.FunctionScore(function, EDM)),
    "vanishing-alpha": COSINE.probability_flow(
        sd.VelocityPrediction(
            COSINE, type("Net", (torch.nn.Module,), {"forward": lambda self, x, t: -x * t[:, None]})()
        )
    ),
    "coupled-reverse": CLD.reverse(sd.FunctionScore(function, CLD)),
    "coupled-flow": CLD.probability_flow(sd.FunctionScore(function, CLD)),
    "underdamped": sd.Underdamped(sd.FunctionScore(lambda x, t: -x), t_max=1.0),
}

# Solvers that cannot be made without arguments, and the general mechanisms, whose presets are all run.
MADE = {
    "PredictorCorrector": sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(steps=2)),
    "Restart": sd.Restart(sd.Heun(), low=0.2, high=0.4, inner=sd.grids.Uniform(2)),
    "Checkpointed": sd.Checkpointed(sd.EulerMaruyama()),
    "RungeKutta": sd.RungeKutta([[], [1.0]], [0.5, 0.5], 2),
}
MECHANISMS = {"Solver", "SRK", "ExponentialMultistep", "ExponentialSingleStep"}
FOUND = {
    name: getattr(solvers, name)
    for name in solvers.__all__
    if inspect.isclass(getattr(solvers, name))
    and issubclass(getattr(solvers, name), sd.Solver)
    and name not in MECHANISMS
}


def outcome(process, solver, x):
    """Steps, evaluations and the solution, or the refusal."""
    noise = Seeded(torch.Generator().manual_seed(0))
    try:
        return sd.solve(process, x, solver=solver, steps=3, save_at=[0.3], noise=noise)
    except (TypeError, ValueError) as error:
        return error


@pytest.mark.parametrize("name", sorted(FOUND))
def test_every_fixed_step_solver(name):
    solver, ran = MADE[name] if name in MADE else FOUND[name](), []
    for kind, process in PROCESSES.items():
        on_host = outcome(process, solver, torch.full((3, 2), 0.5, dtype=torch.float64))
        if isinstance(on_host, Exception):
            continue
        on_device = outcome(process, solver, torch.empty(3, 2, dtype=torch.float64, device=META))
        assert not isinstance(on_device, Exception), f"{kind}: {on_device}"
        assert on_device.x.device == on_device.xs.device == META and on_device.x.dtype == torch.float64
        assert on_device.xs.shape == on_host.xs.shape and torch.equal(on_device.ts, on_host.ts)
        for count in ("steps", "nfe", "score_calls"):
            assert on_device.stats[count] == on_host.stats[count]
        ran.append(kind)
    assert ran, f"{name} takes none of the processes here: add one"


def test_reading_back_is_seen():
    """The test can fail: a step that looks at a value, or brings a host tensor along, raises."""

    class Looks(sd.Solver):
        def step(self, process, x, s, t, noise):
            return x * float(x.abs().max())

    class Mixes(sd.Solver):
        def step(self, process, x, s, t, noise):
            return x + torch.ones(2)

    for solver in (Looks(), Mixes()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            sd.solve(Additive(), torch.empty(3, 2, device=META), solver=solver, steps=1)


@pytest.mark.parametrize(
    "noise",
    [None, sd.PerSample([1, 2, 3, 4]), sd.Keyed(5), sd.BrownianPath(0.0, 1.0, 3), sd.Antithetic(4)],
    ids=lambda n: type(n).__name__,
)
def test_noise(noise):
    back = VP.reverse(function)
    for solver in (sd.EulerMaruyama(), sd.PredictorCorrector(sd.ReverseDiffusion())):
        out = sd.sample(
            back, 4, solver=solver, steps=3, event_shape=(2,), device="meta", noise=noise, dtype=torch.bfloat16
        )
        assert out.x.device == META and out.x.dtype == torch.bfloat16 and out.stats["steps"] == 3


def test_the_generator_is_not_touched():
    """Nothing is drawn on a device that holds no numbers."""
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state().clone()
    sd.solve(
        VP.reverse(function), torch.empty(2, 2, device=META), solver=sd.EulerMaruyama(), steps=2, generator=generator
    )
    assert torch.equal(generator.get_state(), before)


LINEAR = [
    sd.OU(), sd.VP(), sd.SubVP(), sd.VE(), sd.EDM(), sd.CosineVP(), sd.RectifiedFlow(), sd.CustomVP(lambda t: 1 + t)
]  # fmt: skip


@pytest.mark.parametrize("sde", LINEAR, ids=lambda s: type(s).__name__)
def test_processes(sde):
    """Kernels, quadrature and reversals, at a host time or at one time per sample on the device."""
    x, other = torch.empty(4, 2, 3, device=META), torch.empty(4, 2, 3, device=META)
    on_device = torch.empty(4, device=META)
    for t in (0.3, torch.tensor(0.3), on_device):
        for process in (sde, sde.reverse(function), sde.reverse(function, 0.5), sde.probability_flow(function)):
            assert process.drift(x, t).device == META
            assert (process.diffusion(x, t) @ x).device == META
            assert process.gram_divergence(x, t).device == META
        assert sde.perturb(x, t, other).device == META
        assert sde.marginal(x, t).log_prob(x).shape == (4,)
    for value in (sde.alpha, sde.sigma, sde.log_snr, sde.time_of, sde.alpha_rate, sde.sigma_rate):
        assert value(on_device).device == META and value(on_device).dtype == torch.float32
    assert sde.transition(on_device, on_device).variance.device == META
    assert sde.prior((2, 3)).sample(4, device="meta").device == META


@pytest.mark.parametrize("process", [Own(), Matrix(), Additive()], ids=lambda p: type(p).__name__)
def test_general_reversals(process):
    x = torch.empty(4, 2, device=META)
    for t in (0.3, torch.empty(4, device=META)):
        for back in (
            process.reverse(function),
            process.reverse(function, diffusion=0.4),
            process.probability_flow(function),
        ):
            assert back.drift(x, t).device == META


def conditional(x, t, cond=None):
    return -x if cond is None else -x + cond.reshape(-1, 1)


def scores():
    bare = sd.FunctionScore(function, VP)
    yield "function", bare, None
    yield "conditional", sd.FunctionScore(conditional, VP), torch.empty(4, device=META)
    yield (
        "guided",
        sd.ClassifierFree(sd.FunctionScore(conditional, VP), 2.0, null=torch.zeros(1)),
        torch.empty(4, device=META),
    )
    yield "moved", sd.FunctionScore(function, VP).to(sd.SubVP()), None
    yield "thresholded", sd.Thresholded(bare, 1.0, quantile=0.9), None
    ring = sd.densities.ring(8)
    yield "mixture", sd.ExactScore(VP, ring), None
    full = sd.densities.Mixture([[0.0, 1.0], [2.0, 1.0]], covariance=torch.tensor([[[1.0, 0.3], [0.3, 0.5]]] * 2))
    yield "full covariance", sd.ExactScore(VP, full), None
    yield "data set", sd.ExactScore(VP, sd.densities.Empirical(torch.empty(9, 2, device=META))), None


@pytest.mark.parametrize(("score", "cond"), [s[1:] for s in scores()], ids=[s[0] for s in scores()])
def test_scores(score, cond):
    x = torch.empty(4, 2, device=META)
    for t in (0.3, torch.empty(4, device=META)):
        for view in (score, score.noise, score.data):
            assert view(x, t, cond).device == META
        assert all(part.device == META for part in score.split(x, t, cond))
    if cond is None:
        for along in score.along(torch.tensor([0.5, 0.3], dtype=torch.float64)):
            assert along(x).device == META


def test_gradients():
    """Autograd works on meta: a differentiable solve gives gradients of the right shape and device."""
    x = torch.empty(4, 2, device=META, requires_grad=True)
    for process in (VP.reverse(function), Own().reverse(function)):
        out = sd.solve(process, x, solver=sd.EulerMaruyama(), steps=3, differentiable=True)
        (gradient,) = torch.autograd.grad(out.x.sum(), x)
        assert gradient.device == META and gradient.shape == x.shape
