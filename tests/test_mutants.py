"""Wrong implementations must be rejected: processes, scores and solvers that differ in one thing from a right one."""

from __future__ import annotations

import pytest
import torch

import sdediff as sd
from sdediff.testing import mutants
from sdediff.testing.mutants.processes import Growing

RING = sd.densities.ring(8).to(dtype=torch.float64)
BLAMED = {
    "f and g": ("kernel",),
    "kernel": ("kernel", "schedule", "transition", "prior"),
    "reversal": ("reverse", "flow", "∇·(GGᵀ)"),
    "contract": ("f", "g"),
}
"""By what a process breaks: how the name of a row that failed must begin."""

# Quick ones of each kind; all of them in the long run.
SOLVERS = {
    "UnscaledNoise", "NoNoise", "NoiselessReverse", "NoisyDDIM", "ExactButForNoise", "MissingLastStep", "BrokenMultistep",
    "UnbalancedMultistep",
}  # fmt: skip


def failed(report):
    return [row.what for row in report.rows if not row.passed]


def test_the_library():
    """Names are unique, each says in a sentence what is wrong, and there are enough of each kind."""
    for kind, least in ((mutants.PROCESSES, 35), (mutants.SCORES, 15), (mutants.SOLVERS, 20)):
        assert len(kind) >= least and len({m.name for m in kind}) == len(kind)
        assert all(m.wrong.endswith(".") and 20 < len(m.wrong) < 160 and str(m) == m.name for m in kind)
    assert {m.breaks for m in mutants.PROCESSES} == set(BLAMED)
    assert {m.name for m in mutants.SOLVERS} >= SOLVERS


def test_what_the_mutants_are_made_from_is_right():
    """One thing is wrong in each: the process that several of them change passes."""
    assert sd.verify.check_sde(Growing(), n=1_000).passed


@pytest.mark.parametrize("mutant", mutants.PROCESSES, ids=str)
def test_wrong_processes_are_rejected(mutant):
    """By a row about what is broken, and with a reason."""
    found = sd.verify.check_sde(mutant.make(), mutant.density(), n=1_000)
    blamed = [row for row in found.rows if not row.passed and row.what.startswith(BLAMED[mutant.breaks])]
    assert blamed and any(row.detail for row in blamed), found


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("UnscheduledVE", "kernel: x_0 at t = 0"),
        ("SinglePrecisionSigma", "schedule: float32 times beside float64"),
        ("MislaidTime", "schedule: time_of inverts log_snr"),
        ("HalvedLogSNR", "schedule: alpha, sigma, log_snr, marginal agree"),
        ("StandardNormalPrior", "prior: the law of x_t at t_max"),
        ("ForgetfulTransition", "transition: composes to the kernel"),
        ("ForgottenHalf", "kernel: its mean moves as f says"),
        ("BatchNorm", "f, g: each sample by itself"),
        ("OneTimeForAll", "f, g: each sample at its own time"),
        ("InPlaceDrift", "f, g: x and t left as they were"),
        ("DropoutDrift", "f, g: the same value twice"),
        ("NegativeRoot", "f, g: finite on the domain"),
        ("DetachedNoise", "f, g: derivatives by autograd"),
        ("SummedDivergence", "∇·(GGᵀ): gram_divergence against differences"),
    ],
)
def test_each_row_has_a_mutant_that_it_rejects(name, what):
    (mutant,) = [m for m in mutants.PROCESSES if m.name == name]
    assert what in failed(sd.verify.check_sde(mutant.make(), n=1_000))


@pytest.mark.parametrize("mutant", mutants.SCORES, ids=str)
def test_wrong_scores_are_rejected(mutant):
    sde = sd.SubVP() if mutant.name == "OneMinusAlphaBar" else sd.VP()
    assert failed(sd.verify.check_score(mutant.make(sde, RING), sde, RING, n=2_000))


def rejects(mutant):
    assert failed(sd.verify.check_solver(mutant.make(), n=1_000))


@pytest.mark.parametrize("mutant", [m for m in mutants.SOLVERS if m.name in SOLVERS], ids=str)
def test_wrong_solvers_are_rejected(mutant):
    rejects(mutant)


def test_wrong_solvers_are_wrong_in_what_they_say():
    """One step by hand, with f = 2x and g = 3: what is divided by what, what is short by how much, what is added."""
    stretched, divided, noisy = (
        next(m.make for m in mutants.SOLVERS if m.name == name)
        for name in ("StretchedStep", "BatchNormStep", "NoisyDDIM")
    )

    class Plain(sd.SDE):
        def f(self, x, t):
            return 2 * x

        def g(self, x, t):
            return 3.0

    def step(process, solver, t0=0.0, t1=0.5):
        return sd.solve(process, x, t0=t0, t1=t1, solver=solver, steps=1, seed=0).x

    x = torch.tensor([[1.0, 0.3], [-2.0, 0.7], [0.5, 1.5]], dtype=torch.float64)
    z = (step(Plain(), sd.EulerMaruyama()) - 2 * x) / (3 * 0.5**0.5)
    part, norm = 0.95 * 0.5, 1 + 0.1 * (2 * x).square().mean().sqrt()
    flow = sd.VP().probability_flow(sd.ExactScore(sd.VP(), RING))
    for found, right in (
        (step(Plain(), stretched()), x + part * 2 * x + part**0.5 * 3 * z),
        (step(Plain(), divided()), x + 0.5 * 2 * x / norm + 0.5**0.5 * 3 * z),
        (step(flow, noisy(), 1.0, 0.6), step(flow, sd.DDIM(), 1.0, 0.6) + 0.3 * 0.4**0.5 * z),
    ):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@pytest.mark.soak
@pytest.mark.parametrize("mutant", [m for m in mutants.SOLVERS if m.name not in SOLVERS], ids=str)
def test_other_wrong_solvers_are_rejected(mutant):
    rejects(mutant)


def test_rejection_by_particles_alone():
    """Where no exact row is looked at, particles still see the coarse ones, with the effect they claim to detect."""
    coarse = {
        "DoubledNoise",
        "ForgottenHalf",
        "DoubledBeta",
        "HalvedScore",
        "UphillScore",
        "NoisyReverse",
        "UnhalvedFlow",
    }
    for mutant in mutants.PROCESSES:
        if mutant.name in coarse:
            rows = [row for row in sd.verify.check_sde(mutant.make(), n=1_000).rows if row.p is not None]
            wrong = [row for row in rows if not row.passed]
            assert wrong and max(abs(row.statistic) / row.detectable for row in wrong) > 0.7, mutant.name
