import copy
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cpm_core.augment import NONE, Augmentation, Sample, training_crop
from cpm_core.geometry import crop_matrix, inside, transform, warp
from cpm_core.skeleton import load_skeleton

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
STILL = replace(Augmentation(), brightness=0, contrast=0, color=0)
"""Moves as in training, colours as they are."""


@pytest.fixture
def sample():
    """Dots at three joints: left hand red, right hand green, head blue, on black."""
    image = np.zeros((300, 400, 3), np.uint8)
    keypoints = np.array([[250.0, 160], [160, 170], [205, 80]])
    for (x, y), color in zip(keypoints.astype(int).tolist(), COLORS, strict=True):
        cv2.circle(image, (x, y), 6, color, -1)
    return Sample(image, np.array([150.0, 70, 110, 140]), keypoints, np.ones(3, bool))


def dots(crop):
    """x, y of the red, the green and the blue dot."""
    places = []
    for channel in range(3):
        others = np.delete(crop.astype(int), channel, axis=2).max(axis=2)
        mass = np.clip(crop[..., channel].astype(int) - others, 0, None)
        ys, xs = np.indices(mass.shape)
        places.append([(mass * xs).sum() / mass.sum(), (mass * ys).sum() / mass.sum()])
    return np.array(places)


def turns_left(points):
    """Whether a triangle is listed counter-clockwise."""
    (x0, y0), (x1, y1), (x2, y2) = points
    return (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) < 0


def test_labels_move_with_the_pixels_and_a_mirror_swaps_sides(sample, hands):
    flips = 0
    for i in range(60):
        crop = training_crop(sample, hands, 128, 1.6, STILL, (0, 3, i))
        assert crop.labelled.all()
        found = dots(crop.image)
        flipped = turns_left(found) != turns_left(sample.keypoints)
        # In a mirrored picture, what is at the red dot is called the right hand.
        expected = found[[1, 0, 2]] if flipped else found
        assert np.abs(crop.keypoints - expected).max() < 0.35
        flips += flipped
    assert 15 < flips < 45


def test_the_same_seed_gives_the_same_crop(sample, hands):
    options = Augmentation()
    one, same = (training_crop(sample, hands, 96, 1.25, options, (7, 1, 2)) for _ in range(2))
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.keypoints, same.keypoints)
    for seed in ((8, 1, 2), (7, 2, 2), (7, 1, 3)):
        other = training_crop(sample, hands, 96, 1.25, options, seed)
        assert not np.array_equal(one.image, other.image)
        assert not np.array_equal(one.keypoints, other.keypoints)


def test_the_sample_stays_as_it_was(sample, hands):
    before = copy.deepcopy(sample)
    for i in range(5):
        training_crop(sample, hands, 96, 1.25, Augmentation(), (0, i))
    for name in ("image", "box", "keypoints", "labelled"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(before, name))


def test_without_augmentation_it_is_the_plain_crop(sample, hands):
    crop = training_crop(sample, hands, 96, 1.25, NONE, (5,))
    matrix = crop_matrix(sample.box, 96, 1.25)
    np.testing.assert_array_equal(crop.image, warp(sample.image, matrix, 96))
    np.testing.assert_allclose(crop.keypoints, transform(sample.keypoints, matrix))
    np.testing.assert_array_equal(crop.box, [0, 0, 96, 96])


def test_how_far_crops_differ(sample, hands):
    """Scale, rotation and shift of many crops stay within and fill the ranges that are set."""
    sides, angles, shifts = [], [], []
    for i in range(300):
        options = replace(STILL, flip=False)
        points = training_crop(sample, hands, 128, 1.25, options, (i,)).keypoints
        plain = transform(sample.keypoints, crop_matrix(sample.box, 128, 1.25))
        a, b = points[0] - points[1], plain[0] - plain[1]
        sides.append(np.linalg.norm(a) / np.linalg.norm(b))
        angles.append(np.rad2deg(np.arctan2(a[1], a[0]) - np.arctan2(b[1], b[0])))
        options = replace(NONE, shift=0.05)
        moved = training_crop(sample, hands, 128, 1.25, options, (i,)).keypoints
        shifts.append(moved[0] - plain[0])
    assert 0.7 <= min(sides) < 0.72
    assert 1.28 < max(sides) <= 1.3
    assert -40 <= min(angles) < -39
    assert 39 < max(angles) <= 40
    # 5 % of the longer side (140 px), in a crop where 1.25 times that side is 128 px.
    assert 4.9 < np.abs(shifts).max() <= 128 * 0.05 / 1.25


def test_joints_outside_the_crop_and_unlabelled_ones(sample, hands):
    keypoints = sample.keypoints.copy()
    keypoints[1] = np.nan
    keypoints[2] = [-500, 20]
    odd = replace(sample, keypoints=keypoints, labelled=np.array([True, False, True]))
    crop = training_crop(odd, hands, 96, 1.25, NONE, (0,))
    # One that is known to be outside is a lesson: its map is empty.
    assert crop.labelled.tolist() == [True, False, True]
    assert crop.keypoints[2, 0] < 0
    flipped = [
        training_crop(odd, hands, 96, 1.25, replace(NONE, flip=True), (i,)).labelled.tolist()
        for i in range(12)
    ]
    assert sorted(map(tuple, flipped))[0] == (False, True, True)
    assert sorted(map(tuple, flipped))[-1] == (True, False, True)


def test_colours_change_but_not_places(hands):
    image = np.full((100, 100, 3), 128, np.uint8)
    sample = Sample(image, np.array([10.0, 10, 80, 80]), np.zeros((3, 2)), np.zeros(3, bool))
    colours = []
    for i in range(200):
        options = replace(NONE, brightness=0.2, contrast=0.2, color=0.1)
        crop = training_crop(sample, hands, 32, 1.0, options, (i,)).image
        assert (crop == crop[0, 0]).all()
        colours.append(crop[0, 0].astype(float))
    # Grey stays within 128 (1 +- 0.2) of brightness and 10 % per colour (of 128 +- 20 %).
    low, high = np.min(colours), np.max(colours)
    assert 128 - 25.6 - 15.4 - 1 <= low < 110
    assert 150 < high <= 128 + 25.6 + 15.4
    assert np.std(colours, axis=1).max() > 5


def test_erasing_paints_over_parts_and_keeps_the_labels(sample, hands):
    options = replace(STILL, erase=0.5)
    erased = 0
    for i in range(40):
        seed = (0, 1, i)
        plain = training_crop(sample, hands, 96, 1.6, STILL, seed)
        crop = training_crop(sample, hands, 96, 1.6, options, seed)
        np.testing.assert_array_equal(crop.keypoints, plain.keypoints)
        np.testing.assert_array_equal(crop.labelled, plain.labelled)
        changed = (crop.image != plain.image).any(axis=2).mean()
        # Three rectangles of a quarter of the side at most.
        assert changed <= 3 * 0.25**2
        erased += changed > 0
    assert 8 < erased < 32


def test_some_crops_show_a_part_of_the_body():
    rng = np.random.default_rng(0)
    skeleton = load_skeleton("lsp14")
    image = rng.integers(0, 255, (400, 300, 3), np.uint8)
    keypoints = rng.uniform([100, 50], [200, 350], (14, 2))
    box = np.array([100.0, 50, 100, 300])
    person = Sample(image, box, keypoints, np.ones(14, bool))
    whole = training_crop(person, skeleton, 96, 1.25, NONE, (0,))
    spread = np.ptp(whole.keypoints, axis=0).max()
    seen, larger = [], 0
    for i in range(60):
        crop = training_crop(person, skeleton, 96, 1.25, replace(NONE, part=0.5), (i,))
        assert crop.labelled.all()
        magnification = np.ptp(crop.keypoints, axis=0).max() / spread
        # A part is never less than a quarter of the person.
        assert 0.99 < magnification < 4.01
        larger += magnification > 1.05
        seen.append(inside(crop.keypoints, 96, 96).sum())
    assert 15 < larger < 45
    assert min(seen) < 12
    # At least the chosen joints, 40 % of 14, are in the crop.
    assert min(seen) >= 6
    few = replace(person, labelled=np.arange(14) < 5)
    crop = training_crop(few, skeleton, 96, 1.25, replace(NONE, part=1.0), (0,))
    assert abs(np.ptp(crop.keypoints, axis=0).max() / spread - 1) < 1e-6
