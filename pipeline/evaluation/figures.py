"""The figures of a comparison, as one JSON-like document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpm_core.errors import SkeletonError
from cpm_core.metrics import (
    Curve,
    JointErrors,
    LabelledPeople,
    Pck,
    PredictedPeople,
    average_precision,
    joint_rows,
    limb_joints,
    lsp_errors,
    lspet_errors,
    pckh_errors,
)
from cpm_core.skeleton import Skeleton
from pipeline.errors import UsageError
from pipeline.evaluation.comparison import Comparison

Metric = Literal["pck_lsp", "pck_lspet", "pckh", "oks"]


@dataclass(frozen=True)
class Scale:
    """The thresholds at which a metric is printed, the usual one first, and the end of its curve
    (which starts at 0, in steps of 0.01)."""

    thresholds: tuple[float, float, float]
    end: float


SCALES: dict[str, Scale] = {
    "pck_lsp": Scale((0.2, 0.1, 0.05), 0.2),
    "pck_lspet": Scale((0.2, 0.1, 0.05), 0.2),
    "pckh": Scale((0.5, 0.2, 0.1), 0.5),
}


def measure(
    comparison: Comparison, metrics: Sequence[Metric], threshold: float | None
) -> dict[str, Any]:
    """All figures in percent, None where undefined. Raises UsageError where a metric lacks its
    input."""
    figures: dict[str, Any] = {
        "people": len(comparison.labels.picture),
        "skeleton": comparison.skeleton.name,
        "notes": list(comparison.notes),
        "metrics": {},
    }
    for metric in metrics:
        measured = _oks(comparison) if metric == "oks" else _pck(comparison, metric, threshold)
        figures["metrics"][metric] = measured
    document: dict[str, Any] = _without_nan(figures)
    return document


def _pck(comparison: Comparison, metric: Metric, threshold: float | None) -> dict[str, Any]:
    scale, skeleton = SCALES[metric], comparison.skeleton
    stages = [_errors(comparison, metric, points) for points in comparison.predicted]
    last, limbs = stages[-1], limb_joints(skeleton)
    thresholds = list(dict.fromkeys([threshold or scale.thresholds[0], *scale.thresholds]))
    curve = last.curve(_steps(scale))
    points = [last.at(t) for t in thresholds]
    rows = joint_rows(skeleton)
    joints = {name: (i,) for i, name in enumerate(skeleton.keypoints)}
    figures: dict[str, Any] = {
        "unit": _unit(metric, skeleton),
        "thresholds": thresholds,
        "joints_counted": points[0].counted,
        "people_counted": int((~np.isnan(last.values)).any(axis=1).sum()),
        "all": _line(last, thresholds, scale),
        "limb_joints": _line(last.only(limbs), thresholds, scale) if limbs.any() else None,
        "by_row": {row: _row(of, points, thresholds, curve) for row, of in rows.items()},
        "by_joint": {name: _row(of, points, thresholds, curve) for name, of in joints.items()},
        "curve": {
            "thresholds": curve.thresholds.tolist(),
            "all": curve.total.tolist(),
            "by_row": {
                row: _mean(curve.by_joint[:, list(of)]).tolist() for row, of in rows.items()
            },
            "by_joint": {name: curve.by_joint[:, of[0]].tolist() for name, of in joints.items()},
        },
    }
    if len(stages) > 1:
        figures["by_stage"] = [
            {
                "all": _line(stage, thresholds, scale),
                "limb_joints": _line(stage.only(limbs), thresholds, scale) if limbs.any() else None,
            }
            for stage in stages
        ]
    return figures


def _errors(comparison: Comparison, metric: Metric, predicted: NDArray[np.float64]) -> JointErrors:
    skeleton, people = comparison.skeleton, comparison.labels
    points, flags = people.keypoints, people.labelled
    if metric == "pck_lsp":
        errors = _lsp_errors(comparison, predicted)
    elif metric == "pck_lspet":
        errors = lspet_errors(predicted, points, flags, skeleton)
    else:
        errors = pckh_errors(predicted, points, flags, comparison.head_size, skeleton)
    errors = errors.only(comparison.joints)
    if np.isnan(errors.values).all():
        fix = "import MPII with its head boxes, or use --metric pck_lspet"
        if metric != "pckh":
            fix = "label those joints, or give the skeleton other pck_reference pairs"
        raise UsageError(
            f"{comparison.labels_name}: no joint can be measured by {metric}, as nobody has its "
            f"unit labelled, {_unit(metric, skeleton)}: {fix}"
        )
    return errors


def _lsp_errors(comparison: Comparison, predicted: NDArray[np.float64]) -> JointErrors:
    people = comparison.labels
    if partly := int((~people.labelled).any(axis=1).sum()):
        raise UsageError(
            f"{comparison.labels_name}: {partly} of {len(people.picture)} people have joints "
            "without a label, and pck_lsp counts every joint; use --metric pck_lspet"
        )
    if not comparison.joints.all():
        raise UsageError("pck_lsp counts every joint, but not all are predicted; use pck_lspet")
    try:
        return lsp_errors(predicted, people.keypoints, comparison.skeleton)
    except SkeletonError as error:
        raise UsageError(f"pck_lsp cannot be computed ({error}); use --metric pck_lspet") from error


def _unit(metric: Metric, skeleton: Skeleton) -> str:
    """In words, what a distance is divided by."""
    if metric == "pck_lsp":
        return "left_shoulder to right_hip"
    if metric == "pckh":
        return "head size (0.6 of the head box's diagonal)"
    if not skeleton.pck_reference:
        return "longer side of the box around the labelled joints"
    names = [[skeleton.keypoints[i] for i in pair] for pair in skeleton.pck_reference]
    return ", else ".join(" to ".join(pair) for pair in names)


def _line(errors: JointErrors, thresholds: Sequence[float], scale: Scale) -> dict[str, Any]:
    """Pooled over joints: PCK at each threshold, and the area under the curve."""
    return {
        "at": {f"{t:g}": errors.at(t).total for t in thresholds},
        "auc": errors.curve(_steps(scale)).area,
    }


def _row(
    joints: tuple[int, ...], points: Sequence[Pck], thresholds: Sequence[float], curve: Curve
) -> dict[str, Any]:
    """The same as means over joints, as the papers' rows are."""
    pairs = zip(thresholds, points, strict=True)
    return {
        "at": {f"{t:g}": float(_mean(point.by_joint[list(joints)])) for t, point in pairs},
        "auc": float(_mean(curve.area_by_joint[list(joints)])),
    }


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis, without NaN; NaN where there is nothing else."""
    seen = ~np.isnan(values)
    count = seen.sum(axis=-1)
    total = np.where(seen, values, 0).sum(axis=-1)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _steps(scale: Scale) -> NDArray[np.float64]:
    # Not arange(0, end, 0.01): 3 * 0.01 is more than 0.03.
    return np.arange(round(100 * scale.end) + 1) / 100


def _oks(comparison: Comparison) -> dict[str, Any]:
    if comparison.found is None:
        raise UsageError(
            "oks needs a score for every person, and predictions in a .mat file have none; "
            "use --metric pck_lsp or pck_lspet"
        )
    joints, people, found = comparison.joints, comparison.labels, comparison.found
    shared = LabelledPeople(
        people.picture,
        people.keypoints[:, joints],
        people.labelled[:, joints],
        people.box,
        people.area,
    )
    seen = PredictedPeople(found.picture, found.keypoints[:, joints], found.score)
    try:
        sigmas = np.array(comparison.skeleton.oks_sigmas)[joints]
        figures = average_precision(seen, shared, sigmas, comparison.ignored)
    except ImportError as error:
        raise UsageError(
            "oks needs faster-coco-eval: pip install 'posemill[train]' "
            "(or pip install faster-coco-eval)"
        ) from error
    counts = {
        "labelled": len(people.picture),
        "predicted": len(found.picture),
        "ignored": len(comparison.ignored or ()),
        "joints": int(joints.sum()),
    }
    return {**figures, **counts}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
