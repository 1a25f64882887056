"""Belief maps -> keypoints: the peak's cell, then its place within the cell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cpm_core.config import STRIDE

Refinement = Literal["gaussian", "quarter", "none"]
_TINY = 1e-6
_SYMMETRIC = (STRIDE - 1) / 2
"""The cell offset with which the grid of cell centres is its own mirror image."""


def decode(maps: Tensor, cell_offset: float = 3.5, refinement: Refinement = "gaussian") -> Tensor:
    """Peaks of joint maps (..., H, W): (..., 3), x and y in pixels of the crop, belief at the peak.

    `gaussian` fits a Gaussian through the peak and its two neighbours along each axis, which is
    exact for an ideal map; `quarter` moves a quarter cell towards the higher neighbour; `none`
    gives the cell's centre, as the release. Scores are clipped to 0..1.
    """
    height, width = maps.shape[-2:]
    maps = maps.float()
    flat = maps.flatten(-2)
    # Not `max`, which calls torch's threads, even for a few maps: they then spin for milliseconds,
    # on the CPUs of the next network.
    index = flat.argmax(dim=-1)
    score = flat.gather(-1, index[..., None])[..., 0]
    row, column = index // width, index % width
    x, y = column.float(), row.float()
    if refinement != "none":
        x = x + _shift(flat, index, column, width, 1, refinement)
        y = y + _shift(flat, index, row, height, width, refinement)
    points = torch.stack([x, y], dim=-1) * STRIDE + cell_offset
    return torch.cat([points, score.clamp(0, 1)[..., None]], dim=-1)


def _shift(
    flat: Tensor, index: Tensor, position: Tensor, length: int, step: int, refinement: Refinement
) -> Tensor:
    """Offset in cells, within half a cell, along one axis; 0 for a peak on the map's edge."""
    inner = (position > 0) & (position < length - 1)

    def at(offset: int) -> Tensor:
        neighbour = torch.where(inner, index + offset, index)
        return flat.gather(-1, neighbour[..., None])[..., 0]

    before, peak, after = at(-step), at(0), at(step)
    if refinement == "quarter":
        return 0.25 * torch.sign(after - before)
    a, b, c = (v.clamp(min=_TINY).log() for v in (before, peak, after))
    curvature = 2 * b - a - c
    return ((c - a) / (2 * curvature.clamp(min=_TINY))).clamp(-0.5, 0.5)


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
