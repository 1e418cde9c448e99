r"""From f and g alone to a Gaussian kernel.

Where the drift is affine in x, :math:`f(x, t) = A(t)x + b(t)`, and the noise ignores x, x_t given x_0 is Gaussian and
everything that linear processes offer follows. :func:`as_linear` finds out whether that is so by asking f and g at random
states of several sizes and at several times, chooses the coarsest structure that A, b and the noise have (one number, one
number per coordinate, small blocks, a full matrix), and reads the coefficients off f and g as the quadrature asks for them.
Probing sees what happens at the probes: a drift that bends only where no probe fell, as far out as 100 or in a sliver of
time, passes for affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .affine import AffineSDE
from .affine.scales import CoupledGaussian
from .checks import check_event
from .diffusion import Diffusion
from .errors import NotAffineError
from .gaussian import Gaussian
from .linear import LinearSDE
from .sde import HELD, SDE, Linear

TOLERANCE = 3e-6
"""The relative departure from affine that is put down to rounding: coefficients in float32 pass."""

_TIMES = (
    0.021,
    0.094,
    0.173,
    0.291,
    0.449,
    0.583,
    0.712,
    0.836,
    0.957,
)  # of t_max; not its ends, where f may be infinite
_SIZES = (1e-2, 1.0, 100.0)
_MOST = 512  # coordinates of a full matrix
_ROWS = 2**20  # entries of the states asked about at once
_LEFT = 0.1  # the largest alpha/sigma at t_max that a prior may ignore


def as_linear(sde: SDE, event_shape: Sequence[int] | None = None) -> Any:
    """The linear process that ``sde`` is: with kernels, exact scores and exponential solvers.

    Called for you wherever a linear process is needed: ``ExactScore(sde, density)``, ``NoisePrediction(sde, net)``,
    ``sde.perturb``, and by ``sde.reverse(score)`` with such a score. The result is remembered until an attribute of ``sde``
    is set anew; a tensor that is changed in place goes unnoticed.

    Args:
        sde: any SDE; one that is linear by its type is returned as it is.
        event_shape: the shape of one state.

    Returns:
        A :class:`~sdediff.LinearSDE` where one number multiplies x and one the noise, else an
        :class:`~sdediff.AffineSDE`; its ``origin`` is ``sde``.

    Raises:
        NotAffineError: the drift is not affine in x, or the noise depends on x.
        TypeError: ``sde`` is no forward SDE.
        ValueError: the shape is missing, there is no noise, f couples the samples of a batch, a full matrix would be too large,
            or (on use) the coefficients cannot be integrated.
    """
    if isinstance(sde, Linear):
        return sde
    if not isinstance(sde, SDE) or sde.direction != 1:
        raise TypeError(f"A Gaussian kernel belongs to a forward SDE with noise, and {type(sde).__name__} is none.")
    if event_shape is None:
        raise ValueError(
            f"The shape of one state of {type(sde).__name__} is unknown: give event_shape=, e.g. event_shape=(2,)."
        )
    shape, held = check_event(event_shape), vars(sde).get(HELD)
    if held is None or not held.still(sde):
        held = vars(sde)[HELD] = _Held({name: value for name, value in vars(sde).items() if name != HELD}, {})
    if shape not in held.processes:
        with torch.device("cpu"), torch.inference_mode(False):  # whatever the caller is doing
            held.processes[shape] = _derive(_Probe(sde, shape))
    return held.processes[shape]


@dataclass(frozen=True)
class _Held:
    """What was derived from an SDE, on the SDE itself, so that it lives as long; and the attributes that it had then."""

    attributes: dict[str, object]
    processes: dict[tuple[int, ...], Linear]

    def still(self, sde: SDE) -> bool:
        """Whether this SDE still has these attributes (and is no copy)."""
        own = vars(sde)
        return all(own.get(name, self) is value for name, value in self.attributes.items()) and all(
            process.origin is sde  # type: ignore[attr-defined]
            for process in self.processes.values()
        )


class DerivedLinear(LinearSDE):
    """A process whose drift is a(t) x and whose noise is g(t), read off its f and g."""

    def __init__(self, probe: _Probe):
        self.origin, self._probe = probe.sde, probe
        self.t_min, self.t_max = probe.sde.t_min, probe.sde.t_max

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The process's own f."""
        return self.origin.f(x, t)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """f at x = 1."""
        return self._probe.drift(torch.ones(1, self._probe.size, device=t.device), t.reshape(-1))[:, 0, 0].reshape(
            t.shape
        )

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """The noise of the first coordinate."""
        return self._probe.deviations(t.reshape(-1))[:, 0].reshape(t.shape)

    def prior(self, event_shape: tuple[int, ...], *, mean: float = 0.0, std: float = 0.0) -> Gaussian:
        """The law at ``t_max``; refused where it ignores too much of the data. See :meth:`LinearSDE.prior`."""
        if std == 0:
            _check_forgotten(self)
        return super().prior(event_shape, mean=mean, std=std)


class DerivedAffine(AffineSDE):
    """A process whose drift is A(t) x + b(t) and whose noise is L(t), read off its f and g.

    Args:
        probe: asks f and g.
        k: how many coordinates are coupled.
        shared: all blocks have the same matrices.
        adjacent: the coordinates of a block are neighbours in the flattened state, not n apart.
    """

    def __init__(self, probe: _Probe, k: int, *, shared: bool, adjacent: bool = False):
        self.origin, self._probe, self._k, self._shared, self._adjacent = probe.sde, probe, k, shared, adjacent
        self.t_min, self.t_max = probe.sde.t_min, probe.sde.t_max

    def split(self, x: Tensor) -> Tensor:
        """Blocks of neighbours, or of coordinates n apart."""
        return x.reshape(len(x), -1, self._k) if self._adjacent else super().split(x)

    def join(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same backwards."""
        return y.reshape(shape) if self._adjacent else super().join(y, shape)

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The process's own f."""
        return self.origin.f(x, t)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        """The process's own g."""
        return self.origin.g(x, t)

    def drift_matrix(self, t: Tensor) -> Tensor:
        """The columns f(e) - f(0), for states e that are 1 in one coordinate of each block."""
        n, k = self._probe.size // self._k, self._k
        units = torch.eye(k, dtype=torch.float64, device=t.device).unsqueeze(1).expand(k, n, k)
        states = torch.cat([torch.zeros_like(units[0]).reshape(1, -1), self.join(units, (k, n * k))])
        values = self._probe.drift(states, t.reshape(-1))  # (T, 1 + k, D)
        columns = self._blocks(values[:, 1:] - values[:, :1])  # (T, k, n, k)
        matrix = columns.permute(0, 2, 3, 1)
        return (matrix[:, :1] if self._shared else matrix).reshape(*t.shape[:-3], -1, k, k)

    def offset(self, t: Tensor) -> Tensor:
        """f(0)."""
        zero = torch.zeros(1, self._probe.size, dtype=torch.float64, device=t.device)
        return self._blocks(self._probe.drift(zero, t.reshape(-1)))[:, 0].reshape(*t.shape[:-2], -1, self._k)

    def diffusion_matrix(self, t: Tensor) -> Tensor:
        """g as a diagonal in each block, or as the matrix it is."""
        if self._probe.dense:
            return self._probe.matrix(t.reshape(-1)).reshape(*t.shape[:-3], 1, self._k, -1)
        deviations = self._blocks(self._probe.deviations(t.reshape(-1)).unsqueeze(1))[:, 0]  # (T, n, k)
        deviations = deviations[:, :1] if self._shared else deviations
        return torch.diag_embed(deviations).reshape(*t.shape[:-3], -1, self._k, self._k)

    def prior(self, event_shape: tuple[int, ...]) -> CoupledGaussian:
        """The law at ``t_max``; refused where it ignores too much of the data. See :meth:`AffineSDE.prior`."""
        _check_forgotten(self)
        return super().prior(event_shape)

    def _blocks(self, values: Tensor) -> Tensor:
        """(T, P, D) as (T, P, n, k)."""
        return self.split(values.reshape(-1, values.shape[2])).reshape(*values.shape[:2], -1, self._k)

    @property
    def _size(self) -> tuple[int, int]:  # type: ignore[override]
        return (1 if self._shared else self._probe.size // self._k), self._k


def _check_forgotten(process: LinearSDE | AffineSDE) -> None:
    ratio = float(torch.exp(0.5 * process.log_snr(process.t_max)))
    if ratio > _LEFT:
        raise ValueError(
            f"At t_max = {process.t_max:g} the data still stand {ratio:.2g} : 1 beside the noise of "
            f"{type(process.origin).__name__}, so its law there is not known without them. Let the clock run longer "  # type: ignore[union-attr]
            "(t_max), or give the starting states, e.g. x=score.sample(n, t_max) of an ExactScore."
        )


# ---- asking f and g ---------------------------------------------------------------------------------------------------


class _Probe:
    """f and g of a process at flat float64 states and times of their own."""

    dense = False
    """Whether g is a matrix whose rows are not orthogonal."""

    def __init__(self, sde: SDE, event_shape: tuple[int, ...]):
        self.sde, self.event_shape = sde, event_shape
        self.size = torch.Size(event_shape).numel()
        if not 0 < sde.t_max < float("inf"):
            raise ValueError(f"t_max = {sde.t_max} of {type(sde).__name__} must be finite to derive a kernel.")
        self.dtype = torch.float64
        try:
            self.drift(torch.zeros(1, self.size), torch.tensor([0.5 * sde.t_max], dtype=torch.float64))
        except RuntimeError:  # as a network raises, whose parameters are in float32; what else is wrong shows again
            self.dtype = torch.float32

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f at every one of x (P, D) and t (T,): (T, P, D)."""
        x = x.to(t.device)
        parts = [self._drift(x, part) for part in t.split(max(1, _ROWS // max(1, x.numel())))]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _drift(self, x: Tensor, t: Tensor) -> Tensor:
        states, times = self._pairs(x, t)
        return self.sde.drift(states, times).reshape(len(t), len(x), self.size).double()

    def diffusion(self, x: Tensor, t: Tensor) -> tuple[Diffusion, Tensor]:
        """g at every one of x (P, D) and t (T,), t varying slowest, and those states in float64."""
        states, times = self._pairs(x.to(t.device), t)
        return self.sde.diffusion(states, times), states.double()

    def deviations(self, t: Tensor) -> Tensor:
        """The entries of a diagonal g at t (T,), or the norms of the rows of a matrix: (T, D)."""
        g, states = self._noise(t)
        entries = g.entries(states).double()
        return (entries if g.diagonal else entries.square().sum(2).sqrt()).reshape(len(t), self.size)

    def matrix(self, t: Tensor) -> Tensor:
        """g as a matrix (T, D, r)."""
        g, states = self._noise(t)
        return torch.diag_embed(self.deviations(t)) if g.diagonal else g.entries(states).double()

    def mixes(self, t: Tensor) -> bool:
        """Whether one noise drives several coordinates: the rows of g are not orthogonal."""
        if self._noise(t)[0].diagonal:
            return False
        gram = self.matrix(t) @ self.matrix(t).mT
        return not self.rounding(gram - torch.diag_embed(torch.diagonal(gram, dim1=1, dim2=2)), gram)

    def rounding(self, part: Tensor, whole: Tensor) -> bool:
        """Whether a part (T, ...) is rounding beside the whole (T, ...) at every time, in the precision of f and g."""
        size, scale = (value.abs().reshape(len(value), -1).amax(1) for value in (part, whole))
        return bool((size <= (1e-10 if self.dtype == torch.float64 else TOLERANCE) * scale).all())

    def _noise(self, t: Tensor) -> tuple[Diffusion, Tensor]:
        return self.diffusion(torch.zeros(1, self.size, device=t.device), t)

    def _pairs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        states = x.to(self.dtype).expand(len(t), *x.shape).reshape(-1, *self.event_shape)
        return states, t.repeat_interleave(len(x)).reshape(-1, *[1] * len(self.event_shape))


def _derive(probe: _Probe) -> Linear:
    """The process with the coarsest structure that fits."""
    times = probe.sde.t_max * torch.tensor(_TIMES, dtype=torch.float64)
    with torch.no_grad():
        _check_affine(probe, times)
        _check_noise(probe, times)
        x = torch.randn(6, probe.size, generator=_generator(1), dtype=torch.float64)
        values = probe.drift(torch.cat([x.new_zeros(1, probe.size), x]), times)
        offset, y = values[:, 0], values[:, 1:] - values[:, :1]  # (T, D), (T, P, D)
        variances = probe.deviations(times).square()  # (T, D)
        probe.dense = probe.mixes(times)
        if not probe.dense:
            ratio = (y * x).sum((1, 2), keepdim=True) / x.square().sum()
            still = bool((offset.abs().amax(1) <= 1e-12 * y.abs().amax((1, 2))).all())
            even = probe.rounding(variances - variances[:, :1], variances) and still
            if even and probe.rounding(y - ratio * x, y):
                return DerivedLinear(probe)
            for k in (k for k in (1, 2, 3, 4) if probe.size % k == 0):
                for adjacent in (False, True):
                    process = _blockwise(probe, k, adjacent, x, y, variances)
                    if process is not None:
                        return process
    if probe.size > _MOST:
        raise ValueError(
            f"The drift or the noise of {type(probe.sde).__name__} couples the {probe.size} coordinates of a state, and no "
            "structure was found: subclass AffineSDE and write down its matrices in a basis where they are small."
        )
    return DerivedAffine(probe, probe.size, shared=True)


def _blockwise(probe: _Probe, k: int, adjacent: bool, x: Tensor, y: Tensor, variances: Tensor) -> DerivedAffine | None:
    """The process in blocks of k, if that is how y (T, P, D) follow from x (P, D)."""
    apart = DerivedAffine(probe, k, shared=False, adjacent=adjacent)
    u = apart._blocks(x.unsqueeze(0))[0].permute(1, 0, 2)  # (n, P, k)
    v = apart._blocks(y).permute(0, 2, 1, 3)  # (T, n, P, k)
    matrices = torch.linalg.pinv(u) @ v  # (T, n, k, k), transposed blocks
    if not probe.rounding(u @ matrices - v, v):
        return None
    noise = apart._blocks(variances.unsqueeze(1))[:, 0]  # (T, n, k)
    shared = probe.rounding(matrices - matrices[:, :1], matrices) and probe.rounding(noise - noise[:, :1], noise)
    return DerivedAffine(probe, k, shared=shared, adjacent=adjacent)


def _check_affine(probe: _Probe, times: Tensor) -> None:
    r"""f(cu) - f(0) = c (f(u) - f(0)) and f(u + v) + f(0) = f(u) + f(v), for random u and v of several sizes."""
    u, v = torch.randn(2, 4, probe.size, generator=_generator(0), dtype=torch.float64)
    rows, sums = [u.new_zeros(1, probe.size)], []
    for size in _SIZES:  # of each size u, v, u + v, -u and 3 u
        rows += [size * u, size * v, size * (u + v), -size * u, 3 * size * u]
    x = torch.cat(rows)
    values = probe.drift(x, times)
    start = values[:, :1]
    for i, size in enumerate(_SIZES):
        fu, fv, fsum, fminus, fthree = values[:, 1 + 20 * i : 21 + 20 * i].split(4, 1)
        for seen, expected, at in (
            (fsum, fu + fv - start, size * (u + v)),
            (fminus, 2 * start - fu, -size * u),
            (fthree, 3 * fu - 2 * start, 3 * size * u),
        ):
            sums.append((seen, expected, at, fu.abs() + fv.abs()))
    alone = probe.drift(u[:1], times)
    broken = times[~alone.isfinite().all(2).all(1)]
    if len(broken):
        raise ValueError(f"{type(probe.sde).__name__}.f is NaN or infinite at t = {float(broken[0]):g}, near x = 0.")
    if not bool((alone - values[:, 21:22]).abs().max() <= TOLERANCE * alone.abs().max()):
        raise ValueError(
            f"{type(probe.sde).__name__}.f gives a state another drift in another batch: reduce over event axes alone."
        )
    _judge(probe, times, sums, "drift")


def _check_noise(probe: _Probe, times: Tensor) -> None:
    """g is the same at random states, and not 0."""
    u = torch.randn(4, probe.size, generator=_generator(2), dtype=torch.float64)
    x = torch.cat([u.new_zeros(1, probe.size), *(size * u for size in _SIZES)])
    g, states = probe.diffusion(x, times)
    value = g.entries(states).double().reshape(len(times), len(x), -1)
    _judge(probe, times, [(value, value[:, :1].expand_as(value), x, value.abs())], "noise")
    if not bool(value.any()):
        raise ValueError(
            f"{type(probe.sde).__name__} has no noise, so x_t given x_0 has no density: solve it as an ODE."
        )


def _judge(probe: _Probe, times: Tensor, comparisons: list[tuple[Tensor, Tensor, Tensor, Tensor]], what: str) -> None:
    """Raise where seen and expected (T, P, D) differ by more than rounding, for the probe that shows it most."""
    worst: tuple[float, Tensor, float, list[int]] | None = None
    for seen, expected, at, size in comparisons:
        scale = size + expected.abs() + 0.01 * size.amax(2, keepdim=True)
        error = (seen - expected).abs() / scale.clamp_min(1e-300)
        error = torch.where(seen == expected, 0.0, torch.where(torch.isfinite(error), error, torch.inf))
        value = float(error.max())
        if value > TOLERANCE and (worst is None or value > worst[0]):
            i, j, _ = (int(c) for c in torch.unravel_index(error.argmax(), error.shape))
            order = error[i, j].argsort(descending=True)
            shown = [int(c) for c in order if error[i, j, c] > TOLERANCE]
            worst = value, at[j], float(times[i]), shown
    if worst is not None:
        raise _not_affine(probe, what, *worst)


def _not_affine(probe: _Probe, what: str, size: float, x: Tensor, t: float, shown: list[int]) -> NotAffineError:
    dense_noise = what == "noise" and probe.size < (max(shown) + 1)
    names = "entries of G" if dense_noise else "coordinates"
    seen = ", ".join(f"{value:.4g}" for value in x[:4].tolist()) + (", ..." if len(x) > 4 else "")
    how = "is not affine in x" if what == "drift" else "depends on x"
    return NotAffineError(
        f"The {what} of {type(probe.sde).__name__} {how}: it departs by {size:.2g} of its size in {names} "
        f"{shown[:5]}{' and others' if len(shown) > 5 else ''}, at x = ({seen}), t = {t:.4g}. So x_t given x_0 is not Gaussian "
        "and has no kernel in closed form. What works for any SDE: EulerMaruyama and the other general solvers, reverse and "
        "probability_flow with a score of yours, implicit or sliced score matching to learn one, and a Fokker-Planck grid for "
        "the marginals in one or two dimensions.",
        x.reshape(probe.event_shape),
        t,
        shown,
        size,
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
