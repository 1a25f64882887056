"""The unit of work: one picture, or one range of a video's frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import schema

PICTURE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pnm",
        ".mpo",
    ]
)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".3gp",
        ".flv",
        ".wmv",
        ".ogv",
    ]
)


class GivenBox(NamedTuple):
    """A box that the user gave: pixels of the picture, score, and the frame it is for (videos)."""

    x: float
    y: float
    w: float
    h: float
    score: float = 1.0
    frame_index: int | None = None


class Unit(NamedTuple):
    """One row of the manifest; a tuple, as millions are made when inputs are planned.

    Times are in the video's time base, `end_pts` is exclusive and None means to the end;
    `start_frame` is the index in the video of the first frame. `frames` is how many frames are
    expected. `boxes` None means that none were given; an empty tuple means that nobody is there. A
    unit that could not be planned has an `error_code`.
    """

    unit_id: int
    shard: int
    uri: str
    kind: str
    size: int | None = None
    etag: str | None = None
    mtime: datetime | None = None
    start_pts: int | None = None
    end_pts: int | None = None
    start_frame: int | None = None
    frames: int = 1
    boxes: tuple[GivenBox, ...] | None = None
    error_code: str | None = None
    error_message: str | None = None

    def at(self, unit_id: int, shard: int) -> Unit:
        """The same unit with its place in the manifest."""
        return self._replace(unit_id=unit_id, shard=shard)


def to_table(units: Sequence[Unit]) -> pa.Table:
    """Units as rows of the manifest."""
    columns: dict[str, Any] = dict(zip(Unit._fields, zip(*units, strict=True), strict=True))
    columns["boxes"] = [boxes_to_rows(boxes) for boxes in columns["boxes"]]
    return pa.table(columns, schema=schema.MANIFEST)


def from_table(table: pa.Table) -> list[Unit]:
    """Rows of the manifest as units."""

    return [Unit(**{**row, "boxes": boxes_from_rows(row["boxes"])}) for row in table.to_pylist()]


def boxes_to_rows(boxes: Iterable[GivenBox] | None) -> list[dict[str, Any]] | None:
    """Boxes as they stand in tables."""
    return None if boxes is None else [box._asdict() for box in boxes]


def boxes_from_rows(rows: Iterable[dict[str, Any]] | None) -> tuple[GivenBox, ...] | None:
    """Undo `boxes_to_rows`."""
    return None if rows is None else tuple(GivenBox(**row) for row in rows)
