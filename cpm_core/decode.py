"""Belief maps -> keypoints: the peak's cell, then its place within the cell."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cpm_core.config import STRIDE

Refinement = Literal["gaussian", "quarter", "none"]
_TINY = 1e-6
_SYMMETRIC = (STRIDE - 1) / 2
"""The cell offset with which the grid of cell centres is its own mirror image."""


def decode(
    maps: Tensor, cell_offset: float = 3.5, refinement: Refinement = "gaussian"
) -> NDArray[np.float32]:
    """Peaks of joint maps (..., H, W): (..., 3), x and y in pixels of the crop, belief at the peak.

    `gaussian` fits a Gaussian through the peak and its two neighbours along each axis, which is
    exact for an ideal map; `quarter` moves a quarter cell towards the higher neighbour; `none`
    gives the cell's centre, as the release. Scores are clipped to 0..1.
    """
    width = maps.shape[-1]
    # The peaks are looked for where the maps are. Their places are for NumPy: on a CPU, torch calls
    # its threads even for a few logarithms, and they then spin for milliseconds on the CPUs that
    # the next network wants.
    found = _peaks(maps.detach().float()).cpu().numpy()
    index, peak, left, right, above, below = np.moveaxis(found, -1, 0)
    row, column = np.divmod(index, width)
    if refinement != "none":
        column = column + _shift(left, peak, right, refinement)
        row = row + _shift(above, peak, below, refinement)
    points = np.stack([column, row], axis=-1) * STRIDE + cell_offset
    return np.concatenate([points, np.clip(peak, 0, 1)[..., None]], axis=-1, dtype=np.float32)


def _peaks(maps: Tensor) -> Tensor:
    """(..., 6) of maps (..., H, W): the largest value's place in the flattened map, the value, and
    its neighbours left, right, above, below; on the map's edge the value itself for both."""
    height, width = maps.shape[-2:]
    flat = maps.flatten(-2)
    if flat.device.type == "cpu":
        index = torch.from_numpy(flat.numpy().argmax(axis=-1, keepdims=True))
    else:
        index = flat.argmax(dim=-1, keepdim=True)
    row, column = index // width, index % width
    beside = ((column > 0) & (column < width - 1)).long()
    across = ((row > 0) & (row < height - 1)).long() * width
    places = [index, index - beside, index + beside, index - across, index + across]
    return torch.cat([index.float(), flat.gather(-1, torch.cat(places, dim=-1))], dim=-1)


def _shift(
    before: NDArray[np.float32],
    peak: NDArray[np.float32],
    after: NDArray[np.float32],
    refinement: Refinement,
) -> NDArray[np.float32]:
    """Offset of the peak in cells, within half a cell, along one axis; 0 where all are equal."""
    if refinement == "quarter":
        shift: NDArray[np.float32] = np.sign(after - before) / 4
        return shift
    a, b, c = (np.log(np.maximum(v, _TINY)) for v in (before, peak, after))
    shift = (c - a) / (2 * np.maximum(2 * b - a - c, _TINY))
    return shift.clip(-0.5, 0.5)


def flip_back(maps: Tensor, flip_order: Tensor, cell_offset: float = 3.5) -> Tensor:
    """Maps (B, J + 1, H, W) of mirrored crops, mirrored back: left and right joints swapped too.

    The grid of cell centres 8 g + 3.5 is its own mirror image, so columns are just reversed; with
    another offset they are also shifted by interpolation.
    """
    background = torch.tensor([maps.shape[1] - 1], device=maps.device)
    swapped = maps[:, torch.cat([flip_order.to(maps.device), background])]
    return swapped.flip(-1) if cell_offset == _SYMMETRIC else _sample(swapped, -1, 1, cell_offset)


def resample(maps: Tensor, scale: float, cell_offset: float = 3.5) -> Tensor:
    """Maps of a crop that covers `scale` times the base crop's side, on the base crop's grid.

    Cells of the base crop that the given crop does not cover are 0, background (last) 1, as in the
    release. The shape stays (B, J + 1, H, W).
    """
    return maps if scale == 1 else _sample(maps, 1 / scale, 1 / scale, cell_offset)


def _sample(maps: Tensor, x_factor: float, y_factor: float, cell_offset: float) -> Tensor:
    """A place p from the crop's middle takes the value at factor * p, interpolated.

    Cubic, as in the release: bilinear flattens peaks and moves them by up to 2 px.
    """
    height, width = maps.shape[-2:]
    # affine_grid's middle is the middle of the cells' centres; the crop's lies this far from it.
    x0, y0 = ((cell_offset - _SYMMETRIC) / (STRIDE / 2 * length) for length in (width, height))
    theta = torch.tensor(
        [[x_factor, 0, (x_factor - 1) * x0], [0, y_factor, (y_factor - 1) * y0]],
        dtype=maps.dtype,
        device=maps.device,
    )
    grid = F.affine_grid(theta.expand(maps.shape[0], 2, 3), list(maps.shape), align_corners=False)
    joints, background = maps[:, :-1], maps[:, -1:]
    joints = F.grid_sample(joints, grid, mode="bicubic", align_corners=False)
    background = 1 + F.grid_sample(background - 1, grid, mode="bicubic", align_corners=False)
    return torch.cat([joints, background], dim=1)
