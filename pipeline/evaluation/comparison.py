"""What all kinds of input come down to: labelled people, and what was predicted for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.metrics import IgnoredPeople, LabelledPeople, PredictedPeople, default_area
from cpm_core.skeleton import Skeleton
from pipeline.errors import UsageError
from pipeline.storage import path_of, protocol_of, uri_of

LABEL_COLUMNS = (
    *("source", "uri", "split", "box", "area", "head_size", "x", "y", "labelled", "ignored"),
)


@dataclass(frozen=True)
class Comparison:
    """Labels of N people, and what was predicted for them after each of T stages.

    `predicted` (T, N, K, 2) is in the order of the labels' skeleton, in the labels' pixels, NaN
    where nobody was found; `joints` (K,) are those that were predicted at all. `head_size` (N,) is
    in pixels, NaN where unknown. `found` are all people that were predicted, for OKS; None where
    predictions carry no scores. `notes` are lines for the reader; `ignored` are people of the same
    pictures without labels.
    """

    labels_name: str
    skeleton: Skeleton
    labels: LabelledPeople
    head_size: NDArray[np.float64]
    predicted: NDArray[np.float64]
    joints: NDArray[np.bool_]
    found: PredictedPeople | None
    notes: tuple[str, ...] = ()
    ignored: IgnoredPeople | None = None


def uri_in_tables(uri: str) -> str:
    """A URI as the annotation table writes it."""
    return uri_of(protocol_of(uri), path_of(uri))


def picture_key(row: dict[str, Any]) -> tuple[str, str]:
    """Which picture a row of a samples table is of: URI, if any, and source (frames of a video
    share its URI)."""
    uri = row.get("uri")
    return uri_in_tables(uri) if uri else "", str(row["source"])


def no_samples(samples: str, split: str | None) -> UsageError:
    """Nothing to measure on."""
    return UsageError(f"{samples}: no samples" + (f" in split {split!r}" if split else ""))


def labels_of(
    rows: Sequence[dict[str, Any]], pictures: Sequence[int]
) -> tuple[LabelledPeople, NDArray[np.float64]]:
    """People of a samples table's rows, and their head sizes (N,)."""
    box = np.array([row["box"] for row in rows], np.float64)
    area = _optional(rows, "area")
    people = LabelledPeople(
        picture=np.asarray(pictures, np.int64),
        keypoints=np.stack([_column(rows, "x"), _column(rows, "y")], axis=-1),
        labelled=np.array([row["labelled"] for row in rows], bool),
        box=box,
        area=np.where(np.isnan(area), default_area(box), area),
    )
    return people, _optional(rows, "head_size")


def ignored_of(rows: Sequence[dict[str, Any]], pictures: Sequence[int]) -> IgnoredPeople:
    """People without labels in the pictures of a samples table's rows, each picture's once."""
    of_picture = {
        picture: row.get("ignored") or [] for row, picture in zip(rows, pictures, strict=True)
    }
    people = [(picture, person) for picture, here in of_picture.items() for person in here]
    box = np.array([person["box"] for _, person in people], np.float64).reshape(-1, 4)
    area = _optional([person for _, person in people], "area")
    return IgnoredPeople(
        picture=np.array([picture for picture, _ in people], np.int64),
        box=box,
        area=np.where(np.isnan(area), default_area(box), area),
        crowd=np.array([person["crowd"] for _, person in people], bool),
    )


def by_name(
    points: NDArray[np.floating], source: Skeleton, target: Skeleton, names: tuple[str, str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[str, ...]]:
    """Points (..., K, 2) of one skeleton in the order of another, NaN for joints it lacks.

    Also which joints (K',) of `target` they cover, and a note if those are not all. `names` say
    in errors what the skeletons belong to.
    """
    shared = np.array([name in source.keypoints for name in target.keypoints])
    if not shared.any():
        raise UsageError(
            f"{names[0]} has skeleton {source.name} and {names[1]} has {target.name}: "
            "no joint has the same name in both"
        )
    result = np.full((*points.shape[:-2], len(target), 2), np.nan)
    order = [source.index(target.keypoints[i]) for i in np.flatnonzero(shared)]
    result[..., shared, :] = points[..., order, :]
    if shared.all():
        return result, shared, ()
    left_out = [n for n, both in zip(target.keypoints, shared, strict=True) if not both]
    note = f"skeletons {source.name} and {target.name} share {shared.sum()} joints; left out: "
    return result, shared, (note + ", ".join(left_out),)


def _column(rows: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows], np.float64)


def _optional(rows: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """A column that older tables lack and that may be null: NaN for both."""
    return np.array([row.get(name) for row in rows], np.float64)
