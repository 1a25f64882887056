"""The table that `posemill annotate` wrote, against labels of the same pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from cpm_core.metrics import PredictedPeople
from cpm_core.skeleton import Skeleton
from pipeline.annotations import open_annotations
from pipeline.errors import UsageError
from pipeline.evaluation.comparison import (
    LABEL_COLUMNS,
    Comparison,
    by_name,
    ignored_of,
    labels_of,
    no_samples,
    picture_key,
)
from pipeline.evaluation.matching import assign
from pipeline.samples import SampleTable
from pipeline.storage import Output, StorageOptions, open_filesystem, path_of

_COLUMNS = ["uri", "media_type", "status", "x", "y", "score"]


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures, numbered: by URI, and by file name, which can be that of several."""

    by_uri: dict[str, int]
    by_name: dict[str, list[int]]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> tuple[Pictures, list[int]]:
        """The pictures of a samples table's rows, and which of them each row is of."""
        number: dict[tuple[str, str], int] = {}
        by_uri: dict[str, int] = {}
        by_name: dict[str, list[int]] = defaultdict(list)
        for key in dict.fromkeys(map(picture_key, rows)):
            uri, source = key
            place = number[key] = len(number)
            if uri:
                by_uri.setdefault(uri, place)
            for name in {_base(uri), _base(source)} - {""}:
                by_name[name].append(place)
        return cls(by_uri, by_name), [number[picture_key(row)] for row in rows]


def compare_annotations(
    output: str, samples: str, split: str | None, options: StorageOptions
) -> Comparison:
    """People of an annotation table against the labelled people of its pictures.

    Pictures that were not annotated are left out, and a note counts them; in those that were,
    labelled people whom nobody stands for are misses. Raises UsageError.
    """
    skeleton, rows = _labels(samples, split, options)
    pictures, of_row = Pictures.of(rows)
    dataset, own = open_annotations(Output(output, options))
    places = _places(dataset, pictures, output, samples)
    annotated = set(places.values())
    kept = [i for i, place in enumerate(of_row) if place in annotated]
    labels, head_size = labels_of([rows[i] for i in kept], [of_row[i] for i in kept])
    found, joints, notes = _found(dataset, own, skeleton, places, (output, samples))
    predicted = assign(found, labels, skeleton, joints)
    if left_out := len(set(of_row)) - len(annotated):
        notes += (f"{left_out} labelled pictures are not in {output}: left out",)
    alone = int(np.isnan(predicted).all(axis=(1, 2)).sum())
    notes += (
        f"{len(annotated)} pictures: {len(kept)} people labelled, {len(found.score)} predicted; "
        f"{alone} labelled people without a prediction count as misses",
    )
    ignored = ignored_of([rows[i] for i in kept], [of_row[i] for i in kept])
    return Comparison(
        samples, skeleton, labels, head_size, predicted[None], joints, found, notes, ignored
    )


def _labels(
    samples: str, split: str | None, options: StorageOptions
) -> tuple[Skeleton, list[dict[str, Any]]]:
    """The labels' skeleton, and rows without their pictures."""
    table = SampleTable(samples, options)
    files = [path_of(name) for name in table.files.files]
    dataset = ds.dataset(files, filesystem=open_filesystem(samples, options), format="parquet")
    columns = [name for name in LABEL_COLUMNS if name in dataset.schema.names]
    wanted = None if split is None else pc.field("split") == split
    rows: list[dict[str, Any]] = dataset.to_table(columns=columns, filter=wanted).to_pylist()
    if not rows:
        raise no_samples(samples, split)
    return table.skeleton, rows


def _places(dataset: ds.Dataset, pictures: Pictures, output: str, samples: str) -> dict[str, int]:
    """Which labelled picture each annotated URI is: by URI, or failing that by file name."""
    candidates = dict.fromkeys(
        uri for batch in _batches(dataset, pictures, ["uri"]) for uri in batch["uri"].to_pylist()
    )
    places = {uri: pictures.by_uri[uri] for uri in candidates if uri in pictures.by_uri}
    owner = {place: uri for uri, place in places.items()}
    for uri in candidates:
        same = [i for i in pictures.by_name.get(_base(uri), []) if owner.get(i) not in places]
        if uri in places or not same:
            continue
        if len(same) > 1 or same[0] in owner:
            raise UsageError(
                f"several pictures named {_base(uri)} in {output} or {samples}: give the samples "
                "table the column uri with the annotated URIs, so that they can be told apart"
            )
        owner[same[0]] = uri
    places |= {uri: place for place, uri in owner.items()}
    if not places:
        raise UsageError(
            f"no picture of {samples} is in {output}, neither by uri nor by file name "
            f"(labelled: {next(iter(pictures.by_name))}, …); annotate the labelled pictures first"
        )
    return places


def _batches(
    dataset: ds.Dataset, pictures: Pictures, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Rows of pictures (not videos) that have a label's URI or file name, part after part."""
    names = pa.array(list(pictures.by_name), pa.string())
    for batch in dataset.to_batches(columns=columns, filter=pc.field("media_type") == "image"):
        base = pc.replace_substring_regex(batch["uri"], "^.*/", "")
        yield batch.filter(pc.is_in(base, names))


def _found(
    dataset: ds.Dataset,
    own: Skeleton,
    skeleton: Skeleton,
    places: dict[str, int],
    names: tuple[str, str],
) -> tuple[PredictedPeople, NDArray[np.bool_], tuple[str, ...]]:
    """People in labelled pictures, in the labels' order of joints."""
    picture, points, score = [], [], []
    wanted = Pictures({}, {_base(uri): [] for uri in places})
    for batch in _batches(dataset, wanted, _COLUMNS):
        for row in batch.filter(pc.equal(batch["status"], "ok")).to_pylist():
            if row["uri"] in places:
                picture.append(places[row["uri"]])
                points.append([row["x"], row["y"]])
                score.append(row["score"])
    keypoints = np.array(points, np.float64).reshape(-1, 2, len(own)).transpose(0, 2, 1)
    named, joints, notes = by_name(keypoints, own, skeleton, names)
    found = PredictedPeople(np.array(picture, np.int64), named, np.array(score, np.float64))
    return found, joints, notes


def _base(uri: str) -> str:
    return PurePosixPath(uri).name
