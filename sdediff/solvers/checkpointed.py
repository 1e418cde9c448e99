r"""Gradients through many steps in bounded memory.

Automatic differentiation keeps what every step computed. Here only the states at the starts of segments are kept; when the
gradient comes back to a segment, its steps are taken again, with the same random numbers, and what they computed is kept
until the gradient has passed. With segments of :math:`\sqrt N` steps the memory of N steps is that of :math:`2\sqrt N`, for
one more evaluation a step. What remains per step is autograd's record of the operations, some 30 kB whatever the size of the
states. Gradients are those of the plain solve to the last bits, higher ones too.

Source: Griewank 1992, https://doi.org/10.1080/10556789208805505; Chen et al. 2016, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..noise import Stream
from ..sde import SDE
from .base import Advance, Solver, memory_of

State = tuple[Tensor, ...]
"""What is carried from step to step."""

Surroundings = Callable[[], Any]
"""Gives a context manager in which a step finds again what it found besides its state: random numbers, memory."""


class Checkpointed(Solver):
    """A fixed-step solver whose gradients need little memory: for ``solve(..., differentiable=True)``.

    Without ``differentiable=True`` it is the solver itself. The adaptive solvers do the same by themselves.

    Args:
        solver: a fixed-step solver.
        every: the steps of a segment; the root of their number by default.

    Raises:
        TypeError: ``solver`` is no fixed-step solver.
        RuntimeError: in the backward pass, a step did not give the same state twice.
    """

    def __init__(self, solver: Solver, *, every: int | None = None):
        if not isinstance(solver, Solver):
            raise TypeError(
                f"Checkpointed takes a fixed-step solver such as EulerMaruyama(), got {solver!r}. The native adaptive solvers "
                "bound the memory of their gradients by themselves; TorchSDE and TorchDiffEq have adjoint=True."
            )
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(f"every = {every!r} must be a whole number of steps, at least 1.")
        self.solver, self.every = solver, every
        self.requires, self.instead = solver.requires, solver.instead
        self.orders, self.couples_samples = solver.orders, solver.couples_samples

    def check(self, process: SDE) -> None:
        """What the solver itself asks for."""
        self.solver.check(process)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The solver's steps on a tape."""
        if not torch.is_grad_enabled():
            return self.solver.prepare(process, grid, noise)
        advance = self.solver.prepare(process, grid, noise)
        memory = memory_of(advance)
        tape = Tape(
            lambda k, state: (advance(k, state[0]),),
            len(grid) - 1,
            every=self.every,
            surroundings=lambda: _together(_rewindable(noise), _remembered(memory)),
        )
        return lambda k, x: tape.step(k, (x,))[0]


class Tape:
    """Steps 0, 1, ... whose intermediate values autograd does not keep but computes again, a segment at a time.

    Args:
        advance: ``advance(k, state)``: the state after step k, a tuple of tensors.
        count: how many steps there will be.
        every: the steps of a segment; the root of ``count`` by default.
        surroundings: called at the start of a segment; gives what makes its steps repeatable.
    """

    def __init__(
        self,
        advance: Callable[[int, State], State],
        count: int,
        *,
        every: int | None = None,
        surroundings: Callable[[], Surroundings] | None = None,
    ):
        self.advance, self.every = advance, every or math.ceil(math.sqrt(max(count, 1)))
        self.surroundings = surroundings or (lambda: nullcontext)
        self.segment: _Segment | None = None

    def step(self, k: int, state: State) -> State:
        """The state after step k; steps are taken in order."""
        if self.segment is None or k % self.every == 0:
            self.segment = _Segment(self.advance, k, state, self.surroundings())
        return self.segment.step(state)


class _Segment:
    """Some consecutive steps: the state they start from, and handles in place of what autograd would keep of them."""

    def __init__(self, advance: Callable[[int, State], State], first: int, state: State, surroundings: Surroundings):
        self.advance, self.first, self.count = advance, first, 0
        self.start = _detached(state)
        self.end = self.start
        self.surroundings, self.ambience = surroundings, _Ambience(state[0].device)
        self.handles: list[weakref.ref[_Handle]] = []
        self.live: dict[int, Tensor] = {}  # of the step being taken: it may differentiate within itself
        self.again: dict[int, Tensor] = {}  # computed again, for the gradient that is passing

    def step(self, state: State) -> State:
        with saved_tensors_hooks(self._pack, self._unpack):
            new = self.advance(self.first + self.count, state)
        self.live.clear()
        self.count += 1
        self.end = _detached(new)
        return new

    def _pack(self, tensor: Tensor) -> _Handle:
        handle = _Handle(self, len(self.handles))
        self.handles.append(weakref.ref(handle))
        self.live[handle.number] = tensor.detach()
        return handle

    @staticmethod
    def _unpack(handle: _Handle) -> Tensor:
        return handle.segment._value(handle.number)

    def _value(self, number: int) -> Tensor:
        if number in self.live:
            return self.live[number]
        if number not in self.again:
            self._repeat()
        return self.again.pop(number)

    def _repeat(self) -> None:
        """Take the steps once more, keeping what autograd asks for."""
        seen = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal seen
            value = tensor.detach()  # a node that held its own output, graph and all, would never be freed
            if seen < len(self.handles) and self.handles[seen]() is not None:
                self.again[seen] = value
            seen += 1
            return value

        state = _detached(self.start)
        hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
        with self.surroundings(), self.ambience.restored(), torch.enable_grad(), hooks:
            for k in range(self.first, self.first + self.count):
                state = self.advance(k, state)
        self._check(seen, state)

    def _check(self, seen: int, state: State) -> None:
        close = seen == len(self.handles) and all(map(_close, state, self.end))
        if not close:
            raise RuntimeError(
                f"Steps {self.first} to {self.first + self.count - 1}, repeated for the gradient, did not give the same state "
                "again. The score or drift is random (pass its noise in), its parameters were changed in between, or the "
                "solver remembers earlier steps without saying so (its advance must be a Remembering)."
            )


class _Handle:
    """Stands for a tensor of a segment until it is asked for."""

    __slots__ = ("__weakref__", "number", "segment")

    def __init__(self, segment: _Segment, number: int):
        self.segment, self.number = segment, number


class _Ambience:
    """torch's own random state and autocast, as a segment finds them at its start: for dropout and mixed precision."""

    def __init__(self, device: torch.device):
        self.type = device.type if device.type in ("cpu", "cuda", "xpu") else "cpu"
        self.devices = [] if self.type == "cpu" else [device]
        self.host = torch.get_rng_state()
        self.own = getattr(torch, self.type).get_rng_state(device) if self.devices else None
        self.autocast, self.dtype = torch.is_autocast_enabled(self.type), torch.get_autocast_dtype(self.type)

    @contextmanager
    def restored(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices, device_type=self.type if self.devices else "cuda"):
            torch.set_rng_state(self.host)
            if self.own is not None:
                getattr(torch, self.type).set_rng_state(self.own, self.devices[0])
            with torch.autocast(self.type, self.dtype, enabled=self.autocast):
                yield


def _rewindable(stream: Stream) -> Surroundings:
    """The stream as it stands, generators and all."""
    then = copy.deepcopy(vars(stream))

    @contextmanager
    def rewound() -> Iterator[None]:
        going = stream.__dict__
        stream.__dict__ = copy.deepcopy(then)
        try:
            yield
        finally:
            stream.__dict__ = going

    return rewound


def _remembered(memory: tuple[MutableSequence[Tensor], ...]) -> Surroundings:
    """What a solver remembers at this moment."""
    then = [_detached(tuple(part)) for part in memory]

    @contextmanager
    def restored() -> Iterator[None]:
        going = [list(part) for part in memory]
        try:
            _fill(memory, [_detached(part) for part in then])
            yield
        finally:
            _fill(memory, going)

    return restored


def _fill(memory: tuple[MutableSequence[Tensor], ...], parts: Any) -> None:
    for kept, part in zip(memory, parts, strict=True):
        kept.clear()
        kept.extend(part)


def _together(*parts: Surroundings) -> Surroundings:
    @contextmanager
    def entered() -> Iterator[None]:
        with parts[0](), parts[1]():
            yield

    return entered


def _detached(state: State) -> State:
    """The same values as leaves of a new graph."""
    return tuple(part.detach().requires_grad_(part.requires_grad) for part in state)


def _close(again: Tensor, before: Tensor) -> bool:
    if again.device.type == "meta" or before.numel() == 0:
        return True
    allowed = torch.finfo(before.dtype).eps ** 0.5 * (1 + before.abs().max())
    return again.shape == before.shape and bool((again - before).abs().max() <= allowed)
