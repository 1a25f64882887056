"""The loss at one stage: where people's centres are, and the boxes at the centres."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cpm_core.person_net.config import SIZE_UNIT
from cpm_core.person_net.targets import boxes_of

_BOX_WEIGHT = 2.0
_LOG_WEIGHT = 0.5
_PEAK = 0.999


@dataclass(frozen=True)
class TargetMaps:
    """`Targets` of a batch as tensors: centre, known, core (B, H, W) and boxes (B, 4, H, W)."""

    centre: Tensor
    known: Tensor
    boxes: Tensor
    core: Tensor


def stage_loss(maps: Tensor, target: TargetMaps) -> tuple[Tensor, Tensor]:
    """Means over the people of the batch: centre loss and box loss of maps (B, 5, H, W)."""
    return centre_loss(maps[:, 0], target), _BOX_WEIGHT * box_loss(maps, target)


def centre_loss(logits: Tensor, target: TargetMaps) -> Tensor:
    """Penalty-reduced focal loss (CornerNet, Law and Deng 2018, eq. 1; CenterNet, 2019).

    Cells near a centre count little when they say yes; cells that are not `known` not at all.
    """
    belief = logits.sigmoid()
    peak = (target.centre > _PEAK).to(logits.dtype)
    yes = -F.logsigmoid(logits) * (1 - belief) ** 2 * peak
    no = F.softplus(logits) * belief**2 * (1 - target.centre) ** 4 * (1 - peak) * target.known
    return (yes.sum() + no.sum()) / peak.sum().clamp(min=1)


def box_loss(maps: Tensor, target: TargetMaps) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) plus the distance of log sizes, around the centres."""
    weight = target.core
    overlap = 1 - giou(boxes_of(maps), target.boxes)
    logs = (maps[:, 3:5] - (target.boxes[:, 2:] / SIZE_UNIT).log()).abs().sum(dim=1)
    total = (weight * (overlap + _LOG_WEIGHT * logs)).sum()
    return total / weight.sum().clamp(min=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (B, ...) of boxes (B, 4, ...): x, y, w, h."""
    a_low, a_high = a[:, :2], a[:, :2] + a[:, 2:]
    b_low, b_high = b[:, :2], b[:, :2] + b[:, 2:]
    common = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(dim=1)
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(dim=1)
    union = a[:, 2:].prod(dim=1) + b[:, 2:].prod(dim=1) - common
    return common / union - (hull - union) / hull
