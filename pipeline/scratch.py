"""DuckDB for what does not fit into memory: it spills to a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.errors import PosemillError


@contextmanager
def scratch(mebibytes: int) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A connection that takes so much memory at most, and its folder in TMPDIR, gone at the end.

    What goes wrong in DuckDB meanwhile, such as a full disk, is a PosemillError that names TMPDIR.
    """
    with tempfile.TemporaryDirectory(prefix="posemill-") as folder:
        settings: dict[str, Any] = {
            "memory_limit": f"{mebibytes}MiB",
            "temp_directory": folder,
            "threads": 2,
        }
        try:
            with duckdb.connect(config=settings) as connection:
                yield connection, Path(folder)
        except duckdb.Error as error:
            raise PosemillError(
                f"sorting on disk failed: {str(error).splitlines()[0]}; is there room in "
                f"{tempfile.gettempdir()}? TMPDIR names another place"
            ) from error


def batches(
    connection: duckdb.DuckDBPyConnection, query: str, rows: int
) -> Iterator[pa.RecordBatch]:
    """The answer to a query, so many rows at a time."""
    reader: pa.RecordBatchReader = connection.sql(query).to_arrow_reader(rows)
    yield from reader
