"""Ranges: how a video is cut into units at plan time.

Runs in decoder processes. Reads the packets, decodes nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av

from pipeline.errors import InputError
from pipeline.storage import StorageOptions, open_filesystem, path_of
from pipeline.video import Range, new_interval, opened, video_stream

_MATROSKA_HEAD = 4096
_SEGMENT = bytes.fromhex("18538067")


def plan_ranges(
    uri: str,
    options: StorageOptions,
    largest: int,
    fps: float | None,
    alive: Callable[[], None] = lambda: None,
) -> list[Range]:
    """Cut a video into ranges of at most `largest` wanted frames, at keyframes where possible.

    `alive` is called for every packet. Raises InputError: no_video, corrupt, and those of opening.
    """
    with opened(uri, options) as container:
        stream = video_stream(container)
        packets = _read_packets(container, stream, alive)
        base = stream.time_base
        missing = _missing(container, stream, packets, uri, options)
        is_timed = packets.are_timed and not _lacks_order(container, stream, packets)
    count = len(packets.times)
    if not count:
        raise InputError("corrupt", packets.error or "the video stream holds no frames")
    if is_timed and base is not None:
        ranges = _cut(sorted(packets.times), packets.keyframes, largest, base, fps)
        missing = missing if fps is None else min(missing, 1)
    else:
        ranges = [
            Range(None, None, first, min(largest, count - first))
            for first in range(0, count, largest)
        ]
    # A file that was cut short must not look complete: more is asked for than can come.
    last = ranges[-1]
    return [
        *ranges[:-1],
        Range(last.start_pts, last.end_pts, last.start_frame, last.frames + missing),
    ]


@dataclass
class _Packets:
    """What the packets of a video say, in their order in the file."""

    times: list[int] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    count: int = 0
    without_time: int = 0
    last_is_corrupt: bool = False
    error: str | None = None

    @property
    def are_timed(self) -> bool:
        """Whether frames can be told apart, and found, by their times."""
        increasing = all(a < b for a, b in pairwise(self.keyframes))
        return increasing and not self.without_time and len(set(self.times)) == len(self.times)


def _read_packets(container: Any, stream: Any, alive: Callable[[], None]) -> _Packets:
    packets = _Packets()
    try:
        for packet in container.demux(stream):
            alive()
            if packet.dts is None and packet.size == 0:
                continue
            packets.count += 1
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
    return may_reorder and codec.has_b_frames and packets.times == sorted(packets.times)


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
    times: list[int], keyframes: list[int], largest: int, base: Fraction, fps: float | None
) -> list[Range]:
    """Ranges of a video whose frames have these times, sorted."""
    wanted = [
        i
        for i, pts in enumerate(times)
        if fps is None or i == 0 or new_interval(times[i - 1], pts, base, fps)
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
