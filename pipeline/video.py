"""Videos: opened with failures sorted, decoded range by range with true timestamps.

Runs in decoder processes. All times are the stream's own pts, in its time base. How a video is cut
into ranges is in `pipeline.ranges`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.errors import InputError, UsageError
from pipeline.pictures import Scaled
from pipeline.storage import (
    STORAGE_ERRORS,
    StorageOptions,
    leads_nowhere,
    open_filesystem,
    path_of,
    protocol_of,
)

Picture = NDArray[np.uint8]

Reading = Callable[[], AbstractContextManager[None]]
"""A context for the time in which storage is waited for."""

_BLOCK = 4 << 20
# More threads take address space, and other decoders want the cores, too.
_THREADS = 4
# Playlists and the like, which would make FFmpeg open other files, are not among them.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"
# MPEG program streams have a time for some frames only; after a seek, others come out.
_WRONG_TIMES_AFTER_SEEK = ("mpeg",)
_SECONDS_BEFORE = (0, 2, 10, 60)
# FFmpeg counts pixels before cropping, up to 16 more each way; the frame itself is checked, too.
_CROPPED_PIXELS = 1 << 21
_INT_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class Range:
    """Frames with start_pts <= pts < end_pts; `frames` of them are wanted.

    `start_frame` is the index of the first one. A range without start_pts is of a video without
    usable times: its frames are counted, as many as are wanted from `start_frame` on. The last one
    of a whole video knows `end_frame`, the index after its last frame, wanted or not.
    """

    start_pts: int | None
    end_pts: int | None
    start_frame: int | None
    frames: int
    end_frame: int | None = None


@dataclass(frozen=True)
class Frame:
    """One decoded frame, upright; index and pts are None where the container cannot tell.

    In a video without usable times, the index counts the frames that can be decoded: damage before
    it may have lost some, but it finds the same frame again.
    """

    picture: Picture
    index: int | None
    pts: int | None
    timestamp_s: float | None

    @property
    def longest(self) -> int:
        """The longer side, in pixels."""
        return int(max(self.picture.shape[:2]))

    def at(self, _: float) -> Scaled:
        """The frame as it is: a video is decoded at one size."""
        height, width = self.picture.shape[:2]
        return Scaled(self.picture, 1, width, height)


class _RemoteFile:
    """A file of which each read is made inside of `reading`."""

    def __init__(self, file: Any, reading: Reading) -> None:
        self._file, self._reading = file, reading

    def read(self, size: int) -> bytes:
        """As the file's."""
        with self._reading():
            data: bytes = self._file.read(size)
            return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def opened(
    uri: str, options: StorageOptions, max_pixels: int, reading: Reading = nullcontext
) -> Iterator[Any]:
    """The container of a video. What goes wrong while it is open becomes an InputError.

    FFmpeg may decode frames to find out what they are: none of more than `max_pixels`.
    """
    if "\0" in uri:
        raise InputError("not_found", "no file has a null character in its name")
    try:
        with contextlib.ExitStack() as stack:
            if protocol_of(uri) == "file":
                # A path with a colon would be taken for a protocol.
                source: Any = f"file:{path_of(uri)}"
                size = os.stat(path_of(uri)).st_size
            else:
                with reading():
                    fs = open_filesystem(uri, options)
                    file = stack.enter_context(fs.open(path_of(uri), "rb", block_size=_BLOCK))
                source, size = _RemoteFile(file, reading), file.size
            if size == 0:
                raise InputError("empty", "the file has no bytes")
            limits = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
            yield stack.enter_context(
                av.open(
                    source,
                    options=_decoder_limits(max_pixels),
                    container_options=limits,
                    metadata_errors="ignore",
                )
            )
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise InputError("not_found", "there is no such file") from error
    except PermissionError as error:
        raise InputError("forbidden", f"no permission to read it: {error}") from error
    except av.FFmpegError as error:
        raise InputError("corrupt", f"not a readable video: {error}") from error
    except (UsageError, *STORAGE_ERRORS) as error:
        code = "not_found" if leads_nowhere(error) else "storage"
        raise InputError(code, f"cannot be read: {error!r}") from error


def video_stream(container: Any, max_pixels: int) -> Any:
    """The first video stream, ready to be decoded. Raises InputError no_video."""
    streams = container.streams.video
    if not streams:
        raise InputError("no_video", "the container has no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError("no_video", "no decoder for its video stream")
    stream.codec_context.options = _decoder_limits(max_pixels)
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = min(_THREADS, os.cpu_count() or 1)
    return stream


def _decoder_limits(max_pixels: int) -> dict[str, str]:
    """Options with which FFmpeg refuses a larger frame before it takes memory for it."""
    return {"max_pixels": str(min(max_pixels + _CROPPED_PIXELS, _INT_MAX))}


def new_interval(previous: int, pts: int, base: Fraction, fps: float) -> bool:
    """Whether a frame is the first one in its interval of 1 / fps seconds."""
    per_tick, ticks = _rate(base, fps)
    return pts * per_tick // ticks != previous * per_tick // ticks


def is_due(index: int, rate: Fraction | None, fps: float | None) -> bool:
    """Whether a frame of a video without usable times is wanted: frames are taken to come at the
    video's rate per second, and all are wanted where that is not known."""
    return fps is None or not rate or not index or new_interval(index - 1, index, 1 / rate, fps)


def frame_rate(stream: Any) -> Fraction | None:
    """Frames per second, as the container says or FFmpeg estimates."""
    rate = stream.average_rate or stream.base_rate
    return Fraction(rate) if rate else None


@functools.lru_cache(16)
def _rate(base: Fraction, fps: float) -> tuple[int, int]:
    """Intervals in so many ticks, as (intervals, ticks): whole numbers are quick, fractions not."""
    return (base * Fraction(fps).limit_denominator(100_000)).as_integer_ratio()


def read_frames(
    uri: str,
    options: StorageOptions,
    wanted: Range,
    fps: float | None,
    max_pixels: int,
    alive: Callable[[], None] = lambda: None,
    reading: Reading = nullcontext,
) -> Iterator[Frame]:
    """Decode the wanted frames of a range, in order of presentation.

    `alive` is called for every packet and frame that is passed, and each read of remote storage is
    made inside of `reading`. After the last good frame, raises
    InputError `corrupt` if packets were damaged or frames are missing.
    """
    damage: list[str] = []
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(opened(uri, options, max_pixels, reading))
        stream = video_stream(container, max_pixels)
        frames = None
        if wanted.start_pts is not None and wanted.start_frame:
            frames = _after_seek(container, stream, wanted.start_pts, damage, alive)
            if frames is None:
                stack.close()
                damage.clear()
                container = stack.enter_context(opened(uri, options, max_pixels, reading))
                stream = video_stream(container, max_pixels)
        if frames is None:
            frames = _decoded(container, stream, wanted.start_pts, damage, alive)
        timed = wanted.start_pts is not None
        if timed:
            chosen = _timed(frames, wanted, fps, stream.time_base, damage)
        else:
            chosen = _counted(frames, wanted, fps, frame_rate(stream))
        given = 0
        # One for all: its tables take longer to make than a frame takes.
        converter = VideoReformatter()
        for frame, index in chosen:
            _check_size(frame, max_pixels)
            times = (frame.pts, frame.time) if timed else (None, None)
            yield Frame(_upright(frame, converter), index, *times)
            given += 1
    if damage:
        raise InputError("corrupt", f"{len(damage)} damaged packets, the first: {damage[0]}")
    if given < wanted.frames:
        raise InputError("corrupt", f"only {given} of {wanted.frames} frames can be decoded")


def _after_seek(
    container: Any, stream: Any, start_pts: int, damage: list[str], alive: Callable[[], None]
) -> Iterator[av.VideoFrame] | None:
    """Frames from exactly `start_pts` on, without decoding all before; None where that fails.

    Some containers (MPEG-TS, FLV, AVI) seek past the keyframe that a frame needs, so more is tried.
    """
    if container.format.name in _WRONG_TIMES_AFTER_SEEK:
        return None
    for seconds in _SECONDS_BEFORE:
        damage.clear()
        try:
            container.seek(start_pts - int(seconds / stream.time_base), stream=stream)
        except av.FFmpegError:
            return None
        frames = _decoded(container, stream, start_pts, damage, alive, from_keyframe=True)
        first = next(frames, None)
        if first is not None and first.pts == start_pts:
            return chain([first], frames)
    return None


def _decoded(
    container: Any,
    stream: Any,
    start_pts: int | None,
    damage: list[str],
    alive: Callable[[], None],
    from_keyframe: bool = False,
) -> Iterator[av.VideoFrame]:
    """Frames from `start_pts` on, in order; what cannot be decoded is noted in `damage`.

    With `from_keyframe`, decoding begins at the first keyframe that is read, and gives nothing if
    that is after `start_pts`.
    """
    for packet in _packets(container, stream, damage):
        alive()
        if from_keyframe and packet is not None:
            assert start_pts is not None
            if not packet.is_keyframe:
                continue
            if packet.pts is None or packet.pts > start_pts:
                return
            from_keyframe = False
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
            if start_pts is None or (frame.pts is not None and frame.pts >= start_pts):
                yield frame
            elif frame.pts is None:
                damage.append("a frame without a time")
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


def _counted(
    frames: Iterator[av.VideoFrame], wanted: Range, fps: float | None, rate: Fraction | None
) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """Frames of a range without times, with their index."""
    first = wanted.start_frame or 0
    numbered = enumerate(islice(frames, first, None), first)
    chosen = (
        (frame, index) for index, frame in numbered if index == first or is_due(index, rate, fps)
    )
    yield from islice(chosen, wanted.frames)


def _timed(
    frames: Iterator[av.VideoFrame],
    wanted: Range,
    fps: float | None,
    base: Fraction,
    damage: list[str],
) -> Iterator[tuple[av.VideoFrame, int | None]]:
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


def _upright(frame: av.VideoFrame, converter: VideoReformatter) -> Picture:
    """RGB, mirrored and turned as the display matrix says."""
    rgb = converter.reformat(frame, format="rgb24")
    picture = np.asarray(rgb.to_ndarray(), np.uint8)
    mirrored = _is_mirrored(frame)
    # The rotation is where the matrix takes the x axis, which mirroring has turned around.
    quarter_turns = round(frame.rotation / 90 + 2 * mirrored) % 4
    if not mirrored and not quarter_turns:
        return picture
    return np.ascontiguousarray(np.rot90(picture[:, ::-1] if mirrored else picture, quarter_turns))


def _is_mirrored(frame: av.VideoFrame) -> bool:
    sides: Iterable[Any] = frame.side_data
    for side in sides:
        if side.type is SideDataType.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(side, np.int32)[:5].astype(float)
            return bool(a * d < b * c)
    return False
