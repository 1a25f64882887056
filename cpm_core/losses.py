"""Losses at one stage, one value per sample (B,), so that a batch may be split among workers.

All take maps and targets (B, J + 1, H, W), background last, weights (B, J + 1), and the sum over
the cells of one whole peak.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TEMPERATURE = 10.0

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def squared_error(maps: Tensor, target: Tensor, weights: Tensor, peak_mass: float) -> Tensor:
    """Half the squared distance: Caffe's Euclidean loss, once it is averaged over the batch.

    The learning rates of the release are meant for this scale. `peak_mass` does not matter.
    """
    return (weights * ((maps - target) ** 2).sum(dim=(2, 3))).sum(dim=1) / 2


def peaked(maps: Tensor, target: Tensor, weights: Tensor, peak_mass: float) -> Tensor:
    """Squared error that counts ten times where a peak is, plus cross-entropy of a spatial softmax.

    Most cells of a map are empty, so plain squared error long prefers to say nothing; the
    cross-entropy asks only where the peak is. Both are means over the maps; a joint's map that
    misses its peak costs about 1 in squared error.
    """
    joints = maps.shape[1] - 1
    # The background's target is 1 where nobody is; its peaks are the holes in it.
    peaks = torch.cat([target[:, :-1], 1 - target[:, -1:]], dim=1)
    error = ((1 + 9 * peaks) * (maps - target) ** 2).sum(dim=(2, 3))
    shape_loss = 0.25 * (weights * error).sum(dim=1) / (peak_mass * (joints + 1))
    log_beliefs = torch.log_softmax(_TEMPERATURE * maps[:, :-1].flatten(2), dim=2)
    # The softmax of the target, too, so that the target itself is the best answer to both parts.
    where = torch.softmax(_TEMPERATURE * target[:, :-1].flatten(2), dim=2)
    seen = weights[:, :-1] * (target[:, :-1].amax(dim=(2, 3)) > 0)
    place_loss = -((where * log_beliefs).sum(dim=2) * seen).sum(dim=1) / joints
    return shape_loss + 0.5 * place_loss


LOSSES: dict[str, Loss] = {"squared": squared_error, "peaked": peaked}
