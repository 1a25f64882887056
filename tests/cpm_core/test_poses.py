import numpy as np
import pytest

from cpm_core.metrics import oks
from cpm_core.poses import person_score, without_doubles
from cpm_core.skeleton import load_skeleton

SIGMAS = load_skeleton("lsp14").oks_sigmas
RNG = np.random.default_rng(0)
POSE = RNG.uniform(0, 100, (14, 2))
BOX = [0.0, 0.0, 100.0, 100.0]


def kept(*people, threshold=0.7):
    """People are (shift in pixels, score)."""
    points = np.array([POSE + shift for shift, _ in people]).reshape(-1, 14, 2)
    boxes = np.array([BOX] * len(people)).reshape(-1, 4)
    scores = np.array([score for _, score in people])
    return without_doubles(points, boxes, scores, SIGMAS, threshold).tolist()


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ([], []),
        ([(0, 0.1)], [0]),
        ([(0, 0.9), (0, 0.8)], [0]),
        ([(0, 0.8), (0, 0.9)], [1]),
        ([(0, 0.9), (0, 0.9)], [0]),  # of equal scores the first
        ([(0, 0.9), (200, 0.8)], [0, 1]),
        ([(200, 0.1), (0, 0.9), (1, 0.8), (201, 0.2)], [1, 3]),
        # b is like a, c is like b and not like a: only what stays drops others.
        ([(0, 0.9), (6, 0.8), (12, 0.7)], [0, 2]),
    ],
    ids=["nobody", "one", "twice", "the better", "a tie", "two", "two of two", "no chains"],
)
def test_of_people_alike_the_best_stays(people, expected):
    assert kept(*people) == expected


def test_alike_is_an_oks_of_at_least_the_threshold():
    one = np.ones((1, 14), bool)
    alike = oks(POSE[None] + 6, POSE[None], one, np.array([0.53 * 100 * 100]), SIGMAS)[0, 0]
    assert 0.7 < alike < 0.9
    assert kept((0, 0.9), (6, 0.8), threshold=alike) == [0]
    assert kept((0, 0.9), (6, 0.8), threshold=alike + 1e-9) == [0, 1]


def test_scores_of_joints_are_no_part_of_likeness():
    points = np.concatenate([np.stack([POSE, POSE]), RNG.uniform(size=(2, 14, 1))], axis=-1)
    found = without_doubles(points, np.array([BOX, BOX]), np.array([0.5, 0.4]), SIGMAS)
    assert found.tolist() == [0]


def test_small_people_close_together_are_two():
    """Three pixels are nothing between large people, and much between people ten pixels tall."""
    small = np.array([[0, 0, 10.0, 10.0]] * 2)
    points = np.array([POSE / 10, POSE / 10 + 3])
    assert without_doubles(points, small, np.array([0.9, 0.8]), SIGMAS).tolist() == [0, 1]
    assert kept((0, 0.9), (3, 0.8)) == [0]


def test_a_person_score_is_the_root_of_the_boxs_times_the_mean_of_the_joints():
    joints = np.array([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]])
    assert person_score(joints, np.array([0.25, 1.0])).tolist() == pytest.approx([0.25, 0.2])
    assert person_score(np.empty((0, 3)), np.empty(0)).shape == (0,)
