"""Planning: inputs -> units -> shards, appended to what is planned and never changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pipeline.plan
from cpm_core.locators import Kind, LocatorSpec
from pipeline.catalog import Catalog
from pipeline.errors import InputError
from pipeline.inputs import Input
from pipeline.manifest import Manifest, open_file, read_shard
from pipeline.messages import DecoderConfig
from pipeline.plan import Planned, ShardRule, people_expected, plan
from pipeline.storage import Output
from pipeline.units import GivenBox, Unit
from pipeline.video import Range
from tests.pipeline.conftest import OPTIONS, Place

CROP = 64 * 64 * 3
RULE = ShardRule(largest=512, crop_bytes=CROP, people_per_frame=1)


def decoder_config(**values: Any) -> DecoderConfig:
    given: dict[str, Any] = {
        "storage": OPTIONS,
        "crop_size": 64,
        "box_factor": 1.25,
        "scales": (1.0,),
        "people": LocatorSpec("whole-image"),
        "max_people": 50,
        "max_pixels": 10**8,
        "max_bytes": 1 << 28,
        "max_seconds": 60.0,
        "max_memory": 4096,
        "fps": None,
    }
    return DecoderConfig(**given | values)


@dataclass
class FakeDecoder:
    """Cuts `/NxM.mp4` into N ranges of M frames; others are broken."""

    config: DecoderConfig

    def ranges(self, uri: str, largest: int) -> list[Range]:
        try:
            count, frames = (int(n) for n in Path(uri).stem.split("x"))
        except ValueError:
            raise InputError("corrupt", "no moov") from None
        frames = min(frames, largest)
        ends = [*range(frames, count * frames, frames), None]
        *ranges, last = [Range(i * frames, end, i * frames, frames) for i, end in enumerate(ends)]
        return [*ranges, replace(last, end_frame=count * frames)]

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.plan, "Decoder", FakeDecoder)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(f"{tmp_path}/out", OPTIONS)


def pictures(count: int, prefix: str = "p") -> Iterator[Input]:
    return (Input(f"/{prefix}/{i:05d}.jpg", "image", size=10) for i in range(count))


def video(uri: str) -> Input:
    return Input(uri, "video")


def run(
    inputs: Any,
    output: Output | None,
    rule: ShardRule = RULE,
    limit: int | None = None,
    before: Output | None = None,
    people: Kind = "whole-image",
) -> tuple[Planned, int]:
    """Plan on top of what is planned in `before` (default: the output); and how many are known."""
    at = before or output
    assert at is not None
    manifest = Manifest.load(at)
    with Catalog() as catalog:
        catalog.add([lambda: iter(inputs)], limit, lambda _: None)
        catalog.compare(manifest, at, [])
        config = decoder_config(people=LocatorSpec(people))
        done = plan(catalog.new(), manifest, config, rule, output, lambda _: None)
        return done, catalog.known


def planned(output: Output) -> list[list[Unit]]:
    """All shards, read back."""
    manifest = Manifest.load(output)
    shards = [
        read_shard(open_file(output, ref.file), ref.row_group) for ref in manifest.shards(output)
    ]
    assert [ref.shard for ref in manifest.shards(output)] == list(range(len(shards)))
    assert all(unit.shard == i for i, shard in enumerate(shards) for unit in shard)
    return shards


def units_of(output: Output) -> list[Unit]:
    return [unit for shard in planned(output) for unit in shard]


def test_a_plan_is_written_and_read_back_on_any_storage(place: Place) -> None:
    output = place.output()
    mtime = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    box = GivenBox(1.5, 2, 3, 4, 0.5, 7)
    inputs = [
        Input("s3://b/ü#?.jpg", "image", 5, "etag", mtime, ()),
        Input("/2x3.mp4", "video", boxes=(box, GivenBox(0, 0, 1, 1))),
        Input("/c.jpg", "image"),
    ]
    run(inputs, output)
    every = GivenBox(0, 0, 1, 1)
    assert units_of(output) == [
        Unit(0, 0, "s3://b/ü#?.jpg", "image", 5, "etag", mtime, boxes=()),
        Unit(1, 0, "/2x3.mp4", "video", None, None, None, 0, 3, 0, 3, (every,)),
        Unit(2, 0, "/2x3.mp4", "video", None, None, None, 3, None, 3, 3, (box, every)),
        Unit(3, 0, "/c.jpg", "image"),
    ]


def test_shards_start_small_grow_and_end_small(output: Output) -> None:
    run(pictures(6000), output)
    sizes = [len(shard) for shard in planned(output)]
    grown = [32] * 4 + [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4
    assert sizes[: len(grown)] == grown
    left = 6000 - sum(grown)
    for size in sizes[len(grown) :]:
        assert size == min(left, max(32, left // 4))
        left -= size
    assert left == 0
    assert sizes[-4:] == [32, 32, 32, 20]
    assert [unit.unit_id for unit in units_of(output)] == list(range(6000))


@pytest.mark.parametrize(
    ("rule", "inputs", "expected"),
    [
        pytest.param(ShardRule(10, CROP, 1), pictures(25), [10, 10, 5], id="--shard-size"),
        pytest.param(ShardRule(512, 16 << 20, 1), pictures(9), [4, 4, 1], id="large crops"),
        pytest.param(ShardRule(512, 8 << 20, 4), pictures(5), [2, 2, 1], id="several people"),
        pytest.param(ShardRule(512, 80 << 20, 1), pictures(3), [1, 1, 1], id="crops over a shard"),
        pytest.param(
            ShardRule(512, 16 << 20, None),
            [
                Input(f"/{i}", "image", boxes=(GivenBox(0, 0, 1, 1),) * n)
                for i, n in enumerate([3, 1, 2, 9, 0])
            ],
            [2, 1, 1, 1],
            id="given boxes",
        ),
        pytest.param(
            RULE,
            [
                Input("/3x20.mp4", "video"),
                *pictures(2),
                Input("/1x200.mp4", "video"),
                *pictures(1, "q"),
            ],
            [1, 1, 3, 1, 1],
            id="ranges of videos count by their frames",
        ),
    ],
)
def test_a_shard_holds_so_many_units(
    rule: ShardRule, inputs: Any, expected: list[int], output: Output
) -> None:
    run(inputs, output, rule)
    assert [len(shard) for shard in planned(output)] == expected


@pytest.mark.parametrize(
    ("rule", "frames"),
    [
        (ShardRule(512, CROP, 1), 512),
        (ShardRule(100, CROP, 1), 100),
        (ShardRule(512, 256 * 256 * 3, 1), 341),
        (ShardRule(512, 256 * 256 * 3, 4), 85),
        (ShardRule(512, 256 * 256 * 3, None), 85),
        (ShardRule(512, 1 << 30, 1), 1),
    ],
)
def test_the_crops_of_a_range_of_a_video_fit_into_a_shard(rule: ShardRule, frames: int) -> None:
    """A range is one unit, and a unit's crops are in memory together."""
    assert rule.frames_per_range == frames


@pytest.mark.parametrize(
    ("kind", "count"), [("whole-image", 1), ("boxes", None), ("detector", 4), ("person-net", 4)]
)
def test_people_are_expected(kind: Kind, count: int | None) -> None:
    assert people_expected(kind) == count


def test_one_row_group_is_one_shard(output: Output) -> None:
    run(pictures(100), output)
    [name] = Manifest.load(output).files
    assert open_file(output, name).num_row_groups == 4


def test_a_second_plan_appends_what_is_new(output: Output) -> None:
    assert run(pictures(40), output)[0].units == 40
    before = planned(output)
    again, known = run([*pictures(40), *pictures(3, "new")], output)
    assert (again.inputs, known, again.units, again.shards) == (3, 40, 3, 1)
    after = planned(output)
    assert after[: len(before)] == before
    assert [(unit.unit_id, unit.uri) for unit in after[-1]] == [
        (40 + i, f"/new/{i:05d}.jpg") for i in range(3)
    ]
    manifest = Manifest.load(output)
    assert (manifest.generations, manifest.next_unit, manifest.next_shard) == (2, 43, 3)


def test_a_plan_without_new_inputs_adds_nothing(output: Output) -> None:
    run(pictures(3), output)
    names = output.list("manifest")
    assert run(pictures(3), output)[0].inputs == 0
    assert output.list("manifest") == names


def test_an_input_named_twice_is_planned_once(output: Output) -> None:
    done, _ = run([*pictures(3), *pictures(3)], output)
    assert done.units == 3
    assert len(units_of(output)) == 3


def test_the_order_of_the_inputs_is_kept(output: Output) -> None:
    inputs = [
        *pictures(5, "a"),
        Input("/2x4.mp4", "video"),
        *pictures(20, "b"),
        Input("/1x2.mp4", "video"),
    ]
    run(inputs, output)
    units = units_of(output)
    assert list(dict.fromkeys(unit.uri for unit in units)) == [item.uri for item in inputs]
    assert [unit.unit_id for unit in units] == list(range(28))


def test_a_video_that_cannot_be_planned_becomes_a_failed_unit(output: Output) -> None:
    run([Input("/broken.mp4", "video"), *pictures(1)], output)
    broken, good = units_of(output)
    assert (broken.error_code, broken.error_message, broken.frames) == ("corrupt", "no moov", 1)
    assert good.error_code is None


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_name_that_is_not_utf8_becomes_a_failed_unit(output: Output, kind: str) -> None:
    """One such file in a bucket of millions ended the run when the plan was written."""
    run([Input("/caf\\udce9.mp4", kind, bad_name=True)], output)
    [unit] = units_of(output)
    assert (unit.error_code, unit.uri) == ("bad_name", "/caf\\udce9.mp4")


def test_each_range_carries_the_boxes_of_its_frames(output: Output) -> None:
    """All boxes in every range made the plan grow with the square of a video's length."""
    boxes = tuple(GivenBox(0, 0, 1, 1, 1, i) for i in range(12))
    run([Input("/3x4.mp4", "video", boxes=boxes)], output)
    indices = [[b.frame_index for b in unit.boxes or ()] for unit in units_of(output)]
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_boxes_of_frames_that_a_video_does_not_have_are_a_failed_unit(output: Output) -> None:
    """They were given to the last range, which never came to their frames."""
    every, last, beyond = (GivenBox(0, 0, 1, 1, 1, i) for i in (None, 7, 8))
    far = GivenBox(0, 0, 1, 1, 1, 2**31 - 1)
    inputs = [Input("/2x4.mp4", "video", boxes=(far, beyond, every, last)), *pictures(1)]
    run(inputs, output, people="boxes")
    first, second, lost, _ = units_of(output)
    assert (first.boxes, second.boxes, lost.boxes) == ((every,), (every, last), (far, beyond))
    assert (lost.uri, lost.start_frame, lost.frames) == ("/2x4.mp4", None, 1)
    assert (first.error_code, second.error_code, lost.error_code) == (None, None, "bad_box")
    assert lost.error_message == (
        "2 boxes are for frames that the video does not have, the first of them for frame "
        "2147483647; its 8 frames count from 0"
    )


def test_boxes_that_do_not_count_fail_nothing(output: Output) -> None:
    """With another locator they are only carried along."""
    boxes = (GivenBox(0, 0, 1, 1, 1, 8),)
    run([Input("/1x8.mp4", "video", boxes=boxes)], output)
    assert [(unit.boxes, unit.error_code) for unit in units_of(output)] == [(boxes, None)]


@pytest.mark.parametrize(("limit", "new", "known"), [(2, 0, 2), (3, 0, 3), (5, 2, 3), (None, 7, 3)])
def test_a_limit_counts_what_is_planned_already(
    output: Output, limit: int | None, new: int, known: int
) -> None:
    run(pictures(3), output)
    done, found = run(pictures(10), output, limit=limit)
    assert (done.inputs, found) == (new, known)


def test_what_was_planned_is_counted(output: Output) -> None:
    told: list[int] = []
    inputs = [*pictures(40), Input("/2x5.mp4", "video", size=1000)]
    done = plan(
        inputs,
        Manifest.load(output),
        decoder_config(),
        RULE,
        output,
        lambda so_far: told.append(so_far.units),
    )
    assert done == Planned(
        inputs=41, units=42, frames=50, bytes=1400, videos=1, shards=2, generations=1
    )
    assert told[-1] == 42


def test_a_dry_run_writes_nothing(output: Output) -> None:
    done, _ = run(pictures(40), None, before=output)
    assert (done.units, done.shards) == (40, 2)
    assert not Path(output.root).exists()


def test_probing_needs_no_locator(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    made: list[DecoderConfig] = []

    class Noted(FakeDecoder):
        def __init__(self, config: DecoderConfig) -> None:
            made.append(config)

    monkeypatch.setattr(pipeline.plan, "Decoder", Noted)
    config = decoder_config(people=LocatorSpec("detector", 0.4, "sha", b"onnx"), fps=3.0)
    plan([], Manifest.load(output), config, RULE, output, lambda _: None)
    assert [(c.people, c.fps) for c in made] == [(LocatorSpec("boxes"), 3.0)] * 2


def test_planning_that_was_stopped_goes_on_from_its_last_generation(
    monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """Reading through many videos takes hours, of which a stop costs a few minutes."""
    monkeypatch.setattr(pipeline.plan, "_GENERATION_S", 0.0)

    def stopped() -> Iterator[Input]:
        yield from pictures(2500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(stopped(), Manifest(), decoder_config(), RULE, output, lambda _: None)
    before = Manifest.load(output)
    assert before.generations == before.next_shard > 1
    done, known = run(pictures(2500), output)
    assert (known, done.inputs) == (before.next_unit, 2500 - before.next_unit)
    assert [unit.unit_id for unit in units_of(output)] == list(range(2500))
    assert {unit.uri for unit in units_of(output)} == {item.uri for item in pictures(2500)}


def test_planning_stops_where_another_driver_was_first(
    monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    monkeypatch.setattr(pipeline.plan, "_GENERATION_S", 0.0)
    run(pictures(40), output)
    monkeypatch.setattr(pipeline.plan, "_GENERATION_S", 1e9)
    # Planned without looking at what is there by now.
    done = plan(pictures(90), Manifest(), decoder_config(), RULE, output, lambda _: None)
    assert not done.counts
    assert {unit.uri for unit in units_of(output)} == {item.uri for item in pictures(40)}
    assert run(pictures(90), output)[0].counts
    assert [unit.unit_id for unit in units_of(output)] == list(range(90))


def test_what_is_planned_anew_is_one_generation(
    monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """Else a stop would leave an input in the table twice."""
    run(pictures(90), output)
    monkeypatch.setattr(pipeline.plan, "_GENERATION_S", 0.0)
    manifest = Manifest.load(output)
    old = [pa.record_batch([range(90), [0] * 90], names=["unit_id", "shard"])]
    done = plan(pictures(90), manifest, decoder_config(), RULE, output, lambda _: None, old)
    assert (done.counts, done.shards > 1) == (True, True)
    after = Manifest.load(output)
    assert after.generations == manifest.generations + 1
    assert after.retired_units(output).num_rows == 90
