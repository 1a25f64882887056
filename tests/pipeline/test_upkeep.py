"""status, verify, gc and compact on outputs that are made, and broken, by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import compact as compact_job
from jobs import gc as gc_job
from jobs import status as status_job
from jobs import verify as verify_job
from pipeline import schema
from pipeline.commit import commit_part, mark_success, part_name
from pipeline.errors import UsageError
from pipeline.lock import Lock
from pipeline.manifest import Manifest, ManifestWriter
from pipeline.runfile import RunFile
from pipeline.storage import Output
from pipeline.summary import Summary
from pipeline.units import Unit
from pipeline.upkeep.settings import StatusSettings, VerifySettings
from pipeline.upkeep.status import status
from pipeline.upkeep.verify import Findings, verify
from tests.pipeline.conftest import Place

SCHEMA = schema.annotation_table(2)
METADATA = {schema.METADATA_KEY: json.dumps({"fingerprint": "f"}).encode()}


def unit(number: int, shard: int) -> Unit:
    # Planned in another order than that of the URIs.
    return Unit(number, shard, f"/in/{(7 * number) % 10}.jpg", "image", 10)


def rows_of(number: int, people: int = 1, code: str | None = None) -> list[dict[str, Any]]:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"unit_id": number, "uri": unit(number, 0).uri, "media_type": "image"}
    if code is not None:
        return [row | {"status": "failed", "error_code": code, "error_message": "bad"}]
    row |= {"status": "ok", "x": [1.0, number], "box": [0, 0, 1, 1], "score": 0.5}
    return [row | {"person_index": i} for i in range(people)]


def write_part(output: Output, shard: int, rows: list[dict[str, Any]], **metadata: str) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    described = {schema.METADATA_KEY: json.dumps(metadata).encode()} if metadata else METADATA
    assert commit_part(output, shard, table, described, Summary.of(table))


def make(store: Place, parts: int = 3) -> Output:
    """Shards of 4, 3 and 3 units; two people in unit 1, a failure in unit 5."""
    output = store.output()
    RunFile(output, {"weights": "w"}).begin({"fingerprint": "f"})
    writer = ManifestWriter(output, 0)
    shards = [range(4), range(4, 7), range(7, 10)]
    for shard, numbers in enumerate(shards):
        writer.add_shard([unit(n, shard) for n in numbers])
    assert writer.complete(10, 3)
    for shard, numbers in list(enumerate(shards))[:parts]:
        rows = [
            row
            for n in numbers
            for row in rows_of(n, 2 if n == 1 else 1, "corrupt" if n == 5 else None)
        ]
        write_part(output, shard, rows)
    if parts == 3:
        mark_success(output, {"units": 10})
    return output


def checked(output: Output) -> Findings:
    return verify(VerifySettings(output=output.uri), lambda done, total: None)


def test_a_finished_output_is_clean(store: Place, capsys: pytest.CaptureFixture[str]) -> None:
    output = make(store)
    found = checked(output)
    assert (found.units, found.rows, found.failed_units, found.wrong) == (10, 11, 1, {})
    assert verify_job.main([output.uri]) == 0
    assert capsys.readouterr().out == "10 units, 11 rows, 1 units failed\nclean\n"


def wrong(output: Output) -> dict[str, int]:
    return dict(checked(output).wrong)


def replaced(output: Output, rows: list[dict[str, Any]], **metadata: str) -> None:
    output.remove(part_name(0))
    write_part(output, 0, rows, **metadata)


GOOD = [row for n in range(4) for row in rows_of(n)]


def test_a_shard_that_is_missing_is_found(store: Place) -> None:
    output = make(store)
    output.remove(part_name(1))
    assert wrong(output) == {"unit without rows": 3, "_SUCCESS that is not true": 1}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (GOOD[1:], {"unit without rows": 1, "_SUCCESS that is not true": 1}),
        ([*GOOD, GOOD[2]], {"doubled row": 1}),
        ([*GOOD, *rows_of(8)], {"unit that is not planned there": 1}),
    ],
)
def test_what_is_wrong_within_a_part_is_found(
    store: Place, rows: list[dict[str, Any]], expected: dict[str, int]
) -> None:
    output = make(store)
    replaced(output, rows)
    assert wrong(output) == expected


def test_a_part_of_other_settings_is_found(store: Place) -> None:
    output = make(store)
    replaced(output, GOOD, fingerprint="g")
    assert wrong(output) == {"part made with other settings": 1}


def test_a_part_that_is_not_what_it_says_is_found(store: Place) -> None:
    output = make(store)
    output.remove(part_name(0))
    table = pa.Table.from_pylist(GOOD, schema=SCHEMA)
    commit_part(output, 0, table, METADATA, Summary(units=4, rows=9))
    assert wrong(output) == {"part whose summary is not its content": 1}


@pytest.mark.parametrize("data", [b"", b"PAR1 and no more", b"\0" * 1000])
def test_a_damaged_part_is_found(store: Place, data: bytes) -> None:
    output = make(store)
    output.replace(part_name(0), data)
    assert wrong(output) == {"part that cannot be read": 1, "_SUCCESS that is not true": 1}


LEFT = [
    "annotations/00000/.posemill-abc",
    "annotations/00000/part-000000003.parquet",
    "annotations/part-000000000.parquet",
    "annotations/notes.txt",
    "manifest/gen-00000/00007-dead.parquet",
    "manifest/gen-00001/00000-dead.parquet",
    ".posemill-def",
]


def test_what_is_left_over_is_found_and_removed(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts and other people's files are told and left alone."""
    output = make(store)
    before = store.names()
    # In a bucket nothing is ever written by halves.
    left = [name for name in LEFT if store.s3 is None or ".posemill-" not in name]
    for name in left:
        store.put(f"out/{name}", b"x")
    assert wrong(output) == {"file that belongs to no shard or plan": len(left)}
    assert gc_job.main([output.uri, "--dry-run"]) == 0
    assert len(store.names()) == len(before) + len(left)
    assert gc_job.main([output.uri]) == 0
    assert sorted({*store.names()} - {*before}) == [
        "out/annotations/00000/part-000000003.parquet",
        "out/annotations/notes.txt",
        "out/annotations/part-000000000.parquet",
    ]
    assert {*before} <= {*store.names()}
    told = capsys.readouterr().out
    assert told.count("would be removed: ") == len(left) - 3
    assert told.count("\nremoved: ") == len(left) - 3
    assert "left alone, as no plan knows it: annotations/notes.txt" in told


def test_gc_removes_nothing_of_a_plan_that_it_cannot_follow(store: Place) -> None:
    """Generation 0 is gone by some accident: the later one is complete all the same."""
    output = make(store)
    writer = ManifestWriter(output, 2)
    writer.add_shard([unit(10, 3)])
    assert writer.complete(11, 4)
    before = store.names()
    assert gc_job.main([output.uri]) == 0
    assert store.names() == before


def test_gc_waits_for_nobody_who_is_at_work(store: Place) -> None:
    output = make(store)
    with Lock(output, (0, 2), print):
        assert gc_job.main([output.uri]) == 4


def test_status_of_a_run_at_work(store: Place, capsys: pytest.CaptureFixture[str]) -> None:
    output = store.output()
    with Lock(output, (0, 1), print) as lock:
        make(store, parts=2)
        found = status(StatusSettings(output=output.uri))
        assert (found.units, found.done.units, found.left) == (10, 7, 3)
        assert found.failed == {"corrupt": 1}
        assert found.rate > 0
        assert [holder["run"] for holder in found.holders] == [lock.me["run"]]
        assert status_job.main([output.uri]) == 0
    told = capsys.readouterr().out
    assert "7 of 10 units done (70.0 %), 3 left" in told
    assert "  corrupt: 1" in told
    assert f"at work: process {lock.me['pid']} of {lock.me['user']}" in told
    assert "units per second" in told


def test_status_of_a_run_that_was_killed(store: Place, capsys: pytest.CaptureFixture[str]) -> None:
    output = make(store, parts=1)
    with Lock(output, (0, 1), print) as lock:
        gone = {**lock.me, "process_start": "1", "pid": 1}
        output.replace(lock.name, json.dumps(gone).encode())
        assert status(StatusSettings(output=output.uri)).rate == 0
        assert status_job.main([output.uri]) == 0
    told = capsys.readouterr().out
    assert "gone, and its lock is left: process 1 of" in told
    assert "not complete, and nobody is at work" in told


@pytest.mark.parametrize("data", [b"", b"{", b"null"])
def test_a_damaged_lock_is_no_end(store: Place, data: bytes) -> None:
    output = make(store, parts=1)
    output.replace("_locks/1-of-1", data)
    assert status_job.main([output.uri]) == 0


def test_a_damaged_part_is_named_and_how_to_mend_it(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make(store)
    output.replace(part_name(1), b"PAR1")
    assert status_job.main([output.uri]) == 1
    told = capsys.readouterr().err
    assert part_name(1) in told
    assert "remove it, and run the same annotate command again" in told


def test_a_damaged_run_file_is_named(store: Place, capsys: pytest.CaptureFixture[str]) -> None:
    output = make(store)
    output.replace("run.json", b"{")
    assert verify_job.main([output.uri]) == 2
    assert "run.json is damaged" in capsys.readouterr().err


def test_of_two_that_begin_with_other_settings_one_stays(store: Place) -> None:
    """As a job array starts them: both looked when there was nothing yet."""
    output = store.output()
    one, two = RunFile(output, {"weights": "a"}), RunFile(output, {"weights": "b"})
    one.check()
    two.check()
    one.begin({"fingerprint": "1"})
    with pytest.raises(UsageError, match="made with other settings"):
        two.begin({"fingerprint": "2"})
    RunFile(output, {"weights": "a"}).begin({"fingerprint": "1"})
    one.finish({}, {"partition": "1/2"})
    one.finish({}, {"partition": "2/2"})
    runs = json.loads(output.read("run.json") or b"")["runs"]
    assert [run["partition"] for run in runs] == ["1/2", "2/2"]


def test_an_output_of_something_else_is_refused(store: Place) -> None:
    output = store.output()
    output.replace("run.json", b'{"identity": 1}')
    with pytest.raises(UsageError, match="holds something else than annotations"):
        RunFile(output, {}).check()


def test_status_of_an_output_that_rests(store: Place, capsys: pytest.CaptureFixture[str]) -> None:
    output = make(store, parts=1)
    assert status_job.main([output.uri]) == 0
    assert "not complete, and nobody is at work" in capsys.readouterr().out


def test_retired_units_are_not_missing(store: Place) -> None:
    output = make(store)
    writer = ManifestWriter(output, 1)
    writer.add_shard([unit(10, 3)])
    writer.retire([pa.RecordBatch.from_pydict({"unit_id": [2], "shard": [0]})])
    assert writer.complete(11, 4)
    assert Manifest.load(output).retired_files
    assert wrong(output) == {
        "unit that is not planned there": 1,
        "unit without rows": 1,
        "no _SUCCESS": 1,
    }
    replaced(output, [row for row in GOOD if row["unit_id"] != 2])
    write_part(output, 3, rows_of(10))
    mark_success(output, {"units": 10})
    assert wrong(output) == {}


def compacted(store: Place, *words: str) -> list[pa.Table]:
    """The files of the copy by name, read one by one."""
    target = Output(f"{store.uri}/small", store.output().options)
    assert compact_job.main([store.output().uri, "--to", target.uri, *words]) == 0
    assert json.loads(target.read("_SUCCESS") or b"")["rows"] == 11
    tables = []
    for name in target.list("annotations"):
        data = target.read(f"annotations/{name}")
        assert data is not None
        tables.append(pq.read_table(io.BytesIO(data)))
    return tables


@pytest.mark.parametrize(("most", "sizes"), [("4", [4, 4, 3]), ("500", [11]), ("11", [11])])
def test_a_compact_copy_has_the_same_rows_by_uri(store: Place, most: str, sizes: list[int]) -> None:
    output = make(store)
    before = [read(output, shard) for shard in range(3)]
    tables = compacted(store, "--rows-per-file", most)
    assert [table.num_rows for table in tables] == sizes
    assert all(table.schema.equals(SCHEMA) for table in tables)
    assert all(list(table.schema.metadata) == [schema.METADATA_KEY] for table in tables)
    copy = pa.concat_tables(tables)
    assert copy["uri"].to_pylist() == sorted(copy["uri"].to_pylist())
    keys = [("unit_id", "ascending"), ("person_index", "ascending")]
    assert copy.sort_by(keys).equals(pa.concat_tables(before).sort_by(keys))


def read(output: Output, shard: int) -> pa.Table:
    data = output.read(part_name(shard))
    assert data is not None
    return pq.read_table(io.BytesIO(data))


def test_a_compact_copy_in_folders(tmp_path: Any) -> None:
    """As Hive names them: DuckDB finds the columns again."""
    store = Place(str(tmp_path), str(tmp_path))
    make(store)
    assert len(compacted(store, "--partition-by", "status", "error_code")) == 2
    pattern = f"{tmp_path}/small/annotations/**/*.parquet"
    query = f"SELECT status, error_code, count(*) FROM '{pattern}' GROUP BY ALL ORDER BY ALL"
    assert duckdb.sql(query).fetchall() == [("failed", "corrupt", 1), ("ok", None, 10)]


def test_a_compact_copy_is_made_of_finished_outputs_into_empty_folders(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make(store, parts=2)
    words = [output.uri, "--to", f"{store.uri}/small"]
    assert compact_job.main(words) == 2
    assert "is not finished" in capsys.readouterr().err
    write_part(output, 2, [row for n in range(7, 10) for row in rows_of(n)])
    mark_success(output, {"units": 10})
    assert compact_job.main(words) == 0
    assert compact_job.main(words) == 2
    assert "is not empty" in capsys.readouterr().err
    assert verify_job.main([f"{store.uri}/small"]) == 2
    assert f"is a copy made by compact; give {output.uri}" in capsys.readouterr().err
    store.put("deep/er/file.txt", b"x")
    assert compact_job.main([*words[:2], f"{store.uri}/deep"]) == 2
    assert "is not empty" in capsys.readouterr().err
    copy = Output(f"{store.uri}/small", output.options)
    with pytest.raises(UsageError, match="made by compact"):
        RunFile(copy, {}).check()


@pytest.mark.parametrize("job", [status_job, verify_job, gc_job, compact_job])
def test_a_place_that_is_no_output_is_refused(
    job: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--to", f"{tmp_path}/x"] if job is compact_job else []
    assert job.main([str(tmp_path), *more]) == 2
    assert "is no output of posemill annotate" in capsys.readouterr().err
    assert job.main([str(tmp_path), "another", *more]) == 2
    assert "expected one OUTPUT" in capsys.readouterr().err


def test_rows_of_a_video_keep_their_order(store: Place) -> None:
    """Frames by number, people by rank, what failed at the end."""
    output = store.output()
    RunFile(output, {}).begin({"fingerprint": "f"})
    writer = ManifestWriter(output, 0)
    writer.add_shard([Unit(0, 0, "/v.mp4", "video")])
    assert writer.complete(1, 1)
    common = rows_of(0)[0] | {"uri": "/v.mp4", "media_type": "video"}
    rows = [
        common | {"frame_index": frame, "pts": frame * 10, "person_index": person}
        for frame in range(12)
        for person in range(2)
    ]
    rows.append(common | {"status": "failed", "error_code": "corrupt"} | {"person_index": None})
    write_part(output, 0, rows)
    mark_success(output, {"units": 1})
    target = Output(f"{store.uri}/small", output.options)
    assert compact_job.main([output.uri, "--to", target.uri]) == 0
    copy = read_file(target, "annotations/00000.parquet")
    np.testing.assert_array_equal(copy["frame_index"].to_pylist(), [r["frame_index"] for r in rows])
    np.testing.assert_array_equal(
        copy["person_index"].to_pylist(), [r["person_index"] for r in rows]
    )


def read_file(output: Output, name: str) -> pa.Table:
    data = output.read(name)
    assert data is not None
    return pq.read_table(io.BytesIO(data))
