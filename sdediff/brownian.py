r"""One Brownian path, looked at with any steps.

Of an interval of length h the path's increment W and the *space-time area* H of its bridge are known, independent normals
of variance h and h/12; they hold its integral, :math:`\int (W_u - W_s)\,du = h(\tfrac12 W + H)`. Halves are drawn from
wholes: with z and z' standard normal,

.. math:: W_{\frac12} = \tfrac12 W \pm a, \quad H_{\frac12} = \tfrac14 H - \tfrac18\sqrt h\,z \pm \sqrt{h/48}\,z',
          \qquad a = \tfrac32 H + \tfrac14\sqrt h\,z,

plus for the first half, minus for the second. z and z' are a function of the seed and of the interval's place in the tree of
halves (:mod:`~sdediff.keyed`), so that the path is the same whatever is asked of it, in any order, and nothing is
stored. A step is put together from the largest intervals that tile it, which costs no cancellation. Intervals
:math:`(W_1, H_1)`, :math:`(W_2, H_2)` that are the parts p and q = 1 - p of a whole join to

.. math:: W = W_1 + W_2, \qquad H = pH_1 + qH_2 + \tfrac12(qW_1 - pW_2) .

Below the finest intervals, the leaves, the path follows its conditional mean :math:`W_{pl} = pW + 6pqH`.

Sources: Jelinčič, Foster and Kidger 2024, https://arxiv.org/abs/2405.06464; Foster, Lyons and Oberhauser 2020,
https://arxiv.org/abs/1904.06998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .keyed import Keyed, KeyedStream, Source, label
from .noise import Stream

_ROOT, _HALVES = 3, 4  # what a label begins with
_TOGETHER = 1 << 16  # numbers drawn at once on the way down the tree


class BrownianPath(Keyed):
    r"""The same Brownian path for every solve on [t0, t1], whatever its steps: pass it as ``noise=``.

    A step from s to t, on either clock, gets :math:`\Delta W = W(t) - W(s)` and the integral of that increment over the
    step (:meth:`~sdediff.noise.Stream.with_integral`): a reversal sees the path from its other end. So steps of any size,
    either way, agree on what they share. (A reversal driven by the path that made its starting states would look
    ahead: give it a path with another seed.)

    Sample i's path depends on (seed, i), or on seeds[i], alone, not on the batch. Starting states and a corrector's noise are
    independent of the path.

    Args:
        t0, t1: the interval, t0 < t1, in any units of time.
        seed: one integer in [0, 2**63) for any batch, or one per sample.
        parts: how many equal intervals the tree starts from. Steps that end on its nodes cost two normals a step, others
            two per level below them: with solves of 10, 20, 40, ... steps, take parts=10.
        depth: how often a part is halved. The path is exact at the :math:`parts\cdot2^{depth}+1` nodes; an increment with
            an end between them lacks at most 1/12 of a leaf's variance, :math:`(t_1 - t_0)/(12\,parts\cdot2^{depth})`.

    A stream holds at most 8(depth + 1) tensors of the state's shape, however many steps it takes: those on the way to
    the ends of the step. On steps that are 2**k to a part it is 8(k + 1). Steps shorter than a leaf are refused.

    Raises:
        TypeError, ValueError: an interval that is empty or not finite, a seed, parts or depth out of range.
    """

    def __init__(self, t0: float, t1: float, seed: int | Sequence[int] | Tensor, *, parts: int = 1, depth: int = 20):
        super().__init__(seed)
        if not -math.inf < t0 < t1 < math.inf:
            raise ValueError(f"The path's interval [{t0}, {t1}] must be finite, with t0 < t1, on either clock.")
        for name, value, least in (("parts", parts, 1), ("depth", depth, 0)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, got {value!r}.")
            if value < least:
                raise ValueError(f"{name} = {value} must be at least {least}.")
        self.t0, self.t1, self.parts, self.depth = float(t0), float(t1), parts, depth
        self.leaves = parts << depth
        # Times are rounded: a point this near to a node, in leaves, is that node.
        self._slack = self.leaves * 2.0**-50 * max(1.0, max(abs(t0), abs(t1)) / (t1 - t0))
        if self._slack > 2.0**-8:
            raise ValueError(
                f"depth = {depth} with parts = {parts} divides [{t0:g}, {t1:g}] more finely than float64 tells times apart: "
                "take a smaller depth."
            )

    def open(self, x: Tensor) -> Stream:
        """The path, for states like x."""
        return _PathStream(self, self.source(x.shape[0], x.device, x.dtype), x)

    def integer(self) -> int:
        """Refused: a backend that draws its own numbers does not follow this path."""
        raise ValueError(
            "A backend that draws its own numbers cannot follow a BrownianPath: use a fixed-step solver such as "
            "EulerMaruyama or SRIW1, or seed=."
        )

    def place(self, t: float) -> float:
        """t in leaves from t0; exactly an integer at a node."""
        at = (t - self.t0) / (self.t1 - self.t0) * self.leaves
        nearest = round(at)
        at = nearest if abs(at - nearest) <= self._slack else at
        if not 0 <= at <= self.leaves:
            raise ValueError(
                f"t = {t:g} is outside [{self.t0:g}, {self.t1:g}], the interval of this BrownianPath: build it for the "
                "whole of the solve."
            )
        return at


class _PathStream(KeyedStream):
    """A path for states of one shape; the noise that belongs to no path is that of its base."""

    def __init__(self, path: BrownianPath, source: Source, x: Tensor):
        super().__init__(source, x)
        self.path = path
        self._trees: dict[torch.Size, _Tree] = {}  # by event shape

    def unit(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        """The increment over the step's root length."""
        return self._piece(s, t, shape).w.mul(math.copysign(abs(t - s) ** -0.5, t - s)).to(self.dtype)

    def increment(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        """W(t) - W(s)."""
        w = self._piece(s, t, shape).w
        return (w if t > s else -w).to(self.dtype)

    def with_integral(self, s: float, t: float, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
        """The increment and its integral. Seen from the other end the bridge's area is the same."""
        _, w, area = self._piece(s, t, shape)
        w = w if t > s else -w
        return w.to(self.dtype), torch.add(area, w, alpha=0.5).mul_(abs(t - s)).to(self.dtype)

    def _piece(self, s: float, t: float, shape: torch.Size | None) -> Piece:
        event = (self.shape if shape is None else shape)[1:]
        if event not in self._trees:
            self._trees[event] = _Tree(self.path, self.source, event)
        return self._trees[event].between(self.path.place(s), self.path.place(t))


class Piece(NamedTuple):
    """What is known of the path over an interval.

    Args:
        length: of the interval, in leaves.
        w: the increment, (B, *event).
        area: the space-time area H of its bridge.
    """

    length: float
    w: Tensor
    area: Tensor


def join(first: Piece, second: Piece) -> Piece:
    """The interval made of two that follow each other."""
    length = first.length + second.length
    p, q = first.length / length, second.length / length
    bridge = torch.add(q * first.w, second.w, alpha=-p)
    area = torch.add(p * first.area, second.area, alpha=q)
    return Piece(length, first.w + second.w, area.add_(bridge, alpha=0.5))


def halves(whole: Piece, root: float, z1: Tensor, z2: Tensor) -> tuple[Piece, Piece]:
    """The two halves of an interval, ``root`` the square root of its length in units of time."""
    a = torch.add(1.5 * whole.area, z1, alpha=0.25 * root)
    b = torch.add(0.25 * whole.area, z1, alpha=-0.125 * root)
    c = z2 * (root / 48**0.5)
    w = torch.add(a, whole.w, alpha=0.5)
    return Piece(whole.length / 2, w, b + c), Piece(whole.length / 2, whole.w - w, b - c)


def means(whole: Piece, p: float) -> tuple[Piece, Piece]:
    """The parts p and 1 - p of an interval, each its mean given the whole."""
    q = 1 - p
    w = torch.add(p * whole.w, whole.area, alpha=6 * p * q)
    return Piece(p * whole.length, w, p * p * whole.area), Piece(q * whole.length, whole.w - w, q * q * whole.area)


class _Tree:
    """The intervals of a path for one event shape; (level, index) is the index-th of length ``leaves / 2**level``."""

    def __init__(self, path: BrownianPath, source: Source, event: torch.Size):
        self.depth, self.source, self.event = path.depth, source, event
        self.leaf = (path.t1 - path.t0) / path.leaves
        self.roots: dict[int, Piece] = {}
        self.known: dict[tuple[int, int], tuple[Piece, Piece]] = {}  # the halves of an interval

    def between(self, start: float, end: float) -> Piece:
        """The path from one place to another, either way; what leads to ``end`` is kept for the next call."""
        low, high = min(start, end), max(start, end)
        if high - low < 1:
            shortest, length = self.leaf, (high - low) * self.leaf
            raise ValueError(
                f"A step of {length:.3g} is shorter than this BrownianPath resolves, {shortest:.3g}: give it a larger depth "
                f"(now {self.depth}), or move a time to save at onto a node."
            )
        self._descend(low, high)
        whole: Piece | None = None
        for index in range(int(low) >> self.depth, math.ceil(high / (1 << self.depth))):
            piece = self._cover(0, index, self._root(index), low, high)
            whole = piece if whole is None else join(whole, piece)
        assert whole is not None
        self.known = {at: value for at, value in self.known.items() if self._cuts(*at, end)}
        self.roots = {index: value for index, value in self.roots.items() if self._cuts(0, index, end)}
        return whole

    def _descend(self, low: float, high: float) -> None:
        """Halve, from the top, every interval that one of these places cuts."""
        ways = [self._way(place) for place in (low, high)]
        missing = list(dict.fromkeys(at for way in ways for at in way if at not in self.known))
        z = self._draw(missing)
        for way in ways:
            for level, index in way:
                if (level, index) not in self.known:
                    whole = self._root(index) if level == 0 else self.known[level - 1, index // 2][index % 2]
                    root = math.sqrt(whole.length * self.leaf)
                    self.known[level, index] = halves(whole, root, *z.pop((level, index)))

    def _way(self, place: float) -> list[tuple[int, int]]:
        """The intervals that a place cuts, from the top."""
        levels = range(self.depth)
        indices = [int(place) >> (self.depth - level) for level in levels]
        return [(level, index) for level, index in zip(levels, indices, strict=True) if self._cuts(level, index, place)]

    def _draw(self, intervals: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """The two normals that halve each of these intervals, many drawn at once while they are small."""
        labels = [label(_HALVES, *at) for at in intervals]
        group = max(1, _TOGETHER // max(1, len(self.source.keys) * self.event.numel()))
        z = [self.source.pairs(labels[k : k + group], self.event) for k in range(0, len(labels), group)]
        return dict(zip(intervals, (pair for part in z for pair in part.unbind(1)), strict=True))

    def _cover(self, level: int, index: int, whole: Piece, low: float, high: float) -> Piece:
        """The part of an interval that lies in [low, high]."""
        first, last = self._ends(level, index)
        if low <= first and last <= high:
            return whole
        if level == self.depth:
            return means(whole, low - first)[1] if low > first else means(whole, high - first)[0]
        left, right = self.known[level, index]
        middle = (first + last) // 2
        if high <= middle:
            return self._cover(level + 1, 2 * index, left, low, high)
        if low >= middle:
            return self._cover(level + 1, 2 * index + 1, right, low, high)
        return join(
            self._cover(level + 1, 2 * index, left, low, high), self._cover(level + 1, 2 * index + 1, right, low, high)
        )

    def _root(self, index: int) -> Piece:
        """A part that the tree starts from."""
        if index not in self.roots:
            length = float(1 << self.depth)
            root = math.sqrt(length * self.leaf)
            z1, z2 = self.source.pair(label(_ROOT, index), self.event)
            self.roots[index] = Piece(length, z1 * root, z2 * (root / 12**0.5))
        return self.roots[index]

    def _cuts(self, level: int, index: int, place: float) -> bool:
        first, last = self._ends(level, index)
        return first < place < last

    def _ends(self, level: int, index: int) -> tuple[int, int]:
        size = 1 << (self.depth - level)
        return index * size, (index + 1) * size
