"""Grids: N + 1 nodes, exact ends, strictly monotone, each against its own formula."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdediff as sd
from sdediff import grids
from sdediff.grids import resolve

FLOW = sd.VP().probability_flow(lambda x, t: -x)


def nodes(process=FLOW, t0=1.0, t1=1e-3, **kwargs) -> list[float]:
    out = resolve(process, t0, t1, **kwargs)
    assert out.dtype == torch.float64 and out.device.type == "cpu"
    return out.tolist()


def test_uniform():
    assert nodes(t0=1.0, t1=0.0, steps=4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert nodes(t0=0.0, t1=1.0, grid=grids.Uniform(4)) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert nodes(steps=1) == [1.0, 1e-3]


def test_dt_shortens_the_last_step():
    assert nodes(t0=1.0, t1=0.0, dt=0.3) == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.0])
    assert nodes(t0=0.2, t1=1.0, dt=5.0) == [0.2, 1.0]
    for count in (3, 7, 10, 49, 100, 1000):  # no sliver of a step from rounding
        assert len(nodes(t0=1.0, t1=0.0, dt=1 / count)) == count + 1
        assert len(nodes(t0=0.0, t1=0.1 * count, dt=0.1)) == count + 1


def test_power():
    got = nodes(t0=0.9, t1=0.1, grid=grids.Power(8, 3.0))
    want = [(0.9 ** (1 / 3) + k / 8 * (0.1 ** (1 / 3) - 0.9 ** (1 / 3))) ** 3 for k in range(9)]
    assert got == pytest.approx(want, rel=1e-13)
    assert nodes(t0=1.0, t1=0.0, grid=grids.Quadratic(4)) == pytest.approx([1, 0.5625, 0.25, 0.0625, 0])


def test_karras_is_the_printed_formula():
    """σ_i = (σ_max^{1/ρ} + i/(N)(σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ on EDM, whose time is σ."""
    edm = sd.EDM()
    got = nodes(edm, 80.0, 0.002, grid=grids.Karras(17))
    want = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert got == pytest.approx(want, rel=1e-9)
    other = nodes(edm, 80.0, 0.002, grid=grids.Karras(17, rho=3.0))
    assert other[5] == pytest.approx((80 ** (1 / 3) + 5 / 17 * (0.002 ** (1 / 3) - 80 ** (1 / 3))) ** 3, rel=1e-9)
    on_vp = nodes(grid=grids.Karras(6))
    levels = torch.exp(-0.5 * sd.VP().log_snr(torch.tensor(on_vp, dtype=torch.float64))) ** (1 / 7)
    assert torch.allclose(levels.diff(), levels.diff()[0].expand(6), rtol=1e-7)


def test_log_snr():
    for process, t0, t1 in ((FLOW, 1.0, 1e-3), (sd.VE(), 1e-5, 1.0), (sd.EDM(), 80.0, 0.002)):
        got = nodes(process, t0, t1, grid=grids.LogSNR(9))
        schedule = getattr(process, "sde", process)
        snr = schedule.log_snr(torch.tensor(got, dtype=torch.float64))
        assert torch.allclose(snr.diff(), (snr[-1] - snr[0]).expand(9) / 9, rtol=1e-7)


def test_grids_where_alpha_vanishes():
    """The first step leads from σ/α = ∞ to ``top``; the others follow the rule from there, N steps in all."""
    flow = sd.RectifiedFlow().probability_flow(lambda x, t: -x)
    for grid, rule in ((grids.LogSNR(6, top=50.0), math.log), (grids.Karras(6, top=50.0), lambda v: v ** (1 / 7))):
        got = nodes(flow, 1.0, 1e-3, grid=grid)
        assert len(got) == 7 and got[0] == 1.0 and got[-1] == 1e-3
        level = [rule(t / (1 - t)) for t in got[1:]]
        assert level[0] == pytest.approx(rule(50.0), rel=1e-9)
        steps = [b - a for a, b in pairwise(level)]
        assert steps == pytest.approx([steps[0]] * 5, rel=1e-7)


def test_custom_nodes():
    assert nodes(grid=[1.0, 0.5, 1e-3]) == [1.0, 0.5, 1e-3]
    single = torch.tensor([1.0, 0.5, 1e-3])  # float32: its ends are within rounding of those asked for, and made exact
    assert nodes(grid=single) == [1.0, 0.5, 1e-3]
    mine = torch.tensor([0.99999999, 0.5, 1e-3], dtype=torch.float64)
    assert nodes(grid=mine)[0] == 1.0
    assert float(mine[0]) == 0.99999999  # the caller's tensor is left alone


def test_a_grid_of_ones_own():
    """A rule may answer with any tensor, which is not changed, in any precision."""
    kept = torch.tensor([0.9, 0.6, 0.1])

    class Mine(grids.Grid):
        def nodes(self, process, t0, t1):
            return kept

    got = resolve(FLOW, 1.0, 0.0, grid=Mine(2))
    assert got.dtype == torch.float64 and got.tolist() == [1.0, pytest.approx(0.6), 0.0]
    assert kept.tolist() == pytest.approx([0.9, 0.6, 0.1])


def test_save_at_adds_nodes():
    got = nodes(t0=1.0, t1=0.0, steps=4, save_at=[0.1, 0.5, 0.8])
    assert got == [1.0, 0.8, 0.75, 0.5, 0.25, 0.1, 0.0]
    third = nodes(t0=0.0, t1=1.0, steps=3, save_at=[0.3333333333333333, 2 / 3])  # nodes already, but for rounding
    assert len(third) == 4 and third[1] == 0.3333333333333333
    ends = nodes(t0=0.0, t1=1.0, steps=2, save_at=[1e-14, 1 - 1e-14, 0.0])
    assert ends == [0.0, 0.5, 1.0]
    single = torch.linspace(1.0, 0.7, 4)  # float32, whose last is below 0.7
    assert float(single[-1]) < 0.7
    assert nodes(t0=1.0, t1=0.7, steps=1, save_at=single) == [1.0, float(single[1]), float(single[2]), 0.7]


GRIDS = {
    "uniform": grids.Uniform,
    "power": lambda n: grids.Power(n, 2.5),
    "quadratic": grids.Quadratic,
    "karras": grids.Karras,
    "log-snr": grids.LogSNR,
}
SDES = [sd.VP(), sd.SubVP(), sd.VE(), sd.EDM(), sd.OU(), sd.CosineVP(), sd.RectifiedFlow()]


@given(
    st.sampled_from(sorted(GRIDS)),
    st.sampled_from(SDES),
    st.integers(1, 300),
    st.floats(1e-4, 0.45),
    st.floats(0.55, 1.0, exclude_max=True),
    st.booleans(),
    st.lists(st.floats(0.0, 1.0), max_size=4),
)
def test_any_grid(name, sde, n, low, high, falling, saves):
    """N + 1 nodes with exact ends, strictly monotone, in the order of the solve; saved times among them, bit for bit."""
    low, high = low * sde.t_max, high * sde.t_max
    t0, t1 = (high, low) if falling else (low, high)
    plain = nodes(sde, t0, t1, grid=GRIDS[name](n))
    assert len(plain) == n + 1 and plain[0] == t0 and plain[-1] == t1
    sign = 1 if t1 > t0 else -1
    assert all(sign * (b - a) > 0 for a, b in pairwise(plain))
    if saves:
        wanted = [low + f * (high - low) for f in saves]
        wanted = [min(max(t, low), high) for t in wanted]
        got = nodes(sde, t0, t1, grid=GRIDS[name](n), save_at=wanted)
        ordinary = [t for t in wanted if min(abs(t - low), abs(t - high)) > 1e-9 * (high - low)]
        assert set(ordinary) <= set(got) and got[0] == t0 and got[-1] == t1
        assert len(got) <= n + 1 + len(set(wanted))


@given(st.floats(1e-4, 2.0), st.floats(0.0, 0.5), st.floats(0.6, 1.0))
def test_any_dt(dt, low, high):
    got = nodes(t0=high, t1=low, dt=dt)
    steps = [a - b for a, b in pairwise(got)]
    assert got[0] == high and got[-1] == low
    assert all(h == pytest.approx(dt, rel=1e-9, abs=1e-12) for h in steps[:-1])
    assert 0 < steps[-1] <= dt * (1 + 1e-9) + 1e-12


def test_times_do_not_accumulate():
    """A hundred steps of 0.01 end at 1 in a hundred steps, each node k/100 to the last bit or so."""
    got = nodes(t0=0.0, t1=1.0, dt=0.01)
    assert len(got) == 101
    assert max(abs(t - k / 100) for k, t in enumerate(got)) <= 2e-16


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ValueError, "needs exactly one of steps=, dt= and grid="),
        ({"steps": 5, "grid": [1.0, 1e-3]}, ValueError, "needs exactly one of steps=, dt= and grid="),
        ({"steps": 5, "dt": 0.1}, ValueError, "needs exactly one of steps=, dt= and grid="),
        ({"steps": 0}, ValueError, "steps = 0: a solve needs at least one step"),
        ({"steps": -3}, ValueError, "steps = -3: a solve needs at least one step"),
        ({"steps": 2.0}, TypeError, "steps must be a whole number, got 2.0"),
        ({"steps": True}, TypeError, "steps must be a whole number, got True"),
        ({"dt": 0.0}, ValueError, "dt = 0.0 must be a positive number; its sign follows from t0 and t1"),
        ({"dt": -0.1}, ValueError, "dt = -0.1 must be a positive number; its sign follows from t0 and t1"),
        ({"dt": math.nan}, ValueError, "dt = nan must be a positive number"),
        ({"grid": [1.0, 0.5, 0.7, 1e-3]}, ValueError, r"not strictly monotone: nodes 1 and 2 are 0.5 and 0.7. Sort it"),
        ({"grid": [1.0, 0.5, 0.5, 1e-3]}, ValueError, "not strictly monotone.*remove repeated nodes"),
        ({"grid": [1.0, math.nan, 1e-3]}, ValueError, "a node that is NaN or infinite"),
        ({"grid": [1.0]}, ValueError, r"1-D sequence of at least 2 nodes, got shape \(1,\)"),
        ({"grid": torch.ones(2, 2)}, ValueError, r"1-D sequence of at least 2 nodes, got shape \(2, 2\)"),
        ({"grid": [0.9, 0.5, 1e-3]}, ValueError, "grid runs from 0.9 to 0.001, the solve from t0 = 1 to t1 = 0.001"),
        ({"steps": 5, "save_at": [2.0]}, ValueError, r"times inside the solve \[0.001, 1\], got \[2.0\]"),
        ({"steps": 5, "save_at": [math.nan]}, ValueError, "times inside the solve"),
        ({"steps": 5, "save_at": []}, ValueError, "times inside the solve"),
        ({"t1": 0.0, "grid": grids.LogSNR(5)}, ValueError, "The noise level is 0 at t = 0, where this grid has no end"),
    ],
)
def test_bad_grids(kwargs, error, message):
    with pytest.raises(error, match=message):
        nodes(**kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.Uniform(0), "steps = 0: a solve needs at least one step"),
        (lambda: grids.Power(4, -1.0), "power = -1.0 must be a positive finite number"),
        (lambda: grids.Karras(4, rho=0.0), "rho = 0.0 must be a positive finite number"),
        (lambda: grids.LogSNR(4, top=math.inf), "top = inf must be a positive finite number"),
    ],
)
def test_bad_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_level_grids_need_a_linear_process():
    class General(sd.SDE):
        def f(self, x, t):
            return -x

        def g(self, x, t):
            return 1.0

    for process in (General(), General().reverse(lambda x, t: -x)):
        for grid in (grids.Karras(4), grids.LogSNR(4)):
            with pytest.raises(TypeError, match=r"needs a linear process or its reversal.*use Uniform"):
                nodes(process, grid=grid)
