import json

import cv2
import numpy as np
import pytest

from cpm_core.people import People
from cpm_core.person_net.photos import (
    Photo,
    PhotosError,
    coco_photos,
    folder_photos,
    iou,
    lspet_photos,
)
from cpm_core.person_net.remember import Remembered
from cpm_core.person_net.scenes import Canvas, SceneMaker, person_free, recolour

NONE = np.zeros((0, 4))
PLAIN = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
SKIN = (250, 10, 10)


def photo(boxes, kind="coco", width=120, height=100, ignore=NONE, name="p"):
    """A dim picture in which every person is a red rectangle, exactly its box."""
    image = np.random.default_rng(0).integers(0, 90, (height, width, 3), np.uint8)
    for x, y, w, h in np.asarray(boxes, int).reshape(-1, 4):
        image[y : y + h, x : x + w] = SKIN
    return Photo(kind, name, image, np.asarray(boxes, float).reshape(-1, 4), np.asarray(ignore))


def shift(scale=1.0, x=0.0, y=0.0):
    edge = (scale - 1) / 2
    return np.array([[scale, 0, edge + x], [0, scale, edge + y]])


def red(image):
    """x, y, w, h of the red pixels."""
    rows, columns = np.nonzero((image[..., 0] > 170) & (image[..., 1] < 100))
    low = np.array([columns.min(), rows.min()])
    return np.concatenate([low, np.array([columns.max(), rows.max()]) - low + 1])


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (shift(), [40, 20, 30, 60]),
        (shift(2.0, x=-40), [40, 40, 60, 120]),
        (shift(0.5, x=100, y=10), [120, 20, 15, 30]),
        (shift(1.0, x=-55), [0, 20, 15, 60]),  # half of the person is cut off
        (shift(0.25, y=100), [10, 105, 7.5, 15]),
        (np.array([[-1.0, 0, 119], [0, 1, 0]]), [50, 20, 30, 60]),  # mirrored
    ],
)
def test_a_box_stays_on_its_person(matrix, expected):
    canvas = Canvas(160)
    canvas.paint(photo([[40, 20, 30, 60]]), matrix, (0, 0, 160, 160), PLAIN)
    scene = canvas.scene()
    np.testing.assert_allclose(np.concatenate([scene.boxes, scene.ignore]), [expected], atol=1e-6)
    np.testing.assert_allclose(red(scene.image), expected, atol=1)


def test_the_window_cuts_people():
    canvas = Canvas(160)
    canvas.paint(photo([[40, 20, 30, 60]]), shift(), (0, 0, 160, 60), PLAIN)
    scene = canvas.scene()
    np.testing.assert_allclose(scene.boxes, [[40, 20, 30, 40]])
    assert (scene.image[60:] == 128).all()


@pytest.mark.parametrize(
    ("window", "boxes", "ignore"),
    [
        ((0, 60, 160, 160), [[40, 20, 30, 40]], []),  # behind a table: what is seen of them
        ((0, 0, 160, 68), [], [[40, 68, 30, 12]]),  # only feet: nobody is asked for
        ((36, 16, 76, 84), [], []),  # all covered: nobody is there
    ],
)
def test_what_later_layers_cover_is_not_seen(window, boxes, ignore):
    canvas = Canvas(160)
    canvas.paint(photo([[40, 20, 30, 60]]), shift(), (0, 0, 160, 160), PLAIN)
    canvas.paint(photo([], width=160, height=160), shift(), window, PLAIN)
    scene = canvas.scene()
    np.testing.assert_allclose(scene.boxes, np.reshape(boxes, (-1, 4)))
    np.testing.assert_allclose(scene.ignore, np.reshape(ignore, (-1, 4)))


def test_suspects_and_tiny_people_are_regions_to_ignore():
    canvas = Canvas(160)
    shown = photo([[40, 20, 4, 8]], ignore=[[80.0, 20, 20, 50]])
    canvas.paint(shown, shift(), (0, 0, 160, 160), PLAIN)
    scene = canvas.scene()
    assert not len(scene.boxes)
    np.testing.assert_allclose(scene.ignore, [[40, 20, 4, 8], [80, 20, 20, 50]])


PHOTOS = [
    photo([[40, 20, 30, 60]], "lspet"),
    photo([[10, 20, 20, 60], [80, 10, 30, 80]], "coco", width=200),
    photo([], "negative"),
]


def test_people_are_where_the_boxes_are_in_every_layout():
    """What is red, slivers at the borders of layers apart, is in a box or an ignored region."""
    maker = SceneMaker(PHOTOS)
    for i in range(150):
        scene = maker.scene(160, (3, i))
        reddish = (scene.image[..., 0].astype(int) - scene.image[..., 1] > 90).astype(np.uint8)
        reddish = cv2.erode(reddish, np.ones((9, 9), np.uint8)).astype(bool)
        known = np.zeros((160, 160), bool)
        for x, y, w, h in np.concatenate([scene.boxes, scene.ignore]):
            low, high = np.floor([x - 3, y - 3]).clip(0), np.ceil([x + w + 3, y + h + 3])
            known[int(low[1]) : int(high[1]), int(low[0]) : int(high[0])] = True
        assert not (reddish & ~known).any()
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, :2] + scene.boxes[:, 2:] <= 160).all()


def test_people_are_not_always_in_the_middle():
    maker = SceneMaker(PHOTOS)
    boxes = np.concatenate([maker.scene(160, (4, i)).boxes for i in range(200)])
    middles = boxes[:, :2] + boxes[:, 2:] / 2
    assert len(boxes) > 200
    for axis in (0, 1):
        shares = np.histogram(middles[:, axis], 4, (0, 160))[0] / len(boxes)
        assert (shares > 0.1).all(), shares
    heights = boxes[:, 3] / 160
    assert heights.min() < 0.15
    assert heights.max() > 0.9


def test_the_same_seed_gives_the_same_scene():
    a, b = (SceneMaker(PHOTOS).scene(96, (1, 2, 3)) for _ in range(2))
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert not np.array_equal(a.image, SceneMaker(PHOTOS).scene(96, (1, 2, 4)).image)


def test_windows_without_people_hold_none():
    shown = photo([[60, 60, 40, 100]], width=400, height=300, ignore=[[200.0, 0, 50, 50]])
    windows = person_free(shown, np.random.default_rng(0))
    assert windows
    for window in windows:
        assert window.image[..., 0].max() < 100
        assert not len(window.boxes)


def test_recolouring_keeps_dark_and_bright_apart():
    for seed in range(20):
        table = recolour(np.random.default_rng(seed)).astype(int)
        assert (np.diff(table, axis=0) >= 0).all()
        assert (table[220] - table[30] > 60).all()


def test_iou():
    a = np.array([[0, 0, 4, 4], [10, 10, 2, 2]])
    b = np.array([[0, 0, 4, 4], [2, 0, 4, 4]])
    np.testing.assert_allclose(iou(a, b), [[1, 1 / 3], [0, 0]])


class Scripted:
    """A detector that always finds the same."""

    def __init__(self, rows):
        self.rows = np.array(rows, float).reshape(-1, 5)
        self.asked = 0

    def locate(self, picture):
        self.asked += 1
        return People(self.rows[:, :4], self.rows[:, 4], "detector")


def save(path, width=100, height=80):
    path.parent.mkdir(exist_ok=True, parents=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def test_a_detector_completes_labels(tmp_path):
    """Sure people join the labelled one, suspects are ignored, the labelled one is not doubled."""
    save(tmp_path / "images/a.jpg")
    person = {"bbox": [10, 10, 20, 40]}
    images = [
        {"file": "a.jpg", "coco_split": "train2017", "people": [person]},
        {"file": "b.jpg", "coco_split": "val2017", "people": [person]},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images}))
    found = [[11, 11, 20, 40, 0.9], [60, 10, 20, 40, 0.8], [40, 50, 10, 20, 0.2]]
    (only,) = coco_photos(tmp_path, Scripted(found))
    np.testing.assert_allclose(only.boxes, [[10, 10, 20, 40], [60, 10, 20, 40]])
    np.testing.assert_allclose(only.ignore, [[40, 50, 10, 20]])


def test_joints_become_a_box_that_a_sure_detection_refines(tmp_path):
    save(tmp_path / "images/a.jpg")
    joints = [[30, 20, 1], [40, 60, 1], [0, 0, 0]]
    document = {"images": [{"file": "a.jpg", "keypoints": joints}]}
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    (alone,) = lspet_photos(tmp_path, Scripted([]))
    x, y, w, h = alone.boxes[0]
    assert x < 30
    assert y < 20
    assert x + w > 41
    assert y + h > 61
    (refined,) = lspet_photos(tmp_path, Scripted([[27, 16, 18, 50, 0.9]]))
    np.testing.assert_allclose(refined.boxes, [[27, 16, 18, 50]])


def test_negatives_hold_nobody_whatever_a_detector_says(tmp_path):
    save(tmp_path / "a.jpg")
    found = Scripted([[27, 16, 18, 50, 0.9]])
    (negative,) = folder_photos(tmp_path, found, "negative")
    assert not len(negative.boxes)
    (positive,) = folder_photos(tmp_path, found)
    assert len(positive.boxes) == 1


def test_missing_pictures_are_named(tmp_path):
    with pytest.raises(PhotosError, match=r"annotations\.json"):
        list(lspet_photos(tmp_path, Scripted([])))
    with pytest.raises(PhotosError, match="no folder"):
        list(folder_photos(tmp_path / "none", Scripted([])))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(PhotosError, match=r"broken\.jpg"):
        list(folder_photos(tmp_path, Scripted([])))


def test_answers_of_a_detector_are_remembered(tmp_path):
    detector = Scripted([[1, 2, 3, 4, 0.5]])
    first = Remembered(detector, tmp_path / "labels.json")
    picture = np.zeros((9, 9, 3), np.uint8)
    first.locate(picture)
    first.save()
    again = Remembered(detector, tmp_path / "labels.json").locate(picture)
    assert detector.asked == 1
    np.testing.assert_allclose(again.boxes, [[1, 2, 3, 4]])
