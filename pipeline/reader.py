"""Ranges of videos: their frames, with true times and indices.

Runs in decoder processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from pipeline.errors import InputError
from pipeline.storage import StorageOptions
from pipeline.video import (
    Frame,
    Range,
    Reading,
    failures_sorted,
    frame_rate,
    is_due,
    new_interval,
    opened,
    upright,
    video_stream,
)

# MPEG program streams have a time for some frames only; after a seek, others come out.
_WRONG_TIMES_AFTER_SEEK = ("mpeg",)
_SECONDS_BEFORE = (0, 2, 10, 60)

Chosen = Iterator[tuple[av.VideoFrame, int | None]]


class VideoReader:
    """Reads ranges of videos, those of one best in their order.

    In some videos a frame can be found only by decoding all before it. There the reader goes on
    where the range before was left, which makes one pass of a video instead of one per range.

    `alive` is called for every packet and frame that is passed, and each read of remote storage is
    made inside of `reading`.
    """

    def __init__(
        self,
        options: StorageOptions,
        fps: float | None,
        max_pixels: int,
        alive: Callable[[], None] = lambda: None,
        reading: Reading = nullcontext,
    ) -> None:
        self.options, self.fps, self.max_pixels = options, fps, max_pixels
        self.alive, self.reading = alive, reading
        self._kept: _Reel | None = None

    def close(self) -> None:
        """Let go of the video that is open."""
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def frames(self, uri: str, wanted: Range) -> Iterator[Frame]:
        """The wanted frames of a range, in order of presentation.

        After the last good frame, raises InputError `corrupt` if packets were damaged or frames are
        missing.
        """
        given, timed = 0, wanted.start_pts is not None
        # One for all: its tables take longer to make than a frame takes.
        converter = VideoReformatter()
        with failures_sorted(), ExitStack() as stack:
            reel = self._reel_before(uri, wanted)
            stack.callback(reel.close)
            for frame, index in reel.chosen(wanted, self.fps):
                _check_size(frame, self.max_pixels)
                times = (frame.pts, frame.time) if timed else (None, None)
                yield Frame(upright(frame, converter), index, *times)
                given += 1
            if reel.is_worth_keeping(wanted):
                stack.pop_all()
                self._kept = reel
        damage = reel.damage
        if damage:
            raise InputError("corrupt", f"{len(damage)} damaged packets, the first: {damage[0]}")
        if given < wanted.frames:
            raise InputError("corrupt", f"only {given} of {wanted.frames} frames can be decoded")

    def _reel_before(self, uri: str, wanted: Range) -> _Reel:
        """A reel that has come to the range's first frame, or to one before it."""
        kept = self._kept
        if kept is not None and not (kept.uri == uri and kept.is_before(wanted)):
            self.close()
            kept = None
        # What can be sought is, though a reel is there: the rows do not depend on what came before.
        may_seek = kept is None or not kept.seeks_wrongly
        if wanted.start_pts is not None and wanted.start_frame and may_seek:
            reel = self._open(uri)
            if reel.seek(wanted.start_pts):
                return reel
            reel.close()
        self._kept = None
        return kept or self._open(uri)

    def _open(self, uri: str) -> _Reel:
        with ExitStack() as stack:
            container = stack.enter_context(
                opened(uri, self.options, self.max_pixels, self.reading)
            )
            stream = video_stream(container, self.max_pixels)
            return _Reel(uri, container, stream, self.alive, stack.pop_all())


def read_frames(
    uri: str, options: StorageOptions, wanted: Range, fps: float | None, max_pixels: int
) -> Iterator[Frame]:
    """The wanted frames of a single range, as `VideoReader.frames`."""
    with closing(VideoReader(options, fps, max_pixels)) as reader:
        yield from reader.frames(uri, wanted)


class _Reel:
    """An open video, decoded from its first frame on, or from one that was sought.

    Iterating goes on where it was left, with the frame once more that came last: that may have been
    the first one after its range.
    """

    def __init__(
        self, uri: str, container: Any, stream: Any, alive: Callable[[], None], stack: ExitStack
    ) -> None:
        self.uri = uri
        self.damage: list[str] = []
        self.close = stack.close
        self._container, self._stream, self._alive = container, stream, alive
        self._frames = _decoded(container, stream, self.damage, alive)
        self._passed = 0
        self._last: av.VideoFrame | None = None
        self._is_sought = self._is_over = False

    def seek(self, start_pts: int) -> bool:
        """Go to the frame of exactly this time without decoding all before; False where that fails,
        and the reel is of no use any more.

        Some containers (MPEG-TS, FLV, AVI) seek past the keyframe that a frame needs, so more is
        tried.
        """
        self._is_sought = True
        if self.seeks_wrongly:
            return False
        for seconds in _SECONDS_BEFORE:
            self.damage.clear()
            try:
                place = start_pts - int(seconds / self._stream.time_base)
                self._container.seek(place, stream=self._stream)
            except av.FFmpegError:
                return False
            decoded = _decoded(self._container, self._stream, self.damage, self._alive, start_pts)
            frames = _from(decoded, start_pts, self.damage)
            first = next(frames, None)
            if first is not None and first.pts == start_pts:
                self._frames = chain([first], frames)
                return True
        return False

    def chosen(self, wanted: Range, fps: float | None) -> Chosen:
        """The frames of a range, with their index as far as it is known."""
        if wanted.start_pts is None:
            return _counted(self, wanted, fps, frame_rate(self._stream))
        frames = _from((frame for _, frame in self), wanted.start_pts, self.damage)
        return _timed(frames, wanted, fps, self._stream.time_base, self.damage)

    def is_before(self, wanted: Range) -> bool:
        """Whether the range's first frame is still to come, or came last."""
        if self._last is None:
            return True
        if wanted.start_pts is None:
            return self._passed - 1 <= (wanted.start_frame or 0)
        return self._last.pts is not None and self._last.pts <= wanted.start_pts

    def is_worth_keeping(self, done: Range) -> bool:
        """Whether the next range is found from here only."""
        is_needed = self.seeks_wrongly or done.start_pts is None or bool(done.start_frame)
        return is_needed and not (self._is_sought or self._is_over)

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        if self._last is not None:
            yield self._passed - 1, self._last
        for frame in self._frames:
            self._last = frame
            self._passed += 1
            yield self._passed - 1, frame
        self._is_over = True

    @property
    def seeks_wrongly(self) -> bool:
        """Whether other frames come out after a seek."""
        return self._container.format.name in _WRONG_TIMES_AFTER_SEEK


def _decoded(
    container: Any,
    stream: Any,
    damage: list[str],
    alive: Callable[[], None],
    keyframe_by: int | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames in order; what cannot be decoded is noted in `damage`.

    With `keyframe_by`, decoding begins at the first keyframe that is read, and gives nothing if
    that is after this time.
    """
    awaits_keyframe = keyframe_by is not None
    for packet in _packets(container, stream, damage):
        alive()
        if awaits_keyframe and packet is not None:
            assert keyframe_by is not None
            if not packet.is_keyframe:
                continue
            if packet.pts is None or packet.pts > keyframe_by:
                return
            awaits_keyframe = False
        refusal = None
        try:
            frames = stream.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            if not _is_too_large(error, stream.codec_context):
                damage.append(str(error))
                continue
            refusal = InputError("too_many_pixels", "a frame has more pixels than --max-pixels")
            frames = _held(stream)
        for frame in frames:
            alive()
            yield frame
        if refusal is not None:
            raise refusal


def _packets(container: Any, stream: Any, damage: list[str]) -> Iterator[Any]:
    """Packets, the last of which makes the decoder hand out what it holds."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except MemoryError:
            raise
        except av.FFmpegError as error:
            damage.append(str(error))
            yield None
            return


def _from(
    frames: Iterable[av.VideoFrame], start_pts: int, damage: list[str]
) -> Iterator[av.VideoFrame]:
    """Frames from `start_pts` on; one without a time is damage."""
    for frame in frames:
        if frame.pts is None:
            damage.append("a frame without a time")
        elif frame.pts >= start_pts:
            yield frame


def _counted(
    frames: Iterable[tuple[int, av.VideoFrame]],
    wanted: Range,
    fps: float | None,
    rate: Fraction | None,
) -> Chosen:
    """Frames of a range without times, out of those with their index."""
    first = wanted.start_frame or 0
    chosen = (
        (frame, index)
        for index, frame in frames
        if index == first or (index > first and is_due(index, rate, fps))
    )
    yield from islice(chosen, wanted.frames)


def _timed(
    frames: Iterator[av.VideoFrame],
    wanted: Range,
    fps: float | None,
    base: Fraction,
    damage: list[str],
) -> Chosen:
    """Frames of a range from its `start_pts` on, with their index as far as it is known."""
    index, previous = wanted.start_frame, None
    for frame in frames:
        pts = frame.pts
        assert pts is not None
        if wanted.end_pts is not None and pts >= wanted.end_pts:
            return
        # After damage the count of frames is no longer known.
        if damage or (previous is None and pts != wanted.start_pts):
            index = None
        if fps is None or previous is None or new_interval(previous, pts, base, fps):
            yield frame, index
        previous = pts
        index = None if index is None else index + 1


def _is_too_large(error: av.FFmpegError, codec: Any) -> bool:
    """Whether the decoder refused a frame for its size: then it forgets the size."""
    return isinstance(error, av.ArgumentError) and not codec.width


def _held(stream: Any) -> list[av.VideoFrame]:
    """Frames from before a refused one that the decoder's threads still hold."""
    try:
        return list(stream.decode(None))
    except av.FFmpegError:
        return []


def _check_size(frame: av.VideoFrame, max_pixels: int) -> None:
    if frame.width * frame.height > max_pixels:
        raise InputError(
            "too_many_pixels", f"{frame.width} x {frame.height} is more than {max_pixels} pixels"
        )
