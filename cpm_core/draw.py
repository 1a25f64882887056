"""Poses drawn over pictures, and contact sheets of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.skeleton import Skeleton

Picture = NDArray[np.uint8]
_WHITE, _INK, _PAPER = (255, 255, 255), (40, 40, 40), (245, 245, 245)


def draw_pose(
    picture: Picture,
    keypoints: NDArray[np.floating],
    skeleton: Skeleton,
    threshold: float = 0.2,
    box: NDArray[np.floating] | None = None,
) -> None:
    """Draw one person's keypoints (K, 3) on an RGB picture, in place; low scores are left out."""
    unit = max(1, round(math.hypot(*picture.shape[:2]) / 400))
    if box is not None:
        x, y, w, h = (round(float(v)) for v in box)
        corners = (x, y), (x + w - 1, y + h - 1)
        cv2.rectangle(picture, *corners, _WHITE, max(1, unit // 2), cv2.LINE_AA)
    places = {
        joint: (round(float(x)), round(float(y)))
        for joint, (x, y, score) in enumerate(keypoints)
        if score >= threshold
    }
    for (a, b), color in zip(skeleton.limbs, skeleton.limb_colors, strict=True):
        if a in places and b in places:
            cv2.line(picture, places[a], places[b], rgb(color), 2 * unit, cv2.LINE_AA)
    for place in places.values():
        cv2.circle(picture, place, 2 * unit, _WHITE, -1, cv2.LINE_AA)
        cv2.circle(picture, place, 2 * unit, _INK, max(1, unit // 2), cv2.LINE_AA)


def contact_sheet(
    pictures: Sequence[Picture], captions: Sequence[str], columns: int = 4, width: int = 400
) -> Picture:
    """Pictures of any size in one, each in a tile `width` pixels wide with its caption under it."""
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    band, margin = 24, 8
    height = round(width * 0.75)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    pitch_y, pitch_x = height + band + margin, width + margin
    sheet = np.full((rows * pitch_y + margin, columns * pitch_x + margin, 3), _PAPER, np.uint8)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        y, x = margin + (i // columns) * pitch_y, margin + (i % columns) * pitch_x
        tile = sheet[y : y + height + band, x : x + width]
        tile[:height] = _fit(picture, width, height)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(tile, caption, (0, height + 17), font, 0.45, _INK, 1, cv2.LINE_AA)
    return sheet


def rgb(color: str) -> tuple[int, int, int]:
    """'#rrggbb' as three numbers."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _fit(picture: Picture, width: int, height: int) -> Picture:
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(
        picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    tile = np.full((height, width, 3), 225, np.uint8)
    y, x = (height - size[1]) // 2, (width - size[0]) // 2
    tile[y : y + size[1], x : x + size[0]] = small
    return tile
