"""A person-net's picture and what its boxes mean, for those who have no net: no torch is needed.

A picture is boxed, somebody looks at it, and what is found there is turned into people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import letterbox
from cpm_core.people import People, Picture, tidied

Found = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Boxes (N, 4: x, y, w, h) in pixels of the boxed picture and scores (N,), best first."""

_SOURCE = "person-net"
_NMS_IOU = 0.55


def boxed(picture: Picture, size: int) -> tuple[Picture, NDArray[np.float64]]:
    """`letterbox` of what is a picture. Raises ValueError for anything else."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(
            f"expected an RGB picture (H, W, 3) of uint8, got {picture.dtype} {picture.shape}"
        )
    return letterbox(picture, size)


def people(found: Found, ratio: NDArray[np.float64], width: int, height: int) -> People:
    """What was found in a letterboxed picture as people of the picture.

    Boxes are cut to the picture; overlaps and what has no pixel in it are dropped.
    """
    boxes, scores = found
    scale = np.concatenate([ratio, ratio])
    unscaled = People((boxes / scale).astype(np.float64), scores.astype(np.float64), _SOURCE)
    return tidied(unscaled, width, height, _NMS_IOU)


class NetElsewhere:
    """A locator whose person-net is another's: `ask` says what it finds in a boxed picture
    (S, S, 3), where S is `size`."""

    def __init__(self, size: int, ask: Callable[[Picture], Found]) -> None:
        self.size = size
        self._ask = ask

    def locate(self, picture: Picture) -> People:
        """People in an RGB picture (H, W, 3), overlaps suppressed, best first."""
        image, ratio = boxed(picture, self.size)
        height, width = picture.shape[:2]
        return people(self._ask(image), ratio, width, height)

    def locate_batch(self, pictures: Sequence[Picture]) -> list[People]:
        """As `locate`, for each."""
        return [self.locate(picture) for picture in pictures]
