"""The contract of a process: what everybody who calls its f and g relies on.

f has x's shape and g a form that cannot broadcast by accident; both are finite, give the same value twice, take the time in
all its forms, follow autograd in x, keep their hands off their arguments, and treat each sample of a batch as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion import Diffusion
from ..sde import SDE
from .attempt import attempt, told
from .differences import slope
from .moments import relative
from .report import Row, fact_row
from .worst import Worst

EXACT = 1e-9
"""The largest relative difference between two evaluations that should give the same number in float64."""
_SINGLE = 1e-3  # float32 beside float64: a steep drift multiplies the rounding of x
_GRADIENT = 1e-5  # autograd beside differences
_BATCH = 6


@dataclass(frozen=True)
class Probe:
    """A process and where to look at it.

    Args:
        sde: the process.
        draw: ``draw(n, generator)``, states (n, *event) in float64 where the process lives.
        times: interior times.
        ends: times at or near the ends, where f and g must be finite too.
    """

    sde: SDE
    draw: Callable[[int, torch.Generator], Tensor]
    times: Sequence[float]
    ends: Sequence[float]

    def states(self, seed: int) -> Tensor:
        """A small batch."""
        return self.draw(_BATCH, torch.Generator().manual_seed(seed))

    def noise(self, x: Tensor, t: float | Tensor) -> Tensor:
        """G applied to the same numbers for every sample, (B, *event): what is seen of G without knowing its form."""
        diffusion: Diffusion = self.sde.diffusion(x, t)
        shape = diffusion.noise_shape(x)
        z = torch.randn(shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return (diffusion @ z.to(x.dtype).expand(shape)).expand(x.shape)

    @property
    def fields(self) -> dict[str, Callable[[Tensor, float | Tensor], Tensor]]:
        """f and g, as functions of states and times."""
        return {"f": self.sde.drift, "g": self.noise}


def contract(probe: Probe, seed: int) -> tuple[Row, ...]:
    """The rows of the contract. Where f or g cannot be called at all, those that say so alone."""
    called = (
        *attempt(
            "f: a tensor of x's shape", lambda: [_callable(probe.sde.drift, "f: a tensor of x's shape", probe, seed)]
        ),
        *attempt(
            "g: a number, x.ndim axes or Dense",
            lambda: [_callable(probe.noise, "g: a number, x.ndim axes or Dense", probe, seed)],
        ),
    )
    if not all(row.passed for row in called):
        return called
    checks: dict[str, Callable[[str, Probe, int], Row]] = {
        "f, g: finite on the domain": _finite,
        "f, g: the same value twice": _deterministic,
        "f, g: x and t left as they were": _untouched,
        "f, g: each sample by itself": _independent,
        "f, g: each sample at its own time": _own_time,
        "f, g: t as number, (), (B,), (B, 1, …)": _forms_of_time,
        "f, g: float32 beside float64": _single,
        "f, g: derivatives by autograd": _differentiable,
    }
    found = [attempt(what, lambda what=what, check=check: [check(what, probe, seed)]) for what, check in checks.items()]  # type: ignore[misc]
    return (*called, *(row for rows in found for row in rows))


def _callable(field: Callable[[Tensor, float], Tensor], what: str, probe: Probe, seed: int) -> Row:
    x = probe.states(seed)
    for batch in (x, x[:1]):
        for dtype in (torch.float64, torch.float32):
            field(batch.to(dtype), probe.times[0])
    return fact_row(what)


def _finite(what: str, probe: Probe, seed: int) -> Row:
    x = probe.draw(64, torch.Generator().manual_seed(seed))
    for name, field in probe.fields.items():
        for t in (*probe.times, *probe.ends):
            bad = ~torch.isfinite(field(x, t)).reshape(len(x), -1).all(1)
            if bool(bad.any()):
                state = [f"{v:.4g}" for v in x[bad][0].flatten()[:4].tolist()]
                return fact_row(
                    what,
                    f"{name} is NaN or infinite for {int(bad.sum())} of {len(x)} states at t = {t:.4g}, such as x = "
                    f"[{', '.join(state)}]. If the process lives on a part of space only, give a density= on it.",
                )
    return fact_row(what)


def _independent(what: str, probe: Probe, seed: int) -> Row:
    """Row 0 beside other rows, and alone."""

    def compare(field: Callable[[Tensor, float | Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        x, others = probe.states(seed), probe.states(seed + 1)
        for t in probe.times:
            here = field(x, t)
            yield field(torch.cat([x[:1], others[1:]]), t)[:1], here[:1]
            yield field(x[:1], t), here[:1]
            yield field(x.flip(0), t).flip(0), here

    cure = "what one sample does changes with the others: look for a mean, norm or sum over the batch axis."
    return _worst(what, probe, compare, EXACT, cure)


def _own_time(what: str, probe: Probe, seed: int) -> Row:
    """A batch in which every sample has its own time, against each of them alone."""

    def compare(field: Callable[[Tensor, float | Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        x = probe.states(seed)
        low, high = min(probe.times), max(probe.times)
        times = torch.linspace(low, high, len(x), dtype=torch.float64)
        together = field(x, times)
        for k, t in enumerate(times.tolist()):
            yield together[k : k + 1], field(x[k : k + 1], t)

    cure = (
        "with one time per sample it is not what it is at each time alone: t arrives as (B, 1, …), ready to broadcast."
    )
    return _worst(what, probe, compare, EXACT, cure)


def _forms_of_time(what: str, probe: Probe, seed: int) -> Row:
    def compare(field: Callable[[Tensor, float | Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        x = probe.states(seed)
        for t in probe.times:
            column = torch.full((len(x),), t, dtype=torch.float64)
            for form in (torch.tensor(t, dtype=torch.float64), column, column.reshape(-1, *[1] * (x.ndim - 1))):
                yield field(x, form), field(x, t)

    return _worst(what, probe, compare, EXACT, "the same time in another shape gives another value.")


def _deterministic(what: str, probe: Probe, seed: int) -> Row:
    x = probe.states(seed)
    for name, field in probe.fields.items():
        for t in probe.times:
            once = field(x, t)
            with torch.no_grad():
                again = field(x, t)
            if not torch.equal(once.detach(), again):
                return fact_row(
                    what,
                    f"{name} at t = {t:.4g} gives another value the second time, off by "
                    f"{float((once - again).abs().max()):.2g}: it draws random numbers (dropout?) or keeps a state.",
                )
    return fact_row(what)


def _untouched(what: str, probe: Probe, seed: int) -> Row:
    for name, field in probe.fields.items():
        for t in probe.times:
            x = probe.states(seed)
            times = torch.full((len(x), *[1] * (x.ndim - 1)), t, dtype=torch.float64)
            kept, clock = x.clone(), times.clone()
            field(x, times)
            if not (torch.equal(x, kept) and torch.equal(times, clock)):
                which = "t" if torch.equal(x, kept) else "x"
                return fact_row(what, f"{name} writes on its argument {which}: use x * c, not x.mul_(c) or x *= c.")
    return fact_row(what)


def _single(what: str, probe: Probe, seed: int) -> Row:
    def compare(field: Callable[[Tensor, float | Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        x = probe.states(seed).float()
        for t in probe.times:
            yield field(x, t).double(), field(x.double(), t)

    return _worst(what, probe, compare, _SINGLE, "it loses its digits in float32: compute what cancels in float64.")


def _differentiable(what: str, probe: Probe, seed: int) -> Row:
    """The derivative of w·f along v by autograd and by differences, v in proportion to x: what must be positive stays so."""
    x, generator = probe.states(seed), torch.Generator().manual_seed(seed + 2)
    w, z = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    v, worst = x * z, Worst()
    for name, field in probe.fields.items():
        for t in probe.times:
            with torch.enable_grad():
                at = x.clone().requires_grad_()
                value = (w * field(at, t)).sum()
                gradient = torch.autograd.grad(value, at, allow_unused=True)[0] if value.requires_grad else None
            claimed = torch.zeros(()) if gradient is None else (gradient * v).sum()
            seen = slope(lambda e, t=t, field=field: (w * field(x + e * v, t)).sum(), 0.05)  # type: ignore[misc]
            scale = (w * field(x, t)).abs().sum()
            error = relative(claimed - seen, seen, claimed, scale)
            worst.seen(
                error,
                f"{name} at t = {t:.4g}: autograd says {float(claimed):.4g}, differences {float(seen):.4g}. Keep x in the "
                "graph: no detach, .item(), no_grad or NumPy on the way.",
            )
    return worst.row(what, _GRADIENT)


def _worst(
    what: str,
    probe: Probe,
    compare: Callable[[Callable[[Tensor, float | Tensor], Tensor]], Iterator[tuple[Tensor, Tensor]]],
    tolerance: float,
    cure: str,
) -> Row:
    """The largest relative difference among pairs, for f and for g."""
    worst = Worst()
    for name, field in probe.fields.items():
        try:
            for a, b in compare(field):
                worst.seen(relative(a - b, b), f"{name}: {cure}")
        except Exception as error:
            return fact_row(what, f"{name}: {told(error)}")
    return worst.row(what, tolerance)
