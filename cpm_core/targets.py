"""Ideal belief maps: what each stage is trained to say (CPM paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpm_core.config import STRIDE

_SMALLEST = 0.01
"""Values below are 0, as in the release (exponent cut at 4.6052)."""


def belief_maps(
    keypoints: Tensor, labelled: Tensor, map_size: int, sigma: float, cell_offset: float = 3.5
) -> Tensor:
    """Target maps (B, J + 1, map_size, map_size), background last.

    `keypoints` (B, J, 2) in pixels of the crop; `labelled` (B, J) bool: an unlabelled joint has an
    empty map. With a people axis, (B, P, J, 2) and (B, P, J), the peaks of all P people are added
    and clipped at 1, as the release does for stage 1. `sigma` in pixels. Cell g is centred at
    8 g + cell_offset.
    """
    if keypoints.ndim == 3:
        keypoints, labelled = keypoints[:, None], labelled[:, None]
    cells = torch.arange(map_size, dtype=keypoints.dtype, device=keypoints.device)
    cells = cells * STRIDE + cell_offset
    exponent = (cells - keypoints[..., None]) ** 2 / (2 * sigma**2)
    peaks = torch.exp(-exponent[..., 1, :, None] - exponent[..., 0, None, :])
    # Where and not times: an unlabelled joint may hold NaN.
    seen = labelled[..., None, None] & (peaks >= _SMALLEST)
    joints = torch.where(seen, peaks, torch.zeros_like(peaks)).sum(dim=1).clamp(max=1)
    background = 1 - joints.amax(dim=1, keepdim=True)
    return torch.cat([joints, background], dim=1)


def map_weights(labelled: Tensor) -> Tensor:
    """(B, J + 1) loss weight of each map: 1 for labelled joints (B, J), and for the background of a
    sample that has any."""
    return torch.cat([labelled, labelled.any(dim=1, keepdim=True)], dim=1).float()
