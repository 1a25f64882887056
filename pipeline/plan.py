"""Planning: inputs -> units -> shards, appended to the manifest.

What is planned stays planned: a second run plans only inputs whose URI is new. Units of inputs that
have changed may be retired, and the inputs planned anew. Where that takes long, as of many videos,
a generation is closed every few minutes, and a run that is stopped goes on from there.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from cpm_core.locators import Kind, LocatorSpec
from pipeline.errors import InputError
from pipeline.guard import Decoder
from pipeline.inputs import Input
from pipeline.manifest import Manifest, ManifestWriter
from pipeline.messages import DecoderConfig
from pipeline.storage import Output
from pipeline.units import GivenBox, Unit

CROP_BYTES_PER_SHARD = 64 << 20
_SMALLEST_SHARD = 32
_SHARDS_PER_SIZE = 4
_LAST_SHARDS = 4
_UNKNOWN_PEOPLE = 4
_PROBES_AHEAD = 8
_GENERATION_S = 600.0


@dataclass(frozen=True)
class ShardRule:
    """How units are grouped: at most `largest` frames, and about 64 MiB of crops.

    Shards start small and double every four, so that a small input is spread out and the first part
    of a large one is there early. They end small, a quarter each of what is left, so that a few
    estimators end together (guided self-scheduling, Polychronopoulos and Kuck 1987); a range of a
    video may still be as large as a shard.
    """

    largest: int
    crop_bytes: int
    people_per_frame: int | None

    def room(self, shard: int, left: int) -> int:
        """Frames that fit into a shard, where so many are left."""
        grown = _SMALLEST_SHARD << min(shard // _SHARDS_PER_SIZE, 16)
        return min(self.largest, grown, max(_SMALLEST_SHARD, left // _LAST_SHARDS))

    @property
    def frames_ahead(self) -> int:
        """What has to be left so that `room` does not depend on how much it is."""
        return self.largest * _LAST_SHARDS

    def crops(self, unit: Unit) -> int:
        """Bytes of crops to expect from a unit."""
        people = self.people_per_frame
        if people is None:
            per_frame = len(unit.boxes or ()) if unit.kind == "image" else _UNKNOWN_PEOPLE
            people = max(1, per_frame)
        return unit.frames * people * self.crop_bytes

    @property
    def frames_per_range(self) -> int:
        """Most frames in one range of a video: what fits into a shard of its own."""
        people = self.people_per_frame or _UNKNOWN_PEOPLE
        return max(1, min(self.largest, CROP_BYTES_PER_SHARD // (people * self.crop_bytes)))


def people_expected(kind: Kind) -> int | None:
    """How many people to expect per frame, for the size of shards; None where boxes are given."""
    if kind == "boxes":
        return None
    return 1 if kind == "whole-image" else _UNKNOWN_PEOPLE


@dataclass
class Planned:
    """What planning did; with `counts` false it stopped, as another driver had planned a generation
    first."""

    inputs: int = 0
    units: int = 0
    frames: int = 0
    bytes: int = 0
    videos: int = 0
    shards: int = 0
    generations: int = 0
    counts: bool = True

    def add(self, other: Planned) -> None:
        """Add what was planned after it."""
        for name in ("inputs", "units", "frames", "bytes", "videos", "shards", "generations"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts &= other.counts


def plan(
    inputs: Iterable[Input],
    manifest: Manifest,
    decoder: DecoderConfig,
    rule: ShardRule,
    output: Output | None,
    on_progress: Callable[[Planned], None],
    retired: Iterable[pa.RecordBatch] | None = None,
) -> Planned:
    """Append inputs to the manifest; with `output` None only count (dry run).

    `retired` are units (`unit_id`, `shard`) of inputs that are planned anew: these make a single
    generation, as the old units count until the new ones do.
    """
    done, closed = Planned(), 0
    since = time.monotonic()
    writer = ManifestWriter(output, manifest.generations) if output is not None else None
    shard, units, room, crops = manifest.next_shard, list[Unit](), 0, 0

    def close_shard() -> None:
        nonlocal shard, units
        if units and writer is not None:
            writer.add_shard(units)
        if units:
            shard += 1
            done.shards += 1
        units = []
        on_progress(done)

    def close_generation() -> None:
        nonlocal writer, since, closed
        if output is None or writer is None or done.units == closed:
            return
        if retired is not None:
            writer.retire(retired)
        done.counts = writer.complete(manifest.next_unit + done.units, shard)
        done.generations += 1
        since, closed = time.monotonic(), done.units
        writer = ManifestWriter(output, manifest.generations + done.generations)

    units_to_come = _units(_counted(inputs, done), decoder, rule)
    for unit, left in _looking_ahead(units_to_come, rule.frames_ahead):
        fits = unit.frames <= room and rule.crops(unit) <= crops
        if not units or not fits:
            close_shard()
            if retired is None and time.monotonic() - since > _GENERATION_S:
                close_generation()
                if not done.counts:
                    return done
            room, crops = rule.room(shard, left), CROP_BYTES_PER_SHARD
        units.append(unit.at(manifest.next_unit + done.units, shard))
        room -= unit.frames
        crops -= rule.crops(unit)
        done.units += 1
        done.frames += unit.frames
    close_shard()
    close_generation()
    return done


def _looking_ahead(units: Iterable[Unit], frames: int) -> Iterator[tuple[Unit, int]]:
    """Each unit with the frames that are left from it on, or at least so many."""
    ahead, left = deque[Unit](), 0
    for unit in units:
        ahead.append(unit)
        left += unit.frames
        while left > frames:
            yield ahead[0], left
            left -= ahead.popleft().frames
    for unit in ahead:
        yield unit, left
        left -= unit.frames


def _counted(inputs: Iterable[Input], done: Planned) -> Iterator[Input]:
    for item in inputs:
        done.inputs += 1
        done.videos += item.kind == "video"
        done.bytes += item.size or 0
        yield item


def _units(inputs: Iterable[Input], config: DecoderConfig, rule: ShardRule) -> Iterator[Unit]:
    """Units in the order of the inputs; videos are probed ahead, in guarded processes."""
    with _Prober(config, rule) as prober:
        waiting: deque[Callable[[], list[Unit]]] = deque()
        for item in inputs:
            waiting.append(prober.submit(item))
            if len(waiting) > _PROBES_AHEAD:
                yield from waiting.popleft()()
        while waiting:
            yield from waiting.popleft()()


class _Prober:
    """Cuts videos into ranges, two at a time."""

    def __init__(self, config: DecoderConfig, rule: ShardRule) -> None:
        self.rule = rule
        self.boxes_count = config.people.kind == "boxes"
        self.decoders: SimpleQueue[Decoder] = SimpleQueue()
        # Nobody is located here: a locator would only take time and memory to load.
        plain = replace(config, people=LocatorSpec("boxes"))
        self.all = [Decoder(plain) for _ in range(2)]
        for decoder in self.all:
            self.decoders.put(decoder)
        self.threads = ThreadPoolExecutor(len(self.all))

    def __enter__(self) -> _Prober:
        return self

    def __exit__(self, *_: object) -> None:
        # Reading through a long video may take minutes: whoever gave up does not wait for it.
        self.threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self.all:
            decoder.interrupt()
        self.threads.shutdown()
        for decoder in self.all:
            decoder.close()

    def submit(self, item: Input) -> Callable[[], list[Unit]]:
        """A promise of the input's units."""
        if item.bad_name:
            problem = "the name is not UTF-8 (odd bytes are shown as \\x..); rename the file"
            return lambda: [_unit(item, error_code="bad_name", error_message=problem)]
        if item.kind != "video":
            return lambda: [_unit(item)]
        future: Future[list[Unit]] = self.threads.submit(self._probe, item)
        return future.result

    def _probe(self, item: Input) -> list[Unit]:
        decoder = self.decoders.get()
        try:
            ranges = decoder.ranges(item.uri, self.rule.frames_per_range)
        except InputError as error:
            return [_unit(item, error_code=error.code, error_message=str(error))]
        finally:
            self.decoders.put(decoder)
        units = [
            _unit(
                item,
                start_pts=r.start_pts,
                end_pts=r.end_pts,
                start_frame=r.start_frame,
                frames=r.frames,
            )
            for r in ranges
        ]
        end_frame = ranges[-1].end_frame if self.boxes_count else None
        return _share_out(item.boxes, units, end_frame) if item.boxes else units


def _unit(item: Input, **values: Any) -> Unit:
    return Unit(
        0, 0, item.uri, item.kind, item.size, item.etag, item.mtime, boxes=item.boxes, **values
    )


def _share_out(boxes: Sequence[GivenBox], units: list[Unit], end_frame: int | None) -> list[Unit]:
    """Give every range of a video the boxes of its own frames, and those for every frame.

    Boxes for frames from `end_frame` on, which the video does not have, make a failed unit.
    """
    starts = [unit.start_frame or 0 for unit in units]
    shares: list[list[GivenBox]] = [[] for _ in units]
    beyond: list[GivenBox] = []
    for box in boxes:
        if box.frame_index is None:
            for share in shares:
                share.append(box)
        elif end_frame is not None and box.frame_index >= end_frame:
            beyond.append(box)
        else:
            shares[max(0, bisect_right(starts, box.frame_index) - 1)].append(box)
    shared = [unit._replace(boxes=tuple(share)) for unit, share in zip(units, shares, strict=True)]
    return [*shared, _beyond(units[0], beyond, end_frame)] if beyond else shared


def _beyond(unit: Unit, boxes: Sequence[GivenBox], end_frame: int | None) -> Unit:
    """What becomes of a video's boxes for frames that it does not have."""
    return unit._replace(
        start_pts=None,
        end_pts=None,
        start_frame=None,
        frames=1,
        boxes=tuple(boxes),
        error_code="bad_box",
        error_message=f"{len(boxes)} boxes are for frames that the video does not have, the first "
        f"of them for frame {boxes[0].frame_index}; its {end_frame} frames count from 0",
    )
