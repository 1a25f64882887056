import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpm_core.metrics import (
    IgnoredPeople,
    LabelledPeople,
    PredictedPeople,
    average_precision,
    default_area,
    oks,
)
from cpm_core.skeleton import load_skeleton

SIGMAS = (0.1, 0.05)
AREA = 10_000.0


def labelled(picture, points, flags=None, area=AREA):
    points = np.array(points, float)
    count = len(points)
    every = np.ones(points.shape[:2], bool) if flags is None else np.array(flags, bool)
    box = np.tile([0.0, 0, 100, 100], (count, 1))
    return LabelledPeople(np.array(picture), points, every, box, np.full(count, area))


def predicted(picture, points, score):
    points = np.array(points, float).reshape(-1, 2, 2)
    return PredictedPeople(np.array(picture, int), points, np.array(score, float))


ONE = [[10.0, 10], [50, 90]]
OTHER = [[300.0, 10], [350, 90]]


@pytest.mark.parametrize(
    ("shift", "flags", "expected"),
    [
        ((0, 0), (1, 1), 1.0),
        # d^2 / (2 s^2 (2 sigma)^2): 400 / (2 * 10000 * 0.04) = 0.5 and 400 / (200) = 2.
        ((20, 0), (1, 1), (math.exp(-0.5) + math.exp(-2)) / 2),
        ((20, 0), (1, 0), math.exp(-0.5)),
        ((20, 0), (0, 1), math.exp(-2)),
        ((20, 0), (0, 0), 0.0),
        ((np.nan, 0), (1, 1), 0.0),
    ],
    ids=["same", "both joints", "first", "second", "nobody", "not predicted"],
)
def test_similarity_by_hand(shift, flags, expected):
    points = np.array([ONE])
    area = np.array([AREA])
    value = oks(points + np.array(shift), points, np.array([flags], bool), area, SIGMAS)
    assert value == pytest.approx(np.array([[expected]]))


def test_unlabelled_joints_may_be_nan():
    labels = np.array([ONE])
    labels[0, 1] = np.nan
    assert oks(np.array([ONE]), labels, np.array([[True, False]]), np.ones(1), SIGMAS) == 1


def test_area_of_a_box_without_a_mask():
    assert default_area(np.array([[5.0, 5, 10, 20]])) == pytest.approx([106])


def test_perfect_people():
    figures = average_precision(
        predicted([0, 1], [ONE, OTHER], [0.9, 0.8]), labelled([0, 1], [ONE, OTHER]), SIGMAS
    )
    # Both are larger than 96^2 square pixels; nobody is of medium size.
    assert math.isnan(figures.pop("AP_medium"))
    assert figures == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75", "AP_large", "AR"), 100))


@pytest.mark.parametrize(
    ("people", "score", "ap", "what"),
    [
        ([ONE, OTHER], [0.9, 0.8], 100.0, "a false positive below costs nothing"),
        ([OTHER, ONE], [0.9, 0.8], 50.0, "one above halves the precision at every recall"),
        ([OTHER], [0.9], 0.0, "nobody found"),
        ([], [], 0.0, "nobody predicted"),
    ],
)
def test_false_positives(people, score, ap, what):
    figures = average_precision(
        predicted([0] * len(people), people, score), labelled([0], [ONE]), SIGMAS
    )
    assert figures["AP"] == pytest.approx(ap), what


def ignored(box, crowd=False, picture=0):
    box = np.array([box], float)
    return IgnoredPeople(np.array([picture]), box, default_area(box), np.array([crowd]))


@pytest.mark.parametrize(
    ("people", "where", "ap"),
    [
        ([OTHER, ONE], None, 50.0),
        ([OTHER, ONE], ignored([290, 0, 70, 100]), 100.0),
        ([OTHER, ONE], ignored([600, 0, 70, 100]), 50.0),
        ([OTHER, ONE], ignored([290, 0, 70, 100], picture=1), 50.0),
        # One person takes the place of one, a crowd that of any number.
        ([OTHER, OTHER, ONE], ignored([290, 0, 70, 100]), 50.0),
        ([OTHER, OTHER, ONE], ignored([290, 0, 70, 100], crowd=True), 100.0),
    ],
    ids=["nobody", "there", "elsewhere", "another picture", "two at one", "two at a crowd"],
)
def test_who_is_found_at_an_ignored_person_is_passed_over(people, where, ap):
    found = predicted([0] * len(people), people, np.linspace(0.9, 0.8, len(people)))
    figures = average_precision(found, labelled([0], [ONE]), SIGMAS, where)
    assert figures["AP"] == pytest.approx(ap)


def test_a_missed_person_ends_the_recall():
    """Precision 1 up to recall 0.5, which is 51 of COCO's 101 points."""
    figures = average_precision(predicted([0], [ONE], [1]), labelled([0, 0], [ONE, OTHER]), SIGMAS)
    assert figures["AP"] == pytest.approx(100 * 51 / 101)
    assert figures["AR"] == pytest.approx(50)


def test_a_prediction_in_a_picture_without_labels_is_false():
    figures = average_precision(
        predicted([0, 7], [ONE, ONE], [0.5, 0.9]), labelled([0], [ONE]), SIGMAS
    )
    assert figures["AP"] == pytest.approx(50)


@pytest.mark.parametrize(("similarity", "passed"), [(0.72, 5), (0.52, 1), (0.97, 10), (0.49, 0)])
def test_shifted_people_pass_the_thresholds_below_their_similarity(similarity, passed):
    """One joint counts; OKS exp(-d^2 / 800) is solved for d."""
    shift = np.array([math.sqrt(-800 * math.log(similarity)), 0])
    figures = average_precision(
        predicted([0], [np.array(ONE) + shift], [1]), labelled([0], [ONE], [(1, 0)]), SIGMAS
    )
    assert figures["AP"] == pytest.approx(10 * passed)


def test_sizes_are_told_apart():
    people = labelled([0, 1], [ONE, OTHER])
    people.area[:] = [50.0**2, 100.0**2]
    figures = average_precision(predicted([0], [ONE], [1]), people, SIGMAS)
    assert (figures["AP_medium"], figures["AP_large"]) == pytest.approx((100, 0))


def test_nobody_labelled_is_undefined():
    figures = average_precision(predicted([0], [ONE], [1]), labelled([0], [ONE], [(0, 0)]), SIGMAS)
    assert all(math.isnan(value) for value in figures.values())


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_one_person_per_picture_agrees_with_the_similarity(seed, count):
    """With one prediction of one score each, AR at 0.5 counts people with an OKS of 0.5."""
    rng = np.random.default_rng(seed)
    skeleton = load_skeleton("lsp14")
    points = rng.uniform(0, 100, (count, 14, 2))
    found = points + rng.normal(0, 15, points.shape)
    people = labelled(range(count), points, rng.random((count, 14)) < 0.9)
    areas, sigmas = people.area, skeleton.oks_sigmas
    similar = np.diag(oks(found, points, people.labelled, areas, sigmas))
    figures = average_precision(
        PredictedPeople(people.picture, found, np.ones(count)), people, sigmas
    )
    counted = people.labelled.any(axis=1)
    thresholds = np.arange(50, 100, 5) / 100
    recall = np.mean([(similar[counted] >= t).mean() for t in thresholds])
    assert figures["AR"] == pytest.approx(100 * recall)
