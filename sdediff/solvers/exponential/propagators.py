r"""The steps of a reversed affine process with matrix coefficients, the score left out.

With :math:`x_u \mid x_0 \sim \mathcal N(\Phi_ux_0 + c_u, C_u)`, :math:`D = LL^\top` and the data prediction :math:`\hat x_0`,
the score is :math:`-C^{-1}(x - \Phi\hat x_0 - c)`, and the reversal from t down to s becomes

.. math:: x_s - c_s = \Psi(s, t)(x_t - c_t) + \int_t^s d\bigl[\Psi(s, u)\Phi_u\bigr]\,\hat x_0(u) + R\,z, \qquad
          \partial_s\Psi = \bigl(A + \tfrac12(1+\eta^2)DC^{-1}\bigr)\Psi ,

with :math:`RR^\top = \eta^2\int\Psi D\Psi^\top`: the linear part and the noise exactly, and a function of time to be
interpolated. For :math:`\eta = 0`, :math:`\Psi(s, t) = R_sR_t^{-1}` with a root of C that follows the flow; for
:math:`\eta = 1` it is the gain :math:`C_s\Phi(t, s)^\top C_t^{-1}` of Bayes' rule. One collocation method in float64 finds
:math:`\Psi` for every :math:`\eta`.

Source: Zhang et al. 2022, https://arxiv.org/abs/2206.05564.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...blocks import act, gram, like, product, root
from ...collocation import TOLERANCE, Legendre
from ...sde import CoupledSemilinear
from .rules import Variable, lagrange

_RULE = Legendre(12)
_MOST_PARTS = 64


@dataclass(frozen=True)
class Propagators:
    r"""The steps of a grid: matrices over blocks, float64.

    Args:
        psi: :math:`\Psi(s, t)`, (N, m, k, k).
        noise: :math:`\eta^2\int\Psi D\Psi^\top`, likewise.
        total: :math:`\Phi_s - \Psi\Phi_t`, what multiplies a constant prediction.
        shift: :math:`c_s - \Psi c_t`, (N, n or 1, k).
        nodes: log(alpha/sigma) at the nodes of the grid, (N + 1,).
        ell: the same at the nodes of a quadrature, (N, Q).
        weight: the increments of :math:`\Psi(s, u)\Phi_u` there, (N, Q, m, k, k).
    """

    psi: Tensor
    noise: Tensor
    total: Tensor
    shift: Tensor
    nodes: Tensor
    ell: Tensor
    weight: Tensor

    def spread(self) -> Tensor | None:
        """R, (N, m, k, k); None where no step has noise."""
        return root(self.noise) if bool((self.noise != 0).any()) else None

    def linear(self, k: int, y: Tensor) -> Tensor:
        """Step k of blocks y (B, n, k) without prediction and noise."""
        return act(like(self.psi[k], y), y) + like(self.shift[k], y)

    def weights(self, variable: Variable, sde: Any, k: int, nodes: range) -> Tensor:
        """The matrices of the predictions at these nodes of the grid in step k, (K, m, k, k): polynomial in ``variable``."""
        total = self.total[k]
        if len(nodes) == 1:
            return total.unsqueeze(0)
        at, own = (variable(sde, ell) for ell in (self.ell[k : k + 1], self.nodes[list(nodes)].unsqueeze(0)))
        weights = torch.einsum("qj,qmab->jmab", lagrange(own, at)[0], self.weight[k])
        weights[nodes.index(k)] += total - weights.sum(0)  # exact for a constant prediction, whatever the quadrature
        return weights


def steps_of(process: CoupledSemilinear, grid: Tensor, eta2: Tensor | None = None) -> Propagators:
    r"""The steps of a reversal along a falling grid.

    Args:
        process: the reversal.
        grid: N + 1 times.
        eta2: :math:`\eta^2` of each step, (N,), instead of the process's own in its middle.

    Raises:
        ValueError: the grid reaches t = 0, where the kernel has no noise.
    """
    if not bool((grid > 0).all()):
        raise ValueError(
            "An exponential step with matrices cannot reach t = 0, where the kernel has no noise and the propagator no limit: "
            f"end at t1 > 0, such as {max(process.t_min, 1e-3 * process.t_max):g}."
        )
    if eta2 is None:
        middle = 0.5 * (grid[1:] + grid[:-1])
        eta2 = torch.as_tensor(process.eta(middle), dtype=grid.dtype).expand_as(middle) ** 2
    return propagators(process.sde, grid, eta2)


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
    du = (u * length.reshape(-1, 1, 1) / parts).reshape(*u.shape, 1, 1, 1)
    drift, _, factor = sde.coefficients(u)
    kernel = sde.scales(u).kernel.reshape(u.shape)
    pull = _pull(gram(factor), kernel.covariance)  # D C⁻¹
    half = 0.5 * (1 + eta2).reshape(-1, 1, 1, 1, 1, 1)
    flow = (drift + half * pull) * du
    inner, part_of = _collocated(flow.movedim(-3, 2))  # (N, P, m, Q, k, k) and (N, P, m, k, k)
    after = [
        torch.eye(drift.shape[-1], dtype=grid.dtype).expand(part_of[:, 0].shape)
    ]  # Ψ(s, end of the part), last part first
    for part in reversed(range(parts)):
        after.append(product(after[-1], part_of[:, part]))
    psi = after.pop()
    psi_u = product(torch.stack(after[::-1], 1).unsqueeze(2), inner.movedim(2, 3))  # (N, P, Q, m, k, k)
    weight = _RULE.weights.reshape(-1, 1, 1, 1) * du
    added = -half * weight * product(product(psi_u, pull), kernel.scale)
    noise = (-weight * gram(product(psi_u, factor))).sum((1, 2)) * eta2.reshape(-1, 1, 1, 1)
    whole = sde.scales(grid).kernel
    total = whole.scale[1:] - product(psi, whole.scale[:-1])
    shift = whole.shift[1:] - act(psi, whole.shift[:-1])
    nodes, ell = (0.5 * sde.log_snr(v) for v in (grid, u))
    return Propagators(psi, noise, total, shift, nodes, ell.flatten(1), added.flatten(1, 2))


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
