"""Lists of inputs (.txt, .csv, .parquet), and tables of the boxes that go with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.storage import (
    STORAGE_ERRORS,
    StorageOptions,
    check_uri,
    open_filesystem,
    path_of,
    protocol_of,
    uri_of,
)
from pipeline.units import GivenBox

LIST_SUFFIXES = (".txt", ".csv", ".parquet")
Boxes = dict[str, tuple[GivenBox, ...]]
_BOX_COLUMNS = ("x", "y", "w", "h")
_ROWS = 50_000
"""Rows of a list that are read at once."""


def read_list(
    name: str, options: StorageOptions
) -> Iterator[tuple[str, tuple[GivenBox, ...] | None]]:
    """URIs with their boxes as they are read; only boxes, merged by URI, are all in memory."""
    if name.lower().endswith(".txt"):
        yield from ((resolve(uri, name), None) for uri in _lines(name, options))
    elif has_boxes(name, options):
        yield from boxes_by_uri(read_table(name, options), name).items()
    else:
        for table in _tables(name, options, ["uri"]):
            yield from ((resolve(uri, name), None) for uri in table["uri"])


def has_boxes(name: str, options: StorageOptions) -> bool:
    """Whether an input is a list with the columns of boxes; only its head is read."""
    if not name.lower().endswith((".csv", ".parquet")):
        return False
    fs = open_filesystem(name, options)
    try:
        if not fs.isfile(path_of(name)):
            return False
        with fs.open(path_of(name), "rb") as file:
            csv = name.lower().endswith(".csv")
            head = pd.read_csv(file, nrows=0).columns if csv else pq.read_schema(file).names
    except (*STORAGE_ERRORS, ValueError) as error:
        raise UsageError(f"cannot read table {name!r}: {error}") from error
    return set(_BOX_COLUMNS) <= set(head)


def _lines(name: str, options: StorageOptions) -> Iterator[str]:
    """Lines with a URI; a byte order mark, empty lines and # comments are passed over."""
    fs = open_filesystem(name, options)
    with fs.open(path_of(name), "r", encoding="utf-8-sig") as file:
        try:
            for line in file:
                if (uri := line.strip()) and not uri.startswith("#"):
                    yield uri
        except UnicodeDecodeError as error:
            raise UsageError(f"list {name!r} is not UTF-8: {error}") from error


def read_table(name: str, options: StorageOptions) -> pd.DataFrame:
    """A .csv or .parquet table with a column `uri`. Raises UsageError."""
    return pd.concat(list(_tables(name, options)), ignore_index=True)


def _tables(
    name: str, options: StorageOptions, columns: list[str] | None = None
) -> Iterator[pd.DataFrame]:
    """A table piece by piece, at least one of them."""
    fs, row = open_filesystem(name, options), 0
    try:
        with fs.open(path_of(name), "rb") as file:
            for table in _pieces(file, name, columns):
                if (empty := table["uri"].isna()).any():
                    place = row + empty.to_numpy().argmax() + 1
                    raise UsageError(f"table {name!r}: data row {place} has no uri")
                row += len(table)
                yield table.astype({"uri": str})
    except (*STORAGE_ERRORS, ValueError) as error:
        raise UsageError(f"cannot read table {name!r}: {error}") from error


def _pieces(file: Any, name: str, columns: list[str] | None) -> Iterator[pd.DataFrame]:
    if name.lower().endswith(".csv"):
        chunks = pd.read_csv(file, dtype={"uri": str}, chunksize=_ROWS)
        for number, table in enumerate(chunks):
            if number == 0:
                _check_uri(name, list(table.columns))
            yield table
        return
    table_file = pq.ParquetFile(file)
    _check_uri(name, table_file.schema_arrow.names)
    empty = table_file.schema_arrow.empty_table().to_pandas()
    yield empty if columns is None else empty[columns]
    for batch in table_file.iter_batches(_ROWS, columns=columns):
        yield batch.to_pandas()


def _check_uri(name: str, columns: Sequence[object]) -> None:
    if "uri" not in columns:
        found = ", ".join(map(str, columns))
        raise UsageError(f"table {name!r} has no column 'uri'; it has {found}")


def boxes_by_uri(table: pd.DataFrame, source: str) -> dict[str, tuple[GivenBox, ...]]:
    """Boxes of a table with uri, x, y, w, h and optional score and frame_index, merged by URI.

    A row whose four box values are all empty says that nobody is in the picture.
    """
    if missing := [column for column in _BOX_COLUMNS if column not in table.columns]:
        raise UsageError(f"table {source!r} lacks the box columns {', '.join(missing)}")
    merged: dict[str, list[GivenBox]] = {}
    for row in table.to_dict("records"):
        boxes = merged.setdefault(resolve(row["uri"], source), [])
        if not all(pd.isna(row[column]) for column in _BOX_COLUMNS):
            boxes.append(_box(row, source))
    return {uri: tuple(boxes) for uri, boxes in merged.items()}


def _box(row: dict[Any, Any], source: str) -> GivenBox:
    score, frame = row.get("score"), row.get("frame_index")
    try:
        x, y, w, h = (float(row[column]) for column in _BOX_COLUMNS)
        return GivenBox(
            x,
            y,
            w,
            h,
            1.0 if score is None or pd.isna(score) else float(score),
            None if frame is None or pd.isna(frame) else int(frame),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"table {source!r}, {row['uri']!r}: {error}") from error


def resolve(uri: str, source: str) -> str:
    """A listed URI as it stands in tables; a relative one is relative to the list's folder.

    Raises UsageError for one with a password.
    """
    check_uri(uri)
    if protocol_of(uri) == "s3":
        return uri_of("s3", path_of(uri))
    if protocol_of(uri) != "file":
        return uri
    if uri.startswith("file://") or os.path.isabs(uri):
        return path_of(uri)
    protocol = protocol_of(source)
    folder = os.path.dirname(path_of(source))
    return uri_of(protocol, os.path.normpath(f"{folder}/{uri}"))
