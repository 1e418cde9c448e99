r"""Exponential single-step solvers: stages within the step instead of a history.

Stage i lies a fraction :math:`r_i` of the way in :math:`\log(\alpha/\sigma)`; each stage, and the end of the step, is an
exponential step from its start with the predictions of chosen earlier stages. With noise, the increments between the
stages are drawn one by one and carried along, so that all stages lie on one path.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...checks import check_number
from ...noise import Stream
from ...sde import SDE, Semilinear
from ..base import Advance, Orders, Solver
from ..onestep import check_coefficients
from .guidance import too_high
from .kernel import Held, HeldData, Steps, steps_between, steps_of
from .rules import Polynomial, Rule


class ExponentialSingleStep(Solver):
    """An exponential Runge-Kutta method for reversed linear SDEs, of any stochasticity.

    Under strong guidance it warns where its order is above 2.

    Args:
        stages: for each stage beyond the first, (r, which earlier stages it uses); r in (0, 1), rising. Stage 0 is the
            start of the step.
        last: which stages the end of the step uses.
        order: the order for the flow.
        prediction: what is held polynomial.
        rule: how.

    Raises:
        ValueError: the stages do not rise within (0, 1).
    """

    requires = Semilinear
    instead = (
        "use CoupledMultistep for the reversal or flow of an AffineSDE, Heun, RK4 or Scipy for another ODE, and EulerMaruyama "
        "for another SDE"
    )

    def __init__(
        self,
        stages: Sequence[tuple[float, Sequence[int]]],
        last: Sequence[int],
        order: int,
        *,
        prediction: Held | None = None,
        rule: Rule | None = None,
    ):
        fractions = [check_number(r, "r") for r, _ in stages]
        if not all(a < b for a, b in pairwise([0.0, *fractions, 1.0])):
            raise ValueError(f"The stages lie at r = {fractions}: they must rise and stay between 0 and 1.")
        self.stages, self.last = [(r, list(uses)) for r, uses in stages], list(last)
        self.prediction, self.rule = prediction or HeldData(), rule or Polynomial()
        self.orders = Orders(strong_additive=1.0, weak=float(min(order, 2)), ode=float(order))

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The weights of every stage of every step at once."""
        assert isinstance(process, Semilinear)
        too_high(
            process.score,
            int(self.orders.ode or 1),
            f"stays, as {type(self).__name__} cannot lower it",
        )
        whole = steps_of(process, grid)
        fractions = [0.0, *(r for r, _ in self.stages), 1.0]
        ells = whole.ell_s.unsqueeze(1) + whole.h.unsqueeze(1) * torch.tensor(fractions, dtype=grid.dtype)  # (N, S + 1)
        if not bool(torch.isfinite(ells).all()):
            raise ValueError(
                f"{type(self).__name__} places stages in log(alpha/sigma), which is infinite at an end of this solve: end it "
                "a little earlier, or use a multistep solver such as DPMSolverPP2M."
            )
        inner = process.sde.time_of(2 * ells[:, 1:-1].reshape(-1)).reshape(len(ells), -1)
        times = torch.cat([grid[:-1, None], inner, grid[1:, None]], 1)
        parts = [_part(process, times, whole.eta2, i) for i in range(len(fractions) - 1)]  # from stage i to i + 1
        uses = [*(u for _, u in self.stages), self.last]
        plan = [self._stage(process, times, ells, whole.eta2, i + 1, use) for i, use in enumerate(uses)]
        check_coefficients(process, grid, *(v for linear, weights in plan for v in (linear, *weights.unbind(1))))
        spread = torch.stack([self.prediction.noise(p) for p in parts], 1)
        carry = torch.stack([self.prediction.linear(p) for p in parts], 1)
        score = process.score.along(times[:, :-1].reshape(-1), self.prediction.view)
        count, nodes = len(fractions) - 1, times.tolist()
        spreads, carries = spread.tolist(), carry.tolist()
        coefficients = [(linear.tolist(), weights.tolist()) for linear, weights in plan]

        def advance(k: int, x: Tensor) -> Tensor:
            predictions: list[Tensor] = []
            state, gathered = x, None  # the stage's state; the noise gathered since the start of the step
            for i in range(count):
                predictions.append(score[k * count + i](state))
                linear, weights = coefficients[i]
                state = torch.mul(x, linear[k])
                for j, w in zip(uses[i], weights[k], strict=True):
                    state.add_(predictions[j], alpha=w)
                if spreads[k][i]:
                    fresh = noise.unit(nodes[k][i], nodes[k][i + 1]) * spreads[k][i]
                    gathered = fresh if gathered is None else torch.add(fresh, gathered, alpha=carries[k][i])
                    state.add_(gathered)
            return state

        return advance

    def _stage(
        self, process: Semilinear, times: Tensor, ells: Tensor, eta2: Tensor, i: int, uses: list[int]
    ) -> tuple[Tensor, Tensor]:
        """The linear factor and the weights of the step from the start to stage i."""
        steps = steps_between(process, times[:, 0], times[:, i], eta2)
        return self.prediction.linear(steps), self.rule.weights(self.prediction, steps, ells[:, uses], process.sde)


def _part(process: Semilinear, times: Tensor, eta2: Tensor, i: int) -> Steps:
    return steps_between(process, times[:, i], times[:, i + 1], eta2)
