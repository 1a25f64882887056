"""What all peers share: the list, a picture's crop, and the record of what came when."""

from __future__ import annotations

import argparse
import csv
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.crops import Cropper

BATCH = 8


@dataclass(frozen=True)
class Item:
    """A picture and the person's box in it."""

    uri: str
    box: tuple[float, float, float, float]


def options() -> argparse.Namespace:
    """What every peer is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("list", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of the network, in each worker")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def read_list(path: Path) -> list[Item]:
    """The pictures in their order."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [
        Item(r["uri"], (float(r["x"]), float(r["y"]), float(r["w"]), float(r["h"]))) for r in rows
    ]


def picture(item: Item) -> NDArray[np.uint8]:
    """Fetch and decode, as a script does: RGB (H, W, 3)."""
    data = np.frombuffer(Path(item.uri).read_bytes(), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise ValueError(f"{item.uri} cannot be decoded")
    return np.asarray(decoded, np.uint8)


def crop(item: Item, cropper: Cropper) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The person's crop (1, V, S, S, 3), and the picture's width and height."""
    found = picture(item)
    return cropper.cut(found, np.array([item.box])), (found.shape[1], found.shape[0])


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

    def work(start: int) -> None:
        batch = items[start : start + BATCH]
        crops, sizes = zip(*(crop(item, cropper) for item in batch), strict=True)
        keypoints = estimate(np.concatenate(crops))
        boxes = np.array([item.box for item in batch])
        points = to_picture(keypoints, boxes, np.array(sizes), cropper)
        with lock:
            recorder.add(np.arange(start, start + len(batch)), points)

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, range(0, len(items), BATCH)))
    return recorder
