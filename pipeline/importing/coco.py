"""COCO keypoints: `person_keypoints_*.json` and the pictures.

Pixels count from 0. Visibility 0 is not labelled, 1 labelled but occluded, 2 visible. Joint names
are the category's own, so another skeleton in COCO's form is read as well.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.importing.files import (
    NOT_AS_EXPECTED,
    below,
    checked,
    images_folder,
    known_skeleton,
    label_file,
    read_json,
)
from pipeline.importing.record import Labelled, Person, Reading, given_box
from pipeline.importing.settings import ImportSettings

_FILES = ("person_keypoints_*.json", "annotations/person_keypoints_*.json", "*.json")
_SPLIT = re.compile(r"(train|val|test)\d*(?=\.|_|-|$)")
_WHAT = "person_keypoints_train2017.json or its like"
_NOT_NEEDED = ("segmentation", "license", "flickr_url", "coco_url", "date_captured")


def read(settings: ImportSettings) -> Reading:
    """The labels of one file. Raises UsageError if they are not of keypoints."""
    file = label_file(settings, _FILES, _WHAT)
    name = PurePosixPath(file).name
    found = _SPLIT.search(name)
    split = settings.split or (found and found[1])
    if not split:
        raise UsageError(f"{file}: the name tells no split (train, val): give --split")
    document = read_json(file, settings, f"give {_WHAT}", _smaller)
    joints, category = _joints(document, file)
    folder = found[0] if found else "images"
    images = images_folder(
        settings,
        file,
        ("images", f"../images/{folder}", f"../{folder}", folder, "../images", f"images/{folder}"),
    )
    people: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    try:
        for annotation in document["annotations"]:
            if annotation["category_id"] == category:
                people[annotation["image_id"]].append(annotation)
        listed = document["images"]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file}: an entry is missing ({error!r}); give {_WHAT}") from error

    def pictures() -> Iterator[Labelled]:
        for image in listed:
            try:
                persons = tuple(_people(people.get(image["id"], []), len(joints)))
                if not any(person.wanted for person in persons):
                    continue
                name, size = image["file_name"], (int(image["width"]), int(image["height"]))
            except NOT_AS_EXPECTED as error:
                name = image["file_name"]
                raise UsageError(f"{file}: the labels of {name}: {_reason(error)}") from error
            yield Labelled(name, below(images, name), split, persons, size)

    skeleton = known_skeleton(joints)
    return Reading(joints, skeleton, frozenset({split}), lambda: checked(file, pictures()))


def _smaller(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines and the like are most of the file: they go as soon as they are parsed."""
    for name in _NOT_NEEDED:
        entry.pop(name, None)
    if "image_id" in entry and isinstance(entry.get("keypoints"), list):
        # What are no numbers is told when it is known of which picture.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            entry["keypoints"] = np.array(entry["keypoints"], np.float32)
    return entry


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _joints(document: Any, file: str) -> tuple[tuple[str, ...], Any]:
    """The joint names and the id of the category that has keypoints; of several, `person`."""
    categories = document.get("categories") or [] if isinstance(document, dict) else []
    posed = [c for c in categories if isinstance(c, dict) and c.get("keypoints")]
    if len(posed) > 1:
        posed = [c for c in posed if c.get("name") == "person"]
    if len(posed) != 1:
        raise UsageError(
            f"{file}: no category with keypoints (instances_*.json have none): give {_WHAT}"
        )
    return tuple(posed[0]["keypoints"]), posed[0]["id"]


def _people(annotations: list[dict[str, Any]], joints: int) -> Iterator[Person]:
    """A crowd is not wanted as a sample, nor is somebody without a labelled joint."""
    for annotation in annotations:
        values = np.asarray(annotation.get("keypoints", ()), np.float64).reshape(-1, 3)
        if not len(values):
            values = np.zeros((joints, 3))
        labelled = values[:, 2] > 0
        if len(values) != joints:
            raise ValueError(f"{len(values)} keypoints, but the category has {joints}")
        area = annotation.get("area")
        yield Person(
            values[:, :2],
            labelled,
            values[:, 2] == 1,
            box=given_box(annotation["bbox"]),
            area=None if area is None else float(area),
            wanted=bool(labelled.any()) and not annotation.get("iscrowd"),
            crowd=bool(annotation.get("iscrowd")),
        )
