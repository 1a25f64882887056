"""Labels of a teacher: where its looks agree, what of a row they change."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.teacher_labels import NEAR, consensus, relabel
from tests.pipeline.training.labelled import row

SIDE = 100.0


def looks(*of_one_joint: tuple[float, float, float]) -> np.ndarray:
    return np.array(of_one_joint)[:, None]


def test_looks_that_agree_are_averaged_by_their_scores() -> None:
    found = consensus(looks((10, 20, 0.9), (10, 20, 0.3), (11, 20, 0.6), (11, 20, 0.6)), SIDE)
    # A look of score s counts s, and a pixel apart exp(-(0.01 / NEAR)^2 / 2) of it.
    near = np.exp(-((0.01 / NEAR) ** 2) / 2)
    x = (10 * 1.2 + 11 * 1.2 * near) / (1.2 + 1.2 * near)
    np.testing.assert_allclose(found, [[x, 20, (1.2 + 1.2 * near) / 4]])


def test_most_looks_win_and_the_others_do_not_pull() -> None:
    found = consensus(looks((10, 10, 0.5), (80, 10, 0.9), (10, 10, 0.5), (10, 90, 0.6)), SIDE)
    np.testing.assert_allclose(found[0], [10, 10, 0.25], atol=1e-6)


def test_joints_are_independent() -> None:
    both = np.stack([[[1, 2, 0.5], [30, 40, 0.1]], [[1, 2, 0.5], [70, 40, 0.7]]])
    np.testing.assert_allclose(consensus(both, SIDE), [[1, 2, 0.5], [70, 40, 0.35]], atol=1e-6)


def test_a_look_without_any_score_is_an_answer_that_nobody_believes() -> None:
    np.testing.assert_array_equal(consensus(looks((5, 5, 0), (6, 6, 0)), SIDE)[0, 2], 0)


@pytest.mark.parametrize("labelled", [False, True])
def test_answers_replace_labels_and_doubtful_ones_erase_them(labelled: bool) -> None:
    sample = row(0)
    kept = [(sample["x"][j], sample["y"][j], sample["labelled"][j]) for j in range(2, 14)]
    sample["labelled"][:2] = [labelled, labelled]
    found = np.array([[3, 4, 0.2], [5, 6, 0.1]])
    assert relabel(sample, [0, 1], found, 0.15) == 1
    assert sample["labelled"][:2] == [True, False]
    assert (sample["x"][:2], sample["y"][:2]) == ([3, 0], [4, 0])
    assert kept == [(sample["x"][j], sample["y"][j], sample["labelled"][j]) for j in range(2, 14)]
