"""Weights on a samples table: every labelled person, at the box that the table gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.estimator import Estimator
from cpm_core.metrics import PredictedPeople
from pipeline.errors import UsageError
from pipeline.evaluation.comparison import (
    LABEL_COLUMNS,
    Comparison,
    by_name,
    labels_of,
    no_samples,
    picture_key,
)
from pipeline.pace import Pace
from pipeline.samples import SampleTable, decode_sample, iter_rows
from pipeline.storage import StorageOptions

_SECONDS = 10.0
_NAMED = 3
"""So many samples that cannot be used are named."""


def estimate_samples(
    samples: str, split: str | None, weights: str, estimator: Estimator, options: StorageOptions
) -> Comparison:
    """Estimate every person of a samples table (of one split). Raises UsageError.

    Samples that cannot be used are left out, and a note counts them. `weights` is what the
    estimator is called in messages.
    """
    table = SampleTable(samples, options)
    rows, stages, problems = _estimate_all(table, split, estimator)
    if not rows:
        raise nothing_left(samples, split, problems)
    keys = [picture_key(row) for row in rows]
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    labels, head_size = labels_of(rows, [places[key] for key in keys])
    keypoints = np.stack(stages, axis=1)
    predicted, joints, notes = by_name(
        keypoints[..., :2], estimator.info.skeleton, table.skeleton, (weights, samples)
    )
    score = keypoints[-1, ..., 2].mean(axis=-1)
    found = PredictedPeople(labels.picture, predicted[-1], score)
    notes += left_out(problems, "people")
    return Comparison(samples, table.skeleton, labels, head_size, predicted, joints, found, notes)


def _estimate_all(
    table: SampleTable, split: str | None, estimator: Estimator
) -> tuple[list[dict[str, Any]], list[NDArray[np.float64]], list[str]]:
    """Labels and keypoints of the samples that can be used, and why the others cannot."""
    pace = Pace("evaluate", "people", _SECONDS)
    rows, stages, problems = [], [], []
    for row in iter_rows(table, split):
        try:
            stages.append(_estimate(estimator, row, table.options))
            rows.append({name: row.get(name) for name in LABEL_COLUMNS})
        except UsageError as error:  # a picture that cannot be read, a box that is none
            problems.append(str(error))
        pace.step()
    return rows, stages, problems


def nothing_left(samples: str, split: str | None, problems: list[str]) -> UsageError:
    if not problems:
        return no_samples(samples, split)
    count = len(problems)
    return UsageError(f"{samples}: none of {count} samples can be used; the first: {problems[0]}")


def left_out(problems: list[str], what: str) -> tuple[str, ...]:
    """A note that counts what was left out and names the first few."""
    if not problems:
        return ()
    more = "; …" if len(problems) > _NAMED else ""
    return (f"{len(problems)} {what} left out: {'; '.join(problems[:_NAMED])}{more}",)


def _estimate(
    estimator: Estimator, row: dict[str, Any], options: StorageOptions
) -> NDArray[np.float64]:
    """Keypoints (T, K, 3) after every stage, in pixels of the picture."""
    sample = decode_sample(row, options)
    return estimator.estimate_stages(sample.image, sample.box[None])[:, 0].astype(np.float64)
