"""Ideal maps for labelled boxes, and boxes of maps in training.

Coordinates follow `cpm_core.geometry`: an integer is a pixel's centre, a box x, y, w, h covers w
pixels from x on, and cell g is centred at 8 g + 3.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpm_core.person_net.config import LARGEST_LOG, OFFSET, SIZE_UNIT, STRIDE

Floats = NDArray[np.float32]

_SPREAD = 0.09
"""Sigma of a centre's peak in units of the box's side: about a tenth of a person is its centre."""
_SMALLEST_SIGMA = 0.6
"""Cells."""
_CORE = 0.4
"""Cells whose target is at least this learn the box."""


@dataclass(frozen=True)
class Targets:
    """Maps of one scene: `centre` (H, W) 0..1, `known` (H, W) 0 where nobody labelled people,
    `boxes` (4, H, W) as x, y, w, h in pixels and their weight `core` (H, W) 0..1."""

    centre: Floats
    known: Floats
    boxes: Floats
    core: Floats


def encode(boxes: NDArray[np.floating], ignore: NDArray[np.floating], cells: int) -> Targets:
    """Targets for boxes (N, 4) and regions that may hold unlabelled people (M, 4).

    A peak's cell is exactly 1, wherever the centre lies in it. Where peaks overlap, the cell learns
    the box of the higher one.
    """
    centre, core = np.zeros((2, cells, cells), np.float32)
    known = np.ones((cells, cells), np.float32)
    target = np.zeros((4, cells, cells), np.float32)
    target[2:] = 1
    grid = np.arange(cells, dtype=np.float64)
    pixels = grid * STRIDE + OFFSET
    for x, y, w, h in ignore:
        rows = (pixels >= y) & (pixels <= y + h - 1)
        known[np.outer(rows, (pixels >= x) & (pixels <= x + w - 1))] = 0
    for x, y, w, h in boxes:
        lines = []
        for low, side in ((y, h), (x, w)):
            place = np.clip((low + (side - 1) / 2 - OFFSET) / STRIDE, 0, cells - 1)
            sigma = max(_SMALLEST_SIGMA, _SPREAD * side / STRIDE)
            lines.append(np.exp(-((grid - np.rint(place)) ** 2) / (2 * sigma**2)))
        peak = np.outer(*lines).astype(np.float32)
        higher = peak > centre
        centre[higher] = peak[higher]
        mine = higher & (peak >= _CORE)
        core[mine] = peak[mine]
        target[:, mine] = np.array([[x], [y], [w], [h]], np.float32)
    return Targets(centre, known, target, core)


def boxes_of(maps: Tensor) -> Tensor:
    """(B, 4, H, W) x, y, w, h in pixels of the input, from maps (B, 5, H, W)."""
    rows, columns = maps.shape[-2:]
    x = torch.arange(columns, device=maps.device, dtype=maps.dtype) * STRIDE + OFFSET
    y = torch.arange(rows, device=maps.device, dtype=maps.dtype) * STRIDE + OFFSET
    size = maps[:, 3:5].clamp(-LARGEST_LOG, LARGEST_LOG).exp() * SIZE_UNIT
    left = x[None, None] + maps[:, 1] * STRIDE - (size[:, 0] - 1) / 2
    top = y[None, :, None] + maps[:, 2] * STRIDE - (size[:, 1] - 1) / 2
    return torch.cat([left[:, None], top[:, None], size], dim=1)
