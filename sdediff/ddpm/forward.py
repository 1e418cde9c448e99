r"""The discrete chain of DDPM: its forward steps, its jump, and Bayes' posterior of one step.

With :math:`\alpha_i = 1 - \beta_i` and :math:`\bar\alpha_i = \prod_{j \le i}\alpha_j`,

.. math:: x_i = \sqrt{1-\beta_i}\,x_{i-1} + \sqrt{\beta_i}\,\epsilon, \qquad
          x_i = \sqrt{\bar\alpha_i}\,x_0 + \sqrt{1-\bar\alpha_i}\,\epsilon,

and the posterior :math:`q(x_{i-1} \mid x_i, x_0) = \mathcal N(\tilde\mu_i, \tilde\beta_i I)` has

.. math:: \tilde\mu_i = \frac{\sqrt{\alpha_i}(1-\bar\alpha_{i-1})\,x_i + \sqrt{\bar\alpha_{i-1}}\,\beta_i\,x_0}{1-\bar\alpha_i},
          \qquad \tilde\beta_i = \frac{1-\bar\alpha_{i-1}}{1-\bar\alpha_i}\,\beta_i .

Both have :math:`1-\bar\alpha_i` below. Read as a hierarchical variational autoencoder the chain is its encoder: fixed, with
latents :math:`x_1, \dots, x_N` of the data's own shape; :class:`~sdediff.ddpm.ReverseChain` is the decoder.

Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 2 to 7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_state
from ..densities.base import host_generator
from ..gaussian import Gaussian

Index = int | Tensor
"""A step of the chain: a whole number, or one for each sample, (B,)."""


class Forward:
    """The forward chain and Bayes' posterior; :class:`~sdediff.ddpm.Chain` says how to make one and what its tables are."""

    process: Any
    times: Tensor

    def __init__(self, log_steps: Tensor, log_bars: Tensor):
        r"""All tables from :math:`\log\alpha_i` and :math:`\log\bar\alpha_i`, (N,) each, as neither gives the other exactly."""
        zero = log_bars.new_zeros(1)
        log_steps, log_bars = torch.cat([zero, log_steps]), torch.cat([zero, log_bars])
        self._log_alphas = 0.5 * log_bars
        # Differences, not negatives: entry 0 must be 0 and not -0.
        self.betas, self.variances = 0 - torch.expm1(log_steps), 0 - torch.expm1(log_bars)
        self.alphas, self.alpha_bars = log_steps.exp(), log_bars.exp()
        earlier = torch.cat([zero, self.variances[:-1]])
        self.posterior_variances = torch.where(self.variances > 0, self.betas * earlier / self.variances, 0.0)

    def __len__(self) -> int:
        """N, the number of steps."""
        return len(self.betas) - 1

    def __repr__(self) -> str:
        return f"Chain of {len(self)} steps, ᾱ_N = {float(self.alpha_bars[-1]):.3g}"

    # ---- forward ----------------------------------------------------------------------------------------------

    def step(self, x: Tensor, i: Index, noise: Tensor) -> Tensor:
        r""":math:`x_i = \sqrt{1-\beta_i}\,x_{i-1} + \sqrt{\beta_i}\,\epsilon` from x = x_{i-1} (B, *event)."""
        return self.at(self.alphas, i, x).sqrt() * x + self.at(self.betas, i, x).sqrt() * noise

    def vanilla_step(self, x: Tensor, i: Index, noise: Tensor) -> Tensor:
        r""":math:`x_i = (1-\tfrac12\beta_i)\,x_{i-1} + \sqrt{\beta_i}\,\epsilon`: Euler-Maruyama, to first order the same."""
        beta = self.at(self.betas, i, x)
        return (1 - 0.5 * beta) * x + beta.sqrt() * noise

    def marginal(self, x0: Tensor, i: Index) -> Gaussian:
        r"""The law of x_i given x_0 (B, *event): :math:`\mathcal N(\sqrt{\bar\alpha_i}\,x_0, (1-\bar\alpha_i)I)`."""
        mean = self.at(self.alpha_bars, i, x0).sqrt() * x0
        return Gaussian(mean, self.at(self.variances, i, x0).sqrt(), tuple(x0.shape[1:]))

    def jump(self, x0: Tensor, i: Index, noise: Tensor) -> Tensor:
        r""":math:`x_i = \sqrt{\bar\alpha_i}\,x_0 + \sqrt{1-\bar\alpha_i}\,\epsilon`: i steps at once."""
        return self.marginal(x0, i).from_noise(noise)

    def encode(self, x0: Tensor, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One path x_0, ..., x_N of the fixed encoder, (N + 1, B, *event), step by step."""
        source = host_generator(seed, generator)
        path = [check_state(x0, "x0")]
        for i in range(1, len(self) + 1):
            z = torch.randn(x0.shape, generator=source, dtype=torch.float64).to(x0.device, x0.dtype)
            path.append(self.step(path[-1], i, z))
        return torch.stack(path)

    # ---- Bayes ------------------------------------------------------------------------------------------------

    def posterior(self, x0: Tensor, x: Tensor, i: Index) -> Gaussian:
        r"""Bayes' posterior :math:`q(x_{i-1} \mid x_i = x, x_0)`; at i = 1 all its mass is on x_0.

        Args:
            x0, x: (B, *event).
            i: from 1 to N.
        """
        if x0.shape != x.shape:
            raise ValueError(f"x0 has shape {tuple(x0.shape)} and x {tuple(x.shape)}: they must be equal.")
        std = self.at(self.posterior_variances, i, x).sqrt()
        return Gaussian(self.mean_from_data(x, i, x0), std, tuple(x.shape[1:]))

    def mean_from_data(self, x: Tensor, i: Index, x0: Tensor) -> Tensor:
        r"""The posterior mean :math:`\tilde\mu_i` from x_i and x_0 (or a prediction of it)."""
        below = self.at(self.variances, i, x)
        of_x = self.at(self.alphas, i, x).sqrt() * self.at(self.variances, i, x, -1) / below
        of_x0 = self.at(self.alpha_bars, i, x, -1).sqrt() * self.at(self.betas, i, x) / below
        return of_x * x + of_x0 * x0

    def mean_from_noise(self, x: Tensor, i: Index, noise: Tensor) -> Tensor:
        r"""The same from the noise: :math:`\bigl(x_i - \beta_i\epsilon/\sqrt{1-\bar\alpha_i}\bigr)/\sqrt{\alpha_i}`."""
        pull = self.at(self.betas, i, x) / self.at(self.variances, i, x).sqrt()
        return (x - pull * noise) / self.at(self.alphas, i, x).sqrt()

    def mean_from_velocity(self, x: Tensor, i: Index, velocity: Tensor) -> Tensor:
        r"""The same from :math:`v = \sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,x_0`.

        :math:`x_0 = \sqrt{\bar\alpha}\,x_i - \sqrt{1-\bar\alpha}\,v`.
        """
        a, s = self.at(self.alpha_bars, i, x).sqrt(), self.at(self.variances, i, x).sqrt()
        return self.mean_from_data(x, i, a * x - s * velocity)

    # ---- the weights of the bound -----------------------------------------------------------------------------

    def snr(self, i: Index) -> Tensor:
        r"""The signal-to-noise ratio :math:`\bar\alpha_i/(1-\bar\alpha_i)`, i from 1 to N."""
        return self._entry(self.alpha_bars, i) / self._entry(self.variances, i)

    def noise_weight(self, i: Index, variance: Tensor) -> Tensor:
        r"""The weight of :math:`|\epsilon-\hat\epsilon|^2` in L_{i-1}, :math:`\beta_i^2/(2\sigma_i^2\alpha_i(1-\bar\alpha_i))`.

        Args:
            i: from 1 to N.
            variance: :math:`\sigma_i^2`, that of the backward step.
        """
        below = 2 * variance * self._entry(self.alphas, i) * self._entry(self.variances, i)
        return self._entry(self.betas, i) ** 2 / below

    def data_weight(self, i: Index, variance: Tensor) -> Tensor:
        r"""The weight of :math:`|x_0-\hat x_0|^2` there, :math:`\bar\alpha_{i-1}\beta_i^2/(2\sigma_i^2(1-\bar\alpha_i)^2)`."""
        above = self._entry(self.alpha_bars, i, -1) * self._entry(self.betas, i) ** 2
        return above / (2 * variance * self._entry(self.variances, i) ** 2)

    def at(self, table: Tensor, i: Index, x: Tensor, shift: int = 0) -> Tensor:
        """Entry i + shift of a table beside x (B, *event): a number, or (B, 1, ..., 1) where i is (B,)."""
        if not isinstance(i, Tensor):
            return self._entry(table, i, shift)
        if i.shape != x.shape[:1]:
            raise ValueError(
                f"i has shape {tuple(i.shape)} beside x of shape {tuple(x.shape)}; give one number, or ({len(x)},)."
            )
        chosen = self._entry(table, i, shift).to(x.device, torch.promote_types(x.dtype, torch.float32))
        return chosen.reshape(-1, *[1] * (x.ndim - 1))

    def _entry(self, table: Tensor, i: Index, shift: int = 0) -> Tensor:
        """Entry i + shift of a table, for a step i that the chain has."""
        if not isinstance(i, Tensor):
            if not 1 <= i <= len(self):
                raise ValueError(f"i = {i} is no step of this chain: they are 1 ... {len(self)}.")
            return table[i + shift]
        if i.dtype.is_floating_point or i.dtype == torch.bool:
            raise ValueError(f"i has dtype {i.dtype}; it must hold whole numbers: use i.long().")
        if i.device.type == "cpu" and not (int(i.min()) >= 1 and int(i.max()) <= len(self)):
            raise ValueError(f"i runs from {int(i.min())} to {int(i.max())}; the steps are 1 ... {len(self)}.")
        return table.to(i.device)[i + shift]
