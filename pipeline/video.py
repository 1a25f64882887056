"""Videos: opened, their failures sorted, their frames made upright.

Runs in decoder processes. All times are the stream's own pts, in its time base. How a video is cut
into ranges is in `pipeline.ranges`, how one is read in `pipeline.reader`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
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
def failures_sorted() -> Iterator[None]:
    """What goes wrong with a video inside becomes an InputError."""
    try:
        yield
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


@contextlib.contextmanager
def opened(
    uri: str, options: StorageOptions, max_pixels: int, reading: Reading = nullcontext
) -> Iterator[Any]:
    """The container of a video. Raises InputError for what is empty or has an impossible name.

    FFmpeg may decode frames to find out what they are: none of more than `max_pixels`.
    """
    if "\0" in uri:
        raise InputError("not_found", "no file has a null character in its name")
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


def upright(frame: av.VideoFrame, converter: VideoReformatter) -> Picture:
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
