"""The manifest: every unit of a run, in append-only generations, frozen shard by shard.

A generation is written as files under `manifest/gen-00000/` and counts once its `_COMPLETE` stands,
which names them. One row group is one shard, so that a worker reads its shard and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.commit import unmark_success
from pipeline.storage import Output
from pipeline.units import Unit, from_table, to_table

FOLDER = "manifest"
_COMPLETE = "_COMPLETE"
_SHARDS_PER_FILE = 500


@dataclass(frozen=True)
class ShardRef:
    """Where a shard's units stand, and how many they are."""

    shard: int
    file: str
    row_group: int
    units: int


class ManifestWriter:
    """Writes one generation; nothing of it counts before `complete`.

    Several drivers may plan the same generation at once: their files have different names, and the
    first to complete wins.
    """

    def __init__(self, output: Output, generation: int) -> None:
        self.output = output
        self.folder = f"{FOLDER}/gen-{generation:05d}"
        self.files: list[str] = []
        self._writer_id = uuid.uuid4().hex[:8]
        self._buffer: io.BytesIO | None = None
        self._writer: pq.ParquetWriter | None = None
        self._shards_in_file = 0

    def add_shard(self, units: list[Unit]) -> None:
        """Append a shard."""
        if self._writer is None:
            self._buffer = io.BytesIO()
            self._writer = pq.ParquetWriter(self._buffer, schema.MANIFEST, compression="zstd")
        self._writer.write_table(to_table(units), row_group_size=len(units))
        self._shards_in_file += 1
        if self._shards_in_file == _SHARDS_PER_FILE:
            self._flush()

    def complete(self, next_unit: int, next_shard: int) -> bool:
        """Make the generation count; False if another driver's stands already.

        Files that are left of other attempts are removed: they would show in `manifest` as a table.
        """
        self._flush()
        unmark_success(self.output)
        document = {"files": self.files, "next_unit": next_unit, "next_shard": next_shard}
        name = f"{self.folder}/{_COMPLETE}"
        won = self.output.create(name, json.dumps(document).encode())
        # A request that is sent again after its answer was lost finds its own file.
        won = won or json.loads(self.output.read(name) or b"{}").get("files") == self.files
        for file in self.output.list(self.folder):
            if file != _COMPLETE and (file in self.files) != won:
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

    files: tuple[str, ...]
    generations: int
    next_unit: int
    next_shard: int

    @classmethod
    def load(cls, output: Output) -> Manifest:
        """The complete generations of an output."""
        files: list[str] = []
        generations, next_unit, next_shard = 0, 0, 0
        while True:
            folder = f"{FOLDER}/gen-{generations:05d}"
            if (document := output.read(f"{folder}/{_COMPLETE}")) is None:
                return cls(tuple(files), generations, next_unit, next_shard)
            values = json.loads(document)
            files += [f"{folder}/{file}" for file in values["files"]]
            next_unit, next_shard = values["next_unit"], values["next_shard"]
            generations += 1

    def shards(self, output: Output) -> Iterator[ShardRef]:
        """All shards in order."""
        shard = 0
        for name in self.files:
            with _opened(output, name) as file:
                units = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            for group, count in enumerate(units):
                yield ShardRef(shard, name, group, count)
                shard += 1

    def uri_digests(self, output: Output) -> set[bytes]:
        """Digests of all planned URIs."""
        known: set[bytes] = set()
        for name in self.files:
            with _opened(output, name) as file:
                for batch in file.iter_batches(columns=["uri"]):
                    known.update(digest(uri) for uri in batch.column(0).to_pylist())
        return known


@contextlib.contextmanager
def _opened(output: Output, name: str) -> Iterator[pq.ParquetFile]:
    file = open_file(output, name)
    try:
        yield file
    finally:
        file.close(force=True)


def open_file(output: Output, name: str) -> pq.ParquetFile:
    """A manifest file, its footer read."""
    return pq.ParquetFile(pa.PythonFile(output.fs.open(output.path(name), "rb"), mode="r"))


def read_shard(file: pq.ParquetFile, row_group: int) -> list[Unit]:
    """The units of a shard."""
    return from_table(file.read_row_group(row_group))


def digest(uri: str) -> bytes:
    """16 bytes that stand for a URI."""
    return hashlib.blake2b(uri.encode(), digest_size=16).digest()
