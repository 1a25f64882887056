"""What all estimators have in common: crops or a picture with boxes in, keypoints out. No torch in
here."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpm_core import cpu
from cpm_core.crops import Cropper
from cpm_core.decode import Refinement
from cpm_core.errors import ConfigError
from cpm_core.info import WeightsInfo

Precision = Literal["auto", "fp32", "bf16"]

CPU_BATCHES = {"lite": 32, "vgg": 1, "original": 1}
"""By trunk, the most crops that go through an estimator on a CPU at a time. The large networks gain
nothing from a second crop, whose maps take memory."""

THREAD_BATCHES = {"lite": 4, "vgg": 1, "original": 1}
"""By trunk, how many of those a thread works at on its own, at a time: with four a tenth is gained,
and from eight nothing more. At a lone crop of a large network all threads work together."""


class KeypointEstimator(ABC):
    """A CPM that turns uint8 crops, or a picture with boxes, into keypoints.

    Several threads may call it: the network sees the crops of one call after those of another.
    `device` is a kind, "cpu" or "cuda": `auto` precision is bf16 where that is quick. Raises
    ConfigError for an unusable option.
    """

    def __init__(
        self,
        info: WeightsInfo,
        sha256: str,
        device: str,
        precision: Precision,
        scales: tuple[float, ...],
        refinement: Refinement,
        box_factor: float | None,
    ) -> None:
        for given, allowed in ((precision, Precision), (refinement, Refinement)):
            if given not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ConfigError(f"{given!r} is not one of {choices}")
        self.info = info
        self.sha256 = sha256
        is_quick = device == "cuda" or (device == "cpu" and cpu.has_bf16())
        self.bf16 = precision == "bf16" or (precision == "auto" and is_quick)
        self.refinement = refinement
        factor = info.box_factor if box_factor is None else box_factor
        self.cropper = Cropper(info.config.input_size, factor, scales)
        self._lock = threading.Lock()

    def estimate(self, picture: NDArray[np.uint8], boxes: ArrayLike) -> NDArray[np.float32]:
        """Keypoints (N, K, 3) of people at boxes (N, 4: x, y, w, h) of an RGB picture (H, W, 3).

        x and y are pixels of the picture, the score is the belief at the peak and 0 outside the
        picture. Raises ValueError for a picture or boxes of another kind, and for a box that is not
        finite or empty.
        """
        boxes = as_boxes(boxes)
        keypoints = self.estimate_crops(self.cropper.cut(picture, boxes))
        height, width = picture.shape[:2]
        return self.cropper.to_picture(keypoints, boxes, width, height)

    def estimate_crops(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Keypoints (N, K, 3) in base-crop pixels for RGB crops (N, V, S, S, 3) from
        `cropper.cut`."""
        size = self.cropper.size
        expected = (len(self.cropper.scales), size, size, 3)
        if crops.ndim != 5 or crops.shape[1:] != expected or crops.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 crops (N, {', '.join(map(str, expected))}), "
                f"got {crops.dtype} {crops.shape}"
            )
        with self._lock:
            return self._keypoints(crops)

    @abstractmethod
    def _keypoints(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Keypoints (N, K, 3) of crops as `estimate_crops` takes them."""


def as_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    """Boxes (N, 4), also of an empty list."""
    array = np.asarray(boxes, dtype=np.float64)
    return array if array.size else array.reshape(0, 4)
