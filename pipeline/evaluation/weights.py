"""Weights on a samples table: every labelled person, at the box that the table gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.estimator import Estimator
from cpm_core.metrics import PredictedPeople
from pipeline.evaluation.comparison import (
    LABEL_COLUMNS,
    Comparison,
    by_name,
    labels_of,
    no_samples,
    picture_key,
)
from pipeline.samples import SampleTable, decode_sample, iter_rows
from pipeline.storage import StorageOptions


def estimate_samples(
    samples: str, split: str | None, weights: str, estimator: Estimator, options: StorageOptions
) -> Comparison:
    """Estimate every person of a samples table (of one split). Raises UsageError.

    `weights` is what the estimator is called in messages.
    """
    table = SampleTable(samples, options)
    rows, stages = [], []
    for row in iter_rows(table, split):
        stages.append(_estimate(estimator, row, options))
        rows.append({name: row.get(name) for name in LABEL_COLUMNS})
    if not rows:
        raise no_samples(samples, split)
    keys = [picture_key(row) for row in rows]
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    labels, head_size = labels_of(rows, [places[key] for key in keys])
    keypoints = np.stack(stages, axis=1)
    predicted, joints, notes = by_name(
        keypoints[..., :2], estimator.info.skeleton, table.skeleton, (weights, samples)
    )
    score = keypoints[-1, ..., 2].mean(axis=-1)
    found = PredictedPeople(labels.picture, predicted[-1], score)
    return Comparison(samples, table.skeleton, labels, head_size, predicted, joints, found, notes)


def _estimate(
    estimator: Estimator, row: dict[str, Any], options: StorageOptions
) -> NDArray[np.float64]:
    """Keypoints (T, K, 3) after every stage, in pixels of the picture."""
    sample = decode_sample(row, options)
    return estimator.estimate_stages(sample.image, sample.box[None])[:, 0].astype(np.float64)
