"""Which predicted person is which labelled one, within a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
