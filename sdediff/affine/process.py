r"""Affine SDEs with matrices for coefficients: :math:`dx = (A(t)x + b(t))\,dt + L(t)\,dW`.

They have Gaussian kernels as linear processes with one scale do, with a matrix :math:`\Phi` for :math:`\alpha` and a matrix
root R of the covariance for :math:`\sigma`:

.. math:: x_t \mid x_0 \sim \mathcal N(\Phi_t x_0 + c_t,\, C_t), \qquad C_t = \Phi_t C_0\Phi_t^\top + \Sigma_t .

:math:`C_0` is 0 unless the process starts with noise of its own: critically damped Langevin draws the velocities that
belong to the data.

A state of shape (B, *event) with D coordinates is seen as n blocks of k coupled coordinates, D = n k: coordinate j of block i
is entry ``i + n j`` of the flattened state, so that two blocks laid end to end (position, then velocity) are k = 2. The
matrices have shape (m, k, k), with m = n, or m = 1 where all blocks share one. Full matrices for states (B, d) are n = 1,
k = d; one number per coordinate is k = 1, m = D.

Source: Särkkä and Solin 2019, https://doi.org/10.1017/9781108186735, chapter 6.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..blocks import act, dense, like, log_det
from ..checks import Time, as_time, check_event, check_state, float64, time_dtype, within
from ..densities import Density, Mixture
from ..diffusion import Dense, Diffusion
from ..forms import Form
from ..score import as_score
from ..sde import SDE, Coefficient, FreeNoiseReverse, Linear, ScoreLike
from .moments import Kernel, Moments
from .noise import BlockNoise
from .posterior import CarriedMixture, law
from .reversal import CoupledFlow, CoupledReverse
from .scales import CoupledGaussian, Scales

_REMEMBERED = 4096


class AffineSDE(Linear):
    """An affine SDE with matrix coefficients; the module says how a state is split into blocks.

    A subclass writes :meth:`drift_matrix` and :meth:`diffusion_matrix`, and :meth:`offset` where there is one. They are
    elementwise in t, which arrives in float64 with as many trailing axes of length 1 as the result has, so that
    ``beta(t) * matrix`` is right as it stands; a result that ignores t may leave its axes out. Everything else follows:
    the kernel by quadrature (:mod:`~sdediff.affine.moments`), ``perturb``, ``marginal``, ``transition``, ``prior``, exact
    scores, reversal.
    """

    # ---- hooks ------------------------------------------------------------------------------------------------

    @abstractmethod
    def drift_matrix(self, t: Tensor) -> Tensor:
        """A(t): (m, k, k) or (k, k), for t of shape (..., 1, 1, 1)."""

    @abstractmethod
    def diffusion_matrix(self, t: Tensor) -> Tensor:
        """L(t): (m, k, r) or (k, r), for t of shape (..., 1, 1, 1)."""

    def offset(self, t: Tensor) -> Tensor:
        """b(t): (n, k), (1, k) or (k,), for t of shape (..., 1, 1); 0 by default."""
        return torch.zeros(1, 1, dtype=t.dtype, device=t.device)

    def start_covariance(self) -> Tensor | None:
        r""":math:`C_0`, (m, k, k): the covariance that a state has at t = 0 given its data; None for 0."""
        return None

    def lift(self, x0: Tensor) -> Tensor:
        """The mean of the state at t = 0 that belongs to data x_0 (B, *event): x_0 itself, unless states are more than data."""
        return x0

    def data_covariance(self) -> Tensor:
        """What :meth:`lift` makes of a unit covariance of the data, (m, k, k)."""
        return torch.eye(self._size[1], dtype=torch.float64).unsqueeze(0)

    # ---- states as blocks -------------------------------------------------------------------------------------

    def split(self, x: Tensor) -> Tensor:
        """A state (B, *event) as blocks (B, n, k).

        Raises:
            ValueError: the state has not as many coordinates as the coefficients say.
        """
        m, k = self._size
        flat = x.reshape(len(x), -1)
        if flat.shape[1] % k or m not in (1, flat.shape[1] // k):
            need = f"a multiple of {k}" if m == 1 else f"{m * k}"
            raise ValueError(
                f"A state of shape {tuple(x.shape)} has {flat.shape[1]} coordinates; {type(self).__name__} needs {need}, as "
                f"its matrices have shape ({m}, {k}, {k})."
            )
        return flat.reshape(len(x), k, -1).mT

    def join(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Blocks (B, n, k) as a state of this shape (B, *event)."""
        return y.mT.reshape(shape)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, b, L) at float64 times of any shape: (*t, m, k, k), (*t, n or 1, k) and (*t, m, k, r)."""
        return self._drift(t), *self._inputs(t)

    def _drift(self, t: Tensor) -> Tensor:
        m, k = self._size
        return _axes(self.drift_matrix(t.reshape(*t.shape, 1, 1, 1)), 3, t).expand(*t.shape, m, k, k)

    def _inputs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        m, k = self._size
        offset = _axes(self.offset(t.reshape(*t.shape, 1, 1)), 2, t)
        noise = _axes(self.diffusion_matrix(t.reshape(*t.shape, 1, 1, 1)), 3, t)
        return offset.expand(*t.shape, offset.shape[-2], k), noise.expand(*t.shape, m, *noise.shape[-2:])

    @cached_property
    def _size(self) -> tuple[int, int]:
        """(m, k), from the coefficients in the middle of the domain, checked."""
        t = torch.tensor(0.5 * self.t_max, dtype=torch.float64)
        drift, noise = (_axes(hook(t.reshape(1, 1, 1)), 3, t) for hook in (self.drift_matrix, self.diffusion_matrix))
        m, k = max(drift.shape[-3], noise.shape[-3]), drift.shape[-1]
        if drift.shape[-2] != k or noise.shape[-2] != k or {drift.shape[-3], noise.shape[-3]} - {1, m}:
            raise ValueError(
                f"drift_matrix of {type(self).__name__} has shape {tuple(drift.shape[-3:])} and diffusion_matrix "
                f"{tuple(noise.shape[-3:])}; they must be (m, k, k) and (m, k, r) with one k, and one m or 1."
            )
        return m, k

    # ---- the process ------------------------------------------------------------------------------------------

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """A(t) x + b(t)."""
        drift, offset, _ = self.coefficients(_times(t))
        y = self.split(x)
        return self.join(act(like(drift, y), y) + like(offset, y), x.shape)

    def g(self, x: Tensor, t: Tensor) -> float | Tensor | Diffusion:
        """L(t): a tensor of one number per coordinate where it is diagonal, else an operator."""
        _, _, factor = self.coefficients(_times(t))
        factor = like(factor, x)
        if self._diagonal:
            diagonal = torch.diagonal(factor, dim1=-2, dim2=-1)  # (..., m, k)
            rows = diagonal.reshape(-1, *diagonal.shape[-2:])
            rows = rows.expand(len(rows), x[0].numel() // rows.shape[2], rows.shape[2])
            return AffineSDE.join(self, rows, (len(rows), *x.shape[1:]))
        if x.ndim == 2:
            return Dense(self._columns(factor, x))
        return BlockNoise(self, _square(factor))

    def _columns(self, factor: Tensor, x: Tensor) -> Tensor:
        """L as a matrix on states (B, d): (1 or B, d, n r)."""
        _, k = self._size
        n = x.shape[1] // k
        full = dense(factor.reshape(-1, *factor.shape[-3:]), n).mT  # (1 or B, n r, n k)
        count, noise, d = full.shape
        return self.join(full.reshape(count * noise, n, k), (count * noise, d)).reshape(count, noise, d).mT

    @cached_property
    def _diagonal(self) -> bool:
        """Whether L is diagonal in the coordinates of the state: seen at a few times."""
        if type(self).split is not AffineSDE.split:
            return False
        t = self.t_max * torch.tensor([0.03, 0.2, 0.4, 0.7, 0.95], dtype=torch.float64)
        factor = self.coefficients(t)[2]
        if factor.shape[-1] != factor.shape[-2]:
            return False
        return bool((factor == torch.diag_embed(torch.diagonal(factor, dim1=-2, dim2=-1))).all())

    def gram_divergence(self, x: Tensor, t: Time) -> Tensor:
        """0: the noise is additive."""
        return torch.zeros_like(x)

    # ---- the kernel -------------------------------------------------------------------------------------------

    @cached_property
    def _moments(self) -> Moments:
        return Moments(self._drift, self._inputs, self.t_max)

    def moments(self, t: Tensor) -> Kernel:
        """The kernel from 0 to float64 times t of any shape, noise of the start left out. A closed form may override it."""
        return self._moments.from_start(t)

    def transition(self, s: Time, t: Time) -> Kernel:
        r"""The kernel from s to a later t: ``scale`` :math:`\Phi(t, s)`, ``shift`` and ``covariance``, over blocks.

        Raises:
            ValueError: a time lies outside the domain, or t before s (on the host: a device is not read back).
        """
        s64, t64 = (within(float64(u), self.t_max) for u in (s, t))
        if s64.device.type == t64.device.type == "cpu":
            if bool((t64 < (1 - 1e-6) * s64).any()):  # 1e-6: float32 rounds
                raise ValueError("A transition leads from s to a later t: exchange them.")
            t64 = torch.where(t64 < s64, s64, t64)
        return self.between(s64, t64)

    def between(self, s: Tensor, t: Tensor) -> Kernel:
        """The kernel from s to t >= s, float64 times of shapes that broadcast. A closed form may override it."""
        return self._moments.between(s, t)

    def scales(self, t: Time) -> Scales:
        """The law of x_t given the data, noise of the start included, for t of shape () or (B, ...), in the domain."""
        t64 = within(float64(t), self.t_max)
        if t64.ndim > 0 or t64.device.type != "cpu" or t64.requires_grad:
            return self._scales(t64.reshape(-1) if t64.ndim else t64)
        key = t64.item()
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:  # an adaptive solver repeats nothing
                self._known.clear()
            with torch.inference_mode(False), torch.no_grad():  # for derivatives in x that may come later
                self._known[key] = self._scales(torch.tensor(key, dtype=torch.float64))
        return self._known[key]

    @cached_property
    def _known(self) -> dict[float, Scales]:
        """Scales at host times seen: a solver repeats its grid."""
        return {}

    def _scales(self, t: Tensor) -> Scales:
        kernel, start = self.moments(t), self.start_covariance()
        if start is not None:
            zero = torch.zeros_like(kernel.shift)
            eye = torch.eye(start.shape[-1], dtype=t.dtype, device=t.device)
            start = start.to(t.device, t.dtype).expand(kernel.covariance.shape)
            kernel = Kernel(eye.expand(start.shape), zero, start).then(kernel)
        return Scales(self, kernel)

    def marginal(self, x0: Tensor, t: Time) -> CoupledGaussian:
        """The law of x_t given x_0 (B, *event), a state: :meth:`lift` makes one of data."""
        t = as_time(t, check_state(x0, "x0"), self.t_max)
        scales = self.scales(t)
        return CoupledGaussian(scales.mean(x0), scales, tuple(x0.shape[1:]))

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        r""":math:`x_t = \Phi_t x_0 + c_t + R_t\epsilon` for x_0, a state, and noise of shape (B, *event)."""
        if check_state(noise, "noise").shape != check_state(x0, "x0").shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)} for x0 of shape {tuple(x0.shape)}: use randn_like(x0), and lift(x0) "
                "where a state is more than data."
            )
        return self.marginal(x0, t).from_noise(noise)

    def prior(self, event_shape: tuple[int, ...]) -> CoupledGaussian:
        """The law at ``t_max`` without what is left of the data, N(c, C), over states of shape ``event_shape``."""
        scales, shape = self.scales(self.t_max), check_event(event_shape)
        return CoupledGaussian(scales.mean(torch.zeros(1, *shape, dtype=torch.float64)), scales, shape)

    def log_snr(self, t: Time) -> Tensor:
        r"""The log signal-to-noise ratio, the mean over coordinates: :math:`\frac1D\log(\det\Phi^2/\det C)`."""
        t64 = within(float64(t), self.t_max)
        kernel = self._scales(t64.reshape(-1)).kernel
        ratio = 2 * log_det(kernel.scale) - log_det(kernel.covariance)
        return (ratio.mean(-1) / kernel.scale.shape[-1]).reshape(t64.shape).to(time_dtype(t))

    def posterior(self, density: Density, x: Tensor, t: Tensor) -> CarriedMixture:
        """What is known of data from ``density`` when x_t = x (B, *event)."""
        return CarriedMixture(density, x, self.scales(t))

    def law(self, density: Density, t: float) -> Mixture:
        """The law of x_t for data from a mixture: a mixture again."""
        return law(density, self.scales(t))

    def translated(self, form: Form, x: Tensor, t: Tensor) -> tuple[Form, Any, Any]:
        """What says with matrices what the form says with numbers, and the scales at t; see :meth:`SDE.translated`."""
        scales = self.scales(t)
        return form.coupled(), scales, scales

    def steps(self, grid: Tensor) -> list[Any]:
        """The transitions along a rising grid as functions (x, z) -> x_t of the state and standard normals."""
        kernels = self.transition(grid[:-1], grid[1:])
        parts = [Scales(self, kernels.at(slice(k, k + 1))) for k in range(len(grid) - 1)]
        return [lambda x, z, part=part: part.mean(x) + part.spread(z) for part in parts]

    # ---- reversal ---------------------------------------------------------------------------------------------

    def _reverse(self, score: ScoreLike, stochasticity: Coefficient) -> SDE:
        """The reversal, which knows that it is linear but for the score."""
        return CoupledReverse(self, as_score(score, self), stochasticity)  # type: ignore[arg-type]

    def _free_noise(self, score: ScoreLike, diffusion: Coefficient) -> SDE:
        """The same with a noise coefficient of its own."""
        return FreeNoiseReverse(self, as_score(score, self), diffusion)  # type: ignore[arg-type]

    def probability_flow(self, score: ScoreLike) -> SDE:
        """The flow, which knows that it is linear but for the score."""
        return CoupledFlow(self, as_score(score, self))  # type: ignore[arg-type]


def _times(t: Tensor) -> Tensor:
    """A time as f and g receive it, (), or (B, 1, ..., 1), as float64 () or (B,)."""
    t = float64(t)
    return t.reshape(-1) if t.ndim else t


def _axes(value: Tensor | float, count: int, t: Tensor) -> Tensor:
    """What a hook returned, with at least ``count`` axes, beside t."""
    value = torch.as_tensor(value, dtype=t.dtype, device=t.device)
    return value if value.ndim >= count else value.reshape(*[1] * (count - value.ndim), *value.shape)


def _square(factor: Tensor) -> Tensor:
    """L with columns of zeros added, so that noise has the shape of the state."""
    k, r = factor.shape[-2:]
    if r > k:
        raise ValueError(f"diffusion_matrix has {r} columns for {k} rows; states of several axes need at most as many.")
    return torch.nn.functional.pad(factor, (0, k - r))
