"""What a decoder process does with a unit: decode, locate people, cut crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.crops import Cropper
from cpm_core.geometry import crop_matrix
from cpm_core.looks import Found, NetElsewhere
from cpm_core.people import Locator, People, clip_boxes
from cpm_core.whole_image import WIDE, whole_box, wide_view
from pipeline.fetch import fetch
from pipeline.messages import DecoderConfig, FrameResult, Probe
from pipeline.pictures import Scaled, Still
from pipeline.ranges import plan_ranges
from pipeline.reader import VideoReader
from pipeline.storage import protocol_of
from pipeline.units import GivenBox, Unit
from pipeline.video import Frame, Range, Reading

Crops = NDArray[np.uint8]
Seen = Frame | Still
Ask = Callable[[NDArray[np.uint8]], Found]

_FINER = 2
"""A locator gets pictures that are this much finer than what it looks at: those are good for the
crops of most people, too, and are shrunk with care."""


class UnitWorker:
    """Holds the locator between units. Calls `alive` while it works on a video, whose storage it
    reads inside of `reading`. Where it shall not locate people itself (`look_size`), it asks
    `ask`."""

    def __init__(
        self,
        config: DecoderConfig,
        alive: Callable[[], None] = lambda: None,
        reading: Reading = nullcontext,
        ask: Ask | None = None,
    ) -> None:
        cv2.setNumThreads(1)
        self.config = config
        self.alive = alive
        self.reading = reading
        self.videos = VideoReader(config.storage, config.fps, config.max_pixels, alive, reading)
        self.cropper = Cropper(config.crop_size, config.box_factor, config.scales)
        self.locator = self._make_locator(ask)

    def _make_locator(self, ask: Ask | None) -> Locator | None:
        people, size = self.config.people, self.config.look_size
        if size is not None:
            assert ask is not None
            return NetElsewhere(size, ask)
        locator = people.build()
        if people.kind == "person-net":
            assert locator is not None
            # What it takes at its first run is not any picture's fault: the limit on memory is set
            # after it.
            locator.locate(np.zeros((64, 64, 3), np.uint8))
        return locator

    def probe(self, request: Probe) -> list[Range]:
        """How to cut a video."""
        config = self.config
        return plan_ranges(
            request.uri,
            config.storage,
            request.largest,
            config.fps,
            self.alive,
            self.reading,
            max_frames=config.max_frames,
            max_pixels=config.max_pixels,
        )

    def frames(self, unit: Unit, data: bytes | None) -> Iterator[tuple[FrameResult, Crops]]:
        """The unit's frames with what is cut for their people (N, *view_shape); `data` is a picture
        fetched before."""
        for frame in self._seen(unit, data):
            look = frame.at(self._shrink(unit, frame))
            people, problem = self._people(unit, frame, look)
            result = FrameResult(
                frame.index,
                frame.pts,
                frame.timestamp_s,
                look.width,
                look.height,
                people.boxes,
                people.scores,
                people.source,
                problem,
            )
            yield result, self._cut(frame, look, people)

    def _shrink(self, unit: Unit, frame: Seen) -> float:
        """How coarse the first look at a frame may be."""
        if self.locator is None:
            boxes = [box[:4] for box in unit.boxes or ()]
            return self.cropper.shrink(np.array(boxes, np.float64).reshape(-1, 4))
        if self.config.people.kind == "whole-image":
            return frame.longest / (WIDE * self.config.crop_size)
        return frame.longest / (_FINER * self.locator.size)

    def _cut(self, frame: Seen, look: Scaled, people: People) -> Crops:
        if self.config.people.kind == "whole-image":
            whole = whole_box(look.width, look.height) / look.reduction
            return wide_view(look.pixels, self.config.crop_size, whole)[None, None]
        fine = frame.at(self.cropper.shrink(people.boxes))
        return self.cropper.cut(fine.pixels, people.boxes / fine.reduction)

    def _seen(self, unit: Unit, data: bytes | None) -> Iterator[Seen]:
        """What there is to be seen."""
        config = self.config
        if unit.kind == "video":
            wanted = Range(unit.start_pts, unit.end_pts, unit.start_frame, unit.frames)
            yield from self.videos.frames(unit.uri, wanted)
            return
        if data is None:
            assert protocol_of(unit.uri) == "file", unit.uri
            data = fetch(unit.uri, config.storage, config.max_bytes)
        yield Still(data, config.max_pixels)

    def _people(self, unit: Unit, frame: Seen, look: Scaled) -> tuple[People, str | None]:
        """The people of a frame, and what is wrong with boxes that were given."""
        if self.locator is None:
            return self._given(unit, frame, look)
        try:
            found = self.locator.locate(look.pixels)
        except RuntimeError as error:
            # PyTorch, where there is no OpenVINO, has no exception of its own for this.
            if "not enough memory" in str(error):
                raise MemoryError from error
            raise
        self.alive()
        return _in_picture(found, look).best(self.config.max_people), None

    def _given(self, unit: Unit, frame: Seen, look: Scaled) -> tuple[People, str | None]:
        if unit.boxes is None:
            return People(np.empty((0, 4)), np.empty(0), "given"), "no box is given for it"
        if unit.kind == "image":
            return self._given_people(list(unit.boxes), look.width, look.height)
        boxes = [box for box in unit.boxes if box.frame_index in (None, frame.index)]
        people, problem = self._given_people(boxes, look.width, look.height)
        if frame.index is None and len(boxes) < len(unit.boxes):
            problem = "its boxes are not known: after damage, nobody can say which frame it is"
        return people, problem

    def _given_people(
        self, boxes: list[GivenBox], width: int, height: int
    ) -> tuple[People, str | None]:
        """Usable boxes, best first, and what is wrong with the first unusable one."""
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


def _in_picture(people: People, look: Scaled) -> People:
    """People whose boxes are in pixels of the look, in those of the picture."""
    if look.reduction == 1:
        return people
    # The last pixel of a smaller picture may stand for some that are not there.
    boxes = people.boxes * look.reduction
    return People(*clip_boxes(boxes, people.scores, look.width, look.height), people.source)
