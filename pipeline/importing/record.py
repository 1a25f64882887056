"""What every format is read into: pictures with their labelled people.

Coordinates are pixels, an integer is a pixel's centre, the first pixel is 0. Left and right are the
person's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import box_of_points
from cpm_core.skeleton import Skeleton
from pipeline.errors import UsageError

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

TRAIN, TUNE = "train", "tune"

LEAST_SPAN = 8
"""Pixels that the labelled joints of a person without box and scale must span."""

_SCALE_PX = 200
"""MPII's scale is the person's height in units of so many pixels."""


@dataclass(frozen=True)
class Person:
    """One person's labels in the source's K joints: points (K, 2), flags (K,).

    `occluded` is None where the source does not tell. A person that is not `wanted` makes no
    sample, but is one of the others of those who do. `crowd`: the box is of several people.
    """

    points: Array
    labelled: Flags
    occluded: Flags | None = None
    box: Array | None = None
    centre: Array | None = None
    scale: float | None = None
    head_size: float | None = None
    area: float | None = None
    wanted: bool = True
    crowd: bool = False


def given_box(values: Any) -> Array | None:
    """A label's x, y, w, h; None where there is none. Raises ValueError for anything else."""
    if values is None:
        return None
    box = np.array(values, np.float64)
    if box.shape != (4,):
        raise ValueError(f"bbox {values!r} is not x, y, width, height")
    return box


@dataclass(frozen=True)
class Labelled:
    """A picture with its people. `source` names it within the dataset, once and for all.

    `size` is (width, height) if the labels say so; `data` is the encoded picture if it is no file
    of its own (a video's frame); `problem` says why there is no picture at all.
    """

    source: str
    uri: str
    split: str
    people: tuple[Person, ...]
    size: tuple[int, int] | None = None
    data: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Reading:
    """Labels that have been opened. `pictures` may be gone through more than once.

    `skeleton` is None if the joints are those of no skeleton that comes with the package.
    """

    joints: tuple[str, ...]
    skeleton: Skeleton | None
    splits: frozenset[str]
    pictures: Callable[[], Iterator[Labelled]]


class JointMap:
    """The source's joints in the order of a skeleton, matched by name."""

    def __init__(self, joints: tuple[str, ...], skeleton: Skeleton) -> None:
        self.missing = tuple(name for name in skeleton.keypoints if name not in joints)
        self.unused = tuple(name for name in joints if name not in skeleton.keypoints)
        if len(self.missing) == len(skeleton):
            raise UsageError(
                f"skeleton {skeleton.name} has none of the labelled joints ({', '.join(joints)}): "
                "rename its joints, or give another --skeleton"
            )
        self._present = np.array([name in joints for name in skeleton.keypoints])
        self._order = np.array([joints.index(n) if n in joints else 0 for n in skeleton.keypoints])

    def __call__(self, person: Person) -> Person:
        """The person in the skeleton's joints; unlabelled ones are at (0, 0).

        Without a box if nothing tells how large the person is.
        """
        real = person.labelled & np.isfinite(person.points).all(axis=1)
        labelled = real[self._order] & self._present
        occluded = person.occluded
        if occluded is not None:
            occluded = occluded[self._order] & labelled
        points = np.where(labelled[:, None], person.points[self._order], 0.0)
        box = person.box
        if box is not None and not (np.isfinite(box).all() and (box[2:] > 0).all()):
            box = None
        if box is None and real.any():
            # Of all labelled joints: the box is the person's, whatever skeleton is asked for.
            box = _box_of_joints(person.points[real], person.scale)
        return Person(
            points,
            labelled,
            occluded,
            box,
            person.centre,
            person.scale,
            person.head_size,
            person.area,
            person.wanted,
            person.crowd,
        )


def _box_of_joints(points: Array, scale: float | None) -> Array | None:
    """The box around labelled joints, widened where they are few beside the person's height.

    One or two joints would make a crop of a pixel: None, if there is no height to go by.
    """
    box = box_of_points(points)
    longer = float(box[2:].max())
    least = scale * _SCALE_PX / 2 if scale is not None and np.isfinite(scale) else 0.0
    if longer < least:
        size = box[2:] * (least / longer)
        return np.concatenate([box[:2] + (box[2:] - size) / 2, size])
    return box if np.ptp(points, axis=0).max() >= LEAST_SPAN else None
