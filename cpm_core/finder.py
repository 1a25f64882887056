"""Everybody in a picture: a locator, an estimator, and what comes after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpm_core.keypoints import KeypointEstimator
from cpm_core.people import Locator, People, Picture, WholeImage
from cpm_core.poses import SAME_PERSON, person_score, without_doubles
from cpm_core.whole_image import estimate_whole, wide_view

MOST_PEOPLE = 50


@dataclass(frozen=True)
class Poses:
    """The people of a picture: where each was looked for, `keypoints` (N, K, 3) in pixels of the
    picture, and `scores` (N,) that order them."""

    people: People
    keypoints: NDArray[np.float32]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)


class PoseFinder:
    """Finds the poses of everybody in a picture, as `posemill annotate` does.

    `same_person` is the OKS from which two poses are one person found twice, None keeps all; at
    most the `most_people` best boxes are looked at.
    """

    def __init__(
        self,
        locator: Locator,
        estimator: KeypointEstimator,
        same_person: float | None = SAME_PERSON,
        most_people: int = MOST_PEOPLE,
    ) -> None:
        self.locator = locator
        self.estimator = estimator
        self.same_person = same_person
        self.most_people = most_people

    def find(self, picture: Picture) -> Poses:
        """The people of an RGB picture (H, W, 3), in the locator's order."""
        people = self.locator.locate(picture).best(self.most_people)
        if isinstance(self.locator, WholeImage):
            wide = wide_view(picture, self.estimator.cropper.size)[None]
            size = np.array([[picture.shape[1], picture.shape[0]]])
            boxes, keypoints = estimate_whole(self.estimator, wide, size)
            people = People(boxes, people.scores, people.source)
        else:
            keypoints = self.estimator.estimate(picture, people.boxes)
        scores = person_score(keypoints[..., 2], people.scores)
        if self.same_person is None:
            return Poses(people, keypoints, scores)
        sigmas = self.estimator.info.skeleton.oks_sigmas
        kept = without_doubles(keypoints, people.boxes, scores, sigmas, self.same_person)
        left = People(people.boxes[kept], people.scores[kept], people.source)
        return Poses(left, keypoints[kept], scores[kept])
