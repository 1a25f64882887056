"""The manifest: every unit of a run, in append-only generations, frozen shard by shard.

A generation is written as numbered files under `manifest/gen-00000/` and counts once its
`_COMPLETE` stands. One row group is one shard, so that a worker reads its shard and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.storage import Output
from pipeline.units import Unit, from_table, to_table

FOLDER = "manifest"
_COMPLETE = "_COMPLETE"
_SHARDS_PER_FILE = 500


@dataclass(frozen=True)
class ShardRef:
    """Where a shard's units stand."""

    shard: int
    file: str
    row_group: int


class ManifestWriter:
    """Writes one generation; nothing of it counts before `complete`."""

    def __init__(self, output: Output, generation: int) -> None:
        self.output = output
        self.folder = f"{FOLDER}/gen-{generation:05d}"
        self.files = 0
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

    def complete(self, next_unit: int, next_shard: int) -> None:
        """Make the generation count."""
        self._flush()
        document = {"files": self.files, "next_unit": next_unit, "next_shard": next_shard}
        self.output.replace(f"{self.folder}/{_COMPLETE}", json.dumps(document).encode())

    def _flush(self) -> None:
        if self._writer is None:
            return
        assert self._buffer is not None
        self._writer.close()
        name = f"{self.folder}/{self.files:05d}.parquet"
        self.output.replace(name, self._buffer.getvalue())
        self.files += 1
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
        while (document := output.read(f"{FOLDER}/gen-{generations:05d}/{_COMPLETE}")) is not None:
            values = json.loads(document)
            files += [
                f"{FOLDER}/gen-{generations:05d}/{i:05d}.parquet" for i in range(values["files"])
            ]
            next_unit, next_shard = values["next_unit"], values["next_shard"]
            generations += 1
        return cls(tuple(files), generations, next_unit, next_shard)

    def shards(self, output: Output) -> Iterator[ShardRef]:
        """All shards in order."""
        shard = 0
        for name in self.files:
            for group in range(open_file(output, name).num_row_groups):
                yield ShardRef(shard, name, group)
                shard += 1

    def uri_digests(self, output: Output) -> set[bytes]:
        """Digests of all planned URIs."""
        known: set[bytes] = set()
        for name in self.files:
            for batch in open_file(output, name).iter_batches(columns=["uri"]):
                known.update(digest(uri) for uri in batch.column(0).to_pylist())
        return known


def open_file(output: Output, name: str) -> pq.ParquetFile:
    """A manifest file, its footer read."""
    return pq.ParquetFile(pa.PythonFile(output.fs.open(output.path(name), "rb"), mode="r"))


def read_shard(file: pq.ParquetFile, row_group: int) -> list[Unit]:
    """The units of a shard."""
    return from_table(file.read_row_group(row_group))


def digest(uri: str) -> bytes:
    """16 bytes that stand for a URI."""
    return hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=16).digest()
