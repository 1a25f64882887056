"""Locator and weights together on whole pictures: who is found, and how well."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.finder import PoseFinder, Poses
from cpm_core.metrics import PredictedPeople
from pipeline.errors import UsageError
from pipeline.evaluation.comparison import (
    LABEL_COLUMNS,
    Comparison,
    by_name,
    ignored_of,
    labels_of,
    picture_key,
)
from pipeline.evaluation.matching import assign
from pipeline.evaluation.weights import left_out, nothing_left
from pipeline.pace import Pace
from pipeline.samples import SampleTable, decode_sample, iter_rows
from pipeline.storage import StorageOptions

_SECONDS = 10.0
Key = tuple[str, str]


def find_in_pictures(
    samples: str, split: str | None, weights: str, finder: PoseFinder, options: StorageOptions
) -> Comparison:
    """Find everybody in the pictures of a samples table (of one split). Raises UsageError.

    Pictures that cannot be read are left out with their people, and a note counts them. `weights`
    is what the estimator is called in messages.
    """
    table = SampleTable(samples, options)
    rows, poses, problems = _find_all(table, split, finder)
    if not rows:
        raise nothing_left(samples, split, problems)
    places = {key: i for i, key in enumerate(poses)}
    pictures = [places[picture_key(row)] for row in rows]
    labels, head_size = labels_of(rows, pictures)
    skeleton = finder.estimator.info.skeleton
    points, score, picture = _stacked(list(poses.values()), len(skeleton))
    named, joints, notes = by_name(points, skeleton, table.skeleton, (weights, samples))
    found = PredictedPeople(picture, named, score)
    predicted = assign(found, labels, table.skeleton, joints)
    alone = int(np.isnan(predicted).all(axis=(1, 2)).sum())
    notes += (
        f"{len(poses)} pictures: {len(rows)} people labelled, {len(score)} found; {alone} labelled "
        "people whom nobody stands for",
        *left_out(problems, "pictures"),
    )
    return Comparison(
        *(samples, table.skeleton, labels, head_size, predicted[None], joints, found, notes),
        ignored_of(rows, pictures),
    )


def _find_all(
    table: SampleTable, split: str | None, finder: PoseFinder
) -> tuple[list[dict[str, Any]], dict[Key, Poses], list[str]]:
    """Labels of the pictures that can be read, everybody in each picture, and what went wrong.

    A picture has a row for each of its labelled people, and is looked at once.
    """
    pace = Pace("evaluate", "pictures", _SECONDS)
    rows: list[dict[str, Any]] = []
    poses: dict[Key, Poses] = {}
    problems: dict[Key, str] = {}
    for row in iter_rows(table, split):
        key = picture_key(row)
        if key not in poses and key not in problems:
            try:
                poses[key] = finder.find(decode_sample(row, table.options).image)
            except UsageError as error:
                problems[key] = str(error)
            pace.step()
        if key in poses:
            rows.append({name: row.get(name) for name in LABEL_COLUMNS})
    return rows, poses, list(problems.values())


def _stacked(
    poses: list[Poses], joints: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Points (M, K, 2), scores (M,) and the number of the picture (M,) of everybody."""
    points = [np.empty((0, joints, 2), np.float32), *(p.keypoints[..., :2] for p in poses)]
    scores = [np.empty(0), *(p.scores for p in poses)]
    pictures = np.repeat(np.arange(len(poses)), [len(p) for p in poses])
    return np.concatenate(points).astype(np.float64), np.concatenate(scores), pictures
