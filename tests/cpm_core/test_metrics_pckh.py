import numpy as np
import pytest

from cpm_core.metrics import pckh, pckh_errors
from cpm_core.skeleton import load_skeleton

MPII = load_skeleton("mpii16")
EVERY = np.ones((1, 16), bool)


@pytest.fixture
def person():
    """One person whose joints lie on a line, 100 px apart."""
    return np.stack([100.0 * np.arange(16), np.zeros(16)], axis=-1)[None]


# A head's box of 30 x 40 px has a diagonal of 50: head size 30, so 15 px are allowed.
HEAD = np.array([0.6 * np.hypot(30, 40)])


@pytest.mark.parametrize(("distance", "correct"), [(15.0, True), (15.001, False)])
def test_half_a_head_is_allowed(person, distance, correct):
    predicted = person.copy()
    predicted[0, MPII.index("left_wrist"), 1] = distance
    result = pckh(predicted, person, EVERY, HEAD, MPII)
    assert result.by_joint[MPII.index("left_wrist")] == 100 * correct
    assert result.counted == 14
    assert result.total == pytest.approx(100 * (13 + correct) / 14)


def test_pelvis_and_thorax_do_not_count(person):
    predicted = person.copy()
    predicted[0, [MPII.index("pelvis"), MPII.index("thorax")]] += 1000
    result = pckh(predicted, person, EVERY, HEAD, MPII)
    assert result.total == 100
    assert np.isnan(result.by_joint[[6, 7]]).all()


def test_labelled_joints_are_pooled(person):
    """Two people, 14 and 4 joints: 10 of 14 and 4 of 4 are right, not the mean of two shares."""
    labels = np.repeat(person, 2, axis=0)
    labelled = np.stack([EVERY[0], np.arange(16) < 4])
    labels[1, 4:] = np.nan
    predicted = np.nan_to_num(labels)
    predicted[0, :4, 1] += 16
    result = pckh(predicted, labels, labelled, np.repeat(HEAD, 2), MPII)
    assert result.counted == 18
    assert result.total == pytest.approx(100 * 14 / 18)


def test_the_head_is_the_persons_own(person):
    labels = np.repeat(person, 2, axis=0)
    predicted = labels + np.array([0, 15.0])
    head = np.array([30.0, 29.0])
    assert pckh(predicted, labels, np.repeat(EVERY, 2, 0), head, MPII).total == 50
    errors = pckh_errors(predicted, labels, np.repeat(EVERY, 2, 0), head, MPII)
    assert np.nanmax(errors.values, axis=1) == pytest.approx([15 / 30, 15 / 29])


@pytest.mark.parametrize("head", [np.nan, 0.0])
def test_people_without_a_head_size_do_not_count(person, head):
    result = pckh(person, person, EVERY, np.array([head]), MPII)
    assert np.isnan(result.total)
    assert result.counted == 0
