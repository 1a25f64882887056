"""The commit: one part per shard, created once, under a name that says which shard it is.

A part that is there is done; there is no other record. Later changes replace parts whole, under the
condition that nobody else did. `_SUCCESS` is written last, and removed before anything changes the
table.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PosemillError
from pipeline.storage import Output, until_whole
from pipeline.summary import Summary

FOLDER = "annotations"
SUCCESS = "_SUCCESS"
_SHARDS_PER_FOLDER = 10_000
SUMMARY_KEY = b"posemill.summary"
_PART = re.compile(r"/part-(\d{9})\.parquet$")
READERS = 16
"""Parts that are read side by side."""
_AT_ONCE = 1024
_AMENDMENTS = 5


def part_name(shard: int) -> str:
    """Name of a shard's part within the output."""
    return f"{FOLDER}/{shard // _SHARDS_PER_FOLDER:05d}/part-{shard:09d}.parquet"


def commit_part(
    output: Output, shard: int, table: pa.Table, metadata: dict[bytes, bytes], summary: Summary
) -> bool:
    """Create a shard's part; False if it was there already, which is as good."""
    return output.create(part_name(shard), _part(table, metadata, summary))


def amend_part(
    output: Output,
    shard: int,
    change: Callable[[pa.Table], pa.Table],
    metadata: dict[bytes, bytes],
) -> None:
    """Replace a part by what `change` makes of its rows: whole, and only the very part that was
    read."""
    for attempt in range(_AMENDMENTS):
        time.sleep(0.1 * (2**attempt - 1))
        found = output.read_version(part_name(shard))
        if found is None:
            raise PosemillError(f"{output.uri}/{part_name(shard)} is gone; run the same again")
        data, version = found
        table = change(pq.read_table(io.BytesIO(data)))
        part = _part(table, metadata, Summary.of(table))
        if output.replace_if(part_name(shard), part, version):
            return
    raise PosemillError(
        f"{output.uri}/{part_name(shard)} changed {_AMENDMENTS} times as it was to be replaced"
    )


def read_part(output: Output, shard: int, columns: list[str] | None = None) -> pa.Table:
    """A part's rows."""

    def read() -> pa.Table:
        with output.fs.open(output.path(part_name(shard)), "rb") as file:
            return pq.ParquetFile(file).read(columns)

    return until_whole(read)


def done_shards(output: Output, among: Iterable[int]) -> set[int]:
    """Which of the shards have a part; only their folders are listed, many at a time."""
    among = set(among)
    folders = sorted({os.path.dirname(part_name(shard)) for shard in among})
    with ThreadPoolExecutor(READERS) as threads:
        listings = threads.map(output.list, folders)
        names = [
            f"{f}/{name}" for f, found in zip(folders, listings, strict=True) for name in found
        ]
    return {shard for name in names if (shard := shard_of(name)) is not None} & among


def shard_of(name: str) -> int | None:
    """The shard of a part by its name within the output; a copy in another folder is no part."""
    found = _PART.search(name)
    return int(found[1]) if found and part_name(int(found[1])) == name else None


def part_summaries(output: Output, shards: Iterable[int]) -> Iterator[Summary]:
    """The summary of each part, from its footer, in the order of the shards.

    Raises PosemillError naming a part that is damaged.
    """

    def footer(shard: int) -> pa.Schema:
        with output.fs.open(output.path(part_name(shard)), "rb") as file:
            return pq.read_schema(file)

    def read(shard: int) -> Summary:
        try:
            return summary_in(until_whole(lambda: footer(shard)))
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise PosemillError(
                f"{output.uri}/{part_name(shard)} is damaged ({error}); remove it, and run the "
                "same annotate command again to make it anew"
            ) from error

    ordered = sorted(shards)
    with ThreadPoolExecutor(READERS) as threads:
        # In pieces, as `map` submits all that it gets at once.
        for start in range(0, len(ordered), _AT_ONCE):
            yield from threads.map(read, ordered[start : start + _AT_ONCE])


def summary_in(part: pa.Schema) -> Summary:
    """The summary that stands in a part. Raises KeyError, TypeError or ValueError for another
    file."""
    return Summary.from_json((part.metadata or {})[SUMMARY_KEY])


def _part(table: pa.Table, metadata: dict[bytes, bytes], summary: Summary) -> bytes:
    about = {**metadata, SUMMARY_KEY: summary.to_json().encode()}
    described = table.replace_schema_metadata(about)
    sink = io.BytesIO()
    pq.write_table(described, sink, compression="zstd")
    return sink.getvalue()


def mark_success(output: Output, document: dict[str, Any]) -> None:
    """Say that the table is complete."""
    output.replace(SUCCESS, json.dumps(document, indent=2).encode())


def unmark_success(output: Output) -> None:
    """The table is about to change."""
    output.remove(SUCCESS)
