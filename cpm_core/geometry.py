"""Boxes, square crops and the way back.

An integer coordinate is a pixel's centre. A box is x, y, w, h in pixels of the picture and covers
the w pixels from x to x + w - 1, so its centre is x + (w - 1) / 2; the whole picture is (0, 0,
width, height). The middle of a crop of side S is (S - 1) / 2.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FILL = 128
"""Value of a crop's pixels outside the picture, in all three colours (as in the release)."""

_SHORTEST, _LONGEST = 1e-3, 1e7
"""Pixels. A box outside of this is a mistake, and its arithmetic would not be exact."""

_OPENCV_LONGEST = 32766
"""OpenCV 4 cannot warp a picture with a longer side."""

Array = NDArray[np.float64]


def crop_matrix(
    box: NDArray[np.floating], size: int, factor: float, rotation: float = 0.0, flip: bool = False
) -> Array:
    """(2, 3) affine map from picture to crop pixels. Raises ValueError for an unusable box.

    The crop is the square of side `factor * max(w, h)` around the box's centre, turned by
    `rotation` radians (clockwise on screen), mirrored after turning if `flip`, and scaled to `size`
    pixels.
    """
    x, y, w, h = (float(v) for v in box)
    in_range = (np.abs([x, y, w, h]) <= _LONGEST).all() and max(w, h) >= _SHORTEST
    if not (in_range and w > 0 and h > 0):
        raise ValueError(f"a box needs finite x, y and positive w, h in pixels, not {[x, y, w, h]}")
    scale = size / (factor * max(w, h))
    cos, sin = np.cos(rotation) * scale, np.sin(rotation) * scale
    linear = np.array([[cos, -sin], [sin, cos]])
    if flip:
        linear[0] = -linear[0]
    centre = np.array([x + (w - 1) / 2, y + (h - 1) / 2])
    return np.column_stack([linear, (size - 1) / 2 - linear @ centre])


def invert(matrix: Array) -> Array:
    """The (2, 3) affine map of the opposite direction, exact to rounding."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.column_stack([inverse, -inverse @ matrix[:, 2]])


def transform(points: NDArray[np.floating], matrix: Array) -> Array:
    """Apply a (2, 3) map to points (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp(image: NDArray[np.uint8], matrix: Array, size: int) -> NDArray[np.uint8]:
    """Cut a (size, size, 3) crop out of an (H, W, 3) picture; outside the picture it is 128.

    A crop that shrinks the picture by two or more is averaged down first, so that it does not
    alias.
    """
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if shrink >= 2 or max(image.shape) > _OPENCV_LONGEST:
        image, matrix = _covered(image, matrix, size, max(1, int(shrink)))
    return cv2.warpAffine(  # type: ignore[return-value]
        image,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL),
    )


def _covered(
    image: NDArray[np.uint8], matrix: Array, size: int, shrink: int
) -> tuple[NDArray[np.uint8], Array]:
    """The part of the picture under the crop, averaged down by about `shrink`, and its matrix."""
    corners = np.array([[-1, -1], [size, -1], [-1, size], [size, size]], dtype=np.float64)
    reach = transform(corners, invert(matrix))
    end = np.array(image.shape[1::-1])
    low = np.clip(np.floor(reach.min(axis=0)).astype(int) - shrink, 0, end - 1)
    high = np.maximum(np.ceil(reach.max(axis=0)).astype(int) + shrink + 1, low + 1)
    cells = -((low - np.minimum(high, end)) // shrink)
    x0, y0 = low
    x1, y1 = np.minimum(low + cells * shrink, end)
    part = _averaged(image[y0:y1, x0:x1], shrink)
    # Pixel i of the small picture is centred at (i + 0.5) * shrink - 0.5 of the part.
    offset = matrix[:, 2] + matrix[:, :2] @ (low + 0.5 * shrink - 0.5)
    return part, np.column_stack([matrix[:, :2] * shrink, offset])


def _averaged(image: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Every n x n pixels as one, and what is left over at the end as one, too.

    OpenCV averages whole cells three to ten times as quickly as others.
    """
    if n == 1:
        return image
    height, width = image.shape[:2]
    small = np.empty((-(-height // n), -(-width // n), 3), np.uint8)
    for rows in (slice(0, height // n), slice(height // n, None)):
        for columns in (slice(0, width // n), slice(width // n, None)):
            target = small[rows, columns]
            if target.size:
                cells = image[_times(rows, n), _times(columns, n)]
                target[:] = cv2.resize(cells, target.shape[1::-1], interpolation=cv2.INTER_AREA)
    return small


def _times(cells: slice, n: int) -> slice:
    return slice(cells.start * n, None if cells.stop is None else cells.stop * n)


def letterbox(
    image: NDArray[np.uint8], size: int, fill: int = FILL
) -> tuple[NDArray[np.uint8], Array]:
    """A picture (H, W, 3) at the top left of a square of side `size`, the rest `fill`.

    Also (2,) how much larger x and y are in it than in the picture.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.full((size, size, 3), fill, np.uint8)
    canvas[:h, :w] = cv2.resize(image, (w, h), interpolation=interpolation)
    return canvas, np.array([w / width, h / height])


def box_of_points(points: NDArray[np.floating]) -> Array:
    """x, y, w, h of the smallest box that covers points (N, 2)."""
    low, high = points.min(axis=0), points.max(axis=0)
    return np.concatenate([low, high - low + 1]).astype(np.float64)


def inside(points: NDArray[np.floating], width: int, height: int) -> NDArray[np.bool_]:
    """Which points (..., 2) lie on the picture, its outermost pixels' full area included."""
    x, y = points[..., 0], points[..., 1]
    on_picture: NDArray[np.bool_] = (
        (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    )
    return on_picture
