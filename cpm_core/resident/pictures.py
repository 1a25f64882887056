"""Pictures of a pack, decoded into the memory of a device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpm_core.errors import PackError
from cpm_core.geometry import FILL
from cpm_core.resident.pack import Pack

LEVELS = 3
"""Each picture is there in full, at a half and at a quarter of its size."""

_CHUNK = 64


@dataclass(frozen=True)
class Pictures:
    """M pictures as one tensor (M, C + 2, C + C / 2 + 4, 3) of uint8.

    Each lies at the top left of a square canvas of C pixels, and what it does not cover is 128. To
    the right of that is the canvas averaged down to C / 2, and under it to C / 4. A frame of one
    pixel of 128 around each level makes all that lies outside of it 128, too. `corners` (LEVELS, 2)
    are x and y of the first pixel of each.
    """

    tensor: Tensor
    corners: Tensor
    canvas: int


def decoded(pack: Pack, device: torch.device, threads: int = 1) -> Pictures:
    """All pictures of a pack. Raises PackError for one that cannot be decoded.

    The device needs 1.5 canvases of memory per picture, the host a few of them.
    """
    canvas, count = pack.info.canvas, len(pack.ends)
    height, width = canvas + 2, canvas + canvas // 2 + 4
    tensor = torch.empty((count, height, width, 3), dtype=torch.uint8, device=device)

    def decode(place: int) -> NDArray[np.uint8]:
        frame = np.full((height, width, 3), FILL, np.uint8)
        level = _canvas(pack, place)
        for number in range(LEVELS):
            if number:
                level = cv2.resize(level, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
            x, y = _corner(canvas, number)
            frame[y : y + len(level), x : x + len(level)] = level
        return frame

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, _CHUNK):
            chunk = range(start, min(count, start + _CHUNK))
            frames = torch.from_numpy(np.stack(list(pool.map(decode, chunk))))
            tensor[start : start + len(chunk)] = frames.to(device)
    corners = torch.tensor([_corner(canvas, level) for level in range(LEVELS)], device=device)
    return Pictures(tensor, corners, canvas)


def _corner(canvas: int, level: int) -> tuple[int, int]:
    x = 1 if level == 0 else canvas + 3
    return x, 1 if level < 2 else canvas // 2 + 2


def _canvas(pack: Pack, place: int) -> NDArray[np.uint8]:
    """The canvas (C, C, 3) of one picture, RGB."""
    found = cv2.imdecode(pack.encoded(place), cv2.IMREAD_COLOR)
    width, height = pack.sizes[place].tolist()
    if found is None or found.shape != (height, width, 3):
        what = "cannot be decoded" if found is None else f"is {found.shape[1]} x {found.shape[0]}"
        raise PackError(f"picture {place} of the pack {what}; it should be {width} x {height}")
    canvas = np.full((pack.info.canvas, pack.info.canvas, 3), FILL, np.uint8)
    canvas[:height, :width] = found[..., ::-1]
    return canvas
