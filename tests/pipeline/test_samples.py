"""Samples tables: a file or a folder of them, anywhere; rows in any order; rows made samples."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cpm_core.skeleton import load_skeleton
from pipeline import samples as module
from pipeline.errors import UsageError
from pipeline.samples import RowReader, SampleTable, decode_sample, iter_rows
from pipeline.storage import StorageOptions
from tests.pipeline.conftest import Place
from tests.pipeline.training.labelled import LSP, picture, row, write_table

SPLITS = ["train", "tune", "train", "test", "train", "train", "tune", "train", "train", "test"]
ROWS = [row(i, split) for i, split in enumerate(SPLITS)]


def put_table(place: Place, name: str, rows: list[dict[str, Any]], **options: Any) -> str:
    """A samples table in a place; its address as a user writes it."""
    sink = pa.BufferOutputStream()
    write_table(sink, rows, **options)
    place.put(name, sink.getvalue().to_pybytes())
    return f"{place.uri}/{name}"


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    """Ten rows in row groups of four, four and two."""
    return SampleTable(write_table(tmp_path / "samples.parquet", ROWS))


def test_a_file(place: Place) -> None:
    """Rows, groups, skeleton and splits of one file, on a disk or in a bucket."""
    table = SampleTable(put_table(place, "samples.parquet", ROWS))
    assert len(table) == 10
    assert table.files.starts.tolist() == [0, 4, 8, 10]
    assert table.files.groups.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert table.skeleton == LSP
    assert table.rows().tolist() == list(range(10))
    assert table.rows("tune").tolist() == [1, 6]
    assert [r["source"] for r in iter_rows(table, "test")] == ["figure-3.png", "figure-9.png"]


def test_a_folder(place: Place) -> None:
    """Its Parquet files by name, those of folders in it as well; other files do not matter."""
    put_table(place, "set/b.parquet", ROWS[4:7], group_rows=2)
    put_table(place, "set/a.parquet", ROWS[:4])
    put_table(place, "set/more/c.parquet", ROWS[7:])
    place.put("set/README.md", b"about")
    table = SampleTable(f"{place.uri}/set")
    assert [r["sample_id"] for r in iter_rows(table)] == list(range(10))
    assert table.files.groups.tolist() == [[0, 0], [1, 0], [1, 1], [2, 0]]
    assert table.rows("test").tolist() == [3, 9]
    assert len(table.group_bytes) == 4


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, list(range(10))),
        ("train", [0, 2, 4, 5, 7, 8]),
        ("tune", [1, 6]),
        ("test", [3, 9]),
        ("val", []),
        ("", []),
        ("TRAIN", []),
    ],
)
def test_rows_of_a_split(table: SampleTable, split: str | None, expected: list[int]) -> None:
    """Ascending; a split that is not there has none."""
    rows = table.rows(split)
    assert rows.tolist() == expected
    assert rows.dtype == np.int64


def test_missing(place: Place) -> None:
    """The message says what to do."""
    place.put("else.txt", b"")
    with pytest.raises(UsageError, match=r"nowhere\.parquet.*posemill import"):
        SampleTable(f"{place.uri}/nowhere.parquet")


@pytest.mark.parametrize(
    ("data", "about"),
    [
        (b"", "empty"),
        (b"PAR1 no more", "not Parquet"),
        (b"uri,x\na.jpg,1\n", "CSV"),
    ],
)
def test_another_kind_of_file(store: Place, data: bytes, about: str) -> None:
    """Whatever its name says."""
    store.put("samples.parquet", data)
    with pytest.raises(UsageError, match="not a samples table; write one with `posemill import`"):
        SampleTable(f"{store.uri}/samples.parquet")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {b"posemill": b"not JSON"},
        {b"posemill": b'{"schema_version": 1}'},
        {b"posemill": b'{"skeleton": {"name": "x"}}'},
        {b"posemill": b"[]"},
        {b"posemill": b'{"skeleton": 5}'},
    ],
)
def test_parquet_of_something_else(tmp_path: Path, metadata: dict[bytes, bytes]) -> None:
    """A table that nobody imported, or whose metadata are damaged."""
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"split": ["train"]}).replace_schema_metadata(metadata or None), path)
    with pytest.raises(UsageError, match="not a samples table"):
        SampleTable(str(path))


def test_an_empty_folder(tmp_path: Path) -> None:
    """No Parquet file in it."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no \.parquet file in it"):
        SampleTable(str(tmp_path))


def test_files_with_different_skeletons(tmp_path: Path) -> None:
    """They would be one table of nothing in particular."""
    write_table(tmp_path / "a.parquet", ROWS[:2])
    coco = load_skeleton("coco17")
    write_table(tmp_path / "b.parquet", [row(0, joints=17)], coco)
    with pytest.raises(UsageError, match="different skeletons"):
        SampleTable(str(tmp_path))
    assert SampleTable(str(tmp_path / "b.parquet")).skeleton == coco


def test_a_table_without_rows(tmp_path: Path) -> None:
    """It has none in any split."""
    table = SampleTable(write_table(tmp_path / "none.parquet", []))
    assert len(table) == 0
    assert table.rows().tolist() == table.rows("train").tolist() == []
    assert list(iter_rows(table)) == []


@pytest.mark.parametrize(("digest", "same"), [("d1", True), ("another", False)])
def test_the_digest_names_the_contents(tmp_path: Path, digest: str, same: bool) -> None:
    """The importer's, wherever the file lies and however it is cut into row groups."""
    one = write_table(tmp_path / "one.parquet", ROWS, digest="d1")
    other = write_table(tmp_path / "other.parquet", ROWS, group_rows=3, digest=digest)
    assert (SampleTable(one).digest == SampleTable(other).digest) is same


def test_the_digest_of_a_table_without_one(tmp_path: Path) -> None:
    """By the statistics of its columns."""
    moved = [*ROWS[:9], {**ROWS[9], "box": [4.0, 4.0, 40.0, 57.0]}]
    one, again, other = (
        SampleTable(write_table(tmp_path / f"{name}.parquet", rows)).digest
        for name, rows in (("one", ROWS), ("again", ROWS), ("other", moved))
    )
    assert one == again
    assert one != other


def test_where_rows_are_can_be_a_key(tmp_path: Path) -> None:
    """Equal for the same contents at the same place, read the same way."""
    path = write_table(tmp_path / "a.parquet", ROWS)
    one, again = SampleTable(path).files, SampleTable(path).files
    assert one == again
    assert len({one, again}) == 1
    write_table(path, ROWS[:9])
    assert SampleTable(path).files != one, "written anew"
    assert SampleTable(path, StorageOptions(endpoint="http://x")).files != SampleTable(path).files


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_rows_in_any_order(tmp_path: Path, cache_bytes: int) -> None:
    """Each number gives its row, also of files with groups of other sizes, also twice."""
    write_table(tmp_path / "a.parquet", ROWS[:5], group_rows=2)
    write_table(tmp_path / "b.parquet", ROWS[5:], group_rows=3)
    reader = RowReader(SampleTable(str(tmp_path)).files, cache_bytes)
    wanted = [*range(10), 4, 4, 9, 0]
    random.Random(0).shuffle(wanted)
    rows = reader.read(np.array(wanted))
    assert [r["sample_id"] for r in rows] == wanted
    assert [r["image"] for r in rows] == [ROWS[i]["image"] for i in wanted]


@pytest.mark.parametrize(
    ("groups_held", "order", "reads"),
    [
        (3, [0, 4, 8, 0, 4, 8], 3),  # all fit: each is read once
        (2, [0, 4, 0, 8, 0, 4], 4),  # the one least recently used goes first
        (1, [0, 1, 2, 4, 5, 0], 3),
        (0, [0, 1, 2, 3], 1),  # the one in use stays
    ],
)
def test_memory_is_bounded(
    table: SampleTable,
    monkeypatch: pytest.MonkeyPatch,
    groups_held: int,
    order: list[int],
    reads: int,
) -> None:
    """By the bytes of the row groups that are kept."""
    read = []
    real = module._open

    def counted(*arguments: Any) -> Any:
        read.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(module, "_open", counted)
    largest = max(RowReader(table.files)._table(g).nbytes for g in range(3))
    reader = RowReader(table.files, groups_held * largest)
    read.clear()
    for number in order:
        assert reader.read([number])[0]["sample_id"] == number
        held = sum(t.nbytes for t in reader._tables.values())
        assert held <= max(1, groups_held) * largest
    assert len(read) == reads


def test_a_table_that_changed_is_refused(tmp_path: Path) -> None:
    """Row numbers of the old one mean nothing in the new one."""
    path = write_table(tmp_path / "a.parquet", [row(0), row(1)], digest="d1")
    reader = RowReader(SampleTable(path).files)
    write_table(tmp_path / "a.parquet", [row(2)], digest="d2")
    with pytest.raises(UsageError, match=r"a\.parquet: was changed"):
        reader.read([1])


def test_decoding_a_row_with_its_picture() -> None:
    """RGB; labels and box as they stand in the row."""
    red = np.zeros((6, 8, 3), np.uint8)
    red[..., 2] = 200
    data = cv2.imencode(".png", red)[1].tobytes()
    labelled = [True] * 13 + [False]
    sample = decode_sample(row(3, image=data, labelled=labelled))
    assert sample.image.shape == (6, 8, 3)
    assert sample.image[0, 0].tolist() == [200, 0, 0]
    np.testing.assert_array_equal(sample.keypoints[:, 0], row(3)["x"])
    np.testing.assert_array_equal(sample.keypoints[:, 1], row(3)["y"])
    assert sample.labelled.tolist() == labelled
    assert sample.box.tolist() == row(3)["box"]


@pytest.mark.parametrize("others", [None, []])
def test_nobody_else(others: list[Any] | None) -> None:
    """Shapes that may be stacked."""
    sample = decode_sample(row(0, others=others))
    assert sample.others.shape == (0, 14, 2)
    assert sample.others_labelled.shape == (0, 14)


def test_other_people(tmp_path: Path) -> None:
    """In their order, with their own labels, through the table and back."""
    others = [
        {"x": [float(i)] * 14, "y": [float(10 * i)] * 14, "labelled": [i == 1] * 14} for i in (1, 2)
    ]
    table = SampleTable(write_table(tmp_path / "a.parquet", [row(0, others=others)]))
    sample = decode_sample(next(iter_rows(table)))
    assert sample.others.shape == (2, 14, 2)
    assert sample.others[:, 0].tolist() == [[1, 10], [2, 20]]
    assert sample.others_labelled.all(axis=1).tolist() == [True, False]


def test_decoding_a_row_with_an_address(place: Place) -> None:
    """The picture is fetched from where the table says."""
    uri = place.put("pictures/im 1.png", picture(7))
    sample = decode_sample(row(0, image=None, uri=uri))
    np.testing.assert_array_equal(sample.image, decode_sample(row(0, image=picture(7))).image)


def test_an_exif_orientation_is_applied() -> None:
    """The picture is upright, as the labels are."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 0, 0)).save(data, "JPEG", exif=exif)
    image = decode_sample(row(0, image=data.getvalue())).image
    assert image.shape == (8, 6, 3)
    assert image[0, 0, 0] > 180 > 20 > image[0, 0, 2]


def test_a_picture_of_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its header."""
    monkeypatch.setattr(module, "MOST_PIXELS", 10)
    with pytest.raises(UsageError, match=r"sample figure-0\.png: .*more than 10 pixels"):
        decode_sample(row(0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": b""}, "its picture cannot be decoded"),
        ({"image": b"\x89PNG\r\n\x1a\n"}, "its picture cannot be decoded"),
        ({"image": picture(0)[:40]}, "its picture cannot be decoded"),
        ({"image": None, "uri": "/nowhere/im.png"}, "/nowhere/im.png: there is no such file"),
        ({"image": None, "uri": None}, "it has neither a picture nor its address"),
        ({"box": [0.0, 0.0, 0.0, 0.0]}, "a box needs finite x, y and positive w, h"),
        ({"box": [float("nan"), 0.0, 5.0, 5.0]}, "a box needs finite x, y and positive w, h"),
    ],
)
def test_samples_that_cannot_be_used(values: dict[str, Any], message: str) -> None:
    """The message names the sample."""
    with pytest.raises(UsageError) as refused:
        decode_sample(row(12, **values))
    assert str(refused.value).startswith("sample figure-12.png: ")
    assert message in str(refused.value)
