"""The manifest: every unit of a run, in append-only generations, frozen shard by shard.

A generation is written as files under `manifest/gen-00000/` and counts once its `_COMPLETE` stands,
which names them. One row group is one shard, so that a worker reads its shard and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.commit import unmark_success
from pipeline.storage import Output, until_whole
from pipeline.units import Unit, from_table, to_table

FOLDER = "manifest"
COMPLETE = "_COMPLETE"
_SHARDS_PER_FILE = 500


@dataclass(frozen=True)
class ShardRef:
    """Where a shard's units stand, and how many count: those that are not `retired`.

    With `amend` the shard has a part already: retired units lose their rows, and units that failed
    with one of the codes of `redo` (None: none, empty: any) are done again.
    """

    shard: int
    file: str
    row_group: int
    units: int
    retired: tuple[int, ...] = ()
    amend: bool = False
    redo: tuple[str, ...] | None = None


class ManifestWriter:
    """Writes one generation; nothing of it counts before `complete`.

    Several drivers may plan the same generation at once: their files have different names, and the
    first to complete wins.
    """

    def __init__(self, output: Output, generation: int) -> None:
        self.output = output
        self.folder = f"{FOLDER}/gen-{generation:05d}"
        self.files: list[str] = []
        self.retired: str | None = None
        self._writer_id = uuid.uuid4().hex[:8]
        self._buffer: io.BytesIO | None = None
        self._writer: pq.ParquetWriter | None = None
        self._shards_in_file = 0

    def add_shard(self, units: list[Unit]) -> None:
        """Append a shard."""
        if self._writer is None:
            self._buffer = io.BytesIO()
            # To make dictionaries of a hundred values each would double the time, and take room.
            self._writer = pq.ParquetWriter(
                self._buffer, schema.MANIFEST, compression="zstd", use_dictionary=False
            )
        self._writer.write_table(to_table(units), row_group_size=len(units))
        self._shards_in_file += 1
        if self._shards_in_file == _SHARDS_PER_FILE:
            self._flush()

    def retire(self, units: Iterable[pa.RecordBatch]) -> None:
        """Units (`unit_id`, `shard`) of earlier generations that count no more once this one does.

        The leading underscore keeps the file out of `manifest` as a table.
        """
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, schema.RETIRED, compression="zstd") as writer:
            for batch in units:
                writer.write_batch(batch.cast(schema.RETIRED))
        self.retired = f"_retired-{self._writer_id}.parquet"
        self.output.replace(f"{self.folder}/{self.retired}", sink.getvalue())

    def complete(self, next_unit: int, next_shard: int) -> bool:
        """Make the generation count; False if another driver's stands already.

        Files that are left of other attempts are removed: they would show in `manifest` as a table.
        """
        self._flush()
        unmark_success(self.output)
        document = {
            "files": self.files,
            "retired": self.retired,
            "next_unit": next_unit,
            "next_shard": next_shard,
        }
        name = f"{self.folder}/{COMPLETE}"
        won = self.output.create(name, json.dumps(document).encode())
        # A request that is sent again after its answer was lost finds its own file.
        won = won or json.loads(self.output.read(name) or b"{}").get("files") == self.files
        mine = {*self.files, self.retired}
        for file in self.output.list(self.folder):
            if file != COMPLETE and (file in mine) != won:
                self.output.remove(f"{self.folder}/{file}")
        return won

    def _flush(self) -> None:
        if self._writer is None:
            return
        assert self._buffer is not None
        self._writer.close()
        file = f"{len(self.files):05d}-{self._writer_id}.parquet"
        self.output.replace(f"{self.folder}/{file}", self._buffer.getvalue())
        self.files.append(file)
        self._writer, self._buffer, self._shards_in_file = None, None, 0


@dataclass(frozen=True)
class Manifest:
    """What is planned so far."""

    files: tuple[str, ...] = ()
    generations: int = 0
    next_unit: int = 0
    next_shard: int = 0
    retired_files: tuple[str, ...] = ()

    @classmethod
    def load(cls, output: Output) -> Manifest:
        """The complete generations of an output."""
        files: list[str] = []
        retired: list[str] = []
        generations, next_unit, next_shard = 0, 0, 0
        while True:
            folder = f"{FOLDER}/gen-{generations:05d}"
            if (document := output.read(f"{folder}/{COMPLETE}")) is None:
                return cls(tuple(files), generations, next_unit, next_shard, tuple(retired))
            values = json.loads(document)
            files += [f"{folder}/{file}" for file in values["files"]]
            if name := values.get("retired"):
                retired.append(f"{folder}/{name}")
            next_unit, next_shard = values["next_unit"], values["next_shard"]
            generations += 1

    @property
    def folders(self) -> set[str]:
        """Names of the folders of the generations, within that of the manifest."""
        return {f"gen-{number:05d}" for number in range(self.generations)}

    def shards(self, output: Output) -> Iterator[ShardRef]:
        """All shards in order."""
        order = [("shard", "ascending"), ("unit_id", "ascending")]
        table = self.retired_units(output).sort_by(order)
        retired, of_shard = (np.asarray(table[name], np.int64) for name in ("unit_id", "shard"))
        shard = 0
        for name in self.files:
            with opened(output, name) as file:
                units = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            for group, count in enumerate(units):
                first, last = np.searchsorted(of_shard, [shard, shard + 1])
                gone = tuple(retired[first:last].tolist())
                yield ShardRef(shard, name, group, count - len(gone), gone)
                shard += 1

    def retired_units(self, output: Output) -> pa.Table:
        """`unit_id` and `shard` of the units that count no more, as their input has changed."""
        tables = [schema.RETIRED.empty_table()]
        for name in self.retired_files:
            with opened(output, name) as file:
                tables.append(file.read())
        return pa.concat_tables(tables)

    def units(self, output: Output, columns: list[str]) -> pa.RecordBatchReader:
        """Columns of all units, retired ones too, in order, a batch at a time."""
        fields = pa.schema([schema.MANIFEST.field(name) for name in columns])

        def batches() -> Iterator[pa.RecordBatch]:
            for name in self.files:
                with opened(output, name) as file:
                    for batch in file.iter_batches(columns=columns):
                        yield batch.select(columns).cast(fields)

        return pa.RecordBatchReader.from_batches(fields, batches())


@contextlib.contextmanager
def opened(output: Output, name: str) -> Iterator[pq.ParquetFile]:
    """As `open_file`, closed at the end."""
    file = open_file(output, name)
    try:
        yield file
    finally:
        file.close(force=True)


def open_file(output: Output, name: str) -> pq.ParquetFile:
    """A manifest file, its footer read."""
    path = output.path(name)
    return until_whole(lambda: pq.ParquetFile(pa.PythonFile(output.fs.open(path, "rb"), mode="r")))


def read_shard(file: pq.ParquetFile, row_group: int) -> list[Unit]:
    """The units of a shard."""
    return from_table(until_whole(lambda: file.read_row_group(row_group)))
