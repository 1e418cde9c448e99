r"""What solvers of higher order ask of the noise: its coefficient along a grid, its derivative, what it depends on.

A diagonal coefficient is *its own* where :math:`g_i` depends on no coordinate but :math:`x_i`. Only then do the noises of
different coordinates commute, and the iterated integrals of two different ones (which cannot be had cheaply) drop out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..autodiff import leaf, recording
from ..diffusion import Diagonal, Diffusion
from ..sde import SDE, Semilinear
from .onestep import check_coefficients

DiffusionAt = Callable[[Tensor], Diffusion]
"""The diffusion at one time, as a function of the state."""


def diffusions(process: SDE, times: Tensor) -> list[DiffusionAt]:
    """The diffusion at each of these host times (float64); of a reversed linear SDE, looked up."""
    if not isinstance(process, Semilinear):
        return [partial(_diffusion_at, process, t) for t in times.unbind()]
    w = process.affine(times)[2]
    check_coefficients(process, times, w)
    return [partial(_constant, Diagonal(value)) for value in w.tolist()]


def _diffusion_at(process: SDE, t: Tensor, x: Tensor) -> Diffusion:
    return process.diffusion(x, t)


def _constant(diffusion: Diffusion, x: Tensor) -> Diffusion:
    return diffusion


def with_derivative(diffusion: DiffusionAt, x: Tensor) -> tuple[Diffusion, Tensor | None]:
    r"""A diffusion that :func:`check_own` lets pass, and :math:`\partial g_i/\partial x_i`; None where it ignores the state."""
    keep = torch.is_grad_enabled()
    with recording():
        at = x if keep and x.requires_grad else leaf(x)
        g = diffusion(at)
        derivative = _pulled(g, at, torch.ones_like(x), keep)
    return g if keep else g.detached(), derivative


def with_correction(diffusion: DiffusionAt, x: Tensor) -> tuple[Diffusion, Tensor | None]:
    r"""Any diffusion, and :math:`\sum_{jk}G_{jk}\partial_j G_{ik}` of x's shape; None where it ignores the state."""
    keep = torch.is_grad_enabled()
    with recording():
        at = x if keep and x.requires_grad else leaf(x)
        g = diffusion(at)
        if g.additive or not g.requires_grad:
            return g, None
        c = g.correction(at)
    return (g, c) if keep else (g.detached(), c.detach())


def check_own(solver: object, diffusion: DiffusionAt, x: Tensor) -> None:
    r"""Raise unless the diffusion is diagonal and its own at these states, or additive by its type.

    With J the Jacobian of g, :math:`J^\top v = (J^\top 1)\,v` for every v if J is diagonal, and for a random v only then.

    Raises:
        TypeError: the noise is a matrix.
        ValueError: some g_i depends on x_j; it says which.
    """
    name = type(solver).__name__
    with recording():
        at = leaf(x)
        g = diffusion(at)
        if not g.diagonal and not g.additive:
            raise TypeError(
                f"{name} needs diagonal noise, and this process has {type(g).__name__} noise, a matrix of shape "
                f"{tuple(g.entries(x).shape)}: use EulerMaruyama or StochasticHeun, or SRA1 if the matrix ignores the state."
            )
        v = _probe(x)
        plain, seen = (_pulled(g, at, u, False) for u in (torch.ones_like(x), v))
    if plain is None or seen is None or x.device.type == "meta":
        return
    size = torch.maximum(seen.abs(), (plain * v).abs()).amax(tuple(range(1, x.ndim)), keepdim=True)
    wrong = (seen - plain * v).abs() > torch.finfo(x.dtype).eps ** 0.5 * size
    if bool(wrong.any()):
        raise ValueError(
            f"{name} needs a diffusion whose g_i depends on no coordinate but x_i, and {_culprit(diffusion, x, wrong)}: use "
            "EulerMaruyama or StochasticHeun, which take any."
        )


def check_additive(solver: object, diffusion: DiffusionAt, x: Tensor) -> None:
    """Raise unless the diffusion ignores the state.

    Raises:
        ValueError: it depends on it.
    """
    with recording():
        at = leaf(x)
        g = diffusion(at)
        seen = None if g.additive else _pulled(g, at, _probe(g.entries(at)), False)
    if seen is not None and x.device.type != "meta" and bool(seen.any()):
        raise ValueError(
            f"{type(solver).__name__} needs additive noise, and the diffusion of this process depends on the state: use SRIW1 "
            "for diagonal noise, StochasticHeun for any."
        )


def _pulled(g: Diffusion, x: Tensor, v: Tensor, keep: bool) -> Tensor | None:
    """J^T v for the Jacobian J of g's entries, of v's shape; None where g ignores x."""
    if g.additive or not g.requires_grad:
        return None
    entries = g.entries(x)
    (pulled,) = torch.autograd.grad((entries * v).sum(), x, create_graph=keep, retain_graph=True, allow_unused=True)
    return pulled


def _probe(like: Tensor) -> Tensor:
    """The same random vector each time: a check must not take numbers from the solve."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def _culprit(diffusion: DiffusionAt, x: Tensor, wrong: Tensor) -> str:
    """Which coefficient depends on which coordinate that is not its own."""
    row = int(wrong.nonzero()[0, 0])
    on = int(wrong[row].flatten().nonzero()[0])
    with recording():
        at = leaf(x[row : row + 1])
        g = diffusion(at)
        for i, value in enumerate(g.entries(at).flatten()):
            (slope,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
            if i != on and slope is not None and bool(slope.flatten()[on] != 0):
                return f"here, in flattened coordinates, g_{i} depends on x_{on}"
    return "here it depends on other samples of the batch"
