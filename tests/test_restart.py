"""Restarts between two times: what is refused, since it would quietly be another law."""

from __future__ import annotations

import pytest
import torch

import sdediff as sd

VP = sd.VP()
FLOW = VP.probability_flow(sd.ExactScore(VP, sd.densities.ring(8)))
X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def restart(low, high, **settings):
    return sd.Restart(sd.DDIM(), low=low, high=high, **({"inner": sd.grids.LogSNR(3)} | settings))


@pytest.mark.parametrize("times", [[1.0, 0.7, 0.6, 0.3, 0.1], [1.0, 0.7, 0.55, 0.3, 0.1]])
def test_a_jump_up_needs_a_node_below_where_it_leads(times):
    """Nearest to .5 is .6 or .55, from which a "jump up" to .55 went backward in time and gave another law."""
    with pytest.raises(ValueError, match=r"^The node nearest to low = 0.5 is 0.(6|55), .* node in \[low, high\)"):
        sd.solve(FLOW, X, solver=restart(0.5, 0.55), grid=times, seed=0)
    sd.solve(FLOW, X, solver=restart(0.5, 0.55), grid=[*times[:3], 0.54, *times[3:]], seed=0)
    with pytest.raises(ValueError, match=r"^The node nearest to low = 0.45 is 0\.5365"):
        sd.solve(FLOW, X, solver=restart(0.45, 0.5), grid=sd.grids.LogSNR(8), seed=0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"solver": sd.DormandPrince()},
            TypeError,
            r"^solver must be one that steps along a grid, such as ExponentialAdams\(",
        ),
        ({"solver": sd.DDIM}, TypeError, r"^solver must be one that steps along a grid"),
        ({"inner": 5}, TypeError, r"^inner must be a grid such as grids.LogSNR\(10\), got 5"),
        ({"inner": [0.5, 0.3]}, TypeError, "^inner must be a grid"),
        ({"repeats": 1.5}, TypeError, "^repeats must be a positive whole number, got 1.5"),
        ({"repeats": 0}, ValueError, "^repeats = 0: ask for at least one, or use the solver alone"),
        ({"low": "a"}, TypeError, "^low must be a number, got 'a'"),
        ({"high": float("nan")}, ValueError, "^high = nan must be a number"),
        ({"low": 0.5}, ValueError, "^low = 0.5 must lie below high = 0.5"),
    ],
)
def test_bad_settings_are_named_at_once(settings, error, message):
    fine = {"solver": sd.DDIM(), "low": 0.2, "high": 0.5, "inner": sd.grids.LogSNR(3), "repeats": 1}
    sd.Restart(**fine)
    with pytest.raises(error, match=message):
        sd.Restart(**(fine | settings))
