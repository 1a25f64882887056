"""Check the labels of a samples table against MoveNet Thunder, and mend them where it is sure.

    python -m benchmarks.clean_labels train.parquet clean.parquet --movenet movenet_thunder.onnx

Mechanical Turk labels contradict each other, above all about left and right. MoveNet sees the crop
that training sees, as it is and mirrored; where both views agree and score high, an unlabelled
joint takes its answer, and a label that is far from it is taken away. Only the split `train`
changes. What the answers are worth is printed: how near they are to the labels, by score.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cpm_core.geometry import crop_matrix, invert, transform, warp
from cpm_core.skeleton import Skeleton, load_skeleton
from pipeline.importing.table import SamplesWriter
from pipeline.samples import SampleTable, decode_sample, iter_rows

SIZE = 256
BOX_FACTOR = 1.25
NEAR = 0.06
"""About 0.2 of a torso, in units of the box's longer side."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sure:
    """When an answer is believed; `apart` and `far` in units of the crop's and the box's side."""

    score: float
    apart: float
    far: float


@dataclass(frozen=True)
class Answers:
    """Places (J, 2) in the picture, the lower score (J,), how far the two views are apart (J,)."""

    points: Array
    scores: Array
    apart: Array


class Teacher:
    """MoveNet Thunder, on the joints that it shares with a skeleton."""

    def __init__(self, path: Path, skeleton: Skeleton, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        coco = load_skeleton("coco17")
        shared = [name for name in skeleton.keypoints if name in coco.keypoints]
        self.joints = [skeleton.keypoints.index(name) for name in shared]
        self.theirs = [coco.keypoints.index(name) for name in shared]
        self.flip_order = coco.flip_order

    def answer(self, image: NDArray[np.uint8], box: Array) -> Answers:
        """What it says of the person in a box of a picture."""
        plain, mirrored = self.look(image, box, BOX_FACTOR)
        side = BOX_FACTOR * box[2:].max()
        apart = np.linalg.norm(plain[:, :2] - mirrored[:, :2], axis=1) / side
        points = (plain[:, :2] + mirrored[:, :2]) / 2
        return Answers(points, np.minimum(plain[:, 2], mirrored[:, 2]), apart)

    def look(self, image: NDArray[np.uint8], box: Array, factor: float) -> Array:
        """Answers (2, J, 3) for a square of `factor` times the box, plain and mirrored: x and y in
        pixels of the picture, score."""
        matrix = crop_matrix(box, SIZE, factor)
        crop = warp(image, matrix, SIZE)
        plain, mirrored = self._run(crop), self._run(crop[:, ::-1])[self.flip_order]
        mirrored[:, 0] = SIZE - 1 - mirrored[:, 0]
        both = np.stack([plain, mirrored])[:, self.theirs]
        both[..., :2] = transform(both[..., :2], invert(matrix))
        return both

    def _run(self, crop: NDArray[np.uint8]) -> Array:
        """(17, 3): x and y in pixels of the crop, score."""
        found = self.session.run(None, {"input:0": crop[None].astype(np.int32)})[0][0, 0]
        x, y, score = found[:, 1], found[:, 0], found[:, 2]
        return np.stack([x * SIZE - 0.5, y * SIZE - 0.5, score], axis=1).astype(np.float64)


def main() -> None:
    """Read, mend, write, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("output", type=Path)
    parser.add_argument("--movenet", type=Path, required=True)
    parser.add_argument("--score", type=float, default=0.5, help="least score of both views")
    parser.add_argument("--apart", type=float, default=0.025, help="most between both views")
    parser.add_argument("--far", type=float, default=0.12, help="distance of a wrong label")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sure = Sure(args.score, args.apart, args.far)

    table = SampleTable(args.table)
    teacher = Teacher(args.movenet, table.skeleton, args.threads)
    filled = removed = 0
    known: list[Array] = []
    start = time.monotonic()
    with SamplesWriter(args.output, table.skeleton) as writer:
        for row in iter_rows(table):
            if row["split"] == "train":
                counts, seen = mend(row, teacher, sure)
                filled, removed = filled + counts[0], removed + counts[1]
                known.append(seen)
            del row["sample_id"]
            writer.add(row)
            if writer.count % 500 == 0:
                rate = writer.count / (time.monotonic() - start)
                left = (len(table) - writer.count) / rate / 60
                print(f"{writer.count:,} of {len(table):,}, {rate:.0f}/s, {left:.0f} min left")
        writer.finish()
    print(f"{filled:,} joints filled, {removed:,} labels taken away")
    for line in agreement(np.concatenate([np.empty((0, 3)), *known])):
        print(line)


def mend(row: dict[str, Any], teacher: Teacher, sure: Sure) -> tuple[tuple[int, int], Array]:
    """Change a row in place: joints filled and labels removed; (N, 3) of labelled joints.

    The columns are the distance from the label in units of the box's longer side, score, apart.
    """
    sample = decode_sample(row)
    answers = teacher.answer(sample.image, sample.box)
    filled = removed = 0
    known = []
    for i, joint in enumerate(teacher.joints):
        point, score, apart = answers.points[i], answers.scores[i], answers.apart[i]
        believed = score >= sure.score and apart <= sure.apart
        if sample.labelled[joint]:
            error = np.linalg.norm(point - sample.keypoints[joint]) / max(sample.box[2:])
            known.append((error, score, apart))
            if believed and error > sure.far:
                row["labelled"][joint], row["x"][joint], row["y"][joint] = False, 0.0, 0.0
                removed += 1
        elif believed:
            row["x"][joint], row["y"][joint] = (float(np.float32(v)) for v in point)
            row["labelled"][joint] = True
            filled += 1
    return (filled, removed), np.array(known, float).reshape(-1, 3)


def agreement(known: Array) -> Iterator[str]:
    """How near the answers are to the labels, by score, as a Markdown table."""
    yield "| score | labelled joints | both views agree | of those near the label | far (> 0.2) |"
    yield "|---|---|---|---|---|"
    error, score, apart = known.T
    for low, high in (
        (0, 0.2),
        (0.2, 0.3),
        (0.3, 0.4),
        (0.4, 0.5),
        (0.5, 0.6),
        (0.6, 0.8),
        (0.8, 2),
    ):
        chosen = (score >= low) & (score < high)
        agree = chosen & (apart <= 0.03)
        if agree.any():
            near, far = 100 * (error[agree] < NEAR).mean(), 100 * (error[agree] > 0.2).mean()
            yield (
                f"| {low:g} to {min(high, 1):g} | {chosen.sum():,} | {agree.sum():,} "
                f"| {near:.0f} % | {far:.0f} % |"
            )


if __name__ == "__main__":
    main()
