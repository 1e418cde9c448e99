"""(e) The choices behind the exact score and the schedules, each beside what it was chosen over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from .measure import interleaved, lower_quartile

BATCH, MODES, VARIANCE = 65_536, 8, 0.3


def run(quick: bool) -> dict[str, Any]:
    """Microseconds a call (lower quartiles), at a batch of 65,536 points and 8 modes."""
    means, x = torch.randn(MODES, 2), torch.randn(BATCH, 2)
    bias, logits = -0.5 / VARIANCE * means.square().sum(1, keepdim=True), torch.randn(BATCH, MODES)
    turned = logits.T.contiguous()
    t = torch.tensor(0.3, dtype=torch.float64)

    def differences(y: Tensor) -> Tensor:
        r = y[:, None] - means
        weights = torch.softmax(-0.5 / VARIANCE * (r * r).sum(-1), 1)
        return -(weights[..., None] * r).sum(1) / VARIANCE

    def products(y: Tensor) -> Tensor:
        weights = torch.softmax(torch.addmm(bias, means, y.t(), alpha=1 / VARIANCE), 0)
        return torch.addmm(y, weights.t(), means, beta=-1 / VARIANCE, alpha=1 / VARIANCE)

    def transposed(y: Tensor) -> Tensor:
        logits = torch.addmm(bias, means, y.t(), alpha=1 / VARIANCE)
        weights = torch.softmax(logits, 0, out=logits)
        return torch.add(y * (-1 / VARIANCE), (means.t() @ weights).t(), alpha=1 / VARIANCE)

    both = torch.cat([means, torch.ones(MODES, 1)], 1).t().contiguous()

    def unnormalised(y: Tensor, largest: bool = False) -> Tensor:
        logits = torch.addmm(bias, means, y.t(), alpha=1 / VARIANCE)
        sums = both @ (logits.sub_(logits.amax(0)).clamp_min_(-50) if largest else logits).exp_()
        return ((sums[:-1] / sums[-1]).t() @ torch.eye(2)).sub_(y).div_(VARIANCE)

    for way in (products, transposed, unnormalised):
        torch.testing.assert_close(differences(x), way(x), rtol=1e-3, atol=1e-3)
    compiled = {"differences, compiled": torch.compile(differences), "products, compiled": torch.compile(products)}
    scores = {
        "differences": differences,
        "products": products,
        "transposed products": transposed,
        "sums of weights, largest taken off (chosen, large logits)": lambda y: unnormalised(y, True),
        "sums of weights (chosen, modest logits)": unnormalised,
    } | compiled
    spread = 100 * turned
    groups: dict[str, dict[str, Callable[[], Any]]] = {
        "softmax over the modes": {
            "modes last": lambda: torch.softmax(logits, 1),
            "modes first (chosen)": lambda: torch.softmax(turned, 0),
        },
        "weights of modes far apart": {
            "softmax, denormal numbers included": lambda: both @ torch.softmax(spread, 0),
            "floored at e^-50 (chosen)": lambda: both @ (spread - spread.amax(0)).clamp_min_(-50).exp_(),
        },
        "score of a mixture": {name: (lambda f=f: f(x)) for name, f in scores.items()},
        "derivative of a schedule": {
            "forward mode": lambda: jvp(_schedule, (t,), (torch.ones_like(t),)),
            "reverse mode (chosen)": lambda: _reverse(t),
        },
    }
    rounds = 10 if quick else 50
    rows = []
    for group, runs in groups.items():
        for name, values in interleaved(runs, rounds).items():
            rows.append({"of": group, "way": name, "us": lower_quartile(values) * 1e6})
    return {"rounds": rounds, "batch": BATCH, "modes": MODES, "rows": rows}


def _schedule(t: Tensor) -> Tensor:
    return -0.25 * 19.9 * t * t - 0.05 * t


def _reverse(t: Tensor) -> Tensor:
    u = t.detach().requires_grad_()
    return torch.autograd.grad(_schedule(u), u)[0]
