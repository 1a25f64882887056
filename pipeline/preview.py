"""A contact sheet of annotated pictures, for the eye."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cpm_core.draw import contact_sheet, draw_pose
from pipeline.annotations import open_annotations
from pipeline.config import setting
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.picture_files import check_picture_name, write_picture
from pipeline.pictures import decode_picture
from pipeline.settings import Settings
from pipeline.storage import Output, StorageOptions
from pipeline.video import Range, read_frames

_LIMIT = 1 << 30


class PreviewSettings(Settings):
    """Draw annotated pictures on one contact sheet.

    posemill preview --output OUT --to sheet.jpg
    """

    output: str = setting("run", ..., "output folder of posemill annotate", min_length=1)
    to: str = setting("run", "preview.jpg", "picture to write (.jpg or .png)")
    count: int = setting("run", 12, "how many pictures", ge=1, le=500)
    columns: int = setting("run", 4, "pictures in a row", ge=1, le=20)
    width: int = setting("run", 400, "pixels per picture", ge=50, le=4000)
    threshold: float = setting("run", 0.45, "least score of a joint that is drawn", ge=0, le=1)
    order: Literal["even", "best", "worst"] = setting(
        "run", "even", "which pictures: spread evenly over the table, or by score"
    )
    s3_endpoint: str | None = setting("run", None, "URL of an S3-compatible server")


@dataclass(frozen=True)
class Shown:
    """A picture or frame with its people: rows of the table."""

    uri: str
    media_type: str
    frame_index: int | None
    pts: int | None
    rows: tuple[dict[str, Any], ...]

    @property
    def score(self) -> float:
        """Mean score of its people."""
        return float(np.mean([row["score"] for row in self.rows]))


def preview(settings: PreviewSettings) -> int:
    """Write the sheet; returns how many pictures are on it. Raises UsageError."""
    check_picture_name(settings.to)
    options = StorageOptions(settings.s3_endpoint)
    dataset, skeleton = open_annotations(Output(settings.output, options))
    table = dataset.to_table(filter=pc.field("status") == "ok")
    chosen = _choose(list(_shown(table)), settings.count, settings.order)
    if not chosen:
        raise UsageError(f"{settings.output}: no people in the table, nothing to draw")
    pictures, captions = [], []
    for item in chosen:
        picture = _picture(item, options)
        for row in item.rows:
            points = np.stack([row["x"], row["y"], row["keypoint_score"]], axis=1)
            draw_pose(picture, points, skeleton, settings.threshold, np.array(row["box"]))
        pictures.append(picture)
        captions.append(_caption(item))
    sheet = contact_sheet(pictures, captions, settings.columns, settings.width)
    write_picture(settings.to, sheet)
    return len(pictures)


def _shown(table: pa.Table) -> Iterator[Shown]:
    def frame(row: dict[str, Any]) -> tuple[int, int | None, int | None]:
        return row["unit_id"], row["frame_index"], row["pts"]

    for (_, index, pts), rows in groupby(table.to_pylist(), frame):
        people = tuple(rows)
        yield Shown(people[0]["uri"], people[0]["media_type"], index, pts, people)


def _choose(items: list[Shown], count: int, order: str) -> list[Shown]:
    if order in ("best", "worst"):
        return sorted(items, key=lambda item: item.score, reverse=order == "best")[:count]
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[i] for i in places]


def _picture(item: Shown, options: StorageOptions) -> NDArray[np.uint8]:
    try:
        if item.media_type == "image":
            return decode_picture(fetch(item.uri, options, _LIMIT), _LIMIT)
        wanted = Range(item.pts, None, item.frame_index, 1)
        return next(read_frames(item.uri, options, wanted, None, _LIMIT)).picture
    except (InputError, StopIteration) as error:
        raise UsageError(f"cannot draw {item.uri}: {error}") from error


def _caption(item: Shown) -> str:
    name = PurePosixPath(item.uri).name
    seconds = item.rows[0]["timestamp_s"]
    when = "" if seconds is None else f" {seconds:.2f} s"
    return f"{name[:36]}{when}  score {item.score:.2f}"
