"""What a decoder process does with a unit, without the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import pipeline.worker
from cpm_core.locators import LocatorSpec
from cpm_core.people import People
from pipeline.errors import InputError
from pipeline.messages import FrameResult
from pipeline.reader import VideoReader
from pipeline.units import GivenBox, Unit
from pipeline.video import Frame
from pipeline.worker import UnitWorker
from tests.pipeline.test_plan import decoder_config
from tests.pipeline.videos import write_video

WIDTH, HEIGHT = 60, 40
BOXES = LocatorSpec("boxes")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    return path


def results(unit: Unit, **config: Any) -> list[tuple[FrameResult, Any]]:
    return list(UnitWorker(decoder_config(**config)).frames(unit, None))


def test_the_whole_picture_is_sent_as_one_wide_view(picture: str) -> None:
    [(result, crops)] = results(Unit(0, 0, picture, "image"), scales=(0.7, 1.0, 1.3))
    assert (result.width, result.height, result.source) == (WIDTH, HEIGHT, "whole-image")
    assert result.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert crops.shape == (1, *decoder_config(scales=(0.7, 1.0, 1.3)).view_shape)
    assert crops.shape == (1, 1, 128, 128, 3)


def test_given_boxes_come_best_first_and_at_most_so_many(picture: str) -> None:
    boxes = tuple(GivenBox(i, 0, 10, 10, score) for i, score in enumerate([0.2, 0.9, 0.5]))
    [(result, crops)] = results(
        Unit(0, 0, picture, "image", boxes=boxes), people=BOXES, max_people=2
    )
    assert result.boxes[:, 0].tolist() == [1, 2]
    assert result.scores.tolist() == [0.9, 0.5]
    assert len(crops) == 2


GOOD = GivenBox(5, 5, 20, 20)


@pytest.mark.parametrize(
    ("boxes", "people", "problem"),
    [
        pytest.param((GOOD,), 1, None, id="usable"),
        pytest.param((), 0, None, id="nobody is there"),
        pytest.param(None, 0, "no box is given", id="none given"),
        pytest.param((GivenBox(5, 5, 0, 20),), 0, "positive w, h", id="no width"),
        pytest.param((GivenBox(5, 5, 20, -1),), 0, "positive w, h", id="negative height"),
        pytest.param((GivenBox(float("nan"), 5, 20, 20),), 0, "finite", id="not a number"),
        pytest.param((GivenBox(5, 5, float("inf"), 20),), 0, "finite", id="infinite"),
        pytest.param((GivenBox(5, 5, 1e-5, 1e-5),), 0, "finite", id="too small to cut"),
        pytest.param((GivenBox(-1e8, 0, 1e8 + 5, 5),), 0, "finite", id="too large to cut"),
        pytest.param((GivenBox(5, 5, 9, 9, float("inf")),), 0, "score", id="infinite score"),
        pytest.param(
            (GivenBox(60, 0, 9, 9),), 0, "misses the picture of 60 x 40", id="right of it"
        ),
        pytest.param((GivenBox(0, -9, 9, 9),), 0, "misses the picture", id="above it"),
        pytest.param((GivenBox(-9, -9, 80, 80),), 1, None, id="around it"),
        pytest.param((GivenBox(5, 5, 0, 0), GOOD), 1, "positive w, h", id="one of two"),
        pytest.param((GOOD, GivenBox(5, 5, 0, 0)), 1, "positive w, h", id="the other of two"),
        pytest.param((GivenBox(5, 5, 9, 9, 1.0, 0),), 1, None, id="frame 0 of a picture"),
    ],
)
def test_unusable_boxes_are_left_out_with_the_reason(
    picture: str, boxes: tuple[GivenBox, ...] | None, people: int, problem: str | None
) -> None:
    [(result, crops)] = results(Unit(0, 0, picture, "image", boxes=boxes), people=BOXES)
    assert len(result.boxes) == len(result.scores) == len(crops) == people
    assert (result.box_error is None) == (problem is None)
    assert problem is None or problem in str(result.box_error)


def test_boxes_of_a_video_are_those_of_the_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=3)
    boxes = (GivenBox(1, 1, 9, 9, 1.0, 2), GivenBox(2, 2, 9, 9), GivenBox(3, 3, 9, 9, 1.0, 0))
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=3, boxes=boxes)
    found = [result.boxes[:, 0].tolist() for result, _ in results(unit, people=BOXES)]
    assert found == [[2, 3], [2], [1, 2]]


def test_after_damage_boxes_of_frames_are_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's box is no statement that nobody is there; a box for all frames still counts."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    seen = [Frame(picture, index, pts, pts / 1000) for index, pts in ((0, 0), (None, 80))]
    monkeypatch.setattr(VideoReader, "frames", lambda *args: iter(seen))
    of_frames = (GivenBox(1, 1, 9, 9, 1.0, 0), GivenBox(2, 2, 9, 9, 1.0, 1))
    unit = Unit(0, 0, "v.mp4", "video", start_pts=0, start_frame=0, frames=2, boxes=of_frames)
    (whole, _), (after, _) = results(unit, people=BOXES)
    assert (len(whole.boxes), whole.box_error) == (1, None)
    assert len(after.boxes) == 0
    assert "which frame it is" in str(after.box_error)
    everywhere = unit._replace(boxes=(GivenBox(3, 3, 9, 9),))
    assert [(len(r.boxes), r.box_error) for r, _ in results(everywhere, people=BOXES)] == [
        (1, None),
        (1, None),
    ]


def photo(tmp_path: Path, name: str, orientation: int = 1) -> str:
    """A soft picture of 1200 x 900 pixels, stored as a JPEG or without loss."""
    rng = np.random.default_rng(3)
    soft = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (1200, 900))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 97, "subsampling": 0} if name.endswith("jpg") else {}
    Image.fromarray(soft).save(tmp_path / name, exif=exif, **options)
    return str(tmp_path / name)


def alike(crops: Any, expected: Any) -> bool:
    """But for the picture's border, which is a pixel of the smaller picture wide."""
    difference = np.abs(crops.astype(int) - expected)
    return bool(difference.mean() < 1 and (difference > 6).mean() < 0.02)


LARGE, SMALL, NARROW = (
    GivenBox(100, 150, 700, 600),
    GivenBox(900, 500, 60, 70),
    GivenBox(850, 20, 150, 870),
)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("boxes", [(LARGE,), (LARGE, NARROW), (LARGE, SMALL)], ids=len)
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 3.0)])
def test_crops_of_a_jpeg_are_as_of_the_whole_picture(
    tmp_path: Path, boxes: tuple[GivenBox, ...], orientation: int, scales: tuple[float, ...]
) -> None:
    """However finely it is decoded."""
    jpeg, png = (photo(tmp_path, name, orientation) for name in ("a.jpg", "a.png"))
    config = {"people": BOXES, "scales": scales}
    [(found, crops)] = results(Unit(0, 0, jpeg, "image", boxes=boxes), **config)
    [(whole, expected)] = results(Unit(0, 0, png, "image", boxes=boxes), **config)
    assert (found.width, found.height) == (whole.width, whole.height)
    assert np.array_equal(found.boxes, whole.boxes)
    assert crops.shape == expected.shape
    assert alike(crops, expected)


def test_a_wide_view_of_a_jpeg_is_as_of_the_whole_picture(tmp_path: Path) -> None:
    [(found, wide)] = results(Unit(0, 0, photo(tmp_path, "a.jpg"), "image"))
    [(whole, expected)] = results(Unit(0, 0, photo(tmp_path, "a.png"), "image"))
    assert found.boxes.tolist() == whole.boxes.tolist() == [[0, 0, 1200, 900]]
    assert alike(wide, expected)


class Bright:
    """A locator that sees what is bright in a picture, and notes how large the pictures were."""

    size = 64

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def locate(self, picture: Any) -> People:
        self.shapes.append(picture.shape)
        rows, columns = (np.flatnonzero((picture[..., 0] > 128).any(axis=a)) for a in (1, 0))
        box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        return People(np.array([box], float), np.ones(1), "person-net")

    def locate_batch(self, pictures: Sequence[Any]) -> list[People]:
        return [self.locate(picture) for picture in pictures]


@pytest.mark.parametrize(
    ("x", "y", "w", "h", "reductions"),
    [(160, 80, 640, 800, [8, 8]), (160, 80, 160, 240, [8, 4]), (961, 773, 50, 60, [8, 1])],
)
def test_people_found_in_a_small_picture_are_cut_as_finely_as_they_need(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    x: int,
    y: int,
    w: int,
    h: int,
    reductions: list[int],
) -> None:
    drawn = np.zeros((883, 1201, 3), np.uint8)
    drawn[y : y + h, x : x + w] = 255
    cv2.imwrite(str(tmp_path / "a.jpg"), drawn)
    worker = UnitWorker(replace(decoder_config(), people=LocatorSpec("person-net", 0.5)))
    worker.locator = locator = Bright()
    asked = []
    at = pipeline.worker.Still.at
    noted = lambda still, shrink: asked.append(found := at(still, shrink)) or found  # noqa: E731
    monkeypatch.setattr(pipeline.worker.Still, "at", noted)
    [(found, crops)] = list(worker.frames(Unit(0, 0, str(tmp_path / "a.jpg"), "image"), None))
    assert [look.reduction for look in asked] == reductions
    assert locator.shapes == [(111, 151, 3)]
    assert (found.width, found.height) == (1201, 883)
    assert np.abs(found.boxes[0] - [x, y, w, h]).max() <= 8
    # The figure fills the box, which fills the crop but for its factor.
    side = crops.shape[-2]
    middle = crops[0, 0, side // 2, :, 0] > 128
    assert abs(middle.sum() / side - w / max(w, h) / worker.cropper.box_factor) < 0.08


def test_a_box_at_the_end_of_a_small_picture_ends_where_the_picture_does(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((883, 1201, 3), 255, np.uint8))
    worker = UnitWorker(replace(decoder_config(), people=LocatorSpec("person-net", 0.5)))
    worker.locator = Bright()
    [(found, _)] = list(worker.frames(Unit(0, 0, str(tmp_path / "a.jpg"), "image"), None))
    assert found.boxes.tolist() == [[0, 0, 1201, 883]]


class Failing(Bright):
    """A locator that is out of memory."""

    def locate(self, picture: Any) -> People:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried")


def test_frames_before_a_damaged_one_come_before_the_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=6)
    # Two more are promised than there are.
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=8)
    worker = UnitWorker(decoder_config())
    worker.locator = Bright()
    frames = worker.frames(unit, None)
    found = [next(frames)[0].frame_index for _ in range(6)]
    assert found == list(range(6))
    with pytest.raises(InputError, match="only 6 of 8 frames"):
        next(frames)


def test_a_locator_that_is_out_of_memory_says_so_as_others_do(picture: str) -> None:
    """torch raises a RuntimeError; its unit would be `internal`."""
    worker = UnitWorker(decoder_config())
    worker.locator = Failing()
    with pytest.raises(MemoryError):
        list(worker.frames(Unit(0, 0, picture, "image"), None))


def test_a_video_frame_carries_its_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=3)
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=3)
    found = [result for result, _ in results(unit)]
    assert [(r.frame_index, r.pts) for r in found] == [(0, 0), (1, 512), (2, 1024)]
    assert [r.timestamp_s for r in found] == pytest.approx([0, 0.04, 0.08])
