"""Belief maps -> keypoints: the peak's cell, then its place within the cell.

NumPy does it, but for peaks on a GPU: torch is imported only by who has tensors anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpm_core.config import STRIDE

if TYPE_CHECKING:
    from torch import Tensor

Refinement = Literal["gaussian", "quarter", "none"]
_TINY = 1e-6


def decode(
    maps: Tensor | NDArray[np.float32],
    cell_offset: float = 3.5,
    refinement: Refinement = "gaussian",
) -> NDArray[np.float32]:
    """Peaks of joint maps (..., H, W): (..., 3), x and y in pixels of the crop, belief at the peak.

    `gaussian` fits a Gaussian through the peak and its two neighbours along each axis, which is
    exact for an ideal map; `quarter` moves a quarter cell towards the higher neighbour; `none`
    gives the cell's centre, as the release. Scores are clipped to 0..1.
    """
    width = maps.shape[-1]
    found = _peaks(maps) if isinstance(maps, np.ndarray) else _peaks_of_tensor(maps)
    index, peak, left, right, above, below = np.moveaxis(found, -1, 0)
    row, column = np.divmod(index, width)
    if refinement != "none":
        column = column + _shift(left, peak, right, refinement)
        row = row + _shift(above, peak, below, refinement)
    points = np.stack([column, row], axis=-1) * STRIDE + cell_offset
    return np.concatenate([points, np.clip(peak, 0, 1)[..., None]], axis=-1, dtype=np.float32)


def _peaks(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 6) of maps (..., H, W): the largest value's place in the flattened map, the value, and
    its neighbours left, right, above, below; on the map's edge the value itself for both."""
    height, width = maps.shape[-2:]
    flat = maps.reshape(*maps.shape[:-2], height * width)
    index = flat.argmax(axis=-1, keepdims=True)
    values = np.take_along_axis(flat, np.concatenate(_cross(index, height, width), axis=-1), -1)
    return np.concatenate([index, values], axis=-1, dtype=np.float32)


def _peaks_of_tensor(maps: Tensor) -> NDArray[np.float32]:
    """As `_peaks`, which does those on a CPU: torch would call its threads even for these, and they
    then spin for milliseconds on the CPUs that the next network wants."""
    maps = maps.detach().float()
    if maps.device.type == "cpu":
        return _peaks(maps.numpy())
    import torch

    flat = maps.flatten(-2)
    index = flat.argmax(dim=-1, keepdim=True)
    values = flat.gather(-1, torch.cat(_cross(index, *maps.shape[-2:]), dim=-1))
    found: NDArray[np.float32] = torch.cat([index.float(), values], dim=-1).cpu().numpy()
    return found


def _cross(index: Any, height: int, width: int) -> list[Any]:
    """The places of peaks and of their neighbours in flattened maps; an array's or a tensor's."""
    row, column = index // width, index % width
    beside = ((column > 0) & (column < width - 1)) * 1
    across = ((row > 0) & (row < height - 1)) * width
    return [index, index - beside, index + beside, index - across, index + across]


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
