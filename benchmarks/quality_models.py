"""The networks that `quality.py` compares, each behind the same call: a picture and boxes in,
keypoints out, in the order of `lsp14` and in pixels of the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from quality_data import Floats, in_lsp_order

import cpm_core
from cpm_core.geometry import crop_matrix, invert, transform, warp
from cpm_core.people import Picture
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import load_weights

SCALES = (0.85, 1.0, 1.15)

_MOBILE_CPM = (
    *("head_top", "neck"),
    *("right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle"),
)
"""Order of its maps."""


class Model(Protocol):
    """One way to estimate people; `name` is its row in the tables."""

    name: str

    def estimate(self, picture: Picture, boxes: Floats, factor: float) -> Floats:
        """Keypoints (T, N, 14, 3) after each of T stages, for squares of `factor` times the longer
        side of boxes (N, 4)."""
        ...


class Ours:
    """A CPM of this repository, plain, with mirroring, or with mirroring and scales."""

    def __init__(
        self, weights: str, how: str = "", flip: bool = False, scales: tuple[float, ...] = (1.0,)
    ) -> None:
        self.estimators: dict[float, cpm_core.Estimator] = {}
        self._options: dict[str, Any] = {
            "flip": flip,
            "scales": scales,
            "device": "cpu",
            "precision": "fp32",  # As the peers.
        }
        self._weights = weights
        self.name = load_weights(weights).info.name + how

    def estimator(self, factor: float) -> cpm_core.Estimator:
        """The estimator for a box factor."""
        if factor not in self.estimators:
            self.estimators[factor] = cpm_core.load(
                self._weights, box_factor=factor, **self._options
            )
        return self.estimators[factor]

    def estimate(self, picture: Picture, boxes: Floats, factor: float) -> Floats:
        """See `Model`."""
        estimator = self.estimator(factor)
        stages = estimator.estimate_stages(picture, boxes)
        return in_lsp_order(stages, estimator.info.skeleton.keypoints)


class MoveNet:
    """Google's MoveNet Thunder: RGB int32 256x256, COCO's joints as y, x, score from 0 to 1."""

    name = "MoveNet Thunder"
    SIZE = 256
    JOINTS = load_skeleton("coco17").keypoints

    def __init__(self, path: Path, threads: int) -> None:
        self.session = _session(path, threads)

    def estimate(self, picture: Picture, boxes: Floats, factor: float) -> Floats:
        """See `Model`; one stage."""
        return _by_box(self, picture, boxes, factor)

    def keypoints(self, crop: Picture) -> Floats:
        """(17, 3) x and y in pixels of the crop, score."""
        output = self.session.run(None, {"input:0": crop[None].astype(np.int32)})[0]
        return self.decode(output)

    @classmethod
    def decode(cls, output: NDArray[np.float32]) -> Floats:
        """(17, 3) of the network's (1, 1, 17, 3): 0 and 1 are the crop's outer edges, which lie
        half a pixel outside of its outermost pixels' centres."""
        y, x, score = output[0, 0].astype(np.float64).T
        return np.stack([x * cls.SIZE - 0.5, y * cls.SIZE - 0.5, score], axis=1)


class MobileCpm:
    """edvardHua's mobile CPM: BGR float 192x192, 14 belief maps of 96x96, channels last."""

    name = "mobile CPM"
    SIZE = 192
    JOINTS = _MOBILE_CPM

    def __init__(self, path: Path, threads: int) -> None:
        self.session = _session(path, threads)

    def estimate(self, picture: Picture, boxes: Floats, factor: float) -> Floats:
        """See `Model`; only its last stage."""
        return _by_box(self, picture, boxes, factor)

    def keypoints(self, crop: Picture) -> Floats:
        """(14, 3) x and y in pixels of the crop, belief at the peak."""
        blob = np.ascontiguousarray(crop[None, ..., ::-1], np.float32)
        return self.decode(self.session.run(None, {"image:0": blob})[0])

    @staticmethod
    def decode(output: NDArray[np.float32]) -> Floats:
        """(14, 3) of the network's (1, 96, 96, 14); the middle of cell g is pixel 2 g + 0.5."""
        maps = output[0].astype(np.float64)
        width = maps.shape[1]
        flat = maps.reshape(-1, maps.shape[-1])
        index = flat.argmax(axis=0)
        return np.stack(
            [2 * (index % width) + 0.5, 2 * (index // width) + 0.5, flat.max(axis=0)], 1
        )


def _by_box(peer: MoveNet | MobileCpm, picture: Picture, boxes: Floats, factor: float) -> Floats:
    """Keypoints (1, N, 14, 3) of a network that sees one crop at a time."""
    people = np.empty((len(boxes), len(peer.JOINTS), 3))
    for n, box in enumerate(boxes):
        matrix = crop_matrix(box, peer.SIZE, factor)
        people[n] = peer.keypoints(warp(picture, matrix, peer.SIZE))
        people[n, :, :2] = transform(people[n, :, :2], invert(matrix))
    return in_lsp_order(people, peer.JOINTS)[None]


def _session(path: Path, threads: int) -> ort.InferenceSession:
    if not path.is_file():
        raise FileNotFoundError(f"no network at {path}: --shared names the folder with weights/")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # As for torch, see `quality_threads`: on a busy machine this is what makes it fast.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
