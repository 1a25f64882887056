"""A folder with `annotations.json` and `images/`: the simplest form to bring own labels in.

Either one person per picture: `joint_names`, `images[].{file, keypoints, split?}` with keypoints
[x, y, labelled]; or several: `keypoint_names`, `images[].{file, people[].{bbox, keypoints}}` with
COCO's visibility (0 not labelled, 1 occluded, 2 visible), and optional `area` and `iscrowd`. Pixels
count from 0. The split is the
document's `split`, or each picture's `split` or `coco_split`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.importing.files import below, checked, known_skeleton, read_json
from pipeline.importing.record import Labelled, Person, Reading, given_box
from pipeline.importing.settings import ImportSettings

_FIX = "give a folder with annotations.json (see docs/samples.md) and images/"


def read(settings: ImportSettings) -> Reading:
    """The labels of a folder."""
    file = below(settings.input, "annotations.json")
    document = read_json(file, settings, _FIX)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise UsageError(f"{file}: no list `images`; {_FIX}")
    several = "keypoint_names" in document
    joints = document.get("keypoint_names" if several else "joint_names")
    if not isinstance(joints, list) or not joints:
        raise UsageError(f"{file}: no list `joint_names` or `keypoint_names`; {_FIX}")
    images = settings.images or below(settings.input, "images")

    def pictures() -> Iterator[Labelled]:
        for image in document["images"]:
            name, split = image["file"], _split(image, document, settings, file)
            people = tuple(_people(image, len(joints), several))
            yield Labelled(name, below(images, name), split, people, _size(image))

    splits = frozenset(_split(image, document, settings, file) for image in document["images"])
    names = tuple(map(str, joints))
    return Reading(names, known_skeleton(names), splits, lambda: checked(file, pictures()))


def _split(image: Any, document: dict[str, Any], settings: ImportSettings, file: str) -> str:
    if settings.split:
        return settings.split
    try:
        split = image.get("split") or image.get("coco_split") or document["split"]
    except (KeyError, AttributeError) as error:
        raise UsageError(f"{file}: a picture without a split: give --split") from error
    # COCO's years are no part of a split's name.
    return str(split).removesuffix("2017").removesuffix("2014")


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (int(image["width"]), int(image["height"])) if "width" in image else None


def _people(image: dict[str, Any], joints: int, several: bool) -> Iterator[Person]:
    for entry in image["people"] if several else [image]:
        values = np.array(entry["keypoints"], np.float64)
        if values.shape != (joints, 3):
            raise ValueError(
                f"{image['file']}: keypoints of shape {values.shape}, not {joints} x 3"
            )
        labelled = values[:, 2] > 0
        if not labelled.any() and "bbox" not in entry:
            continue
        yield Person(
            values[:, :2],
            labelled,
            # With one person per picture, the third number only tells whether there is a label.
            values[:, 2] == 1 if several else None,
            box=given_box(entry.get("bbox")),
            area=float(entry["area"]) if entry.get("area") is not None else None,
            wanted=bool(labelled.any()) and not entry.get("iscrowd"),
            crowd=bool(entry.get("iscrowd")),
        )
