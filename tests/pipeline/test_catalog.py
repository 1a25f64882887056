"""Inputs beside a manifest: what is new, changed, gone, and in which order."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog import Catalog, Tally
from pipeline.inputs import Input
from pipeline.manifest import Manifest, ManifestWriter
from pipeline.storage import Output
from pipeline.units import GivenBox, Unit
from tests.pipeline.conftest import Place

THEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def picture(name: str, **values: Any) -> Input:
    return Input(f"/in/{name}.jpg", "image", **{"size": 10, "mtime": THEN, **values})


def planned_as(output: Output, inputs: Sequence[Input], units_each: int = 1) -> Manifest:
    """Append the inputs to the manifest, three inputs to a shard."""
    before = Manifest.load(output)
    writer = ManifestWriter(output, before.generations)
    unit, shard = before.next_unit, before.next_shard
    for start in range(0, len(inputs), 3):
        units = []
        for item in inputs[start : start + 3]:
            for _ in range(units_each):
                state = item.uri, item.kind, item.size, item.etag, item.mtime
                units.append(Unit(unit, shard, *state))
                unit += 1
        writer.add_shard(units)
        shard += 1
    assert writer.complete(unit, shard)
    return Manifest.load(output)


@contextmanager
def compared(
    inputs: Sequence[Sequence[Input]],
    output: Output,
    roots: Sequence[str] = (),
    redo_failed: Collection[str] = (),
) -> Iterator[Catalog]:
    with Catalog() as catalog:
        catalog.add([lambda part=part: iter(part) for part in inputs], None, lambda _: None)
        catalog.compare(Manifest.load(output), output, roots, True, redo_failed)
        yield catalog


def names(inputs: Iterator[Input]) -> str:
    return " ".join(item.uri.removeprefix("/in/").removesuffix(".jpg") for item in inputs)


def test_without_a_manifest_all_is_new_in_order(store: Place) -> None:
    """Whichever part is listed first, and each input once."""
    parts = [[picture("b"), picture("a")], [], [picture("c"), picture("b")], [picture("0")]]
    with compared(parts, store.output()) as catalog:
        assert names(catalog.new()) == "b a c 0"
        assert (catalog.known, catalog.changed_count) == (0, 0)
        assert list(catalog.changed()) == []


def test_an_input_comes_back_as_it_went_in(store: Place) -> None:
    inputs = [
        picture("a", etag="x", boxes=(GivenBox(1, 2, 3, 4, 0.5, 7), GivenBox(0, 0, 1, 1))),
        Input("/in/caf\\udce9.mp4", "video", boxes=(), bad_name=True),
        Input("s3://b/ü #?%20.jpg", "image", 0),
    ]
    with compared([inputs], store.output()) as catalog:
        assert list(catalog.new()) == inputs


def test_what_is_planned_is_known(store: Place) -> None:
    output = store.output()
    planned_as(output, [picture(c) for c in "abcdefg"], units_each=2)
    with compared([[picture(c) for c in "xcayg"]], output) as catalog:
        assert names(catalog.new()) == "x y"
        assert (catalog.known, catalog.changed_count) == (3, 0)


@pytest.mark.parametrize(
    ("values", "is_changed"),
    [
        ({}, False),
        ({"size": 11}, True),
        ({"mtime": THEN + timedelta(microseconds=1)}, True),
        ({"size": None, "mtime": None}, False),
        ({"etag": "new"}, True),
        ({"etag": "old", "mtime": THEN + timedelta(days=1)}, False),
    ],
)
def test_a_change_shows_in_etag_or_size_or_time(
    store: Place, values: dict[str, Any], is_changed: bool
) -> None:
    """An object that was copied over itself has its old ETag, and is the same."""
    output = store.output()
    etag = "old" if "etag" in values else None
    planned_as(output, [picture("a", etag=etag), picture("b")])
    with compared([[picture("a", **values), picture("b")]], output) as catalog:
        assert names(catalog.changed()) == ("a" if is_changed else "")
        assert catalog.changed_count == is_changed
        assert names(catalog.new()) == ""
        assert catalog.known == 2


def test_units_of_again_inputs_are_retired_once(store: Place) -> None:
    """What was retired before is none of the next change's."""
    output = store.output()
    first = [picture(c) for c in "abcd"]
    manifest = planned_as(output, first, units_each=2)
    again = [item._replace(size=11) if item.uri in ("/in/b.jpg", "/in/d.jpg") else item
             for item in first]  # fmt: skip
    with compared([again], output) as catalog:
        batches = list(catalog.units_of_again(manifest, output))
        rows = [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
        assert rows == [(2, 0), (3, 0), (6, 1), (7, 1)]
        writer = ManifestWriter(output, 1)
        writer.add_shard([Unit(8, 2, "/in/b.jpg", "image", 11, None, THEN)])
        writer.add_shard([Unit(9, 3, "/in/d.jpg", "image", 11, None, THEN)])
        writer.retire(batches)
        assert writer.complete(10, 4)
    manifest = Manifest.load(output)
    refs = list(manifest.shards(output))
    assert [(ref.units, ref.retired) for ref in refs] == [
        (4, (2, 3)),
        (0, (6, 7)),
        (1, ()),
        (1, ()),
    ]
    with compared([again], output) as catalog:
        assert (catalog.known, catalog.changed_count) == (4, 0)
    third = [item._replace(size=12) if item.uri == "/in/b.jpg" else item for item in again]
    with compared([third], output) as catalog:
        rows = [row for b in catalog.units_of_again(manifest, output) for row in b.to_pylist()]
        assert rows == [{"unit_id": 8, "shard": 2}]


def test_videos_that_could_not_be_cut_are_due_again_for_the_reasons_given(store: Place) -> None:
    output = store.output()
    items = [picture("a"), *(picture(c)._replace(kind="video") for c in "bcde")]
    codes = [None, "storage", None, "timeout", "storage"]
    writer = ManifestWriter(output, 0)
    writer.add_shard([
        Unit(i, 0, item.uri, item.kind, 10, None, THEN, error_code=code)
        for i, (item, code) in enumerate(zip(items, codes, strict=True))
    ])  # fmt: skip
    assert writer.complete(5, 1)
    manifest = Manifest.load(output)
    with compared([items[:4]], output, redo_failed=["storage", "forbidden"]) as catalog:
        assert names(catalog.again()) == "b"
        assert (catalog.unread_count, catalog.changed_count) == (1, 0)
        batches = catalog.units_of_again(manifest, output)
        assert batches is not None
        assert [row for batch in batches for row in batch.to_pylist()] == [
            {"unit_id": 1, "shard": 0}
        ]
    with compared([items], output) as catalog:
        assert names(catalog.again()) == ""
        assert catalog.units_of_again(manifest, output) is None


@pytest.mark.parametrize("names_", ["a", "ab", "abc"])
def test_what_was_planned_anew_is_known_ever_after(store: Place, names_: str) -> None:
    """The last input of a generation and the first of the next may be the same one."""
    output = store.output()
    items = [picture(c) for c in names_]
    planned_as(output, items, units_each=2)
    changed = items[-1]._replace(size=11)
    with compared([[*items[:-1], changed]], output) as catalog:
        manifest = Manifest.load(output)
        writer = ManifestWriter(output, 1)
        first, shard = manifest.next_unit, manifest.next_shard
        writer.add_shard([Unit(first, shard, changed.uri, "image", 11, None, THEN)])
        writer.retire(catalog.units_of_again(manifest, output))
        assert writer.complete(first + 1, shard + 1)
    with compared([[*items[:-1], changed]], output) as catalog:
        assert (names(catalog.new()), names(catalog.changed())) == ("", "")
        assert catalog.known == len(items)


@pytest.mark.parametrize("folder", ["o'b", "a[b]", "50% *"])
def test_the_temporary_folder_may_have_any_name(
    store: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    output = store.output()
    planned_as(output, [picture("a")])
    with compared([[picture("a"), picture("b")]], output, ["/in"]) as catalog:
        assert names(catalog.new()) == "b"


def test_an_interruption_ends_the_listing_at_once() -> None:
    """The parts are listed by threads, of which each may have millions to go."""
    begun = threading.Event()

    def endless() -> Iterator[Input]:
        for i in itertools.count():
            begun.set()
            yield picture(str(i))

    def broken() -> Iterator[Input]:
        begun.wait()
        raise OSError("the wire is cut")
        yield

    with Catalog() as catalog, pytest.raises(OSError, match="the wire is cut"):
        catalog.add([broken, endless], None, lambda _: None)


def test_what_is_gone_is_counted_within_the_folders_that_were_listed(store: Place) -> None:
    output = store.output()
    planned_as(output, [picture("a"), picture("b"), Input("/other/c.jpg", "image")])
    with compared([[picture("a")]], output, ["/in"]) as catalog:
        assert catalog.vanished == Tally(1, "/in/b.jpg")
    with compared([[picture("a")]], output, ["/in/", "/other"]) as catalog:
        assert catalog.vanished.count == 2
    with compared([[picture("a")]], output, ["/i"]) as catalog:
        assert catalog.vanished == Tally()


@pytest.mark.parametrize(
    ("uris", "expected"),
    [
        ([], Tally()),
        (["/in/b.jpg", "/in/a.jpg"], Tally()),
        (["/in/z.jpg", "/in/a.jpg", "/in/c.jpg"], Tally(2, "/in/c.jpg")),
        ([f"/in/{i:05d}.jpg" for i in range(50_000)], Tally(50_000, "/in/00000.jpg")),
    ],
)
def test_what_is_not_listed_is_counted(store: Place, uris: Iterable[str], expected: Tally) -> None:
    parts = [[picture("a")], [picture("b"), picture("a")]]
    with compared(parts, store.output()) as catalog:
        assert catalog.not_listed(uris) == expected
        assert catalog.first() == picture("a")


BOX, OTHER = GivenBox(1, 2, 3, 4), GivenBox(1, 2, 3, 4, 1, 0)


@pytest.mark.parametrize(
    ("first", "second", "is_told"),
    [
        (None, None, False),
        ((), (), False),
        ((BOX, OTHER), (BOX, OTHER), False),
        ((BOX,), (OTHER,), True),
        ((BOX,), (BOX, OTHER), True),
        ((BOX,), (), True),
        ((BOX,), None, True),
        (None, (), True),
    ],
)
def test_boxes_that_contradict_each_other_are_counted(
    store: Place, first: Any, second: Any, is_told: bool
) -> None:
    parts = [[picture("a", boxes=first), picture("b", boxes=(BOX,))], [picture("a", boxes=second)]]
    for inputs in (parts, parts[::-1]):
        with compared(inputs, store.output()) as catalog:
            assert catalog.contradictory() == (Tally(1, "/in/a.jpg") if is_told else Tally())


def test_a_limit_stops_the_listing(store: Place) -> None:
    listed = []

    def part(number: int) -> Iterator[Input]:
        for i in range(3):
            listed.append((number, i))
            yield picture(f"{number}-{i}")

    with Catalog() as catalog:
        catalog.add([lambda n=n: part(n) for n in range(4)], 4, lambda _: None)
        catalog.compare(Manifest(), store.output(), [])
        assert names(catalog.new()) == "0-0 0-1 0-2 1-0"
    assert listed == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_listing_that_fails_ends_it(store: Place) -> None:
    def broken() -> Iterator[Input]:
        yield picture("a")
        raise OSError("the wire is cut")

    with Catalog() as catalog, pytest.raises(OSError, match="the wire is cut"):
        catalog.add([broken, lambda: iter([picture("b")])], None, lambda _: None)
    assert not catalog.folder.exists()
