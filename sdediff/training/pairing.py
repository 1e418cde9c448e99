r"""Which noise goes with which data in a batch.

Independent pairs make a denoiser, whose minimiser is the score. Flow matching may pair them otherwise: of all
permutations, optimal transport takes the one with the least :math:`\sum_i |x_i - \epsilon_{\pi(i)}|^2`. Paths from
data to noise then cross less, and the flow is straighter and needs fewer steps.

What such a network learns is the velocity :math:`\mathrm E[\epsilon - x_0 \mid x_t]` of *other* intermediate laws, with the
same two ends. Its **probability flow** leads from noise to data; but it is no score, so do not solve the reverse SDE with it.

Sources: Tong et al. 2023, https://arxiv.org/abs/2302.00482; Pooladian et al. 2023, https://arxiv.org/abs/2304.14772.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Pairing = Callable[[Tensor, Tensor], Tensor]
"""``pairing(x0, noise)``: the noise, its rows in another order."""


class OptimalTransport:
    """The permutation of the noise that is nearest to the data, exactly: cubic in the size of the batch."""

    def __call__(self, x0: Tensor, noise: Tensor) -> Tensor:
        """noise (B, *event) in the order that minimises the summed squared distances to x0 (B, *event)."""
        cost = torch.cdist(x0.detach().flatten(1).float(), noise.flatten(1).float()).square()
        _, order = linear_sum_assignment(cost.cpu().numpy())
        return noise[torch.as_tensor(order, device=noise.device)]
