"""Percentage of correct keypoints (PCK): Sapp and Taskar 2013; Yang and Ramanan 2013.

A joint is correct if it lies within 0.2 of a reference length of its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpm_core.skeleton import Skeleton

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

LIMB_JOINTS = ("ankle", "knee", "hip", "wrist", "elbow", "shoulder")
"""The six kinds of joint, left and right, that all skeletons share: no neck, no head top."""


@dataclass(frozen=True)
class Pck:
    """Percent of correct joints: `total`, and `by_joint` in the skeleton's order.

    NaN where none counted; `counted` is the number of joints behind `total`.
    """

    total: float
    by_joint: NDArray[np.float64]
    counted: int


def pck_lsp(predicted: Floats, labels: Floats, skeleton: Skeleton, threshold: float = 0.2) -> Pck:
    """As the CPM paper on LSP: unit is left shoulder to right hip, every joint counts, `<=`.

    `predicted` and `labels` are (N, K, 2), in the same pixels.
    """
    a, b = skeleton.index("left_shoulder"), skeleton.index("right_hip")
    every = np.ones(labels.shape[:2], bool)
    return _pck(predicted, labels, every, _distance(labels[:, a], labels[:, b]), threshold)


def pck_lspet(
    predicted: Floats,
    labels: Floats,
    labelled: Bools,
    skeleton: Skeleton,
    threshold: float = 0.2,
    joints: Bools | None = None,
) -> Pck:
    """Pooled over labelled joints; unit is the first labelled pair of `skeleton.pck_reference`.

    `predicted` and `labels` are (N, K, 2), `labelled` (N, K), `joints` (K,) which joints count
    (default: all). People without a labelled reference pair do not count; a skeleton without
    reference pairs uses the longer side of the box around the labelled joints.
    """
    counts = labelled if joints is None else labelled & joints
    return _pck(predicted, labels, counts, reference_length(labels, labelled, skeleton), threshold)


def reference_length(labels: Floats, labelled: Bools, skeleton: Skeleton) -> NDArray[np.float64]:
    """(N,) PCK's unit in pixels, NaN for a person without one."""
    unit = np.full(len(labels), np.nan)
    if not skeleton.pck_reference:
        known = labelled.any(axis=1)
        points = np.where(labelled[known][..., None], labels[known], np.nan)
        unit[known] = (np.nanmax(points, axis=1) - np.nanmin(points, axis=1)).max(axis=-1)
        return unit
    for a, b in reversed(skeleton.pck_reference):
        both = labelled[:, a] & labelled[:, b]
        unit[both] = _distance(labels[both, a], labels[both, b])
    return unit


def limb_joints(skeleton: Skeleton) -> Bools:
    """(K,) which joints are limb joints: ankles, knees, hips, wrists, elbows, shoulders."""
    return np.array([name.endswith(LIMB_JOINTS) for name in skeleton.keypoints])


def _distance(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Between points (..., 2); as floats, since unsigned pixels would wrap around."""
    distance: NDArray[np.float64] = np.linalg.norm(a.astype(float) - b.astype(float), axis=-1)
    return distance


def _pck(predicted: Floats, labels: Floats, counts: Bools, unit: Floats, threshold: float) -> Pck:
    counts = counts & (unit > 0)[:, None]
    correct = counts & (_distance(predicted, labels) <= threshold * unit[:, None])
    total = int(counts.sum())
    by_joint = np.full(labels.shape[1], np.nan)
    seen = counts.any(axis=0)
    by_joint[seen] = 100 * correct.sum(axis=0)[seen] / counts.sum(axis=0)[seen]
    return Pck(100 * float(correct.sum()) / total if total else float("nan"), by_joint, total)
