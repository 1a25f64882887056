"""person-net: image -> belief in a person's centre, and the person's box, at every cell.

Two CPM stages on the trunk of YOLOX-Nano: stage 1 sees image features, stage 2 features and the
maps of stage 1. The large-kernel stages let a cell see a whole person.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpm_core.lite import LiteStage
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.trunk import WIDTH, CspTrunk

MAPS = 5
"""Centre logit, then dx, dy of the box's centre from the cell's (cells), log width, log height."""

_RARE = -3.0
"""First logit of the centre map: hardly any cell is a centre."""


class PersonNet(nn.Module):
    """Images (B, 3, S, S), RGB, 0 to 255, S a multiple of 32 -> maps (B, 5, S / 8, S / 8) a stage.

    The maps are those that `MAPS` lists; log sizes are of pixels of the input over `SIZE_UNIT`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PersonNetConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = CspTrunk()
        self.stages = nn.ModuleList(
            LiteStage(WIDTH + (MAPS if i else 0), WIDTH, MAPS, blocks)
            for i, blocks in enumerate(config.blocks)
        )
        for stage in self.stages:
            assert isinstance(stage, LiteStage)
            assert stage.out.bias is not None
            nn.init.constant_(stage.out.bias[:1], _RARE)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.trunk((images.to(self.mean.dtype) - self.mean) / self.std)
        maps: list[Tensor] = [self.stages[0](features)]
        for stage in self.stages[1:]:
            maps.append(stage(torch.cat([features, _bounded(maps[-1])], dim=1)))
        return maps


def _bounded(maps: Tensor) -> Tensor:
    """The centre as a belief 0..1, so that a very sure stage does not drown the features."""
    return torch.cat([maps[:, :1].sigmoid(), maps[:, 1:]], dim=1)
