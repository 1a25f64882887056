"""What all peers share: the list, the crops of a picture or clip, and the record of what came
when."""

from __future__ import annotations

import argparse
import csv
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.crops import Cropper
from cpm_core.estimator import Estimator, load

BATCH = 8
PRECISION = "POSEMILL_PRECISION"
"""A setting of PoseMill's in the environment."""
CLIP_FRAMES = 12
"""Of every clip."""


@dataclass(frozen=True)
class Item:
    """A picture or clip, the person's box in it, and the index of its (first) frame."""

    uri: str
    box: tuple[float, float, float, float]
    first: int

    @property
    def is_clip(self) -> bool:
        """Whether it is a video."""
        return self.uri.endswith(".mp4")

    @property
    def frames(self) -> int:
        """How many pictures it is."""
        return CLIP_FRAMES if self.is_clip else 1


def options() -> argparse.Namespace:
    """What every peer is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("list", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of the network, in each worker")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def load_estimator() -> Estimator:
    """The weights that all share, with the precision that PoseMill is told, too."""
    return load("cpm-lite", precision=os.environ.get(PRECISION, "auto"))  # type: ignore[arg-type]


def read_list(path: Path) -> list[Item]:
    """The pictures or clips in their order."""
    items: list[Item] = []
    with path.open() as file:
        for r in csv.DictReader(file):
            first = items[-1].first + items[-1].frames if items else 0
            box = float(r["x"]), float(r["y"]), float(r["w"]), float(r["h"])
            items.append(Item(r["uri"], box, first))
    return items


def batches(items: list[Item]) -> list[list[Item]]:
    """What a script works on at a time: some pictures, or a clip."""
    step = 1 if items[0].is_clip else BATCH
    return [items[start : start + step] for start in range(0, len(items), step)]


def pictures(item: Item) -> Iterator[NDArray[np.uint8]]:
    """Fetch and decode, as a script does: RGB (H, W, 3)."""
    if item.is_clip:
        with av.open(item.uri) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
        return
    data = np.frombuffer(Path(item.uri).read_bytes(), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise ValueError(f"{item.uri} cannot be decoded")
    yield np.asarray(decoded, np.uint8)


class Crops(NamedTuple):
    """Crops (N, V, S, S, 3) of pictures, with what is needed to find the way back."""

    indices: NDArray[np.int64]
    crops: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    sizes: NDArray[np.int64]


def cut(items: list[Item], cropper: Cropper) -> Crops:
    """The person's crops in all pictures of the items."""
    crops, sizes = [], []
    for item in items:
        for found in pictures(item):
            crops.append(cropper.cut(found, np.array([item.box])))
            sizes.append((found.shape[1], found.shape[0]))
    return Crops(
        np.concatenate([np.arange(item.first, item.first + item.frames) for item in items]),
        np.concatenate(crops),
        np.repeat([item.box for item in items], [item.frames for item in items], axis=0),
        np.array(sizes),
    )


def to_picture(
    keypoints: NDArray[np.float32],
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    cropper: Cropper,
) -> NDArray[np.float32]:
    """Keypoints (N, K, 3) of crops -> pixels of the pictures; sizes (N, 2) are width and height."""
    points = [
        cropper.to_picture(keypoints[n : n + 1], boxes[n : n + 1], *map(int, sizes[n]))
        for n in range(len(keypoints))
    ]
    return np.concatenate(points)


@dataclass
class Recorder:
    """Which pictures were done when, and what was found."""

    started: float = field(default_factory=time.time)
    times: list[float] = field(default_factory=list)
    indices: list[NDArray[np.int64]] = field(default_factory=list)
    keypoints: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, indices: NDArray[np.int64], keypoints: NDArray[np.float32]) -> None:
        """A batch is done: keypoints (N, K, 3) in pixels of the pictures."""
        self.times.append(time.time())
        self.indices.append(np.asarray(indices, np.int64))
        self.keypoints.append(keypoints)

    def save(self, path: Path) -> None:
        """Write times (B,), the pictures that were done by then (B,), and all keypoints in the
        order of the list (N, K, 3)."""
        indices = np.concatenate(self.indices)
        order = np.argsort(indices)
        np.savez(
            path,
            started=self.started,
            times=np.array(self.times),
            counts=np.cumsum([len(i) for i in self.indices]),
            indices=indices[order],
            keypoints=np.concatenate(self.keypoints)[order],
        )


def in_threads(
    items: list[Item],
    workers: int,
    cropper: Cropper,
    estimate: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> Recorder:
    """Each thread takes the next batch, decodes, crops and estimates it; `estimate` makes keypoints
    (N, K, 3) of crops (N, V, S, S, 3)."""
    recorder, lock = Recorder(), threading.Lock()

    def work(batch: list[Item]) -> None:
        found = cut(batch, cropper)
        points = to_picture(estimate(found.crops), found.boxes, found.sizes, cropper)
        with lock:
            recorder.add(found.indices, points)

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, batches(items)))
    return recorder
