"""A samples table with MoveNet Thunder's answers in the place of its labels.

    python -m benchmarks.teacher_labels train.parquet theirs.parquet --movenet movenet_thunder.onnx

For training on both (`benchmarks.mix_samples both.parquet train.parquet theirs.parquet`): a network
that is told one place of a joint as often as another learns to believe in both, as an ensemble
does. MoveNet looks at every person four times, at two sizes and mirrored; its answer is where most
looks agree. A joint on which they do not becomes unlabelled, one that MoveNet does not know keeps
its label. Only the split `train` changes.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.clean_labels import Array, Teacher
from pipeline.importing.table import ROWS_PER_GROUP, SamplesWriter
from pipeline.samples import SampleTable, decode_sample, iter_rows

FACTORS = (1.0, 1.25)
"""The squares that MoveNet sees, in units of the box's longer side."""
NEAR = 0.04
"""Standard deviation between looks that agree, in the same units."""


def main() -> None:
    """Read, look, write, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("output", type=Path)
    parser.add_argument("--movenet", type=Path, required=True)
    parser.add_argument("--agreement", type=float, default=0.15, help="least of the looks, 0 to 1")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    cv2.setNumThreads(1)
    table = SampleTable(args.table)
    teacher = Teacher(args.movenet, table.skeleton, threads=1)

    def look(row: dict[str, Any]) -> Array | None:
        return None if row["split"] != "train" else answer(row, teacher)

    changed = 0
    start = time.monotonic()
    with (
        SamplesWriter(args.output, table.skeleton) as writer,
        ThreadPoolExecutor(args.threads) as pool,
    ):
        rows = iter_rows(table)
        while group := list(islice(rows, ROWS_PER_GROUP)):
            for row, found in zip(group, pool.map(look, group), strict=True):
                if found is not None:
                    changed += relabel(row, teacher.joints, found, args.agreement)
                del row["sample_id"]
                writer.add(row)
            rate = writer.count / (time.monotonic() - start)
            left = (len(table) - writer.count) / rate / 60
            print(f"{writer.count:,} of {len(table):,}, {rate:.0f}/s, {left:.0f} min left")
        writer.finish()
    print(f"{args.output}: {changed:,} joints labelled by MoveNet")


def answer(row: dict[str, Any], teacher: Teacher) -> Array:
    """Its answer (J, 3) for the person of a row, as `consensus`."""
    sample = decode_sample(row)
    looks = [teacher.look(sample.image, sample.box, factor) for factor in FACTORS]
    return consensus(np.concatenate(looks), sample.box[2:].max())


def consensus(looks: Array, side: float) -> Array:
    """One answer (J, 3) of looks (V, J, 3) at a person of this size in pixels: x, y, agreement.

    A joint's place is the mean of the looks, each weighted by its score and by how near it is to
    the one that has most of the others near it; the agreement is the mean of these weights.
    """
    points, scores = looks[..., :2], looks[..., 2]
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) / side
    weights = np.exp(-((apart / NEAR) ** 2) / 2) * scores  # (V, V, J): of the second for the first.
    best = weights.sum(axis=1).argmax(axis=0)
    chosen = weights[best, :, np.arange(looks.shape[1])]  # (J, V)
    total = np.maximum(chosen.sum(axis=1), np.finfo(float).tiny)
    places = np.einsum("jv,vjc->jc", chosen, points) / total[:, None]
    return np.concatenate([places, chosen.mean(axis=1)[:, None]], axis=1)


def relabel(row: dict[str, Any], joints: list[int], found: Array, agreement: float) -> int:
    """Put answers (J, 3) in the place of a row's labels of these joints; returns how many stand."""
    for joint, (x, y, agreed) in zip(joints, found, strict=True):
        stands = bool(agreed >= agreement)
        row["labelled"][joint] = stands
        row["x"][joint], row["y"][joint] = (float(np.float32(v * stands)) for v in (x, y))
    return int((found[:, 2] >= agreement).sum())


if __name__ == "__main__":
    main()
