"""Locators: where are the people in a picture? The network then estimates one person per box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.errors import LocatorError
from cpm_core.geometry import letterbox

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class People:
    """Boxes (N, 4: x, y, w, h in pixels) with scores (N,), best first, and who found them."""

    boxes: Floats
    scores: Floats
    source: str

    def __len__(self) -> int:
        return len(self.boxes)

    def best(self, count: int) -> People:
        """The first `count`."""
        return People(self.boxes[:count], self.scores[:count], self.source)


class Locator(Protocol):
    """Anything that finds people in RGB pictures (H, W, 3)."""

    size: int
    """Side of the square, in pixels, that it looks at a picture in."""

    def locate(self, picture: Picture) -> People:
        """People in one picture."""
        ...

    def locate_batch(self, pictures: Sequence[Picture]) -> list[People]:
        """People in each of several pictures of any size."""
        ...


class WholeImage:
    """The picture shows one person who fills it."""

    size = 1

    def locate(self, picture: Picture) -> People:
        """One box: the whole picture."""
        height, width = picture.shape[:2]
        return People(np.array([[0, 0, width, height]], np.float64), np.ones(1), "whole-image")

    def locate_batch(self, pictures: Sequence[Picture]) -> list[People]:
        """As `locate`, for each."""
        return [self.locate(picture) for picture in pictures]


class YoloxDetector:
    """A YOLOX detector in ONNX form: letterboxed BGR 0..255 in, (1, N, 5 + classes) out.

    `model` is the file's path or its content. Class 0 is a person. Raises LocatorError for a file
    that is no such detector, with the shapes found.
    """

    STRIDES = (8, 16, 32)
    LETTERBOX = 114
    THRESHOLD = 0.4
    BATCH = 8

    def __init__(
        self,
        model: str | Path | bytes,
        threshold: float | None = None,
        nms_iou: float = 0.45,
        threads: int = 1,
    ) -> None:
        import onnxruntime as ort

        name = "the detector" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise LocatorError(f"no detector at {name}: give the path of a YOLOX .onnx file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        # Spinning threads would steal the cores that decode and estimate.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = model if isinstance(model, bytes) else name
        providers = ["CPUExecutionProvider"]
        try:
            self.session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise LocatorError(f"{name}: onnxruntime cannot load it: {error}") from error
        self.threshold = self.THRESHOLD if threshold is None else threshold
        self.nms_iou = nms_iou
        self.input_name, self.size, self.batches = self._check_layout(name)
        self.grid, self.cell = _grid(self.size, self.STRIDES)

    def _check_layout(self, name: str) -> tuple[str, int, bool]:
        """The input's name, its side S, and whether it takes several pictures at once."""
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) == 1 and len(outputs) == 1 and inputs[0].type == "tensor(float)":
            shape, size = inputs[0].shape, inputs[0].shape[-1] if inputs[0].shape else None
            if isinstance(size, int) and size > 0 and size % max(self.STRIDES) == 0:
                cells = sum((size // stride) ** 2 for stride in self.STRIDES)
                *rows, values = outputs[0].shape or [None]
                any_number = not isinstance(shape[0], int)
                single = shape[0] == 1 or any_number
                fits = single and shape[1:] == [3, size, size] and rows[1:] == [cells]
                if fits and isinstance(values, int) and values >= 6:
                    return str(inputs[0].name), size, any_number
        found = ", ".join(f"{v.name} {v.type} {v.shape}" for v in (*inputs, *outputs))
        raise LocatorError(
            f"{name}: not a YOLOX detector: expected one float input (1, 3, S, S), S a multiple of "
            f"{max(self.STRIDES)}, and one output (1, cells, 5 + classes); found {found}"
        )

    def locate(self, picture: Picture) -> People:
        """People with a score over the threshold, overlaps suppressed, best first."""
        return self.locate_batch([picture])[0]

    def locate_batch(self, pictures: Sequence[Picture]) -> list[People]:
        """As `locate`, for each; a model that takes several pictures gets BATCH at a time."""
        found: list[People] = []
        step = self.BATCH if self.batches else 1
        for start in range(0, len(pictures), step):
            part = pictures[start : start + step]
            boxed = [letterbox(picture, self.size, self.LETTERBOX) for picture in part]
            # From RGB to the BGR that it was trained on.
            images = np.stack([image for image, _ in boxed])[..., ::-1]
            blob = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
            rows = self.session.run(None, {self.input_name: blob})[0]
            for picture, (_, ratio), raw in zip(part, boxed, rows, strict=True):
                found.append(self._people(raw, ratio, picture.shape[1], picture.shape[0]))
        return found

    def _people(self, raw: NDArray[np.float32], ratio: Floats, width: int, height: int) -> People:
        """Output rows (cells, 5 + classes) of a letterboxed picture as people of the picture."""
        scores = raw[:, 4] * raw[:, 5]
        keep = scores >= self.threshold
        raw, scores = raw[keep], scores[keep]
        centres = (raw[:, :2] + self.grid[keep]) * self.cell[keep]
        sizes = np.exp(raw[:, 2:4]) * self.cell[keep]
        boxes = np.concatenate([(centres - sizes / 2) / ratio, sizes / ratio], axis=1)
        found = People(boxes.astype(np.float64), scores.astype(np.float64), "detector")
        return tidied(found, width, height, self.nms_iou)


def _grid(size: int, strides: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 2) cell indices x, y and (N, 1) strides of all output rows."""
    cells, lengths = [], []
    for stride in strides:
        n = size // stride
        y, x = np.mgrid[:n, :n]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        lengths.append(np.full((n * n, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(lengths).astype(np.float32)


def tidied(people: People, width: int, height: int, nms_iou: float) -> People:
    """People of a picture of that size, best first, less all that overlap a better one too far.

    Boxes are cut to the picture; overlaps beyond an IoU of `nms_iou` are dropped.
    """
    boxes, scores = clip_boxes(people.boxes, people.scores, width, height)
    order = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, nms_iou)
    chosen = np.asarray(order, dtype=np.int64).reshape(-1)
    return People(boxes[chosen], scores[chosen], people.source)


def clip_boxes(boxes: Floats, scores: Floats, width: int, height: int) -> tuple[Floats, Floats]:
    """Boxes cut to the picture; those without a pixel in it are dropped."""
    low = np.clip(boxes[:, :2], 0, [width, height])
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, [width, height])
    keep = ((high - low) >= 1).all(axis=1)
    return np.concatenate([low, high - low], axis=1)[keep], scores[keep]
