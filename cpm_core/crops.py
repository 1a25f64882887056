"""From people in a picture to the crops that the network reads, and back. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpm_core.errors import ConfigError
from cpm_core.geometry import crop_matrix, inside, invert, transform, warp


@dataclass(frozen=True)
class Cropper:
    """Cuts V = len(scales) square views of `size` pixels around each box.

    View v shows the person `scales[v]` times as large as the base crop, whose side is `box_factor`
    times the box's longer side. Keypoints are always in pixels of the base crop.
    """

    size: int
    box_factor: float
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 0.1 <= self.box_factor <= 100:
            raise ConfigError(f"box_factor is {self.box_factor}; choose 0.1 to 100, as 1.25")
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ConfigError(f"scales are {self.scales}; choose one or more from 0.1 to 10")

    def shrink(self, boxes: NDArray[np.floating]) -> float:
        """Pixels of the picture for one of a crop, each way, in the finest view of boxes (N, 4);
        infinite where there are none."""
        shortest = float(boxes[:, 2:].max(axis=1).min(initial=np.inf))
        return shortest * self.box_factor / (max(self.scales) * self.size)

    def cut(self, picture: NDArray[np.uint8], boxes: NDArray[np.floating]) -> NDArray[np.uint8]:
        """(N, V, size, size, 3) crops of an RGB picture (H, W, 3) for boxes (N, 4).

        Raises ValueError for another kind of picture, other shapes and unusable boxes.
        """
        if (
            picture.ndim != 3
            or picture.shape[2] != 3
            or picture.dtype != np.uint8
            or not picture.size
        ):
            raise ValueError(
                f"expected a uint8 RGB picture (H, W, 3), got {picture.dtype} {picture.shape}"
            )
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"expected boxes (N, 4: x, y, w, h), got {boxes.shape}")
        crops = np.empty((len(boxes), len(self.scales), self.size, self.size, 3), np.uint8)
        for n, box in enumerate(boxes):
            for v, scale in enumerate(self.scales):
                matrix = crop_matrix(box, self.size, self.box_factor / scale)
                crops[n, v] = warp(picture, matrix, self.size)
        return crops

    def to_picture(
        self, keypoints: NDArray[np.floating], boxes: NDArray[np.floating], width: int, height: int
    ) -> NDArray[np.float32]:
        """Keypoints (N, K, 3) of base crops -> pixels of the picture; a joint outside scores 0."""
        result = keypoints.astype(np.float64)
        for n, box in enumerate(boxes):
            to_crop = crop_matrix(box, self.size, self.box_factor)
            result[n, :, :2] = transform(result[n, :, :2], invert(to_crop))
        result[..., 2] *= inside(result[..., :2], width, height)
        return result.astype(np.float32)
