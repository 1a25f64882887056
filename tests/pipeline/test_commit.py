"""Parts: one per shard, created once, under a name that tells which."""

from __future__ import annotations

import io

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.commit import (
    FOLDER,
    commit_part,
    done_shards,
    mark_success,
    part_name,
    part_summaries,
    unmark_success,
)
from pipeline.storage import Output
from pipeline.summary import Summary
from tests.pipeline.conftest import OPTIONS, Place

TABLE = pa.table({"unit_id": [1, 2], "x": [[0.5], None]})


@pytest.mark.parametrize(
    ("shard", "name"),
    [
        (0, "annotations/00000/part-000000000.parquet"),
        (9_999, "annotations/00000/part-000009999.parquet"),
        (10_000, "annotations/00001/part-000010000.parquet"),
        (123_456_789, "annotations/12345/part-123456789.parquet"),
    ],
)
def test_a_part_is_named_after_its_shard(shard: int, name: str) -> None:
    assert part_name(shard) == name


def test_a_part_is_committed_once(store: Place) -> None:
    output = store.output()
    assert commit_part(output, 3, TABLE, {b"posemill": b"{}"}, Summary(rows=1))
    assert not commit_part(output, 3, TABLE.slice(1), {}, Summary(rows=2))
    data = output.read(part_name(3))
    assert data is not None
    table = pq.read_table(io.BytesIO(data))
    assert table.equals(TABLE)
    assert table.schema.metadata[b"posemill"] == b"{}"
    assert list(part_summaries(output, {3})) == [Summary(rows=1)]


def test_what_is_done_is_what_is_there(store: Place) -> None:
    output = store.output()
    assert done_shards(output, range(3)) == set()
    for shard in (0, 7, 10_001):
        commit_part(output, shard, TABLE, {}, Summary(rows=shard))
    for foreign in (
        "00000/notes.txt",
        "00000/part-1.parquet",
        "00000/part-000000002.parquet.tmp",
        "part-000000003.parquet",
        "00000/.posemill-abc",
        "00000/deep/part-000000004.parquet",
    ):
        store.put(f"out/{FOLDER}/{foreign}", b"x")
    assert done_shards(output, range(10_002)) == {0, 7, 10_001}
    assert done_shards(output, [7, 8]) == {7}
    assert list(part_summaries(output, {10_001, 0})) == [Summary(rows=0), Summary(rows=10_001)]


def test_parts_open_as_one_table(tmp_path: object) -> None:
    output = Output(f"{tmp_path}/out", OPTIONS)
    for shard in (0, 10_000):
        commit_part(output, shard, TABLE, {}, Summary())
    assert ds.dataset(f"{tmp_path}/out/annotations").to_table().num_rows == 4
    query = f"select count(*), count(x) from '{tmp_path}/out/annotations/**/*.parquet'"
    assert duckdb.connect().execute(query).fetchall() == [(4, 2)]


def test_success_comes_and_goes(store: Place) -> None:
    output = store.output()
    unmark_success(output)
    mark_success(output, {"units": 3})
    assert output.read("_SUCCESS") == b'{\n  "units": 3\n}'
    unmark_success(output)
    assert output.read("_SUCCESS") is None
