"""Mending labels with a teacher: what is filled, what is taken away, what stays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.clean_labels import Answers, Sure, agreement, mend
from tests.pipeline.training.labelled import row

SURE = Sure(score=0.5, apart=0.025, far=0.12)


def test_only_sure_answers_change_a_row() -> None:
    sample = row(0)
    joints = [0, 1, 2, 3]
    labelled = [True, True, False, False]
    for joint, flag in zip(joints, labelled, strict=True):
        sample["labelled"][joint] = flag
    before = [(sample["x"][j], sample["y"][j]) for j in joints]
    side = max(sample["box"][2:])
    far = np.array([0.5 * side, 0])
    points = np.array([before[0], np.add(before[1], far), (3.0, 4.0), (5.0, 6.0)])
    scores, apart = np.array([0.9, 0.9, 0.9, 0.4]), np.array([0.0, 0.0, 0.02, 0.0])
    teacher = SimpleNamespace(
        joints=joints, answer=lambda image, box: Answers(points, scores, apart)
    )
    (filled, removed), known = mend(sample, teacher, SURE)  # type: ignore[arg-type]
    assert (filled, removed) == (1, 1)
    assert [sample["labelled"][j] for j in joints] == [True, False, True, False]
    assert (sample["x"][0], sample["y"][0]) == before[0]
    assert (sample["x"][2], sample["y"][2]) == (3.0, 4.0)
    np.testing.assert_allclose(known[:, 0], [0, 0.5], atol=1e-6)


def test_views_that_disagree_change_nothing() -> None:
    sample = row(0)
    sample["labelled"][0] = False
    expected = [list(sample["labelled"]), list(sample["x"])]
    answers = Answers(np.full((2, 2), 1e3), np.array([0.9, 0.9]), np.array([0.03, 0.03]))
    teacher = SimpleNamespace(joints=[0, 1], answer=lambda image, box: answers)
    counts, _ = mend(sample, teacher, SURE)  # type: ignore[arg-type]
    assert counts == (0, 0)
    assert [sample["labelled"], sample["x"]] == expected


def test_agreement_counts_by_score() -> None:
    known = np.array([[0.01, 0.9, 0], [0.3, 0.9, 0], [0.01, 0.9, 0.5], [0.01, 0.1, 0]])
    lines = list(agreement(known))
    assert lines[2] == "| 0 to 0.2 | 1 | 1 | 100 % | 0 % |"
    assert lines[3] == "| 0.8 to 1 | 3 | 2 | 50 % | 50 % |"
    assert len(lines) == 4
