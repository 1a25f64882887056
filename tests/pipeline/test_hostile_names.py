"""Odd names of files and objects: found, read, kept as they are in tables, leading nowhere."""

from __future__ import annotations

import logging
import os
import pickle
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpm_core.locators import LocatorSpec
from pipeline.config import AnnotateSettings
from pipeline.decoder import _answer
from pipeline.errors import InputError, PosemillError, UsageError, redact
from pipeline.fetch import fetch
from pipeline.guard import Decoder
from pipeline.inputs import Input, Passed
from pipeline.messages import Failure
from pipeline.rows import UnitRows, crops_table
from pipeline.units import GivenBox, Unit
from pipeline.worker import UnitWorker
from tests.pipeline.conftest import OPTIONS, Place, expand
from tests.pipeline.test_pictures import encoded
from tests.pipeline.test_plan import decoder_config
from tests.pipeline.videos import write_video

MOST = 1 << 20
ODD = [
    "with space.jpg",
    " leading and trailing .jpg",
    "100%.jpg",
    "a%2Fb%00.jpg",
    "a#1.jpg",
    "a?x=1&y=2.jpg",
    "a+b=c;d,e@f$g.jpg",
    "'single' \"double\" `back`.jpg",
    "$(touch pwned).jpg",
    "-rf.jpg",
    "back\\slash.jpg",
    "a:b.jpg",
    "http:x.jpg",
    "new\nline.jpg",
    "tab\t.jpg",
    "escape\x1b[2J.jpg",
    "bell\x07.jpg",
    unicodedata.normalize("NFC", "Ångström-é.jpg"),
    unicodedata.normalize("NFD", "Ångström-é.jpg"),
    "写真-📷.jpg",
    "right-to-left-\u202egpj.exe.jpg",
    "zero\u200bwidth.jpg",
    "brackets[1]{2}(3).jpg",
    "stars*.jpg",
    "NUL.jpg",
    "a..b.jpg",
    "x" * 251 + ".jpg",
]
KEYS = [
    "//double.jpg",
    "a//b.jpg",
    "k" * 1020 + ".jpg",
    "é" * 510 + ".jpg",
    "d/" * 509 + "a.jpg",
]
"""Of objects alone: no local file has such a name."""

DOTTED = ["a/../b.jpg", "../../etc/passwd.jpg", "a/./b.jpg", "ends/..jpg", ".hidden/a.jpg"]
"""A folder's listing passes over hidden ones; a list may name them."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(decoder_config()) as decoder:
        yield decoder


def read_back(decoder: Decoder, place: Place, item: Input) -> str:
    """The URI as it comes out of the rows of a shard, after the picture was read by it."""
    local = place.s3 is None
    unit = Unit(0, 0, item.uri, item.kind)
    rows = UnitRows(unit)
    for frame, crops in decoder.frames(unit, None if local else fetch(item.uri, OPTIONS, MOST)):
        rows.add_frame(frame, crops)
    table = pickle.loads(pickle.dumps(crops_table([rows])))
    assert table["status"].to_pylist() == ["ok"]
    return str(table["uri"][0].as_py())


def test_odd_names_are_found_and_read(place: Place, decoder: Decoder) -> None:
    # moto knows no path for a key with a line break.
    names = [name for name in ODD if place.s3 is None or "\n" not in name]
    for name in names:
        place.put(f"in/{name}", encoded())
    before = place.names()
    found = list(expand([f"{place.uri}/in"], OPTIONS, None, Passed()))
    assert sorted(item.uri for item in found) == sorted(f"{place.table_uri}/in/{n}" for n in names)
    assert [read_back(decoder, place, item) for item in found] == [item.uri for item in found]
    assert place.names() == before


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:20])
def test_odd_keys_are_found_and_read(s3_place: Place, decoder: Decoder, key: str) -> None:
    s3_place.put(key, encoded())
    [item] = expand([s3_place.uri], OPTIONS, None, Passed())
    assert item.uri == f"{s3_place.table_uri}/{key}"
    assert read_back(decoder, s3_place, item) == item.uri


@pytest.mark.parametrize("key", DOTTED)
def test_a_listed_key_is_taken_as_it_is(s3_place: Place, decoder: Decoder, key: str) -> None:
    """`..` in it is a name, no way out of the bucket."""
    s3_place.put(key, encoded())
    s3_place.put("lists/l.txt", f"{s3_place.uri}/{key}\n".encode())
    [item] = expand([f"{s3_place.uri}/lists/l.txt"], OPTIONS, None, Passed())
    assert read_back(decoder, s3_place, item) == f"{s3_place.table_uri}/{key}"


def test_the_same_name_in_two_normal_forms_is_two_files(place: Place) -> None:
    forms = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    for form in forms:
        place.put(f"in/{form}", encoded())
    found = list(expand([f"{place.uri}/in"], OPTIONS, None, Passed()))
    assert sorted(item.uri for item in found) == sorted(f"{place.table_uri}/in/{f}" for f in forms)


def test_videos_with_odd_names(tmp_path: Path, decoder: Decoder) -> None:
    whole = write_video(tmp_path / "v.mp4", frames=2).read_bytes()
    for name in ODD:
        path = tmp_path / name.replace(".jpg", ".mp4")
        path.write_bytes(whole)
        assert [r.frames for r in decoder.ranges(str(path), 9)] == [2]
    assert not (tmp_path / "pwned").exists()


def test_a_path_as_long_as_the_system_allows(tmp_path: Path, decoder: Decoder) -> None:
    folder = str(tmp_path)
    while len(folder) + 202 < 4000:
        folder += "/" + "d" * 200
    os.makedirs(folder)
    path = f"{folder}/a.jpg"
    Path(path).write_bytes(encoded())
    [item] = expand([str(tmp_path)], OPTIONS, None, Passed())
    assert item.uri == path
    assert read_back(decoder, Place("", ""), item) == path


@pytest.mark.parametrize("uri", ["/" + "x" * 300, "/" + "x/" * 3000 + "a.jpg", "/a\0b.jpg"])
def test_names_that_no_file_can_have(uri: str, decoder: Decoder) -> None:
    for kind in ("image", "video"):
        with pytest.raises(InputError) as caught:
            list(decoder.frames(Unit(0, 0, uri, kind, start_pts=0, start_frame=0), None))
        assert caught.value.code in ("storage", "not_found", "corrupt")


FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-300, -1e300, 1e308, 3e38, float("nan"), float("inf"), 2.0**53]


def test_any_box_is_used_or_left_out_with_a_reason() -> None:
    """All numbers at all places, the score and the frame among them."""
    picture = encoded()
    worker = UnitWorker(decoder_config(people=LocatorSpec("boxes")))
    boxes = [
        GivenBox(*(value if i == at else 5.0 for i in range(5)))
        for value in FLOATS
        for at in range(5)
    ]
    boxes += [GivenBox(x, y, x, y, 1.0) for x in FLOATS for y in FLOATS]
    boxes += [GivenBox(40, 30, -30, -20), GivenBox(5, 5, 9, 9, 1.0, -1), GivenBox(5, 5, 9, 9, 1, 9)]
    for box in boxes:
        unit = Unit(0, 0, "s3://b/a.png", "image", boxes=(box,))
        [(frame, crops)] = worker.frames(unit, picture)
        assert len(frame.boxes) == len(crops)
        assert (len(frame.boxes) == 1) == (frame.box_error is None)
        rows = UnitRows(unit)
        rows.add_frame(frame, crops.tobytes())
        assert crops_table([rows]).num_rows == 1


SECRET = "planted-password"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot list 'http://u:PW@h/a@b.jpg': no", "cannot list 'http://***@h/a@b.jpg': no"),
        ("https://PW@h:9/a", "https://***@h:9/a"),
        ("http://u:p@PW@h/", "http://***@h/"),
        ("s3://b/a@b.jpg http://h/x", "s3://b/a@b.jpg http://h/x"),
        ("/a/b@c.jpg: mail u@h", "/a/b@c.jpg: mail u@h"),
        ("https://h/a?X-Amz-Signature=PW&x=1", "https://h/a?X-Amz-Signature=***&x=1"),
        ("https://h/a?x=1&X-Amz-Security-Token=PW'", "https://h/a?x=1&X-Amz-Security-Token=***'"),
        (
            "https://h/a?AWSAccessKeyId=PW&Signature=PW",
            "https://h/a?AWSAccessKeyId=***&Signature=***",
        ),
        ("https://h/a?sv=1&sig=PW%3D", "https://h/a?sv=1&sig=***"),
    ],
)
def test_messages_hide_the_secrets_of_urls(text: str, expected: str) -> None:
    text = text.replace("PW", SECRET)
    assert redact(text) == expected
    for error in (PosemillError(text), UsageError(text), InputError("storage", text)):
        assert str(error) == expected


def test_settings_that_are_refused_hide_the_secrets_of_urls() -> None:
    with pytest.raises(UsageError) as caught:
        AnnotateSettings.build(
            {"input": ["a"], "output": "o", "partition": f"http://u:{SECRET}@h/"}
        )
    assert "--partition 'http://***@h/'" in str(caught.value)


def test_a_bug_on_a_url_with_a_password_hides_it(caplog: pytest.LogCaptureFixture) -> None:
    """The log and the row say what went wrong."""

    class Broken(UnitWorker):
        def __init__(self) -> None:
            pass

        def frames(self, unit: Unit, data: bytes | None) -> Iterator[object]:  # type: ignore[override]
            raise RuntimeError(f"a surprise with {unit.uri}")

    unit = Unit(0, 0, f"http://u:{SECRET}@h/a.jpg", "image")
    with caplog.at_level(logging.ERROR, "posemill"):
        [(failure, _)] = _answer(Broken(), unit, None)
    assert isinstance(failure, Failure)
    row = UnitRows(unit)
    row.add_failure(InputError(failure.code, failure.message))
    assert "a surprise with http://***@h/a.jpg" in caplog.text
    assert "Traceback" in caplog.text
    assert "a surprise" in str(row.rows[0]["error_message"])
    assert SECRET not in caplog.text + str(row.rows[0]["error_message"])


@pytest.mark.parametrize("listed", [True, False])
def test_a_url_with_a_password_is_no_input(listed: bool, tmp_path: Path) -> None:
    url = f"http://u:{SECRET}@127.0.0.1:9/a.jpg"
    (tmp_path / "l.txt").write_text(url)
    with pytest.raises(UsageError, match="password"):
        list(expand([f"{tmp_path}/l.txt" if listed else url], OPTIONS, None, Passed()))
