r"""Noise that makes averages converge faster: antithetic pairs and Sobol' starting states.

*Antithetic*: samples come in pairs driven by z and -z. What is odd in the noise cancels from an average, exactly; what is
even in it costs a factor 2 in variance.

*Sobol'*: starting states :math:`\Phi^{-1}(u_i)` with u_1, ..., u_n spread evenly over the unit cube. Averages over a smooth
function of few coordinates then err by about 1/n instead of :math:`1/\sqrt n`: use it for probability flows, whose samples
depend on their start alone.

Sources: Hammersley and Morton 1956, https://doi.org/10.1017/S0305004100031455; Owen 1998,
https://doi.org/10.1145/272991.273010 (scrambled nets); Joe and Kuo 2008, https://doi.org/10.1137/070709359 (the numbers).
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from .keyed import Keyed
from .noise import Noise, Stream


class Antithetic(Noise):
    """Samples 2i and 2i + 1 get opposite noise: starting states, steps and correctors alike.

    Args:
        noise: the recipe for one of each pair, for n/2 samples; or an integer seed. A pair's noise then depends on the seed
            and its number alone.

    Raises:
        TypeError: neither a recipe nor an integer.
        ValueError: on use, an odd number of samples.
    """

    def __init__(self, noise: Noise | int):
        self.noise = as_steps(noise)
        self.independent = self.noise.independent

    def open(self, x: Tensor) -> Stream:
        """A stream of pairs."""
        return _Pairs(self.noise.open(x[::2]), x.shape)

    def integer(self) -> int:
        """Refused: a backend that draws its own numbers makes no pairs."""
        raise ValueError(
            "A backend that draws its own numbers makes no antithetic pairs: use a fixed-step solver, or seed=."
        )

    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Starting states in pairs."""
        self.check(shape[0])
        return _paired(self.noise.initial((shape[0] // 2, *shape[1:]), device, dtype))

    def rows(self, start: int, stop: int) -> Self:
        """The pairs of a part of the batch."""
        if start % 2 or stop % 2:
            raise ValueError(f"Samples {start} to {stop} cut an antithetic pair in two: use an even batch_size and n.")
        part = copy.copy(self)
        part.noise = self.noise.rows(start // 2, stop // 2)
        return part

    def check(self, batch: int) -> None:
        """Pairs need an even batch."""
        if batch % 2:
            raise ValueError(f"Antithetic noise comes in pairs, and a batch of {batch} is odd: take one more.")
        self.noise.check(batch // 2)

    def frozen(self) -> Noise:
        """The same pairs, however often they are opened."""
        return Antithetic(self.noise.frozen())


class _Pairs(Stream):
    def __init__(self, stream: Stream, shape: torch.Size):
        self.stream, self.shape = stream, shape

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        return _paired(self.stream.normal(self._half(shape)))

    def unit(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        return _paired(self.stream.unit(s, t, self._half(shape)))

    def increment(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        return _paired(self.stream.increment(s, t, self._half(shape)))

    def with_integral(self, s: float, t: float, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
        dw, dz = self.stream.with_integral(s, t, self._half(shape))
        return _paired(dw), _paired(dz)

    def _half(self, shape: torch.Size | None) -> torch.Size:
        shape = self.shape if shape is None else shape
        return torch.Size((shape[0] // 2, *shape[1:]))


def _paired(z: Tensor) -> Tensor:
    """z_1, -z_1, z_2, -z_2, ... along the batch."""
    return torch.stack([z, -z], 1).flatten(0, 1)


class Sobol(Noise):
    """Starting states from a scrambled Sobol' sequence, and ordinary noise for the steps.

    Sample i is the i-th point, whatever ``batch_size``. n is best a power of two; the points cover up to 21,201 coordinates,
    the first of them best. Averages over other seeds are independent, which gives error bars.

    Args:
        seed: scrambles the sequence.
        steps: the recipe for everything but starting states; by default made of the seed.

    Raises:
        TypeError: seed is no integer, or steps no recipe.
    """

    def __init__(self, seed: int, steps: Noise | None = None):
        self.steps = as_steps(seed if steps is None else steps)
        self.seed, self._first = seed, 0
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"seed must be an integer, got {seed!r}.")

    def open(self, x: Tensor) -> Stream:
        """A stream of ordinary noise."""
        return self.steps.open(x)

    def integer(self) -> int:
        """That of the recipe for the steps."""
        return self.steps.integer()

    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """The next points of the sequence, as normals."""
        event = torch.Size(shape[1:])
        if device.type == "meta":
            return torch.empty(shape, device=device, dtype=dtype)
        if event.numel() > SobolEngine.MAXDIM:
            raise ValueError(
                f"One state has {event.numel()} coordinates and Sobol' points have {SobolEngine.MAXDIM} at most: use seed=."
            )
        engine = SobolEngine(max(1, event.numel()), scramble=True, seed=self.seed)
        u = engine.fast_forward(self._first).draw(shape[0], dtype=torch.float64)
        u = u + 0.5**31  # the points are multiples of 2**-30, 0 among them
        return torch.special.ndtri(u).reshape(shape).to(device, dtype)

    def rows(self, start: int, stop: int) -> Self:
        """The part of the sequence that belongs to these samples."""
        part = copy.copy(self)
        part._first, part.steps = self._first + start, self.steps.rows(start, stop)
        return part

    def check(self, batch: int) -> None:
        """As the recipe for the steps."""
        self.steps.check(batch)

    def frozen(self) -> Noise:
        """The same noise, however often it is opened."""
        twin = copy.copy(self)
        twin.steps = self.steps.frozen()
        return twin


def as_steps(noise: Noise | int) -> Noise:
    """A recipe, or the one that an integer seed stands for."""
    if isinstance(noise, Noise):
        return noise
    if not isinstance(noise, int) or isinstance(noise, bool):
        raise TypeError(f"Give a Noise such as PerSample(seeds), or an integer seed, got {noise!r}.")
    return Keyed(noise)
