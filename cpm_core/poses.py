"""From poses at boxes to the people of a picture: a score for each, and nobody twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpm_core.metrics.similarity import default_area, oks

SAME_PERSON = 0.7
"""OKS from which two poses are one person found twice; chosen with `benchmarks/person_score.py`."""


def person_score(
    keypoint_scores: NDArray[np.floating], box_scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(N,) scores that order people, from keypoint scores (N, K) and the boxes' scores (N,).

    A box that was given, not found, has score 1. The root takes weight off the box's score: by
    `benchmarks/person_score.py` it orders people better than the plain product.
    """
    return np.asarray(np.sqrt(box_scores) * keypoint_scores.mean(axis=1), np.float64)


def without_doubles(
    keypoints: NDArray[np.floating],
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    sigmas: ArrayLike,
    threshold: float = SAME_PERSON,
) -> NDArray[np.int64]:
    """Which of the N people of one picture stay, ascending: of those alike only the best.

    `keypoints` (N, K, 2 or more), `boxes` (N, 4), `scores` (N,); of equal scores the first wins.
    A person is alike to a better one if the OKS, with that one as the label, is at least
    `threshold`.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    areas, points = default_area(boxes), keypoints[..., :2]
    every_joint = np.ones((1, keypoints.shape[1]), bool)
    stays = np.ones(len(order), bool)
    for place, best in enumerate(order.tolist()):
        rest = order[place + 1 :]
        if stays[best] and len(rest):
            one = slice(best, best + 1)
            alike = oks(points[rest], points[one], every_joint, areas[one], sigmas)[:, 0]
            stays[rest[alike >= threshold]] = False
    return np.flatnonzero(stays)
