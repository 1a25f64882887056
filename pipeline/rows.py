"""Rows of the annotation table, in the making: first with crops, then with keypoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cpm_core.locators import FOUND
from cpm_core.poses import person_score
from pipeline import schema
from pipeline.errors import InputError
from pipeline.messages import FrameResult
from pipeline.units import Unit

_WITHOUT_KEYPOINTS = [f for f in schema.annotation_table(1) if f.name not in schema.POSE_COLUMNS]
_LONGEST_MESSAGE = 500
CROPS = pa.schema([*_WITHOUT_KEYPOINTS, pa.field("crop", pa.large_binary())])
"""Rows of a shard before the network has seen them; `crop` holds the person's views."""


@dataclass
class UnitRows:
    """Collects the rows of one unit."""

    unit: Unit
    rows: list[dict[str, object]] = field(default_factory=list)
    crops: list[bytes | memoryview] = field(default_factory=list)

    def add_frame(self, frame: FrameResult, crops: bytes | memoryview) -> None:
        """A decoded frame: a row per person, or one that says that nobody is there."""
        common = self._common() | {
            "frame_index": frame.frame_index,
            "pts": frame.pts,
            "timestamp_s": frame.timestamp_s,
            "width": frame.width,
            "height": frame.height,
        }
        if not len(frame.boxes):
            problem = frame.box_error
            self.rows.append(
                common
                | {
                    "status": "failed" if problem else "no_person",
                    "error_code": "bad_box" if problem else None,
                    "error_message": problem,
                }
            )
            return
        for i, (box, score) in enumerate(zip(frame.boxes, frame.scores, strict=True)):
            self.rows.append(
                common
                | {
                    "status": "ok",
                    "error_message": frame.box_error,
                    "person_index": i,
                    "box": box.tolist(),
                    "box_score": float(score),
                    "box_source": frame.source,
                }
            )
        self.crops.append(crops)

    def add_failure(self, error: InputError) -> None:
        """The unit, or the rest of it, failed."""
        # What a damaged file puts into a message need not be text.
        message = str(error)[:_LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()
        self.rows.append(
            self._common()
            | {"status": "failed", "error_code": error.code, "error_message": message}
        )

    def _common(self) -> dict[str, object]:
        return {
            "unit_id": self.unit.unit_id,
            "uri": self.unit.uri,
            "media_type": "video" if self.unit.kind == "video" else "image",
        }


def crops_table(units: Iterable[UnitRows]) -> pa.Table:
    """Rows of a shard with their crops, in the order of the units."""
    rows, crops = [], []
    for unit in units:
        rows += unit.rows
        crops += unit.crops
    table = pa.Table.from_pylist(rows, schema=pa.schema(_WITHOUT_KEYPOINTS))
    return table.append_column(CROPS.field("crop"), _crop_column(table, b"".join(crops)))


def _crop_column(table: pa.Table, data: bytes) -> pa.Array:
    """One slice of `data` for every row with a person, nothing for the others; `data` is not
    copied."""
    people = np.asarray(table["person_index"].is_valid())
    count = int(people.sum())
    length = len(data) // count if count else 0
    offsets = np.zeros(len(people) + 1, np.int64)
    np.cumsum(people * length, out=offsets[1:])
    validity = pa.py_buffer(np.packbits(people, bitorder="little"))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(people), [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def crops_of(table: pa.Table, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """All crops of a `crops_table` as one array (N, *shape), without a copy."""
    column = table["crop"]
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    buffer = chunk.buffers()[2]
    if buffer is None or not buffer.size:
        return np.empty((0, *shape), np.uint8)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)[
        chunk.offset : chunk.offset + len(chunk) + 1
    ]
    data = np.frombuffer(buffer, np.uint8)[offsets[0] : offsets[-1]]
    return data.reshape(-1, *shape)


def people_of(table: pa.Table) -> pa.Table:
    """The rows with a person, without their crops: to filter those would copy them."""
    rows = table.drop_columns("crop") if "crop" in table.column_names else table
    return rows.filter(rows["person_index"].is_valid())


def boxes_of(table: pa.Table) -> NDArray[np.float64]:
    """Boxes (N, 4) of the rows with a person."""
    flat = people_of(table)["box"].combine_chunks().flatten()
    return np.asarray(flat, np.float64).reshape(-1, 4)


def with_boxes(table: pa.Table, boxes: NDArray[np.float64]) -> pa.Table:
    """The same rows with other boxes (N, 4) for the people."""
    people = np.asarray(table["person_index"].is_valid())
    place = table.column_names.index("box")
    column = _spread(boxes.astype(np.float32), people)
    return table.set_column(place, table.schema.field(place), column)


def keypoints_of(rows: pa.Table, num_keypoints: int) -> NDArray[np.float32]:
    """x, y and score (R, K, 3) of all annotation rows, 0 where there is nobody."""
    people = np.asarray(rows["person_index"].is_valid())
    result = np.zeros((rows.num_rows, num_keypoints, 3), np.float32)
    for i, name in enumerate(schema.KEYPOINT_COLUMNS):
        flat = people_of(rows)[name].combine_chunks().flatten()
        result[people, :, i] = np.asarray(flat).reshape(-1, num_keypoints)
    return result


def annotation_rows(
    table: pa.Table, keypoints: NDArray[np.float32], num_keypoints: int
) -> pa.Table:
    """Rows of the annotation table from a `crops_table` and keypoints (N, K, 3) in picture
    pixels."""
    people = np.asarray(table["person_index"].is_valid())
    target = schema.annotation_table(num_keypoints)
    columns = {name: table[name] for name in table.column_names if name != "crop"}
    for i, name in enumerate(schema.KEYPOINT_COLUMNS):
        columns[name] = _spread(keypoints[..., i], people)
    sources = np.asarray(table["box_source"].to_numpy(zero_copy_only=False))
    box_scores = table["box_score"].to_numpy(zero_copy_only=False)[people]
    found = np.isin(sources[people], FOUND)
    score = person_score(keypoints[..., 2], np.where(found, box_scores, 1.0))
    full = np.zeros(len(people), np.float32)
    full[people] = score
    columns["score"] = pa.array(full, mask=~people)
    return pa.table([columns[field.name] for field in target], schema=target)


def _spread(values: NDArray[np.float32], people: NDArray[np.bool_]) -> pa.Array:
    """Values (N, K) as a list column with nulls where there is no person."""
    full = np.zeros((len(people), values.shape[1]), np.float32)
    full[people] = values
    return pa.FixedSizeListArray.from_arrays(
        pa.array(full.reshape(-1)), values.shape[1], mask=pa.array(~people)
    )


def failure_rows(units: Iterable[Unit], error: InputError) -> Iterator[UnitRows]:
    """Units that all failed in the same way."""
    for unit in units:
        rows = UnitRows(unit)
        rows.add_failure(error)
        yield rows
