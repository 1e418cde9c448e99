r"""Random numbers as a function of what they are for, so that nothing needs to be remembered or drawn in order.

A sample's key, a label and a coordinate are hashed to 64 bits, which Box and Muller turn into two normals:

.. math:: z_1 + i z_2 = \sqrt{-2\log u}\;e^{2\pi i v}, \qquad (u, v) \text{ the lower and the upper 32 bits.}

The hash is the finaliser of SplitMix64, nested once per argument. Normals reach 6.8 standard deviations and no further.

Sources: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405 (counter-based generators); Steele, Lea and Flood 2014,
https://doi.org/10.1145/2660193.2660195 (SplitMix64); Box and Muller 1958, https://doi.org/10.1214/aoms/1177706645.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from .noise import Noise, Stream

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_LOW = (1 << 32) - 1
_START, _STREAM = 1, 2  # what a label begins with
_BLOCK = 1 << 15  # words hashed at once: they stay in the cache


class Keyed(Noise):
    """Sample i's numbers are a function of (seed, i), or of seeds[i], alone: not of the batch, nor of its size.

    Computed on the states' device, at the cost of a few draws of a plain generator.

    Args:
        seed: one integer in [0, 2**63), for any batch, or one per sample.

    Raises:
        TypeError, ValueError: a seed is no integer or out of range, or there are none.
    """

    def __init__(self, seed: int | Sequence[int] | Tensor):
        self.shared = isinstance(seed, int)
        if isinstance(seed, Tensor):
            seed = seed.tolist()
        self._seeds = _checked([seed] if isinstance(seed, int) else seed)
        self._first = 0  # the number of the first sample, where one seed serves all
        self.independent = not self.shared

    def open(self, x: Tensor) -> Stream:
        """A stream for states like x."""
        return KeyedStream(self.source(x.shape[0], x.device, x.dtype), x)

    def source(self, batch: int, device: torch.device, dtype: torch.dtype) -> Source:
        """The normals of this many samples, by label."""
        self.check(batch)
        index = torch.arange(self._first, self._first + batch, device=device) if self.shared else 0
        return Source(_mixed(_mixed(self._seeds.to(device)) + index), dtype)

    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normals for starting states, apart from those of the steps."""
        return self.source(shape[0], device, dtype).pair(label(_START), torch.Size(shape[1:]))[0].to(dtype)

    def integer(self) -> int:
        """A seed made of this one; refused with one seed per sample."""
        if not self.shared:
            raise ValueError("Seeds per sample give no seed for a backend that draws for the whole batch: use seed=.")
        return label(int(self._seeds[0]), self._first) % 2**31

    def rows(self, start: int, stop: int) -> Self:
        """The recipe for a part of the batch: its samples keep their numbers."""
        part = copy.copy(self)
        if self.shared:
            part._first = self._first + start
        else:
            part._seeds = self._seeds[start:stop]
        return part

    def check(self, batch: int) -> None:
        """Seeds given one per sample must be as many as the samples."""
        if not self.shared and batch != len(self._seeds):
            raise ValueError(
                f"{type(self).__name__} has {len(self._seeds)} seeds for a batch of {batch}: give one seed per sample, or "
                "one seed for all."
            )


class PerSample(Keyed):
    """One seed per sample: sample i sees the same numbers alone and in any batch, bit for bit on one kind of device.

    Args:
        seeds: one integer in [0, 2**63) per sample.

    Raises:
        TypeError, ValueError: a seed is no integer or out of range, or there are none.
    """

    def __init__(self, seeds: Sequence[int] | Tensor):
        if isinstance(seeds, int):
            raise TypeError(
                f"PerSample needs one seed per sample, got {seeds}: use Keyed({seeds}), or PerSample(range(n))."
            )
        super().__init__(seeds)


class KeyedStream(Stream):
    """Normals in the order in which they are asked for.

    Args:
        source: the normals by label.
        x: a state, for its shape and dtype.
    """

    def __init__(self, source: Source, x: Tensor):
        self.source, self.shape, self.dtype = source, x.shape, x.dtype
        self._asked = 0
        self._waiting: dict[torch.Size, Tensor] = {}  # the second of a pair, by event shape

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        """Fresh normals; repeatable, as they depend on nothing but how many were asked for before."""
        event = (self.shape if shape is None else shape)[1:]
        if event not in self._waiting:
            self._asked += 1
            z, self._waiting[event] = self.source.pair(label(_STREAM, self._asked), event)
        else:
            z = self._waiting.pop(event)
        return z.to(self.dtype)


class Source:
    """Standard normals by label.

    Args:
        keys: one word per sample, int64 (B,).
        dtype: of the states; numbers are computed in float32 or float64, and are the same in both up to rounding.
    """

    def __init__(self, keys: Tensor, dtype: torch.dtype):
        self.keys, self.dtype = keys, torch.float64 if dtype == torch.float64 else torch.float32
        self._offsets: dict[torch.Size, Tensor] = {}

    def pair(self, label: int, event: torch.Size) -> tuple[Tensor, Tensor]:
        """Two independent normals, each (B, *event), for this label."""
        z = self.pairs([label], event)
        return z[0, 0], z[1, 0]

    def pairs(self, labels: Sequence[int], event: torch.Size) -> Tensor:
        """Two independent normals for each label: (2, L, B, *event)."""
        keys = (torch.tensor(labels, device=self.keys.device).unsqueeze(1) + self.keys).reshape(-1, 1)  # (L B, 1)
        out = torch.empty(2, len(keys), event.numel(), dtype=self.dtype, device=keys.device)
        rows = max(1, _BLOCK // max(1, event.numel()))
        for start in range(0, len(keys), rows):
            self._fill(out[:, start : start + rows], keys[start : start + rows], event)
        return out.reshape(2, len(labels), len(self.keys), *event)

    def _fill(self, out: Tensor, keys: Tensor, event: torch.Size) -> None:
        words = _mixed(_mixed(keys) + self._offset(event))
        angle = (words >> 32).to(self.dtype).mul_(2 * math.pi / 2**32)
        radius = words.bitwise_and_(_LOW).to(self.dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        torch.mul(torch.cos(angle), radius, out=out[0])
        torch.mul(angle.sin_(), radius, out=out[1])

    def _offset(self, event: torch.Size) -> Tensor:
        if event not in self._offsets:
            self._offsets[event] = torch.arange(1, event.numel() + 1, device=self.keys.device) * _signed(_GOLDEN)
        return self._offsets[event]


def label(*numbers: int) -> int:
    """The hash of some integers, as a signed 64-bit word: what :meth:`Source.pair` takes."""
    z = 0
    for number in numbers:
        z = ((z ^ number) + _GOLDEN) % 2**64
        z = (z ^ (z >> 30)) * _FIRST % 2**64
        z = (z ^ (z >> 27)) * _SECOND % 2**64
        z ^= z >> 31
    return _signed(z)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser. Its shifts are of unsigned words, hence the masks."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        z = (z >> shift).bitwise_and_((1 << (64 - shift)) - 1).bitwise_xor_(z).mul_(_signed(factor))
    return (z >> 31).bitwise_and_((1 << 33) - 1).bitwise_xor_(z)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _checked(seeds: Sequence[int]) -> Tensor:
    if not len(seeds):
        raise ValueError("Give at least one seed.")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"A seed must be an integer, got {seed!r}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"Seed {seed} is outside [0, 2**63).")
    return torch.tensor(list(seeds), dtype=torch.int64)
