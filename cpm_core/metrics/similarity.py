"""Object keypoint similarity and the average precision that COCO computes with it.

OKS = mean over labelled joints of exp(-d^2 / (2 s^2 (2 sigma)^2)), with d the distance in pixels,
s^2 the person's area and sigma the joint's (https://cocodataset.org/#keypoints-eval).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]

BODY_SHARE = 0.53
"""Of a person's box, the share that the body covers: COCO-style evaluation without masks."""

_FIGURES = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "AP_medium": "AP_medium",
    "AP_large": "AP_large",
    "AR": "AR_all",
}
_CATEGORY = 1


@dataclass(frozen=True)
class LabelledPeople:
    """N people: index of their `picture` (N,), `keypoints` (N, K, 2), `labelled` (N, K), `box`
    (N, 4: x, y, w, h) and `area` (N,) in square pixels. People without a labelled joint are
    ignored."""

    picture: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    box: NDArray[np.float64]
    area: NDArray[np.float64]


@dataclass(frozen=True)
class IgnoredPeople:
    """N people who are there but not labelled: `picture` (N,), `box` (N, 4), `area` (N,), and which
    (N,) are a `crowd`. Who is found at one is no false positive; at a crowd, several may be."""

    picture: NDArray[np.int64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.picture)


@dataclass(frozen=True)
class PredictedPeople:
    """M people: index of their `picture` (M,), `keypoints` (M, K, 2) and `score` (M,)."""

    picture: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    score: NDArray[np.float64]


def default_area(box: Floats) -> NDArray[np.float64]:
    """(N,) square pixels of the body in boxes (N, 4) where no mask tells."""
    return np.asarray(BODY_SHARE * box[:, 2] * box[:, 3], np.float64)


def oks(
    predicted: Floats,
    labels: Floats,
    labelled: NDArray[np.bool_],
    area: Floats,
    sigmas: ArrayLike,
) -> NDArray[np.float64]:
    """(P, G) similarity, 0 to 1, of keypoints (P, K, 2) to labels (G, K, 2) with `labelled` (G, K).

    A joint that is not predicted (NaN) is far away; a person without labelled joints is like
    nobody.
    """
    squared = ((predicted[:, None].astype(float) - labels[None].astype(float)) ** 2).sum(axis=-1)
    # COCO's own guard against an area of zero.
    spread = 2 * (area[:, None] + np.spacing(1)) * (2 * np.asarray(sigmas)) ** 2
    alike = np.exp(-np.where(np.isnan(squared), np.inf, squared) / spread) * labelled
    return np.asarray(alike.sum(axis=-1) / np.maximum(labelled.sum(axis=-1), 1), np.float64)


def average_precision(
    predicted: PredictedPeople,
    labels: LabelledPeople,
    sigmas: ArrayLike,
    ignored: IgnoredPeople | None = None,
) -> dict[str, float]:
    """COCO's figures in percent: AP, AP50, AP75, AP_medium, AP_large, AR; NaN where undefined.

    AP is the mean over OKS thresholds 0.50:0.05:0.95, with at most 20 people per picture; medium
    is an area of 32^2 to 96^2, large is above. Uses faster-coco-eval, which raises ImportError
    where it is not installed.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not labels.labelled.any():
        return dict.fromkeys(_FIGURES, float("nan"))
    pictures = np.union1d(labels.picture, predicted.picture)
    if ignored is not None:
        pictures = np.union1d(pictures, ignored.picture)
    truth = COCO(
        {
            "images": [{"id": int(i) + 1} for i in pictures],
            "categories": [{"id": _CATEGORY, "name": "person"}],
            "annotations": _truth(labels) + _ignored(ignored, labels),
        }
    )
    found = truth.loadRes(_found(predicted))
    sigmas = np.asarray(sigmas, np.float64).tolist()
    evaluation = COCOeval_faster(truth, found, "keypoints", kpt_oks_sigmas=sigmas)
    evaluation.run()
    figures: dict[str, float] = evaluation.stats_as_dict
    # COCO says -1 where nobody is of that size.
    values = {ours: figures[theirs] for ours, theirs in _FIGURES.items()}
    return {name: 100 * v if v >= 0 else float("nan") for name, v in values.items()}


def _truth(people: LabelledPeople) -> list[dict[str, Any]]:
    """COCO's annotations; ids start at 1, as 0 means "not matched" to its evaluation."""
    flags = people.labelled[..., None]
    rows = np.concatenate([np.where(flags, people.keypoints, 0), 2 * flags], axis=-1)
    return [
        {
            "id": i + 1,
            "image_id": int(people.picture[i]) + 1,
            "category_id": _CATEGORY,
            "iscrowd": 0,
            "keypoints": row.reshape(-1).tolist(),
            "num_keypoints": int(people.labelled[i].sum()),
            "bbox": people.box[i].tolist(),
            "area": float(people.area[i]),
        }
        for i, row in enumerate(rows)
    ]


def _ignored(people: IgnoredPeople | None, labels: LabelledPeople) -> list[dict[str, Any]]:
    """COCO's annotations of people without keypoints, which it passes over."""
    if people is None:
        return []
    count, joints = len(labels.picture), labels.keypoints.shape[1]
    return [
        {
            "id": count + i + 1,
            "image_id": int(people.picture[i]) + 1,
            "category_id": _CATEGORY,
            "iscrowd": int(people.crowd[i]),
            "keypoints": [0] * 3 * joints,
            "num_keypoints": 0,
            "bbox": people.box[i].tolist(),
            "area": float(people.area[i]),
        }
        for i in range(len(people))
    ]


def _found(people: PredictedPeople) -> list[dict[str, Any]]:
    """COCO's results; no confidences, as the third value is not looked at."""
    ones = np.ones((*people.keypoints.shape[:2], 1))
    rows = np.concatenate([people.keypoints, ones], axis=-1)
    return [
        {
            "image_id": int(people.picture[i]) + 1,
            "category_id": _CATEGORY,
            "keypoints": row.reshape(-1).tolist(),
            "score": float(people.score[i]),
        }
        for i, row in enumerate(rows)
    ]
