"""From keypoints to the figures of `quality.py`'s tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_data import SKELETON, Floats, Set

from cpm_core.metrics import (
    PredictedPeople,
    average_precision,
    joint_rows,
    limb_joints,
    lspet_errors,
)
from cpm_core.poses import person_score

THRESHOLD = 0.2
_LIMBS = limb_joints(SKELETON)


class Results:
    """What one model said about all pictures, one after the other."""

    def __init__(self) -> None:
        self._pictures: list[NDArray[np.int64]] = []
        self._keypoints: list[Floats] = []
        self._scores: list[Floats] = []

    def add(self, picture: int, keypoints: Floats, scores: Floats | None = None) -> None:
        """Keypoints (T, N, 14, 3) of a picture's people, and the scores (N,) of their boxes."""
        count = keypoints.shape[1]
        self._pictures.append(np.full(count, picture))
        self._keypoints.append(keypoints)
        self._scores.append(np.ones(count) if scores is None else scores)

    @property
    def keypoints(self) -> Floats:
        """(T, N, 14, 3); a picture without people may have fewer stages."""
        stages = max(len(k) for k in self._keypoints)
        return np.concatenate([k for k in self._keypoints if len(k) == stages], axis=1)

    def people(self) -> PredictedPeople:
        """After the last stage, scored as by `posemill annotate`, by the joints that are there."""
        keypoints = np.concatenate([k[-1] for k in self._keypoints])
        beliefs = keypoints[..., 2]
        known = ~np.isnan(beliefs).any(axis=0)
        score = person_score(beliefs[:, known], np.concatenate(self._scores))
        return PredictedPeople(np.concatenate(self._pictures), keypoints[..., :2], score)


def pck(results: Results, people: Set) -> dict[str, Any]:
    """PCK@0.2 in percent: `limb` joints, `all` (None where the model lacks some), `rows` by kind of
    joint, and the limb joints by `stages`; `people` is how many have the unit of length."""
    keypoints, labels = results.keypoints, people.labels
    known = ~np.isnan(keypoints[-1, ..., 0]).any(axis=0)
    counted = labels.labelled & known
    errors = [
        lspet_errors(stage[..., :2], labels.keypoints, labels.labelled, SKELETON).only(known)
        for stage in keypoints
    ]
    last = errors[-1].at(THRESHOLD)
    rows = {
        name: float(np.mean(last.by_joint[list(joints)]))
        for name, joints in joint_rows(SKELETON).items()
        if known[list(joints)].all() and counted[:, list(joints)].any(axis=0).all()
    }
    stages = [error.only(_LIMBS).at(THRESHOLD).total for error in errors]
    return {
        "limb": stages[-1],
        "all": last.total if known.all() else None,
        "rows": rows,
        "stages": stages,
        "people": int((~np.isnan(errors[-1].values)).any(axis=1).sum()),
    }


def similarity(results: Results, people: Set) -> dict[str, Any]:
    """COCO's figures of the limb joints, and how many people were `found`."""
    found = results.people()
    labels = people.labels
    limbs = PredictedPeople(found.picture, found.keypoints[:, _LIMBS], found.score)
    truth = type(labels)(
        labels.picture,
        labels.keypoints[:, _LIMBS],
        labels.labelled[:, _LIMBS],
        labels.box,
        labels.area,
    )
    sigmas = np.array(SKELETON.oks_sigmas)[_LIMBS]
    return {"found": len(found.score), **average_precision(limbs, truth, sigmas)}
