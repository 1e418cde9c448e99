"""The samplers of the literature as members of the exponential family. Each is a short constructor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...checks import check_number
from ...sde import Coefficient, Semilinear
from .kernel import HeldNoise, Steps
from .multistep import ExponentialMultistep, check_order
from .rules import Adams, Midpoint, Polynomial, Published3M, UniPC, Variable, in_log_snr, in_power, in_time
from .singlestep import ExponentialSingleStep


class DDIM(ExponentialMultistep):
    r"""DDIM: the data prediction held constant. On the flow it is DDIM, on the reversal with eta = 1 DDPM's step.

    Args:
        eta: DDIM's own parameter :math:`\eta_D`, instead of the process's stochasticity; in each step
            :math:`\eta^2 = -\log(1-\eta_D^2(1-e^{-2h}))/2h`. 0 is the flow, 1 DDPM's ancestral step.

    Source: Song et al. 2021, https://arxiv.org/abs/2010.02502.
    """

    def __init__(self, eta: float | None = None):
        if eta is not None and not 0 <= check_number(eta, "eta") <= 1:
            raise ValueError(f"eta = {eta} must lie in [0, 1].")
        super().__init__(1, stochasticity=eta)

    def steps(self, process: Semilinear, grid: Tensor) -> Steps:
        """DDIM's parameter converted, step by step; what it leaves of x_s is finite where h is not."""
        steps = super().steps(process, grid)
        if self.stochasticity in (None, 0.0, 1.0):  # DDIM's parameter is eta at these
            return steps
        assert isinstance(self.stochasticity, float)
        spent = -0.5 * torch.log1p(self.stochasticity**2 * torch.expm1(-2 * steps.h))
        return replace(steps, eta2=spent / steps.h, spent=spent)


class ExponentialAdams(ExponentialMultistep):
    r"""The recommended sampler: data prediction, order 4, with corrector; one evaluation a step.

    The predictor is polynomial in :math:`(\sigma/\alpha)^{0.62}`, the corrector in :math:`(\sigma/\alpha)^{1.6}`. The powers
    were tuned on one target, the uneven ring of ``benchmarks/target.py``, at 10, 20 and 50 evaluations from ten sets of
    starts. Meant for a :class:`~sdediff.grids.LogSNR` grid, or one adapted by :func:`~sdediff.grids.adapt`.

    Args:
        order: how many predictions the predictor uses, 1 to 4; the corrector uses one fewer and the new one.
        corrector: whether to correct.
        stochasticity: eta instead of the process's own.
    """

    def __init__(self, order: int = 4, *, corrector: bool = True, stochasticity: Coefficient | None = None):
        super().__init__(
            order,
            rule=Polynomial(in_power(0.62)),
            corrector=Polynomial(in_power(1.6)) if corrector else None,
            corrector_order=max(1, check_order(order) - 1),
            stochasticity=stochasticity,
        )


class DPMSolver1(ExponentialMultistep):
    """DPM-Solver-1: the noise prediction held constant; on the flow the same as DDIM.

    Source: Lu et al. 2022, https://arxiv.org/abs/2206.00927, section 3.
    """

    def __init__(self) -> None:
        super().__init__(1, prediction=HeldNoise())


class DPMSolver2(ExponentialSingleStep):
    """DPM-Solver-2: two evaluations a step, noise prediction, order 2.

    Args:
        r: where the second evaluation lies, a fraction of the step in log(alpha/sigma).

    Source: Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithm 1.
    """

    def __init__(self, r: float = 0.5):
        super().__init__([(r, [0])], [0, 1], 2, prediction=HeldNoise(), rule=Midpoint())


class DPMSolver3(ExponentialSingleStep):
    """DPM-Solver-3: three evaluations a step, noise prediction, order 3.

    Args:
        r1, r2: where the second and third evaluations lie, fractions of the step in log(alpha/sigma).

    Source: Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithm 2.
    """

    def __init__(self, r1: float = 1 / 3, r2: float = 2 / 3):
        super().__init__([(r1, [0]), (r2, [0, 1])], [0, 2], 3, prediction=HeldNoise())


class DPMSolverPP2S(ExponentialSingleStep):
    """DPM-Solver++ 2S: two evaluations a step, data prediction, order 2. On a reversal with noise it is :class:`SEEDS2`.

    Args:
        r: where the second evaluation lies, a fraction of the step in log(alpha/sigma).

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 1.
    """

    def __init__(self, r: float = 0.5):
        super().__init__([(r, [0])], [0, 1], 2, rule=Midpoint())


class DPMSolverPP2M(ExponentialMultistep):
    """DPM-Solver++ 2M, midpoint form: data prediction, order 2. On a reversal with noise it is SDE-DPM-Solver++ 2M.

    Args:
        lower_final: take the last step with order 1, for few steps.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2.
    """

    def __init__(self, *, lower_final: bool = False):
        super().__init__(2, rule=Midpoint(), lower_final=lower_final)


class DPMSolverPP3M(ExponentialMultistep):
    """DPM-Solver++ 3M: data prediction, order 3.

    Args:
        published: the rule as published, whose second difference lacks a factor 2 and which is of order 2.
        lower_final: lower the order towards the end.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, appendix B.
    """

    def __init__(self, *, published: bool = False, lower_final: bool = False):
        super().__init__(3, rule=Published3M() if published else Polynomial(), lower_final=lower_final)
        if published:
            self.orders = replace(self.orders, ode=2.0)


class DEIS(ExponentialMultistep):
    """DEIS: the noise prediction polynomial in t (tAB), order 1 to 4.

    Args:
        order: how many predictions.
        variable: another variable, such as ``in_noise_level`` (rhoAB).

    Source: Zhang and Chen 2023, https://arxiv.org/abs/2204.13902.
    """

    def __init__(self, order: int = 3, *, variable: Variable = in_time):
        super().__init__(order, prediction=HeldNoise(), rule=Polynomial(variable))


class IPNDM(ExponentialMultistep):
    """Improved PNDM: Adams-Bashforth weights for equal steps on the noise prediction, order 1 to 4.

    Of that order only where steps are equal in sigma/alpha, else of order 2.

    Source: Zhang and Chen 2023, https://arxiv.org/abs/2204.13902, appendix.
    """

    def __init__(self, order: int = 4):
        super().__init__(order, prediction=HeldNoise(), rule=Adams())
        self.orders = replace(self.orders, ode=float(min(order, 2)))


class UniPCSolver(ExponentialMultistep):
    """UniPC: predictor of order p and corrector, one evaluation a step, data prediction.

    Args:
        order: p, 1 to 4.
        linear: B(h) = h (bh1) instead of bh2.
        lower_final: lower the order towards the end.

    Source: Zhao et al. 2023, https://arxiv.org/abs/2302.04867.
    """

    def __init__(self, order: int = 2, *, linear: bool = False, lower_final: bool = False):
        rule = UniPC(linear=linear)
        super().__init__(order, rule=rule, corrector=rule, lower_final=lower_final)


class SASolver(ExponentialMultistep):
    r"""SA-Solver: stochastic Adams predictor and corrector, polynomial in :math:`\log(\alpha/\sigma)`, for any eta(t).

    Args:
        order: of the predictor; the corrector uses as many earlier predictions and the new one.
        stochasticity: :math:`\tau(t)` of the source, instead of the process's eta.

    Source: Xue et al. 2023, https://arxiv.org/abs/2309.05019.
    """

    def __init__(self, order: int = 3, *, stochasticity: Coefficient | None = None):
        super().__init__(order, corrector=Polynomial(in_log_snr), stochasticity=stochasticity)


class SEEDS2(DPMSolverPP2S):
    """SEEDS-2: two evaluations a step with the noise of both stages on one path, noise-free part of order 2.

    This is :class:`DPMSolverPP2S`, which leaves the noise to the process, by the name it has on a reversal with noise.

    Source: Gonzalez et al. 2023, https://arxiv.org/abs/2305.14267.
    """


class SEEDS3(ExponentialSingleStep):
    """SEEDS-3: three evaluations a step, noise of all stages on one path, noise-free part of order 3.

    Args:
        r1, r2: where the second and third evaluations lie, fractions of the step in log(alpha/sigma).

    Source: Gonzalez et al. 2023, https://arxiv.org/abs/2305.14267.
    """

    def __init__(self, r1: float = 1 / 3, r2: float = 2 / 3):
        super().__init__([(r1, [0]), (r2, [0, 1])], [0, 2], 3)
