"""What the network makes of a shard's crops: rows with keypoints, everybody once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cpm_core.poses import without_doubles
from cpm_core.whole_image import WIDE, estimate_whole
from pipeline.rows import annotation_rows, boxes_of, crops_of, keypoints_of, people_of, with_boxes

if TYPE_CHECKING:
    from cpm_core.keypoints import KeypointEstimator


def estimate_rows(
    estimator: KeypointEstimator, table: pa.Table, same_person: float | None = None
) -> pa.Table:
    """Annotation rows from rows with crops; with `same_person` without people found twice."""
    skeleton = estimator.info.skeleton
    if _is_whole(table):
        table, keypoints = _estimate_whole(estimator, table)
    else:
        keypoints = _estimate(estimator, table)
    rows = annotation_rows(table, keypoints, len(skeleton))
    return rows if same_person is None else drop_doubles(rows, skeleton.oks_sigmas, same_person)


def _is_whole(table: pa.Table) -> bool:
    """Whether a person's view is the whole picture: all of a run's are, or none."""
    sources = people_of(table)["box_source"]
    return len(sources) > 0 and sources[0].as_py() == "whole-image"


def _estimate(estimator: KeypointEstimator, table: pa.Table) -> NDArray[np.float32]:
    """Keypoints (N, K, 3) in pixels of the pictures."""
    cropper = estimator.cropper
    crops = crops_of(table, (len(cropper.scales), cropper.size, cropper.size, 3))
    keypoints = estimator.estimate_crops(crops)
    boxes = boxes_of(table)
    for n, (width, height) in enumerate(_sizes(table)):
        one = slice(n, n + 1)
        keypoints[one] = cropper.to_picture(keypoints[one], boxes[one], width, height)
    return keypoints


def _estimate_whole(
    estimator: KeypointEstimator, table: pa.Table
) -> tuple[pa.Table, NDArray[np.float32]]:
    """The table with the boxes that the network looked at last, and keypoints (N, K, 3)."""
    side = WIDE * estimator.cropper.size
    wides = crops_of(table, (side, side, 3))
    boxes, keypoints = estimate_whole(estimator, wides, _sizes(table))
    return with_boxes(table, boxes), keypoints


def _sizes(table: pa.Table) -> NDArray[np.int64]:
    """Width and height (N, 2) of the picture of each person."""
    people = people_of(table)
    return np.stack([np.asarray(people[name], np.int64) for name in ("width", "height")], axis=1)


def drop_doubles(rows: pa.Table, sigmas: tuple[float, ...], threshold: float) -> pa.Table:
    """Annotation rows in which nobody of a frame is there twice, counted anew from 0.

    A frame's best person stays, so every frame keeps a row.
    """
    index = rows["person_index"].combine_chunks().fill_null(0).to_numpy()
    starts = np.append(np.flatnonzero(index == 0), len(index))
    points, scores = keypoints_of(rows, len(sigmas)), rows["score"].to_numpy()
    boxes = np.zeros((len(index), 4))
    boxes[np.asarray(rows["person_index"].is_valid())] = boxes_of(rows)
    stays, number = np.ones(len(index), bool), index.copy()
    for start, end in pairwise(starts.tolist()):
        if end - start > 1:
            frame = slice(start, end)
            kept = start + without_doubles(
                points[frame], boxes[frame], scores[frame], sigmas, threshold
            )
            stays[frame] = False
            stays[kept] = True
            number[kept] = np.arange(len(kept))
    nobody = ~np.asarray(rows["person_index"].is_valid())
    place = rows.column_names.index("person_index")
    numbered = rows.set_column(
        place, rows.schema.field(place), pa.array(number, pa.int16(), mask=nobody)
    )
    return numbered.filter(pa.array(stays))
