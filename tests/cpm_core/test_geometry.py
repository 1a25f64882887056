import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpm_core.geometry import box_of_points, crop_matrix, inside, invert, transform, warp

boxes = st.tuples(
    st.floats(-800, 2500), st.floats(-800, 2500), st.floats(0.5, 3000), st.floats(0.5, 3000)
)
angles = st.floats(-math.pi, math.pi)


@settings(max_examples=300, deadline=None)
@given(
    box=boxes,
    size=st.sampled_from([64, 256, 368]),
    factor=st.floats(0.5, 4),
    rotation=angles,
    flip=st.booleans(),
    place=st.tuples(st.floats(-3, 4), st.floats(-3, 4)),
)
def test_a_keypoint_comes_back_from_a_crop(box, size, factor, rotation, flip, place):
    """Boxes inside, across and outside of any picture; places inside and outside of the box."""
    x, y, w, h = box
    point = np.array([x + place[0] * w, y + place[1] * h])
    matrix = crop_matrix(np.array(box), size, factor, rotation, flip)
    there = transform(point, matrix).astype(np.float32)
    back = transform(there.astype(np.float64), invert(matrix))
    assert np.abs(back - point).max() < 0.01


@pytest.mark.parametrize(
    ("rotation", "flip", "expected"),
    [
        # Box 20 wide, 40 high, factor 1.25: 50 px of picture in 100 px of crop, 2 px per px.
        (0.0, False, (49.5 + 10, 49.5 + 20)),
        (0.0, True, (49.5 - 10, 49.5 + 20)),
        # Clockwise on screen: what was right is below, what was below is left.
        (math.pi / 2, False, (49.5 - 20, 49.5 + 10)),
        (math.pi / 2, True, (49.5 + 20, 49.5 + 10)),
        (math.pi, False, (49.5 - 10, 49.5 - 20)),
    ],
)
def test_where_a_point_lands(rotation, flip, expected):
    matrix = crop_matrix(np.array([100.0, 200, 20, 40]), 100, 1.25, rotation, flip)
    middle = np.array([109.5, 219.5])  # the box covers pixels 100 to 119 and 200 to 239
    np.testing.assert_allclose(transform(middle, matrix), [49.5, 49.5])
    np.testing.assert_allclose(transform(middle + np.array([5, 10]), matrix), expected)


def test_a_whole_square_picture_is_its_own_crop():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    matrix = crop_matrix(np.array([0, 0, 64, 64]), 64, 1.0)
    np.testing.assert_array_equal(warp(picture, matrix, 64), picture)
    mirrored = crop_matrix(np.array([0, 0, 64, 64]), 64, 1.0, flip=True)
    np.testing.assert_array_equal(warp(picture, mirrored, 64), picture[:, ::-1])


SHRINKS = [0.1, 0.25, 0.5, 0.9, 1.0, 1.3, 1.99, 2.0, 2.5, 3.0, 3.7, 5.0, 7.9, 10.0]


@pytest.mark.parametrize("shrink", SHRINKS)
def test_a_drawn_dot_is_where_the_matrix_says(shrink):
    """Labels, crops and keypoints share one geometry, whatever the size of the person."""
    rng = np.random.default_rng(int(shrink * 100))
    side, radius = 96 * shrink, max(1.5, 4 * shrink)
    for _ in range(8):
        picture = np.zeros((1800, 1800, 3), np.uint8)
        x, y = rng.integers(850 * 256, 950 * 256, 2).tolist()
        cv2.circle(picture, (x, y), round(radius * 256), (255,) * 3, -1, cv2.LINE_AA, 8)
        dot = centroid(picture)
        assert np.abs(dot - np.array([x, y]) / 256).max() < 0.1 * max(1, shrink)
        box = np.array([*(dot - side * rng.uniform(0.42, 0.58, 2)), side, side])
        matrix = crop_matrix(box, 96, 1.0, rng.uniform(-0.7, 0.7), bool(rng.random() < 0.5))
        assert np.abs(centroid(warp(picture, matrix, 96)) - transform(dot, matrix)).max() < 0.06


def centroid(picture):
    """x, y of the bright part of a black picture."""
    mass = picture[..., 0].astype(float)
    ys, xs = np.indices(mass.shape)
    return np.array([(mass * xs).sum(), (mass * ys).sum()]) / mass.sum()


@pytest.mark.parametrize("shrink", [0.5, 1.0, 3.0])
def test_outside_of_the_picture_a_crop_is_128(shrink):
    picture = np.full((90, 60, 3), 255, np.uint8)
    box = np.array([60.0 - 30 * shrink, 20, 60 * shrink, 10])
    crop = warp(picture, crop_matrix(box, 60, 1.0), 60)
    # The picture's right border is in the middle of the crop.
    assert (crop[25:35, 31:] == 128).all()
    assert (crop[25:35, 5 + (shrink == 3) * 10 : 29] == 255).all()


@pytest.mark.parametrize("box", [(5000, 10, 50, 80), (-900, -900, 20, 20), (5000, 5000, 900, 900)])
def test_a_box_off_the_picture_gives_an_empty_crop(box):
    picture = np.zeros((80, 120, 3), np.uint8)
    assert (warp(picture, crop_matrix(np.array(box), 32, 1.25), 32) == 128).all()


@pytest.mark.parametrize("side", [798, 799, 800, 801, 805])
def test_what_is_left_over_at_the_end_is_in_the_crop(side):
    """A picture need not be a multiple of what is averaged."""
    picture = np.full((side, side, 3), 20, np.uint8)
    picture[-10:] = picture[:, -10:] = 240
    crop = warp(picture, crop_matrix(np.array([0, 0, side, side]), 80, 1.0), 80).astype(int)
    assert np.abs(crop[1:78, 1:78] - 20).max() <= 2
    assert (crop[79, 1:] > 170).all()
    assert (crop[1:, 79] > 170).all()


def test_fine_patterns_do_not_alias():
    checkers = (np.indices((800, 800)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = np.repeat(checkers[..., None], 3, axis=2)
    crop = warp(picture, crop_matrix(np.array([0, 0, 800, 800]), 100, 1.0), 100)
    assert np.abs(crop[1:-1, 1:-1].astype(float) - 127.5).max() < 3


@pytest.mark.parametrize("shape", [(60, 40_000), (40_000, 60), (1, 1), (1, 500)])
def test_pictures_of_extreme_shape(shape):
    picture = np.full((*shape, 3), 200, np.uint8)
    height, width = shape
    box = np.array([max(0, width - 50), max(0, height - 50), min(50, width), min(50, height)])
    crop = warp(picture, crop_matrix(box, 64, 1.0), 64)
    assert (crop[31:33, 31:33] > 160).all()
    whole = warp(picture, crop_matrix(np.array([0, 0, width, height]), 64, 1.0), 64)
    assert whole.shape == (64, 64, 3)


@pytest.mark.parametrize(
    "box",
    [
        (math.nan, 0, 10, 10),
        (0, math.inf, 10, 10),
        (0, 0, math.nan, 10),
        (0, 0, 10, math.inf),
        (0, 0, 0, 10),
        (0, 0, 10, 0),
        (0, 0, -5, 10),
        (0, 0, 10, -5),
        (0, 0, 1e-9, 1e-9),
        (0, 0, 1e300, 10),
        (1e18, 0, 10, 10),
    ],
    ids=str,
)
def test_unusable_boxes_are_refused(box):
    with pytest.raises(ValueError, match="a box needs finite x, y and positive w, h"):
        crop_matrix(np.array(box), 64, 1.25)


def test_box_of_points_covers_their_pixels():
    points = np.array([[3.0, 8.0], [10.0, 4.0], [5.0, 5.0]])
    np.testing.assert_array_equal(box_of_points(points), [3, 4, 8, 5])
    np.testing.assert_array_equal(box_of_points(points[:1]), [3, 8, 1, 1])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, True),
        (-0.5, -0.5, True),
        (-0.6, 3, False),
        (99.5, 49.5, True),
        (99.6, 3, False),
        (3, 49.6, False),
        (math.nan, 3, False),
    ],
)
def test_inside_counts_the_full_area_of_border_pixels(x, y, expected):
    assert inside(np.array([x, y], dtype=float), 100, 50) == expected
