"""MPII Human Pose: the official .mat file, or the JSON that the CPM release makes of it.

Both count pixels from 1. `scale` times 200 px is the person's height, `objpos` the centre; both are
kept. Joints that the .mat does not list, and (0, 0) or visibility 2 in the JSON, are not labelled;
`is_visible` 0 is occluded, and labelled all the same. Left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cpm_core.skeleton import load_skeleton
from pipeline.errors import UsageError
from pipeline.importing.files import below as below_folder
from pipeline.importing.files import (
    checked,
    images_folder,
    label_file,
    mat_variable,
    read_json,
)
from pipeline.importing.record import TRAIN, Array, Labelled, Person, Reading
from pipeline.importing.settings import ImportSettings

_JOINTS = 16
_HEAD_SHARE = 0.6
"""PCKh's unit is 0.6 of the head box's diagonal (the official evaluation's SC_BIAS)."""

_FILES = ("mpii_human_pose*.mat", "MPI_annotations.json", "*.mat", "*.json")
_WHAT = "mpii_human_pose_v1_u12_1.mat or the CPM release's MPI_annotations.json"


def read(settings: ImportSettings) -> Reading:
    """The labels of either file."""
    file = label_file(settings, _FILES, _WHAT)
    images = images_folder(settings, file, ("images", "../images", "../mpii_human_pose_v1/images"))
    if file.lower().endswith(".json"):
        return _from_json(settings, file, images)
    return _from_mat(settings, file, images)


def _from_mat(settings: ImportSettings, file: str, images: str) -> Reading:
    release = mat_variable(file, settings, "RELEASE", f"give {_WHAT}")
    skeleton = load_skeleton("mpii16")
    split = settings.split or TRAIN
    try:
        annotated, in_training = _items(release.annolist), np.atleast_1d(release.img_train)
    except AttributeError as error:
        raise UsageError(f"{file}: RELEASE lacks a field ({error}); give {_WHAT}") from error
    if len(annotated) != len(in_training):
        raise UsageError(
            f"{file}: {len(annotated)} pictures in annolist, but {len(in_training)} in img_train"
        )

    def pictures() -> Iterator[Labelled]:
        # The test pictures' labels were never published.
        for entry, training in zip(annotated, in_training, strict=True):
            people = tuple(map(_person_of_mat, _with_points(entry))) if training else ()
            if people:
                name = str(entry.image.name)
                yield Labelled(name, below_folder(images, name), split, people)

    return Reading(
        skeleton.keypoints, skeleton, frozenset({split}), lambda: checked(file, pictures())
    )


def _with_points(entry: Any) -> list[Any]:
    """The `annorect`s of a picture that list joints."""
    return [
        rect
        for rect in _items(getattr(entry, "annorect", None))
        if any(_items(getattr(p, "point", None)) for p in _items(getattr(rect, "annopoints", None)))
    ]


def _person_of_mat(rect: Any) -> Person:
    points, labelled = np.zeros((_JOINTS, 2)), np.zeros(_JOINTS, bool)
    occluded = np.zeros(_JOINTS, bool)
    for point in _items(rect.annopoints.point):
        joint = int(point.id)
        points[joint] = float(point.x) - 1, float(point.y) - 1
        labelled[joint] = True
        # A number, a character, an empty array or not there at all; the last two mean visible.
        flag = getattr(point, "is_visible", "")
        occluded[joint] = np.size(flag) == 1 and str(flag) in ("0", "0.0")
    centre = next(iter(_items(getattr(rect, "objpos", None))), None)
    return Person(
        points,
        labelled,
        occluded,
        centre=None if centre is None else np.array([centre.x, centre.y], np.float64) - 1,
        scale=_number(getattr(rect, "scale", None)),
        head_size=_head_size(rect),
    )


def _head_size(rect: Any) -> float | None:
    corners = [_number(getattr(rect, name, None)) for name in ("x1", "y1", "x2", "y2")]
    if None in corners:
        return None
    x1, y1, x2, y2 = np.array(corners, np.float64)
    return float(_HEAD_SHARE * np.hypot(x2 - x1, y2 - y1)) or None


def _items(value: Any) -> list[Any]:
    """A Matlab struct array as a list: one struct comes as itself, none as an empty array."""
    if value is None:
        return []
    return list(value.ravel()) if isinstance(value, np.ndarray) else [value]


def _number(value: Any) -> float | None:
    """A scalar field; Matlab writes a missing one as an empty array."""
    return None if value is None or np.size(value) == 0 else float(value)


def _from_json(settings: ImportSettings, file: str, images: str) -> Reading:
    document = read_json(file, settings, f"give {_WHAT}")
    root = document.get("root") if isinstance(document, dict) else document
    if not isinstance(root, list) or not root:
        raise UsageError(f"{file}: no list `root`; give {_WHAT}")
    # Where a picture has no labels at all, the release leaves a record without joints.
    entries = [entry for entry in root if isinstance(entry, dict) and entry.get("joint_self")]
    if not entries:
        raise UsageError(f"{file}: no record of `root` has `joint_self`; give {_WHAT}")
    skeleton = load_skeleton("mpii16")

    def pictures() -> Iterator[Labelled]:
        for entry in entries:
            name = str(entry["img_paths"])
            yield Labelled(
                name,
                below_folder(images, name),
                settings.split or _split(entry),
                (_person_of_json(entry), *map(_other, _others(entry))),
                _size(entry),
            )

    splits = {settings.split} if settings.split else set(map(_split, entries))
    return Reading(
        skeleton.keypoints, skeleton, frozenset(splits), lambda: checked(file, pictures())
    )


def _split(entry: dict[str, Any]) -> str:
    return "val" if entry.get("isValidation") else TRAIN


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = int(entry.get("img_width") or 0), int(entry.get("img_height") or 0)
    return (width, height) if width and height else None


def _person_of_json(entry: dict[str, Any]) -> Person:
    points, labelled, occluded = _joints_of_json(entry["joint_self"])
    centre, scale = entry.get("objpos"), entry.get("scale_provided")
    return Person(
        points,
        labelled,
        occluded,
        centre=np.array(centre, np.float64) - 1 if centre else None,
        scale=float(scale) if scale else None,
    )


def _other(joints: Any) -> Person:
    return Person(*_joints_of_json(joints), wanted=False)


def _others(entry: dict[str, Any]) -> list[Any]:
    """Joints of the other people; the release's JSON writer drops the list around a single one."""
    others = entry.get("joint_others") or []
    return [others] if others and not isinstance(others[0][0], list) else others


def _joints_of_json(joints: Any) -> tuple[Array, Any, Any]:
    values = np.array(joints, np.float64)
    if values.shape != (_JOINTS, 3):
        raise ValueError(f"joints of shape {values.shape}, not (16, 3)")
    missing = (values[:, 2] == 2) | (values[:, :2] == 0).all(axis=1)
    return values[:, :2] - 1, ~missing, (values[:, 2] == 0) & ~missing
