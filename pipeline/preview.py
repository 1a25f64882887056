"""A contact sheet of annotated pictures, for the eye."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from cpm_core.draw import contact_sheet, draw_pose
from pipeline.annotations import open_annotations
from pipeline.config import setting
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.picture_files import check_picture_name, write_picture
from pipeline.pictures import decode_picture
from pipeline.reader import read_frames
from pipeline.settings import Settings
from pipeline.storage import Output, StorageOptions
from pipeline.video import Range

_LIMIT = 1 << 30
_NULL = np.iinfo(np.int64).min + 1
"""No frame index, no pts: those of pictures."""
_GREY = np.full((3, 4, 3), 128, np.uint8)


class PreviewSettings(Settings):
    """Draw annotated pictures on one contact sheet.

    posemill preview OUT --to sheet.jpg
    """

    POSITIONAL: ClassVar[str] = "output"

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
    s3_anonymous: bool = setting("run", False, "read public buckets without credentials")
    s3_requester_pays: bool = setting("run", False, "pay for reading requester-pays buckets")


@dataclass(frozen=True)
class Shown:
    """A picture or frame with its people: rows of the table."""

    rows: list[dict[str, Any]]

    @property
    def score(self) -> float:
        """Mean score of its people."""
        return float(np.mean([row["score"] for row in self.rows]))


class Drawn(NamedTuple):
    """How many pictures are on the sheet, and how many of them could not be read."""

    pictures: int
    unread: int


def preview(settings: PreviewSettings) -> Drawn:
    """Write the sheet. A picture that cannot be read any more is grey, and its caption says why.

    Raises UsageError, also if that is so of all.
    """
    check_picture_name(settings.to)
    options = StorageOptions(
        settings.s3_endpoint, settings.s3_anonymous, settings.s3_requester_pays
    )
    dataset, skeleton = open_annotations(Output(settings.output, options))
    pictures, captions, problems = [], [], []
    for item in _chosen(dataset, settings.count, settings.order):
        caption = _caption(item)
        try:
            picture = _picture(item.rows[0], options)
        except InputError as error:
            problems.append(f"{item.rows[0]['uri']}: {error}")
            picture, caption = _GREY, f"{error.code}: {caption}"
        else:
            for row in item.rows:
                points = np.stack([row["x"], row["y"], row["keypoint_score"]], axis=1)
                draw_pose(picture, points, skeleton, settings.threshold, np.array(row["box"]))
        pictures.append(picture)
        captions.append(caption)
    if not pictures:
        raise UsageError(f"{settings.output}: no people in the table, nothing to draw")
    if len(problems) == len(pictures):
        raise UsageError(f"cannot draw {problems[0]}")
    sheet = contact_sheet(pictures, captions, settings.columns, settings.width)
    write_picture(settings.to, sheet)
    return Drawn(len(pictures), len(problems))


def _chosen(dataset: ds.Dataset, count: int, order: str) -> list[Shown]:
    starts, scores = _frames(dataset)
    if order == "even":
        places = np.linspace(0, len(starts) - 2, min(count, len(scores))).round().astype(int)
        places = np.unique(places)
    else:
        places = np.argsort(scores if order == "worst" else -scores, kind="stable")[:count]
    by_place = np.sort(places)
    rows = _rows(dataset, starts[by_place], starts[by_place + 1])
    shown = {place: Shown(found) for place, found in zip(by_place, rows, strict=True)}
    return [shown[place] for place in places]


def _frames(dataset: ds.Dataset) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where the people of each picture or frame start in the table, with its end at last, and their
    mean scores: a few bytes per person, since tables may have millions."""
    firsts = [np.empty(0, bool)]
    scores = [np.empty(0, np.float32)]
    last = np.full((3, 1), _NULL - 1)
    for batch in _batches(dataset, ["unit_id", "frame_index", "pts", "score"]):
        columns = (batch[name].cast(pa.int64()).fill_null(_NULL) for name in batch.column_names[:3])
        keys = np.concatenate([last, np.stack(list(columns))], axis=1)
        firsts.append((keys[:, 1:] != keys[:, :-1]).any(axis=0))
        scores.append(batch["score"].to_numpy())
        last = keys[:, -1:]
    starts = np.flatnonzero(np.append(np.concatenate(firsts), True))
    sums = np.add.reduceat(np.append(np.concatenate(scores), 0.0), starts)[:-1]
    return starts, sums / np.diff(starts)


def _rows(
    dataset: ds.Dataset, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> list[list[dict[str, Any]]]:
    """The rows of each range (ascending) of the table's people."""
    found: list[list[dict[str, Any]]] = [[] for _ in starts]
    offset = 0
    for batch in _batches(dataset, None):
        for at in np.flatnonzero((starts < offset + len(batch)) & (ends > offset)):
            start, end = np.clip((starts[at] - offset, ends[at] - offset), 0, len(batch))
            found[at] += batch.slice(start, end - start).to_pylist()
        offset += len(batch)
    return found


def _batches(dataset: ds.Dataset, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """The people of the table, in its order, little of it in memory."""
    people = pc.field("status") == "ok"
    for batch in dataset.to_batches(
        columns, filter=people, batch_readahead=1, fragment_readahead=1
    ):
        if len(batch):
            yield batch


def _picture(row: dict[str, Any], options: StorageOptions) -> NDArray[np.uint8]:
    """What a row is about. Raises InputError."""
    if row["media_type"] == "image":
        return decode_picture(fetch(row["uri"], options, _LIMIT), _LIMIT)
    wanted = Range(row["pts"], None, row["frame_index"], 1)
    frame = next(read_frames(row["uri"], options, wanted, None, _LIMIT), None)
    if frame is None:
        raise InputError("corrupt", "the video has no such frame any more")
    return frame.picture


def _caption(item: Shown) -> str:
    name = PurePosixPath(item.rows[0]["uri"]).name
    seconds = item.rows[0]["timestamp_s"]
    when = "" if seconds is None else f" {seconds:.2f} s"
    return f"{name[:36]}{when}  score {item.score:.2f}"
