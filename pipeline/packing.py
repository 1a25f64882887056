"""From rows of a samples table to the contents of a pack (`cpm_core.resident.pack`)."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.augment import Sample
from cpm_core.resident.pack import Pack, PackInfo
from pipeline.errors import UsageError
from pipeline.samples import decode_sample, sample_of
from pipeline.storage import StorageOptions

_CHUNK = 64
_REPORT_S = 5.0
_BAD_SHARE = 0.05
_BAD_AT_LEAST = 20
KEEP = "keep"
FORMATS = {
    KEEP: (".webp", cv2.IMWRITE_WEBP_QUALITY),
    "webp": (".webp", cv2.IMWRITE_WEBP_QUALITY),
    "avif": (".avif", cv2.IMWRITE_AVIF_QUALITY),
    "jpeg": (".jpg", cv2.IMWRITE_JPEG_QUALITY),
}
"""How pictures are encoded. With `keep`, those that are compact and are neither cut nor shrunk stay
as they are: what is compressed twice is worse than the size tells."""

_COMPACT = (b"\xff\xd8", b"RIFF")
"""How JPEG and WebP begin."""
_NO_PICTURE = np.empty((0, 0, 3), np.uint8)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """A part x, y, w, h of a picture, whole pixels, and its size on the canvas."""

    part: tuple[int, int, int, int]
    size: tuple[int, int]

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of the picture (H, W, 3) in its new size; where it shrinks, averaged."""
        x, y, w, h = self.part
        part = image[y : y + h, x : x + w]
        if self.size == (w, h):
            return part
        return cv2.resize(part, self.size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]

    def moved(self, points: Array) -> Array:
        """Places (..., 2) of the picture, on the canvas; integers are centres of pixels."""
        moved: Array = (points - self.part[:2] + 0.5) * self._scale - 0.5
        return moved

    def moved_box(self, box: Array) -> Array:
        """A box x, y, w, h of the picture, on the canvas."""
        scale = self._scale
        corner = (box[:2] - self.part[:2]) * scale
        return np.concatenate([corner, box[2:] * scale])

    @property
    def _scale(self) -> Array:
        scale: Array = np.array(self.size) / self.part[2:]
        return scale


@dataclass(frozen=True)
class Packing:
    """What is kept of a picture: a square `reach` times as wide as the box's longer side, as far as
    the picture goes, shrunk to at most `canvas` pixels; encoded as `kind` at a `quality`."""

    canvas: int
    reach: float
    kind: str
    quality: int

    def window(self, sample: Sample) -> Window:
        """Raises UsageError where nothing of the picture is near the box."""
        height, width = sample.image.shape[:2]
        centre = sample.box[:2] + (sample.box[2:] - 1) / 2
        half = max(sample.box[2:]) * self.reach / 2
        low = np.clip(np.floor(centre - half).astype(int), 0, [width, height])
        high = np.clip(np.ceil(centre + half).astype(int) + 1, 0, [width, height])
        w, h = (int(v) for v in high - low)
        if w <= 0 or h <= 0:
            raise UsageError(f"its box {sample.box.tolist()} lies far outside of its picture")
        shrink = max(1.0, max(w, h) / self.canvas)
        size = (max(1, round(w / shrink)), max(1, round(h / shrink)))
        return Window((int(low[0]), int(low[1]), w, h), size)

    def data(self, sample: Sample, window: Window, given: bytes | None) -> bytes:
        """What the pack holds of a picture that came as the file `given`, if it came as one."""
        height, width = sample.image.shape[:2]
        is_whole = window == Window((0, 0, width, height), (width, height))
        if self.kind == KEEP and is_whole and given and given.startswith(_COMPACT):
            seen = cv2.imdecode(np.frombuffer(given, np.uint8), cv2.IMREAD_COLOR)
            # Another decoder may see it otherwise, as one that ignores a colour profile.
            if seen is not None and np.array_equal(seen[..., ::-1], sample.image):
                return given
        return self.encode(window.cut(sample.image))

    def encode(self, picture: NDArray[np.uint8]) -> bytes:
        """A canvas picture (H, W, 3), RGB, as a file."""
        suffix, flag = FORMATS[self.kind]
        done, data = cv2.imencode(suffix, picture[..., ::-1], [flag, self.quality])
        assert done, "OpenCV raises for what it cannot encode"
        return data.tobytes()


@dataclass(frozen=True)
class _Picture:
    window: Window
    data: bytes


@dataclass(frozen=True)
class _Packed:
    """A sample on its canvas, the place of its picture, that of its split."""

    sample: Sample
    picture: int
    split: int


class Packer:
    """Makes a pack out of rows; `total` is how many there are, for what is told on the way."""

    def __init__(self, packing: Packing, options: StorageOptions, threads: int, total: int) -> None:
        self.packing, self.options, self.total = packing, options, total
        self.pool = ThreadPoolExecutor(threads)
        self.bad: list[str] = []
        self.left_out = 0
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def pack(self, rows: Iterable[dict[str, Any]], info: PackInfo) -> Pack:
        """All rows as one pack; those that cannot be read are left out, and told.

        Raises UsageError where that is more than a few.
        """
        places: dict[bytes, int] = {}
        pictures: list[_Picture] = []
        packed: list[_Packed] = []
        rows, seen = iter(rows), 0
        while chunk := list(islice(rows, _CHUNK)):
            for row, key, made in self._made(chunk, places):
                if isinstance(made, _Picture):
                    places[key] = len(pictures)
                    pictures.append(made)
                if key in places:
                    window = pictures[places[key]].window
                    sample = _on_canvas(sample_of(row, _NO_PICTURE), window)
                    packed.append(_Packed(sample, places[key], info.splits.index(row["split"])))
                else:
                    self.left_out += 1
            seen += len(chunk)
            self._tell(seen)
        self._judge(seen, len(packed))
        return _contents(info, pictures, packed)

    def _made(
        self, chunk: list[dict[str, Any]], places: dict[bytes, int]
    ) -> Iterator[tuple[dict[str, Any], bytes, _Picture | str | None]]:
        """Each row with its key, and its picture where it is the first to have that one, or what is
        wrong with it."""
        keys = [picture_key(row) for row in chunk]
        is_first = [key not in places and key not in keys[:n] for n, key in enumerate(keys)]
        work = [row if first else None for row, first in zip(chunk, is_first, strict=True)]
        for row, key, made in zip(chunk, keys, self.pool.map(self._picture, work), strict=True):
            if isinstance(made, str):
                self.bad.append(made)
                print(f"pack: left out: {made}", file=sys.stderr)
            yield row, key, made

    def _picture(self, row: dict[str, Any] | None) -> _Picture | str | None:
        if row is None:
            return None
        try:
            sample = decode_sample(row, self.options)
            window = self.packing.window(sample)
        except UsageError as error:
            named = str(error).startswith("sample ")
            return str(error) if named else f"sample {row['source']}: {error}"
        return _Picture(window, self.packing.data(sample, window, row["image"]))

    def _tell(self, seen: int) -> None:
        now = time.monotonic()
        if now - self._told > _REPORT_S:
            self._told = now
            rate = seen / (now - self._started)
            left = (self.total - seen) / rate
            print(
                f"pack: {seen:,} of {self.total:,} samples, {rate:.0f}/s, {left:.0f} s left",
                file=sys.stderr,
            )

    def _judge(self, seen: int, packed: int) -> None:
        if self.left_out >= _BAD_AT_LEAST and self.left_out > _BAD_SHARE * seen:
            raise UsageError(
                f"the pictures of {self.left_out} of {seen} samples cannot be read, last: "
                f"{self.bad[-1]}"
            )
        if self.left_out > len(self.bad):
            print(
                f"pack: {self.left_out} samples left out, of which some share a picture",
                file=sys.stderr,
            )
        if not packed:
            raise UsageError(f"nothing to pack: {self.bad[-1] if self.bad else 'no samples'}")


def picture_key(row: dict[str, Any]) -> bytes:
    """The same for samples of one picture and box."""
    picture = row["image"] if row["image"] is not None else str(row["uri"]).encode()
    digest = hashlib.blake2b(picture, digest_size=16)
    digest.update(np.asarray(row["box"], np.float32).tobytes())
    return digest.digest()


def _on_canvas(sample: Sample, window: Window) -> Sample:
    return Sample(
        sample.image,
        window.moved_box(sample.box),
        window.moved(sample.keypoints),
        sample.labelled,
        window.moved(sample.others),
        sample.others_labelled,
    )


def _contents(info: PackInfo, pictures: list[_Picture], packed: list[_Packed]) -> Pack:
    joints = len(info.skeleton)
    samples = [one.sample for one in packed]
    others = [s.others.reshape(-1, joints, 2) for s in samples]
    flags = [s.others_labelled.reshape(-1, joints) for s in samples]
    return Pack(
        info=info,
        data=np.frombuffer(b"".join(p.data for p in pictures), np.uint8),
        ends=np.cumsum([len(p.data) for p in pictures], dtype=np.int64),
        sizes=np.array([p.window.size for p in pictures], np.int32),
        picture=np.array([one.picture for one in packed], np.int32),
        split=np.array([one.split for one in packed], np.uint8),
        box=np.array([s.box for s in samples], np.float32),
        keypoints=np.array([s.keypoints for s in samples], np.float32),
        labelled=np.array([s.labelled for s in samples], bool),
        others_count=np.array([len(s.others) for s in samples], np.int32),
        others=np.concatenate(others).astype(np.float32),
        others_labelled=np.concatenate(flags).astype(bool),
    )
