"""Re-centring: what further looks see, what box is told, that pictures stay where they are."""

import json

import cv2
import numpy as np
import pytest

import cpm_core
from cpm_core.estimator import load
from cpm_core.geometry import box_of_points
from cpm_core.metrics import limb_joints, lspet_errors
from cpm_core.whole_image import WIDE, estimate_whole, whole_box, wide_view


class Scripted:
    """An estimator that says what it is told and notes what it is shown."""

    def __init__(self, estimator, scores):
        self.cropper = estimator.cropper
        self.estimator = estimator
        self.scores = iter(scores)
        self.seen = []

    def estimate_crops(self, crops):
        keypoints = self.estimator.estimate_crops(crops)
        keypoints[..., 2] = next(self.scores)
        self.seen.append(crops)
        return keypoints


@pytest.fixture(scope="module")
def dots(dots_file):
    return load(dots_file, device="cpu")


def look(estimator, *pictures):
    size = estimator.cropper.size
    wides = np.stack([wide_view(p, size) for p in pictures])
    return estimate_whole(estimator, wides, np.array([p.shape[1::-1] for p in pictures]))


@pytest.mark.parametrize(("width", "height"), [(100, 300), (300, 100), (1000, 1000), (70, 50)])
def test_the_wide_view_is_the_picture_in_a_square(width, height):
    view = wide_view(np.full((height, width, 3), 7, np.uint8), 64)
    assert view.shape == (64 * WIDE, 64 * WIDE, 3)
    inside = (view == 7).all(axis=2)
    share = min(width, height) / max(width, height)
    assert inside.mean() == pytest.approx(share, abs=0.05)
    middle = np.argwhere(inside).mean(axis=0)
    np.testing.assert_allclose(middle, 64 * WIDE / 2 - 0.5, atol=0.51)


@pytest.mark.parametrize("box", [[40, 20, 80, 60], [0, 0, 200, 120], [150, 90, 40, 25]])
@pytest.mark.parametrize("scales", [(1.0,), (0.7, 1.3)])
def test_a_crop_of_the_wide_view_is_that_of_the_picture(dots_file, box, scales):
    """The same place at the same size: only its sharpness is that of the wide view."""
    from cpm_core import whole_image

    estimator = load(dots_file, device="cpu", scales=scales)
    picture = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8), (0, 0), 6
    )
    box = np.array(box, np.float64)
    direct = estimator.cropper.cut(picture, box[None])[0]
    wide = wide_view(picture, estimator.cropper.size)
    there = whole_image._in_wide(box, np.array([200, 120]), len(wide))
    again = estimator.cropper.cut(wide, there[None])[0]
    difference = np.abs(direct.astype(int) - again.astype(int))
    assert np.percentile(difference, 95) <= 3


def test_the_second_look_is_at_the_joints_of_the_first(dots, dots_picture):
    """A red and a green dot in a corner of a large picture: small at first, then in the middle."""
    picture = dots_picture((40, 60), (72, 60), width=160, height=160, radius=5)
    stub = Scripted(dots, [0.9, 0.9, 0.9])
    boxes, keypoints = look(stub, picture)
    assert len(stub.seen) == 3
    first, last = stub.seen[0][0, 0], stub.seen[2][0, 0]
    red = [((c[..., 0] > 200) & (c[..., 1] < 80)).sum() for c in (first, last)]
    assert red[1] > 2 * red[0]
    x, y, w, h = boxes[0]
    assert 30 < x + w / 2 < 90
    assert 40 < y + h / 2 < 80
    # At least half of the picture at the second look, and half of that at the third.
    assert 40 <= max(w, h) < 80
    assert keypoints.shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("scores", "looks"),
    [([0.1], 1), ([0.9, 0.1], 2), ([0.9, 0.9, 0.9], 3), ([[0.9, 0, 0], [0.9, 0, 0], 0], 3)],
    ids=["never sure", "sure at first", "sure", "a third of the joints is enough"],
)
def test_a_look_that_is_not_sure_ends_it(dots, dots_picture, scores, looks):
    picture = dots_picture((40, 60), (72, 60), width=160, height=160, radius=5)
    stub = Scripted(dots, scores)
    boxes, keypoints = look(stub, picture)
    assert len(stub.seen) == looks
    if looks == 1:
        assert boxes.tolist() == [whole_box(160, 160).tolist()]
        assert (keypoints[..., 2] == np.float32(0.1)).all()


def test_the_box_is_what_was_looked_at_last(dots, dots_picture):
    """Keypoints are those of a crop of the picture at the box that is told, up to its sharpness."""
    pictures = [
        dots_picture((60, 50), (90, 70), width=160, height=120, radius=5),
        dots_picture((200, 300), (260, 330), width=400, height=500, radius=12),
    ]
    boxes, keypoints = look(dots, *pictures)
    for picture, box, points in zip(pictures, boxes, keypoints, strict=True):
        assert (box[2:] < picture.shape[1::-1]).any()
        direct = dots.estimate(picture, box[None])[0]
        np.testing.assert_allclose(points[:, :2], direct[:, :2], atol=0.03 * max(picture.shape))


def test_a_picture_is_the_same_in_any_company(dots, dots_picture):
    one = dots_picture((60, 50), (90, 70), width=160, height=120, radius=5)
    other = dots_picture((100, 20), (20, 100), width=120, height=160, radius=5)
    alone, together = look(dots, one), look(dots, other, one, other)
    np.testing.assert_allclose(together[0][1], alone[0][0], atol=0.1)
    np.testing.assert_allclose(together[1][1], alone[1][0], atol=0.1)


def test_nobody_at_all(dots):
    side = WIDE * dots.cropper.size
    boxes, points = estimate_whole(
        dots, np.empty((0, side, side, 3), np.uint8), np.empty((0, 2), np.int64)
    )
    assert boxes.shape == (0, 4)
    assert points.shape == (0, 3, 3)


def test_it_helps_where_a_person_does_not_fill_the_picture(shared):
    """Uncropped originals: the person covers 0.4 of the longer side at the median."""
    folder = shared("data", "lspet_val")
    document = json.loads((folder / "annotations.json").read_text())
    images = document["images"][:60]
    estimator = cpm_core.load("cpm-lite", "cpu")
    skeleton = estimator.info.skeleton
    order = [document["joint_names"].index(name) for name in skeleton.keypoints]
    labels = np.array([image["keypoints"] for image in images], float)[:, order]
    pictures = [
        cv2.imread(str(folder / "images" / image["file"]), cv2.IMREAD_COLOR_RGB) for image in images
    ]
    once = np.stack([estimator.estimate(p, whole_box(*p.shape[1::-1])[None])[0] for p in pictures])
    _, adapted = look(estimator, *pictures)

    def pck(points):
        flags = labels[..., 2] > 0
        errors = lspet_errors(points[..., :2], labels[..., :2], flags, skeleton)
        return errors.only(limb_joints(skeleton)).at(0.2).total

    assert pck(adapted) > pck(once) + 15
    assert box_of_points(adapted[0, :, :2])[2:].min() > 0
