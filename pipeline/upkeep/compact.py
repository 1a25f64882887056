"""A table of many parts as a few large files, sorted by uri."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.commit import FOLDER, SUCCESS, SUMMARY_KEY, done_shards, mark_success, part_name
from pipeline.errors import PosemillError, UsageError
from pipeline.runfile import NAME as RUN_FILE
from pipeline.runfile import read_run_file, utc_now
from pipeline.scratch import batches, scratch
from pipeline.storage import Output, StorageOptions
from pipeline.upkeep.settings import CompactSettings

_ROW_GROUP = 50_000
_ORDER = "uri, unit_id, frame_index NULLS LAST, pts NULLS LAST, person_index NULLS FIRST"


def compact(settings: CompactSettings, on_progress: Callable[[int, int], None]) -> int:
    """Write the rows of a finished output, sorted, below another folder; how many they are.

    The files have the schema and metadata of the parts; columns of `partition_by` stand in their
    folders' names. Raises UsageError for an unfinished output or a folder that is not empty.
    """
    source, plan = settings.planned()
    success = source.read(SUCCESS)
    if success is None:
        raise UsageError(f"{source.uri} is not finished; run posemill annotate to its end first")
    target = Output(settings.to, StorageOptions(settings.s3_endpoint))
    if not target.is_empty():
        raise UsageError(f"{target.uri} is not empty; give another --to")
    done = done_shards(source, range(plan.next_shard))
    parts = [source.path(part_name(shard)) for shard in sorted(done)]
    table = ds.dataset(parts, filesystem=source.arrow_filesystem(), format="parquet")
    total = table.count_rows()
    target.replace(RUN_FILE, json.dumps(_run_file(source), indent=2).encode())
    written = 0
    with scratch(settings.memory) as (sorter, _):
        for values in _partitions(table, settings.partition_by):
            for file, rows in _files(sorter, table, values, settings.rows_per_file):
                target.replace(file, _encode(rows))
                written += rows.num_rows
                on_progress(written, total)
    if written != total or source.read(SUCCESS) != success:
        raise PosemillError(
            f"somebody changed {source.uri} meanwhile; remove {target.uri} and run the same again"
        )
    mark_success(target, {**json.loads(success), "rows": written, "compacted": utc_now()})
    return written


def _partitions(table: ds.Dataset, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The combinations of values that there are, sorted; one empty one without columns."""
    if not columns:
        return [{}]
    keys = table.scanner(columns=list(columns)).to_reader()
    found = pa.concat_tables(
        [pa.table(batch).group_by(list(columns)).aggregate([]) for batch in keys]
        or [keys.schema.empty_table()]
    )
    rows = found.group_by(list(columns)).aggregate([]).to_pylist()
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


def _files(
    sorter: duckdb.DuckDBPyConnection, table: ds.Dataset, values: dict[str, Any], most: int
) -> Iterator[tuple[str, pa.Table]]:
    """Names and rows of the files of one partition."""
    chosen: ds.Expression | None = None
    for name, value in values.items():
        same = ds.field(name).is_null() if value is None else ds.field(name) == value
        chosen = same if chosen is None else chosen & same
    sorter.register("part", table.scanner(filter=chosen).to_reader())
    rows = batches(sorter, f"SELECT * FROM part ORDER BY {_ORDER}", _ROW_GROUP)
    folder = "/".join([FOLDER, *(f"{name}={_spelt(value)}" for name, value in values.items())])
    for number, together in enumerate(_cut(rows, most)):
        yield f"{folder}/{number:05d}.parquet", _typed(together, table, values)
    sorter.unregister("part")


def _cut(rows: Iterator[pa.RecordBatch], most: int) -> Iterator[list[pa.RecordBatch]]:
    """The same rows, `most` at a time but for the last."""
    together, room = list[pa.RecordBatch](), most
    for batch in rows:
        while batch.num_rows >= room:
            yield [*together, batch.slice(0, room)]
            batch, together, room = batch.slice(room), [], most
        together.append(batch)
        room -= batch.num_rows
    if room < most:
        yield together


def _typed(batches: list[pa.RecordBatch], table: ds.Dataset, values: dict[str, Any]) -> pa.Table:
    """Rows in the schema of the parts, with their metadata."""
    about = {k: v for k, v in table.schema.metadata.items() if k != SUMMARY_KEY}
    rows = pa.Table.from_batches(batches).cast(table.schema.with_metadata(about))
    return rows.drop_columns(list(values)) if values else rows


def _spelt(value: object) -> str:
    """As Hive spells a value in a folder's name."""
    return "__HIVE_DEFAULT_PARTITION__" if value is None else quote(str(value), safe="")


def _encode(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()


def _run_file(source: Output) -> dict[str, Any]:
    return {**(read_run_file(source) or {}), "compacted_from": source.uri}
