"""Networks of the diffusers library, called as this package calls networks.

diffusers asks for ``unet(sample, timestep, class_labels=...)``, with a timestep on the scale of its 1,000 discrete steps,
and wraps what it returns. Its library is not imported here: any module with that call will do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DiffusersUNet(nn.Module):
    r"""A ``UNet2DModel``, or a module called like one, as a network ``net(x, t)``.

    Args:
        unet: the model, for x (B, C, H, W).
        scale: the timestep is ``scale * t + offset``. On VP with t in [0, 1], 1,000 steps and a network trained on the
            discrete chain, step k (from 0) stands for t = (k + 1)/1000: ``scale=1000, offset=-1``.
        offset: see scale.

    Raises:
        TypeError: unet is no module.
        ValueError: a condition is given to a model without classes (diffusers would ignore it).

    Source: https://huggingface.co/docs/diffusers/api/models/unet2d.
    """

    def __init__(self, unet: nn.Module, *, scale: float = 1000.0, offset: float = 0.0):
        super().__init__()
        if not isinstance(unet, nn.Module):
            raise TypeError(f"unet must be a torch.nn.Module such as diffusers.UNet2DModel, got {type(unet).__name__}.")
        self.unet, self.scale, self.offset = unet, float(scale), float(offset)
        self.event_shape = _event_shape(getattr(unet, "config", None))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The output, of x's shape, for x (B, C, H, W), t (B,) and labels (B,)."""
        if cond is not None and getattr(self.unet, "class_embedding", None) is None:
            raise ValueError("This model has no classes, so it takes no condition: make it with num_class_embeds=K.")
        labels = {} if cond is None else {"class_labels": cond}
        return self.unet(x, self.scale * t + self.offset, return_dict=False, **labels)[0]


def _event_shape(config: Any) -> tuple[int, ...] | None:
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        return None
    return (channels, size, size) if isinstance(size, int) else (channels, *size)
