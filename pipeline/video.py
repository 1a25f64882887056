"""Videos: cut into ranges at plan time, decoded with true timestamps.

Runs in decoder processes. All times are the stream's own pts, in its time base.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.storage import StorageOptions, open_filesystem, path_of, protocol_of

Picture = NDArray[np.uint8]
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Range:
    """Frames with start_pts <= pts < end_pts; `frames` of them are wanted."""

    start_pts: int | None
    end_pts: int | None
    start_frame: int | None
    frames: int


@dataclass(frozen=True)
class Frame:
    """One decoded frame, upright; index and pts are None where the container cannot tell."""

    picture: Picture
    index: int | None
    pts: int | None
    timestamp_s: float | None


def plan_ranges(uri: str, options: StorageOptions, largest: int, fps: float | None) -> list[Range]:
    """Cut a video into ranges of at most `largest` wanted frames, at keyframes where possible.

    Reads the packets, decodes nothing. Raises InputError: no_video, corrupt, and those of opening.
    """
    with _open(uri, options) as container:
        stream = _video_stream(container)
        times: list[int] = []
        keyframes: list[int] = []
        unknown = 0
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                pts = packet.pts if packet.pts is not None else packet.dts
                if pts is None:
                    unknown += 1
                    continue
                times.append(pts)
                if packet.is_keyframe:
                    keyframes.append(pts)
        except av.FFmpegError as error:
            if not times:
                raise InputError("corrupt", f"no packet can be read: {error}") from error
        base = stream.time_base
    if unknown or not times or base is None:
        # Without times it cannot be cut; one range takes what comes.
        if not times and not unknown:
            raise InputError("corrupt", "the video stream holds no frames")
        return [Range(None, None, 0, len(times) + unknown)]
    times.sort()
    return _cut(times, sorted(keyframes), largest, base, fps)


def _cut(
    times: list[int], keyframes: list[int], largest: int, base: Fraction, fps: float | None
) -> list[Range]:
    wanted = [
        i
        for i, pts in enumerate(times)
        if _new_interval(times[i - 1] if i else None, pts, base, fps)
    ]
    ranges = []
    at = 0
    while at < len(wanted):
        stop = min(at + largest, len(wanted))
        if stop < len(wanted):
            stop = _at_keyframe(times, wanted, keyframes, at, stop)
        first = wanted[at]
        end = times[wanted[stop]] if stop < len(wanted) else None
        ranges.append(Range(times[first], end, first, stop - at))
        at = stop
    return ranges


def _at_keyframe(
    times: list[int], wanted: list[int], keyframes: list[int], at: int, stop: int
) -> int:
    """The last cut in (at, stop] whose first frame is the first one wanted from some keyframe
    on."""
    k = bisect.bisect_right(keyframes, times[wanted[stop]]) - 1
    if k < 0:
        return stop
    cut = bisect.bisect_left(wanted, bisect.bisect_left(times, keyframes[k]))
    return cut if at < cut <= stop else stop


def _new_interval(
    previous: int | None, pts: int | None, base: Fraction | None, fps: float | None
) -> bool:
    """Whether a frame is the first one in its interval of 1 / fps seconds; unknown times always
    are."""
    if fps is None or base is None or previous is None or pts is None:
        return True
    rate = base * Fraction(fps).limit_denominator(100_000)
    return math.floor(pts * rate) != math.floor(previous * rate)


def read_frames(
    uri: str,
    options: StorageOptions,
    wanted: Range,
    fps: float | None,
    max_pixels: int,
) -> Iterator[Frame]:
    """Decode the wanted frames of a range, in order of presentation.

    After the last good frame, raises InputError `corrupt` if packets were damaged or frames are
    missing.
    """
    with _open(uri, options) as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        base = stream.time_base
        if wanted.start_pts is not None and wanted.start_frame:
            # Where it cannot seek, decoding begins at the start and frames before are passed over.
            with contextlib.suppress(av.FFmpegError):
                container.seek(wanted.start_pts, stream=stream, backward=True)
        damage: list[str] = []
        given, index, previous = 0, wanted.start_frame, None
        for frame in _decoded(container, stream, damage):
            pts = frame.pts
            if pts is not None and wanted.start_pts is not None:
                if pts < wanted.start_pts:
                    continue
                if wanted.end_pts is not None and pts >= wanted.end_pts:
                    break
            if frame.width * frame.height > max_pixels:
                raise InputError(
                    "too_many_pixels", f"{frame.width} x {frame.height} is more than {max_pixels}"
                )
            # After damage the count of frames is no longer known.
            known = None if damage else index
            if index is not None:
                index += 1
            skipped = previous is not None and not _new_interval(previous, pts, base, fps)
            previous = pts
            if skipped:
                continue
            seconds = float(pts * base) if pts is not None and base is not None else None
            yield Frame(_upright(frame), known, pts, seconds)
            given += 1
    if damage:
        raise InputError("corrupt", f"{len(damage)} damaged packets, the first: {damage[0]}")
    if given < wanted.frames:
        raise InputError("corrupt", f"only {given} of {wanted.frames} frames can be decoded")


def _decoded(container: Any, stream: Any, damage: list[str]) -> Iterator[av.VideoFrame]:
    """Frames in order; what cannot be decoded is noted in `damage` and passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            damage.append(str(error))
            return
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            damage.append(str(error))


def _upright(frame: av.VideoFrame) -> Picture:
    """RGB, turned as the display matrix says."""
    picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def _video_stream(container: Any) -> Any:
    streams = container.streams.video
    if not streams:
        raise InputError("no_video", "the container has no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError("no_video", "no decoder for its video stream")
    return stream


def _open(uri: str, options: StorageOptions) -> Any:
    source: Any
    try:
        if protocol_of(uri) == "file":
            # A path with a colon would be taken for a protocol.
            source = f"file:{path_of(uri)}"
        else:
            source = open_filesystem(uri, options).open(path_of(uri), "rb", block_size=_BLOCK)
        return av.open(source, metadata_errors="ignore")
    except FileNotFoundError as error:
        raise InputError("not_found", "there is no such file") from error
    except PermissionError as error:
        raise InputError("forbidden", f"no permission to read it: {error}") from error
    except (av.InvalidDataError, av.EOFError) as error:
        raise InputError("corrupt", f"not a readable video: {error}") from error
    except av.FFmpegError as error:
        raise InputError("corrupt", f"cannot be opened: {error}") from error
    except OSError as error:
        raise InputError("storage", f"cannot be read: {error}") from error
