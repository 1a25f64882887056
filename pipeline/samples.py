"""Reading the `samples` table (`pipeline.schema.samples_table`); `pipeline.importing` writes it."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cpm_core.augment import Sample
from cpm_core.errors import CpmError
from cpm_core.geometry import crop_matrix
from cpm_core.skeleton import Skeleton
from pipeline import schema
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.listing import walk
from pipeline.pictures import decode_picture
from pipeline.storage import (
    STORAGE_ERRORS,
    StorageOptions,
    open_filesystem,
    path_of,
    protocol_of,
)

MOST_PIXELS = 100_000_000
_MAX_BYTES = 256 << 20
_CACHE_BYTES = 256 << 20
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TableFiles:
    """Where the rows of a samples table are: file by file, row group by row group.

    Row r of the table is in row group `searchsorted(starts, r, "right") - 1`; `groups` holds for
    each the number of its file and its place in that file. `digests` name the files' contents.
    """

    files: tuple[str, ...]
    groups: NDArray[np.int32]
    starts: Rows
    digests: tuple[str, ...]
    options: StorageOptions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableFiles) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.files, self.digests, self.options


class SampleTable:
    """A samples table: a Parquet file or a folder of them, local or any fsspec URL.

    Of every sample only the split is in memory. Raises UsageError for anything else.
    """

    def __init__(self, uri: str, options: StorageOptions | None = None) -> None:
        self.uri = uri
        self.options = options or StorageOptions()
        files = _files_of(uri, self.options)
        metadata = [_metadata(name, self.options) for name in files]
        self.skeleton = _skeleton(metadata[0], uri)
        if any(
            _skeleton(one, name) != self.skeleton for one, name in zip(metadata, files, strict=True)
        ):
            raise UsageError(f"{uri}: its files have different skeletons")
        places = [(f, g) for f, one in enumerate(metadata) for g in range(one.num_row_groups)]
        counts = [metadata[f].row_group(g).num_rows for f, g in places]
        self.group_bytes = np.array([metadata[f].row_group(g).total_byte_size for f, g in places])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        groups = np.array(places, np.int32).reshape(-1, 2)
        digests = tuple(_digest(one) for one in metadata)
        self.digest = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        self.files = TableFiles(tuple(files), groups, starts, digests, self.options)

    def __len__(self) -> int:
        return int(self.files.starts[-1])

    @cached_property
    def splits(self) -> pa.DictionaryArray:
        """The split of every row."""
        parts = [_read(name, self.options, ["split"]).column("split") for name in self.files.files]
        return (
            pa.chunked_array([c for p in parts for c in p.chunks], pa.string())
            .combine_chunks()
            .dictionary_encode()
        )

    def rows(self, split: str | None = None) -> Rows:
        """Row numbers of a split, or of all."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        names = self.splits.dictionary.to_pylist()
        if split not in names:
            return np.empty(0, np.int64)
        chosen = self.splits.indices.to_numpy(zero_copy_only=False) == names.index(split)
        return np.flatnonzero(chosen).astype(np.int64)


class RowReader:
    """Rows of a samples table by number, with the row groups last used kept in memory."""

    def __init__(self, files: TableFiles, cache_bytes: int = _CACHE_BYTES) -> None:
        self.files = files
        self.cache_bytes = cache_bytes
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()

    def read(self, rows: Sequence[int] | Rows) -> list[dict[str, Any]]:
        """The rows in the order asked for."""
        return [self._row(int(row)) for row in rows]

    def _row(self, row: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.files.starts, row, "right")) - 1
        place = row - int(self.files.starts[group])
        values: dict[str, Any] = self._table(group).slice(place, 1).to_pylist()[0]
        return values

    def _table(self, group: int) -> pa.Table:
        if group in self._tables:
            self._tables.move_to_end(group)
            return self._tables[group]
        number, place = self.files.groups[group]
        name = self.files.files[number]
        with _open(name, self.files.options) as file:
            if _digest(file.metadata) != self.files.digests[number]:
                raise UsageError(f"{name}: was changed while it was read; give each run its own")
            table = file.read_row_group(int(place))
        self._tables[group] = table
        while (
            len(self._tables) > 1
            and sum(t.nbytes for t in self._tables.values()) > self.cache_bytes
        ):
            self._tables.popitem(last=False)
        return table


def iter_rows(table: SampleTable, split: str | None = None) -> Iterator[dict[str, Any]]:
    """All rows of a split in order, one row group in memory."""
    reader = RowReader(table.files, cache_bytes=0)
    for row in table.rows(split):
        yield from reader.read([int(row)])


def decode_sample(row: dict[str, Any], options: StorageOptions | None = None) -> Sample:
    """A row of a samples table with its picture decoded, fetched first if only its URI is there.

    Raises UsageError that names the sample.
    """
    data, uri = row.get("image"), row.get("uri")
    if data is None:
        if uri is None:
            raise UsageError(f"sample {row['source']}: it has neither a picture nor its address")
        try:
            data = fetch(uri, options or StorageOptions(), _MAX_BYTES)
        except InputError as error:
            raise UsageError(f"sample {row['source']}: {uri}: {error}") from error
    try:
        image = decode_picture(data, MOST_PIXELS)
    except InputError as error:
        raise UsageError(
            f"sample {row['source']}: its picture cannot be decoded: {error}"
        ) from error
    return sample_of(row, image)


def sample_of(row: dict[str, Any], image: NDArray[np.uint8]) -> Sample:
    """A row of a samples table with its decoded picture. Raises UsageError for an unusable box."""
    box = np.asarray(row["box"], np.float64)
    try:
        crop_matrix(box, size=1, factor=1.0)
    except ValueError as error:
        raise UsageError(f"sample {row['source']}: {error}") from error
    others = row.get("others") or []
    people, joints = len(others), len(row["x"])
    return Sample(
        image=image,
        box=box,
        keypoints=_points(row),
        labelled=np.asarray(row["labelled"], bool),
        others=np.array([_points(o) for o in others]).reshape(people, joints, 2),
        others_labelled=np.array([o["labelled"] for o in others], bool).reshape(people, joints),
    )


def _points(row: dict[str, Any]) -> NDArray[np.float64]:
    return np.stack([row["x"], row["y"]], axis=-1).astype(np.float64)


def _files_of(uri: str, options: StorageOptions) -> list[str]:
    fs, path = open_filesystem(uri, options), path_of(uri)
    try:
        names = [info.uri for info in walk(uri, options)] if fs.isdir(path) else [uri]
    except STORAGE_ERRORS as error:
        raise UsageError(f"{uri}: cannot be listed ({error})") from error
    files = [name for name in names if name == uri or name.endswith(".parquet")]
    if not files:
        raise UsageError(f"{uri}: no .parquet file in it; write one with `posemill import`")
    return files


def _open(name: str, options: StorageOptions) -> pq.ParquetFile:
    fs, path = open_filesystem(name, options), path_of(name)
    try:
        return pq.ParquetFile(path if protocol_of(name) == "file" else fs.open(path, "rb"))
    except (*STORAGE_ERRORS, pa.ArrowException) as error:
        raise UsageError(
            f"{name}: not a samples table; write one with `posemill import` ({error})"
        ) from error


def _metadata(name: str, options: StorageOptions) -> pq.FileMetaData:
    with _open(name, options) as file:
        return file.metadata


def _read(name: str, options: StorageOptions, columns: list[str]) -> pa.Table:
    with _open(name, options) as file:
        return file.read(columns)


def _skeleton(metadata: pq.FileMetaData, name: str) -> Skeleton:
    try:
        document = json.loads((metadata.metadata or {})[schema.METADATA_KEY])
        return Skeleton.from_json(json.dumps(document["skeleton"]))
    except (KeyError, TypeError, ValueError, CpmError) as error:
        raise UsageError(
            f"{name}: not a samples table; write one with `posemill import` ({error!r})"
        ) from error


def _digest(metadata: pq.FileMetaData) -> str:
    """Names the contents: the digest that the importer wrote, else one of the file's statistics."""
    document = json.loads((metadata.metadata or {})[schema.METADATA_KEY])
    statistics = json.dumps(metadata.to_dict(), default=str, sort_keys=True)
    return str(document.get("digest") or hashlib.sha256(statistics.encode()).hexdigest())
