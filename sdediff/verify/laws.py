"""The law p_t that a check compares with, in float64."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..densities import Density, Mixture, as_density
from ..exact import ExactScore
from ..metrics.mixtures import Line, projected
from ..nonlinear import KernelScore, KernelSDE
from ..sde import SDE, ScoreLike


class Law(ABC):
    """The law at each time, as a check needs it. Subclass it for a process whose law you know in another way."""

    event_shape: tuple[int, ...]
    moves: bool = True
    """True where this is the law of the process at every t, so that its change in time can be checked too."""

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x) (B,), differentiable in x (B, *event) and, where the law moves, in t (B,)."""

    @abstractmethod
    def sample(self, n: int, t: float, generator: torch.Generator) -> Tensor:
        """``n`` exact samples of p_t (n, *event), float64."""

    @property
    def score(self) -> ScoreLike:
        """The score of the law, as ``score(x, t)``: by automatic differentiation unless a subclass knows better."""
        return self.gradient

    def gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        """∇ log p_t at x (B, *event), by automatic differentiation of :meth:`log_prob`, whatever :attr:`score` knows."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            at = x if keep else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(at, t).sum(), at, create_graph=keep)
        return gradient

    def rate(self, x: Tensor, t: float) -> Tensor:
        """∂ log p_t/∂t at x (B, *event), (B,); 0 where the log density does not depend on t."""
        with torch.enable_grad():
            times = torch.full((len(x),), t, dtype=torch.float64).requires_grad_()
            value = self.log_prob(x, times)
            if not value.requires_grad:
                return torch.zeros_like(value)
            (rate,) = torch.autograd.grad(value.sum(), times)
        return rate

    def shadow(self, direction: Tensor, t: float) -> Line | None:
        """The law of the projection on ``direction`` (D,) in closed form, where there is one."""
        return None

    def modes(self, x: Tensor, t: float) -> tuple[Tensor, Tensor] | None:
        """Where the law has modes: the probability of each given x_t, (B, K), and their weights (K,).

        The expectation of the first is the second, however much the modes overlap.
        """
        return None


class Diffused(Law):
    """What a density becomes under a linear SDE.

    Args:
        sde: the process.
        density: the law at t = 0, one with a closed form under it.
    """

    def __init__(self, sde: SDE, density: Density):
        self.density = density.to(torch.device("cpu"), torch.float64)
        self.exact = ExactScore(sde, self.density)
        self.event_shape = self.exact.event_shape or density.event_shape

    def __str__(self) -> str:
        return f"{type(self.density).__name__} at t = 0, diffused in closed form"

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t."""
        return self.exact.log_prob(x, t)

    @property
    def score(self) -> ScoreLike:
        """The score in closed form."""
        return self.exact

    def sample(self, n: int, t: float, generator: torch.Generator) -> Tensor:
        """Exact samples."""
        return self.exact.sample(n, t, generator=generator)

    def shadow(self, direction: Tensor, t: float) -> Line | None:
        """A projected mixture is a mixture."""
        mixture = self._mixture(t)
        return None if mixture is None else projected(mixture, direction.double())

    def modes(self, x: Tensor, t: float) -> tuple[Tensor, Tensor] | None:
        """The components of a mixture."""
        mixture = self._mixture(t)
        return None if mixture is None else _components(mixture, x)

    def _mixture(self, t: float) -> Mixture | None:
        """p_t as a mixture, where it can be written as one: coupled states of several axes cannot."""
        if not isinstance(self.density, Mixture):
            return None
        try:
            return self.exact.law(t)
        except TypeError:
            return None


class Started(Law):
    """What a process with a known kernel makes of a few points, by that kernel.

    Args:
        sde: the process.
        points: where it starts, (K, *event).
    """

    def __init__(self, sde: KernelSDE, points: Tensor):
        self.exact = KernelScore(sde, points)
        self.event_shape, self.count = self.exact.event_shape, len(points)

    def __str__(self) -> str:
        return f"the kernel of {type(self.exact.process).__name__} from {self.count} points"

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t."""
        return self.exact.log_prob(x, t)

    def sample(self, n: int, t: float, generator: torch.Generator) -> Tensor:
        """Exact samples."""
        return self.exact.sample(n, t, generator=generator)


class Fixed(Law):
    """A density taken as the law at whatever time is asked for.

    Args:
        density: anything with ``log_prob`` and ``sample``.
    """

    moves = False

    def __init__(self, density: Density):
        self.density = as_density(density).to(torch.device("cpu"), torch.float64)
        self.event_shape = self.density.event_shape

    def __str__(self) -> str:
        return f"{type(self.density).__name__}, taken as the law at the time of the check"

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p."""
        return self.density.log_prob(x)

    @property
    def score(self) -> ScoreLike:
        """The density's own score."""
        return lambda x, t: self.density.score(x)

    def sample(self, n: int, t: float, generator: torch.Generator) -> Tensor:
        """Exact samples."""
        return self.density.sample(n, generator=generator)

    def shadow(self, direction: Tensor, t: float) -> Line | None:
        """A projected mixture is a mixture."""
        return projected(self.density, direction.double()) if isinstance(self.density, Mixture) else None

    def modes(self, x: Tensor, t: float) -> tuple[Tensor, Tensor] | None:
        """The components of a mixture."""
        return _components(self.density, x)


def law_of(sde: SDE, density: Density | Law) -> Law:
    """What ``density`` means beside ``sde``.

    Under a linear SDE, or one found to be affine, a density with a closed form there is the law at t = 0; any other density,
    and any density under another SDE, is the law at the time of the check. A :class:`Law` is itself.
    """
    if isinstance(density, Law):
        return density
    density = as_density(density)
    if type(density).diffused is Density.diffused or sde.direction != 1:
        return Fixed(density)
    try:
        return Diffused(sde, density)
    except (TypeError, ValueError, RuntimeError):  # no kernel, or none to be found; the report says so
        return Fixed(density)


def _components(density: Density, x: Tensor) -> tuple[Tensor, Tensor] | None:
    if not isinstance(density, Mixture) or len(density.means) == 1:
        return None
    return density.responsibilities(x), density.weights
