"""Writing the samples table: row groups as they fill, a digest of all that was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpm_core.skeleton import Skeleton
from pipeline import schema
from pipeline.errors import PosemillError
from pipeline.importing.record import Array, Person

ROWS_PER_GROUP = 64
"""A few MB of pictures: what a reader holds at once."""


_NOT_TRAINED_ON = ("image", "uri", "source", "group", "ignored")


class SamplesWriter:
    """Writes under a temporary name; `finish` puts the table in its place, whole or not at all."""

    def __init__(self, path: Path, skeleton: Skeleton) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._skeleton = skeleton
        # Arrow shows users the schema's metadata, which stands at the start; the file's own, in the
        # footer, is the same with the digest.
        self._schema = schema.samples_table(len(skeleton)).with_metadata(
            schema.table_metadata({}, skeleton)
        )
        self._rows: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        self.count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Pictures are compressed already.
            self._writer = pq.ParquetWriter(self._partial, self._schema, compression="none")
        except OSError as error:
            raise PosemillError(f"cannot write {path}: {error}") from error

    def add(self, row: dict[str, Any]) -> None:
        """One sample; its `sample_id` is its place in the table."""
        row = {"sample_id": self.count, **row}
        self._update_digest(row)
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def finish(self) -> str:
        """Put the table in its place; returns the digest."""
        self._flush()
        digest = self._digest.hexdigest()
        metadata = schema.table_metadata({"digest": digest}, self._skeleton)
        try:
            self._writer.add_key_value_metadata(metadata)
            self._writer.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise PosemillError(f"cannot write {self._path}: {error}") from error
        return digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._partial.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        except OSError as error:
            raise PosemillError(f"cannot write {self._path}: {error}") from error
        self._rows = []

    def _update_digest(self, row: dict[str, Any]) -> None:
        """What training makes of a row; where a picture lies is no part of it if it is in here."""
        picture = row["image"] if row["image"] is not None else row["uri"].encode()
        rest = {k: v for k, v in row.items() if k not in _NOT_TRAINED_ON}
        labels = json.dumps(rest, sort_keys=True).encode()
        for part in (picture, labels):
            self._digest.update(len(part).to_bytes(8, "little"))
            self._digest.update(part)


def person_columns(person: Person, others: list[Person], ignored: list[Person]) -> dict[str, Any]:
    """The columns of a row that are about people."""
    return {
        "box": _floats(person.box),
        "centre": _floats(person.centre),
        "scale": person.scale,
        **_points(person),
        "occluded": None if person.occluded is None else person.occluded.tolist(),
        "others": [_points(other) for other in others],
        "head_size": person.head_size,
        "area": person.area,
        "ignored": [_region(other) for other in ignored],
    }


def _region(person: Person) -> dict[str, Any]:
    return {"box": _floats(person.box), "area": person.area, "crowd": person.crowd}


def _points(person: Person) -> dict[str, Any]:
    x, y = person.points.T
    return {"x": _floats(x), "y": _floats(y), "labelled": person.labelled.tolist()}


def _floats(values: Array | None) -> list[float] | None:
    """As the table's float32 hold them, so that the digest is of what is read again."""
    return None if values is None else values.astype(np.float32).tolist()
