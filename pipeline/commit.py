"""The commit: one part per shard, created once, under a name that says which shard it is.

A part that is there is done; there is no other record. `_SUCCESS` is written last, and removed
before anything changes the table.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Output

FOLDER = "annotations"
SUCCESS = "_SUCCESS"
_SHARDS_PER_FOLDER = 10_000
_SUMMARY_KEY = b"posemill.summary"
_PART = re.compile(r"/part-(\d{9})\.parquet$")
_READERS = 16


def part_name(shard: int) -> str:
    """Name of a shard's part within the output."""
    return f"{FOLDER}/{shard // _SHARDS_PER_FOLDER:05d}/part-{shard:09d}.parquet"


def commit_part(
    output: Output, shard: int, table: pa.Table, metadata: dict[bytes, bytes], summary: str
) -> bool:
    """Create a shard's part; False if it was there already, which is as good."""
    described = table.replace_schema_metadata({**metadata, _SUMMARY_KEY: summary.encode()})
    sink = io.BytesIO()
    pq.write_table(described, sink, compression="zstd")
    return output.create(part_name(shard), sink.getvalue())


def done_shards(output: Output, among: set[int] | None = None) -> set[int]:
    """Shards whose part is there; with `among`, only those, and only their folders are listed."""
    folders = [FOLDER]
    if among is not None:
        folders = sorted({os.path.dirname(part_name(shard)) for shard in among})
    paths = (f"{folder}/{name}" for folder in folders for name in output.list(folder))
    found = (_PART.search(path) for path in paths)
    # A copy in another folder is no part.
    done = {int(m[1]) for m in found if m and part_name(int(m[1])) == m.string}
    return done if among is None else done & among


def part_summaries(output: Output, shards: set[int]) -> Iterator[str]:
    """The summary of each part, from its footer."""

    def read(shard: int) -> str:
        with output.fs.open(output.path(part_name(shard)), "rb") as file:
            return str(pq.read_schema(file).metadata[_SUMMARY_KEY].decode())

    with ThreadPoolExecutor(_READERS) as threads:
        yield from threads.map(read, sorted(shards))


def mark_success(output: Output, document: dict[str, Any]) -> None:
    """Say that the table is complete."""
    output.replace(SUCCESS, json.dumps(document, indent=2).encode())


def unmark_success(output: Output) -> None:
    """The table is about to change."""
    output.remove(SUCCESS)
