"""The table that `posemill annotate` wrote, so that annotate, review and train close the loop.

A joint whose keypoint_score reaches the threshold counts as labelled. The rows are read in the
order of the parts, a batch at a time; of a video, each range is decoded once, frame after frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.annotations import open_annotations
from pipeline.errors import InputError
from pipeline.importing.record import TRAIN, Labelled, Person, Reading
from pipeline.importing.settings import ImportSettings
from pipeline.reader import read_frames
from pipeline.storage import Output
from pipeline.video import Frame, Range

_COLUMNS = [
    *("unit_id", "uri", "media_type", "frame_index", "pts", "width", "height"),
    *("box", "box_source", "x", "y", "keypoint_score"),
]
_ROWS = 4096
_JPEG_QUALITY = 95

Row = dict[str, Any]


def read(settings: ImportSettings) -> Reading:
    """The people of an output folder."""
    dataset, skeleton = open_annotations(Output(settings.input, settings.storage))
    split = settings.split or TRAIN

    def pictures() -> Iterator[Labelled]:
        for (_, uri, media_type), unit in groupby(_rows(dataset), _unit):
            frames = [list(rows) for _, rows in groupby(unit, _frame)]
            people = [tuple(_people(rows, settings.threshold)) for rows in frames]
            kept = [(rows[0], found) for rows, found in zip(frames, people, strict=True) if found]
            if media_type == "image":
                for row, found in kept:
                    yield Labelled(uri, uri, split, found, (row["width"], row["height"]))
            elif kept:
                yield from _video(uri, kept, split, settings)

    return Reading(skeleton.keypoints, skeleton, frozenset({split}), pictures)


def _unit(row: Row) -> tuple[int, str, str]:
    return row["unit_id"], row["uri"], row["media_type"]


def _frame(row: Row) -> tuple[int | None, int | None]:
    return row["frame_index"], row["pts"]


def _rows(dataset: ds.Dataset) -> Iterator[Row]:
    people = pc.field("status") == "ok"
    for batch in dataset.to_batches(columns=_COLUMNS, filter=people, batch_size=_ROWS):
        yield from batch.to_pylist()


def _people(rows: list[Row], threshold: float) -> Iterator[Person]:
    for row in rows:
        points = np.stack([row["x"], row["y"]], axis=1).astype(np.float64)
        labelled = np.asarray(row["keypoint_score"]) >= threshold
        if labelled.any():
            # "The whole picture" says nothing about where the person is; its joints do.
            whole = row["box_source"] == "whole-image"
            box = None if whole else np.array(row["box"], np.float64)
            yield Person(points, labelled, box=box)


def _video(
    uri: str, kept: list[tuple[Row, tuple[Person, ...]]], split: str, settings: ImportSettings
) -> Iterator[Labelled]:
    """The frames of a unit that have people, decoded in one go; those that fail say why."""
    problem = "a frame has no address of its own: use --pictures bytes"
    frames: Iterator[Frame] = iter(())
    if settings.pictures == "bytes":
        frames = read_frames(
            uri, settings.storage, _range([row for row, _ in kept]), None, settings.max_pixels
        )
        problem = "the frame was not found in the video"
    for row, people in kept:
        data = None
        try:
            frame = next((frame for frame in frames if _is(frame, row)), None)
            data = None if frame is None else _encoded(frame)
        except InputError as error:
            problem = str(error)
        name = f"{uri}#{row['pts'] if row['frame_index'] is None else row['frame_index']}"
        size = (row["width"], row["height"])
        yield Labelled(name, uri, split, people, size, data, None if data else problem)


def _range(rows: list[Row]) -> Range:
    """The frames from the first row's to the last row's; the count is not known, and not needed."""
    first, last = rows[0], rows[-1]
    if first["pts"] is not None:
        return Range(first["pts"], last["pts"] + 1, first["frame_index"], 1)
    return Range(None, None, first["frame_index"], last["frame_index"] - first["frame_index"] + 1)


def _is(frame: Frame, row: Row) -> bool:
    if row["pts"] is not None:
        return bool(frame.pts == row["pts"])
    return bool(frame.index == row["frame_index"])


def _encoded(frame: Frame) -> bytes:
    done, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(frame.picture, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
    )
    assert done
    return data.tobytes()
