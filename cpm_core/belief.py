"""Belief maps for the eye: over a crop, stage by stage, and as the labels of a training crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cpm_core.config import STRIDE
from cpm_core.decode import decode
from cpm_core.draw import draw_pose, rgb
from cpm_core.skeleton import Skeleton
from cpm_core.targets import belief_maps

Picture = NDArray[np.uint8]
_WHITE, _INK, _PAPER = (255, 255, 255), (40, 40, 40), (245, 245, 245)
_RIGHT, _LEFT, _OTHERS = "#f78154", "#4d9de0", "#c8c8c8"
_MOST_OPAQUE = 0.8
_MARGIN = 8


def overlay(picture: Picture, belief: NDArray[np.floating], cell_offset: float = 3.5) -> Picture:
    """A crop (H, W, 3) under one belief map (h, w) of its stride-8 grid; returns a new picture.

    Cell g is centred at pixel 8 g + cell_offset. Belief 0 leaves the picture as it is; towards 1 it
    turns from blue over green to red, and more opaque.
    """
    height, width = picture.shape[:2]
    # From pixels to cells. A plain resize would put cell 0 at pixel 3.5 whatever the offset.
    to_cells = np.array([[1, 0, -cell_offset], [0, 1, -cell_offset]]) / STRIDE
    enlarged = cv2.warpAffine(
        belief.astype(np.float32),
        to_cells,
        (width, height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    strength = np.clip(enlarged, 0, 1)
    levels = np.rint(strength * 255).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1]
    # Full from half belief on: peaks of a half are common, and one looks for rivals weaker still.
    opacity = _MOST_OPAQUE * np.minimum(1, 2 * strength)[..., None]
    return np.rint(picture * (1 - opacity) + colors * opacity).astype(np.uint8)


def stages_figure(
    crop: Picture,
    maps: NDArray[np.floating],
    skeleton: Skeleton,
    joints: Sequence[str],
    cell_offset: float = 3.5,
    width: int = 240,
) -> Picture:
    """One row per joint and one column per stage: crop (S, S, 3) under maps (T, J + 1, h, w).

    Each tile is `width` pixels wide, with a ring around the peak; its caption gives joint, stage
    and the belief at the peak. Raises SkeletonError for a joint that the skeleton lacks.
    """
    points = decode(maps[:, :-1], cell_offset)
    scale = width / crop.shape[1]
    height = max(1, round(crop.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    tiles, captions = [], []
    for name in joints:
        joint = skeleton.index(name)
        for stage in range(len(maps)):
            x, y, peak = (float(value) for value in points[stage, joint])
            tile = cv2.resize(
                overlay(crop, maps[stage, joint], cell_offset),
                (width, height),
                interpolation=interpolation,
            )
            # A pixel's centre is an integer, so that its corner is what scales.
            _ring(tile, (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5, width)  # type: ignore[arg-type]
            tiles.append(np.asarray(tile, np.uint8))
            captions.append(f"{name}, stage {stage + 1}: {peak:.2f}")
    return tile_sheet(tiles, captions, columns=len(maps))


def sample_tile(
    crop: Picture,
    keypoints: NDArray[np.floating],
    labelled: NDArray[np.bool_],
    others: NDArray[np.floating],
    others_labelled: NDArray[np.bool_],
    skeleton: Skeleton,
    sigma: float,
    cell_offset: float = 3.5,
) -> Picture:
    """A training crop (S, S, 3) with its labels drawn, beside it under its target maps: (S, 2S, 3).

    Labels are keypoints (K, 2) with labelled (K,), and the same of P other people (P, K, 2), (P,
    K), all in crop pixels; `sigma` is the target's, in crop pixels. Right joints are orange, left
    ones blue, the rest white; other people are grey. The target is the strongest of all joints'
    maps; peaks of the others, which only stage 1 learns, are shown at half their strength.
    """
    drawn = crop.copy()
    for points, flags in zip(others, others_labelled, strict=True):
        _draw_labels(drawn, points, flags, skeleton, grey=True)
    _draw_labels(drawn, keypoints, labelled, skeleton)
    size = crop.shape[1] // STRIDE
    target = _strongest(keypoints[None], labelled[None], size, sigma, cell_offset)
    if len(others):
        rest = _strongest(others, others_labelled, size, sigma, cell_offset)
        target = np.maximum(target, rest / 2)
    return np.concatenate([drawn, overlay(crop, target, cell_offset)], axis=1)


def tile_sheet(tiles: Sequence[Picture], captions: Sequence[str], columns: int) -> Picture:
    """Tiles of one size on paper, row by row, each with its caption under it."""
    if not tiles:
        raise ValueError("a sheet needs at least one tile")
    height, width = tiles[0].shape[:2]
    size = 0.45 * min(1, width / 220)
    band = round(24 * size / 0.45)
    pitch_y, pitch_x = height + band + _MARGIN, width + _MARGIN
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * pitch_y + _MARGIN, columns * pitch_x + _MARGIN, 3), _PAPER, np.uint8)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        y, x = _MARGIN + (i // columns) * pitch_y, _MARGIN + (i % columns) * pitch_x
        place = sheet[y : y + height + band, x : x + width]
        place[:height] = tile
        baseline = (0, height + round(0.7 * band))
        cv2.putText(place, caption, baseline, cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)
    return sheet


def _ring(tile: Picture, x: float, y: float, width: int) -> None:
    """Mark a place that stays visible under the mark, on any colour."""
    place, unit = (round(x), round(y)), max(1, round(width / 240))
    cv2.circle(tile, place, 6 * unit, _INK, 3 * unit, cv2.LINE_AA)
    cv2.circle(tile, place, 6 * unit, _WHITE, unit, cv2.LINE_AA)


def _draw_labels(
    picture: Picture,
    keypoints: NDArray[np.floating],
    labelled: NDArray[np.bool_],
    skeleton: Skeleton,
    grey: bool = False,
) -> None:
    """Draw labels in place; an unlabelled joint may hold anything, NaN too."""
    target = np.zeros_like(picture) if grey else picture
    draw_pose(target, np.column_stack([keypoints, labelled]), skeleton, threshold=0.5)
    if grey:
        picture[target.any(axis=2)] = rgb(_OTHERS)
        return
    radius = 3 * max(1, round(math.hypot(*picture.shape[:2]) / 400))
    for name, (x, y), known in zip(skeleton.keypoints, keypoints, labelled, strict=True):
        color = _RIGHT if "right" in name else _LEFT if "left" in name else None
        if known and color:
            place = round(float(x)), round(float(y))
            cv2.circle(picture, place, radius, rgb(color), -1, cv2.LINE_AA)
            cv2.circle(picture, place, radius, _INK, 1, cv2.LINE_AA)


def _strongest(
    people: NDArray[np.floating],
    labelled: NDArray[np.bool_],
    map_size: int,
    sigma: float,
    cell_offset: float,
) -> NDArray[np.float32]:
    """(map_size, map_size) maximum over the joints of the target maps of people (P, K, 2)."""
    maps = belief_maps(
        torch.from_numpy(people[None]).float(),
        torch.from_numpy(labelled[None]),
        map_size,
        sigma,
        cell_offset,
    )
    strongest: NDArray[np.float32] = maps[0, :-1].amax(dim=0).numpy()
    return strongest
