"""Belief maps of mirrored and of resized crops, brought back to the grid of the plain crop."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cpm_core.config import STRIDE

_SYMMETRIC = (STRIDE - 1) / 2
"""The cell offset with which the grid of cell centres is its own mirror image."""


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
