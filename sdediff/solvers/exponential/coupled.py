r"""Exponential multistep for reversals of affine processes with matrix coefficients.

With :math:`x_u \mid x_0 \sim \mathcal N(\Phi_ux_0 + c_u, C_u)`, :math:`D = LL^\top` and the data prediction :math:`\hat x_0`,
the score is :math:`-C^{-1}(x - \Phi\hat x_0 - c)`, and the reversal from t down to s becomes

.. math:: x_s - c_s = \Psi(s, t)(x_t - c_t) + \int_t^s d\bigl[\Psi(s, u)\Phi_u\bigr]\,\hat x_0(u) + R\,z, \qquad
          \partial_s\Psi = \bigl(A + \tfrac12(1+\eta^2)DC^{-1}\bigr)\Psi ,

with :math:`RR^\top = \eta^2\int\Psi D\Psi^\top`: the linear part and the noise exactly, a polynomial in place of
:math:`\hat x_0`. For :math:`\eta = 0`, :math:`\Psi(s, t) = R_sR_t^{-1}` with a root of C that follows the flow; for
:math:`\eta = 1` it is the gain :math:`C_s\Phi(t, s)^\top C_t^{-1}` of Bayes' rule. One collocation method in float64 finds
:math:`\Psi` for every :math:`\eta`. Where one number multiplies x this is
:class:`~sdediff.ExponentialMultistep` with the data prediction.

Source: Zhang et al. 2022, https://arxiv.org/abs/2206.05564.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...blocks import act, gram, product, root
from ...collocation import TOLERANCE, Legendre
from ...noise import Stream
from ...score import Score
from ...sde import SDE, Coefficient, CoupledSemilinear, check_coefficient
from ..base import Advance, Orders, Remembering, Solver
from .guidance import too_high
from .multistep import check_order, own_eta2
from .rules import Variable, in_power, lagrange

_RULE = Legendre(12)
_MOST_PARTS = 64
_LEVEL = in_power(0.65)


class CoupledMultistep(Solver):
    r"""Exponential Adams steps with matrix propagators, one evaluation a step, of any stochasticity.

    Meant for steps that shorten towards the data, such as ``grids.Power(n, 3.0)``. On a reversal with noise order 2 is as good
    as any. Under strong guidance it falls back to order 2, corrector included, with a warning.

    Args:
        order: the number q of data predictions used, 1 to 4. The first steps, which have fewer, are of lower order.
        variable: what the prediction is taken to be polynomial in, by default :math:`(\sigma/\alpha)^{0.65}` with the mean
            log-SNR of the coordinates.
        corrector: improve each state once the prediction at it is known, at no further evaluation; on a flow the order is
            then q + 1.
        stochasticity: eta instead of the process's own, a number or a function of t; for reversals with noise.

    Raises:
        TypeError: the order is no whole number.
        ValueError: the order is outside 1 to 4.
    """

    requires = CoupledSemilinear
    instead = (
        "use ExponentialMultistep or one of its presets for the reversal of a LinearSDE, EulerMaruyama for any SDE"
    )

    def __init__(
        self,
        order: int = 3,
        *,
        variable: Variable = _LEVEL,
        corrector: bool = True,
        stochasticity: Coefficient | None = None,
    ):
        self.order, self.variable, self.corrector = check_order(order), variable, corrector
        self.stochasticity = None if stochasticity is None else check_coefficient(stochasticity, "stochasticity")
        # With noise a step knows the increment of its Brownian path and nothing else of it: weak order 2 is the most.
        self.orders = Orders(weak=float(min(2, order + corrector)), ode=float(order + corrector))

    def check(self, process: SDE) -> None:
        """A flow takes no stochasticity of the solver's own."""
        super().check(process)
        if process.direction == 0 and self.stochasticity not in (None, 0.0):
            raise ValueError(
                f"{type(self).__name__} with its own stochasticity needs a reversal with noise: solve sde.reverse(score)."
            )

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """All matrices of the grid at once; a step then is the prediction and a few products."""
        assert isinstance(process, CoupledSemilinear)
        if not bool((grid > 0).all()):
            raise ValueError(
                f"{type(self).__name__} cannot reach t = 0, where the kernel has no noise and the propagator no limit: end at "
                f"t1 > 0, such as {max(process.t_min, 1e-3 * process.t_max):g}."
            )
        sde = process.sde
        eta2 = self._eta2(process, grid)
        steps = propagators(sde, grid, eta2)
        ell = 0.5 * sde.log_snr(grid)
        count = len(grid) - 1
        order, earlier = self.order, self.order
        if too_high(process.score, order + self.corrector, "is lowered to 2"):
            order, earlier = min(order, 2), 1
        orders = [min(order, k + 1) for k in range(count)]
        predictor = [self._weights(sde, steps, ell, k, range(k, k - orders[k], -1)) for k in range(count)]
        corrector = [
            self._weights(sde, steps, ell, k, range(k + 1, k - min(orders[k], earlier), -1)) for k in range(count)
        ]
        spread = root(steps.noise) if bool((eta2 > 0).any()) else None
        shift = sde.scales(grid).kernel.shift
        shift = shift[1:] - act(steps.psi, shift[:-1])
        predict = process.score.along(grid[:-1], Score.data)
        nodes = grid.tolist()
        past: deque[Tensor] = deque(maxlen=order)  # predictions as blocks, newest first
        base: list[Tensor] = []  # the linear part and noise of the last step

        def advance(k: int, x: Tensor) -> Tensor:
            p = sde.split(predict[k](x))
            corrects = self.corrector and k > 0
            y = _combined(base.pop(), corrector[k - 1], [p, *past]) if corrects else sde.split(x)
            past.appendleft(p)
            start = act(_like(steps.psi[k], y), y) + _like(shift[k], y)
            if spread is not None:
                start = start + act(_like(spread[k], y), sde.split(noise.unit(nodes[k], nodes[k + 1])))
            if self.corrector:
                base.append(start)
            return sde.join(_combined(start, predictor[k], past), x.shape)

        return Remembering(advance, past, base)

    def _eta2(self, process: CoupledSemilinear, grid: Tensor) -> Tensor:
        """eta² of each step, (N,): constant within a step, that at its middle."""
        if self.stochasticity is not None:
            return own_eta2(self.stochasticity, grid)
        middle = 0.5 * (grid[1:] + grid[:-1])
        return torch.as_tensor(process.eta(middle), dtype=grid.dtype).expand_as(middle) ** 2

    def _weights(self, sde: Any, steps: Propagators, ell: Tensor, k: int, nodes: range) -> Tensor:
        """The matrices of the predictions at these nodes of the grid in step k, (K, m, k, k)."""
        total = steps.total[k]
        if len(nodes) == 1:
            return total.unsqueeze(0)
        at, own = (self.variable(sde, e) for e in (steps.ell[k : k + 1], ell[list(nodes)].unsqueeze(0)))
        weights = torch.einsum("qj,qmab->jmab", lagrange(own, at)[0], steps.weight[k])
        first = nodes.index(k)
        weights[first] += total - weights.sum(0)  # exact for a constant prediction, whatever the quadrature
        return weights


@dataclass(frozen=True)
class Propagators:
    r"""The steps of a grid: matrices over blocks, float64.

    Args:
        psi: :math:`\Psi(s, t)`, (N, m, k, k).
        noise: :math:`\eta^2\int\Psi D\Psi^\top`, likewise.
        total: :math:`\Phi_s - \Psi\Phi_t`, what multiplies a constant prediction.
        ell: log(alpha/sigma) at the nodes of a quadrature, (N, Q).
        weight: the increments of :math:`\Psi(s, u)\Phi_u` there, (N, Q, m, k, k).
    """

    psi: Tensor
    noise: Tensor
    total: Tensor
    ell: Tensor
    weight: Tensor


def propagators(sde: Any, grid: Tensor, eta2: Tensor) -> Propagators:
    """The propagators along a falling grid, each step cut in as many parts as a relative change of 1e-11 asks for."""
    parts, steps = 1, _in_parts(sde, grid, eta2, 1)
    while parts < _MOST_PARTS:
        parts *= 2
        finer = _in_parts(sde, grid, eta2, parts)
        change = float(
            ((finer.psi - steps.psi).abs() / finer.psi.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)).max()
        )
        steps = finer
        if change < TOLERANCE:
            break
    return steps


def _in_parts(sde: Any, grid: Tensor, eta2: Tensor, parts: int) -> Propagators:
    """By collocation at Gauss-Legendre nodes of log u in each part: X = Ψ(end, u) solves dX = -X F du from X = I."""
    length = (grid[1:] / grid[:-1]).log()  # of a step in log u
    x = (torch.arange(parts, dtype=grid.dtype).unsqueeze(1) + _RULE.nodes) / parts  # (P, Q)
    u = grid[:-1, None, None] * torch.exp(length[:, None, None] * x)  # (N, P, Q)
    du = (u * length[:, None, None] / parts)[..., None, None, None]
    drift, _, factor = sde.coefficients(u)
    kernel = sde.scales(u).kernel.reshape(u.shape)
    pull = _pull(gram(factor), kernel.covariance)  # D C⁻¹
    half = 0.5 * (1 + eta2)[:, None, None, None, None, None]
    flow = (drift + half * pull) * du
    inner, whole = _collocated(flow.movedim(-3, 2))  # (N, P, m, Q, k, k) and (N, P, m, k, k)
    after = [
        torch.eye(drift.shape[-1], dtype=grid.dtype).expand(whole[:, 0].shape)
    ]  # Ψ(s, end of the part), last part first
    for part in reversed(range(parts)):
        after.append(product(after[-1], whole[:, part]))
    psi = after.pop()
    psi_u = product(torch.stack(after[::-1], 1).unsqueeze(2), inner.movedim(2, 3))  # (N, P, Q, m, k, k)
    weight = _RULE.weights[:, None, None, None] * du
    added = -half * weight * product(product(psi_u, pull), kernel.scale)
    noise = (-weight * gram(product(psi_u, factor))).sum((1, 2)) * eta2[:, None, None, None]
    scale = sde.scales(grid).kernel.scale
    total = scale[1:] - product(psi, scale[:-1])
    ell = 0.5 * sde.log_snr(u)
    return Propagators(psi, noise, total, ell.flatten(1), added.flatten(1, 2))


def _collocated(flow: Tensor) -> tuple[Tensor, Tensor]:
    """X at the nodes (..., Q, k, k) and over the whole part (..., k, k), for F du at the nodes (..., Q, k, k)."""
    count, k = flow.shape[-3], flow.shape[-1]
    coupling = torch.einsum("qr,...rij->...riqj", _RULE.after, flow).reshape(*flow.shape[:-3], count * k, count * k)
    eye = torch.eye(k, dtype=flow.dtype)
    rows = eye.repeat(1, count).expand(*flow.shape[:-3], k, count * k)
    solved = torch.linalg.solve(torch.eye(count * k, dtype=flow.dtype) - coupling, rows, left=False)
    inner = solved.reshape(*solved.shape[:-1], count, k).movedim(-2, -3)
    return inner, eye + torch.einsum("q,...qij->...ij", _RULE.weights, product(inner, flow))


def _pull(gram: Tensor, covariance: Tensor) -> Tensor:
    """D C⁻¹."""
    if covariance.shape[-1] == 1:
        return gram / covariance
    return torch.cholesky_solve(gram.mT, root(covariance)).mT


def _combined(start: Tensor, weights: Tensor, values: Any) -> Tensor:
    """start + the predictions, each times its matrix."""
    for weight, value in zip(weights, values, strict=False):
        start = start + act(_like(weight, value), value)
    return start


def _like(matrix: Tensor, y: Tensor) -> Tensor:
    return matrix.to(y.device, y.dtype)
