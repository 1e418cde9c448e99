"""torchsde's solvers, on either clock and with its adjoint.

torchsde runs time upwards only: a reversal is handed over in s = -t. It draws its Brownian path from an interval object,
which is built here from the solve's seed and step, so that results are repeatable and steps cost no tree search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torchsde
from torch import Tensor

from ..checks import all_finite
from ..diffusion import Diffusion
from ..errors import non_finite
from ..sde import SDE
from .base import Integrator, Interval, Trajectory
from .diffusions import check_own
from .learned import adjoint_parameters


class TorchSDE(Integrator):
    """``torchsde.sdeint`` with uniform steps (give ``steps=`` or ``dt=``), saving exactly where asked.

    Args:
        method: an Itô method of torchsde: "euler", "milstein" or "srk".
        adjoint: compute gradients by torchsde's stochastic adjoint, in memory that does not grow with the steps; used with
            ``differentiable=True``. It reaches the parameters that the process and its score keep, however deeply; not
            those hidden in a plain function, nor a condition.

    torchsde evaluates the drift once more than it steps, to check shapes; this is counted. Its methods other than "euler"
    leave out what couples the noises of different coordinates, so a g_i that depends on x_j is refused.

    Raises:
        NonFiniteError: a state became NaN or infinite; it names step, time and samples, found by going the same way again.
        TypeError, ValueError: the noise is a matrix or depends on other coordinates, where the method is not "euler"; or the
            adjoint finds neither parameters nor a state that wants gradients.

    Source: Li et al. 2020, https://arxiv.org/abs/2001.01328; https://github.com/google-research/torchsde
    """

    couples_samples = True
    fixed = True

    def __init__(self, method: str = "euler", *, adjoint: bool = False):
        known = {"euler": "none", "milstein": "none", "srk": "space-time"}
        if method not in known:
            raise ValueError(f"method = {method!r} is none of torchsde's Itô methods: {', '.join(known)}.")
        self.method, self.adjoint, self._levy = method, adjoint, known[method]

    def integrate(self, process: SDE, x: Tensor, interval: Interval) -> Trajectory:
        """One call of torchsde from each wanted time to the next, on one Brownian path."""
        falling, start = bool(interval.times[-1] < interval.times[0]), float(interval.times[0])
        if self.method != "euler":
            check_own(self, lambda at: process.diffusion(at, start), x)
        system = _System(process, x, process.diffusion(x, start), falling)
        entropy = interval.noise.integer()
        solve: Callable[..., Tensor] = torchsde.sdeint
        if self.adjoint and interval.differentiable:
            solve = partial(torchsde.sdeint_adjoint, adjoint_params=adjoint_parameters(process, x))
        states, steps = self._run(solve, system, x, interval, entropy)
        if not all_finite(states[-1]):  # torchsde says nothing: go the same way again, looking at every step
            calls = (system.calls - len(interval.times) + 1) // steps
            watched = _Watched(process, x, process.diffusion(x, start), falling, interval, calls)
            with torch.no_grad():
                again, _ = self._run(torchsde.sdeint, watched, x, interval, entropy)
                watched.check(again[-1])
        return Trajectory(states, steps=steps)

    def _run(
        self, solve: Callable[..., Tensor], system: _System, x: Tensor, interval: Interval, entropy: int
    ) -> tuple[list[Tensor], int]:
        """The states at the wanted times and the number of steps, on the path of this entropy."""
        assert interval.dt is not None
        clock = system.sign * interval.times
        path = torchsde.BrownianInterval(
            t0=float(clock[0]),
            t1=float(clock[-1]),
            size=system.noise_size,
            dtype=x.dtype,
            device=x.device,
            entropy=entropy,
            dt=interval.dt,
            levy_area_approximation=self._levy,
        )
        states, steps, y = [x], 0, x.reshape(x.shape[0], -1)
        for s, t in pairwise(clock):
            count = _count(s, t, interval.dt)
            # A hair longer than the exact step, so that rounding cannot leave a sliver for one more.
            dt = float(t - s) / count * (1 + 1e-9)
            y = solve(system, y, torch.stack([s, t]), bm=path, method=self.method, dt=dt)[-1]
            steps += count
            states.append(y.reshape(x.shape))
        return states, steps


def _count(s: Tensor, t: Tensor, dt: float) -> int:
    """How many steps torchsde is to take from s to t."""
    return max(1, math.ceil(abs(float(t - s)) / dt - 1e-9))


class _System:
    """A process as torchsde sees it: f(s, y), g(s, y) on flat states, time rising."""

    sde_type = "ito"

    def __init__(self, process: SDE, x: Tensor, diffusion: Diffusion, falling: bool):
        self.process, self.shape, self.sign = process, x.shape, -1.0 if falling else 1.0
        diffusion.entries(x)  # raises where there are none
        self.noise_type = "diagonal" if diffusion.diagonal else "general"
        noise = diffusion.noise_shape(x)
        self.noise_size = (noise[0], noise.numel() // noise[0])
        self.calls = 0  # of the drift

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        x = y.reshape(self.shape)
        return self.sign * self.process.drift(x, self._time(s)).reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        x = y.reshape(self.shape)
        diffusion = self.process.diffusion(x, self._time(s))
        entries = diffusion.entries(x).to(y)
        return entries.reshape(y.shape) if diffusion.diagonal else entries

    def _time(self, s: Tensor) -> Tensor:
        return (self.sign * s).double().clamp(0.0, self.process.t_max)


class _Watched(_System):
    """The same, looked at in every call of the drift: the first that is not finite is an error which names its step.

    Args:
        interval: the solve, for its steps.
        calls: how often a step calls the drift; each stretch between wanted times calls it once more, before its first step.
    """

    def __init__(self, process: SDE, x: Tensor, diffusion: Diffusion, falling: bool, interval: Interval, calls: int):
        super().__init__(process, x, diffusion, falling)
        assert interval.dt is not None
        self.ends: list[tuple[float, float]] = []  # of each step
        self.starts: list[int | None] = []  # of each call: the step whose start it sees, if any
        for s, t in pairwise(interval.times):
            first, count = len(self.ends), _count(s, t, interval.dt)
            nodes = torch.linspace(float(s), float(t), count + 1, dtype=torch.float64).tolist()
            self.ends += pairwise(nodes)
            self.starts += [first, *(first + k // calls if k % calls == 0 else None for k in range(count * calls))]
        self.latest, self.good = 0, x  # the last step known to start from a finite state, and that state

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        x = y.reshape(self.shape)
        step = self.starts[self.calls]
        if step is not None and all_finite(x):
            self.latest, self.good = step, x
        self.check(x)
        slope = super().f(s, y)
        self.check(slope.reshape(self.shape))
        return slope

    def check(self, values: Tensor) -> None:
        """Raise if states or slopes (B, *event) are not finite."""
        if not all_finite(values):
            s, t = self.ends[self.latest]
            raise non_finite(values, t, step=self.latest, s=s, state=self.good)
