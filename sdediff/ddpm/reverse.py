r"""The generative chain: noise, then one Gaussian step after another down to the data.

.. math:: p(x_N) = \mathcal N(0, I), \qquad p(x_{i-1} \mid x_i) = \mathcal N(\mu_i(x_i), \sigma_i^2 I).

The reversal of a chain with a score is a chain again: it is sampled, and it has a likelihood, of which
:meth:`~ReverseChain.bound` and :meth:`~ReverseChain.importance_weighted` speak. Read as a hierarchical variational
autoencoder it is the decoder; its encoder, :class:`~sdediff.ddpm.Chain`, has nothing to learn.

Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from .. import counting
from ..checks import check_finite, check_state
from ..gaussian import Gaussian
from ..noise import Noise, as_noise
from ..score import Given, Score, as_score
from ..sde import ScoreLike
from ..solution import Solution
from .bound import Decoder, VariationalBound, Weighted, importance_weighted, term, variational_bound
from .forward import Forward, Index
from .steps import AncestralStep, BackwardStep


class ReverseChain:
    """A chain run backwards by a score.

    Args:
        chain: the forward chain.
        score: of ``chain.process``, or any callable ``score(x, t)`` on its clock.
        step: how it goes back; :class:`~sdediff.ddpm.AncestralStep` by default.

    Raises:
        ValueError: the score belongs to a process with another kernel at the chain's nodes.
    """

    def __init__(self, chain: Forward, score: ScoreLike, step: BackwardStep | None = None):
        self.chain, self.kind = chain, AncestralStep() if step is None else step
        if not isinstance(self.kind, BackwardStep):
            raise TypeError(f"step must be a BackwardStep such as AncestralStep(), got {step!r}.")
        self._score = _fitting(as_score(score, chain.process), chain)

    def given(self, cond: Any) -> ReverseChain:
        """This chain with ``cond=`` passed to every evaluation of its score."""
        return ReverseChain(self.chain, Given(self._score, cond), self.kind)

    # ---- the score, asked at a step ---------------------------------------------------------------------------

    def score(self, x: Tensor, i: Index) -> Tensor:
        """The score of the law of x_i at x (B, *event); i a step, or (B,) of them."""
        return self._score(x, self._time(i, x))

    def noise(self, x: Tensor, i: Index) -> Tensor:
        """The noise prediction at x_i = x."""
        return self._score.noise(x, self._time(i, x))

    def data(self, x: Tensor, i: Index) -> Tensor:
        """The data prediction E[x_0 | x_i = x]."""
        return self._score.data(x, self._time(i, x))

    def split(self, x: Tensor, i: Index) -> tuple[Tensor, Tensor]:
        """Data and noise prediction, from one evaluation."""
        return self._score.split(x, self._time(i, x))

    def _time(self, i: Index, x: Tensor) -> Tensor:
        t = self.chain.at(self.chain.times, i, x)
        return t if t.ndim == 0 else t.reshape(-1)

    # ---- what it does -----------------------------------------------------------------------------------------

    def law(self, x: Tensor, i: int) -> Gaussian:
        """The law of x_{i-1} given x_i = x."""
        return self.kind.law(self, x, i)

    def sample(
        self,
        n: int | None = None,
        *,
        x: Tensor | None = None,
        event_shape: tuple[int, ...] | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        last_noise: bool = False,
        save: bool = False,
    ) -> Solution:
        """Samples of the generative chain.

        Args:
            n: how many, from N(0, I); or
            x: the states x_N themselves, (n, *event).
            event_shape: of one state, where the score does not know it.
            seed, generator, noise: at most one, as in :func:`~sdediff.solve`.
            last_noise: add noise in the last step too: exact samples of the model whose likelihood :meth:`bound` bounds. By
                custom the last step gives its mean.
            save: keep all states x_N, ..., x_0 in ``xs``.

        Returns:
            A :class:`~sdediff.Solution` with the times of ``chain.process`` in ``ts``.
        """
        started = time.perf_counter()
        with torch.no_grad(), counting.count() as tally:
            if (n is None) == (x is None):
                raise ValueError("Give exactly one of n and x.")
            device = torch.device(self._score.device or "cpu") if x is None else x.device
            recipe = as_noise(device, seed, generator, noise)
            if x is None:
                x = recipe.initial((n, *self._event(event_shape)), device, self._score.dtype or torch.float32)  # type: ignore[arg-type]
            x = check_finite(check_state(x))
            recipe.check(len(x))
            stream, times, states = recipe.open(x), self.chain.times.tolist(), [x]
            for i in range(len(self.chain), 0, -1):
                law = self.law(x, i)
                quiet = (i == 1 and not last_noise) or _is_point(law)
                x = law.mean if quiet else law.from_noise(stream.unit(times[i], times[i - 1]))
                if save:
                    states.append(x)
        xs = torch.stack(states if save else [check_finite(x)])
        stats = {"nfe": tally.rows // len(x), "score_calls": tally.calls, "steps": len(self.chain)}
        ts = self.chain.times.flip(0) if save else self.chain.times[:1]
        return Solution(x, ts, xs, stats | {"seconds": time.perf_counter() - started})

    def simple_loss(self, x0: Tensor, i: Index, noise: Tensor) -> Tensor:
        r"""L_simple, :math:`\tfrac1D|\epsilon - \hat\epsilon(x_i, i)|^2` for each sample, (B,): the bound without its weights.

        Args:
            x0, noise: (B, *event).
            i: a step, or (B,) of them.
        """
        error = self.noise(self.chain.jump(x0, i, noise), i) - noise
        return error.square().reshape(len(x0), -1).mean(1)

    def term(self, x0: Tensor, i: int, noise: Tensor, *, decoder: Decoder | None = None) -> Tensor:
        r"""One draw of :math:`L_{i-1}` for each sample, (B,), in nats and with its graph: what trains a learned variance.

        Args:
            x0, noise: (B, *event); x_i is ``chain.jump(x0, i, noise)``.
            i: from 1, where the term is minus the log-likelihood of x0, to N.
            decoder: as in :meth:`bound`.
        """
        return term(self, x0, i, noise, decoder)

    def bound(
        self,
        x0: Tensor,
        *,
        draws: int = 2,
        decoder: Decoder | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> VariationalBound:
        """The variational bound on this chain's log-likelihood of x0 (B, *event), term by term.

        Args:
            x0: data.
            draws: states x_i drawn for each level; two or more give a standard error.
            decoder: how x_0 is read off the last law: its density by default,
                :class:`~sdediff.ddpm.Discretised` for data on a lattice.
            seed, generator: a host generator; at most one of the two.
        """
        return variational_bound(self, x0, draws, decoder, seed, generator)

    def importance_weighted(
        self,
        x0: Tensor,
        *,
        paths: int = 16,
        decoder: Decoder | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Weighted:
        """This chain's log-likelihood of x0 (B, *event) by weighted paths of the encoder; a tighter bound with more paths.

        Args:
            x0: data.
            paths: K; the standard error wants a dozen or more.
            decoder, seed, generator: as in :meth:`bound`.
        """
        return importance_weighted(self, x0, paths, decoder, seed, generator)

    def _event(self, event_shape: tuple[int, ...] | None) -> tuple[int, ...]:
        known = self._score.event_shape if event_shape is None else event_shape
        if known is None:
            raise ValueError("This score does not know the shape of a state: give event_shape=, or x=.")
        return tuple(known)


def _is_point(law: Gaussian) -> bool:
    """Whether the law has no spread; a spread per sample is taken to be one, and not read back from a device."""
    return law.std.ndim == 0 and law.std.device.type == "cpu" and float(law.std) == 0


def _fitting(score: Score, chain: Forward) -> Score:
    """The score, if its process has the chain's kernel at the chain's nodes."""
    sde = score.sde
    if sde is None or sde is chain.process:
        return score
    if sde.t_max + 1e-9 >= float(chain.times[-1]):
        alpha, sigma = sde.alpha(chain.times), sde.sigma(chain.times)
        off = torch.maximum((alpha**2 - chain.alpha_bars).abs(), (sigma**2 - chain.variances).abs())
        if bool((off < 1e-6).all()):
            return score
    raise ValueError(
        f"This score belongs to {type(sde).__name__}, whose kernel at the chain's times is not the chain's. Move it: "
        "score.to(chain.process)."
    )
