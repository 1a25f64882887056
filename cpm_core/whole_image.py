"""One person somewhere in the picture: estimate, re-centre on the joints found, estimate again.

The network was trained on crops that a person fills. Where a picture leaves room around the person,
a first look at the whole picture says where the joints are, and further looks at the box around
them see the person at the size that the network knows. All are cut out of a `wide` view of bounded
size, so that nobody needs the picture itself for the second look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import box_of_points, crop_matrix, transform, warp

if TYPE_CHECKING:
    from cpm_core.keypoints import KeypointEstimator

WIDE = 2
"""Side of the wide view, in units of the network's input: a person who fills 0.4 of the picture's
longer side, or more, is seen as sharply as in a crop of the picture itself."""

LOOKS = 3
"""The first sees the picture, each other one the box around the joints of the one before."""

_SURE = 0.25
"""Keypoint score from which a joint says where the person is."""

_LEAST_SHARE = 0.3
"""Of all joints, so many must be sure; fewer say too little."""

_SMALLEST = 0.5
"""Side of a box, in units of the one before: a look at a part of a person may lead on to a smaller
part, so it goes slowly."""

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]


def whole_box(width: float, height: float) -> Floats:
    """The box (4: x, y, w, h) of a picture."""
    return np.array([0, 0, width, height], np.float64)


def wide_view(picture: Picture, size: int, whole: Floats | None = None) -> Picture:
    """An RGB picture (H, W, 3) as a square of WIDE * size pixels, 128 beside it.

    `whole` is the box that stands for the whole, (0, 0, W, H) by default: of a picture decoded at a
    fraction of its size, the last pixels may stand for less than one of its own.
    """
    height, width = picture.shape[:2]
    box = whole_box(width, height) if whole is None else whole
    side = WIDE * size
    return warp(picture, crop_matrix(box, side, 1.0), side)


def estimate_whole(
    estimator: KeypointEstimator, wides: Picture, sizes: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.float32]]:
    """The person of each of N pictures, from wide views (N, L, L, 3) and `sizes` (N, 2: w, h).

    Returns boxes (N, 4), what the network looked at last, and keypoints (N, K, 3), both in pixels
    of the picture. Where too few joints are sure, the box stays what it was, first the picture.
    """
    boxes = np.array([whole_box(*size) for size in sizes]).reshape(-1, 4)
    keypoints = _look(estimator, wides, sizes, boxes)
    moved = np.arange(len(boxes))
    for _ in range(LOOKS - 1):
        nearer = {n: _around(keypoints[n], boxes[n]) for n in moved}
        moved = np.array([n for n, box in nearer.items() if box is not None], np.int64)
        if not len(moved):
            break
        for n in moved:
            boxes[n] = nearer[n]
        keypoints[moved] = _look(estimator, wides[moved], sizes[moved], boxes[moved])
    return boxes, keypoints


def _look(
    estimator: KeypointEstimator, wides: Picture, sizes: NDArray[np.int64], boxes: Floats
) -> NDArray[np.float32]:
    """Keypoints (N, K, 3) of the people at boxes (N, 4), cut out of the wide views."""
    cropper = estimator.cropper
    crops = [
        cropper.cut(wide, _in_wide(box, size, len(wide))[None])
        for wide, size, box in zip(wides, sizes, boxes, strict=True)
    ]
    side = cropper.size
    empty = np.empty((0, len(cropper.scales), side, side, 3), np.uint8)
    keypoints = estimator.estimate_crops(np.concatenate([empty, *crops]))
    for n, (width, height) in enumerate(sizes):
        one = slice(n, n + 1)
        keypoints[one] = cropper.to_picture(keypoints[one], boxes[one], int(width), int(height))
    return keypoints


def _in_wide(box: Floats, size: NDArray[np.int64], side: int) -> Floats:
    """A box (4) of a picture of `size` (w, h), in pixels of its wide view."""
    to_wide = crop_matrix(whole_box(*size), side, 1.0)
    extent = box[2:] * to_wide[0, 0]
    centre = transform(box[:2] + (box[2:] - 1) / 2, to_wide)
    return np.concatenate([centre - (extent - 1) / 2, extent])


def _around(points: NDArray[np.float32], before: Floats) -> Floats | None:
    """The box around the sure ones of keypoints (K, 3), at least _SMALLEST as large as the one
    before; None where they are too few."""
    sure = points[:, 2] >= _SURE
    if sure.mean() < _LEAST_SHARE:
        return None
    box = box_of_points(points[sure, :2].astype(np.float64))
    size = box[2:] * max(1.0, _SMALLEST * before[2:].max() / box[2:].max())
    return np.concatenate([box[:2] - (size - box[2:]) / 2, size])
