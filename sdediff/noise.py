r"""Where the random numbers of a solve come from.

A solver asks its :class:`Stream` for standard normals: ``unit(s, t)`` drives the step from s to t, so that the Brownian
increment is ``sqrt(|t - s|) * unit(s, t)``; ``normal()`` is noise that belongs to no path, as in a Langevin corrector.

What a seed guarantees: the same numbers on the same device type, torch version, dtype and batch shape, whatever ran
before. :class:`~sdediff.PerSample` guarantees more: sample i depends on its own seed alone, bit for bit, whatever the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from .checks import check_seed


class Stream(ABC):
    """The random numbers of one solve, shaped for its states."""

    @abstractmethod
    def normal(self, shape: torch.Size | None = None) -> Tensor:
        """Fresh standard normals, of the state's shape or of ``shape`` (B, ...)."""

    def unit(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        """Standard normals for the step from s to t: the Brownian increment over it divided by sqrt(|t - s|)."""
        return self.normal(shape)

    def increment(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        """The Brownian increment of the step from s to t, N(0, |t - s|)."""
        return self.unit(s, t, shape) * abs(t - s) ** 0.5

    def with_integral(self, s: float, t: float, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
        r"""The increment of the step from s to t, and its integral over the step as one that starts at s sees it.

        With :math:`B_u` the noise that has come in when u of the step's length :math:`h = |t - s|` has passed,

        .. math:: \Delta W = B_h \sim \mathcal N(0, h), \qquad \Delta Z = \int_0^h B_u\,du = \tfrac h2\Delta W + hH,

        on either clock; the space-time area :math:`H \sim \mathcal N(0, h/12)` is independent of :math:`\Delta W`.
        """
        h = abs(t - s)
        dw = self.increment(s, t, shape)
        return dw, torch.add(0.5 * h * dw, self.normal(shape), alpha=h * (h / 12) ** 0.5)


class Noise(ABC):
    """A recipe for streams. Opening the same recipe twice gives the same numbers unless it says otherwise."""

    @abstractmethod
    def open(self, x: Tensor) -> Stream:
        """The stream for a solve from states like ``x``."""

    @abstractmethod
    def integer(self) -> int:
        """A seed in [0, 2**31) for a backend that draws its own numbers."""

    @abstractmethod
    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normals for starting states (n, *event), apart from those of the steps."""

    def rows(self, start: int, stop: int) -> Self:
        """The recipe for samples ``start`` to ``stop`` of a batch."""
        return self

    def check(self, batch: int) -> None:  # noqa: B027 - most recipes serve any batch
        """Raise if the recipe is not for a batch of this size."""

    independent = False
    """True where each sample's numbers are its own."""

    def frozen(self) -> Noise:
        """A recipe that gives the numbers of the next stream, however often it is opened."""
        return self


class Seeded(Noise):
    """One generator for the whole batch; successive streams continue it.

    Args:
        generator: on the device of the states (on the host for meta states).
        alone: nobody else draws from it, so that numbers may be drawn ahead of their use.
    """

    def __init__(self, generator: torch.Generator, *, alone: bool = False):
        self.generator, self.alone = generator, alone

    def open(self, x: Tensor) -> Stream:
        """A stream that draws from the generator."""
        return _SeededStream(_usable(self.generator, x.device), x, self.alone)

    def integer(self) -> int:
        """An integer from the generator."""
        host = self.generator.device
        return int(torch.randint(2**31, (), generator=self.generator, device=host))

    def frozen(self) -> Seeded:
        """A twin of the generator as it stands."""
        twin = torch.Generator(self.generator.device)
        twin.set_state(self.generator.get_state())
        return Seeded(twin, alone=self.alone)

    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normals from the generator."""
        return torch.randn(shape, generator=_usable(self.generator, device), device=device, dtype=dtype)


# A call costs as much as some hundred numbers, so small states are drawn for several steps at once. The host generator works
# in sixteens: with a multiple of 16 numbers a step, they are the same numbers as drawn step by step.
_SMALL, _SIXTEEN = 4096, 16


class _SeededStream(Stream):
    def __init__(self, generator: torch.Generator | None, x: Tensor, alone: bool):
        self.generator, self.shape, self.device, self.dtype = generator, x.shape, x.device, x.dtype
        alike = alone and x.device.type == "cpu" and x.numel() % _SIXTEEN == 0
        self.steps = _SMALL // max(1, x.numel()) if alike else 1
        self.waiting: list[Tensor] = []  # drawn and not yet used, last first

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        if self.steps < 2 or not (shape is None or shape == self.shape):
            return self._draw(self.shape if shape is None else shape)
        if not self.waiting:
            self.waiting.extend(self._draw((self.steps, *self.shape)).unbind()[::-1])
        return self.waiting.pop()

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)


def as_noise(x_device: torch.device, seed: int | None, generator: torch.Generator | None, noise: Noise | None) -> Noise:
    """The recipe that ``seed=``, ``generator=`` and ``noise=`` mean; at most one may be given.

    With none, a seed is drawn from torch's global generator, so ``torch.manual_seed`` still governs.
    """
    if sum(given is not None for given in (seed, generator, noise)) > 1:
        raise ValueError("Give at most one of seed, generator and noise.")
    if noise is not None:
        if not isinstance(noise, Noise):
            raise TypeError(f"noise must be a Noise such as PerSample(seeds), got {type(noise).__name__}.")
        return noise
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}: a number is seed=.")
    if generator is None:
        host = x_device.type == "meta"
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        else:
            check_seed(seed)
        return Seeded(torch.Generator("cpu" if host else x_device).manual_seed(seed), alone=True)
    return Seeded(generator)


def _usable(generator: torch.Generator, device: torch.device) -> torch.Generator | None:
    if device.type == "meta":  # nothing is drawn there
        return None
    if generator.device.type != device.type:
        raise ValueError(
            f"The generator is on {generator.device} and the states on {device}: use torch.Generator('{device}')."
        )
    return generator
