"""A network that learns to foretell a teacher's features beside its own task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpm_core.model import Cpm

_LEAST_DEVIATION = 1e-3


class Pupil(nn.Module):
    """A `Cpm` and the layer that makes a teacher's features (B, channels, H, W) of its own.

    `forward(images)` returns the maps of every stage, and those features.
    """

    def __init__(self, model: Cpm, channels: int) -> None:
        super().__init__()
        self.model = model
        self.foretell = nn.Conv2d(model.width, channels, 1)
        # From nothing, so that it does not pull at features before it has learned to read them.
        nn.init.zeros_(self.foretell.weight)
        assert self.foretell.bias is not None
        nn.init.zeros_(self.foretell.bias)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        features, maps = self.model.look(images)
        return maps, self.foretell(features)


def hint_loss(foretold: Tensor, hints: Tensor) -> Tensor:
    """Mean squared distance (B,) of features (B, C, H, W), the teacher's brought to mean 0 and
    deviation 1 in every channel, over the batch or a worker's share of it."""
    hints = hints.float()
    deviation, mean = torch.std_mean(hints, dim=(0, 2, 3), keepdim=True, correction=0)
    wanted = (hints - mean) / deviation.clamp(min=_LEAST_DEVIATION)
    return ((foretold.float() - wanted) ** 2).mean(dim=(1, 2, 3))
