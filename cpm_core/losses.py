"""Losses at one stage. All take maps and targets (B, J + 1, H, W) and weights (B, J + 1)."""

from __future__ import annotations

import torch
from torch import Tensor

_TEMPERATURE = 10.0


def squared_error(maps: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Half the squared distance, summed over a sample, mean over the batch: Caffe's Euclidean loss.

    The learning rates of the release are meant for this scale.
    """
    return (weights * ((maps - target) ** 2).sum(dim=(2, 3))).sum() / (2 * maps.shape[0])


def peaked(maps: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Squared error weighted 1 + 9 t, plus cross-entropy of a spatial softmax of the joints' maps.

    Most cells of a map are empty, so plain squared error long prefers to say nothing; the
    cross-entropy asks only where the peak is. Both are per labelled map; a joint's map that misses
    its peak costs about 1 in squared error.
    """
    error = ((1 + 9 * target) * (maps - target) ** 2).sum(dim=(2, 3))
    mass = target[:, :-1].sum(dim=(2, 3))
    # The background's target is nearly all ones; measure it by what a joint weighs too.
    unit = mass.sum() / (mass > 0).sum().clamp(min=1)
    shape_loss = (
        0.25 * (weights * error).sum() / (unit.clamp(min=1e-6) * weights.sum().clamp(min=1))
    )
    log_beliefs = torch.log_softmax(_TEMPERATURE * maps[:, :-1].flatten(2), dim=2)
    where = target[:, :-1].flatten(2) / mass.clamp(min=1e-6)[..., None]
    seen = weights[:, :-1] * (mass > 0)
    place_loss = -((where * log_beliefs).sum(dim=2) * seen).sum() / seen.sum().clamp(min=1)
    return shape_loss + 0.5 * place_loss


LOSSES = {"squared": squared_error, "peaked": peaked}
