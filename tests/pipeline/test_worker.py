"""What a decoder process does with a unit, without the process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pipeline.worker
from cpm_core.locators import LocatorSpec
from cpm_core.people import People
from pipeline.errors import InputError
from pipeline.messages import FrameResult
from pipeline.units import GivenBox, Unit
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


class Watched:
    """A locator that notes how many pictures it sees at once, and finds frame n at x = n."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.sizes: list[int] = []
        self.fails_at = fails_at

    def locate(self, picture: Any) -> People:
        return self.locate_batch([picture])[0]

    def locate_batch(self, pictures: Sequence[Any]) -> list[People]:
        before = sum(self.sizes)
        self.sizes.append(len(pictures))
        if self.fails_at is not None and sum(self.sizes) > self.fails_at:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried")
        boxes = [[before + i + 1, 1, 9, 9] for i in range(len(pictures))]
        return [People(np.array([box], float), np.ones(1), "person-net") for box in boxes]


def watched_worker(locator: Watched, together: int) -> UnitWorker:
    worker = UnitWorker(decoder_config())
    worker.locator, worker.together = locator, together
    return worker


@pytest.mark.parametrize(("together", "sizes"), [(1, [1] * 7), (4, [4, 3]), (9, [7])])
def test_frames_are_located_together(tmp_path: Path, together: int, sizes: list[int]) -> None:
    path = write_video(tmp_path / "v.mp4", frames=7)
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=7)
    locator = Watched()
    found = [result for result, _ in watched_worker(locator, together).frames(unit, None)]
    assert locator.sizes == sizes
    assert [r.frame_index for r in found] == list(range(7))
    assert [r.boxes[0, 0] for r in found] == list(range(1, 8))


def test_large_frames_are_not_held_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mp4", frames=5)
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=5)
    locator = Watched()
    worker = watched_worker(locator, 4)
    [first, *_] = [result for result, _ in worker.frames(unit, None)]
    monkeypatch.setattr(pipeline.worker, "_PIXELS_TOGETHER", 2 * first.width * first.height)
    locator.sizes.clear()
    assert len(list(worker.frames(unit, None))) == 5
    assert locator.sizes == [2, 2, 1]


def test_frames_before_a_damaged_one_are_located_before_the_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=6)
    # Two more are promised than there are.
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=8)
    frames = watched_worker(Watched(), 4).frames(unit, None)
    found = [next(frames)[0].frame_index for _ in range(6)]
    assert found == list(range(6))
    with pytest.raises(InputError, match="only 6 of 8 frames"):
        next(frames)


def test_a_locator_that_is_out_of_memory_says_so_as_others_do(picture: str) -> None:
    """torch raises a RuntimeError; its unit would be `internal`."""
    with pytest.raises(MemoryError):
        list(watched_worker(Watched(fails_at=0), 4).frames(Unit(0, 0, picture, "image"), None))


def test_a_video_frame_carries_its_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=3)
    unit = Unit(0, 0, str(path), "video", start_pts=0, start_frame=0, frames=3)
    found = [result for result, _ in results(unit)]
    assert [(r.frame_index, r.pts) for r in found] == [(0, 0), (1, 512), (2, 1024)]
    assert [r.timestamp_s for r in found] == pytest.approx([0, 0.04, 0.08])
