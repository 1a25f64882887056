"""Training pictures with the people in them: labelled ones, and ones that a detector labels.

Few of the pictures at hand name all their people, so a detector completes the labels: what it is
sure of is a person, what it suspects is a region that teaches nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.errors import CpmError
from cpm_core.geometry import box_of_points
from cpm_core.people import People, Picture

log = logging.getLogger("posemill")

Kind = Literal["lspet", "coco", "people", "video", "negative"]
Boxes = NDArray[np.float64]

SUSPECT = 0.1
"""The score from which a detector's box is at least a region to ignore."""
_SURE = 0.45
_SAME = 0.5
"""IoU from which a detection and a label are the same person."""
_LONGEST = 640
_MARGIN = (0.06, 0.12)
"""Joints -> box: share of the sides that hands, feet and hair reach beyond, per side."""
_TUNING_SHARE = {"lspet": 0.0, "coco": 0.22, "people": 0.1, "video": 0.0, "negative": 0.25}
"""By a hash of the name. Crops with one large person each would hide what everyday pictures say."""


class Finder(Protocol):
    """What labels pictures: any locator."""

    def locate(self, picture: Picture) -> People:
        """People in an RGB picture (H, W, 3)."""
        ...


class PhotosError(CpmError):
    """Training pictures are missing or unusable."""


@dataclass(frozen=True)
class Photo:
    """An RGB picture (H, W, 3), boxes (N, 4) of its people, regions (M, 4) nobody can vouch for."""

    kind: Kind
    name: str
    image: Picture
    boxes: Boxes
    ignore: Boxes

    @property
    def tuning(self) -> bool:
        """Whether the picture is kept apart from training, for checkpoints and the threshold."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < _TUNING_SHARE[self.kind]


def lspet_photos(folder: Path, detector: Finder) -> Iterator[Photo]:
    """Pictures of a folder with LSP joints in `annotations.json`: one labelled person each."""
    for entry in _annotations(folder):
        joints = np.array([k[:2] for k in entry["keypoints"] if k[2]], np.float64)
        if len(joints) < 2:
            continue
        image, shrink = _read(folder / "images" / entry["file"])
        box = box_of_points(joints * shrink)
        grown = _grow(box, image.shape[1], image.shape[0])
        yield _completed("lspet", entry["file"], image, grown[None], detector, refine=True)


def coco_photos(folder: Path, detector: Finder) -> Iterator[Photo]:
    """The train2017 pictures of a folder with COCO people in `annotations.json`."""
    for entry in _annotations(folder):
        if entry["coco_split"] != "train2017":
            continue
        image, shrink = _read(folder / "images" / entry["file"])
        boxes = np.array([p["bbox"] for p in entry["people"]], np.float64).reshape(-1, 4) * shrink
        yield _completed("coco", entry["file"], image, boxes, detector)


def folder_photos(folder: Path, detector: Finder, kind: Kind = "people") -> Iterator[Photo]:
    """Pictures of a folder, labelled by the detector alone.

    As `negative` nothing in them is a person, whatever a detector says.
    """
    if not folder.is_dir():
        raise PhotosError(f"no folder {folder}: give one with training pictures")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            image, _ = _read(path)
            if kind == "negative":
                yield Photo(kind, path.name, image, _none(), _none())
            else:
                yield _completed(kind, path.name, image, _none(), detector)


def video_photos(path: Path, detector: Finder, every: int = 6) -> Iterator[Photo]:
    """Every n-th frame of a video, labelled by the detector."""
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise PhotosError(f"no readable video at {path}")
    index = 0
    while video.grab():
        if index % every == 0:
            good, frame = video.retrieve()
            if good:
                image, _ = _shrunk(np.ascontiguousarray(frame[:, :, ::-1]))
                yield _completed("video", f"{path.name}:{index}", image, _none(), detector)
        index += 1
    video.release()


def _annotations(folder: Path) -> list[dict[str, Any]]:
    path = folder / "annotations.json"
    if not path.is_file():
        raise PhotosError(f"no {path}: give a folder with annotations.json and images/")
    entries: list[dict[str, Any]] = json.loads(path.read_text())["images"]
    return entries


def _read(path: Path) -> tuple[Picture, float]:
    """An RGB picture of at most `_LONGEST` px, and how much smaller it was made."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise PhotosError(f"no readable picture at {path}")
    return _shrunk(np.ascontiguousarray(image[:, :, ::-1]))


def _shrunk(image: Picture) -> tuple[Picture, float]:
    height, width = image.shape[:2]
    shrink = min(1.0, _LONGEST / max(height, width))
    if shrink < 1:
        size = (round(width * shrink), round(height * shrink))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return image, shrink


def _grow(box: Boxes, width: int, height: int) -> Boxes:
    """A box of joints as a box of the body, cut to the picture."""
    x, y, w, h = box
    side = max(w, h)
    dx, dy = max(_MARGIN[0] * w, 0.05 * side), max(_MARGIN[1] * h, 0.05 * side) / 2
    low = np.clip([x - dx, y - dy], 0, [width - 2, height - 2])
    high = np.clip([x + w + dx, y + h + dy], low + 1, [width, height])
    return np.concatenate([low, high - low])


def _completed(
    kind: Kind, name: str, image: Picture, boxes: Boxes, detector: Finder, refine: bool = False
) -> Photo:
    """Labels and what the detector adds; `refine` moves a label to the detection it agrees with."""
    found = detector.locate(image)
    people, ignore = [*boxes], []
    for box, score in zip(found.boxes, found.scores, strict=True):
        overlaps = iou(box[None], boxes)[0] if len(boxes) else np.zeros(1)
        if overlaps.max() >= _SAME:
            if refine and score >= _SURE:
                people[int(overlaps.argmax())] = box
        elif score >= _SURE:
            people.append(box)
        else:
            ignore.append(box)
    return Photo(kind, name, image, _stack(people), _stack(ignore))


def iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> Boxes:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4): x, y, w, h."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = a[:, 2:].prod(axis=1), b[:, 2:].prod(axis=1)
    return np.asarray(common / np.maximum(area_a[:, None] + area_b - common, 1e-9), np.float64)


def _stack(boxes: list[Boxes]) -> Boxes:
    return np.array(boxes, np.float64).reshape(-1, 4)


def _none() -> Boxes:
    return np.zeros((0, 4))
