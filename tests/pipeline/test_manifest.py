"""Generations of the manifest: all or nothing, whatever happens while one is written."""

from __future__ import annotations

import pytest

from pipeline import manifest
from pipeline.manifest import Manifest, ManifestWriter, open_file, read_shard
from pipeline.storage import Output
from pipeline.units import Unit
from tests.pipeline.conftest import OPTIONS, Place


def shard(first: int, count: int, prefix: str = "a") -> list[Unit]:
    return [Unit(first + i, 0, f"/{prefix}/{first + i}.jpg", "image") for i in range(count)]


def uris(output: Output) -> list[str]:
    loaded = Manifest.load(output)
    return [
        unit.uri
        for ref in loaded.shards(output)
        for unit in read_shard(open_file(output, ref.file), ref.row_group)
    ]


def test_an_output_without_a_manifest_has_nothing_planned(store: Place) -> None:
    assert Manifest.load(store.output()) == Manifest()


def test_a_generation_that_was_not_completed_does_not_count(store: Place) -> None:
    output = store.output()
    writer = ManifestWriter(output, 0)
    writer.add_shard(shard(0, 2))
    writer._flush()
    assert Manifest.load(output).generations == 0
    again = ManifestWriter(output, 0)
    again.add_shard(shard(0, 1, "b"))
    assert again.complete(1, 1)
    assert uris(output) == ["/b/0.jpg"]
    # What the first attempt left would be read by who opens the folder as a table.
    assert len([name for name in output.list("manifest") if name.endswith(".parquet")]) == 1


def test_of_two_drivers_that_plan_at_once_one_wins(store: Place) -> None:
    """`--partition` drivers share one plan; each may have seen other files."""
    output = store.output()
    one, two = ManifestWriter(output, 0), ManifestWriter(output, 0)
    one.add_shard(shard(0, 3, "one"))
    two.add_shard(shard(0, 5, "two"))
    assert one.complete(3, 1)
    assert not two.complete(5, 1)
    assert uris(output) == [f"/one/{i}.jpg" for i in range(3)]
    assert Manifest.load(output).next_unit == 3
    assert len(output.list("manifest")) == 2


def test_a_completion_whose_answer_was_lost_keeps_its_files(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = store.output()
    create = output.create

    def sent_twice(name: str, data: bytes) -> bool:
        create(name, data)
        return create(name, data)

    monkeypatch.setattr(output, "create", sent_twice)
    writer = ManifestWriter(output, 0)
    writer.add_shard(shard(0, 3))
    assert writer.complete(3, 1)
    assert len(uris(output)) == 3


def test_a_large_generation_has_several_files(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_SHARDS_PER_FILE", 2)
    output = Output(f"{tmp_path}/out", OPTIONS)
    writer = ManifestWriter(output, 0)
    for i in range(5):
        writer.add_shard(shard(2 * i, 2))
    writer.complete(10, 5)
    loaded = Manifest.load(output)
    assert len(loaded.files) == 3
    assert [(ref.shard, ref.row_group) for ref in loaded.shards(output)] == [
        (0, 0),
        (1, 1),
        (2, 0),
        (3, 1),
        (4, 0),
    ]
    assert uris(output) == [f"/a/{i}.jpg" for i in range(10)]
    assert len(loaded.units(output, ["uri"]).read_all()) == 10
