"""What a linear process says of itself in several ways: alpha, sigma, log_snr, marginal, perturb, transition, prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..score import Schedule
from ..sde import SDE, Linear
from .attempt import attempt
from .moments import SAME, Kernel, Moments, read_off, relative
from .operator import rows
from .report import Row, exact_row
from .worst import Worst

_SINGLE = 1e-4  # float32 at early times: rounding of t itself, multiplied by how steep the schedule is
_PRIOR = 0.02  # standard deviations, and a factor of the spread
_EARLY = 1e-6  # of t_max: where 1 - exp(...) in float32 has lost all digits


def schedule_rows(sde: Any, kernel: Kernel, times: Sequence[float]) -> Iterable[Row]:
    """Rows for what this process has of it: a schedule, a transition, a prior."""
    checks = {"kernel: each sample at its own time": _own_time}
    if isinstance(sde, Schedule):
        checks["schedule: alpha, sigma, log_snr, marginal agree"] = _agreement
        checks["schedule: time_of inverts log_snr"] = _inverse
        checks["schedule: float32 times beside float64"] = _single
    if callable(getattr(sde, "steps", None)):
        checks["transition: composes to the kernel"] = _composition
    if has_prior(sde):
        checks["prior: the law of x_t at t_max"] = _prior
    for what, check in checks.items():
        yield from attempt(what, lambda what=what, check=check: [check(what, sde, kernel, times)])  # type: ignore[misc]


def has_prior(sde: Any) -> bool:
    """Whether the process says itself what its law at t_max is; one derived from f and g alone does not."""
    own = getattr(sde, "origin", sde)
    return type(own).prior is not SDE.prior


def _agreement(what: str, sde: Any, kernel: Kernel, times: Sequence[float]) -> Row:
    x0 = torch.linspace(-1.5, 2, 3 * kernel.size, dtype=torch.float64).reshape(3, *kernel.event_shape)
    worst = Worst()
    for t in times:
        moments = kernel.at(t)
        alpha, sigma, law = sde.alpha(t), sde.sigma(t), sde.marginal(x0, t)
        unit = torch.eye(kernel.size, dtype=torch.float64)
        mean = rows(x0) @ moments.map.T + moments.shift
        std = moments.covariance.diagonal().sqrt().expand_as(mean)
        pairs = {
            "alpha": (alpha * unit, moments.map),
            "sigma": (sigma**2 * unit, moments.covariance),
            "log_snr": (sde.log_snr(t), 2 * torch.log(alpha / sigma)),
            "the mean of marginal": (rows(law.mean.expand_as(x0)), mean),
            "the std of marginal": (rows(torch.as_tensor(law.std, dtype=torch.float64).expand_as(x0)), std),
        }
        for name, (said, perturbed) in pairs.items():
            error = relative(said - perturbed, perturbed, torch.ones(()) if name == "log_snr" else perturbed)
            worst.seen(error, f"{name} at t = {t:.4g} is not what perturb does (log_snr = 2 log(alpha/sigma)).")
    return worst.row(what, SAME)


def _own_time(what: str, sde: Any, kernel: Kernel, times: Sequence[float]) -> Row:
    """A batch in which every sample has its own time, as in training, against each of them alone."""
    generator, worst = torch.Generator().manual_seed(0), Worst()
    shape, together = (len(times), *kernel.event_shape), torch.tensor(times, dtype=torch.float64)
    x0, z = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    given: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"perturb": sde.perturb}
    if isinstance(sde, Linear):
        given["marginal"] = lambda x, t, z: sde.marginal(x, t).from_noise(z)
    if isinstance(sde, Schedule):
        given |= {name: lambda x, t, z, name=name: getattr(sde, name)(t) for name in ("alpha", "sigma", "log_snr")}  # type: ignore[misc]
    for name, of in given.items():
        alone = torch.cat([of(x0[k : k + 1], together[k : k + 1], z[k : k + 1]) for k in range(len(times))])
        numbers = torch.cat([of(x0[k : k + 1], together[k], z[k : k + 1]).reshape(-1) for k in range(len(times))])
        seen, where = of(x0, together, z), f"{name} with times (B,) is not what it is at each of them alone."
        worst.seen(max(relative(seen - alone, alone), relative(seen.reshape(-1) - numbers, alone)), where)
    return worst.row(what, SAME)


def _inverse(what: str, sde: Any, kernel: Kernel, times: Sequence[float]) -> Row:
    worst = Worst()
    for t in times:
        worst.seen(abs(float(sde.time_of(sde.log_snr(t))) - t) / sde.t_max, "time_of(log_snr(t)) is not t.")
    return worst.row(what, SAME)


def _single(what: str, sde: Any, kernel: Kernel, times: Sequence[float]) -> Row:
    """alpha and sigma at float32 times, early ones too, against the same times in float64."""
    early = [_EARLY * sde.t_max * 10.0**k for k in range(4)]
    single = torch.tensor([*early, *times], dtype=torch.float32)
    worst = Worst()
    for name, value in (("alpha", sde.alpha), ("sigma", sde.sigma)):
        seen, right = value(single).double(), value(single.double())
        error = float(((seen - right).abs() / right.abs()).max())
        worst.seen(error, f"{name} loses its digits: compute it in float64, and 1 - exp(-y) as -expm1(-y).")
    return worst.row(what, _SINGLE)


def _composition(what: str, sde: Any, kernel: Kernel, times: Sequence[float]) -> Row:
    """x_0 to s to t is x_0 to t, for neighbouring times."""
    worst = Worst()
    for s, t in pairwise(times):
        step, first, both = transition_moments(sde, s, t, kernel), kernel.at(s), kernel.at(t)
        pairs = {
            "map": (step.map @ first.map, both.map),
            "shift": (step.map @ first.shift + step.shift, both.shift),
            "covariance": (step.map @ first.covariance @ step.map.T + step.covariance, both.covariance),
        }
        for name, (seen, right) in pairs.items():
            worst.seen(relative(seen - right, right), f"its {name}, from 0 over {s:.4g} to {t:.4g}.")
    return worst.row(what, 1e-8)


def transition_moments(sde: Any, s: float, t: float, kernel: Kernel) -> Moments:
    """The kernel from s to t as matrices, whether it comes with numbers or with matrices."""
    (step,) = sde.steps(torch.tensor([s, t], dtype=torch.float64))
    return read_off(step, kernel.event_shape)


def _prior(what: str, sde: Any, kernel: Kernel, times: Sequence[float]) -> Row:
    """The prior's moments by samples, against those of x_t at t_max for data of any variance up to 1 per coordinate."""
    n, end = 20_000, kernel.at(sde.t_max)
    prior = sde.prior(kernel.event_shape)
    x = rows(prior.sample(n, generator=torch.Generator().manual_seed(0)).double())
    least = end.covariance.diagonal()
    most = least + end.map.square().sum(1)
    mean, spread = x.mean(0), x.var(0)
    blur = 6 / math.sqrt(n)
    off = ((mean - end.shift).abs() - end.map.abs().sum(1)).clamp_min(0) / most.sqrt() - blur
    ratio = torch.maximum(spread / most, least / spread) - 1 - blur * math.sqrt(2)
    worst = max(float(off.max()), float(ratio.max()), 0.0)
    std = f"{float(spread.mean().sqrt()):.4g}, x_t at t_max {float(least.mean().sqrt()):.4g}"
    return exact_row(what, worst, _PRIOR, f"the prior has standard deviation {std}.")
