"""What a decoder process does with a unit: decode, locate people, cut crops."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.crops import Cropper
from cpm_core.people import Locator, People, WholeImage, YoloxDetector
from pipeline.fetch import fetch
from pipeline.messages import DecoderConfig, FrameResult, Probe
from pipeline.pictures import decode_picture
from pipeline.storage import protocol_of
from pipeline.units import GivenBox, Unit
from pipeline.video import Frame, Range, plan_ranges, read_frames

Picture = NDArray[np.uint8]
Crops = NDArray[np.uint8]


class UnitWorker:
    """Holds the locator between units."""

    def __init__(self, config: DecoderConfig) -> None:
        cv2.setNumThreads(1)
        self.config = config
        self.cropper = Cropper(config.crop_size, config.box_factor, config.scales)
        self.locator: Locator | None = None
        if config.people == "whole-image":
            self.locator = WholeImage()
        elif config.detector is not None:
            self.locator = YoloxDetector(config.detector, config.detector_threshold)

    def probe(self, request: Probe) -> list[Range]:
        """How to cut a video."""
        return plan_ranges(request.uri, self.config.storage, request.largest, self.config.fps)

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
        if unit.kind == "video":
            wanted = Range(unit.start_pts, unit.end_pts, unit.start_frame, unit.frames)
            yield from read_frames(
                unit.uri, self.config.storage, wanted, self.config.fps, self.config.max_pixels
            )
            return
        if data is None:
            assert protocol_of(unit.uri) == "file", unit.uri
            data = fetch(unit.uri, self.config.storage, self.config.max_bytes)
        yield Frame(decode_picture(data, self.config.max_pixels), None, None, None)

    def _people(self, unit: Unit, frame: Frame) -> tuple[People, str | None]:
        if self.locator is not None:
            return self.locator.locate(frame.picture).best(self.config.max_people), None
        given = [b for b in unit.boxes or () if b.frame_index in (None, frame.index)]
        return _given_people(given, frame.picture, self.config.max_people)


def _given_people(boxes: list[GivenBox], picture: Picture, most: int) -> tuple[People, str | None]:
    """Usable boxes, best first, and what is wrong with the first unusable one."""
    height, width = picture.shape[:2]
    usable, problem = [], None
    for box in boxes:
        complaint = _box_problem(box, width, height)
        if complaint is None:
            usable.append(box)
        problem = problem or complaint
    usable.sort(key=lambda box: -box.score)
    array = np.array([box[:5] for box in usable], np.float64).reshape(-1, 5)
    return People(array[:most, :4], array[:most, 4], "given"), problem


def _box_problem(box: GivenBox, width: int, height: int) -> str | None:
    x, y, w, h = box[:4]
    if not np.isfinite(box[:5]).all():
        return f"box {list(box[:4])} is not finite"
    if w <= 0 or h <= 0:
        return f"box {list(box[:4])} has no area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"box {list(box[:4])} misses the picture of {width} x {height}"
    if max(w, h) > 100 * max(width, height):
        return f"box {list(box[:4])} is over 100 times the picture of {width} x {height}"
    return None
