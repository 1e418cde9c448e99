"""Densities: laws with ``sample``, ``log_prob`` and ``score``.

Parameters are kept in float64 on the host. A density answers in the dtype and on the device of the ``x`` it is asked
about, computing in float64 where the device has it; samples come in its own ``dtype`` and on its own ``device``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..autodiff import leaf, recording
from ..checks import check_count, check_like, check_seed, check_state


class Posterior(Protocol):
    r"""What is known of :math:`x_t = \alpha x_0 + \sigma\epsilon` at given x, each found when asked for."""

    def score(self) -> Tensor: ...
    def noise(self) -> Tensor: ...
    def data(self) -> Tensor: ...
    def log_prob(self) -> Tensor: ...


class Density(ABC):
    """A law on states of shape ``event_shape``. Subclasses write :meth:`draw` and :meth:`log_prob`."""

    event_shape: tuple[int, ...]
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``n`` samples, (n, *event), in float64 on the host where the law itself lives there."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats at x (B, *event), shape (B,)."""

    def score(self, x: Tensor) -> Tensor:
        r""":math:`\nabla_x\log p(x)`, of x's shape; by automatic differentiation unless a subclass knows better."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with recording():
            at = x if keep else leaf(x)
            (gradient,) = torch.autograd.grad(self.log_prob(at).sum(), at, create_graph=keep)
        return check_like(gradient, x, "the score")

    def diffused(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        r"""The posterior of :math:`x_0` given :math:`x = \alpha x_0 + \sigma\epsilon`, where it has a closed form."""
        raise NotImplementedError(
            f"{type(self).__name__} stays in closed form under no linear SDE, so it has no exact score at t > 0. Use a "
            "Mixture, or an Empirical density of samples, or train a score on samples."
        )

    def sample(self, n: int, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` samples, (n, *event), in this density's dtype and on its device.

        Args:
            n: how many, at least 1.
            seed: or ``generator``, a host generator: for repeatable samples. At most one of the two; with neither,
                torch's global generator is used.

        Raises:
            ValueError: n < 1, both seed and generator given, or a generator that is not on the host.
        """
        check_count(n, "n", "at least one sample")
        generator = host_generator(seed, generator)
        with torch.no_grad():
            return self.draw(n, generator).to(self.device, self.dtype)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """This density, sampling on another device or in another dtype."""
        moved = copy.copy(self)
        if device is not None:
            moved.device = torch.device(device)
        if dtype is not None:
            if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise TypeError(f"dtype = {dtype} must be a real floating-point dtype, such as torch.float32.")
            moved.dtype = dtype
        return moved

    def _check(self, x: Tensor) -> Tensor:
        if tuple(check_state(x).shape[1:]) != self.event_shape:
            wanted = ", ".join(["B", *map(str, self.event_shape)])
            raise ValueError(
                f"x has shape {tuple(x.shape)}; {type(self).__name__} needs ({wanted}{',' * (not self.event_shape)})."
            )
        return x


class Distribution(Density):
    """Any object in the style of ``torch.distributions``: ``log_prob(x)`` and, for samples, ``sample((n,))``.

    Args:
        distribution: its ``log_prob`` must give shape (B,) for x (B, *event): wrap a factorised law in
            ``torch.distributions.Independent``.

    Raises:
        ValueError: the distribution is a batch of several.
        TypeError: it has no ``event_shape``.
    """

    def __init__(self, distribution: Any):
        shape = getattr(distribution, "batch_shape", torch.Size())
        if len(shape) > 0:
            raise ValueError(
                f"The distribution has batch_shape {tuple(shape)}: wrap it in torch.distributions.Independent(d, "
                f"{len(shape)}) so that log_prob gives one number per sample."
            )
        if not hasattr(distribution, "event_shape"):
            raise TypeError(f"{type(distribution).__name__} has no event_shape: set it to the shape of one sample.")
        self.distribution = distribution
        self.event_shape = tuple(distribution.event_shape)
        # A sample is the one thing that every distribution has and that shows its device and dtype (a TransformedDistribution
        # has no mean).
        with _forked(), torch.no_grad():
            probe = distribution.sample((1,)) if hasattr(distribution, "sample") else torch.zeros(())
        self.device, self.dtype = probe.device, probe.dtype

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples of the distribution. torch.distributions takes no generator: the global one is seeded and restored."""
        if generator is None:
            return self.distribution.sample((n,))
        with _forked():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return self.distribution.sample((n,))

    def log_prob(self, x: Tensor) -> Tensor:
        """The distribution's log_prob, (B,)."""
        value = self.distribution.log_prob(self._check(x)).to(x.dtype)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"log_prob of {type(self.distribution).__name__} has shape {tuple(value.shape)} for x of shape "
                f"{tuple(x.shape)}; it must be ({len(x)},)."
            )
        return value


def as_density(law: Any) -> Density:
    """``law`` itself if it is a :class:`Density`, else a :class:`Distribution` around it."""
    if isinstance(law, Density):
        return law
    if not hasattr(law, "log_prob"):
        raise TypeError(f"{type(law).__name__} is no density: it has no log_prob(x).")
    return Distribution(law)


def host_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    """The generator that a seed or a generator stands for; None for neither (torch's global one)."""
    if seed is not None and generator is not None:
        raise ValueError("Give seed or generator, not both.")
    if seed is not None:
        return torch.Generator().manual_seed(check_seed(seed))
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}: a number is seed=.")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}; densities draw on the host: use torch.Generator().")
    return generator


def _forked() -> Any:
    """The global generators as they were, afterwards; CUDA's too, where something has started it."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)


def beside(c: Tensor, flat: Tensor) -> Tensor:
    """A schedule value of shape () or (B, 1, ..., 1) beside a float64 (..., B): as (), or (B,) on its device."""
    if c.ndim == 0 and c.device.type == "cpu":
        return c
    return c.reshape(-1).to(flat.device, flat.dtype) if c.ndim else c.to(flat.device, flat.dtype)
