"""Locators: where are the people in a picture? The network then estimates one person per box."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.errors import LocatorError

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
    """Anything that finds people."""

    def locate(self, picture: Picture) -> People:
        """People in an RGB picture (H, W, 3)."""
        ...


class WholeImage:
    """The picture shows one person who fills it."""

    def locate(self, picture: Picture) -> People:
        """One box: the whole picture."""
        height, width = picture.shape[:2]
        return People(np.array([[0, 0, width, height]], np.float64), np.ones(1), "whole-image")


class YoloxDetector:
    """A YOLOX detector in ONNX form: letterboxed BGR 0..255 in, (1, N, 5 + classes) out.

    `model` is the file's path or its content. Class 0 is a person. Raises LocatorError for a file
    that is no such detector, with the shapes found.
    """

    STRIDES = (8, 16, 32)
    LETTERBOX = 114

    def __init__(
        self,
        model: str | Path | bytes,
        threshold: float = 0.4,
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
        self.threshold = threshold
        self.nms_iou = nms_iou
        self.input_name, self.size = self._check_layout(name)
        self.grid, self.cell = _grid(self.size, self.STRIDES)

    def _check_layout(self, name: str) -> tuple[str, int]:
        """The input's name and side S."""
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) == 1 and len(outputs) == 1 and inputs[0].type == "tensor(float)":
            shape, size = inputs[0].shape, inputs[0].shape[-1] if inputs[0].shape else None
            if isinstance(size, int) and size > 0 and size % max(self.STRIDES) == 0:
                cells = sum((size // stride) ** 2 for stride in self.STRIDES)
                *rows, values = outputs[0].shape or [None]
                single = shape[0] == 1 or not isinstance(shape[0], int)
                fits = single and shape[1:] == [3, size, size] and rows[1:] == [cells]
                if fits and isinstance(values, int) and values >= 6:
                    return str(inputs[0].name), size
        found = ", ".join(f"{v.name} {v.type} {v.shape}" for v in (*inputs, *outputs))
        raise LocatorError(
            f"{name}: not a YOLOX detector: expected one float input (1, 3, S, S), S a multiple of "
            f"{max(self.STRIDES)}, and one output (1, cells, 5 + classes); found {found}"
        )

    def locate(self, picture: Picture) -> People:
        """People with a score over the threshold, overlaps suppressed, best first."""
        blob, ratio = self._letterbox(picture)
        raw = self.session.run(None, {self.input_name: blob})[0][0]
        scores = raw[:, 4] * raw[:, 5]
        keep = scores >= self.threshold
        raw, scores = raw[keep], scores[keep]
        centres = (raw[:, :2] + self.grid[keep]) * self.cell[keep]
        sizes = np.exp(raw[:, 2:4]) * self.cell[keep]
        boxes = np.concatenate([(centres - sizes / 2) / ratio, sizes / ratio], axis=1)
        boxes, scores = _clip(boxes, scores.astype(np.float64), picture.shape[1], picture.shape[0])
        order = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, self.nms_iou)
        chosen = np.asarray(order, dtype=np.int64).reshape(-1)
        return People(boxes[chosen], scores[chosen], "detector")

    def _letterbox(self, picture: Picture) -> tuple[NDArray[np.float32], Floats]:
        """The network's input and (2,) how much larger x and y are in it than in the picture."""
        height, width = picture.shape[:2]
        scale = min(self.size / height, self.size / width)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = np.full((self.size, self.size, 3), self.LETTERBOX, np.uint8)
        canvas[:h, :w] = cv2.resize(picture, (w, h), interpolation=interpolation)
        blob = canvas[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        return blob, np.array([w / width, h / height])


def _grid(size: int, strides: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 2) cell indices x, y and (N, 1) strides of all output rows."""
    cells, lengths = [], []
    for stride in strides:
        n = size // stride
        y, x = np.mgrid[:n, :n]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        lengths.append(np.full((n * n, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(lengths).astype(np.float32)


def _clip(boxes: Floats, scores: Floats, width: int, height: int) -> tuple[Floats, Floats]:
    """Boxes cut to the picture; those without a pixel in it are dropped."""
    low = np.clip(boxes[:, :2], 0, [width, height])
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, [width, height])
    keep = ((high - low) >= 1).all(axis=1)
    return np.concatenate([low, high - low], axis=1)[keep], scores[keep]
