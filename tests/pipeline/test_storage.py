"""URIs, listings, and outputs in which a file can be created only once: on disk and on S3."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError

from pipeline import local_files as module
from pipeline import storage as module_storage
from pipeline.errors import PosemillError, UsageError
from pipeline.storage import (
    Output,
    StorageOptions,
    check_endpoint,
    open_filesystem,
    path_of,
    protocol_of,
    until_whole,
    uri_of,
)
from tests.pipeline.conftest import OPTIONS, Place

REPOSITORY = Path(__file__).resolve().parents[2]

ODD_NAMES = [
    "with space.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "no#1.jpg",
    "who?.jpg",
    "a+b&c=d.jpg",
    "ümläut-日本.jpg",
    "[brackets]*.jpg",
    "a:b::c.jpg",
]


@pytest.mark.parametrize(
    ("uri", "protocol", "path", "in_tables"),
    [
        ("/a/b.jpg", "file", "/a/b.jpg", "/a/b.jpg"),
        ("/a/../b.jpg", "file", "/b.jpg", "/b.jpg"),
        ("file:///a/b c.jpg", "file", "/a/b c.jpg", "/a/b c.jpg"),
        ("file:///a/b%20c.jpg", "file", "/a/b%20c.jpg", "/a/b%20c.jpg"),
        ("b.jpg", "file", os.path.abspath("b.jpg"), os.path.abspath("b.jpg")),
        ("s3://bucket/a/b.jpg", "s3", "bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("s3a://bucket/a/b.jpg", "s3", "bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("s3n://bucket/a/b.jpg", "s3", "bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("s3://bucket/a//../b#?.jpg", "s3", "bucket/a//../b#?.jpg", "s3://bucket/a//../b#?.jpg"),
        ("s3://bucket/", "s3", "bucket", "s3://bucket"),
        ("https://h/a.jpg?x=1", "https", "https://h/a.jpg?x=1", "https://h/a.jpg?x=1"),
        ("memory://a/b.jpg", "memory", "/a/b.jpg", "memory:///a/b.jpg"),
    ],
)
def test_a_uri_has_one_name_in_tables(uri: str, protocol: str, path: str, in_tables: str) -> None:
    assert (protocol_of(uri), path_of(uri)) == (protocol, path)
    assert uri_of(protocol, path) == in_tables


@pytest.mark.parametrize("uri", ["nosuch://a/b", "github://a/b", "zip://a.zip"])
def test_a_scheme_that_cannot_be_read_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        open_filesystem(uri, OPTIONS)


def test_options_reach_the_s3_file_system() -> None:
    options = StorageOptions("http://127.0.0.1:9", anonymous=True, requester_pays=True)
    assert options.for_protocol("s3") == {
        "anon": True,
        "use_listings_cache": False,
        "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 8}},
        "endpoint_url": "http://127.0.0.1:9",
        "requester_pays": True,
    }
    assert options.for_protocol("file") == {}


def test_a_file_is_created_once(place: Place) -> None:
    output = place.output()
    assert output.create("a/b", b"first")
    assert not output.create("a/b", b"second")
    assert output.read("a/b") == b"first"


def test_of_two_that_race_to_create_a_file_one_wins(place: Place) -> None:
    output, rounds = place.output(), 12
    barrier = threading.Barrier(2)
    wins: list[tuple[int, int]] = []

    def race(me: int) -> None:
        for i in range(rounds):
            barrier.wait()
            if output.create(f"part-{i}", bytes([me])):
                wins.append((i, me))

    threads = [threading.Thread(target=race, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for i, _ in wins) == list(range(rounds))
    assert all(output.read(f"part-{i}") == bytes([me]) for i, me in wins)
    assert place.names() == sorted(f"out/part-{i}" for i in range(rounds))


def test_files_are_replaced_read_removed_and_listed(place: Place) -> None:
    output = place.output()
    assert output.read("x/a") is None
    assert output.list("x") == []
    output.replace("x/b", b"1")
    output.replace("x/b", b"2")
    output.replace("x/a/c", b"3")
    output.replace("xy/other", b"4")
    assert output.read("x/b") == b"2"
    assert output.list("x") == ["a/c", "b"]
    output.remove("x/b")
    output.remove("x/b")
    assert output.read("x/b") is None
    assert place.names() == ["out/x/a/c", "out/xy/other"]


def test_an_output_may_have_an_odd_name(place: Place) -> None:
    for name in ("with space", "100%", "no#1", "who?", "ümlaut"):
        output = place.output(name)
        output.replace("x/a", b"1")
        assert output.create("x/b", b"2")
        assert (output.uri, output.list("x")) == (f"{place.table_uri}/{name}", ["a", "b"])


@pytest.mark.parametrize("uri", ["gs://b/x", "memory://x", "https://h/x", "abfs://c/x"])
def test_an_output_without_conditional_creation_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="only local folders and s3:// are supported"):
        Output(uri, OPTIONS)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PosemillError, match=r"cannot write .*/out/part: .*No space left"):
        Output(f"{tmp_path}/out", OPTIONS).create("part", b"x")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("moment", ["fsync", "link"])
def test_a_writer_that_is_killed_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """kill -9 in the middle of a file: no other one is there, not even under a temporary name."""
    script = (
        "import os, signal, sys\n"
        "from pipeline.storage import Output, StorageOptions\n"
        f"os.{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Output(sys.argv[1], StorageOptions()).create('part', b'x')\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, f"{tmp_path}/out"], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "out").iterdir()) == []


def test_storage_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS: files are written under a temporary name, which goes."""
    monkeypatch.setattr(module, "_open_nameless", lambda _: None)
    output = Output(f"{tmp_path}/out", OPTIONS)
    assert output.create("a", b"1")
    assert not output.create("a", b"2")
    output.replace("b", b"3")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "a": b"1",
        "b": b"3",
    }


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PosemillError, match=r"cannot write .*/out/a"):
        Output(f"{tmp_path}/out", OPTIONS).create("a", b"x")


def test_a_bucket_that_does_not_exist_is_named(s3: Any) -> None:
    with pytest.raises(PosemillError, match=r"cannot write s3://no-such-bucket-1/a: .*bucket"):
        Output("s3://no-such-bucket-1", OPTIONS).create("a", b"x")


def answer(code: str) -> OSError:
    """What s3fs makes of an error code that it has no exception of its own for."""
    error = OSError(code)
    error.__cause__ = ClientError({"Error": {"Code": code}}, "PutObject")
    return error


@pytest.mark.parametrize(
    ("answers", "created"),
    [
        pytest.param([None], True, id="created"),
        pytest.param([FileExistsError()], False, id="there already (AWS)"),
        pytest.param([answer("PreconditionFailed")], False, id="there already (MinIO and others)"),
        pytest.param(
            [answer("ConditionalRequestConflict"), None], True, id="conflict, then created"
        ),
        pytest.param(
            [answer("ConditionalRequestConflict"), FileExistsError()], False, id="conflict, lost"
        ),
        pytest.param([answer("SlowDown")], None, id="another failure"),
        pytest.param([answer("409")] * 9, None, id="conflicts without end"),
    ],
)
def test_the_answers_of_s3_to_a_creation(
    answers: list[Exception | None],
    created: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Output("s3://bucket/out", OPTIONS)
    monkeypatch.setattr("time.sleep", lambda _: None)

    class S3:
        def pipe_file(self, path: str, data: bytes, mode: str, chunksize: int) -> None:
            if (error := answers.pop(0)) is not None:
                raise error

    output.fs = S3()
    if created is None:
        with pytest.raises(PosemillError, match="cannot write"):
            output.create("a", b"x")
    else:
        assert output.create("a", b"x") is created


@pytest.mark.parametrize(("broken", "is_read"), [(0, True), (4, True), (5, False)])
def test_a_body_that_breaks_off_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, broken: int, is_read: bool
) -> None:
    """It is no OSError, so it ended the thread of the lock's heartbeat, and with it the run."""
    answers = [ClientPayloadError("not enough data")] * broken
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)

    def read() -> str:
        if answers:
            raise answers.pop()
        return "whole"

    if is_read:
        assert until_whole(read) == "whole"
    else:
        with pytest.raises(OSError, match=r"broke off 5 times, last with: .*not enough data"):
            until_whole(read)
    assert len(pauses) == broken
    assert all(pause <= 0.3 * 2**i for i, pause in enumerate(pauses))


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_endpoint_that_answers_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_endpoint_where_nothing_listens_is_told_in_seconds(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module_storage.time, "sleep", pauses.append)
    with pytest.raises(PosemillError, match=r"cannot reach .*127\.0\.0\.1.*refused; check"):
        check_endpoint(f"http://127.0.0.1:{free_port}")
    assert pauses == [0, 1, 2]


@pytest.mark.parametrize(
    "url", ["localhost:9000", "ftp://host:21", "http://", "http://h:port", "x"]
)
def test_what_is_no_endpoint_is_told(url: str) -> None:
    with pytest.raises(UsageError, match="give one as http://host:9000"):
        check_endpoint(url)


def test_behind_a_proxy_nothing_is_tried(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    check_endpoint(f"http://127.0.0.1:{free_port}")
