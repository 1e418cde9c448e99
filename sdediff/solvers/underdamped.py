r"""Splitting for underdamped Langevin dynamics, :math:`dq = v\,dt,\; m\,dv = (s(q) - \gamma v)\,dt + \sqrt{2\gamma}\,dW`.

Each part alone can be solved exactly:

.. math:: A:\; q \leftarrow q + hv, \qquad B:\; v \leftarrow v + hm^{-1}s(q), \qquad
          O:\; v \leftarrow e^{-hm^{-1}\gamma}v + \Bigl(m^{-1}\bigl(1 - e^{-2hm^{-1}\gamma}\bigr)\Bigr)^{1/2}z .

BAOAB takes half a step of B, half of A, one of O, half of A and half of B. The last score of a step is the first of the next,
so a step costs one.

Source: Leimkuhler and Matthews 2013, https://doi.org/10.1093/amrx/abs010; Leimkuhler, Matthews and Stoltz 2016,
https://doi.org/10.1093/imanum/dru056 (its stationary law).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise import Stream
from ..sde import SDE, Kinetic, halves
from .base import Advance, Orders, Remembering, Solver


class BAOAB(Solver):
    r"""The splitting BAOAB: weak order 2, one evaluation a step and one more at the end.

    Its stationary law errs by :math:`O(h^2)`: for a Gaussian target positions are exact at every stable step
    (:math:`h\omega < 2`), and velocities have variance :math:`m^{-1}(1 - h^2\omega^2/4)`, with :math:`m\omega^2` the
    target's precision. Takes noise only on a rising clock, as the dynamics has it.

    Source: Leimkuhler and Matthews 2013, https://doi.org/10.1093/amrx/abs010.
    """

    requires = Kinetic
    instead = "use EulerMaruyama or StochasticHeun, which take any SDE"
    orders = Orders(strong_additive=1.0, weak=2.0)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The friction's part of every step at once."""
        assert isinstance(process, Kinetic)
        nodes, lengths = grid.tolist(), grid.diff().tolist()
        relaxation: Relaxation | None = None
        last: list[Tensor] = []  # the acceleration at the end of the last step

        def advance(k: int, x: Tensor) -> Tensor:
            nonlocal relaxation
            q, v = halves(x)
            relaxation = relaxation or Relaxation(process, grid.diff(), x)
            half = 0.5 * lengths[k]
            push = last.pop() if last else process.position_score(q, nodes[k]) / relaxation.mass
            v = torch.add(v, push, alpha=half)
            q = torch.add(q, v, alpha=half)
            v = relaxation.of(k, v, noise.unit(nodes[k], nodes[k + 1], q.shape))
            q = torch.add(q, v, alpha=half)
            push = process.position_score(q, nodes[k + 1]) / relaxation.mass
            last.append(push)
            return torch.cat([q, torch.add(v, push, alpha=half)], 1)

        return Remembering(advance, last)


class Relaxation:
    r"""What friction and its noise do to velocities, exactly.

    With :math:`u = \sqrt m\,v` and :math:`\Gamma = m^{-1/2}\gamma m^{-1/2} = Q\Lambda Q^\top` it is
    :math:`Q^\top u \leftarrow e^{-h\Lambda}Q^\top u + \sqrt{1 - e^{-2h\Lambda}}\,z`.

    Args:
        process: its mass and friction.
        lengths: of the steps, (N,), float64.
        x: a state, for its device and dtype.
    """

    def __init__(self, process: Kinetic, lengths: Tensor, x: Tensor):
        root, axes = process.mass.sqrt(), None
        if process.friction.ndim == 2:
            rates, axes = torch.linalg.eigh(process.friction / (root.unsqueeze(-1) * root))
        else:
            rates = process.friction / process.mass
        exponent = -lengths.reshape(-1, *[1] * rates.ndim) * rates  # (N,) or (N, d)
        self.decay, self.spread = torch.exp(exponent).to(x), torch.sqrt(-torch.expm1(2 * exponent)).to(x)
        self.mass, self.root, self.axes = process.mass.to(x), root.to(x), None if axes is None else axes.to(x)

    def of(self, k: int, v: Tensor, z: Tensor) -> Tensor:
        """Velocities (B, d) after step k, driven by standard normals z (B, d)."""
        if self.axes is None:
            return v * self.decay[k] + z * (self.spread[k] / self.root)
        u = (v * self.root) @ self.axes
        return (u * self.decay[k] + z * self.spread[k]) @ self.axes.T / self.root
