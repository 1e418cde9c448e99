"""Network scores: every form says the same as the exact posterior, on every process, and a score moves between processes.

The "network" of most tests is the exact posterior of a mixture, written for each form by hand, so that the wrapper must
give the exact score back to rounding.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import sdediff as sd
from sdediff import counting
from sdediff.score import Moved

F64 = torch.float64
LAW = sd.densities.Mixture([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], std=[0.1, 0.5, 1.0], weights=[1, 2, 3])
PROCESSES = {
    "VP": sd.VP(),
    "OU": sd.OU(),
    "SubVP": sd.SubVP(),
    "VE": sd.VE(),
    "EDM": sd.EDM(),
    "CosineVP": sd.CosineVP(),
    "RectifiedFlow": sd.RectifiedFlow(),
    "CustomVP": sd.CustomVP(lambda t: 1 + t),
}
SIGMA_DATA = 0.8


class Oracle(nn.Module):
    """The exact posterior at (x, t), in the form that ``target`` writes of (x0, eps, alpha, sigma)."""

    event_shape = (2,)

    def __init__(self, sde, target):
        super().__init__()
        self.exact, self.target = sd.ExactScore(sde, LAW), target

    def forward(self, x, t):
        sde = self.exact.sde
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return self.target(self.exact.data(x, t), self.exact.noise(x, t), alpha, sigma)


class RawOracle(nn.Module):
    """What F must be for EDM's D(y; s) = c_skip y + c_out F(c_in y; c_noise) to be the exact denoiser of y = x0 + s eps."""

    event_shape = (2,)

    def forward(self, x, c_noise):
        s = torch.exp(4 * c_noise)[:, None]
        norm = torch.sqrt(s**2 + SIGMA_DATA**2)
        y = x * norm
        denoised = LAW.diffused(y, torch.ones_like(s), s).data()
        return (denoised - SIGMA_DATA**2 / norm**2 * y) / (s * SIGMA_DATA / norm)


WRAPPERS = {
    "noise": lambda sde: sd.NoisePrediction(sde, Oracle(sde, lambda d, e, a, s: e)),
    "data": lambda sde: sd.DataPrediction(sde, Oracle(sde, lambda d, e, a, s: d)),
    "velocity": lambda sde: sd.VelocityPrediction(sde, Oracle(sde, lambda d, e, a, s: a * e - s * d)),
    "flow": lambda sde: sd.FlowPrediction(sde, Oracle(sde, lambda d, e, a, s: e - d)),
    "score": lambda sde: sd.ScorePrediction(sde, Oracle(sde, lambda d, e, a, s: -e / s)),
    "preconditioned": lambda sde: sd.Preconditioned(sde, RawOracle(), sigma_data=SIGMA_DATA),
}
KINDS = {
    "noise": sd.NoisePrediction,
    "data": sd.DataPrediction,
    "velocity": sd.VelocityPrediction,
    "flow": sd.FlowPrediction,
    "score": sd.ScorePrediction,
    "preconditioned": lambda sde, net: sd.Preconditioned(sde, net, sigma_data=SIGMA_DATA),
}


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(got, want, tolerance):
    scale = float(want.detach().abs().max()) + 1e-300
    assert got.shape == want.shape and got.dtype == want.dtype
    error = float((got - want).detach().abs().max()) / scale
    assert error <= tolerance, f"relative error {error:.2e}"


def network(seed=0, event_shape=2, **kwargs):
    """A small MLP that says something: its last layer drawn, not zero."""
    torch.manual_seed(seed)
    net = sd.networks.MLP(event_shape, width=16, depth=2, **kwargs)
    nn.init.normal_(net.outward.weight)
    return net


def states(sde, t, n=64):
    """Samples of p_t for times t (n,) or a number."""
    x0, z = LAW.draw(n, torch.Generator().manual_seed(0)), randn(n, 2, seed=1)
    return sde.perturb(x0, t, z)


# ---- forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", WRAPPERS)
def test_every_form_gives_the_exact_score(kind, process):
    sde = PROCESSES[process]
    score, exact = WRAPPERS[kind](sde), sd.ExactScore(sde, LAW)
    lows = sde.t_max * 0.05
    for t in (lows, 0.3 * sde.t_max, 0.9 * sde.t_max, torch.linspace(lows, 0.95 * sde.t_max, 64, dtype=F64)):
        x = states(sde, t)
        close(score(x, t), exact(x, t), 1e-10)
        close(score.noise(x, t), exact.noise(x, t), 1e-10)
        close(score.data(x, t), exact.data(x, t), 1e-10 / float(sde.alpha(sde.t_max * 0.95)))
        data, noise = score.split(x, t)
        close(data, score.data(x, t), 1e-15)
        close(noise, score.noise(x, t), 1e-15)


@pytest.mark.parametrize("kind", ["data", "velocity", "flow", "preconditioned"])
@pytest.mark.parametrize("process", ["RectifiedFlow", "CosineVP"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_where_alpha_is_0_the_data_prediction_is_the_mean_of_the_data(kind, process, per_sample):
    sde, x = PROCESSES[process], randn(64, 2)
    t = torch.ones(64, dtype=F64) if per_sample else 1.0
    score = WRAPPERS[kind](sde)
    if kind == "preconditioned":  # its oracle divides by c_in at a capped noise level, e^10 sigma_d: close, not equal
        close(score.data(x, t), (LAW.weights @ LAW.means).expand(64, 2), 1e-3)
    else:
        close(score.data(x, t), (LAW.weights @ LAW.means).expand(64, 2), 1e-12)
    close(score.noise(x, t), x, 1e-12)
    close(score(x, t), -x, 1e-12)


@pytest.mark.parametrize("kind", ["noise", "score"])
@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0], dtype=F64)])
def test_where_alpha_is_0_a_noise_or_score_prediction_says_that_it_knows_no_data(kind, t):
    score = WRAPPERS[kind](sd.RectifiedFlow())
    with pytest.raises(ValueError, match=r"alpha\(t\) = 0.*Use DataPrediction"):
        score.data(randn(2, 2), t)
    close(score(randn(2, 2), 1.0), -randn(2, 2), 1e-12)


@pytest.mark.parametrize("process", ["VP", "VE", "EDM", "RectifiedFlow", "CosineVP"])
@pytest.mark.parametrize("kind", ["noise", "data", "velocity", "flow", "preconditioned"])
def test_where_sigma_is_0_the_data_prediction_is_the_state(kind, process):
    x = randn(64, 2)
    close(WRAPPERS[kind](PROCESSES[process]).data(x, 0.0), x, 1e-12)


def test_a_flow_prediction_is_the_velocity_of_the_rectified_flow():
    sde = sd.RectifiedFlow()
    net = network().double()
    flow = sde.probability_flow(sd.FlowPrediction(sde, net))
    x = randn(8, 2)
    for t in (0.01, 0.5, 1.0):
        close(flow.drift(x, t), net(x, torch.full((8,), t, dtype=F64)).detach(), 1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_preconditioning_gives_the_network_inputs_and_targets_of_unit_variance(process):
    """For x0 of standard deviation sigma_d: the input is a_1 x0/sigma_d + a_2 eps with |a| = 1, the target likewise b,
    and a · b = 0, so that F has nothing to learn from the second moments."""
    sde = PROCESSES[process]

    class Probe(nn.Module):
        def forward(self, x, t):
            self.x, self.t = x, t
            return torch.full_like(x, self.value)

    probe = Probe()
    score = sd.Preconditioned(sde, probe, sigma_data=SIGMA_DATA)
    for t in (0.01 * sde.t_max, 0.5 * sde.t_max, 0.99 * sde.t_max):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x = torch.stack([alpha * SIGMA_DATA, sigma])[:, None]  # (x0, eps) = (sigma_d, 0) and (0, 1)
        probe.value = 0.0
        skip = score.data(x, t)
        a = probe.x
        probe.value = 1.0
        b = (torch.tensor([[SIGMA_DATA], [0.0]], dtype=F64) - skip) / (score.data(x, t) - skip)
        assert float(a.square().sum()) == pytest.approx(1, abs=1e-12)
        assert float(b.square().sum()) == pytest.approx(1, abs=1e-12)
        assert float((a * b).sum()) == pytest.approx(0, abs=1e-12)
        assert float(probe.t[0]) == pytest.approx(0.25 * math.log(float(sigma / alpha)), abs=1e-12)


# ---- what a network is given ----------------------------------------------------------------------------------


class Spy(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.seen = []

    def forward(self, *args):
        self.seen.append(args)
        return self.weight * torch.ones_like(args[0])


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 1, 4, 4)])
@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.full((5,), 0.25), "column"])
def test_a_network_is_given_times_of_shape_b(shape, t):
    spy = Spy()
    if isinstance(t, str):
        t = torch.full((5, *[1] * (len(shape) - 1)), 0.25)
    sd.NoisePrediction(sd.VP(), spy)(randn(*shape, dtype=torch.float32), t)
    ((x, seen),) = spy.seen
    assert x.shape == shape and seen.shape == (5,) and seen.dtype == torch.float32 and bool((seen == 0.25).all())


def test_a_condition_arrives_as_it_was_given_and_only_then():
    spy, x = Spy(), randn(3, 2, dtype=torch.float32)
    score = sd.NoisePrediction(sd.VP(), spy)
    cond = torch.tensor([[1, 2], [3, 4], [5, 6]])
    score(x, 0.5)
    score.data(x, 0.5, cond)
    score(x, 0.5, cond={"any": "thing"})
    assert [len(args) for args in spy.seen] == [2, 3, 3]
    assert spy.seen[1][2] is cond and spy.seen[2][2] == {"any": "thing"}


def test_a_network_in_half_precision_has_a_schedule_in_float32_and_sees_every_time():
    spy, x = Spy(torch.bfloat16), randn(1001, 2, dtype=torch.float32)
    sde = sd.VP()
    score = sd.NoisePrediction(sde, spy)
    t = torch.linspace(1e-3, 1, 1001)
    got = score(x, t)
    close(got.double(), (-1 / sde.sigma(t.double()))[:, None].expand(1001, 2), 2e-7)
    close(score.data(x, 0.5), ((x - float(sde.sigma(0.5))) / float(sde.alpha(0.5))), 3e-7)
    assert spy.seen[0][0].dtype == torch.bfloat16 and len(spy.seen[0][1].unique()) == 1001
    assert score.dtype == torch.float32  # for states


def test_states_in_half_precision_get_their_schedule_in_float32():
    x, t = randn(512, 2).bfloat16(), torch.linspace(1e-3, 1, 512)
    sde = sd.VP()
    spy = Spy(torch.bfloat16)
    got = sd.NoisePrediction(sde, spy).data(x, t)
    assert spy.seen[0][1].dtype == torch.float32 and len(spy.seen[0][1].unique()) == 512
    want = (x.float() - sde.sigma(t)[:, None]) / sde.alpha(t)[:, None]
    assert got.dtype == torch.bfloat16 and torch.equal(got, want.bfloat16())


def test_autocast_reaches_the_network_and_not_the_schedule():
    sde, x = sd.VP(), randn(16, 2, dtype=torch.float32)
    score, t = sd.VelocityPrediction(sde, network()), torch.linspace(0.1, 0.9, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p, got = score.net(x, t), score.data(x, t)
    assert p.dtype == torch.bfloat16
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    close(got, (alpha * x - sigma * p.float()) / (alpha**2 + sigma**2), 1e-6)


@pytest.mark.parametrize("embedding", [sd.networks.Sinusoidal(), sd.networks.Fourier()])
def test_embedding_frequencies_survive_half_precision(embedding):
    t = torch.linspace(0, 80, 100)
    before = embedding(t)
    assert torch.equal(embedding.to(torch.bfloat16)(t), before)
    assert torch.equal(network(embedding=embedding).half().embedding(t), before)


def test_a_network_of_the_wrong_shape_is_named():
    class Summed(nn.Module):
        def forward(self, x, t):
            return x.sum(-1)

    with pytest.raises(ValueError, match=r"network Summed returned shape \(4,\) for x of shape \(4, 2\)"):
        sd.NoisePrediction(sd.VP(), Summed())(randn(4, 2), 0.5)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"order of the arguments is \(sde, net\)"):
        sd.NoisePrediction(network(), sd.VP())
    with pytest.raises(TypeError, match="FunctionScore"):
        sd.NoisePrediction(sd.VP(), lambda x, t: x)
    with pytest.raises(ValueError, match="sigma_data = -1"):
        sd.Preconditioned(sd.VP(), network(), sigma_data=-1)


# ---- being a module --------------------------------------------------------------------------------------------


def test_a_prediction_is_a_score_and_a_module():
    net = network()
    score = sd.VelocityPrediction(sd.VP(), net)
    assert isinstance(score, sd.Score) and isinstance(score, nn.Module)
    assert list(score.state_dict()) == [f"net.{name}" for name in net.state_dict()]
    assert {id(p) for p in score.parameters()} == {id(p) for p in net.parameters()}
    assert score.event_shape == (2,) and score.dtype == torch.float32 and score.device == torch.device("cpu")
    x = randn(4, 2, dtype=torch.float32)
    assert torch.equal(score(x, 0.5), score.forward(x, 0.5))
    assert not score.eval().net.training and score.train().net.training
    twin = copy.deepcopy(score)
    nn.init.zeros_(twin.net.outward.weight)
    assert not torch.equal(twin(x, 0.5), score(x, 0.5))
    assert score.to(torch.float64) is score and score.dtype == F64
    close(score(x.double(), 0.5).detach(), score(x, 0.5).detach().double(), 1e-6)
    assert sd.NoisePrediction(sd.VP(), Spy(), event_shape=[3, 4]).event_shape == (3, 4)


def test_gradients_reach_parameters_and_states():
    score, sde = sd.NoisePrediction(sd.VP(), network().double()), sd.VP()
    x = randn(4, 2).requires_grad_()
    by_score = torch.autograd.grad(score(x, 0.3).sum(), [x, *score.parameters()], allow_unused=True)
    by_hand = torch.autograd.grad(
        (-score.net(x, torch.full((4,), 0.3, dtype=F64)) / sde.sigma(0.3)).sum(), [x, *score.parameters()]
    )
    for got, want in zip(by_score, by_hand, strict=True):
        close(got, want, 1e-12)


# ---- moving to another process -----------------------------------------------------------------------------------

FOUR = ["VP", "VE", "EDM", "RectifiedFlow"]


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("own", FOUR)
def test_a_moved_score_is_the_exact_score_of_the_other_process(kind, own):
    score = WRAPPERS[kind](PROCESSES[own])
    for other in PROCESSES.values():
        moved, exact = score.to(other), sd.ExactScore(other, LAW)
        # Log-SNRs inside the range of every process.
        times = other.time_of(torch.linspace(-1.5, 4, 64, dtype=F64))
        if isinstance(other, sd.CustomVP):  # which ends at log-SNR -1.24
            times = other.time_of(torch.linspace(-1.2, 4, 64, dtype=F64))
        for t in (times, float(times[20])):
            x = states(other, t)
            close(moved(x, t), exact(x, t), 1e-8)
            close(moved.noise(x, t), exact.noise(x, t), 1e-8)
            close(moved.data(x, t), exact.data(x, t), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", FOUR)
@pytest.mark.parametrize("own", FOUR)
def test_there_and_back_is_the_same_score(kind, own, other):
    sde = PROCESSES[own]
    score = KINDS[kind](sde, network().double())
    back = score.to(PROCESSES[other]).to(sde)
    assert isinstance(back, Moved) and back.sde is sde
    t = sde.time_of(torch.linspace(-4, 6, 64, dtype=F64))
    x = states(sde, t)
    with torch.no_grad():
        close(back(x, t), score(x, t), 1e-8)
        close(back.data(x, t), score.data(x, t), 1e-8)
        close(back(x, float(t[9])), score(x, float(t[9])), 1e-8)


@pytest.mark.parametrize("kind", ["data", "velocity", "flow", "preconditioned"])
def test_a_moved_score_is_finite_at_both_ends_where_its_form_is(kind):
    score, x = WRAPPERS[kind](sd.CosineVP()), randn(8, 2)
    moved = score.to(sd.RectifiedFlow())
    close(moved(x, 1.0), -x, 1e-10)
    close(moved.data(x, 0.0), x, 1e-10)


def test_a_moved_score_refuses_what_its_network_never_saw():
    score = sd.VelocityPrediction(sd.VP(), network().double()).to(sd.RectifiedFlow())
    x = randn(2, 2)
    with pytest.raises(ValueError, match=r"log-SNR -inf at t = 1; .* own VP. Stay between t = 0 and 0.993") as error:
        score(x, 1.0)
    with pytest.raises(ValueError, match="log-SNR -inf at t = 1"):
        score(x, torch.tensor([0.5, 1.0], dtype=F64))
    last = float(str(error.value).rsplit(" ", 1)[1].rstrip("."))
    score(x, last - 1e-3)
    with pytest.raises(TypeError, match="moves to a LinearSDE"):
        Moved(score, 3.0)
    with pytest.raises(ValueError, match="belongs to no process"):
        sd.FunctionScore(lambda x, t: -x).to(sd.VP())


def test_an_exact_score_moves_exactly_and_to_means_device_or_process():
    moved = sd.ExactScore(sd.VP(), LAW).to(sd.EDM())
    assert isinstance(moved, sd.ExactScore) and isinstance(moved.sde, sd.EDM) and moved.density is LAW
    function = sd.FunctionScore(sd.ExactScore(sd.VP(), LAW), sd.VP()).to(sd.EDM())
    x = states(sd.EDM(), 3.0)
    close(function(x, 3.0), moved(x, 3.0), 1e-8)


def test_a_moved_score_keeps_dtype_count_and_condition():
    score = sd.VelocityPrediction(sd.VP(), network(classes=3))
    moved, x, cond = score.to(sd.EDM()), randn(4, 2, dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    with counting.count() as tally:
        got = moved(x, torch.full((4,), 0.7, dtype=F64), cond)
    assert got.dtype == torch.float32 and (tally.calls, tally.rows) == (1, 4)
    assert not torch.equal(got, moved(x, 0.7))
    seen = []
    plain = sd.FunctionScore(lambda x, t: seen.append(x.dtype) or -x, sd.VP()).to(sd.EDM())
    plain(x, torch.full((4,), 0.7, dtype=F64))
    plain(x, 0.7)
    assert seen == [torch.float32] * 2
    t = 1.3
    first = moved(x, t)
    with torch.no_grad():
        assert torch.equal(moved(x, t), first)  # the remembered time
    steps = [view(x) for view in moved.along(torch.tensor([1.3, 0.5], dtype=F64))]
    assert torch.equal(steps[0], first)


# ---- guidance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_linear_in_the_noise_and_commutes_with_a_move(kind):
    score = KINDS[kind](sd.VP(), network(classes=3).double())
    x, t, cond = randn(4, 2), 0.4, torch.tensor([0, 1, 2, 0])
    guided = sd.ClassifierFree(score, 2.5, score.net.null)
    with torch.no_grad():
        free, bound = score.noise(x, t), score.noise(x, t, cond)
        assert float((free - bound).abs().max()) > 1e-3  # or the test would see nothing
        close(guided.noise(x, t, cond), free + 2.5 * (bound - free), 1e-10)
        u, y = 1.2, randn(4, 2, seed=5)
        first = sd.ClassifierFree(score.to(sd.EDM()), 2.5, score.net.null)
        close(first(y, u, cond), guided.to(sd.EDM())(y, u, cond), 1e-10)


def test_the_null_label_is_what_no_label_means():
    score, x = sd.NoisePrediction(sd.VP(), network(classes=3)), randn(4, 2, dtype=torch.float32)
    assert torch.equal(score(x, 0.4), score(x, 0.4, score.net.null.expand(4)))


@pytest.mark.parametrize("wrap", [lambda net: sd.NoisePrediction(sd.VP(), net), sd.training.ScoreNetwork])
def test_states_and_times_reach_a_network_in_one_dtype(wrap):
    """A network that puts x and t side by side serves float64 states too."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, t):
            assert t.shape == (len(x),)
            return self.layer(torch.cat([x, t[:, None]], 1))

    score, x = wrap(Beside()), torch.randn(5, 2, dtype=F64)
    for t in (0.3, torch.full((5,), 0.3, dtype=F64)):
        got = score(x, t)
        assert got.dtype == F64 and torch.allclose(got, score(x.float(), 0.3).double(), atol=1e-6)
