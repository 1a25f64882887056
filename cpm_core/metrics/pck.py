"""Percentage of correct keypoints (PCK): Sapp and Taskar 2013; Yang and Ramanan 2013.

A joint is correct if its distance to the label is at most a threshold, as a share of a length that
the person's labels give: the torso (PCK) or the head (PCKh, Andriluka et al. 2014).
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

NOT_IN_PCKH = ("pelvis", "thorax")
"""MPII's own evaluation passes over these two."""


@dataclass(frozen=True)
class Pck:
    """Percent of correct joints: `total`, and `by_joint` in the skeleton's order.

    NaN where none counted; `counted` is the number of joints behind `total`.
    """

    total: float
    by_joint: NDArray[np.float64]
    counted: int


@dataclass(frozen=True)
class Curve:
    """PCK in percent over T ascending `thresholds`: `total` (T,) and `by_joint` (T, K)."""

    thresholds: NDArray[np.float64]
    total: NDArray[np.float64]
    by_joint: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area under the total, by trapezia, in percent of the range of thresholds."""
        return float(self._area(self.total))

    @property
    def area_by_joint(self) -> NDArray[np.float64]:
        """The same for every joint: (K,)."""
        return self._area(self.by_joint)

    def _area(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        span = self.thresholds[-1] - self.thresholds[0]
        area: NDArray[np.float64] = np.trapezoid(values, self.thresholds, axis=0) / span
        return area


@dataclass(frozen=True)
class JointErrors:
    """Distances (N, K) to the labels in units of each person's reference length.

    NaN: does not count. Infinite: counts, but nothing was predicted.
    """

    values: NDArray[np.float64]

    def only(self, joints: Bools) -> JointErrors:
        """The same with none but these joints (K,) counting."""
        return JointErrors(np.where(joints, self.values, np.nan))

    def at(self, threshold: float) -> Pck:
        """PCK at one threshold, `<=`, pooled over people."""
        counts = ~np.isnan(self.values)
        correct = self.values <= threshold
        by_joint = np.full(self.values.shape[1], np.nan)
        seen = counts.any(axis=0)
        by_joint[seen] = 100 * correct.sum(axis=0)[seen] / counts.sum(axis=0)[seen]
        counted = int(counts.sum())
        total = 100 * float(correct.sum()) / counted if counted else float("nan")
        return Pck(total, by_joint, counted)

    def curve(self, thresholds: Floats) -> Curve:
        """PCK at each of T thresholds."""
        points = [self.at(float(threshold)) for threshold in thresholds]
        return Curve(
            np.asarray(thresholds, np.float64),
            np.array([point.total for point in points]),
            np.array([point.by_joint for point in points]),
        )


def lsp_errors(predicted: Floats, labels: Floats, skeleton: Skeleton) -> JointErrors:
    """As the CPM paper on LSP (`evalLSP`): unit is left shoulder to right hip, every joint counts.

    `predicted` and `labels` are (N, K, 2), in the same pixels. Raises SkeletonError for a skeleton
    without these two joints.
    """
    a, b = skeleton.index("left_shoulder"), skeleton.index("right_hip")
    every = np.ones(labels.shape[:2], bool)
    return _errors(predicted, labels, every, _distance(labels[:, a], labels[:, b]))


def lspet_errors(
    predicted: Floats, labels: Floats, labelled: Bools, skeleton: Skeleton
) -> JointErrors:
    """Labelled joints (N, K); unit is `reference_length`."""
    return _errors(predicted, labels, labelled, reference_length(labels, labelled, skeleton))


def pckh_errors(
    predicted: Floats, labels: Floats, labelled: Bools, head_size: Floats, skeleton: Skeleton
) -> JointErrors:
    """As MPII's evaluation (`evalMPII`): labelled joints but pelvis and thorax.

    Unit is `head_size` (N,): 0.6 times the diagonal of the head's box, in pixels. People without
    one (NaN) do not count.
    """
    joints = np.array([name not in NOT_IN_PCKH for name in skeleton.keypoints])
    return _errors(predicted, labels, labelled & joints, np.asarray(head_size, np.float64))


def pck_lsp(predicted: Floats, labels: Floats, skeleton: Skeleton, threshold: float = 0.2) -> Pck:
    """PCK of `lsp_errors`: 84.32 and 90.50 are the CPM paper's figures."""
    return lsp_errors(predicted, labels, skeleton).at(threshold)


def pck_lspet(
    predicted: Floats,
    labels: Floats,
    labelled: Bools,
    skeleton: Skeleton,
    threshold: float = 0.2,
    joints: Bools | None = None,
) -> Pck:
    """PCK of `lspet_errors`; `joints` (K,) are those that count (default: all).

    People without a labelled reference pair do not count.
    """
    errors = lspet_errors(predicted, labels, labelled, skeleton)
    return (errors if joints is None else errors.only(joints)).at(threshold)


def pckh(
    predicted: Floats,
    labels: Floats,
    labelled: Bools,
    head_size: Floats,
    skeleton: Skeleton,
    threshold: float = 0.5,
) -> Pck:
    """PCK of `pckh_errors`."""
    return pckh_errors(predicted, labels, labelled, head_size, skeleton).at(threshold)


def reference_length(labels: Floats, labelled: Bools, skeleton: Skeleton) -> NDArray[np.float64]:
    """(N,) PCK's unit in pixels, NaN for a person without one.

    The first labelled pair of `skeleton.pck_reference`; for a skeleton without pairs, the longer
    side of the box around the labelled joints.
    """
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


def _errors(predicted: Floats, labels: Floats, counts: Bools, unit: Floats) -> JointErrors:
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions {predicted.shape} do not go with labels {labels.shape}")
    counts = counts & (unit > 0)[:, None]
    # Divided, not multiplied: 6 / 30 is exactly 0.2, and `<=` must hold for it.
    ratio = _distance(predicted, labels) / np.where(unit > 0, unit, 1)[:, None]
    missed = np.where(np.isnan(ratio), np.inf, ratio)
    return JointErrors(np.where(counts, missed, np.nan))
