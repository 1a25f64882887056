import numpy as np
import pytest

from cpm_core.draw import contact_sheet, draw_pose, rgb


def black(height=200, width=200):
    return np.zeros((height, width, 3), np.uint8)


# left hand, right hand, head of the `hands` skeleton: a red and a green limb meet at the head
POSE = np.array([[160.0, 150, 0.9], [40, 150, 0.9], [100, 30, 0.9]])


def test_limbs_have_their_colours_and_joints_are_white(hands):
    picture = black()
    draw_pose(picture, POSE, hands)
    assert picture[90, 130].tolist() == [255, 0, 0]
    assert picture[90, 70].tolist() == [0, 255, 0]
    for x, y, _ in POSE.astype(int):
        assert picture[y, x].tolist() == [255, 255, 255]
    assert not picture[180:].any()


def test_joints_with_low_scores_and_their_limbs_are_left_out(hands):
    picture = black()
    pose = POSE.copy()
    pose[0, 2] = 0.1
    draw_pose(picture, pose, hands, threshold=0.2)
    assert not picture[:, 110:].any()
    assert picture[90, 70].tolist() == [0, 255, 0]


@pytest.mark.parametrize("place", [np.nan, 1e30, -np.inf])
def test_joints_that_are_nowhere_do_no_harm(hands, place):
    picture = black()
    pose = POSE.copy()
    pose[0] = [place, place, 0]
    draw_pose(picture, pose, hands)
    assert picture[90, 70].tolist() == [0, 255, 0]


def test_the_box_surrounds_its_pixels(hands):
    picture = black()
    draw_pose(picture, np.zeros((3, 3)), hands, box=np.array([20.0, 30, 50, 60]))
    ys, xs = (picture[..., 0] > 128).nonzero()
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (20, 30, 69, 89)


def test_contact_sheet_has_every_picture_in_its_place():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sizes = [(60, 80), (300, 400), (100, 20)]
    pictures = [np.full((*size, 3), c, np.uint8) for size, c in zip(sizes, colors, strict=True)]
    sheet = contact_sheet(pictures, ["one", "", "three " * 40], columns=2, width=80)
    # Tiles of 80 x 60 and 24 px of caption under each, 8 px apart.
    assert sheet.shape == (8 + 2 * (60 + 24 + 8), 8 + 2 * (80 + 8), 3)
    assert sheet[8 + 30, 8 + 40].tolist() == [200, 0, 0]
    assert sheet[8, 8].tolist() == [200, 0, 0]
    assert sheet[8 + 30, 96 + 40].tolist() == [0, 200, 0]
    assert sheet[100 + 30, 8 + 40].tolist() == [0, 0, 200]
    # A tall picture is fitted in, not stretched.
    assert sheet[100 + 30, 8 + 5].tolist() == [225, 225, 225]
    paper = (sheet == 245).all(axis=2)
    captions = {(0, 0): True, (0, 1): False, (1, 0): True}
    for (row, column), inked in captions.items():
        y, x = 8 + row * 92 + 60, 8 + column * 88
        assert paper[y : y + 24, x : x + 80].all() == (not inked)
    # A caption that is too long ends with its tile.
    assert paper[:, 88:96].all()
    assert paper[100:, 88:].all()


def test_contact_sheet_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], [])
    with pytest.raises(ValueError, match="zip"):
        contact_sheet([black()], ["one", "two"])


def test_rgb():
    assert rgb("#0A10ff") == (10, 16, 255)
