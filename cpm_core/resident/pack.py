"""A pack: all that training can ever show of a set of samples, in one `.safetensors` file.

Of every picture it holds the part that a crop can reach, shrunk to fit a square of `canvas` pixels
and encoded. Boxes and keypoints are in pixels of that. `pipeline.pack` writes packs from samples
tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cpm_core.errors import CpmError, PackError
from cpm_core.skeleton import Skeleton

_KEY = "posemill"
_VERSION = 1
_SMALLEST_CANVAS, _LARGEST_CANVAS = 16, 4096
CANVAS_MULTIPLE = 4
"""Canvases are halved twice (`cpm_core.resident.pictures`)."""


@dataclass(frozen=True)
class PackInfo:
    """The metadata: `canvas` in pixels, `source` and `digest` name the table that was packed."""

    skeleton: Skeleton
    canvas: int
    splits: tuple[str, ...]
    source: str = "unknown"
    digest: str = ""


@dataclass(frozen=True)
class Pack:
    """M pictures and N samples of them.

    `data` (L,) holds the encoded pictures one after another, up to `ends` (M,); `sizes` (M, 2) are
    their widths and heights. Of samples: `picture` (N,), `split` (N,) as a place in `info.splits`,
    `box` (N, 4) x, y, w, h, `keypoints` (N, K, 2), `labelled` (N, K). The O other people lie
    sample by sample: `others_count` (N,), `others` (O, K, 2), `others_labelled` (O, K).
    """

    info: PackInfo
    data: NDArray[np.uint8]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int32]
    picture: NDArray[np.int32]
    split: NDArray[np.uint8]
    box: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    others_count: NDArray[np.int32]
    others: NDArray[np.float32]
    others_labelled: NDArray[np.bool_]

    def rows(self, split: str) -> NDArray[np.int64]:
        """Numbers of the samples of a split."""
        if split not in self.info.splits:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.split == self.info.splits.index(split))

    def encoded(self, picture: int) -> NDArray[np.uint8]:
        """The bytes of a picture."""
        start = self.ends[picture - 1] if picture else 0
        return self.data[start : self.ends[picture]]


_ARRAYS = {
    "data": (np.uint8, "L"),
    "ends": (np.int64, "M"),
    "sizes": (np.int32, "M2"),
    "picture": (np.int32, "N"),
    "split": (np.uint8, "N"),
    "box": (np.float32, "N4"),
    "keypoints": (np.float32, "NK2"),
    "labelled": (np.bool_, "NK"),
    "others_count": (np.int32, "N"),
    "others": (np.float32, "OK2"),
    "others_labelled": (np.bool_, "OK"),
}
"""Type of each array, and its shape by letters of which each stands for one number."""


def write_pack(path: str | Path, pack: Pack) -> None:
    """Write a pack, whole or not at all. Raises PackError."""
    _check(pack, path)
    info = pack.info
    metadata = {
        "kind": "pack",
        "version": _VERSION,
        "skeleton": json.loads(info.skeleton.to_json()),
        "canvas": info.canvas,
        "splits": list(info.splits),
        "source": info.source,
        "digest": info.digest,
        "pictures": len(pack.ends),
        "samples": {name: len(pack.rows(name)) for name in info.splits},
    }
    arrays = {name: np.ascontiguousarray(getattr(pack, name)) for name in _ARRAYS}
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes(save(arrays, {_KEY: json.dumps(metadata)}))
        partial.replace(path)
    except OSError as error:
        raise PackError(f"{path}: cannot be written ({error})") from error


def read_pack(path: str | Path) -> Pack:
    """Read and check a pack; its pictures stay encoded. Raises PackError that names the file."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            info = _info((file.metadata() or {}).get(_KEY), path)
            names = set(file.keys())
            if missing := sorted(_ARRAYS.keys() - names):
                raise PackError(f"{path}: has no array {missing[0]}; write it again")
            pack = Pack(info, **{name: file.get_tensor(name) for name in _ARRAYS})
    except (SafetensorError, OSError) as error:
        raise PackError(f"{path}: not a readable pack ({error})") from error
    _check(pack, path)
    return pack


def _info(text: str | None, path: str | Path) -> PackInfo:
    try:
        values: dict[str, Any] = json.loads(text or "{}")
        if values.get("kind") != "pack":
            raise PackError(f"{path}: is no pack; write one with `python -m pipeline.pack`")
        if values["version"] != _VERSION:
            raise PackError(f"{path}: a pack of version {values['version']}, not {_VERSION}")
        return PackInfo(
            Skeleton.from_json(json.dumps(values["skeleton"])),
            int(values["canvas"]),
            tuple(map(str, values["splits"])),
            str(values["source"]),
            str(values["digest"]),
        )
    except PackError:
        raise
    except (CpmError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PackError(f"{path}: unusable metadata: {error!r}") from error


def _check(pack: Pack, path: str | Path) -> None:
    """Shapes, types and places within what is there."""
    lengths = {"K": len(pack.info.skeleton), "2": 2, "4": 4}
    for name, (kind, shape) in _ARRAYS.items():
        array = getattr(pack, name)
        expected = tuple(
            lengths.setdefault(letter, n) for letter, n in zip(shape, array.shape, strict=False)
        )
        if array.dtype != kind or array.ndim != len(shape) or array.shape != expected:
            raise PackError(f"{path}: {name} is {array.dtype} {array.shape}, which does not fit")
    ends = np.concatenate([[0], pack.ends])
    places = (
        (usable_canvas(pack.info.canvas), "canvas"),
        ((np.diff(ends) > 0).all() and ends[-1] == len(pack.data), "ends"),
        (_within(pack.sizes, 1, pack.info.canvas), "sizes"),
        (_within(pack.picture, 0, len(pack.ends) - 1), "picture"),
        (_within(pack.split, 0, len(pack.info.splits) - 1), "split"),
        (_within(pack.others_count, 0, len(pack.others)), "others_count"),
        (pack.others_count.sum() == len(pack.others), "others"),
        (bool((pack.box[:, 2:] > 0).all() and np.isfinite(pack.box).all()), "box"),
    )
    for good, name in places:
        if not good:
            raise PackError(f"{path}: {name} holds values that cannot be; write it again")


def bytes_of(pack: Pack) -> int:
    """How large its arrays are."""
    return sum(getattr(pack, name).nbytes for name in _ARRAYS)


def usable_canvas(side: int) -> bool:
    """Whether canvases of a pack may have that side."""
    return _SMALLEST_CANVAS <= side <= _LARGEST_CANVAS and side % CANVAS_MULTIPLE == 0


def _within(values: NDArray[Any], low: int, high: int) -> bool:
    return bool(((values >= low) & (values <= high)).all())
