"""Ranges: how a video is cut into units at plan time.

Runs in decoder processes. Reads the packets, decodes nothing.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np

from pipeline.errors import InputError
from pipeline.storage import StorageOptions, open_filesystem, path_of
from pipeline.video import (
    Range,
    Reading,
    failures_sorted,
    frame_rate,
    is_due,
    new_interval,
    opened,
    video_stream,
)

_MATROSKA_HEAD = 4096
_SEGMENT = bytes.fromhex("18538067")


def plan_ranges(
    uri: str,
    options: StorageOptions,
    largest: int,
    fps: float | None,
    alive: Callable[[], None] = lambda: None,
    reading: Reading = nullcontext,
    *,
    max_frames: int = 10_000_000,
    max_pixels: int = 100_000_000,
) -> list[Range]:
    """Cut a video into ranges of at most `largest` wanted frames, at keyframes where possible.

    `alive` is called for every packet, and remote storage is read inside of `reading`. Raises
    InputError: no_video, corrupt, too_many_frames, and those of opening.
    """
    with failures_sorted(), opened(uri, options, max_pixels, reading) as container:
        stream = video_stream(container, max_pixels)
        # An index costs the file next to nothing, as all its entries may name one place.
        if len(stream.index_entries) > max_frames:
            raise _too_many(max_frames)
        packets = _read_packets(container, stream, alive, max_frames)
        base = stream.time_base
        with reading():
            missing = _missing(container, stream, packets, uri, options)
        rate = frame_rate(stream)
        is_timed = packets.are_timed and not _lacks_order(container, stream, packets)
    count = len(packets.times)
    if not count:
        raise InputError("corrupt", packets.error or "the video stream holds no frames")
    if is_timed and base is not None:
        ranges = _cut(_sorted(packets.times), packets.keyframes, largest, base, fps)
    else:
        wanted = array("q", (i for i in range(count) if is_due(i, rate, fps)))
        ranges = [
            Range(None, None, wanted[at], min(largest, len(wanted) - at))
            for at in range(0, len(wanted), largest)
        ]
    missing = missing if fps is None else min(missing, 1)
    last = ranges[-1]
    if missing or packets.error:
        # A file that was cut short must not look complete: more is asked for than can come.
        return [*ranges[:-1], replace(last, frames=last.frames + missing)]
    return [*ranges[:-1], replace(last, end_frame=count)]


@dataclass
class _Packets:
    """What the packets of a video say, in their order in the file."""

    times: array[int] = field(default_factory=lambda: array("q"))
    keyframes: array[int] = field(default_factory=lambda: array("q"))
    count: int = 0
    without_time: int = 0
    last_is_corrupt: bool = False
    error: str | None = None

    @property
    def are_timed(self) -> bool:
        """Whether frames can be told apart, and found, by their times."""
        times = _sorted(self.times)
        return not self.without_time and all(
            a < b for line in (self.keyframes, times) for a, b in pairwise(line)
        )


def _sorted(times: array[int]) -> array[int]:
    """As `sorted`, without an object for every one of many millions of times."""
    return array("q", np.sort(np.frombuffer(times, np.int64)).tobytes())


def _too_many(max_frames: int) -> InputError:
    return InputError("too_many_frames", f"the video has more than {max_frames} frames")


def _read_packets(
    container: Any, stream: Any, alive: Callable[[], None], max_frames: int
) -> _Packets:
    packets = _Packets()
    try:
        for packet in container.demux(stream):
            alive()
            if packet.dts is None and packet.size == 0:
                continue
            packets.count += 1
            if packets.count > max_frames:
                raise _too_many(max_frames)
            packets.last_is_corrupt = packet.is_corrupt
            if packet.size == 0 or packet.is_discard:
                continue
            packets.times.append(packet.pts or 0)
            packets.without_time += packet.pts is None
            if packet.is_keyframe and packet.pts is not None:
                packets.keyframes.append(packet.pts)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        # Reading the last range comes upon it again, and reports it after the good frames.
        packets.error = f"no packet can be read: {error}"
    return packets


def _lacks_order(container: Any, stream: Any, packets: _Packets) -> bool:
    """Whether times say when packets are decoded, not shown: H.264 with B-frames in AVI."""
    codec = stream.codec_context
    may_reorder = container.format.name == "avi" and codec.name in ("h264", "hevc")
    return may_reorder and codec.has_b_frames and packets.times == _sorted(packets.times)


def _missing(
    container: Any, stream: Any, packets: _Packets, uri: str, options: StorageOptions
) -> int:
    """How many frames, at least, the container promises beyond its last packet."""
    names = container.format.name.split(",")
    if "mov" in names:
        return max(0, len(stream.index_entries) - packets.count)
    if "matroska" in names:
        head = open_filesystem(uri, options).cat_file(path_of(uri), start=0, end=_MATROSKA_HEAD)
        return int(_segment_end(head) > container.size)
    return int(packets.last_is_corrupt)


def _segment_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends by its header; 0 where that is left open."""
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at == len(head):
        return 0
    width = 9 - head[at].bit_length()
    largest = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width], "big") & largest
    return 0 if size == largest else at + width + size


def _cut(
    times: array[int], keyframes: array[int], largest: int, base: Fraction, fps: float | None
) -> list[Range]:
    """Ranges of a video whose frames have these times, sorted."""
    wanted: Sequence[int] = range(len(times))
    if fps is not None:
        wanted = array(
            "q", (i for i in wanted if i == 0 or new_interval(times[i - 1], times[i], base, fps))
        )
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
    times: array[int], wanted: Sequence[int], keyframes: array[int], at: int, stop: int
) -> int:
    """The last cut in (at, stop] whose first frame is the first one wanted from some keyframe
    on."""
    k = bisect.bisect_right(keyframes, times[wanted[stop]]) - 1
    if k < 0:
        return stop
    cut = bisect.bisect_left(wanted, bisect.bisect_left(times, keyframes[k]))
    return cut if at < cut <= stop else stop
