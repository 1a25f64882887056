"""Crops of pictures that lie in a device's memory, cut there: no loader, nothing to wait for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cpm_core.resident.draws import Draws
from cpm_core.resident.pictures import LEVELS, Pictures
from cpm_core.training import Batch


def cut(
    pictures: Pictures,
    draws: Draws,
    size: int,
    layout: torch.memory_format = torch.channels_last,
) -> Batch:
    """The crops (B, size, size, 3) of some draws, all on the device of the pictures.

    Where a crop shrinks its picture by two or more, it is taken from the one averaged down to a
    half or a quarter: plain bilinear sampling would skip pixels and alias. (`geometry.warp` does so
    by whole numbers and as far as it takes.) The choice is a shift of coordinates, not a branch, so
    the device is never waited for.

    `layout` is how the crops lie in memory, seen as images (B, 3, size, size): a network follows
    that of its input, whatever its weights have.
    """
    crops = _sampled(pictures, draws, size)
    crops = (crops * _per_crop(draws.gain) + _per_crop(draws.bias[:, None])).clamp(0, 255)
    # Colours are cut off and not rounded, as `cpm_core.augment` does.
    for rectangle in draws.rectangles.unbind(dim=1):
        crops = _erased(crops, rectangle, size)
    has_others = draws.others.shape[1] > 0
    return Batch(
        crops.byte().contiguous(memory_format=layout).permute(0, 2, 3, 1),
        _in_pixels(draws.keypoints, size),
        draws.labelled,
        _in_pixels(draws.others, size) if has_others else None,
        draws.others_labelled if has_others else None,
    )


def _in_pixels(points: Tensor, size: int) -> Tensor:
    return (points * size + (size - 1) / 2).float()


def _sampled(pictures: Pictures, draws: Draws, size: int) -> Tensor:
    """Whole values (B, 3, size, size) of the pictures in the places of the crops' pixels."""
    height, width = pictures.tensor.shape[1:3]
    x, y = _places(pictures, draws, size)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    planes = pictures.tensor[draws.picture].permute(0, 3, 1, 2).float()
    # No place is outside of the tensor, so the padding changes nothing; but with zeros PyTorch
    # would take cuDNN's sampler, which refuses some shapes.
    sampled = F.grid_sample(planes, grid, "bilinear", padding_mode="border", align_corners=True)
    return sampled.round()


def _places(pictures: Pictures, draws: Draws, size: int) -> tuple[Tensor, Tensor]:
    """x and y (B, size, size) in the tensor of the pictures, each on the level that suits it."""
    line = (torch.arange(size, device=draws.centre.device) - (size - 1) / 2) / size
    level = levels(draws, size)
    shrink = _per_pixel(2.0**level)
    corners = pictures.corners[level]
    places = []
    for axis in (0, 1):
        along, down = (_per_pixel(draws.back[:, axis, n]) for n in (0, 1))
        at = _per_pixel(draws.centre[:, axis]) + along * line + down * line[:, None]
        # Pixel i of a smaller level is centred at (i + 0.5) * shrink - 0.5 of the canvas.
        at = (at + 0.5) / shrink - 0.5
        # The frame around a level has the value of all that lies outside of it.
        at = torch.minimum(at.clamp(min=-1), pictures.canvas / shrink)
        places.append(at + _per_pixel(corners[:, axis]))
    return places[0], places[1]


def levels(draws: Draws, size: int) -> Tensor:
    """(B,) how often to halve the picture before a crop of this size is taken from it."""
    return torch.log2(draws.side / size).floor().clamp(0, LEVELS - 1).long()


def _erased(crops: Tensor, rectangle: Tensor, size: int) -> Tensor:
    """Crops with a rectangle (B, 7) of `Draws` painted over."""
    there = rectangle[:, 0] > 0
    extent = (rectangle[:, :2] * size).floor().clamp(min=1)
    start = (rectangle[:, 2:4] * (size - extent + 1)).floor()
    line = torch.arange(size, device=crops.device)
    covers = [
        (line >= start[:, axis, None]) & (line < (start + extent)[:, axis, None]) for axis in (0, 1)
    ]
    mask = covers[1][:, :, None] & covers[0][:, None, :] & there[:, None, None]
    return torch.where(mask[:, None], _per_crop(rectangle[:, 4:]), crops)


def _per_pixel(values: Tensor) -> Tensor:
    """(B,) as what is added to (B, H, W)."""
    return values.float()[:, None, None]


def _per_crop(values: Tensor) -> Tensor:
    """(B, C) as what multiplies (B, C, H, W)."""
    return values.float()[:, :, None, None]
