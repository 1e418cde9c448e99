"""Score matching without a kernel: the loss against the error that it stands for, and a law reversed with what was learned."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

import sdediff as sd
from sdediff.training import ImplicitLoss, Paths, ScoreNetwork, SlicedLoss

D = sd.densities
LEVEL = 1e-7
"""False-alarm rate of one statistical check; this file makes fewer than 10."""


class Bend(sd.Score):
    """A score with parameters, wrong in a smooth way, and twice differentiable."""

    def __init__(self, by: float = 0.3):
        self.by = torch.tensor(by, dtype=torch.float64, requires_grad=True)

    def predict(self, x, t, cond):
        return -x + self.by * torch.sin(x.flip(1) + t) * (1 + x)


class Turned(sd.SDE):
    """Matrix noise that depends on the state."""

    def f(self, x, t):
        return -x

    def g(self, x, t):
        a, b = x.unbind(1)
        return sd.Dense(torch.stack([torch.stack([1 + 0 * a, 0.3 * b], 1), torch.stack([0.5 * a, 1 + b * b], 1)], 1))


def field(sde, score, x, t):
    s = score(x, t)
    return s if sde is None else sde.diffusion(x, t).gram(s)


@pytest.mark.parametrize("sde", [None, Turned()], ids=["plain", "matrix"])
def test_the_loss_by_hand(sde):
    """½ s'Ds + ∇·(Ds) with the divergence by central differences."""
    score, t = Bend(), 0.4
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = 0.5 * (score(x, t) * field(sde, score, x, t)).sum(1)
        for i in range(2):
            h = torch.zeros_like(x)
            h[:, i] = 1e-5
            expected += ((field(sde, score, x + h, t) - field(sde, score, x - h, t)) / 2e-5)[:, i]
    assert torch.allclose(ImplicitLoss(score, sde).per_sample(x, t), expected, atol=1e-8)
    with torch.no_grad():  # as on held-out data
        assert torch.allclose(ImplicitLoss(score, sde)(x, torch.full((6,), t)), expected.mean(), atol=1e-7)


@pytest.mark.parametrize("sde", [None, sd.Jacobi(2.0, 3.0)], ids=["on the line", "between walls"])
def test_the_loss_is_the_error_up_to_a_constant(sde):
    """E[loss] - ½E|s - ∇log p|²_D is the same for every s, by quadrature to 1e-6; between walls only with the weight D."""
    if sde is None:
        law = D.Mixture(torch.tensor([[-0.5], [1.0]]), std=0.6).to(dtype=torch.float64)
        x = torch.linspace(-6, 7, 20_001, dtype=torch.float64)[:, None]
    else:
        law = sde.invariant((1,))
        x = torch.linspace(1e-4, 1 - 1e-4, 20_001, dtype=torch.float64)[:, None]
    p = law.log_prob(x).exp()
    p = p / p.sum()
    constants, unweighted = [], []
    for by in (0.0, 0.5, -2.0):
        score = Bend(by)
        error = score(x, 0.2) - law.score(x)
        weighted = error if sde is None else sde.diffusion(x, 0.2).gram(error)
        error = 0.5 * (error * weighted).sum(1)
        constants.append(float((p * (ImplicitLoss(score, sde).per_sample(x, 0.2) - error)).sum()))
        unweighted.append(float((p * ImplicitLoss(score).per_sample(x, 0.2)).sum()))
    assert max(constants) - min(constants) < 1e-6
    assert max(unweighted) - min(unweighted) > 0.1  # the error is not what agrees by itself


def test_slices_are_unbiased():
    """4,000 probes of each sample: z-tests of their means at LEVEL."""
    score = Bend()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = ImplicitLoss(score, Turned()).per_sample(x, 0.4).detach()
    loss, generator = SlicedLoss(score, Turned(), probes=4), torch.Generator().manual_seed(2)
    draws = loss.per_sample(x.repeat(1000, 1), 0.4, generator=generator).detach().reshape(1000, 4)
    z = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(1000))
    assert float(draws.std(0).min()) > 0  # else nothing is tested
    assert float(z.abs().max()) < stats.norm.isf(LEVEL / 8)
    one = SlicedLoss(score, Turned())
    first, again = (one(x, 0.4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_gradients_are_those_of_the_error():
    """The gradient in the parameter, over a quadrature of p, is that of ½E|s - ∇log p|², for both losses."""
    law = D.Mixture(torch.tensor([[-0.5], [1.0]]), std=0.6).to(dtype=torch.float64)
    x = torch.linspace(-6, 7, 4001, dtype=torch.float64)[:, None]
    p = law.log_prob(x).exp()
    p = p / p.sum()
    score = Bend(0.7)
    (wanted,) = torch.autograd.grad((p * 0.5 * (score(x, 0.2) - law.score(x)).square().sum(1)).sum(), score.by)
    for loss in (ImplicitLoss(score), SlicedLoss(score)):  # in one dimension a Rademacher probe is exact
        (found,) = torch.autograd.grad((p * loss.per_sample(x, 0.2)).sum(), score.by)
        assert abs(float(found - wanted)) < 1e-6 * abs(float(wanted))


# ---- paths --------------------------------------------------------------------------------------------------------


def test_paths_have_the_law_of_the_process():
    """OU from one point: at each kept time the states are Gaussian with the known mean and variance, z-tests at LEVEL."""
    sde, n = sd.OU(), 20_000
    x0 = torch.full((n, 1), 2.0, dtype=torch.float64)
    paths = Paths.simulate(sde, x0, solver=sd.ExactTransition(), times=5, steps=3, t_min=0.5, seed=0)
    assert len(paths.ts) == 5 and float(paths.ts[0]) >= 0.5
    strata = (paths.ts - 0.5) / (sde.t_max - 0.5) * 5
    assert strata.floor().tolist() == [0, 1, 2, 3, 4]
    for t, x in zip(paths.ts.tolist(), paths.xs, strict=True):
        law = sde.marginal(x0[:1], t)
        z = (float(x.mean()) - float(law.mean)) / (float(law.std) / math.sqrt(n))
        assert abs(z) < stats.norm.isf(LEVEL / 20)
    again = Paths.simulate(sde, x0, solver=sd.ExactTransition(), times=5, steps=3, t_min=0.5, seed=0)
    assert torch.equal(paths.xs, again.xs)


def test_draws_pair_states_with_their_times():
    ts = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    xs = (ts[:, None] * 1000 + torch.arange(50)).reshape(3, 50, 1)
    x, t = Paths(ts, xs).draw(4000, generator=torch.Generator().manual_seed(0))
    number = x[:, 0] - t * 1000
    assert bool(((number - number.round()).abs() < 1e-9).all()) and set(number.round().int().tolist()) == set(range(50))
    counts = torch.stack([(t == u).sum() for u in ts])
    assert stats.chisquare(counts.numpy()).pvalue > LEVEL


# ---- networks -----------------------------------------------------------------------------------------------------


def test_a_network_adds_to_its_base():
    net = sd.networks.MLP(1, width=8, depth=1)
    nn.init.normal_(net.outward.weight)
    sde = sd.Jacobi(2.0, 3.0)
    score, plain = ScoreNetwork(net, sde.invariant((1,))), ScoreNetwork(net)
    x = torch.rand(5, 1)
    t = torch.rand(5)
    assert torch.allclose(score(x, t), plain(x, t) + sde.invariant((1,)).score(x), atol=1e-5)
    assert torch.allclose(plain(x, 0.3), net(x, torch.full((5,), 0.3)))
    assert score.event_shape == (1,) and score(x.double(), 0.3).dtype == torch.float64
    assert len(list(score.parameters())) == len(list(net.parameters()))


class Small(nn.Module):
    """A network that knows how scores grow as t falls."""

    event_shape = (1,)

    def __init__(self, width: int = 48):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x, t):
        t = t[:, None]
        return 4 * self.layers(torch.cat([4 * x - 2, (2 * x - 1) / t.sqrt(), t.log(), t], 1)) / t.sqrt()


def trained(sde, paths, steps):
    torch.manual_seed(0)
    score = ScoreNetwork(Small(), sde.invariant((1,)))
    loss, generator = ImplicitLoss(score, sde), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(score.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(*paths.draw(1024, generator=generator)).backward()
        nn.utils.clip_grad_norm_(score.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return score.eval()


def test_a_jacobi_process_reversed_with_a_learned_score():
    """Data at 0.25 and 0.8 under a Jacobi process, known as simulated paths alone.

    Learned by implicit score matching, taken back from the invariant law to t = 0.15, and held against the exact law there
    by the energy distance of 4,000 samples, beside its floor and beside what the score of the invariant law alone would give.
    """
    sde = sd.Jacobi(2.0, 2.0, t_max=1.5)
    points = torch.tensor([[0.25], [0.8]])
    exact = sd.KernelScore(sde, points.double())
    paths = Paths.simulate(
        sde, points.repeat(4000, 1), solver=sd.EulerMaruyama(), times=64, steps=150, t_min=0.08, seed=0
    )
    score = trained(sde, Paths(paths.ts, paths.xs.clamp(1e-4, 1 - 1e-4)), 400)
    base = sde.invariant((1,)).score
    x = exact.sample(4000, 0.2, seed=2)
    weight = sde.diffusion(x, 0.2).gram(torch.ones_like(x))
    error, before = ((weight * (s - exact(x, 0.2)).square()).mean().item() for s in (score(x, 0.2), base(x)))
    assert error < 0.1 * before

    def back(by):
        sol = sd.sample(sde.reverse(by), 4000, solver=sd.EulerMaruyama(), steps=100, t1=0.15, seed=3, event_shape=(1,))
        return stats.energy_distance(sol.x[:, 0].numpy(), reference)

    reference = exact.sample(4000, 0.15, seed=4)[:, 0].numpy()
    floor = stats.energy_distance(exact.sample(4000, 0.15, seed=5)[:, 0].numpy(), reference)
    learned, ignorant = back(score), back(lambda x, t: base(x))
    assert learned < 5 * floor, (learned, floor)
    assert ignorant > 2 * learned, (learned, ignorant)


class Flat(nn.Module):
    def forward(self, x, t):
        return x[:, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ImplicitLoss(lambda x, t: -x),
            TypeError,
            r"score must be a Score such as ScoreNetwork\(net\), got function",
        ),
        (lambda: ImplicitLoss(Bend(), 3.0), TypeError, "sde must be the SDE whose noise weights the loss, got float"),
        (lambda: SlicedLoss(Bend(), probes=0), ValueError, "probes = 0: ask for a positive whole number"),
        (lambda: ScoreNetwork(lambda x, t: x), TypeError, "net must be a torch.nn.Module, got function"),
        (lambda: ScoreNetwork(nn.Identity(), 3), TypeError, "base must be a density with a score, got int"),
        (lambda: ScoreNetwork(nn.Identity()).to(sd.VP()), TypeError, "learned without a kernel"),
        (lambda: ScoreNetwork(Flat())(torch.ones(3, 1), 0.5), ValueError, r"Flat returned shape \(3,\) for x of shape"),
        (lambda: Paths(torch.ones(2), torch.ones(3, 4, 1)), ValueError, r"must be \(S,\) and \(S, N, \*event\)"),
        (lambda: Paths(torch.ones(1), torch.full((1, 4, 1), math.nan)), ValueError, "NaN"),
        (lambda: Paths(torch.ones(1), torch.ones(1, 4, 1)).draw(0), ValueError, "at least one sample"),
        (
            lambda: Paths.simulate(sd.OU(), torch.ones(3, 1), solver=sd.EulerMaruyama(), t_min=20.0),
            ValueError,
            r"t_min = 20.0 must lie in \[0, 10\)",
        ),
        (
            lambda: Paths.simulate(sd.OU(), torch.ones(3, 1), solver=sd.EulerMaruyama(), times=0),
            ValueError,
            "times = 0",
        ),
        (lambda: ImplicitLoss(Bend())(torch.ones(3, dtype=torch.int64), 0.5), TypeError, "floating-point"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
