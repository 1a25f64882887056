import numpy as np
import pytest

from cpm_core.crops import Cropper
from cpm_core.errors import ConfigError


def test_views_show_the_person_larger_and_smaller():
    """Two crossing lines: in view v they are scales[v] times as far from the middle."""
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[187:195] = picture[:, 227:235] = 255
    box = np.array([[100.0, 100, 200, 160]])  # centre (199.5, 179.5), 2 px of picture per px
    scales = (0.5, 1.0, 2.0)
    crops = Cropper(100, 1.0, scales).cut(picture, box)
    assert crops.shape == (1, 3, 100, 100, 3)
    assert crops.dtype == np.uint8
    crops = np.where(crops == 128, 0, crops)  # the widest view reaches beyond the picture
    for crop, scale in zip(crops[0], scales, strict=True):
        x = 49.5 + (230.5 - 199.5) / 2 * scale
        y = 49.5 + (190.5 - 179.5) / 2 * scale
        assert np.average(np.arange(100), weights=crop[9, :, 0]) == pytest.approx(x, abs=0.05)
        assert np.average(np.arange(100), weights=crop[:, 9, 0]) == pytest.approx(y, abs=0.05)


def test_keypoints_of_base_crops_go_back_to_the_picture():
    cropper = Cropper(100, 1.25, (0.7, 1.3))
    boxes = np.array([[100.0, 100, 80, 40], [0, 0, 8, 16]])
    keypoints = np.array([[[49.5, 49.5, 0.5], [59.5, 49.5, 0.9]], [[49.5, 49.5, 1], [0, 0, 1]]])
    before = keypoints.copy()
    result = cropper.to_picture(keypoints, boxes, 200, 200)
    assert result.dtype == np.float32
    # Sides of the crops are 100 and 20 px, so 1 px of crop is 1 and 0.2 px of picture.
    np.testing.assert_allclose(result[0], [[139.5, 119.5, 0.5], [149.5, 119.5, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(result[1, 0], [3.5, 7.5, 1], rtol=1e-5)
    # The last one lies left of the picture: its place is kept, its score is not.
    np.testing.assert_allclose(result[1, 1], [3.5 - 9.9, 7.5 - 9.9, 0], rtol=1e-5)
    np.testing.assert_array_equal(keypoints, before)


def test_nobody():
    cropper = Cropper(64, 1.25)
    none = np.empty((0, 4))
    assert cropper.cut(np.zeros((10, 10, 3), np.uint8), none).shape == (0, 1, 64, 64, 3)
    assert cropper.to_picture(np.empty((0, 14, 3), np.float32), none, 10, 10).shape == (0, 14, 3)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((9, 9), np.uint8), ((9, 9, 4), np.uint8), ((9, 9, 3), np.float32), ((0, 9, 3), np.uint8)],
    ids=["grey", "with alpha", "floats", "empty"],
)
def test_other_pictures_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="expected a uint8 RGB picture"):
        Cropper(64, 1.25).cut(np.zeros(shape, dtype), np.array([[0.0, 0, 5, 5]]))


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 2, 4), (0,)])
def test_other_boxes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected boxes \(N, 4: x, y, w, h\), got"):
        Cropper(64, 1.25).cut(np.zeros((9, 9, 3), np.uint8), np.ones(shape))


@pytest.mark.parametrize(
    ("factor", "scales", "message"),
    [
        (0.0, (1.0,), "box_factor is 0.0"),
        (-1.25, (1.0,), "box_factor"),
        (float("nan"), (1.0,), "box_factor"),
        (1.25, (), "scales are"),
        (1.25, (1.0, 0.0), "scales are"),
        (1.25, (float("inf"),), "scales are"),
    ],
)
def test_unusable_settings_are_refused(factor, scales, message):
    with pytest.raises(ConfigError, match=message):
        Cropper(64, factor, scales)
