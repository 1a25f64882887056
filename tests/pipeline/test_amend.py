"""Parts that are amended: what is done again, what stays, what goes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline import commit as commit_module
from pipeline import schema
from pipeline.amend import commit, units_to_do
from pipeline.commit import amend_part, commit_part, part_summaries, read_part
from pipeline.errors import PosemillError
from pipeline.manifest import Manifest, ManifestWriter, ShardRef, open_file
from pipeline.storage import Output
from pipeline.summary import Summary
from pipeline.units import Unit
from pipeline.work import find_work, stale_shards
from tests.pipeline.conftest import Place

SCHEMA = schema.annotation_table(1)


def row(unit: int, frame: int | None = None, person: int | None = 0, code: str = "") -> Any:
    values: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    values |= {"unit_id": unit, "uri": f"/{unit}.mp4", "media_type": "video", "pts": frame}
    if code:
        return values | {"status": "failed", "error_code": code}
    status = "ok" if person is not None else "no_person"
    return values | {"status": status, "person_index": person, "frame_index": frame}


def table(*rows: Any) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def put(output: Output, shard: int, rows: pa.Table) -> None:
    assert commit_part(output, shard, rows, {}, Summary.of(rows))


def amended(output: Output, ref: ShardRef, *rows: Any) -> list[tuple[int, int | None, str]]:
    new = table(*rows)
    commit(output, ref, new, Summary.of(new), {})
    found = read_part(output, ref.shard).to_pylist()
    return [(r["unit_id"], r["pts"], r["error_code"] or r["status"]) for r in found]


REF = ShardRef(0, "file", 0, 3, amend=True, redo=())


def test_a_unit_that_is_done_again_takes_the_place_of_its_rows(store: Place) -> None:
    output = store.output()
    put(output, 0, table(row(0), row(1, code="timeout"), row(2)))
    assert amended(output, REF, row(1, 0), row(1, 1)) == [
        (0, None, "ok"),
        (1, 0, "ok"),
        (1, 1, "ok"),
        (2, None, "ok"),
    ]
    [summary] = part_summaries(output, [0])
    assert (summary.units, summary.failed_units) == (3, 0)


def test_a_worse_attempt_changes_nothing(store: Place) -> None:
    """Five good frames of a video are not given up as it has gone since."""
    output = store.output()
    good = [row(1, i) for i in range(5)]
    before = [(1, i, "ok") for i in range(5)] + [(1, None, "timeout")]
    put(output, 0, table(*good, row(1, code="timeout")))
    assert amended(output, REF, row(1, code="not_found")) == before
    assert amended(output, REF, row(1, 0), row(1, code="timeout")) == before
    assert amended(output, REF, *(row(1, i, None) for i in range(6))) == [
        (1, i, "no_person") for i in range(6)
    ]


def test_a_failure_that_fails_in_another_way_is_noted(store: Place) -> None:
    output = store.output()
    put(output, 0, table(row(1, code="timeout")))
    assert amended(output, REF, row(1, code="corrupt")) == [(1, None, "corrupt")]


def test_retired_units_go_whatever_they_had(store: Place) -> None:
    output = store.output()
    put(output, 0, table(row(0), *(row(1, i) for i in range(3))))
    ref = ShardRef(0, "file", 0, 1, retired=(1,), amend=True)
    assert amended(output, ref) == [(0, None, "ok")]
    ref = ShardRef(0, "file", 0, 0, retired=(0, 1), amend=True)
    assert amended(output, ref) == []
    assert list(part_summaries(output, [0])) == [Summary(shards=1)]


def test_a_part_that_changes_all_the_time_is_told(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = store.output()
    put(output, 0, table(row(0)))
    monkeypatch.setattr(commit_module.time, "sleep", lambda _: None)
    monkeypatch.setattr(output, "replace_if", lambda name, data, version: False)
    with pytest.raises(PosemillError, match="changed 5 times"):
        amend_part(output, 0, lambda rows: rows, {})


def planned(output: Output) -> Manifest:
    """Shards of units 0 to 2 and 3 to 5; unit 1 is retired by a later one."""
    for generation, shards in enumerate([[range(3), range(3, 6)], [range(6, 7)]]):
        before = Manifest.load(output)
        writer = ManifestWriter(output, generation)
        for shard, units in enumerate(shards, before.next_shard):
            writer.add_shard([Unit(n, shard, f"/{n}.jpg", "image") for n in units])
        if generation:
            writer.retire([pa.RecordBatch.from_pydict({"unit_id": [1], "shard": [0]})])
        next_unit = shards[-1][-1] + 1
        assert writer.complete(next_unit, before.next_shard + len(shards))
    return Manifest.load(output)


def test_what_is_to_do(store: Place) -> None:
    output = store.output()
    refs = list(planned(output).shards(output))
    assert [(ref.units, ref.retired) for ref in refs] == [(2, (1,)), (3, ()), (1, ())]
    work = find_work(output, refs, None)
    assert ([ref.shard for ref in work.shards], work.pending, work.finished) == ([0, 1, 2], 6, [])

    put(output, 0, table(row(0), row(1), row(2)))
    put(output, 1, table(row(3), row(4, code="timeout"), row(5, code="corrupt")))
    work = find_work(output, refs, None)
    assert [(ref.shard, ref.amend) for ref in work.shards] == [(0, True), (2, False)]
    assert (work.pending, work.finished) == (1, [1])
    assert stale_shards(output, refs) == {0}

    for codes, expected in ((("timeout",), 1), ((), 2), (("storage",), 0)):
        work = find_work(output, refs, codes)
        assert (work.pending, 1 in work.finished) == (1 + expected, not expected)


@pytest.mark.parametrize(
    ("codes", "units"), [(None, []), ((), [4, 5]), (("corrupt",), [5]), (("storage",), [])]
)
def test_units_of_a_part_that_are_done_again(
    store: Place, codes: tuple[str, ...] | None, units: list[int]
) -> None:
    output = store.output()
    ref = list(planned(output).shards(output))[1]
    put(output, 1, table(row(3), row(4, code="timeout"), row(5, code="corrupt")))
    again = ShardRef(**{**vars(ref), "amend": True, "redo": codes})
    file = open_file(output, ref.file)
    assert [unit.unit_id for unit in units_to_do(output, again, file)] == units
    assert [unit.unit_id for unit in units_to_do(output, ref, file)] == [3, 4, 5]


def test_frames_that_failed_count_their_unit_once() -> None:
    """A video with 300 frames without a box is one failed unit."""
    summary = Summary.of(table(*(row(1, i, code="bad_box") for i in range(300)), row(2)))
    assert (summary.failed, summary.failed_units, summary.units) == ({"bad_box": 1}, 1, 2)
