import numpy as np
import pytest

from cpm_core.estimator import load
from cpm_core.finder import PoseFinder
from cpm_core.people import People, WholeImage
from cpm_core.poses import person_score
from cpm_core.whole_image import estimate_whole, wide_view


class Fixed:
    """Finds what it was given."""

    def __init__(self, boxes, scores):
        self.people = People(np.array(boxes, float).reshape(-1, 4), np.array(scores), "detector")

    def locate(self, picture):
        return self.people


@pytest.fixture(scope="module")
def dots(dots_file):
    return load(dots_file, device="cpu")


@pytest.fixture
def picture(dots_picture):
    """Somebody at (35, 60) and (67, 60), about 64 pixels from the left."""
    return dots_picture((40, 60), (72, 60), width=200, height=120, radius=3)


HERE, BESIDE, THERE = [20, 30, 64, 64], [21, 31, 64, 64], [120, 30, 64, 64]


def test_everybody_once_in_the_locators_order(dots, picture):
    found = PoseFinder(Fixed([HERE, THERE, BESIDE], [0.9, 0.8, 0.7]), dots).find(picture)
    assert found.people.boxes.tolist() == [HERE, THERE]
    assert found.people.scores.tolist() == [0.9, 0.8]
    expected = dots.estimate(picture, np.array([HERE, THERE], float))
    np.testing.assert_allclose(found.keypoints, expected, atol=1e-4)
    scores = person_score(expected[..., 2], np.array([0.9, 0.8]))
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "count"), [({"same_person": None}, 3), ({"most_people": 1}, 1), ({}, 2)]
)
def test_who_is_kept(dots, picture, options, count):
    locator = Fixed([HERE, THERE, BESIDE], [0.9, 0.8, 0.7])
    assert len(PoseFinder(locator, dots, **options).find(picture)) == count


def test_nobody(dots, picture):
    found = PoseFinder(Fixed([], []), dots).find(picture)
    assert len(found) == 0
    assert found.keypoints.shape == (0, 3, 3)


def test_the_whole_picture_is_looked_at_again(dots, picture):
    found = PoseFinder(WholeImage(), dots).find(picture)
    wide = wide_view(picture, dots.cropper.size)[None]
    boxes, keypoints = estimate_whole(dots, wide, np.array([[200, 120]]))
    np.testing.assert_array_equal(found.people.boxes, boxes)
    np.testing.assert_array_equal(found.keypoints, keypoints)
    assert found.people.source == "whole-image"
    assert (boxes[0, 2:] < [200, 120]).all()
