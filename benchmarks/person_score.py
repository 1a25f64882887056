"""Which score orders people best, and from what OKS two poses are one person.

    python benchmarks/person_score.py SAMPLES.parquet [--people person-net] [--weights cpm-lite]

SAMPLES is a table of `posemill import` with whole pictures and everybody labelled, such as COCO's.
People are found and estimated once; each ordering then gives a line with COCO's figures on the
joints that labels and weights share. Choose on one split, report on the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cpm_core.finder import PoseFinder, Poses
from cpm_core.metrics import PredictedPeople, average_precision
from cpm_core.poses import SAME_PERSON, person_score, without_doubles
from cpm_core.skeleton import Skeleton
from pipeline.evaluation.comparison import by_name, ignored_of, labels_of, picture_key
from pipeline.people import locator_of
from pipeline.samples import SampleTable, decode_sample, iter_rows
from pipeline.storage import StorageOptions
from pipeline.weights import estimator

Floats = NDArray[np.floating]
Score = Callable[[Floats, Floats], Floats]
SURE = 0.25
OKS_THRESHOLDS = (1.01, 0.9, 0.8, 0.7, 0.6, 0.5)
FIGURES = ("AP", "AP50", "AP75", "AR")


def mean_of_sure(joints: Floats) -> Floats:
    """Mean over the joints that score at least SURE, 0 where there is none."""
    sure = joints >= SURE
    return (joints * sure).sum(axis=1) / np.maximum(sure.sum(axis=1), 1)


# From box scores (N,) and keypoint scores (N, K) to a score for each person (N,).
SCORES: dict[str, Score] = {
    "box": lambda box, joints: box,
    "mean joint": lambda box, joints: joints.mean(axis=1),
    "box x mean joint": lambda box, joints: box * joints.mean(axis=1),
    "root of box x mean joint": lambda box, joints: person_score(joints, box),
    "box x mean of sure joints": lambda box, joints: box * mean_of_sure(joints),
    "box x share of sure joints": lambda box, joints: box * (joints >= SURE).mean(axis=1),
    "box x best half": lambda box, joints: box * np.sort(joints)[:, joints.shape[1] // 2 :].mean(1),
}


@dataclass
class Split:
    """The labels of a split, and who was found in its pictures."""

    rows: list[dict[str, object]]
    pictures: list[int]
    poses: list[Poses]


def main() -> None:
    """Print the two tables for every split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("samples")
    parser.add_argument("--people", default="person-net")
    parser.add_argument("--weights", default="cpm-lite")
    parser.add_argument("--person-threshold", type=float)
    options = parser.parse_args()
    network = estimator(options.weights, StorageOptions())
    locator = locator_of(options.people, options.person_threshold).build(
        threads=torch.get_num_threads()
    )
    assert locator is not None
    finder = PoseFinder(locator, network, same_person=None)
    table = SampleTable(options.samples, StorageOptions())
    skeletons = network.info.skeleton, table.skeleton
    for name in sorted(set(table.splits.to_pylist())):
        split = found_in(table, name, finder)
        print(f"\n{name}: {len(split.poses)} pictures, {len(split.rows)} people labelled")
        print(f"{'ordered by':<28}{'found':>7}" + "".join(f"{f:>8}" for f in FIGURES))
        for label, score in SCORES.items():
            print(f"{label:<28}{line(split, score, SAME_PERSON, *skeletons)}")
        print(f"{'doubles from an OKS of':<28}")
        for threshold in OKS_THRESHOLDS:
            shown = "none dropped" if threshold > 1 else f"{threshold:g}"
            score = SCORES["root of box x mean joint"]
            print(f"{shown:<28}{line(split, score, threshold, *skeletons)}")


def found_in(table: SampleTable, split: str, finder: PoseFinder) -> Split:
    """Everybody in the pictures of a split."""
    place: dict[tuple[str, str], int] = {}
    found = Split([], [], [])
    for row in iter_rows(table, split):
        key = picture_key(row)
        if key not in place:
            place[key] = len(place)
            found.poses.append(finder.find(decode_sample(row, table.options).image))
        found.rows.append(row)
        found.pictures.append(place[key])
    return found


def line(split: Split, score: Score, threshold: float, own: Skeleton, labelled: Skeleton) -> str:
    """People left and COCO's figures."""
    points, scores, pictures = [np.empty((0, len(own), 2))], [np.empty(0)], [np.empty(0, int)]
    for picture, poses in enumerate(split.poses):
        values = score(poses.people.scores, poses.keypoints[..., 2])
        kept = without_doubles(
            poses.keypoints, poses.people.boxes, values, own.oks_sigmas, threshold
        )
        points.append(poses.keypoints[kept, :, :2])
        scores.append(values[kept])
        pictures.append(np.full(len(kept), picture))
    named, joints, _ = by_name(np.concatenate(points), own, labelled, ("weights", "labels"))
    labels, _ = labels_of(split.rows, split.pictures)
    shared = type(labels)(
        labels.picture,
        labels.keypoints[:, joints],
        labels.labelled[:, joints],
        labels.box,
        labels.area,
    )
    found = PredictedPeople(
        np.concatenate(pictures), named[:, joints], np.concatenate(scores).astype(np.float64)
    )
    sigmas = np.array(labelled.oks_sigmas)[joints]
    figures = average_precision(found, shared, sigmas, ignored_of(split.rows, split.pictures))
    return f"{len(found.score):>7}" + "".join(f"{figures[f]:8.2f}" for f in FIGURES)


if __name__ == "__main__":
    main()
