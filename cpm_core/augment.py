"""Training crops: scale, rotation, mirroring and colour of a labelled picture.

Follows the release: scale about 0.7 to 1.3, rotation up to 40 degrees, mirroring with left and
right swapped, fill 128. Scale comes from the longer side of the person's box. Nothing changes the
sample itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import crop_matrix, transform, warp
from cpm_core.skeleton import Skeleton

LEAST_FOR_A_PART = 6
"""Labelled joints of whom a part can be chosen."""
PART_SHARES = (0.4, 0.7)
"""Least and largest share of the labelled joints that a part has."""
MOST_RECTANGLES = 3
RECTANGLE_SIDES = (0.05, 0.25)
"""Shortest and longest side of what is painted over, as a share of the crop's."""


@dataclass(frozen=True)
class Sample:
    """One labelled person: RGB image (H, W, 3), box x, y, w, h, keypoints (K, 2), labelled (K,).

    `others` (P, K, 2) and `others_labelled` (P, K) are the other people in the picture.
    """

    image: NDArray[np.uint8]
    box: NDArray[np.float64]
    keypoints: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    others: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0, 2)))
    others_labelled: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))


@dataclass(frozen=True)
class Augmentation:
    """How far a training crop may differ from the plain one; `NONE` gives that one.

    `scale` is the range of magnifications. `shift` is a share of the box's longer side,
    `brightness` of half the range of values; `contrast` and `color` (per channel) are gains
    around 1. `part` is the share of crops that are laid around a part of the body only, `erase` of
    those in which rectangles are painted over; joints under them stay labelled, as their place can
    be told from the rest.
    """

    scale: tuple[float, float] = (0.7, 1.3)
    rotation_degrees: float = 40.0
    shift: float = 0.05
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    color: float = 0.1
    erase: float = 0.0
    part: float = 0.0


NONE = Augmentation((1.0, 1.0), 0, 0, False, 0, 0, 0)


def training_crop(
    sample: Sample,
    skeleton: Skeleton,
    size: int,
    box_factor: float,
    options: Augmentation,
    seed: tuple[int, ...],
) -> Sample:
    """The crop (size, size, 3) and its labels in crop pixels, the same for the same seed.

    A seed is a tuple such as (run seed, epoch, sample). A labelled joint that falls outside the
    crop stays labelled: its map is empty, and that is to be learned, as in the release.
    """
    rng = np.random.default_rng(seed)
    factor = box_factor / rng.uniform(*options.scale)
    angle = np.deg2rad(rng.uniform(-options.rotation_degrees, options.rotation_degrees))
    person = sample.box
    if options.part and rng.random() < options.part:
        person = _part(sample, rng)
    side = max(person[2:])
    box = person + np.append(rng.uniform(-options.shift, options.shift, 2) * side, [0, 0])
    flip = bool(options.flip and rng.random() < 0.5)
    matrix = crop_matrix(box, size, factor, angle, flip)
    order = skeleton.flip_order if flip else np.arange(len(skeleton))

    def moved(
        points: NDArray[np.float64], labelled: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return transform(points, matrix)[..., order, :], labelled[..., order]

    keypoints, labelled = moved(sample.keypoints, sample.labelled)
    others, others_labelled = sample.others, sample.others_labelled
    if len(others):
        others, others_labelled = moved(others, others_labelled)
    crop = _recolor(warp(sample.image, matrix, size), options, rng)
    if options.erase and rng.random() < options.erase:
        crop = _erase(crop, rng)
    whole = np.array([0, 0, size, size], dtype=np.float64)
    return Sample(crop, whole, keypoints, labelled, others, others_labelled)


def _part(sample: Sample, rng: np.random.Generator) -> NDArray[np.float64]:
    """A box around the 40 to 70 % of the labelled joints that are nearest to one of them.

    Many people in everyday pictures are cut off, by the picture's edge or by furniture. With few
    labels it is the person's box; it is never less than a quarter of that.
    """
    points = sample.keypoints[sample.labelled]
    if len(points) < LEAST_FOR_A_PART:
        return sample.box
    seed = points[rng.integers(len(points))]
    nearest = np.argsort(np.linalg.norm(points - seed, axis=1), kind="stable")
    count = round(len(points) * rng.uniform(*PART_SHARES))
    low, high = (f(points[nearest[:count]], axis=0) for f in (np.min, np.max))
    size = np.maximum(high - low, max(sample.box[2:]) / 4)
    return np.concatenate([(low + high) / 2 - size / 2, size])


def _erase(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One to three rectangles of one colour each, sides 5 to 25 % of the crop's."""
    size = len(crop)
    crop = crop.copy()
    for _ in range(rng.integers(1, MOST_RECTANGLES + 1)):
        width, height = (size * rng.uniform(*RECTANGLE_SIDES, 2)).astype(int).clip(min=1)
        left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        crop[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return crop


def _recolor(
    crop: NDArray[np.uint8], options: Augmentation, rng: np.random.Generator
) -> NDArray[np.uint8]:
    if not (options.brightness or options.contrast or options.color):
        return crop
    gain = 1 + rng.uniform(-options.contrast, options.contrast)
    channels = gain * (1 + rng.uniform(-options.color, options.color, 3))
    shift = 128 * (1 - gain) + 128 * rng.uniform(-options.brightness, options.brightness)
    table = np.clip(np.arange(256)[:, None] * channels + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(crop, table[None])  # type: ignore[return-value]
