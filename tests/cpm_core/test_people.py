import json

import cv2
import numpy as np
import pytest

from cpm_core.errors import LocatorError
from cpm_core.people import People, WholeImage, YoloxDetector

from .onnx_files import FLOAT, INT32, model

SIDE, CELLS = 64, 8 * 8 + 4 * 4 + 2 * 2


def rows(*people, classes=1):
    """Raw output of a detector with 64 px input: (1, 84, 5 + classes).

    People are (stride, column, row, dx, dy, w, h, objectness, class scores ...): the centre is dx,
    dy cells from the cell's corner, w and h are pixels of the input.
    """
    out = np.zeros((1, CELLS, 5 + classes))
    for stride, column, row, dx, dy, w, h, *scores in people:
        first = {8: 0, 16: 64, 32: 80}[stride]
        index = first + row * (SIDE // stride) + column
        out[0, index] = [dx, dy, np.log(w / stride), np.log(h / stride), *scores]
    return out


def detector(output, **options):
    return YoloxDetector(
        model([("images", FLOAT, (1, 3, SIDE, SIDE))], [("out", output)]), **options
    )


def picture(height, width):
    return np.zeros((height, width, 3), np.uint8)


# The centre is at (2.5, 1.25) cells of 16 px: (40, 20). The box is 24, 8, 32, 24.
ONE = (16, 2, 1, 0.5, 0.25, 32, 24, 0.9, 0.8)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (64, 64, [24, 8, 32, 24]),
        (128, 128, [48, 16, 64, 48]),
        (96, 192, [72, 24, 96, 72]),  # a third of the size, at the top of the square
        (32, 16, [12, 4, 4, 12]),  # twice the size, at the left; cut at the picture's border
        (1000, 500, [375, 125, 125, 375]),
    ],
)
def test_boxes_are_in_pixels_of_the_picture(height, width, expected):
    people = detector(rows(ONE)).locate(picture(height, width))
    np.testing.assert_allclose(people.boxes, [expected], rtol=1e-4)
    np.testing.assert_allclose(people.scores, [0.72], rtol=1e-5)
    assert people.source == "detector"


def test_rounding_of_the_letterbox_does_not_move_boxes():
    # 200 x 101 px become 64 x 32 px: x shrinks by 3.125, y by 3.156.
    people = detector(rows((8, 2, 3, 0, 0, 16, 16, 1, 1))).locate(picture(101, 200))
    ratio_x, ratio_y = 64 / 200, 32 / 101
    expected = [8 / ratio_x, 16 / ratio_y, 16 / ratio_x, 101 - 16 / ratio_y]
    np.testing.assert_allclose(people.boxes, [expected], rtol=1e-4)


@pytest.mark.parametrize(
    ("people", "options", "scores"),
    [
        ([], {}, []),
        ([ONE], {}, [0.72]),
        ([ONE], {"threshold": 0.73}, []),
        ([ONE, (8, 1, 1, 0, 0, 8, 8, 1, 0.95)], {}, [0.95, 0.72]),
        # The same place seen at another stride, box 26, 8, 32, 24: suppressed.
        ([ONE, (8, 5, 2, 0.25, 0.5, 32, 24, 0.9, 0.7)], {}, [0.72]),
        ([ONE, (8, 5, 2, 0.25, 0.5, 32, 24, 0.9, 0.7)], {"nms_iou": 0.95}, [0.72, 0.63]),
        # Off the picture or in the padding.
        ([(8, 0, 0, -9, -9, 8, 8, 1, 1)], {}, []),
    ],
    ids=["nobody", "one", "low score", "best first", "double", "both wanted", "outside"],
)
def test_who_is_kept(people, options, scores):
    found = detector(rows(*people), **options).locate(picture(64, 64))
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    assert found.boxes.shape == (len(scores), 4)
    assert len(found) == len(scores)


def test_what_is_in_the_letterbox_padding_is_dropped():
    low = (8, 3, 6, 0.5, 0.5, 8, 8, 1, 1)
    assert len(detector(rows(low)).locate(picture(64, 64))) == 1
    assert len(detector(rows(low)).locate(picture(32, 64))) == 0


PICTURES = [picture(64, 64), picture(128, 128), picture(32, 16)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_several_pictures_are_as_one_after_the_other(count):
    """A model that takes one picture at a time gets them one at a time."""
    finder = detector(rows(ONE))
    found = finder.locate_batch(PICTURES[:count])
    for one, image in zip(found, PICTURES[:count], strict=True):
        np.testing.assert_array_equal(one.boxes, finder.locate(image).boxes)


def test_a_model_of_any_batch_gets_several_pictures_at_once():
    """Each has its own people, in pixels of its own."""
    other = rows((8, 6, 6, 0.5, 0.5, 8, 8, 1, 0.9))
    both = np.concatenate([rows(ONE), other])
    inputs = [("images", FLOAT, ("n", 3, SIDE, SIDE))]
    finder = YoloxDetector(model(inputs, [("out", both)]))
    assert finder.batches
    first, second = finder.locate_batch([picture(128, 128), picture(64, 64)])
    np.testing.assert_allclose(first.boxes, [[48, 16, 64, 48]], rtol=1e-4)
    np.testing.assert_allclose(second.boxes, [[48, 48, 8, 8]], rtol=1e-4)


def test_no_more_than_a_batch_at_once():
    class Session:
        def __init__(self):
            self.sizes = []

        def run(self, _, feeds):
            self.sizes.append(len(feeds["images"]))
            return [np.repeat(rows(ONE), len(feeds["images"]), axis=0)]

    inputs = [("images", FLOAT, ("n", 3, SIDE, SIDE))]
    finder = YoloxDetector(model(inputs, [("out", rows())]))
    finder.session = Session()
    assert len(finder.locate_batch([picture(64, 64)] * 19)) == 19
    assert finder.session.sizes == [8, 8, 3]


def test_whole_images():
    found = WholeImage().locate_batch(PICTURES)
    assert [people.boxes[0, 2:].tolist() for people in found] == [[64, 64], [128, 128], [16, 32]]


def test_only_class_0_is_a_person():
    dog = (8, 3, 3, 0.5, 0.5, 8, 8, 1, 0.1, 0.99)
    person = (8, 6, 6, 0.5, 0.5, 8, 8, 1, 0.9, 0.1)
    found = detector(rows(dog, person, classes=2)).locate(picture(64, 64))
    np.testing.assert_allclose(found.boxes, [[48, 48, 8, 8]])


def test_the_network_sees_a_letterboxed_picture_in_bgr():
    class Session:
        def run(self, _, feeds):
            self.seen = feeds["images"]
            return [rows()]

    finder = detector(rows())
    finder.session = Session()
    image = picture(32, 64)
    image[:] = (10, 20, 30)
    finder.locate(image)
    seen = finder.session.seen
    assert (seen.shape, seen.dtype) == ((1, 3, 64, 64), np.float32)
    assert seen[0, :, 5, 5].tolist() == [30, 20, 10]
    assert (seen[0, :, 32:] == 114).all()


IMAGES = ("images", FLOAT, (1, 3, 64, 64))
GOOD = ("out", np.zeros((1, 84, 6)))


@pytest.mark.parametrize(
    ("inputs", "outputs", "found"),
    [
        ([("x", FLOAT, (1, 64, 64, 3))], [GOOD], "x tensor(float) [1, 64, 64, 3]"),
        ([("x", INT32, (1, 3, 64, 64))], [GOOD], "x tensor(int32) [1, 3, 64, 64]"),
        ([("x", FLOAT, (1, 3, 64, 96))], [GOOD], "[1, 3, 64, 96]"),
        ([("x", FLOAT, (1, 3, 72, 72))], [GOOD], "[1, 3, 72, 72]"),
        ([("x", FLOAT, (4, 3, 64, 64))], [GOOD], "[4, 3, 64, 64]"),
        ([("x", FLOAT, (1, 3, "h", "w"))], [GOOD], "[1, 3, 'h', 'w']"),
        ([("x", FLOAT, ())], [GOOD], "x tensor(float) []"),
        ([], [GOOD], "out tensor(float) [1, 84, 6]"),
        ([IMAGES, ("y", FLOAT, (1,))], [GOOD], "y tensor(float) [1]"),
        ([IMAGES], [("out", np.zeros((1, 84, 5)))], "[1, 84, 5]"),
        ([IMAGES], [("out", np.zeros((1, 100, 6)))], "[1, 100, 6]"),
        ([IMAGES], [("out", np.zeros((84, 6)))], "[84, 6]"),
        ([IMAGES], [("a", np.zeros((1, 84, 6))), ("b", np.zeros((1, 84, 6)))], "b tensor(float)"),
    ],
    ids=[
        "channels last",
        "integers",
        "not square",
        "no multiple of 32",
        "fixed batch",
        "any size",
        "no axes",
        "no input",
        "two inputs",
        "no classes",
        "other grid",
        "no batch axis",
        "two outputs",
    ],
)
def test_other_layouts_are_refused_with_what_was_found(tmp_path, inputs, outputs, found):
    path = tmp_path / "other.onnx"
    path.write_bytes(model(inputs, outputs))
    with pytest.raises(LocatorError, match="not a YOLOX detector") as caught:
        YoloxDetector(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert found in str(caught.value)


@pytest.mark.parametrize("name", ["movenet_thunder_fp16w.onnx", "cpm_mv2_aichallenger.onnx"])
def test_other_peoples_models_are_refused(shared, name):
    with pytest.raises(LocatorError, match=f"{name}: not a YOLOX detector"):
        YoloxDetector(shared("weights", name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no detector at .*give the path"),
        (b"", "onnxruntime cannot load it"),
        (b"not a model", "onnxruntime cannot load it"),
        (model([IMAGES], [GOOD])[:500], "onnxruntime cannot load it"),
    ],
    ids=["absent", "empty", "text", "cut"],
)
def test_files_that_are_no_models(tmp_path, content, message):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(LocatorError, match="the detector: onnxruntime cannot load it"):
            YoloxDetector(content)
    with pytest.raises(LocatorError, match=message) as caught:
        YoloxDetector(path)
    assert str(path) in str(caught.value)


def overlap(a, b):
    """Intersection over union of two boxes x, y, w, h."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared_area = np.prod(np.clip(high - low, 0, None))
    return shared_area / (np.prod(a[2:]) + np.prod(b[2:]) - shared_area)


def test_real_people_are_found(shared):
    folder = shared("data", "coco_people")
    finder = YoloxDetector(shared("weights", "yolox_nano.onnx"))
    images = json.loads((folder / "annotations.json").read_text())["images"]
    alone = [
        image
        for image in images
        if len(image["people"]) == 1
        and np.prod(image["people"][0]["bbox"][2:]) > 0.1 * image["width"] * image["height"]
    ][:8]
    assert len(alone) == 8
    for image in alone:
        pixels = cv2.imread(str(folder / "images" / image["file"]), cv2.IMREAD_COLOR_RGB)
        people = finder.locate(pixels)
        label = np.array(image["people"][0]["bbox"])
        assert max(overlap(box, label) for box in people.boxes) > 0.5, image["file"]
        assert (np.diff(people.scores) <= 0).all()


def test_whole_image():
    people = WholeImage().locate(picture(30, 50))
    assert people.boxes.tolist() == [[0, 0, 50, 30]]
    assert people.scores.tolist() == [1]
    assert people.source == "whole-image"


def test_best():
    people = People(np.arange(12.0).reshape(3, 4), np.array([0.9, 0.5, 0.4]), "given")
    assert len(people.best(2)) == 2
    assert people.best(2).scores.tolist() == [0.9, 0.5]
    assert len(people.best(9)) == 3
    assert people.best(1).source == "given"
