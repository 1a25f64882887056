"""The inputs of a run beside what is planned: which are new, changed or gone.

Neither fits into memory at 10^9. Inputs are listed into Parquet files in a temporary folder, part
by part and side by side, and compared with the manifest by DuckDB, which spills to that folder.
What stays in memory is a byte per input.
"""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.inputs import Input
from pipeline.listing import THREADS
from pipeline.manifest import Manifest
from pipeline.scratch import batches, scratch
from pipeline.storage import Output
from pipeline.units import boxes_from_rows, boxes_to_rows

_ROWS = 20_000
"""Inputs that are written, and read, at once."""
_MEMORY = 512
"""MiB that DuckDB may take before it spills."""
_LISTED = pa.schema(
    [
        pa.field("part", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        *(schema.MANIFEST.field(name) for name in Input._fields if name != "bad_name"),
        pa.field("bad_name", pa.bool_(), nullable=False),
    ]
)
_STATE = ("uri", "kind", "size", "etag", "mtime", "unit_id", "error_code")
_CHANGED = """coalesce(CASE WHEN l.etag IS NOT NULL AND p.etag IS NOT NULL THEN l.etag <> p.etag
    ELSE l.size <> p.size OR l.mtime <> p.mtime END, false)"""

Part = Callable[[], Iterator[Input]]


@dataclass(frozen=True)
class Tally:
    """How many URIs there are of a kind, and the first of them by name."""

    count: int = 0
    example: str | None = None


class Catalog:
    """Lists inputs once and compares them with a manifest, as often as needed.

    A context: its temporary folder (of TMPDIR; some 200 bytes per input) goes at the end.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._stop = threading.Event()
        self.sizes = np.zeros(0, np.int64)
        self.known = self.changed_count = self.unread_count = 0
        self.vanished = Tally()
        # By position, a running number over all inputs.
        self._is_new = self._is_changed = self._is_due_again = np.zeros(0, np.bool_)

    def __enter__(self) -> Self:
        self._duckdb, self.folder = self._stack.enter_context(scratch(_MEMORY))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(
        self, parts: Sequence[Part], limit: int | None, on_progress: Callable[[int], None]
    ) -> None:
        """List the parts of the inputs, side by side; with a limit in turn, and no further."""
        if limit is not None:
            inputs = islice((item for part in parts for item in part()), limit)
            sizes = [self._list(0, inputs, on_progress)]
        else:
            with ThreadPoolExecutor(THREADS, "list") as pool:
                jobs = [
                    pool.submit(lambda n, part: self._list(n, part(), on_progress), n, part)
                    for n, part in enumerate(parts)
                ]
                try:
                    sizes = [job.result() for job in jobs]
                except BaseException:
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        self.sizes = np.array(sizes, np.int64)

    def compare(
        self,
        manifest: Manifest,
        output: Output,
        roots: Sequence[str],
        redo_changed: bool = False,
        redo_failed: Collection[str] = (),
    ) -> None:
        """Find what is new, changed and gone; `roots` are the folders that were listed whole.

        Planned anew shall be what has changed, with `redo_changed`, and videos that could not even
        be cut into units, for one of the reasons `redo_failed`.
        """
        listed, planned = self._table("listed-*"), self._table("planned")
        self._spool_manifest(manifest, output)
        (first,) = self._flags(f"SELECT min(part << 40 | row) FROM {listed} GROUP BY uri")
        codes = ", ".join(f"'{code}'" for code in redo_failed)
        is_unread = f"p.kind = 'video' AND p.error_code IN ({codes})" if codes else "false"
        known, changed, unread = self._flags(
            f"SELECT part << 40 | row, {_CHANGED}, coalesce({is_unread}, false) "
            f"FROM {listed} l JOIN {planned} p USING (uri)"
        )
        self._is_new, self._is_changed = first & ~known, first & changed
        self.known = int((first & known).sum())
        self.changed_count = int(self._is_changed.sum())
        self.unread_count = int((first & unread).sum())
        self._is_due_again = first & (changed & redo_changed | unread)
        self.vanished = self._gone(planned, listed, roots)

    def first(self) -> Input:
        """The first input of all."""
        return next(self._inputs(np.ones(self.sizes.sum(), np.bool_)))

    def not_listed(self, uris: Iterable[str]) -> Tally:
        """Those of some URIs, each given once, that no input has."""
        fields = pa.schema([schema.MANIFEST.field("uri")])
        left = iter(uris)
        chunks = iter(lambda: list(islice(left, _ROWS)), [])
        given = pa.RecordBatchReader.from_batches(
            fields, (pa.record_batch([chunk], fields) for chunk in chunks)
        )
        cursor = self._duckdb.cursor()
        cursor.register("given", given)
        return _tally(
            cursor.execute(
                "SELECT count(*), min(uri) FROM given "
                f"ANTI JOIN {self._table('listed-*')} USING (uri)"
            )
        )

    def contradictory(self) -> Tally:
        """Inputs that are listed more than once, and not with the same boxes each time."""
        # To DuckDB, the hash of no boxes is that of an empty list of them.
        return _tally(
            self._duckdb.execute(
                f"SELECT count(*), min(uri) FROM (SELECT uri FROM {self._table('listed-*')} "
                "GROUP BY uri HAVING min(hash(boxes)) <> max(hash(boxes)) "
                "OR count(boxes) BETWEEN 1 AND count(*) - 1)"
            )
        )

    def new(self) -> Iterator[Input]:
        """Inputs that are not planned, in their order, each once."""
        return self._inputs(self._is_new)

    def changed(self) -> Iterator[Input]:
        """Inputs that are not what they were when they were planned, in their order."""
        return self._inputs(self._is_changed)

    def again(self) -> Iterator[Input]:
        """Inputs that shall be planned anew, in their order."""
        return self._inputs(self._is_due_again)

    def units_of_again(self, manifest: Manifest, output: Output) -> Iterator[pa.RecordBatch] | None:
        """`unit_id` and `shard` of what counts still of inputs that shall be planned anew; None
        where there are none."""
        if not self._is_due_again.any():
            return None
        fields = pa.schema([schema.MANIFEST.field("uri")])
        uris = pa.RecordBatchReader.from_batches(fields, self._rows(self._is_due_again, ["uri"]))
        units = manifest.units(output, ["uri", "unit_id", "shard"])
        retired = manifest.retired_units(output)
        cursor = self._duckdb.cursor()
        for name, table in (("uris", uris), ("units", units), ("retired", retired)):
            cursor.register(name, table)
        query = (
            "SELECT unit_id, shard FROM units SEMI JOIN uris USING (uri) "
            "ANTI JOIN retired USING (unit_id) ORDER BY unit_id"
        )
        return batches(cursor, query, _ROWS)

    def _list(self, part: int, inputs: Iterator[Input], on_progress: Callable[[int], None]) -> int:
        """Write a part's inputs; how many they are."""
        count = 0
        with pq.ParquetWriter(self.folder / f"listed-{part:06d}.parquet", _LISTED) as writer:
            while not self._stop.is_set() and (batch := list(islice(inputs, _ROWS))):
                values = zip(*batch, strict=True)
                columns: dict[str, Any] = dict(zip(Input._fields, values, strict=True))
                columns["boxes"] = [boxes_to_rows(boxes) for boxes in columns["boxes"]]
                columns["part"] = np.full(len(batch), part)
                columns["row"] = np.arange(count, count + len(batch))
                writer.write_table(pa.table(columns, _LISTED))
                count += len(batch)
                on_progress(len(batch))
        return count

    def _spool_manifest(self, manifest: Manifest, output: Output) -> None:
        """One row per planned input, that of its first unit that counts."""
        retired = np.sort(np.asarray(manifest.retired_units(output)["unit_id"], np.int64))
        last = None
        fields = pa.schema([schema.MANIFEST.field(name) for name in _STATE])
        with pq.ParquetWriter(self.folder / "planned.parquet", fields) as writer:
            for batch in manifest.units(output, list(_STATE)):
                live = batch.filter(pa.array(~_are_in(retired, np.asarray(batch["unit_id"]))))
                if not live.num_rows:
                    continue
                uris = live["uri"]
                # The units of one input follow each other.
                before = pa.concat_arrays([pa.array([last], pa.string()), uris[:-1]])
                last = uris[-1].as_py()
                keep = pc.fill_null(pc.not_equal(uris, before), True)
                writer.write_batch(live.filter(keep).cast(fields))

    def _flags(self, query: str) -> list[NDArray[np.bool_]]:
        """By position: whether a query names it, as `part << 40 | row`, and its other columns."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        columns = self._duckdb.sql(query).columns
        flags = [np.zeros(starts[-1], np.bool_) for _ in columns]
        for batch in batches(self._duckdb, query, _ROWS):
            places = np.asarray(batch.column(0), np.int64)
            at = starts[places >> 40] + (places & ((1 << 40) - 1))
            flags[0][at] = True
            for flag, column in zip(flags[1:], batch.columns[1:], strict=True):
                flag[at] = np.asarray(column)
        return flags

    def _table(self, name: str) -> str:
        """Files of the temporary folder in SQL."""
        # The folder's name may hold what means something in a pattern or in SQL.
        folder = glob.escape(str(self.folder)).replace("'", "''")
        return f"read_parquet('{folder}/{name}.parquet')"

    def _gone(self, planned: str, listed: str, roots: Sequence[str]) -> Tally:
        """Planned inputs that a listing of their folder does not have any more."""
        if not roots:
            return Tally()
        under = " OR ".join("starts_with(uri, ?)" for _ in roots)
        return _tally(
            self._duckdb.execute(
                f"SELECT count(*), min(uri) FROM (FROM {planned} WHERE {under}) "
                f"ANTI JOIN {listed} USING (uri)",
                [f"{root.rstrip('/')}/" for root in roots],
            )
        )

    def _inputs(self, wanted: NDArray[np.bool_]) -> Iterator[Input]:
        for batch in self._rows(wanted, list(Input._fields)):
            columns = {name: batch[name].to_pylist() for name in Input._fields}
            columns["boxes"] = [boxes_from_rows(rows) for rows in columns["boxes"]]
            yield from map(Input, *columns.values())

    def _rows(self, wanted: NDArray[np.bool_], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the inputs at the positions that are marked, in their order."""
        start = 0
        for part, size in enumerate(self.sizes):
            flags, start = wanted[start : start + size], start + int(size)
            if not flags.any():
                continue
            row = 0
            file = pq.ParquetFile(self.folder / f"listed-{part:06d}.parquet")
            for batch in file.iter_batches(_ROWS, columns=columns):
                yield batch.filter(pa.array(flags[row : row + batch.num_rows])).select(columns)
                row += batch.num_rows


def _tally(answer: duckdb.DuckDBPyConnection) -> Tally:
    # All rows: an answer that is not read to its end keeps the connection.
    [row] = answer.fetchall()
    return Tally(*row)


def _are_in(ids: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are among the sorted ids."""
    if not len(ids):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    found: NDArray[np.bool_] = ids[places] == values
    return found
