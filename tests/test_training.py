"""Training: the loss against its formula and its minimiser, the loop against exact scores, checkpoints against damage.

The statistical tests here (thresholds on trained networks apart) state their level: 1e-7 each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats
from torch import nn

import sdediff as sd
from sdediff import training as tr
from sdediff.data import check_data
from sdediff.training.describe import describe, rebuild
from sdediff.training.order import Order, split
from sdediff.training.tensors import digest, write_tensors

F64 = torch.float64
SIGMA_DATA = 0.8
KINDS = {
    "noise": sd.NoisePrediction,
    "data": sd.DataPrediction,
    "velocity": sd.VelocityPrediction,
    "flow": sd.FlowPrediction,
    "score": sd.ScorePrediction,
    "preconditioned": lambda sde, net, **kw: sd.Preconditioned(sde, net, sigma_data=SIGMA_DATA, **kw),
}
PROCESSES = {
    "VP": sd.VP(),
    "SubVP": sd.SubVP(),
    "VE": sd.VE(),
    "EDM": sd.EDM(),
    "CosineVP": sd.CosineVP(),
    "RectifiedFlow": sd.RectifiedFlow(),
    "OU": sd.OU(),
    "CustomVP": sd.CustomVP(lambda t: 1 + t),
}
WEIGHTINGS = {
    "simple": tr.Simple(),
    "noise": tr.NoiseError(),
    "data": tr.DataError(),
    "likelihood": tr.Likelihood(),
    "min-SNR": tr.MinSNR(5.0),
    "karras": tr.Karras(SIGMA_DATA),
}


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed=0, event_shape=2, **kwargs):
    torch.manual_seed(seed)
    net = sd.networks.MLP(event_shape, **{"width": 16, "depth": 2, **kwargs})
    nn.init.normal_(net.outward.weight)
    return net


class Told(nn.Module):
    """A network that predicts a noise of its own, z + shift(t), in the form that ``target`` writes of (x0, eps)."""

    def __init__(self, sde, target, noise):
        super().__init__()
        self.sde, self.target, self.noise = sde, target, noise

    def forward(self, x, t):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return self.target((x - sigma * self.noise) / alpha, self.noise, alpha, sigma)


class ToldRaw(nn.Module):
    """The same for a preconditioned network, from EDM's formulas in the variance-exploding frame."""

    def __init__(self, sde, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x, c_noise):
        s = torch.exp(4 * c_noise)[:, None]
        norm = torch.sqrt(s**2 + SIGMA_DATA**2)
        y = x * norm
        return (y - s * self.noise - SIGMA_DATA**2 / norm**2 * y) / (s * SIGMA_DATA / norm)


def told(kind, sde, noise):
    targets = {
        "noise": lambda d, e, a, s: e,
        "data": lambda d, e, a, s: d,
        "velocity": lambda d, e, a, s: a * e - s * d,
        "flow": lambda d, e, a, s: e - d,
        "score": lambda d, e, a, s: -e / s,
    }
    if kind == "preconditioned":
        return KINDS[kind](sde, ToldRaw(sde, noise))
    return KINDS[kind](sde, Told(sde, targets[kind], noise))


# ---- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["VP", "VE", "EDM", "RectifiedFlow", "SubVP"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_weighting_means_the_same_loss_for_every_form(weighting, process):
    """All six wrappers around one and the same noise prediction, against the formula of each weighting by hand."""
    sde = PROCESSES[process]
    x0, z, guess = randn(32, 2, seed=1), randn(32, 2, seed=2), randn(32, 2, seed=3)
    t = sde.t_max * torch.linspace(0.05, 0.9, 32, dtype=F64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    by_noise = (z - guess).square().mean(1)
    by_data = by_noise * sigma**2 / alpha**2
    g = sde.diffusion_coefficient(t)
    want = {
        "noise": by_noise,
        "data": by_data,
        "likelihood": g**2 * by_noise / sigma**2,
        "min-SNR": torch.minimum(alpha**2 / sigma**2, torch.tensor(5.0)) * by_data,
        "karras": ((sigma / alpha) ** 2 + SIGMA_DATA**2) / (sigma / alpha * SIGMA_DATA) ** 2 * by_data,
    }
    simple = {
        "noise": by_noise,
        "data": by_data,
        "velocity": (alpha + sigma**2 / alpha) ** 2 * by_noise,
        "flow": (1 + sigma / alpha) ** 2 * by_noise,
        "score": by_noise / sigma**2,
        "preconditioned": by_data,
    }
    for kind in KINDS:
        loss = tr.DenoisingLoss(told(kind, sde, guess), WEIGHTINGS[weighting]).at(x0, t, z)
        expected = simple[kind] if weighting == "simple" else want[weighting]
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_an_infinite_weight_is_named_with_its_time():
    """Of an error that is 0 there: their product would be NaN."""
    score = sd.Preconditioned(sd.EDM(), network(), sigma_data=0.5)
    loss, x0 = tr.DenoisingLoss(score, tr.Karras(0.5)), randn(3, 2)
    assert bool(loss.at(x0, torch.tensor([0.1, 0.002, 1.0]), randn(3, 2)).isfinite().all())
    for t in (torch.tensor([0.1, 0.0, 1.0]), torch.tensor(0.0)):
        with pytest.raises(ValueError, match=r"weight of the loss at t = 0 is not finite.* t_min = 0.002"):
            loss.at(x0, t, randn(3, 2))


def test_the_loss_is_its_formula_on_its_own_draws():
    """Times from strata, then noise, then dropped labels, all from one generator."""
    sde, x0 = sd.VP(), randn(64, 3, seed=1)
    score = sd.VelocityPrediction(sde, network(event_shape=3, classes=4).double())
    cond = torch.arange(64) % 4
    loss = tr.DenoisingLoss(score, drop_cond=0.3)
    got = loss.per_sample(x0, cond, generator=torch.Generator().manual_seed(7))
    g = torch.Generator().manual_seed(7)
    u = (torch.rand(64, generator=g, dtype=F64) + torch.arange(64)) / 64
    z = torch.randn(64, 3, generator=g, dtype=F64)
    labels = torch.where(torch.rand(64, generator=g, dtype=F64) < 0.3, 4, cond)
    t = sde.t_min + (sde.t_max - sde.t_min) * u
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    error = score.net(alpha * x0 + sigma * z, t, labels) - (alpha * z - sigma * x0)
    torch.testing.assert_close(got, error.square().mean(1), rtol=1e-10, atol=0)
    again = loss(x0, cond, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(again, got.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["noise", "data", "velocity", "flow", "score"])
def test_the_minimiser_is_the_exact_score(kind):
    """x0 ~ N(μ, s²): the least-squares line a x + b at fixed t, expectations by Gauss-Hermite quadrature (exact), must
    give the score -(x - m)/v. Only the network's gradient is used: where it vanishes, the line is the minimiser."""
    mean, std, sde = 0.7, 0.4, sd.VP()
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    x0 = (mean + std * nodes).repeat_interleave(8)[:, None]
    z, w = nodes.repeat(8)[:, None], (weights[:, None] * weights).flatten()

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(2, dtype=F64))

        def forward(self, x, t):
            return self.p[0] * x + self.p[1]

    for t in (0.05, 0.4, 0.9):
        line = Line()
        score = KINDS[kind](sde, line)
        risk = lambda p, s=score, t=t: (  # noqa: E731
            tr.DenoisingLoss(s).at(x0, torch.full((64,), t, dtype=F64), z) * w
        ).sum()
        gradient = torch.autograd.grad(risk(line.p), line.p, create_graph=True)[0]
        hessian = torch.stack([torch.autograd.grad(part, line.p, retain_graph=True)[0] for part in gradient])
        with torch.no_grad():
            line.p -= torch.linalg.solve(hessian, gradient)  # the risk is quadratic: one Newton step
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x = randn(9, 1)
        want = -(x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        torch.testing.assert_close(score(x, t).detach(), want, rtol=1e-9, atol=1e-9)


def test_times_fill_every_stratum_once_and_only_then():
    seen = {}

    class Clock(nn.Module):
        def forward(self, x, t):
            seen["t"] = t
            return x

    score = sd.DataPrediction(sd.OU(t_max=6.0, t_min=1.0), Clock())
    x0, g = torch.zeros(500, 1, dtype=F64), torch.Generator().manual_seed(0)
    tr.DenoisingLoss(score)(x0, generator=g)
    place = (seen["t"] - 1.0) / 5.0 * 500
    assert torch.equal(place.floor().long(), torch.arange(500))
    assert stats.kstest((place % 1).numpy(), "uniform").pvalue > 1e-7
    tr.DenoisingLoss(score, stratified=False)(x0, generator=g)
    place = (seen["t"] - 1.0) / 5.0 * 500
    assert len(place.floor().unique()) < 400  # 1 - 1/e of 500 by chance; 400 would be 10 standard deviations off
    assert stats.kstest((place / 500).numpy(), "uniform").pvalue > 1e-7


def test_laws_of_time_have_the_stated_quantiles():
    u = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    for sde in (sd.VP(), sd.EDM(), sd.RectifiedFlow()):
        t = tr.LogNormal(-0.5, 0.7)(sde, u)
        ratio = torch.log(sde.sigma(t) / sde.alpha(t))
        want = -0.5 + 0.7 * torch.tensor(stats.norm.ppf(u))
        torch.testing.assert_close(ratio, want, rtol=1e-9, atol=1e-9)
    ends = tr.LogNormal(0.0, 100.0)(sd.EDM(), torch.tensor([0.0, 1e-3, 1 - 1e-3], dtype=F64))
    assert ends.tolist() == [0.002, 0.002, 80.0]
    assert tr.Uniform(0.2, 0.6)(sd.VP(), u).tolist() == pytest.approx([0.24, 0.4, 0.56])
    with pytest.raises(ValueError, match=r"from 0.001 to 2.0 do not lie in \[0, 1\]"):
        tr.Uniform(t_max=2.0)(sd.VP(), u)


def test_conditions_are_dropped_at_the_stated_rate_and_as_a_whole():
    seen = {}

    class Listener(nn.Module):
        def forward(self, x, t, cond):
            seen["cond"] = cond
            return x

    score = sd.DataPrediction(sd.VP(), Listener())
    x0, cond = torch.zeros(20_000, 1), randn(20_000, 3, dtype=torch.float32)
    null = torch.tensor([9.0, 8.0, 7.0])
    tr.DenoisingLoss(score, drop_cond=0.1, null=null)(x0, cond, generator=torch.Generator().manual_seed(0))
    dropped = (seen["cond"] == null).all(1)
    assert torch.equal(seen["cond"][~dropped], cond[~dropped])
    # Exact binomial test; at n = 20,000 it sees rates outside 0.1 ± 0.015 with probability 0.99.
    assert stats.binomtest(int(dropped.sum()), 20_000, 0.1).pvalue > 1e-7
    with pytest.raises(ValueError, match="give null="):
        tr.DenoisingLoss(score, drop_cond=0.1)
    with pytest.raises(ValueError, match="drop_cond = 2"):
        tr.DenoisingLoss(score, drop_cond=2, null=null)
    with pytest.raises(TypeError, match="needs a score such as NoisePrediction"):
        tr.DenoisingLoss(Listener())
    with pytest.raises(ValueError, match="not trained"):
        exact = sd.ExactScore(sd.VP(), sd.densities.Mixture([[0.0]], std=1.0))
        tr.DenoisingLoss(exact)(x0)


def test_a_loss_in_half_precision_has_its_times_and_noise_in_float32():
    class Clock(nn.Module):
        def forward(self, x, t):
            self.x, self.t = x, t
            return x

    clock = Clock()
    tr.DenoisingLoss(sd.DataPrediction(sd.VP(), clock))(torch.zeros(4096, 1).bfloat16())
    assert clock.t.dtype == torch.float32 and float(clock.t.max()) <= 1
    within = (clock.t.double() - 1e-3) / 0.999 * 4096 % 1  # the place in each stratum: in bfloat16 one of 256
    assert len((2000 * within).round().unique()) > 800
    noise = clock.x[:, 0] / sd.VP().sigma(clock.t)
    assert len((1000 * noise).round().unique()) > 1500  # bfloat16 has 256 numbers in each of [1, 2), [2, 4), ...


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process", ["VP", "EDM", "RectifiedFlow"])
def test_no_tensor_leaves_the_device(kind, process):
    """On the meta device a tensor of another device, or a look at a value, raises. Every weighting and law of times."""
    sde = PROCESSES[process]
    score = KINDS[kind](sde, sd.networks.MLP((1, 2, 3), width=8, depth=1, classes=3)).to("meta")
    x0, cond = torch.empty(4, 1, 2, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    losses = [tr.DenoisingLoss(score, weighting, drop_cond=0.1) for weighting in WEIGHTINGS.values()]
    for loss in (*losses, tr.DenoisingLoss(score, times=tr.LogNormal())):
        score.zero_grad()
        loss(x0, cond).backward()
        used = [p for name, p in score.named_parameters() if "label" not in name]
        assert all(p.grad.device.type == "meta" for p in used)
    with torch.no_grad():
        for t in (0.5, torch.empty(4, device="meta")):
            for view in (score, score.noise, score.data, score.to(sd.EDM())):
                assert view(x0, t, cond).device.type == "meta"


# ---- networks ----------------------------------------------------------------------------------------------------


def test_a_fresh_mlp_predicts_0_and_learns_from_everything():
    net = sd.networks.MLP((2, 3), width=16, depth=2, classes=4)
    x, t, y = randn(5, 2, 3, dtype=torch.float32), torch.linspace(0.1, 0.9, 5), torch.tensor([0, 1, 2, 3, 4])
    assert torch.equal(net(x, t, y), torch.zeros(5, 2, 3))
    net = network(event_shape=(2, 3), classes=4)
    net(x, t, y).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in net.parameters())
    base = net(x, t, y)
    for other in (net(x + 0.1, t, y), net(x, t + 0.1, y), net(x, t, (y + 1) % 5)):
        assert bool(((other - base).flatten(1).abs().amax(1) > 1e-4).all())  # each sample sees x, t and its label
    torch.testing.assert_close(net(x[2:3], t[2:3], y[2:3]), base[2:3], rtol=1e-5, atol=1e-5)
    assert sd.networks.MLP((), width=8)(randn(5, dtype=torch.float32), t).shape == (5,)


def test_mlp_refusals_say_the_cure():
    net, x, t = network(classes=4), torch.zeros(5, 2), torch.zeros(5)
    with pytest.raises(ValueError, match="one integer label per sample"):
        net(x, t, torch.zeros(5))
    with pytest.raises(ValueError, match="run from 0 to 5; this MLP knows 0 to 4, where 4 means no class"):
        net(x, t, torch.tensor([0, 1, 2, 3, 5]))
    with pytest.raises(ValueError, match="classes=K"):
        network()(x, t, torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(5, 3\)"):
        net(torch.zeros(5, 3), t)
    with pytest.raises(ValueError, match="must be positive"):
        sd.networks.MLP(2, depth=0)
    with pytest.raises(ValueError, match="even"):
        sd.networks.Fourier(7)


def test_embeddings_are_their_formulas_and_tell_times_apart_on_every_clock():
    t = torch.tensor([0.0, 0.002, 0.3, 1.0, 10.0, 80.0, -1.5], dtype=F64)
    wave = sd.networks.Sinusoidal(8, lowest=1.0, highest=8.0, unit=0.1)
    phase = torch.asinh(t / 0.1)[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)
    torch.testing.assert_close(wave(t), torch.cat([phase.sin(), phase.cos()], 1), rtol=1e-6, atol=1e-6)
    random = sd.networks.Fourier(2000, std=3.0, seed=1)
    assert stats.kstest(random.omega.numpy() / 3.0, "norm").pvalue > 1e-7
    assert not torch.equal(sd.networks.Fourier(2000, std=3.0, seed=2).omega, random.omega)
    # Two times that differ by 2 % (or by 0.002 below 0.1) are at least 0.1 apart in features of norm √(dim/2).
    for embedding in (sd.networks.Sinusoidal(), sd.networks.Fourier()):
        s = torch.logspace(-3, math.log10(80), 400, dtype=F64)
        apart = (embedding(s + torch.maximum(0.02 * s, torch.tensor(0.002))) - embedding(s)).norm(dim=1)
        assert float(apart.min()) > 0.1


# ---- averaging and the loop ------------------------------------------------------------------------------------------


def test_averaged_weights_by_hand():
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.zeros(()))
    model.weight.data.fill_(5.0)
    ema = tr.averaged(model, decay=0.5)
    want = 5.0
    for n, value in enumerate([3.0, 1.0, 2.0, -3.0, 8.0, 4.0, 0.5]):
        model.weight.data.fill_(value)
        model.count.fill_(n)
        ema.update_parameters(model)
        gamma = 0.0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        want = gamma * want + (1 - gamma) * value
        assert ema.module.weight.item() == pytest.approx(want, rel=1e-6)
        assert float(ema.module.count) == n
    with pytest.raises(ValueError, match="1"):
        tr.averaged(model, decay=1.0)


RING = sd.densities.ring(6, 1.3, 0.25)
LINE = sd.densities.Mixture([[-1.0], [0.8]], std=[0.25, 0.15], weights=[0.4, 0.6])


@pytest.mark.parametrize(
    ("law", "make", "loss", "steps"),
    [
        (LINE, lambda net: sd.NoisePrediction(sd.VP(), net), None, 500),
        (RING, lambda net: sd.VelocityPrediction(sd.CosineVP(), net), None, 600),
        (
            RING,
            lambda net: sd.Preconditioned(sd.EDM(), net, sigma_data=1.0),
            lambda s: tr.DenoisingLoss(s, tr.Karras(1.0), tr.LogNormal(-0.5, 1.2)),
            600,
        ),
    ],
    ids=["line", "ring", "ring-EDM"],
)
def test_a_short_training_comes_close_to_the_exact_score(law, make, loss, steps):
    """The root mean square error of the noise prediction, beside its own root mean square of 0.4 to 1."""
    torch.manual_seed(0)
    score = make(sd.networks.MLP(law.event_shape, width=64, depth=2))
    loss = None if loss is None else loss(score)
    got = tr.fit(score, law.sample(8000, seed=0), loss=loss, steps=steps, lr=4e-3, ema=0.99, seed=0, progress=False)
    sde = score.sde
    exact = sd.ExactScore(sde, law)
    for log_snr, most in ((2.0, 0.15), (0.0, 0.08), (-2.0, 0.05), (-5.0, 0.04)):
        t = float(sde.time_of(log_snr))
        x = exact.sample(2000, t, seed=1)
        with torch.no_grad():
            error = (got.score.noise(x, t) - exact.noise(x, t)).square().mean().sqrt()
        assert float(error) < most, f"log-SNR {log_snr}: {float(error):.3f}"
    assert got.losses.shape == (steps,) and got.held_out[-1][0] == steps
    loss = tr.DenoisingLoss(got.score) if loss is None else dataclasses.replace(loss, score=got.score)
    with torch.no_grad():
        fresh = loss(law.sample(20_000, seed=9), generator=torch.Generator().manual_seed(9))
    assert got.held_out[-1][1] == pytest.approx(float(fresh), rel=0.15)  # 950 draws, of relative spread about 1
    assert not got.score.training and got.score is not score


def quick(score=None, data=None, **kwargs):
    score = sd.NoisePrediction(sd.VP(), network()) if score is None else score
    data = RING.sample(200, seed=0) if data is None else data
    return tr.fit(score, data, **{"steps": 5, "batch_size": 16, "progress": False, "seed": 0, **kwargs})


def test_a_seed_repeats_a_training_whatever_the_global_state():
    scores = [sd.NoisePrediction(sd.VP(), network()) for _ in range(3)]
    torch.manual_seed(1)
    first = quick(scores[0])
    torch.manual_seed(2)
    again, other = quick(scores[1]), quick(scores[2], seed=1)
    assert torch.equal(first.losses, again.losses) and first.held_out == again.held_out
    assert not torch.equal(first.losses, other.losses)
    for a, b in zip(first.score.parameters(), again.score.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_rate_rises_and_falls_and_gradients_are_clipped():
    """Adam's first update is the rate itself; the later ones are bounded by about the rate."""
    score = sd.NoisePrediction(sd.VP(), network())
    moves, norms = [], []
    before = [p.detach().clone() for p in score.parameters()]

    def watch(step, loss):
        nonlocal before
        after = [p.detach().clone() for p in score.parameters()]
        moves.append(max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)))
        norms.append(float(torch.stack([p.grad.norm() for p in score.parameters()]).norm()))
        before = after

    quick(score, steps=40, warmup=10, lr=1e-2, clip=0.05, callback=watch)
    rates = [1e-2 * min(1, (k + 1) / 10) * 0.5 * (1 + math.cos(math.pi * k / 40)) for k in range(40)]
    assert moves[0] == pytest.approx(rates[0], rel=1e-2)
    assert all(move < 4 * rate for move, rate in zip(moves, rates, strict=True)) and moves[-1] < 0.01 * max(moves)
    assert max(norms) == pytest.approx(0.05, rel=1e-4)


def test_batches_go_through_the_data_evenly_and_are_full():
    rows = torch.tensor([3, 5, 8, 13, 21])
    order = Order(rows, 7, seed=0)
    seen = torch.stack([order.at(k) for k in range(15)])  # 105 = 21 permutations of 5
    assert seen.shape == (15, 7)
    assert all(sorted(part) == rows.tolist() for part in seen.flatten().reshape(21, 5).tolist())
    assert len({tuple(part) for part in seen.flatten().reshape(21, 5).tolist()}) > 10
    assert all(torch.equal(Order(rows, 7, seed=0).at(k), seen[k]) for k in (14, 3, 8))  # whatever was asked before
    assert not torch.equal(torch.stack([Order(rows, 7, seed=1).at(k) for k in range(15)]), seen)
    train, kept = split(50, 0.2, seed=0)
    assert len(kept) == 10 and sorted([*train.tolist(), *kept.tolist()]) == list(range(50))
    assert len(split(1, 0.9, seed=0)[0]) == 1


def test_held_out_data_are_never_trained_on_and_measured_alike_each_time():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))
            self.trained, self.examined = set(), set()

        def __deepcopy__(self, memo):
            twin = Reader()
            twin.trained, twin.examined = self.trained, self.examined
            return twin

        def forward(self, x, t):
            (self.trained if self.training else self.examined).update(x.round().long().flatten().tolist())
            return self.scale * x

    net = Reader()
    score = sd.DataPrediction(sd.EDM(), net)
    loss = tr.DenoisingLoss(score, times=tr.Uniform(1e-6, 2e-6))  # hardly any noise: x is x0
    data = torch.arange(100.0)[:, None]
    got = quick(score, data, loss=loss, steps=200, batch_size=32, held_out=0.2, lr=1e-9)
    assert len(net.examined) == 20 and not net.trained & net.examined
    assert net.trained | net.examined == set(range(100))
    values = [value for _, value in got.held_out]
    want = float(np.mean([n**2 for n in net.examined]))
    assert values == pytest.approx([want] * 20, rel=1e-4)  # the weights hardly move: the same number each time
    assert quick(score, data, loss=loss, held_out=0.0).held_out == ()


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_a_training_that_diverges_keeps_the_last_good_weights(kind):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.calls = 0

        def forward(self, x, t):
            out = self.net(x, t)
            if self.training:
                self.calls += 1
                if self.calls == 4:
                    # Infinite, or finite with an infinite gradient: d sqrt(u) at u = 0.
                    return out / 0.0 if kind == "value" else out + (out - out.detach()).sqrt()
            return out

    score = sd.NoisePrediction(sd.VP(), Mine())
    weights = []
    with pytest.raises(tr.TrainingError, match=r"stopped at step 3: .* step before had loss") as error:
        quick(
            score,
            held_out=0,
            ema=0.0,
            callback=lambda step, loss: weights.append([p.detach().clone() for p in score.parameters()]),
        )
    reached = error.value.fit
    assert len(reached.losses) == 3 and bool(reached.losses.isfinite().all())
    for now, average, last in zip(score.parameters(), reached.score.parameters(), weights[2], strict=True):
        assert torch.equal(now, last)
        torch.testing.assert_close(average, last)


def test_ctrl_c_returns_what_is_reached():
    def stop(step, loss):
        if step == 2:
            raise KeyboardInterrupt

    assert len(quick(callback=stop).losses) == 3


def test_what_cannot_be_trained_on_is_said_before_the_first_step():
    good = RING.sample(50, seed=0)
    bad = good.clone()
    bad[3, 1] = math.nan
    score = sd.NoisePrediction(sd.VP(), network(classes=3))
    for data, cond, message in (
        (bad, None, r"NaN or infinite entries in 1 of 50 samples \(first: \[3\]\)"),
        (good.long(), None, r"data.float\(\)"),
        (good[:0], None, "batch is empty"),
        (good.to_sparse(), None, r"data are a sparse tensor \(torch.sparse_coo\): use data.to_dense"),
        (good, torch.zeros(50, dtype=torch.long).to_sparse(), "cond are a sparse tensor"),
        (good, torch.zeros(49, dtype=torch.long), r"cond has shape \(49,\) for 50 samples"),
        (good, [0] * 50, "cond must be a tensor"),
        (good[:, :1], None, "shape .*1.*MLP was made for"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            quick(score, data, cond=cond)
    for kwargs, message in (
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": -1}, "batch_size = -1"),
        ({"held_out": 1.0}, "held_out = 1.0"),
        ({"ema": 1.5}, "1.5"),
        ({"loss": tr.DenoisingLoss(sd.NoisePrediction(sd.VP(), network()))}, "another score"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(score, good, **kwargs)
    bare = tr.ScoreNetwork(network())
    for loss in (tr.ImplicitLoss(bare), tr.SlicedLoss(bare)):
        with pytest.raises(TypeError, match=r"Loss does not take them: it needs a DenoisingLoss.*docs/nonlinear.md"):
            quick(bare, good, loss=loss)
    with pytest.raises(TypeError, match="fit trains a network score"):
        quick(sd.ExactScore(sd.VP(), RING))
    with pytest.raises(ValueError, match="nothing to train"):
        quick(sd.NoisePrediction(sd.VP(), network().requires_grad_(False)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.where(torch.arange(2000) == 1900, 7, 0), "Labels run from 0 to 7; this MLP knows 0 to 3"),
        (torch.where(torch.arange(2000) == 1900, -1, 0), "Labels run from -1 to 0"),
        (torch.zeros(2000), "one integer label per sample.*torch.float32"),
        (torch.zeros(2000, dtype=torch.uint8), "one integer label per sample.*torch.uint8"),
        (torch.zeros(2000, dtype=torch.bool), "one integer label per sample.*torch.bool"),
        (torch.zeros(2000, 1, dtype=torch.long), r"one integer label per sample.*\(2000, 1\)"),
    ],
)
def test_labels_are_all_looked_at_before_the_first_step(labels, message, tmp_path):
    score = sd.NoisePrediction(sd.VP(), network(classes=3))
    with pytest.raises(ValueError, match=message):
        tr.Trainer(score, RING.sample(2000, seed=0), tr.Plan(), cond=labels, folder=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_classes_that_never_occur_are_named():
    """Labels 5, 15, 25 are 26 classes to a network; "no class" is none of them, and need not occur."""
    data, seen = RING.sample(60, seed=0), torch.tensor([5, 15, 25]).repeat(20)
    score = sd.NoisePrediction(sd.VP(), network(classes=26))
    with pytest.warns(
        UserWarning, match=r"23 of the network's 26 classes never occur in cond \(0, 1, 2, 3, 4, 6, .*\.\.\."
    ) as all_:
        tr.Trainer(score, data, cond=seen)
    assert [w.filename for w in all_] == [__file__]
    dense = seen.unique(return_inverse=True)[1]
    with pytest.warns(UserWarning, match=r"1 of the network's 3 classes never occur in cond \(1\)"):
        tr.Trainer(sd.NoisePrediction(sd.VP(), network(classes=3)), data, cond=torch.where(dense == 1, 3, dense).int())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tr.Trainer(sd.NoisePrediction(sd.VP(), network(classes=3)), data, cond=dense)
        tr.Trainer(sd.NoisePrediction(sd.VP(), network(classes=3)), data)


def test_data_of_another_shape_are_told_before_the_first_step():
    data = RING.sample(50, seed=0)
    with pytest.raises(ValueError, match=r"takes no condition: make it with MLP\(..., classes=K\)"):
        tr.Trainer(sd.NoisePrediction(sd.VP(), network()), data, cond=torch.zeros(50, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x has shape \(50, 2\); this MLP was made for \(B, \*\(3,\)\)"):
        tr.Trainer(sd.NoisePrediction(sd.VP(), network(event_shape=3)), data)
    with pytest.raises(ValueError, match=r"data have shape \(50, 2\); this score was made for \(N, \*\(3,\)\)"):
        tr.Trainer(sd.NoisePrediction(sd.VP(), Odd(), event_shape=(3,)), data)


def test_constant_coordinates_are_named():
    data = randn(20, 2, 3)
    data[:, 1, 0] = 4.0
    with pytest.warns(UserWarning, match=r"1 of 6 coordinates .* never change \(flattened: 3\)"):
        check_data(data)


def test_conditions_reach_their_own_samples():
    """Class k lives at k: the loss of a network that answers with its label is 0 only if labels follow the shuffling."""

    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(1))

        def forward(self, x, t, cond):
            return cond[:, None].float() + self.zero

    labels = torch.arange(60) % 6
    got = quick(sd.DataPrediction(sd.VP(), Echo()), labels[:, None].float(), cond=labels, held_out=0.3)
    assert float(got.losses.max()) < 1e-3 and max(value for _, value in got.held_out) < 1e-3


# ---- standardisation ---------------------------------------------------------------------------------------------------


def test_standardisation_there_and_back():
    x = randn(500, 3) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, 0.0, -1e5])
    x[:, 1] = 7.0
    there = sd.Standardisation.fit(x)
    z = there.apply(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0], dtype=F64), rtol=1e-10, atol=0)
    torch.testing.assert_close(there.undo(z), x, rtol=1e-12, atol=0)
    assert (
        float(there.std[1]) == 1
        and bool((there.undo(z)[:, 1] == 7.0).all())
        and there.apply(x.float()).dtype == torch.float32
    )
    image = sd.Standardisation.fit(randn(50, 2, 4) * 3 + 1, shared=True)
    assert image.mean.shape == () and 2.5 < float(image.std) < 3.5
    with pytest.raises(ValueError, match="NaN"):
        sd.Standardisation.fit(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="std positive"):
        sd.Standardisation(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="must agree"):
        sd.Standardisation(torch.zeros(2), torch.ones(3))


# ---- checkpoints -------------------------------------------------------------------------------------------------------


def same_state(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "CustomVP"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_back_the_very_same(kind, process, tmp_path):
    embedding = sd.networks.Fourier(32, std=2.0, unit=0.3, seed=5)
    net = network(event_shape=(2, 3), classes=4, embedding=embedding).to(torch.bfloat16 if process == "VE" else None)
    score = KINDS[kind](PROCESSES[process], net)
    there = sd.Standardisation.fit(randn(20, 2, 3))
    path = tmp_path / "a.safetensors"
    tr.save(path, score, there)
    state = torch.get_rng_state()
    got = tr.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    same_state(got.score, score)
    assert type(got.score) is type(score) and type(got.score.sde) is type(score.sde)
    assert vars(got.score.sde) == {k: v for k, v in vars(score.sde).items() if k in vars(got.score.sde)}
    assert got.score.event_shape == (2, 3) and got.score.dtype == score.dtype and not got.score.training
    assert torch.equal(got.standardisation.mean, there.mean) and torch.equal(got.standardisation.std, there.std)
    x, cond = randn(5, 2, 3, dtype=torch.float32), torch.arange(5)
    assert torch.equal(got.score(x, 0.3, cond), score(x, 0.3, cond))
    got.score(x, 0.3, cond).sum().backward()  # still trainable
    assert list(tmp_path.iterdir()) == [path]


def test_constructor_arguments_survive(tmp_path):
    sde = sd.VP(beta_min=0.2, beta_max=13.0, t_max=2.0, t_min=0.03)
    tr.save(tmp_path / "a", sd.Preconditioned(sde, Odd(), sigma_data=0.3, event_shape=(7,)))
    got = tr.load(tmp_path / "a", net=Odd()).score
    assert (got.sde.beta_min, got.sde.beta_max, got.sde.t_max, got.sde.t_min) == (0.2, 13.0, 2.0, 0.03)
    assert got.sigma_data == 0.3 and got.event_shape == (7,)
    assert tr.load(tmp_path / "a", net=Odd()).standardisation is None


class Odd(nn.Module):
    """A network of one's own."""

    def __init__(self, width=3):
        super().__init__()
        self.width = width
        self.w = nn.Parameter(torch.arange(float(width)))

    def forward(self, x, t):
        return x * self.w.sum()


def test_what_a_file_cannot_rebuild_is_given_again(tmp_path):
    path = tmp_path / "a.safetensors"
    tr.save(path, sd.NoisePrediction(sd.CustomVP(lambda t: 1 + t), network()))
    with pytest.raises(ValueError, match=r"cannot rebuild the sde: a function .*pass it, load\(path, sde="):
        tr.load(path)
    assert float(tr.load(path, sde=sd.CustomVP(lambda t: 1 + t)).score.sde.beta(torch.tensor(1.0))) == 2.0
    tr.save(path, sd.NoisePrediction(sd.VP(), Odd()))
    with pytest.raises(ValueError, match=r"Only classes of sdediff .*pass it, load\(path, net="):
        tr.load(path)
    mine = Odd()
    with torch.no_grad():
        mine.w.zero_()
    got = tr.load(path, net=mine)
    assert got.score.net is mine and mine.w.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"do not fit this network: net.w has shape \(3,\), the network's \(4,\)"):
        tr.load(path, net=Odd(4))
    with pytest.raises(ValueError, match=r"missing \['net.blocks.*unknown \['net.w'\]"):
        tr.load(path, net=network())


@pytest.mark.parametrize(
    "chain",
    [
        sd.ddpm.Chain(sd.ddpm.cosine(200)),
        sd.ddpm.Chain([0.3]),
        sd.ddpm.Chain.from_process(sd.VE(), 50),
        sd.ddpm.Chain(sd.ddpm.linear(100)).subset([10, 50, 100]),
    ],
)
def test_the_process_of_a_chain_is_in_the_file(chain, tmp_path):
    sde, t = chain.process, torch.linspace(0, chain.process.t_max, 33, dtype=F64)
    tr.save(tmp_path / "a", sd.NoisePrediction(sde, network()))
    got = tr.load(tmp_path / "a").score.sde
    assert type(got) is type(sde) and (got.t_min, got.t_max) == (sde.t_min, sde.t_max)
    for name in ("log_alpha", "variance", "diffusion_coefficient"):
        assert torch.equal(getattr(got, name)(t[1:]), getattr(sde, name)(t[1:]))


@pytest.mark.parametrize("depth", [700, 100_000])
def test_a_description_without_end_is_told(depth, tmp_path):
    """Deeper than Python recurses when it builds, or when it reads."""
    said, path = "[" * depth + "]" * depth, tmp_path / "a"
    whole = digest(json.loads(said), {}) if depth < 900 else ""
    about = f'{{"format": 1, "digest": "{whole}", "score": {said}}}'
    path.write_bytes(safetensors.torch.save({}, metadata={"sdediff": about}))
    with pytest.raises(ValueError, match=r"is damaged|describes a list"):
        tr.load(path)


class Drifting(sd.SDE):
    """An SDE of one's own, found to be linear."""

    t_min = 0.01

    def f(self, x, t):
        return -x

    def g(self, x, t):
        return 1.0


class Twisted(Drifting):
    """One whose coordinates are coupled."""

    def f(self, x, t):
        return -x + 0.5 * x.flip(1) * torch.tensor([1.0, -1.0], dtype=x.dtype)


@pytest.mark.parametrize("sde", [Drifting(), Twisted()])
def test_a_process_of_ones_own_is_asked_for_by_its_name(sde, tmp_path):
    score = sd.NoisePrediction(sde, network())
    tr.save(tmp_path / "a", score)
    with pytest.raises(
        ValueError, match=rf"The file names {__name__}:{type(sde).__name__} for its sde.*pass it, load\(path, sde="
    ):
        tr.load(tmp_path / "a")
    x = randn(4, 2).float()
    assert torch.equal(tr.load(tmp_path / "a", sde=type(sde)()).score(x, 0.5), score(x, 0.5))


def tampered(path, change):
    """The file at ``path`` with its JSON changed, and a digest to match, as an attacker would."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["sdediff"])
    change(about)
    if "digest" in about and "score" in about:
        about["digest"] = digest(about["score"], tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"sdediff": json.dumps(about)}))


@pytest.mark.parametrize(
    "name",
    [
        "canary:Trap",
        "sdediff.training.describe:importlib",
        "sdediff.checks:check_state",
        "sdediff.none:Such",
        "sdediff.predictions:Tensor",
        "sdediff.__main__:main",
        "sdediff.predictions:Networked.predict",
    ],
)
def test_a_file_chooses_no_code(name, tmp_path, monkeypatch):
    """Nor does it choose which modules are imported: ``sdediff.__main__`` is a command."""
    (tmp_path / "canary.py").write_text("import torch\nclass Trap(torch.nn.Module): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sdediff.__main__", raising=False)
    monkeypatch.setattr(sys, "argv", ["sdediff", "--version"])
    path = tmp_path / "a.safetensors"
    tr.save(path, sd.NoisePrediction(sd.VP(), network()))
    tampered(path, lambda about: about["score"]["args"]["net"].update({"class": name}))
    with pytest.raises(ValueError, match=r"Only classes of|not to be trusted|has no"):
        tr.load(path)
    assert "canary" not in sys.modules and "sdediff.__main__" not in sys.modules


def test_the_module_of_the_command_can_be_imported():
    runpy.run_module("sdediff.__main__", run_name="imported")  # would end in SystemExit


@pytest.mark.parametrize(
    "said",
    [
        {"class": "sdediff.predictions:NoisePrediction"},
        {"class": "sdediff.predictions:NoisePrediction", "args": [1]},
        {"class": 3, "args": {}},
        {"args": {}},
        {"class": "sdediff.ddpm.process:Preserving", "args": {"sde": "VP"}},
        {"class": "sdediff.ddpm.process:Preserving", "args": {"sde": {}}},
        {"class": "sdediff.networks.mlp:MLP", "args": {"event_shape": {"obstacle": "x"}}},
    ],
)
def test_a_description_of_another_shape_is_told(said, tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, "score", said, {})
    with pytest.raises(ValueError, match=r"damaged, or save did not write it|does not accept the arguments"):
        tr.load(path)


def test_a_class_that_moved_within_the_package_is_found_at_its_old_place():
    """Files of before the split of ``nonlinear`` name its classes there."""
    said = describe(sd.CIR(kappa=2.0))
    assert said["class"] == "sdediff.nonlinear.processes:CIR"
    again = rebuild(said | {"class": "sdediff.nonlinear:CIR"}, {})
    assert vars(again) == vars(sd.CIR(kappa=2.0))


def test_damage_is_seen_wherever_it_is(tmp_path):
    path, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tr.save(path, sd.NoisePrediction(sd.VP(), network()), sd.Standardisation(torch.zeros(2), torch.ones(2)))
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 100, len(content) // 2, len(content) - 1]:
        broken.write_bytes(content[:length])
        with pytest.raises(ValueError, match="truncated, damaged or no safetensors file"):
            tr.load(broken)
    header = 8 + int.from_bytes(content[:8], "little")
    for place in [
        *range(0, header, 7),
        *range(header, len(content), len(content) // 40),
        content.index(b"beta_min") + 12,
    ]:
        flipped = bytearray(content)
        flipped[place] ^= 1
        broken.write_bytes(bytes(flipped))
        if flipped[place] in b" !":  # the header is padded with blanks
            continue
        with pytest.raises(ValueError):
            tr.load(broken)
    broken.write_bytes(b"PK\x03\x04 a zip with a pickle in it" * 10)
    with pytest.raises(ValueError, match="no safetensors file"):
        tr.load(broken)
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        tr.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        tr.save(tmp_path / "none" / "a", sd.NoisePrediction(sd.VP(), network()))
    with pytest.raises(TypeError, match="save takes a network score"):
        tr.save(path, sd.ExactScore(sd.VP(), RING))


def test_files_of_another_kind_or_version_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="says nothing of a score"):
        tr.load(path)
    score = sd.NoisePrediction(sd.VP(), network())
    for change, message in (
        (lambda about: about.update(format=99), "has format 99; this version of sdediff reads 1"),
        (lambda about: about.pop("score"), "lacks its score"),
        (lambda about: about.pop("digest"), "lacks its digest"),
        (lambda about: about["score"]["args"]["net"]["args"].update(widths=3), "does not accept the arguments"),
        (lambda about: about["score"]["args"]["net"]["args"].update(width=32), "do not fit"),
        (lambda about: about["score"].update({"class": "sdediff.processes:VP", "args": {}}), "no network score"),
    ):
        tr.save(path, score)
        tampered(path, change)
        with pytest.raises(ValueError, match=message):
            tr.load(path)


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_crash_while_saving_leaves_the_old_file(call, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    tr.save(path, sd.NoisePrediction(sd.VP(), network(0)))
    old = path.read_bytes()

    def crash(*_):
        raise OSError("no space left")

    monkeypatch.setattr(call, crash)
    with pytest.raises(OSError, match="no space"):
        tr.save(path, sd.NoisePrediction(sd.VP(), network(1)))
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_results_are_plain_and_frozen():
    got = quick()
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.seconds = 0.0


def test_the_example_trains_saves_loads_and_samples(tmp_path, capsys):
    script = Path(__file__).parents[1] / "examples" / "train_and_sample.py"
    out = tmp_path / "new" / "picture.png"
    errors, distances = runpy.run_path(str(script))["main"](n=500, steps=300, out=str(out))
    assert errors[-4.0] < errors[-2.0] < 0.05 and errors[0.0] < 0.3  # a fraction of the noise; 1 is knowing nothing
    assert set(distances) == {"noise floor", "Euler-Maruyama", "DDIM", "DPM-Solver++ 2M"}
    assert max(distances.values()) < 0.03  # samples of N(0, I) are 0.06 away
    assert "wrote" in capsys.readouterr().out and out.stat().st_size > 10_000
    assert tr.load(tmp_path / "new" / "score.safetensors").score.event_shape == (2,)


# ---- objectives -------------------------------------------------------------------------------------------------------


class Shifted(sd.Score):
    """A score with a known error: the exact one times a number, plus a constant."""

    def __init__(self, exact, factor, shift):
        self.exact, self.factor, self.shift = exact, factor, shift
        self.sde, self.event_shape = exact.sde, exact.event_shape

    def predict(self, x, t, cond):
        return self.factor * self.exact(x, t) + self.shift


@pytest.mark.parametrize("process", ["VP", "VE", "SubVP"])
def test_denoising_and_score_matching_differ_by_a_constant(process):
    r"""E|s - ∇log p_t(x_t|x_0)|² - E|s - ∇log p_t(x_t)|² is the same for every s, in closed form: for x_0 ~ N(m, v) it is
    1/σ² - 1/(α²v + σ²). Expectations over (x_0, ε) by Gauss-Hermite quadrature, exact for these s, which are linear."""
    sde, mean, var = PROCESSES[process], 0.7, 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    nodes, w = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    x0 = (mean + math.sqrt(var) * nodes).repeat_interleave(6)[:, None]
    z, w = nodes.repeat(6)[:, None], (w[:, None] * w).flatten()
    exact = sd.ExactScore(sde, sd.densities.Mixture(torch.tensor([[mean]], dtype=F64), std=math.sqrt(var)))
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        x = alpha * x0 + sigma * z
        times = torch.full((36,), t, dtype=F64)
        gaps = []
        for factor, shift in ((1.0, 0.0), (1.3, 0.0), (0.4, -2.0), (0.0, 0.0), (-1.0, 5.0)):
            score = Shifted(exact, factor, shift)
            denoising = (w * tr.DenoisingLoss(score).at(x0, times, z)).sum()
            matching = (w * (score(x, t) - exact(x, t)).square()[:, 0]).sum()
            assert (float(matching) > 1e-6) == (factor != 1.0)
            gaps.append(float(denoising - matching))
        want = 1 / sigma**2 - 1 / (alpha**2 * var + sigma**2)
        assert gaps == pytest.approx([want] * 5, rel=1e-7)


@pytest.mark.parametrize("process", ["VP", "VE", "EDM", "SubVP", "OU"])
def test_importance_sampled_times_keep_the_loss_and_lower_its_variance(process):
    """Integrals over the quantile u by Gauss-Legendre quadrature in the log-SNR: the likelihood-weighted loss is the same
    under both laws, and with importance sampling it is constant where the noise error is."""
    sde = PROCESSES[process]
    guess, z = randn(1, 2, seed=3).expand(300, 2), randn(1, 2, seed=2).expand(300, 2)
    score = told("noise", sde, guess)
    nodes, weights = np.polynomial.legendre.leggauss(300)
    u, w = torch.tensor(0.5 * nodes + 0.5), torch.tensor(0.5 * weights)
    x0 = randn(1, 2, seed=1).expand(300, 2)

    def moments(times):
        t = times(sde, u)
        loss = tr.DenoisingLoss(score, tr.Likelihood(), times).at(x0, t, z)
        mean = float((w * loss).sum())
        return mean, float((w * (loss - mean) ** 2).sum())

    low, high = float(sde.log_snr(sde.t_max)), float(sde.log_snr(sde.t_min))
    error = float((z - guess).square().mean())
    want = error * (high - low) / (sde.t_max - sde.t_min)  # the integral of g²/σ² is the fall of the log-SNR
    mean, variance = moments(tr.Importance())
    assert mean == pytest.approx(want, rel=1e-6) and variance < 1e-6 * want**2
    t = tr.Importance()(sde, u)
    torch.testing.assert_close(sde.log_snr(t), high + (low - high) * u, rtol=1e-7, atol=1e-7)
    assert bool((t.diff() > 0).all()) and float(t[0]) >= sde.t_min
    with pytest.raises(ValueError, match=r"The log-SNR is .*finite ends"):
        tr.Importance()(sd.RectifiedFlow(), u)


def test_weights_of_a_law_of_times_reach_the_loss():
    class Doubled(tr.Uniform):
        def weight(self, sde, t):
            return 2.0

    x0, t, z = randn(8, 2), torch.linspace(0.1, 0.9, 8, dtype=F64), randn(8, 2, seed=1)
    score = sd.NoisePrediction(sd.VP(), network().double())
    plain, doubled = tr.DenoisingLoss(score), tr.DenoisingLoss(score, times=Doubled())
    torch.testing.assert_close(doubled.at(x0, t, z), 2 * plain.at(x0, t, z))


def test_optimal_transport_pairs_are_the_nearest_of_all_permutations():
    import itertools

    x0, noise = randn(6, 2, 2, seed=4), randn(6, 2, 2, seed=5)
    paired = tr.OptimalTransport()(x0, noise)
    cost = lambda z: float((x0 - z).square().sum())  # noqa: E731
    assert cost(paired) == pytest.approx(min(cost(noise[list(p)]) for p in itertools.permutations(range(6))), rel=1e-6)
    assert sorted(paired.flatten().tolist()) == sorted(noise.flatten().tolist()) and not torch.equal(paired, noise)


def test_flow_matching_with_optimal_transport_gives_a_straighter_flow_to_the_same_law():
    """The same short training with and without: both flows reach the data, and the paths of the paired one are straighter.

    Two Gaussians in the plane. Thresholds are for trained networks, at one seed.
    """
    law = sd.densities.Mixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), std=0.3)
    data, sde = law.sample(4000, seed=0), sd.RectifiedFlow()
    bends, energies = {}, {}
    for name, pairing in (("independent", None), ("paired", tr.OptimalTransport())):
        torch.manual_seed(0)
        score = sd.FlowPrediction(sde, sd.networks.MLP(2, width=32, depth=2))
        loss = tr.DenoisingLoss(score, pairing=pairing)
        fit = tr.fit(score, data, loss=loss, steps=200, batch_size=64, lr=4e-3, ema=0.98, seed=0, progress=False)
        flow, z = sde.probability_flow(fit.score), randn(1000, 2, dtype=torch.float32)
        fine = sd.solve(flow, z, solver=sd.Heun(), t0=1.0, t1=1e-3, steps=30).x
        with torch.no_grad():
            one = z - 0.999 * fit.score.split(z, 1.0)[1].sub(fit.score.split(z, 1.0)[0])  # a single Euler step
        bends[name] = float((fine - one).square().mean().sqrt())
        energies[name] = sd.metrics.energy_distance(fine, law.sample(1000, seed=1))
    assert bends["paired"] < 0.5 * bends["independent"]
    assert max(energies.values()) < 0.05  # N(0, I) is 0.9 away


# ---- scales and pretrained folders ------------------------------------------------------------------------------------


def test_scales_of_data_by_hand():
    x = torch.tensor([[0.0, 0.0], [0.3, 0.4], [3.0, 4.0], [0.3, 0.4]], dtype=F64)
    scales = sd.Scales.of(x)
    assert scales.sigma_data == pytest.approx(float(((x - x.mean()) ** 2).mean().sqrt()))
    assert scales.sigma_max == pytest.approx(5.0)
    # Nearest others: 0.5, 0 (a repeat, left out), 4.5, 0 (likewise): their median, the lower of the two, over √2.
    assert scales.sigma_min == pytest.approx(0.1 * 0.5 / math.sqrt(2))
    for sde in (sd.VP(), sd.EDM()):
        first, last = scales.times(sde)
        ratio = lambda t, sde=sde: float(sde.sigma(t) / sde.alpha(t))  # noqa: E731
        assert ratio(first) == pytest.approx(scales.sigma_min, rel=1e-6)
        assert ratio(last) == pytest.approx(5.0, rel=1e-6)
        tr.Uniform(first, last)(sde, torch.tensor([0.5], dtype=F64))
    with pytest.raises(ValueError, match="at least two"):
        sd.Scales.of(x[:1])
    with pytest.raises(ValueError, match="All samples are equal"):
        sd.Scales.of(torch.ones(4, 2))
    with pytest.raises(ValueError, match="NaN"):
        sd.Scales.of(torch.full((4, 2), math.nan))


def pretrained(folder):
    score = sd.Preconditioned(sd.VP(), sd.networks.UNet((4, 4), channels=(8,), blocks=1, classes=3), sigma_data=0.7)
    there = sd.Standardisation(torch.tensor(2.0, dtype=F64), torch.tensor(0.1, dtype=F64))
    tr.save_pretrained(folder, score, there, sd.Scales(0.7, 1 / 3, 9.0))
    return score, there


def test_a_pretrained_folder_gives_back_the_very_same(tmp_path):
    score, there = pretrained(tmp_path / "new" / "folder")
    got = tr.from_pretrained(tmp_path / "new" / "folder")
    same_state(got.score, score)
    assert got.standardisation.std == there.std and got.scales == sd.Scales(0.7, 1 / 3, 9.0)
    assert got.score.net.channels == (8,) and got.score.sigma_data == 0.7
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config["score"]["args"]["net"]["args"]["classes"] == 3 and len(config["sha256"]) == 64
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    same_state(tr.load(tmp_path / "new" / "folder" / "model.safetensors").score, score)


def test_damage_to_a_pretrained_folder_is_told(tmp_path):
    pretrained(tmp_path)
    model, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content, about = model.read_bytes(), config.read_text()
    for change in (content[:-50], content[:-1] + bytes([content[-1] ^ 1]), b"\x80\x04K\x01."):
        model.write_bytes(change)
        with pytest.raises(ValueError, match="SHA-256 differs"):
            tr.from_pretrained(tmp_path)
    model.write_bytes(content)
    for change, message in (
        (about[:100], "config.json is damaged"),
        (about.replace('"format": 1', '"format": 7'), "has format 7"),
        ("[]", "has format None"),
        (about.replace('"beta_max": 20.0', '"beta_max": 21.0'), "describes another score"),
    ):
        config.write_text(change)
        with pytest.raises(ValueError, match=message):
            tr.from_pretrained(tmp_path)
    config.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileNotFoundError, match=r"has no config.json. \(Pickled weights, .bin or .pt, are never read"):
        tr.from_pretrained(tmp_path)
