r"""Predictor-corrector sampling: after each step, Langevin dynamics at the new time pull the samples towards its marginal.

.. math:: x \leftarrow x + \epsilon\,s(x, t) + \sqrt{2\epsilon}\,z, \qquad \epsilon = 2(r\sigma_t)^2 .

The step comes from the schedule, so samples do not depend on each other. (The rule of the source takes norms averaged
over the batch instead, which makes each sample depend on its batch.)

Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, section 4.2 and algorithms 4 and 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise import Stream
from ..sde import SDE, Semilinear
from .base import Advance, Remembering, Solver, memory_of


class Langevin:
    r"""Langevin steps at fixed t.

    Args:
        r: the step relative to the noise level, :math:`\epsilon = 2(r\sigma_t)^2`; stable below r = 1.
        steps: how many at each time, one evaluation each.
    """

    def __init__(self, r: float = 0.16, steps: int = 1):
        if not 0 < r < 1:
            raise ValueError(f"r = {r} must lie in (0, 1): the step is 2 (r sigma)², stable below sigma².")
        if steps < 1:
            raise ValueError(f"steps = {steps}: a corrector takes at least one step.")
        self.r, self.steps = r, steps

    def prepare(self, process: Semilinear, times: Tensor, noise: Stream) -> Advance:
        """``correct(k, x)``: the corrections at times[k]."""
        epsilon = 2 * (self.r * process.sde.sigma(times)) ** 2
        sizes, spreads = epsilon.tolist(), (2 * epsilon).sqrt().tolist()
        scores = process.score.along(times)

        def correct(k: int, x: Tensor) -> Tensor:
            if sizes[k] == 0:  # no noise left to correct, and a score there may be infinite
                return x
            for _ in range(self.steps):
                x = torch.add(x, scores[k](x), alpha=sizes[k]).add_(noise.normal(), alpha=spreads[k])
            return x

        return correct


class PredictorCorrector(Solver):
    """A predictor step followed by a corrector at the time reached.

    Args:
        predictor: any fixed-step solver.
        corrector: the Langevin steps; r and their number.
    """

    requires = Semilinear
    instead = "use EulerMaruyama, which takes any SDE"

    def __init__(self, predictor: Solver, corrector: Langevin | None = None):
        if not isinstance(predictor, Solver):
            raise TypeError(f"predictor must be a fixed-step solver such as EulerMaruyama(), got {predictor!r}.")
        if corrector is not None and not isinstance(corrector, Langevin):
            raise TypeError(f"corrector must be Langevin(...), got {corrector!r}.")
        self.predictor, self.corrector = predictor, corrector or Langevin()
        self.couples_samples = predictor.couples_samples

    def check(self, process: SDE) -> None:
        """Both halves must be able to take the process."""
        super().check(process)
        self.predictor.check(process)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """Both halves are prepared for the grid."""
        assert isinstance(process, Semilinear)
        predict = self.predictor.prepare(process, grid, noise)
        correct = self.corrector.prepare(process, grid[1:], noise)
        return Remembering(lambda k, x: correct(k, predict(k, x)), *memory_of(predict))
