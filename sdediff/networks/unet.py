r"""A U-Net for states with one or two spatial axes: signals, images, 8 x 8 digits.

Each level works at half the resolution of the one above it, and what a level knew on the way down comes back to it on the
way up. The residual block is

.. math:: h \leftarrow S h + C_2\,\mathrm{silu}\bigl((1+a)\odot\mathrm{norm}(C_1\,\mathrm{silu}(\mathrm{norm}\,h)) + b\bigr),
          \qquad (a, b) = A\,\mathrm{silu}(e(t) + e(c)) ,

with convolutions :math:`C_1, C_2` of three points an axis, and :math:`S` the identity or, where channels change, a
pointwise map. :math:`C_2`, the last layer of attention and the layer that gives the output start at zero, so that a fresh
network predicts 0 and each block begins as its shortcut.

Sources: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; Ho et al. 2020, https://arxiv.org/abs/2006.11239;
Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Network

_Conv: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}


class UNet(Network):
    """``net(x, t)`` or ``net(x, t, labels)`` for x (B, *axes) or (B, C, *axes).

    Args:
        event_shape, classes: as in :class:`~sdediff.networks.Network`.
        channels: of each level, from the full resolution down; every level after the first halves the axes.
        blocks: residual blocks of each level, on the way down and on the way up.
        attention: True for self-attention after each block of the lowest level; or one choice for each level.
        spatial: how many of the last axes are spatial, 1 or 2; an axis before them is that of the channels. By default 2
            where there are two or three axes: for signals (C, L) say ``spatial=1``.
        embedding: a module from t (B,) to (B, embedding.dim); :class:`~sdediff.networks.Sinusoidal` by default.

    Raises:
        ValueError: a size is not positive, the axes are no such shape, or too short for the levels; on evaluation, x or the
            labels do not fit.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        channels: Sequence[int] = (32, 64),
        blocks: int = 2,
        attention: bool | Sequence[bool] = False,
        spatial: int | None = None,
        embedding: nn.Module | None = None,
        classes: int | None = None,
    ):
        super().__init__(event_shape, classes=classes)
        self.channels, self.blocks, self.attention = tuple(channels), blocks, attention
        self.spatial = min(2, len(self.event_shape)) if spatial is None else spatial
        attend = _at_levels(attention, len(self.channels))
        _check(self.event_shape, self.channels, blocks, self.spatial)
        conv, first = _Conv[self.spatial], self.channels[0]
        width = 4 * first
        self.sees(width, embedding)
        own = self.event_shape[0] if len(self.event_shape) > self.spatial else 1
        self.inward = conv(own, first, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        before = first
        for c, attends in zip(self.channels, attend, strict=True):
            level = nn.ModuleList(Stage(conv, c, c, width, attends) for _ in range(blocks))
            self.shrink.append(conv(before, c, 3, stride=2, padding=1) if len(self.down) else nn.Identity())
            self.down.append(level)
            before = c
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for k in reversed(range(len(self.channels))):
            c = self.channels[k]
            self.grow.append(conv(before, c, 3, padding=1) if len(self.up) else nn.Identity())
            self.up.append(nn.ModuleList(Stage(conv, 2 * c, c, width, attend[k]) for _ in range(blocks)))
            before = c
        self.norm = _norm(first)
        self.outward = _zero(conv(first, own, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The output, of x's shape, for x (B, *event), t (B,) and labels (B,)."""
        e = self.features(x, t, self.check(x, cond))
        h = self.inward(x if x.ndim == self.spatial + 2 else x.unsqueeze(1))
        known: list[Tensor] = []
        for shrink, level in zip(self.shrink, self.down, strict=True):
            h = shrink(h)
            for stage in level:  # type: ignore[attr-defined]
                h = stage(h, e)
                known.append(h)
        for grow, level in zip(self.grow, self.up, strict=True):
            if h.shape[2:] != known[-1].shape[2:]:
                h = functional.interpolate(h, known[-1].shape[2:], mode="nearest")
            h = grow(h)
            for stage in level:  # type: ignore[attr-defined]
                h = stage(torch.cat([h, known.pop()], 1), e)
        return self.outward(functional.silu(self.norm(h))).reshape(x.shape)


class Stage(nn.Module):
    """One residual block of :class:`UNet`, and attention after it where asked for."""

    def __init__(self, conv: Any, inward: int, outward: int, width: int, attention: bool):
        super().__init__()
        self.before, self.between = _norm(inward), _norm(outward, affine=False)
        self.first = conv(inward, outward, 3, padding=1)
        self.film = nn.Linear(width, 2 * outward)
        self.second = _zero(conv(outward, outward, 3, padding=1))
        self.shortcut = nn.Identity() if inward == outward else conv(inward, outward, 1)
        self.attention = Attention(outward) if attention else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h (B, C, *axes) under the features e (B, width) of time and class."""
        scale, shift = self.film(e).reshape(len(e), -1, *[1] * (h.ndim - 2)).chunk(2, 1)
        new = self.between(self.first(functional.silu(self.before(h))))
        return self.attention(self.shortcut(h) + self.second(functional.silu((1 + scale) * new + shift)))


class Attention(nn.Module):
    """Self-attention between all places, added to what was there; heads of about 32 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = math.gcd(max(1, channels // 32), channels)
        self.norm = _norm(channels)
        self.ask = nn.Linear(channels, 3 * channels)
        self.answer = _zero(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        """h (B, C, *axes)."""
        batch, channels, *axes = h.shape
        places = self.norm(h).flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = self.ask(places).reshape(batch, -1, 3, self.heads, channels // self.heads).unbind(2)
        out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out = self.answer(out.transpose(1, 2).reshape(batch, -1, channels))
        return h + out.transpose(1, 2).reshape(batch, channels, *axes)


def _norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Up to 8 groups of at least 4 channels: one channel alone would lose its mean."""
    return nn.GroupNorm(math.gcd(8, channels, max(1, channels // 4)), channels, affine=affine)


def _zero(layer: Any) -> Any:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _at_levels(attention: bool | Sequence[bool], levels: int) -> list[bool]:
    if isinstance(attention, bool):
        return [attention and k == levels - 1 for k in range(levels)]
    if len(attention) != levels:
        raise ValueError(f"attention = {attention} names {len(attention)} levels, channels has {levels}.")
    return [bool(choice) for choice in attention]


def _check(event: tuple[int, ...], channels: tuple[int, ...], blocks: int, spatial: int) -> None:
    if not channels or min(*channels, blocks) < 1:
        raise ValueError(f"channels {channels} and blocks {blocks} must be positive, with at least one level.")
    if spatial not in (1, 2) or not 0 <= len(event) - spatial <= 1:
        raise ValueError(
            f"event_shape {event} with spatial = {spatial}: a UNet takes one or two spatial axes, and at most one axis of "
            "channels before them. For other data there is MLP."
        )
    if min(event[-spatial:]) < 2 ** (len(channels) - 1):
        raise ValueError(
            f"event_shape {event} is too small for {len(channels)} levels, each of which halves the axes: give fewer "
            "channels=."
        )
