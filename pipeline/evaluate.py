"""How good weights are: PCK on a samples table, by joint and by stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from cpm_core.errors import CpmError
from cpm_core.estimator import Estimator, load
from cpm_core.metrics import Pck, limb_joints, pck_lspet
from pipeline.config import setting
from pipeline.errors import UsageError
from pipeline.samples import decode_sample, read_skeleton
from pipeline.settings import Settings

_BATCH = 32


class EvaluateSettings(Settings):
    """Measure weights on a samples table.

    posemill evaluate --samples val.parquet --weights cpm-lite
    """

    samples: str = setting("run", ..., "samples table (.parquet)")
    split: str | None = setting("run", None, "only this split (default: all)")
    weights: str = setting("run", "cpm-lite", "shipped weights or a .safetensors file")
    precision: Literal["auto", "fp32", "bf16"] = setting("run", "auto", "arithmetic")
    device: Literal["cpu", "cuda"] | None = setting("run", None, "default: a GPU if there is one")
    flip: bool = setting("run", False, "average over mirrored crops")
    scales: tuple[float, ...] = setting("run", (1.0,), "average over crops at these scales")
    threshold: float = setting("run", 0.2, "share of the reference length that still counts", gt=0)
    json_to: str | None = setting("run", None, "also write the figures to this file")


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """PCK (`pck_lspet`) of the last stage by joint, and of the limb joints by stage, in percent."""
    skeleton = read_skeleton(settings.samples)
    try:
        estimator = load(
            settings.weights,
            settings.device,
            settings.precision,
            settings.flip,
            settings.scales,
        )
    except CpmError as error:
        raise UsageError(str(error)) from error
    if estimator.info.skeleton.keypoints != skeleton.keypoints:
        raise UsageError(
            f"{settings.weights} has skeleton {estimator.info.skeleton.name}, "
            f"{settings.samples} has {skeleton.name}"
        )
    predicted, labels, labelled = _predict(estimator, settings)
    limbs = limb_joints(skeleton)

    def measure(points: np.ndarray, joints: np.ndarray | None) -> Pck:
        return pck_lspet(points, labels, labelled, skeleton, settings.threshold, joints)

    last = measure(predicted[:, -1], None)
    figures: dict[str, Any] = {
        "samples": len(labels),
        "pck_limb_joints": measure(predicted[:, -1], limbs if limbs.any() else None).total,
        "pck_all_joints": last.total,
        "by_joint": dict(zip(skeleton.keypoints, map(float, last.by_joint), strict=True)),
        "by_stage": [
            measure(predicted[:, t], limbs if limbs.any() else None).total
            for t in range(predicted.shape[1])
        ],
    }
    if settings.json_to is not None:
        with open(settings.json_to, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)
    return figures


def _predict(
    estimator: Estimator, settings: EvaluateSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, T, K, 2) of every stage, labels (N, K, 2) and flags (N, K), in picture pixels."""
    predicted, labels, labelled = [], [], []
    for rows in _batches(settings):
        for row in rows:
            sample = decode_sample(row)
            stages = estimator.estimate_stages(sample.image, sample.box[None])
            predicted.append(stages[:, 0, :, :2])
            labels.append(sample.keypoints)
            labelled.append(sample.labelled)
    if not labels:
        raise UsageError(f"{settings.samples}: no samples in split {settings.split!r}")
    return np.stack(predicted), np.stack(labels), np.stack(labelled)


def _batches(settings: EvaluateSettings) -> Iterator[list[dict[str, Any]]]:
    for batch in pq.ParquetFile(settings.samples).iter_batches(_BATCH):
        rows = batch.to_pylist()
        yield [r for r in rows if settings.split is None or r["split"] == settings.split]


def report(figures: dict[str, Any]) -> str:
    """The figures as a readable table."""
    lines = [f"PCK over {figures['samples']} people"]
    lines.append(f"  limb joints  {figures['pck_limb_joints']:6.2f}")
    lines.append(f"  all joints   {figures['pck_all_joints']:6.2f}")
    stages = "  ".join(f"{t + 1}: {v:.2f}" for t, v in enumerate(figures["by_stage"]))
    lines.append(f"  by stage     {stages}")
    width = max(map(len, figures["by_joint"]))
    lines += [f"  {name:<{width}}  {value:6.2f}" for name, value in figures["by_joint"].items()]
    return "\n".join(lines)
