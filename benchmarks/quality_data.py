"""The labelled people that `quality.py` measures on, all in the order of `lsp14`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import box_of_points
from cpm_core.metrics import LabelledPeople, default_area
from cpm_core.people import People, Picture
from cpm_core.skeleton import load_skeleton

SKELETON = load_skeleton("lsp14")
"""All labels and predictions are put in its order; what COCO and MoveNet lack is not labelled, or
NaN. Its OKS sigmas are CrowdPose's."""

Floats = NDArray[np.float64]

LEAST_SCORE = 0.1
"""Of a detection that may be the person that a picture of LSPET is about."""


@dataclass(frozen=True)
class Set:
    """Pictures, and the people labelled in them."""

    paths: list[Path]
    labels: LabelledPeople

    def pictures(self) -> Iterator[tuple[int, Picture]]:
        """Index and RGB picture (H, W, 3). Raises FileNotFoundError for one that is not there."""
        for i, path in enumerate(self.paths):
            picture = cv2.imread(str(path))
            if picture is None:
                raise FileNotFoundError(f"{path}: no picture that OpenCV can read")
            yield i, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)  # type: ignore[misc]


def lspet_val(shared: Path, limit: int | None = None) -> Set:
    """One person a picture; the box is that of the labelled joints."""
    folder = shared / "data/lspet_val"
    document = json.loads((folder / "annotations.json").read_text())
    images = document["images"][:limit]
    keypoints, labelled = _in_order(
        [image["keypoints"] for image in images], document["joint_names"]
    )
    boxes = [box_of_points(points[seen]) for points, seen in zip(keypoints, labelled, strict=True)]
    return _set(folder, images, list(range(len(images))), keypoints, labelled, np.array(boxes))


def coco_people(shared: Path, limit: int | None = None) -> Set:
    """Everybody labelled in the pictures of val2017, on which no peer was trained; COCO's boxes."""
    folder = shared / "data/coco_people"
    document = json.loads((folder / "annotations.json").read_text())
    images = [i for i in document["images"] if i["coco_split"] == "val2017"][:limit]
    people = [(i, person) for i, image in enumerate(images) for person in image["people"]]
    keypoints, labelled = _in_order(
        [person["keypoints"] for _, person in people], document["keypoint_names"]
    )
    boxes = np.array([person["bbox"] for _, person in people], np.float64)
    return _set(folder, images, [i for i, _ in people], keypoints, labelled, boxes)


def in_lsp_order(values: NDArray[np.floating], names: Sequence[str]) -> Floats:
    """(..., K, C) of joints with these names as (..., 14, C), NaN for those that are not there."""
    result = np.full((*values.shape[:-2], len(SKELETON), values.shape[-1]), np.nan)
    for joint, name in enumerate(SKELETON.keypoints):
        if name in names:
            result[..., joint, :] = values[..., list(names).index(name), :]
    return result


def main_person(people: People, width: int, height: int) -> Floats:
    """The box (4,) of whom a picture is about: the largest of those found, else the picture.

    Not the best score: a bystander in full view often scores higher than an athlete upside down.
    """
    boxes = people.boxes
    if not len(boxes):
        return np.array([0, 0, width, height], np.float64)
    largest: Floats = boxes[np.argmax(boxes[:, 2] * boxes[:, 3])]
    return largest


def _in_order(people: list[Any], names: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """Keypoints (N, 14, 2) and labelled (N, 14) of labels (N, K, 3: x, y, flag)."""
    values = in_lsp_order(np.array(people, np.float64), names)
    labelled = np.nan_to_num(values[..., 2]) > 0
    return np.where(labelled[..., None], values[..., :2], 0), labelled


def _set(
    folder: Path,
    images: list[dict[str, Any]],
    picture: list[int],
    keypoints: Floats,
    labelled: NDArray[np.bool_],
    boxes: Floats,
) -> Set:
    return Set(
        [folder / "images" / image["file"] for image in images],
        LabelledPeople(np.array(picture), keypoints, labelled, boxes, default_area(boxes)),
    )
