"""Which predicted person is which labelled one, within a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpm_core.metrics import LabelledPeople, PredictedPeople, oks
from cpm_core.skeleton import Skeleton

SAME_PERSON = 0.5
"""OKS from which two poses are taken for one person: COCO's loosest threshold."""


def match(similarity: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each of G labelled people, which of P predicted ones it is, or -1.

    `similarity` (P, G) is OKS. First as COCO: people in order of `score` (P,), each takes the free
    label most like it, if that is SAME_PERSON. Then what is left over on both sides, the most alike
    first: a poor estimate is measured joint by joint, and a bystander with a high score cannot take
    the label of somebody who was found.
    """
    free = similarity.copy()
    chosen = np.full(similarity.shape[1], -1)

    def take(person: int, label: int) -> None:
        chosen[label] = person
        free[person, :] = -1
        free[:, label] = -1

    if not similarity.size:
        return chosen
    for person in np.argsort(-score, kind="stable").tolist():
        label = int(free[person].argmax())
        if free[person, label] >= SAME_PERSON:
            take(person, label)
    for _ in range(min(similarity.shape)):
        person, label = divmod(int(free.argmax()), free.shape[1])
        if free[person, label] >= 0:
            take(person, label)
    return chosen


def assign(
    found: PredictedPeople,
    labels: LabelledPeople,
    skeleton: Skeleton,
    joints: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Keypoints (N, K, 2) predicted for each labelled person, NaN where there are none."""
    assigned = np.full(labels.keypoints.shape, np.nan)
    people = _by_picture(found.picture)
    for picture, here in _by_picture(labels.picture).items():
        there = people.get(picture, np.empty(0, np.int64))
        alike = oks(
            found.keypoints[there],
            labels.keypoints[here],
            labels.labelled[here] & joints,
            labels.area[here],
            skeleton.oks_sigmas,
        )
        chosen = match(alike, found.score[there])
        assigned[here[chosen >= 0]] = found.keypoints[there[chosen[chosen >= 0]]]
    return assigned


def _by_picture(picture: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Which people are in each picture."""
    order = np.argsort(picture, kind="stable")
    values, starts = np.unique(picture[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=False))
