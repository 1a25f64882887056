"""From frames to rows: crops travel without copies, nulls and scores are where they belong."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import InputError
from pipeline.messages import FrameResult
from pipeline.rows import (
    CROPS,
    UnitRows,
    annotation_rows,
    boxes_of,
    crops_of,
    crops_table,
    failure_rows,
)
from pipeline.units import Unit

K = 3


def frame(people: int, source: str | None = "given", index: int | None = None) -> FrameResult:
    return FrameResult(
        index,
        None if index is None else 512 * index,
        None if index is None else index / 25,
        640,
        480,
        np.arange(4.0 * people).reshape(people, 4),
        np.linspace(0.9, 0.5, people),
        source,
    )


def unit_rows(
    unit_id: int, people: list[int], shape: tuple[int, ...] = (1, 2, 2, 3), source: str = "given"
) -> UnitRows:
    """A unit with a frame per entry; crop n of it is full of n."""
    kind = "video" if len(people) > 1 else "image"
    rows = UnitRows(Unit(unit_id, 0, f"/{unit_id}", kind))
    number = 0
    for i, count in enumerate(people):
        crops = [np.full(shape, (number + n) % 256, np.uint8).tobytes() for n in range(count)]
        number += count
        rows.add_frame(frame(count, source, i if kind == "video" else None), b"".join(crops))
    return rows


@pytest.mark.parametrize(
    ("units", "people"),
    [
        pytest.param([[1]], 1, id="one"),
        pytest.param([[0]], 0, id="nobody"),
        pytest.param([[0], [0, 0], [0]], 0, id="nobody anywhere"),
        pytest.param([[2], [0], [3], [0, 1, 0]], 6, id="some"),
        pytest.param([[300]], 300, id="a crowd"),
        pytest.param([], 0, id="no units"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (4, 5, 5, 3)])
def test_crops_survive_the_way_to_the_network(
    units: list[list[int]], people: int, shape: tuple[int, ...]
) -> None:
    table = crops_table(unit_rows(i, frames, shape) for i, frames in enumerate(units))
    assert table.schema.equals(CROPS)
    received, _ = travelled(table)
    assert received.equals(table)
    crops = crops_of(received, shape)
    assert crops.shape == (people, *shape)
    expected = [n % 256 for frames in units for n in range(sum(frames))]
    assert [int(crop.max()) for crop in crops] == expected
    assert len(boxes_of(received)) == people


def travelled(table: pa.Table) -> tuple[pa.Table, list[bytes]]:
    """A table as the next actor gets it, and the buffers in the object store that it points to."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(table, 5, buffer_callback=buffers.append)
    stored = [buffer.raw().tobytes() for buffer in buffers]
    return pickle.loads(data, buffers=stored), stored


def test_crops_are_not_copied_on_the_way() -> None:
    received, buffers = travelled(crops_table([unit_rows(0, [5])]))
    crops = crops_of(received, (1, 2, 2, 3))
    first = crops.__array_interface__["data"][0]
    memory = (pa.py_buffer(buffer) for buffer in buffers)
    assert any(m.address <= first < m.address + m.size for m in memory)


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (2, 4), (3, 4)])
def test_crops_of_a_slice_are_those_of_its_rows(start: int, stop: int) -> None:
    table = crops_table([unit_rows(0, [1, 0, 1, 1])]).slice(start, stop - start)
    people = [0, None, 1, 2][start:stop]
    crops = crops_of(table, (1, 2, 2, 3))
    assert crops[:, 0, 0, 0, 0].tolist() == [n for n in people if n is not None]


def keypoints(count: int) -> NDArray[np.float32]:
    """x = 10 n + k, y = 100 n + k, score = 0.2, 0.4, 0.6."""
    n, k = np.mgrid[:count, :K]
    scores = np.broadcast_to([0.2, 0.4, 0.6], (count, K))
    return np.stack([10 * n + k, 100 * n + k, scores], axis=-1).astype(np.float32)


def test_rows_have_exactly_the_schema() -> None:
    failed = UnitRows(Unit(3, 0, "/3", "image"))
    failed.add_failure(InputError("corrupt", "damaged"))
    units = [unit_rows(0, [2]), unit_rows(1, [0]), unit_rows(2, [1, 0]), failed]
    table = annotation_rows(crops_table(units), keypoints(3), K)
    assert table.schema.equals(schema.annotation_table(K))
    table.validate(full=True)
    assert table["unit_id"].to_pylist() == [0, 0, 1, 2, 2, 3]
    assert table["status"].to_pylist() == ["ok", "ok", "no_person", "ok", "no_person", "failed"]
    assert table["media_type"].to_pylist() == ["image"] * 3 + ["video"] * 2 + ["image"]
    assert table["person_index"].to_pylist() == [0, 1, None, 0, None, None]
    assert table["frame_index"].to_pylist() == [None, None, None, 0, 1, None]
    assert table["pts"].to_pylist() == [None, None, None, 0, 512, None]
    assert table["width"].to_pylist() == [640] * 5 + [None]
    assert table["error_code"].to_pylist() == [None] * 5 + ["corrupt"]
    for name in ("box", "box_score", "box_source", "x", "y", "keypoint_score", "score"):
        assert table[name].is_valid().to_pylist() == [True, True, False, True, False, False]
    assert table["x"].to_pylist() == [[0, 1, 2], [10, 11, 12], None, [20, 21, 22], None, None]
    assert table["y"].to_pylist()[3] == [200, 201, 202]
    assert table["keypoint_score"].to_pylist()[0] == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("source", "scores"),
    [
        ("detector", [0.9**0.5 * 0.4, 0.5**0.5 * 0.4]),
        ("person-net", [0.9**0.5 * 0.4, 0.5**0.5 * 0.4]),
        ("given", [0.4, 0.4]),
        ("whole-image", [0.4, 0.4]),
    ],
)
def test_a_score_counts_the_box_where_it_was_found(source: str, scores: list[float]) -> None:
    table = annotation_rows(crops_table([unit_rows(0, [2], source=source)]), keypoints(2), K)
    assert table["score"].to_pylist() == pytest.approx(scores)
    assert table["box_score"].to_pylist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize("units", [[], [[0]], [[0], [0, 0]]])
def test_a_shard_without_people_has_rows_without_keypoints(units: list[list[int]]) -> None:
    table = crops_table(unit_rows(i, frames) for i, frames in enumerate(units))
    rows = annotation_rows(table, np.empty((0, K, 3), np.float32), K)
    assert rows.num_rows == sum(map(len, units))
    assert rows["x"].null_count == rows.num_rows
    assert rows.schema.equals(schema.annotation_table(K))


@pytest.mark.parametrize(
    ("people", "expected"), [(0, ("failed", "bad_box", None)), (1, ("ok", None, 0))]
)
def test_an_unusable_box_fails_only_a_frame_without_others(
    people: int, expected: tuple[str, str | None, int | None]
) -> None:
    rows = UnitRows(Unit(0, 0, "/0", "image"))
    given = frame(people)
    rows.add_frame(FrameResult(**{**vars(given), "box_error": "no area"}), bytes(12 * people))
    [row] = crops_table([rows]).to_pylist()
    assert (row["status"], row["error_code"], row["person_index"]) == expected
    assert row["error_message"] == "no area"


def test_failures_of_several_units_have_a_row_each() -> None:
    units = [Unit(i, 0, f"/{i}", "image") for i in range(3)]
    table = crops_table(failure_rows(units, InputError("internal", "why")))
    assert table["unit_id"].to_pylist() == [0, 1, 2]
    assert set(table["error_message"].to_pylist()) == {"why"}


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("x" * 10_000, "x" * 500),
        ("\udce9 is not text", "\\udce9 is not text"),
        ("a\0b", "a\0b"),
    ],
)
def test_any_message_can_be_written(message: str, written: str) -> None:
    """One that could not be encoded ended the whole shard."""
    rows = UnitRows(Unit(0, 0, "/0", "image"))
    rows.add_failure(InputError("corrupt", message))
    table = crops_table([rows])
    assert table["error_message"].to_pylist() == [written]


def test_frames_before_a_failure_stand() -> None:
    rows = unit_rows(0, [1, 1])
    rows.add_failure(InputError("corrupt", "ends early"))
    table = annotation_rows(crops_table([rows]), keypoints(2), K)
    assert table["status"].to_pylist() == ["ok", "ok", "failed"]
    assert table["frame_index"].to_pylist() == [0, 1, None]


def test_many_views_are_one_crop() -> None:
    table = crops_table([unit_rows(0, [2], (7, 2, 2, 3))])
    assert table["crop"].type == pa.large_binary()
    assert {len(value.as_py()) for value in table["crop"]} == {7 * 12}
