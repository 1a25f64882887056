"""What `--input` may name, and what comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import UsageError
from pipeline.inputs import Input, Passed, Selection, kind_of
from pipeline.lists import boxes_by_uri, read_table
from pipeline.storage import StorageOptions
from pipeline.units import GivenBox
from tests.pipeline.conftest import OPTIONS, Place, expand


def expanded(*names: str) -> list[Input]:
    return list(expand(names, OPTIONS, None, Passed()))


def uris(*names: str) -> list[str]:
    return [item.uri for item in expanded(*names)]


@pytest.fixture
def photos(place: Place) -> Place:
    """A place with a small tree in it."""
    for name in ["p/b.jpg", "p/a.PNG", "p/sub/c.mp4", "p/notes.docx", "p/sub/d.jpeg", "other.jpg"]:
        place.put(name, b"1234")
    return place


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["p/b.jpg"], ["p/b.jpg"], id="picture"),
        pytest.param(["p/notes.docx"], ["p/notes.docx"], id="any file that is named"),
        pytest.param(["p"], ["p/a.PNG", "p/b.jpg", "p/sub/c.mp4", "p/sub/d.jpeg"], id="folder"),
        pytest.param(["p/"], ["p/a.PNG", "p/b.jpg", "p/sub/c.mp4", "p/sub/d.jpeg"], id="slash"),
        pytest.param(["p/*.jpg"], ["p/b.jpg"], id="glob"),
        pytest.param(["p/**/*.jp*g"], ["p/b.jpg", "p/sub/d.jpeg"], id="glob over folders"),
        pytest.param(["p/[ab].*"], ["p/a.PNG", "p/b.jpg"], id="glob with a class"),
        pytest.param(
            ["other.jpg", "p/sub"], ["other.jpg", "p/sub/c.mp4", "p/sub/d.jpeg"], id="two"
        ),
        pytest.param(
            ["p/b.jpg", "p/*.jpg"], ["p/b.jpg", "p/b.jpg"], id="twice: planning sorts out"
        ),
    ],
)
def test_an_input_names_files(photos: Place, names: list[str], expected: list[str]) -> None:
    found = uris(*(f"{photos.uri}/{name}" for name in names))
    assert found == [f"{photos.table_uri}/{name}" for name in expected]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param("h/*.jpg", ["h/a.jpg"], id="hidden file"),
        pytest.param("h/**/*.jpg", ["h/a.jpg"], id="hidden folder"),
        pytest.param("h/*/*.jpg", [], id="hidden folder at a star"),
        pytest.param("h/.*.jpg", ["h/._a.jpg"], id="the dot is named"),
        pytest.param("h/.c*/*.jpg", ["h/.cache/b.jpg"], id="the folder's dot is named"),
        pytest.param("h/.cache/*.jpg", ["h/.cache/b.jpg"], id="the folder is named"),
        pytest.param("h/**/.cache/*.jpg", ["h/.cache/b.jpg"], id="the folder is named on the way"),
        pytest.param("h/[.]*.jpg", [], id="a class does not name it"),
    ],
)
def test_a_glob_passes_over_what_is_hidden(place: Place, pattern: str, expected: list[str]) -> None:
    """macOS leaves a `._a.jpg` beside every `a.jpg`, which was a failed row each."""
    for name in ["h/a.jpg", "h/._a.jpg", "h/.cache/b.jpg", "h/.cache/._b.jpg"]:
        place.put(name, b"x")
    if expected:
        assert uris(f"{place.uri}/{pattern}") == [f"{place.table_uri}/{n}" for n in expected]
    else:
        with pytest.raises(UsageError, match="no file matches"):
            uris(f"{place.uri}/{pattern}")


def test_files_come_with_what_the_listing_says(photos: Place) -> None:
    [item] = expanded(f"{photos.uri}/p/b.jpg")
    assert (item.kind, item.size, item.boxes) == ("image", 4, None)
    assert item.mtime is not None
    assert (item.etag is not None) == (photos.s3 is not None)


def test_other_files_in_folders_are_passed_over_and_counted(photos: Place) -> None:
    passed = Passed()
    list(expand([f"{photos.uri}/p"], OPTIONS, None, passed))
    assert (passed.count, passed.examples) == (1, (f"{photos.table_uri}/p/notes.docx",))


def test_examples_of_files_passed_over_are_three() -> None:
    passed = Passed()
    for i in range(5):
        passed.note(str(i))
    assert (passed.count, passed.examples) == (5, ("0", "1", "2"))


@pytest.mark.parametrize("name", ["/a\x1b[2J.txt", "/caf\udce9.txt", "/a\nb.txt"])
def test_examples_can_be_printed(name: str) -> None:
    passed = Passed()
    passed.note(name)
    assert passed.examples == (ascii(name),)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("/a.jpg", "image"),
        ("/a.MP4", "video"),
        ("s3://b/a.webm", "video"),
        ("/a.mp4.jpg", "image"),
        ("/noname", "image"),
        ("/a.ts", "video"),
        ("https://h/a.mp4?token=1.jpg", "video"),
        ("s3://b/a?.mp4", "video"),
    ],
)
def test_the_kind_is_that_of_the_name(uri: str, kind: str) -> None:
    assert kind_of(uri) == kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jpg", "no such input: .*nothing.jpg"),
        ("other.jpg/x.jpg", "no such input"),
        ("p/*.gif", r"no file matches .*\*\.gif"),
        ("p/su*", r"no file matches .*su\*"),
    ],
)
def test_a_missing_input_is_refused(photos: Place, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        uris(f"{photos.uri}/{name}")


def test_an_empty_folder_has_no_inputs(tmp_path: Path) -> None:
    assert uris(str(tmp_path)) == []


def test_storage_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    options = StorageOptions(endpoint="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="cannot list 's3://b/x': Unable to locate credentials"):
        list(expand(["s3://b/x"], options, None, Passed()))


def as_text(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(row["uri"] for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    return pd.DataFrame(rows).to_csv(index=False).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    return pd.DataFrame(rows).to_parquet(index=False)


LISTS = pytest.mark.parametrize(
    ("suffix", "written"), [(".txt", as_text), (".csv", as_csv), (".parquet", as_parquet)]
)
Written = Callable[[list[dict[str, Any]]], bytes]


@LISTS
def test_a_list_names_inputs(place: Place, suffix: str, written: Written) -> None:
    """Relative ones are relative to the list."""
    rows = [
        "a.jpg",
        "sub/b.mp4",
        "../c.jpg",
        "/abs/d.jpg",
        "file:///abs/with space.jpg",
        "s3a://b/e.jpg",
        "https://h/f.jpg?x=1",
        "nosuch://x/g.jpg",
        "001",
    ]
    name = place.put(f"lists/l{suffix}", written([{"uri": uri} for uri in rows]))
    assert uris(name.replace(place.table_uri, place.uri)) == [
        f"{place.table_uri}/lists/a.jpg",
        f"{place.table_uri}/lists/sub/b.mp4",
        f"{place.table_uri}/c.jpg",
        "/abs/d.jpg",
        "/abs/with space.jpg",
        "s3://b/e.jpg",
        "https://h/f.jpg?x=1",
        "nosuch://x/g.jpg",
        f"{place.table_uri}/lists/001",
    ]


def test_a_text_list_may_have_comments_and_windows_habits(tmp_path: Path) -> None:
    text = "\ufeffa.jpg\r\n\r\n# comment\r\n  b.jpg  \r\n"
    (tmp_path / "l.txt").write_bytes(text.encode())
    assert uris(f"{tmp_path}/l.txt") == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]


BOXES: list[dict[str, Any]] = [
    {"uri": "a.jpg", "x": 1, "y": 2, "w": 3, "h": 4, "score": 0.5},
    {"uri": "b.jpg", "x": None, "y": None, "w": None, "h": None, "score": None},
    {"uri": "a.jpg", "x": 5, "y": 6, "w": 7, "h": 8, "score": None},
]


@pytest.mark.parametrize(("suffix", "written"), [(".csv", as_csv), (".parquet", as_parquet)])
def test_box_columns_are_merged_by_uri(place: Place, suffix: str, written: Written) -> None:
    place.put(f"l{suffix}", written(BOXES))
    assert [(item.uri, item.boxes) for item in expanded(f"{place.uri}/l{suffix}")] == [
        (f"{place.table_uri}/a.jpg", (GivenBox(1, 2, 3, 4, 0.5), GivenBox(5, 6, 7, 8, 1.0))),
        (f"{place.table_uri}/b.jpg", ()),
    ]


def test_boxes_of_frames_keep_their_frame(tmp_path: Path) -> None:
    text = "uri,x,y,w,h,frame_index\na.mp4,1,2,3,4,7\na.mp4,1,2,3,4,\n"
    (tmp_path / "l.csv").write_text(text)
    [item] = expanded(f"{tmp_path}/l.csv")
    assert item.boxes is not None
    assert [box.frame_index for box in item.boxes] == [7, None]


def test_many_boxes_of_one_video_are_read_in_linear_time(tmp_path: Path) -> None:
    """It took minutes when every box copied those before."""
    frame = pd.DataFrame({"frame_index": range(50_000)}).assign(uri="/v.mp4", x=1, y=1, w=1, h=1)
    [boxes] = boxes_by_uri(frame, str(tmp_path)).values()
    assert len(boxes) == 50_000


def test_a_boxes_table_wins_and_says_where_nobody_is(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "boxes.csv").write_bytes(as_csv(BOXES[:1]))
    boxes = boxes_by_uri(read_table(f"{tmp_path}/boxes.csv", OPTIONS), f"{tmp_path}/boxes.csv")
    items = expand([f"{tmp_path}/a.jpg", f"file://{tmp_path}/b.jpg"], OPTIONS, boxes, Passed())
    assert [item.boxes for item in items] == [(GivenBox(1, 2, 3, 4, 0.5),), ()]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.csv", b"file,x\na.jpg,1\n", "has no column 'uri'; it has file, x"),
        ("l.csv", b"", "cannot read table"),
        ("l.parquet", b"not parquet", "cannot read table"),
        ("l.csv", b"uri,n\na.jpg,1\n,2\n", "data row 2 has no uri"),
        ("l.csv", b"uri,x,y,w,h\na.jpg,1,2,3,wide\n", r"l.csv', 'a.jpg': .*wide"),
        ("l.csv", b"uri,x,y,w,h,frame_index\na.mp4,1,2,3,4,first\n", "'a.mp4': .*first"),
        ("l.csv", b"uri\na,b.jpg\n", "more values than the 1 columns .* double quotes"),
        ("l.csv", b"uri,n\na,b.jpg,1\nc.jpg,1\n", "more values than the 2 columns"),
        ("l.csv", b"uri\na.jpg\nb,c.jpg\n", r"Expected 1 fields in line 3, saw 2$"),
        ("l.txt", b"caf\xe9.jpg\n", "is not UTF-8"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        uris(f"{tmp_path}/{name}")


@pytest.mark.parametrize("frame", ["-1", "2.7", "inf", "2147483648", "1e20"])
def test_a_frame_that_no_table_can_name_is_refused(tmp_path: Path, frame: str) -> None:
    """The last two ended the run with a traceback when the plan was written."""
    text = f"uri,x,y,w,h,frame_index\nb.mp4,1,2,3,4,2147483647\na.mp4,1,2,3,4,{frame}\n"
    (tmp_path / "l.csv").write_text(text)
    message = r"l.csv', 'a.mp4': frame_index \S+ is not a whole number from 0 to 2147483647"
    with pytest.raises(UsageError, match=message):
        uris(f"{tmp_path}/l.csv")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("uri, x, y, w, h\na.jpg, 1,2,3,4\n", id="spaces in the head"),
        pytest.param("x, y ,w,h, uri\n1,2,3,4,a.jpg\n", id="the uri after a space"),
        pytest.param("uri,x,y,w,h\na.jpg,1,2,3,4,\n", id="a comma at the end"),
        pytest.param("uri,x,y,w,h,\na.jpg,1,2,3,4,\n", id="also of the head"),
        pytest.param("uri,x,y,w,h,width,height\na.jpg,1,2,3,4,9,9\n", id="and the picture's size"),
    ],
)
def test_boxes_are_read_from_what_people_write(tmp_path: Path, text: str) -> None:
    """The first two gave no boxes without a word, a comma made the first box value the uri."""
    (tmp_path / "l.csv").write_text(text)
    [item] = expanded(f"{tmp_path}/l.csv")
    assert (item.uri, item.boxes) == (f"{tmp_path}/a.jpg", (GivenBox(1, 2, 3, 4),))


def test_numbers_after_a_space_are_names(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("n, uri\n1,001\n")
    assert uris(f"{tmp_path}/l.csv") == [f"{tmp_path}/001"]


@pytest.mark.parametrize("written", [as_csv, as_parquet])
@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (["x", "y", "width", "height"], "'x', 'y', 'width', 'height'"),
        (["X", "Y", "W", "H"], "'X', 'Y', 'W', 'H'"),
        (["x", "y", "w", "n"], "'x', 'y', 'w'"),
        (["W"], "'W'"),
    ],
)
def test_a_list_with_half_of_a_box_is_refused(
    tmp_path: Path, written: Written, columns: list[str], named: str
) -> None:
    """Its boxes were passed over without a word."""
    name = tmp_path / f"l.{written.__name__.removeprefix('as_')}"
    name.write_bytes(written([{"uri": "a.jpg", **dict.fromkeys(columns, 1)}]))
    with pytest.raises(UsageError, match=f"has the columns {named}; a box is x, y, w, h"):
        uris(str(name))


def test_the_size_of_a_picture_is_no_box(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("uri,width,height\na.jpg,640,480\n")
    [item] = expanded(f"{tmp_path}/l.csv")
    assert item.boxes is None


def test_a_boxes_table_without_box_columns_is_refused() -> None:
    with pytest.raises(UsageError, match="lacks the box columns w, h; it has uri, x, y"):
        boxes_by_uri(pd.DataFrame({"uri": ["a"], "x": [1], "y": [1]}), "t.csv")


def test_a_name_that_is_not_utf8_gets_a_substitute(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"x")
    [item] = expanded(str(tmp_path))
    assert (item.uri, item.bad_name) == (f"{tmp_path}/caf\\udce9.jpg", True)


@pytest.mark.parametrize(
    ("selection", "uri", "wanted"),
    [
        (Selection(), "/a.jpg", True),
        (Selection(include=("*/cam1/*",)), "s3://b/cam1/a.jpg", True),
        (Selection(include=("*/cam1/*",)), "s3://b/cam2/a.jpg", False),
        (Selection(include=("*/cam1/*", "*/cam2/*")), "s3://b/cam2/a.jpg", True),
        (Selection(exclude=("*.png",)), "/a.png", False),
        (Selection(exclude=("*.png",)), "/a.PNG", True),
        (Selection(include=("*a*",), exclude=("*b*",)), "/ab.jpg", False),
        (Selection(sample=1.0), "/a.jpg", True),
    ],
)
def test_a_selection_goes_by_the_uri(selection: Selection, uri: str, wanted: bool) -> None:
    assert selection.wants(uri) is wanted


def test_a_sample_is_about_the_share_and_the_same_every_time() -> None:
    names = [f"s3://bucket/{i}.jpg" for i in range(4000)]
    tenth = {name for name in names if Selection(sample=0.1).wants(name)}
    third = {name for name in names if Selection(sample=0.3).wants(name)}
    assert 340 < len(tenth) < 460
    assert tenth < third
    # Written down: another machine, or a later version, must choose the same ones.
    assert sorted(tenth)[:3] == [f"s3://bucket/{i}.jpg" for i in (1001, 1004, 1029)]
