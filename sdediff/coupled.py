r"""Processes with coupled coordinates: critically damped Langevin, correlated noise, blurring.

Each is an :class:`~sdediff.AffineSDE` and writes only its coefficients.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from .affine import AffineSDE, Kernel
from .checks import check_number, check_positive
from .linear import LinearSDE
from .processes import VP
from .sde import Coefficient, check_coefficient, evaluate


class CLD(AffineSDE):
    r"""Critically damped Langevin diffusion: data are positions q, and noise enters through velocities v.

    .. math:: dq = \tfrac{\beta}{M}v\,dt, \qquad
              dv = -\beta q\,dt - \tfrac{\beta\Gamma}{M}v\,dt + \sqrt{2\Gamma\beta}\,dW .

    It ends in N(q; 0, I) N(v; 0, M I), the sooner as :math:`\Gamma^2 = 4M`. A state is q and v laid end to end along the
    first event axis, (B, 2d); :meth:`lift` appends velocities to data, :meth:`position` takes them off. At t = 0 the
    velocity is N(0, :math:`\gamma M` I) whatever the data, and is averaged over: ``perturb(lift(data), t, noise)`` is the
    kernel of hybrid score matching, and the score is that of the joint law. Nothing acts on q but v, so a sample path of q is
    smooth, and the score at v alone enters the reversal.

    Args:
        beta: :math:`\beta`, a positive number or function of t.
        mass: M.
        friction: :math:`\Gamma`; critical, :math:`2\sqrt M`, by default.
        gamma: :math:`\gamma`, the share of M that the variance of the velocities has at t = 0.
        t_max, t_min: the end of the clock, and where :func:`~sdediff.sample` stops.

    Raises:
        ValueError: a parameter is not positive, or t_min does not lie below t_max.

    Source: Dockhorn et al. 2022, https://arxiv.org/abs/2112.07068, eq. 5 and section 3.
    """

    def __init__(
        self,
        beta: Coefficient = 4.0,
        mass: float = 0.25,
        friction: float | None = None,
        gamma: float = 0.04,
        t_max: float = 1.0,
        t_min: float = 1e-3,
    ):
        self.beta = check_coefficient(beta, "beta")
        self.mass, self.gamma = check_positive(mass, "mass"), check_positive(gamma, "gamma")
        self.friction = 2 * math.sqrt(self.mass) if friction is None else check_positive(friction, "friction")
        self.t_max = check_positive(t_max, "t_max")
        if not 0 < check_number(t_min, "t_min") < self.t_max:
            raise ValueError(f"t_min = {t_min} must lie in (0, t_max = {t_max}): at t = 0 positions have no noise yet.")
        self.t_min = float(t_min)

    def drift_matrix(self, t: Tensor) -> Tensor:
        """beta (0, 1/M; -1, -Gamma/M)."""
        rows = [[0.0, 1 / self.mass], [-1.0, -self.friction / self.mass]]
        return evaluate(self.beta, t) * torch.tensor(rows, dtype=t.dtype, device=t.device)

    def diffusion_matrix(self, t: Tensor) -> Tensor:
        """√(2 Gamma beta) on velocities."""
        rate = torch.as_tensor(2 * self.friction * evaluate(self.beta, t), dtype=t.dtype, device=t.device)
        return torch.sqrt(rate) * torch.diag(t.new_tensor([0.0, 1.0]))

    def start_covariance(self) -> Tensor:
        """gamma M on velocities."""
        return torch.diag(torch.tensor([0.0, self.gamma * self.mass], dtype=torch.float64)).unsqueeze(0)

    def data_covariance(self) -> Tensor:
        """1 on positions."""
        return torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).unsqueeze(0)

    def lift(self, x0: Tensor) -> Tensor:
        """Data (B, d, ...) with the mean of their velocities, 0: (B, 2d, ...)."""
        if x0.ndim < 2:
            raise ValueError(
                f"Data of shape {tuple(x0.shape)} have no axis to append velocities to: use x.unsqueeze(1)."
            )
        return torch.cat([x0, torch.zeros_like(x0)], 1)

    def position(self, x: Tensor) -> Tensor:
        """The positions of states (B, 2d, ...): (B, d, ...)."""
        return x.chunk(2, 1)[0]

    def velocity(self, x: Tensor) -> Tensor:
        """The velocities of states (B, 2d, ...): (B, d, ...)."""
        return x.chunk(2, 1)[1]


class CorrelatedOU(AffineSDE):
    r"""Ornstein-Uhlenbeck with a matrix: :math:`dx = -\tfrac12\beta Kx\,dt + \sqrt\beta\,L\,dW`.

    With K = I it ends in N(0, :math:`LL^\top`): noise of the data's own covariance leaves that covariance as it is at every t.

    Args:
        matrix: L, (d, r), e.g. the Cholesky factor of the covariance of the data.
        rates: K, (d, d), with eigenvalues of positive real part; the identity by default.
        beta: :math:`\beta`, a positive number or function of t.
        t_max, t_min: the end of the clock, and where :func:`~sdediff.sample` stops.

    Raises:
        ValueError: shapes do not fit, or K does not pull towards 0.
    """

    def __init__(
        self,
        matrix: Tensor,
        rates: Tensor | None = None,
        *,
        beta: Coefficient = 1.0,
        t_max: float = 10.0,
        t_min: float = 1e-3,
    ):
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64).detach().cpu().clone()
        if self.matrix.ndim != 2 or not bool(self.matrix.isfinite().all()):
            raise ValueError(f"matrix has shape {tuple(self.matrix.shape)}; it must be finite, of shape (d, r).")
        d = len(self.matrix)
        eye = torch.eye(d, dtype=torch.float64)
        self.rates = eye if rates is None else torch.as_tensor(rates, dtype=torch.float64).detach().cpu().clone()
        if self.rates.shape != (d, d):
            raise ValueError(f"rates has shape {tuple(self.rates.shape)} for matrix of shape {tuple(self.matrix.shape)}: "
                             f"it must be ({d}, {d}).")  # fmt: skip
        slowest = float(torch.linalg.eigvals(self.rates).real.min())
        if not slowest > 0:
            raise ValueError(
                f"rates has an eigenvalue of real part {slowest:.3g}: it must pull towards 0 in every direction."
            )
        self.beta = check_coefficient(beta, "beta")
        self.t_max = check_positive(t_max, "t_max")
        if not 0 <= check_number(t_min, "t_min") < self.t_max:
            raise ValueError(f"t_min = {t_min} must lie in [0, t_max = {t_max}).")
        self.t_min = float(t_min)

    def drift_matrix(self, t: Tensor) -> Tensor:
        """-½ beta K."""
        return -0.5 * evaluate(self.beta, t) * self.rates.to(t.device, t.dtype)

    def diffusion_matrix(self, t: Tensor) -> Tensor:
        """√beta L."""
        rate = torch.as_tensor(evaluate(self.beta, t), dtype=t.dtype, device=t.device)
        return torch.sqrt(rate) * self.matrix.to(t.device, t.dtype)


class Blurring(AffineSDE):
    r"""Heat dissipation with noise: a linear process that also blurs, each frequency at its own pace.

    In an orthonormal cosine basis along every event axis but ``channels`` leading ones, frequency j with eigenvalue
    :math:`\lambda_j = \pi^2\sum_a(j_a/n_a)^2` of the Laplacian on :math:`n_a` pixels has

    .. math:: u_t = \alpha_te^{-\lambda_j\tau_t}u_0 + \sigma_t\epsilon, \qquad
              \tau_t = \tfrac12 w^2\sin^4\bigl(\tfrac{\pi t}{2t_{max}}\bigr),

    with :math:`\alpha` and :math:`\sigma` of a linear process: white noise, and a Gaussian blur of width w pixels at the end.

    Args:
        event_shape: of one state, e.g. (3, 32, 32).
        width: w, in pixels.
        base: the process that gives :math:`\alpha` and :math:`\sigma`; :class:`~sdediff.VP` by default.
        channels: how many leading event axes are not blurred.

    Raises:
        ValueError: width is not positive, or no axis is left to blur.

    Source: Hoogeboom and Salimans 2023, https://arxiv.org/abs/2209.05557; Rissanen et al. 2023,
    https://arxiv.org/abs/2206.13397.
    """

    def __init__(
        self, event_shape: tuple[int, ...], width: float = 4.0, *, base: LinearSDE | None = None, channels: int = 0
    ):
        self.event_shape, self.channels, self.width = tuple(event_shape), channels, check_positive(width, "width")
        if not 0 <= channels < len(self.event_shape):
            raise ValueError(f"channels = {channels} leave no axis of event_shape = {self.event_shape} to blur.")
        self.base = VP() if base is None else base
        self.t_min, self.t_max = self.base.t_min, self.base.t_max

    @cached_property
    def eigenvalues(self) -> Tensor:
        """lambda_j for every frequency, (D, 1, 1)."""
        total = torch.zeros(self.event_shape, dtype=torch.float64)
        for axis in range(self.channels, len(self.event_shape)):
            n = self.event_shape[axis]
            line = (math.pi * torch.arange(n, dtype=torch.float64) / n) ** 2
            total = total + line.reshape(-1, *[1] * (len(self.event_shape) - 1 - axis))
        return total.reshape(-1, 1, 1)

    @cached_property
    def _bases(self) -> list[Tensor]:
        """For every axis that is blurred the orthonormal cosine basis, (n, n), a frequency a row."""
        return [cosine_basis(n) for n in self.event_shape[self.channels :]]

    def split(self, x: Tensor) -> Tensor:
        """The cosine coefficients, (B, D, 1)."""
        return super().split(self._turned(x, [basis.mT for basis in self._bases]))

    def join(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A state of its coefficients."""
        return self._turned(super().join(y, shape), self._bases)

    def _turned(self, x: Tensor, bases: list[Tensor]) -> Tensor:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; this process blurs states of shape {self.event_shape}.")
        shape, stride = x.shape, 1
        for basis in reversed(bases):  # products alone: to move an axis to the end and back copies the state twice
            matrix = basis.to(x.device, x.dtype)
            x = x.reshape(-1, len(matrix), stride)
            x = x.flatten(1) @ matrix if stride == 1 else matrix.mT @ x
            stride *= len(matrix)
        return x.reshape(shape)

    def blur(self, t: Tensor) -> Tensor:
        """tau(t)."""
        return 0.5 * self.width**2 * torch.sin(0.5 * math.pi / self.t_max * t) ** 4

    def blur_rate(self, t: Tensor) -> Tensor:
        """tau'(t)."""
        angle = 0.5 * math.pi / self.t_max * t
        return self.width**2 * (math.pi / self.t_max) * torch.sin(angle) ** 3 * torch.cos(angle)

    def drift_matrix(self, t: Tensor) -> Tensor:
        """(log alpha)' - lambda tau', so that the mean decays as said."""
        return self.base.drift_coefficient(t) - self.eigenvalues.to(t.device) * self.blur_rate(t)

    def diffusion_matrix(self, t: Tensor) -> Tensor:
        """√(g² + 2 lambda tau' sigma²): what keeps the variance sigma² in spite of the blur."""
        added = 2 * self.eigenvalues.to(t.device) * self.blur_rate(t) * self.base.variance(t)
        return torch.sqrt(self.base.diffusion_coefficient(t) ** 2 + added)

    def moments(self, t: Tensor) -> Kernel:
        """The kernel from 0 in closed form."""
        return self.between(torch.zeros_like(t), t)

    def between(self, s: Tensor, t: Tensor) -> Kernel:
        """The kernel in closed form: frequencies may decay faster than any quadrature could follow."""
        s, t = (u.reshape(*u.shape, 1, 1, 1) for u in torch.broadcast_tensors(s, t))
        blurred = self.eigenvalues.to(t.device) * (self.blur(t) - self.blur(s))
        log_scale = self.base.log_alpha(t) - self.base.log_alpha(s) - blurred
        start = self.base.variance(s)
        # sigma_t² - scale² sigma_s², without the difference of two numbers near 1
        covariance = (self.base.variance(t) - start - torch.expm1(2 * log_scale) * start).clamp_min(0)
        return Kernel(torch.exp(log_scale), t.new_zeros(*t.shape[:-3], 1, 1), covariance)


def cosine_basis(n: int) -> Tensor:
    """The orthonormal cosine basis (the second kind of the discrete transform) of n points, (n, n): a frequency a row."""
    j, i = torch.arange(n, dtype=torch.float64).unsqueeze(1), torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (i + 0.5) * j / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis
