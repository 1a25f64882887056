"""Lists of inputs (.txt, .csv, .parquet), and tables of the boxes that go with them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from pandas.errors import ParserWarning

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
_MOST_FRAMES = 2**31
"""Indices of frames are int32 in tables."""


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
    return _is_file(name, options) and _gives_boxes(name, _columns(name, options))


def _is_file(name: str, options: StorageOptions) -> bool:
    try:
        return bool(open_filesystem(name, options).isfile(path_of(name)))
    except STORAGE_ERRORS as error:
        raise UsageError(f"cannot read table {name!r}: {error}") from error


def _is_csv(name: str) -> bool:
    return name.lower().endswith(".csv")


def _columns(name: str, options: StorageOptions) -> list[str]:
    """The names in a table's head; in a .csv, spaces around them are none of the name."""
    try:
        with open_filesystem(name, options).open(path_of(name), "rb") as file:
            if _is_csv(name):
                columns = [str(column).strip() for column in pd.read_csv(file, nrows=0).columns]
            else:
                columns = list(pq.read_schema(file).names)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise UsageError(f"cannot read table {name!r}: {error}") from error
    if "uri" not in columns:
        raise UsageError(f"table {name!r} has no column 'uri'; it has {', '.join(columns)}")
    return columns


def _gives_boxes(name: str, columns: Sequence[str]) -> bool:
    """Whether there are the columns of boxes. Raises UsageError where there is half of them.

    A list that was meant to give boxes, and does not, would be annotated without them. `width` and
    `height` alone are taken for the picture's.
    """
    if set(_BOX_COLUMNS) <= set(columns):
        return True
    alike = [c for c in columns if c.strip().lower() in (*_BOX_COLUMNS, "width", "height")]
    if all(c.strip().lower() in ("width", "height") for c in alike):
        return False
    raise UsageError(
        f"table {name!r} has the columns {', '.join(map(repr, alike))}; a box is x, y, w, h: name "
        "them so, or leave them out"
    )


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
    head, row = _columns(name, options), 0
    try:
        with open_filesystem(name, options).open(path_of(name), "rb") as file:
            for table in _csv(file, head) if _is_csv(name) else _parquet(file, columns):
                if (empty := table["uri"].isna()).any():
                    place = row + empty.to_numpy().argmax() + 1
                    raise UsageError(f"table {name!r}: data row {place} has no uri")
                row += len(table)
                yield table.astype({"uri": str})
    except ParserWarning as error:
        raise UsageError(
            f"table {name!r} has rows with more values than the {len(head)} columns of its head; "
            'put a value with a comma in it into double quotes ("a,b.jpg")'
        ) from error
    except (*STORAGE_ERRORS, ValueError) as error:
        raise UsageError(f"cannot read table {name!r}: {str(error).strip()}") from error


def _csv(file: Any, head: list[str]) -> Iterator[pd.DataFrame]:
    # Without `index_col`, a comma at the end of every row would make an index of the first column.
    chunks = pd.read_csv(
        file, names=head, header=0, index_col=False, dtype={"uri": str}, chunksize=_ROWS
    )
    while True:
        # pandas only warns of values that it leaves out.
        with warnings.catch_warnings(action="error", category=ParserWarning):
            table = next(chunks, None)
        if table is None:
            return
        yield table


def _parquet(file: Any, columns: list[str] | None) -> Iterator[pd.DataFrame]:
    table_file = pq.ParquetFile(file)
    empty = table_file.schema_arrow.empty_table().to_pandas()
    yield empty if columns is None else empty[columns]
    for batch in table_file.iter_batches(_ROWS, columns=columns):
        yield batch.to_pandas()


def boxes_by_uri(table: pd.DataFrame, source: str) -> dict[str, tuple[GivenBox, ...]]:
    """Boxes of a table with uri, x, y, w, h and optional score and frame_index, merged by URI.

    A row whose four box values are all empty says that nobody is in the picture.
    """
    if missing := [column for column in _BOX_COLUMNS if column not in table.columns]:
        raise UsageError(
            f"table {source!r} lacks the box columns {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}"
        )
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
            None if frame is None or pd.isna(frame) else _frame_index(frame),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"table {source!r}, {row['uri']!r}: {error}") from error


def _frame_index(given: Any) -> int:
    value = float(given)
    if not (value.is_integer() and 0 <= value < _MOST_FRAMES):
        raise ValueError(f"frame_index {given} is not a whole number from 0 to {_MOST_FRAMES - 1}")
    return int(value)


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
