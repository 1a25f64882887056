"""What a decoder process does with a unit: decode, locate people, cut crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.crops import Cropper
from cpm_core.geometry import crop_matrix
from cpm_core.people import Locator, People, WholeImage, YoloxDetector
from pipeline.fetch import fetch
from pipeline.messages import DecoderConfig, FrameResult, Probe
from pipeline.pictures import decode_picture
from pipeline.ranges import plan_ranges
from pipeline.storage import protocol_of
from pipeline.units import GivenBox, Unit
from pipeline.video import Frame, Range, read_frames

Picture = NDArray[np.uint8]
Crops = NDArray[np.uint8]


class UnitWorker:
    """Holds the locator between units. Calls `alive` while it works on a video."""

    def __init__(self, config: DecoderConfig, alive: Callable[[], None] = lambda: None) -> None:
        cv2.setNumThreads(1)
        self.config = config
        self.alive = alive
        self.cropper = Cropper(config.crop_size, config.box_factor, config.scales)
        self.locator: Locator | None = None
        if config.people == "whole-image":
            self.locator = WholeImage()
        elif config.detector is not None:
            self.locator = YoloxDetector(config.detector, config.detector_threshold)

    def probe(self, request: Probe) -> list[Range]:
        """How to cut a video."""
        config = self.config
        return plan_ranges(request.uri, config.storage, request.largest, config.fps, self.alive)

    def frames(self, unit: Unit, data: bytes | None) -> Iterator[tuple[FrameResult, Crops]]:
        """The unit's frames with their crops (N, V, S, S, 3); `data` is a picture fetched
        before."""
        for frame in self._decoded(unit, data):
            people, problem = self._people(unit, frame)
            height, width = frame.picture.shape[:2]
            result = FrameResult(
                frame.index,
                frame.pts,
                frame.timestamp_s,
                width,
                height,
                people.boxes,
                people.scores,
                people.source,
                problem,
            )
            yield result, self.cropper.cut(frame.picture, people.boxes)

    def _decoded(self, unit: Unit, data: bytes | None) -> Iterator[Frame]:
        config = self.config
        if unit.kind == "video":
            wanted = Range(unit.start_pts, unit.end_pts, unit.start_frame, unit.frames)
            yield from read_frames(
                unit.uri, config.storage, wanted, config.fps, config.max_pixels, self.alive
            )
            return
        if data is None:
            assert protocol_of(unit.uri) == "file", unit.uri
            data = fetch(unit.uri, config.storage, config.max_bytes)
        yield Frame(decode_picture(data, config.max_pixels), None, None, None)

    def _people(self, unit: Unit, frame: Frame) -> tuple[People, str | None]:
        if self.locator is not None:
            return self.locator.locate(frame.picture).best(self.config.max_people), None
        if unit.boxes is None:
            return People(np.empty((0, 4)), np.empty(0), "given"), "no box is given for it"
        boxes = [
            b for b in unit.boxes if unit.kind == "image" or b.frame_index in (None, frame.index)
        ]
        return self._given_people(boxes, frame.picture)

    def _given_people(self, boxes: list[GivenBox], picture: Picture) -> tuple[People, str | None]:
        """Usable boxes, best first, and what is wrong with the first unusable one."""
        height, width = picture.shape[:2]
        problems = [self._box_problem(box, width, height) for box in boxes]
        usable = [box for box, problem in zip(boxes, problems, strict=True) if problem is None]
        usable.sort(key=lambda box: -box.score)
        array = np.array([box[:5] for box in usable], np.float64).reshape(-1, 5)
        people = People(array[:, :4], array[:, 4], "given").best(self.config.max_people)
        return people, next((problem for problem in problems if problem), None)

    def _box_problem(self, box: GivenBox, width: int, height: int) -> str | None:
        x, y, w, h, score = box[:5]
        try:
            crop_matrix(np.array([x, y, w, h]), self.cropper.size, self.cropper.box_factor)
        except ValueError as error:
            return str(error)
        if not np.isfinite(score):
            return f"the score of box {[x, y, w, h]} is {score}"
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return f"box {[x, y, w, h]} misses the picture of {width} x {height}"
        return None
