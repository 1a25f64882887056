"""What `--input` names: files, folders, globs and lists -> a stream of inputs."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.storage import (
    STORAGE_ERRORS,
    FileInfo,
    StorageOptions,
    describe,
    open_filesystem,
    path_of,
    protocol_of,
    uri_of,
    walk,
)
from pipeline.units import PICTURE_SUFFIXES, VIDEO_SUFFIXES, GivenBox

LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_BOX_COLUMNS = ("x", "y", "w", "h")


@dataclass(frozen=True)
class Input:
    """One picture or video, before it is planned.

    With `bad_name`, the file's name is not UTF-8, and `uri` is a readable substitute.
    """

    uri: str
    kind: str
    size: int | None = None
    etag: str | None = None
    mtime: datetime | None = None
    boxes: tuple[GivenBox, ...] | None = None
    bad_name: bool = False


@dataclass
class Passed:
    """Files in folders that are neither pictures nor videos by their name."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def note(self, uri: str) -> None:
        """Count one. Examples are for a terminal: what would not show there is escaped."""
        self.count += 1
        if len(self.examples) < 3:
            self.examples = (*self.examples, uri if uri.isprintable() else ascii(uri))


def expand(
    inputs: Iterable[str],
    options: StorageOptions,
    boxes: dict[str, tuple[GivenBox, ...]] | None,
    passed: Passed,
) -> Iterator[Input]:
    """Every input, in order. Raises UsageError for an `--input` that does not exist.

    `boxes` are those of `--boxes`, by URI; they win over box columns of a list.
    """
    for name in inputs:
        for item in _expand_one(name, options, passed):
            if boxes is None:
                yield item
            else:
                given = boxes.get(item.uri, ())
                yield Input(item.uri, item.kind, item.size, item.etag, item.mtime, given)


def check(inputs: Iterable[str], options: StorageOptions) -> None:
    """Look at the first thing that each input names; UsageError for one that is not there."""
    for name in inputs:
        next(_expand_one(name, options, Passed()), None)


def _expand_one(name: str, options: StorageOptions, passed: Passed) -> Iterator[Input]:
    fs, path, protocol = open_filesystem(name, options), path_of(name), protocol_of(name)
    try:
        entry = _entry(fs, path)
        if entry is None and any(c in name for c in "*?["):
            yield from _known(_matches(fs, path, protocol, name), passed)
        elif entry is None:
            raise UsageError(f"no such input: {name!r}")
        elif entry["type"] == "directory":
            yield from _known(walk(name, options), passed)
        elif name.lower().endswith(LIST_SUFFIXES):
            yield from _from_list(name, options)
        else:
            yield _input(describe(entry, protocol))
    except STORAGE_ERRORS as error:
        raise UsageError(f"cannot list {name!r}: {str(error) or type(error).__name__}") from error


def _entry(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        return fs.info(path)  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return None


def _matches(fs: Any, path: str, protocol: str, name: str) -> Iterator[FileInfo]:
    found = fs.glob(path, detail=True)
    files = [key for key in sorted(found) if found[key]["type"] != "directory"]
    if not files:
        raise UsageError(f"no file matches {name!r}")
    return (describe(found[key], protocol) for key in files)


def _known(files: Iterable[FileInfo], passed: Passed) -> Iterator[Input]:
    for file in files:
        if suffix_of(file.uri) in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
            yield _input(file)
        else:
            passed.note(file.uri)


def _input(file: FileInfo) -> Input:
    uri = file.uri.encode("utf-8", "backslashreplace").decode()
    return Input(uri, kind_of(uri), file.size, file.etag, file.mtime, bad_name=uri != file.uri)


def suffix_of(uri: str) -> str:
    """Lower-case suffix of a URI's path."""
    path = uri.partition("?")[0] if protocol_of(uri) in ("http", "https") else uri
    return PurePosixPath(path).suffix.lower()


def kind_of(uri: str) -> str:
    """`video` by its suffix, else `image`; what it really is shows when it is decoded."""
    return "video" if suffix_of(uri) in VIDEO_SUFFIXES else "image"


def _from_list(name: str, options: StorageOptions) -> Iterator[Input]:
    if name.lower().endswith(".txt"):
        yield from (_listed(uri, name) for uri in _lines(name, options))
        return
    table = read_table(name, options)
    if set(_BOX_COLUMNS) <= set(table.columns):
        for uri, boxes in boxes_by_uri(table, name).items():
            yield Input(uri, kind_of(uri), boxes=boxes)
    else:
        yield from (_listed(uri, name) for uri in table["uri"])


def has_boxes(name: str, options: StorageOptions) -> bool:
    """Whether an input is a list with the columns of boxes; only its head is read."""
    if not name.lower().endswith((".csv", ".parquet")):
        return False
    fs = open_filesystem(name, options)
    try:
        entry = _entry(fs, path_of(name))
        if entry is None or entry["type"] == "directory":
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


def _listed(uri: str, source: str) -> Input:
    uri = resolve(uri, source)
    return Input(uri, kind_of(uri))


def read_table(name: str, options: StorageOptions) -> pd.DataFrame:
    """A .csv or .parquet table with a column `uri`. Raises UsageError."""
    fs = open_filesystem(name, options)
    try:
        with fs.open(path_of(name), "rb") as file:
            csv = name.lower().endswith(".csv")
            table = pd.read_csv(file, dtype={"uri": str}) if csv else pd.read_parquet(file)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise UsageError(f"cannot read table {name!r}: {error}") from error
    if "uri" not in table.columns:
        columns = ", ".join(map(str, table.columns))
        raise UsageError(f"table {name!r} has no column 'uri'; it has {columns}")
    if (empty := table["uri"].isna()).any():
        raise UsageError(f"table {name!r}: data row {empty.argmax() + 1} has no uri")
    return table.astype({"uri": str})


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
    """A listed URI as it stands in tables; a relative one is relative to the list's folder."""
    if protocol_of(uri) == "s3":
        return uri_of("s3", path_of(uri))
    if protocol_of(uri) != "file":
        return uri
    if uri.startswith("file://") or os.path.isabs(uri):
        return path_of(uri)
    protocol = protocol_of(source)
    folder = os.path.dirname(path_of(source))
    return uri_of(protocol, os.path.normpath(f"{folder}/{uri}"))


@dataclass(frozen=True)
class Selection:
    """Which inputs are planned; see the settings of the same names."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sample: float | None = None

    def wants(self, uri: str) -> bool:
        """Whether an input is selected, by its URI alone."""
        if self.include and not any(fnmatch.fnmatchcase(uri, p) for p in self.include):
            return False
        if any(fnmatch.fnmatchcase(uri, p) for p in self.exclude):
            return False
        return self.sample is None or _share(uri) < self.sample


def _share(uri: str) -> float:
    digest = hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
