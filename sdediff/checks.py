"""What a state and a time may look like: every public entry passes its arguments through here.

A state ``x`` has shape ``(B, *event)``. A time reaches user code either as shape ``()`` in float64, or as
``(B, 1, ..., 1)`` in at least float32, ready to broadcast against ``x``.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

Time = float | Tensor
"""A time as callers give it: a number, or a tensor of shape (), (B,) or (B, 1, ..., 1)."""

# The one kind of device that torch runs on and that has no float64.
_NO_FLOAT64 = ("mps",)


def check_state(x: Tensor, name: str = "x") -> Tensor:
    """Return ``x`` if it can be a state: a real floating tensor with a non-empty batch axis."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (B, *event), got {type(x).__name__}.")
    if not x.dtype.is_floating_point:
        cure = f"{name}.real, or torch.view_as_real({name})" if x.is_complex() else f"{name}.float()"
        raise TypeError(f"{name} must be a real floating-point tensor, got {x.dtype}: use {cure}.")
    if x.ndim == 0:
        raise ValueError(f"{name} has shape (); a state needs a batch axis: use {name}.reshape(1).")
    if x.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: the batch is empty, give at least one sample.")
    return x


def all_finite(x: Tensor) -> bool:
    """Whether all of x is finite; meta tensors pass. One reduction in the usual case: a finite sum has finite terms."""
    return x.device.type == "meta" or bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def check_finite(x: Tensor, name: str = "x") -> Tensor:
    """Return ``x`` if all of it is finite. Reads one value back from the device; meta tensors pass."""
    if not all_finite(x):
        rows = torch.nonzero(~torch.isfinite(x).flatten(1 if x.ndim > 1 else 0).reshape(x.shape[0], -1).all(1))
        raise ValueError(
            f"{name} has NaN or infinite entries in {len(rows)} of {x.shape[0]} samples "
            f"(first: {rows.flatten()[:5].tolist()}). Remove or repair these samples."
        )
    return x


def check_number(value: object, name: str) -> float:
    """``value`` as a float, if it is a real number (or a 0-d tensor of one) and not NaN."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_seen(value)}.")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{name} = {value} does not fit into 64 bits: give it as a float.")
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"{name} = {value} must be a number, not NaN.")
    return number


def check_positive(value: object, name: str) -> float:
    """``value`` as a float, if it is a positive finite number."""
    number = check_number(value, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} = {value!r} must be a positive finite number.")
    return number


LARGEST = 1e18
"""The largest that the parameter of a law may be, and the inverse of the smallest scale: float32 still holds their squares."""


def check_size(value: object, name: str) -> float:
    """``value`` as a float, if it is a number of at most 1e18 in size."""
    number = check_number(value, name)
    if abs(number) > LARGEST:
        raise ValueError(f"{name} = {number:g} must be finite, at most {LARGEST:g} in size: use other units.")
    return number


def check_scale(value: object, name: str) -> float:
    """``value`` as a float, if it is a positive number between 1e-18 and 1e18."""
    number = check_number(value, name)
    if not 1 / LARGEST <= number <= LARGEST:
        raise ValueError(
            f"{name} = {number:g} must be positive, between {1 / LARGEST:g} and {LARGEST:g}: use other units."
        )
    return number


def check_parameter(value: object, name: str) -> Tensor:
    """A number, sequence or tensor of real numbers as a float64 copy on the host."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, dtype=torch.complex64)
    if found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"{name} must be numbers, a tensor or nested lists of equal length, got {_seen(value)}.")
    # from the value again: as_tensor alone rounds a list to float32
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()


def check_count(value: object, name: str, cure: str = "a positive whole number", least: int = 1) -> int:
    """``value``, if it is a whole number of at least ``least`` that fits into 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a positive whole number, got {_seen(value)}.")
    if not least <= value < 2**63:
        raise ValueError(f"{name} = {value}: ask for {cure}.")
    return value


MOST = 1_000_000
"""The most modes, arms or squares that a toy law is made of."""


def check_whole(value: object, name: str) -> int:
    """``value``, if it is a whole number of at most a million."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {_seen(value)}.")
    if value > MOST:
        raise ValueError(f"{name} = {value} is more than {MOST:,}.")
    return value


def check_seed(seed: object) -> int:
    """``seed``, if a torch generator takes it."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, got {seed!r}.")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed = {seed} does not fit into 64 bits: take a smaller one.")
    return seed


def check_event(shape: object) -> tuple[int, ...]:
    """``shape`` as the shape of one state: a tuple of positive whole numbers, () for a number."""
    if isinstance(shape, int) and not isinstance(shape, bool):
        raise TypeError(f"event_shape = {shape} must be a tuple: event_shape=({shape},).")
    if not isinstance(shape, (tuple, list)) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise TypeError(f"event_shape must be a tuple of whole numbers such as (2,), got {_seen(shape)}.")
    if any(n < 1 for n in shape):
        raise ValueError(f"event_shape = {tuple(shape)} must hold positive numbers.")
    return tuple(shape)


def _seen(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 40 and not isinstance(value, Tensor) else type(value).__name__


def float64(t: Time) -> Tensor:
    """``t`` as a float64 tensor; on a device without float64, float32."""
    if not isinstance(t, Tensor):
        if not isinstance(t, Real):
            try:
                return torch.as_tensor(t, dtype=torch.float64)  # a list of times
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"A time must be a number or a tensor, got {_seen(t)}.") from None
        if math.isnan(t):
            raise ValueError("A time is NaN: give a number.")
        return torch.tensor(float(t), dtype=torch.float64)
    if t.dtype == torch.float64:
        return t
    return t.to(torch.float32 if t.device.type in _NO_FLOAT64 else torch.float64)


def time_dtype(t: Time) -> torch.dtype:
    """The dtype in which schedule values for ``t`` are returned: that of ``t``, at least float32."""
    if not isinstance(t, Tensor) or not t.dtype.is_floating_point:
        return torch.float64
    return torch.promote_types(t.dtype, torch.float32)


def as_time(t: Time, x: Tensor, t_max: float = math.inf) -> Tensor:
    """``t`` in the shape in which drifts, schedules and scores receive it beside ``x``.

    A number or a ``()`` tensor becomes a ``()`` float64 tensor; ``(B,)`` or ``(B, 1, ..., 1)`` becomes
    ``(B, 1, ..., 1)`` in at least float32. Values outside ``[0, t_max]`` raise, and those outside by no more than rounding
    become the end itself (on the host only: a time on an accelerator is not read back).
    """
    if not isinstance(t, Tensor):
        if not isinstance(t, Real):
            raise TypeError(f"t must be a number or a tensor, got {type(t).__name__}.")
        return torch.tensor(_inside(float(t), t_max), dtype=torch.float64)
    if t.is_complex():
        raise TypeError("t is complex; times are real numbers.")
    if t.ndim == 0:
        if t.device.type == "cpu":
            value = t.item()
            if _inside(value, t_max) != value:
                return torch.tensor(_inside(value, t_max), dtype=torch.float64)
        return float64(t)
    batch = x.shape[0]
    if t.shape[0] != batch or t.numel() != batch:
        raise ValueError(
            f"t has shape {tuple(t.shape)} beside x of shape {tuple(x.shape)}: give a number, a 0-d tensor or one "
            f"time per sample, shape ({batch},)."
        )
    if t.device != x.device:
        raise ValueError(f"t is on {t.device} and x on {x.device}: move it with t.to(x.device).")
    t = within(t, t_max)
    t = t.to(torch.promote_types(t.dtype, torch.float32) if t.dtype.is_floating_point else torch.float32)
    return t.reshape(batch, *([1] * (x.ndim - 1)))


def within(t: Tensor, t_max: float) -> Tensor:
    """Times of any shape, if all lie in [0, t_max]; as for :func:`as_time`, but for rounding, and on the host only."""
    if not t.is_cpu or t.numel() == 0:
        return t
    if t.ndim == 0:
        low = high = t.item()
    else:
        low, high = (end.item() for end in torch.aminmax(t.detach()))
    if low >= 0 and high <= t_max < math.inf:  # as nearly always
        return t
    return t if _inside(low, t_max) == low and _inside(high, t_max) == high else t.clamp(0, t_max)


def _inside(t: float, t_max: float) -> float:
    """``t``, or the end of [0, t_max] that it misses by no more than a float32 rounds."""
    slack = 1e-6 * t_max if t_max < math.inf else 1e-6
    if not -slack <= t <= t_max + slack or t == math.inf:
        raise ValueError(f"t = {t:g} is outside [0, {t_max:g}], the domain of this process.")
    return min(max(t, 0.0), t_max)


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """``t`` of shape ``()`` or ``(B, 1, ..., 1)`` as ``(B,)`` on x's device, as networks want it."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return t.to(x.device, dtype).reshape(-1).expand(x.shape[0])


def check_like(value: object, x: Tensor, what: str) -> Tensor:
    """Return what a user's function gave for ``x``, cast to x's dtype; it must have exactly x's shape."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{what} returned {type(value).__name__} for x of shape {tuple(x.shape)}; it must return a tensor of that "
            "shape (a constant c is `torch.full_like(x, c)`, no drift is `torch.zeros_like(x)`)."
        )
    if value.is_complex():
        raise TypeError(f"{what} returned a complex tensor; it must be real: use .real.")
    if value.shape != x.shape:
        raise ValueError(
            f"{what} returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}; it must return exactly x's "
            "shape. Beware of a reduction without keepdim=True and of a (d,) tensor that broadcast."
        )
    return value if value.dtype == x.dtype else value.to(x.dtype)
