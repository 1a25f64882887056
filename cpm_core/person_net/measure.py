"""How well a locator finds people: recall at an overlap, and false detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpm_core.people import People
from cpm_core.person_net.photos import Boxes, iou

MATCH_IOU = 0.5
SHORTEST = 80
"""Pixels: people less tall are not asked for."""


def hits(found: People, labels: Boxes, match_iou: float = MATCH_IOU) -> NDArray[np.bool_]:
    """(N,) which labelled boxes (N, 4) are found; a detection, best first, counts for one box."""
    taken = np.zeros(len(labels), bool)
    if len(labels):
        for overlaps in iou(found.boxes, labels):
            overlaps = np.where(taken, 0, overlaps)
            best = int(overlaps.argmax())
            taken[best] |= overlaps[best] >= match_iou
    return taken


def strangers(found: People, labels: Boxes, ignore: Boxes) -> int:
    """Detections that overlap neither a label nor a region to ignore by more than a fifth."""
    known = np.concatenate([labels, ignore])
    if not len(known) or not len(found):
        return len(found)
    low = np.maximum(found.boxes[:, None, :2], known[None, :, :2])
    high = np.minimum(
        (found.boxes[:, :2] + found.boxes[:, 2:])[:, None], (known[:, :2] + known[:, 2:])[None]
    )
    common = np.clip(high - low, 0, None).prod(axis=2)
    share = common / np.maximum(found.boxes[:, 2:].prod(axis=1)[:, None], 1e-9)
    return int((share.max(axis=1) < 0.2).sum())


@dataclass(frozen=True)
class Curve:
    """Recall of labelled people, and false detections per picture, at each threshold."""

    thresholds: NDArray[np.float64]
    recall: NDArray[np.float64]
    false: NDArray[np.float64]

    def recall_at(self, most_false: float) -> float:
        """The best recall with at most so many false detections per picture."""
        return float(self.recall[self.false <= most_false].max(initial=0.0))

    def threshold_at(self, most_false: float) -> float:
        """The lowest threshold with at most so many false detections per picture."""
        return float(self.thresholds[self.false <= most_false].min(initial=0.99))


def curve(
    found: Sequence[People],
    labels: Sequence[Boxes],
    ignore: Sequence[Boxes | None],
    thresholds: NDArray[np.float64],
) -> Curve:
    """The curve over pictures; people found must reach down to the lowest threshold.

    False detections are counted where the regions to ignore are known, not where they are None.
    """
    recall, false = [], []
    for threshold in thresholds:
        sure = [
            People(f.boxes[f.scores >= threshold], f.scores[f.scores >= threshold], f.source)
            for f in found
        ]
        tall = [boxes[:, 3] >= SHORTEST for boxes in labels]
        caught = sum(int(hits(s, b)[t].sum()) for s, b, t in zip(sure, labels, tall, strict=True))
        recall.append(caught / max(1, sum(int(t.sum()) for t in tall)))
        counted = ((s, b, i) for s, b, i in zip(sure, labels, ignore, strict=True) if i is not None)
        alarms = [strangers(*each) for each in counted]
        false.append(sum(alarms) / max(1, len(alarms)))
    return Curve(thresholds, np.array(recall), np.array(false))
