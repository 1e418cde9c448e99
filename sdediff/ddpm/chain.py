r"""Chains: from their betas, from a continuous process, from other chains; and their reversal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..checks import check_count
from ..linear import LinearSDE
from ..sde import ScoreLike
from .forward import Forward
from .process import Interpolation, preserving
from .reverse import ReverseChain
from .steps import BackwardStep


class Chain(Forward):
    r"""A variance-preserving chain of N steps.

    Tables have N + 1 entries, float64 on the host, so that entry i belongs to :math:`x_i` and entry 0 to the data.

    Args:
        betas: :math:`\beta_1, \dots, \beta_N`, (N,), each between 0 and 1; :func:`~sdediff.ddpm.linear` and others make them.

    Attributes:
        betas, alphas, alpha_bars: :math:`\beta_i, \alpha_i, \bar\alpha_i`.
        variances: :math:`1 - \bar\alpha_i`, without cancellation.
        posterior_variances: :math:`\tilde\beta_i`; :math:`\tilde\beta_1 = 0`.
        process: a variance-preserving :class:`~sdediff.LinearSDE` that passes through the chain: at ``times[i]`` its kernel is
            that of :math:`x_i`. Scores are asked on its clock.
        times: (N + 1,), rising from 0.

    Raises:
        ValueError: a beta is not strictly between 0 and 1.
    """

    def __init__(self, betas: Tensor | Sequence[float]):
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach().clone()
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas has shape {tuple(betas.shape)}; it must be (N,) with N >= 1.")
        steps = torch.log1p(-_fractions(betas))
        super().__init__(steps, steps.cumsum(0))
        self.process: LinearSDE = Interpolation(self._log_alphas)
        self.times = self.process.ends

    @classmethod
    def from_process(cls, sde: LinearSDE, nodes: int | Tensor | Sequence[float]) -> Chain:
        r"""The chain of a continuous process on given nodes: :math:`\beta_i = 1 - \bar\alpha(t_i)/\bar\alpha(t_{i-1})`.

        Exact at every number of steps: the chain has the law of the process at the nodes. A process that does not preserve
        variance is taken in the coordinates :math:`y = x/\sqrt{\alpha^2+\sigma^2}`, and ``chain.process`` is that one.

        Args:
            sde: a linear process without noise at the first node.
            nodes: N for equal steps over [0, t_max], or the N + 1 times themselves, rising from 0.

        Raises:
            TypeError, ValueError: the process is not linear, a node does not fit, or alpha vanishes at the last one.
        """
        if not isinstance(sde, LinearSDE):
            raise TypeError(
                f"A chain needs a LinearSDE, got {type(sde).__name__}; if you wrote that as f and g, give "
                "as_linear(sde, event_shape)."
            )
        if isinstance(nodes, int):
            check_count(nodes, "nodes", "at least one step")
            times = torch.linspace(0, sde.t_max, nodes + 1, dtype=torch.float64)
        else:
            times = torch.as_tensor(nodes, dtype=torch.float64).detach().clone()
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
            raise ValueError("nodes must be one number N, or at least two times that rise strictly.")
        if float(sde.variance(times[0])) > 1e-12 * float(sde.alpha(times[0])) ** 2:
            raise ValueError(
                f"nodes begin at t = {float(times[0]):g}, where the process has noise: x_0 of a chain is data. Begin at 0."
            )
        process = preserving(sde, times)
        log_bars = 2 * process.log_alpha(times)
        if not bool(torch.isfinite(log_bars).all()):
            raise ValueError(
                f"alpha vanishes at t = {float(times[-1]):g}, so the last step would erase its state (beta = 1). End the nodes "
                f"a little before, e.g. torch.linspace(0, {0.99 * float(times[-1]):g}, N + 1)."
            )
        return cls._through(log_bars, process, times)

    @classmethod
    def _through(cls, log_bars: Tensor, process: LinearSDE, times: Tensor) -> Chain:
        """The chain with these log ᾱ_0 ... log ᾱ_N on these nodes of a process."""
        chain = cls.__new__(cls)
        Forward.__init__(chain, log_bars.diff(), log_bars[1:] - log_bars[0])
        _fractions(chain.betas[1:])
        chain.process, chain.times = process, times
        return chain

    def subset(self, indices: Sequence[int]) -> Chain:
        r"""The chain that visits these :math:`x_i` alone, for fewer steps with the same score.

        Args:
            indices: rising, between 1 and N.
        """
        kept = [0, *indices]
        if len(kept) < 2 or kept[-1] > len(self) or any(b <= a for a, b in pairwise(kept)):
            raise ValueError(f"indices must rise strictly within 1 ... {len(self)}, got {list(indices)[:10]}.")
        return Chain._through(2 * self._log_alphas[kept], self.process, self.times[kept])

    # ---- backward ---------------------------------------------------------------------------------------------

    def reverse(self, score: ScoreLike, step: BackwardStep | None = None) -> ReverseChain:
        """The generative chain of a score; see :class:`~sdediff.ddpm.ReverseChain`.

        Args:
            score: of ``chain.process``; another process's score moves there: ``score.to(chain.process)``.
            step: how it goes back; :class:`~sdediff.ddpm.AncestralStep` by default.
        """
        return ReverseChain(self, score, step)


def _fractions(betas: Tensor) -> Tensor:
    bad = ~((betas > 0) & (betas < 1))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"beta_{i + 1} = {float(betas[i]):g} is not strictly between 0 and 1. A process that is discretised with "
            "beta(t) h leaves that range for large h: use Chain.from_process, which takes the exact beta."
        )
    return betas
