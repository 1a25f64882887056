"""Fetching: every failure gets its code, and transient ones are tried again."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
)

from pipeline import fetch as module
from pipeline import storage as storage_module
from pipeline.errors import InputError
from pipeline.fetch import fetch
from pipeline.inputs import Passed
from pipeline.storage import StorageOptions
from tests.pipeline.conftest import OPTIONS, Place, expand

MOST = 1 << 20


def code_of(uri: str, most: int = MOST) -> str:
    with pytest.raises(InputError) as caught:
        fetch(uri, OPTIONS, most)
    return caught.value.code


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 100])
def test_an_object_is_fetched_whole(place: Place, data: bytes) -> None:
    place.put("a#1.jpg", data)
    assert fetch(f"{place.uri}/a#1.jpg", OPTIONS, MOST) == data


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
def test_an_object_over_the_limit_is_refused(place: Place, size: int, fits: bool) -> None:
    place.put("a.jpg", bytes(size))
    if fits:
        assert len(fetch(f"{place.uri}/a.jpg", OPTIONS, 100)) == size
    else:
        assert code_of(f"{place.uri}/a.jpg", 100) == "too_large"


def test_a_missing_object_is_not_found(place: Place) -> None:
    assert code_of(f"{place.uri}/none.jpg") == "not_found"
    assert code_of(f"{place.uri}/no/such/folder/a.jpg") == "not_found"


def test_a_bucket_that_does_not_exist_is_not_found(s3: Any) -> None:
    assert code_of("s3://no-such-bucket-1/a.jpg") == "not_found"


def test_many_threads_fetch_at_once(place: Place) -> None:
    for i in range(20):
        place.put(f"{i}.jpg", bytes([i]) * 1000)
    barrier = threading.Barrier(8)

    def one(i: int) -> bytes:
        if i < 8:
            barrier.wait()
        return fetch(f"{place.uri}/{i}.jpg", OPTIONS, MOST)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(20))) == [bytes([i]) * 1000 for i in range(20)]


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    assert code_of(str(tmp_path)) == "unknown_format"
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert code_of(f"{tmp_path}/a.jpg/b.jpg") == "not_found"


@pytest.mark.parametrize("target", ["none.jpg", "link.jpg", "a.jpg/b.jpg"])
def test_a_link_that_leads_nowhere_is_not_found(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to(target)
    assert code_of(f"{tmp_path}/link.jpg") == "not_found"


def test_an_endless_file_is_not_read_to_its_end() -> None:
    assert code_of("/dev/zero", 1000) == "too_large"


@pytest.mark.parametrize(
    ("error", "code"),
    [(PermissionError(), "forbidden"), (OSError(errno.EIO, "disk is broken"), "storage")],
)
def test_a_disk_that_refuses(
    error: OSError, code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Root may read everything, so the refusal is played."""

    def refuse(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    assert code_of(f"{tmp_path}/a.jpg") == code


def test_a_file_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything; the case before plays it")
    path = tmp_path / "a.jpg"
    path.touch(mode=0)
    assert code_of(str(path)) == "forbidden"


class Storage:
    """Answers one after the other; the last one again and again. Notes what was asked."""

    def __init__(self, answers: list[bytes | Exception]) -> None:
        self.answers = answers
        self.asked: list[tuple[int, int]] = []

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    fake = Storage([b"x"])
    monkeypatch.setattr(module, "open_filesystem", lambda uri, options: fake)
    return fake


def answer(code: str) -> OSError:
    error = OSError(22, "The requested range is not satisfiable")
    error.__cause__ = ClientError({"Error": {"Code": code}}, "GetObject")
    return error


class HttpError(Exception):
    """As aiohttp's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}")
        self.status = status


@pytest.mark.parametrize(
    ("answers", "outcome", "asked"),
    [
        pytest.param([b"x"], b"x", 1, id="at once"),
        pytest.param([OSError("reset"), TimeoutError(), b"x"], b"x", 3, id="transient"),
        pytest.param([ConnectionClosedError(endpoint_url="u"), b"x"], b"x", 2, id="botocore's own"),
        pytest.param([EndpointConnectionError(endpoint_url="u"), b"x"], b"x", 2, id="no route"),
        pytest.param([HttpError(503), b"x"], b"x", 2, id="exceptions of other file systems"),
        pytest.param([OSError("reset")], "storage", 6, id="for ever"),
        pytest.param([HttpError(500)], "storage", 6, id="for ever, over HTTP"),
        pytest.param([OSError("cannot read IMG_416.jpg")], "storage", 6, id="416 in a name"),
        pytest.param([HttpError(429), HttpError(408), b"x"], b"x", 3, id="later, over HTTP"),
        pytest.param([HttpError(410)], "not_found", 1, id="gone, over HTTP"),
        pytest.param([HttpError(403)], "forbidden", 1, id="refused over HTTP"),
        pytest.param([HttpError(401)], "forbidden", 1, id="no credentials over HTTP"),
        pytest.param([HttpError(414)], "storage", 1, id="never, over HTTP"),
        pytest.param([FileNotFoundError()], "not_found", 1, id="missing"),
        pytest.param([PermissionError("denied")], "forbidden", 1, id="refused"),
        pytest.param([NoCredentialsError()], "forbidden", 1, id="no credentials"),
        pytest.param([answer("InvalidRange")], b"", 1, id="empty on S3"),
        pytest.param([answer("416")], b"", 1, id="empty on other S3"),
        pytest.param([HttpError(416)], b"", 1, id="empty over HTTP"),
        pytest.param([OSError("reset"), FileNotFoundError()], "not_found", 2, id="then missing"),
    ],
)
def test_the_answers_of_storage(
    storage: Storage,
    pauses: list[float],
    answers: list[bytes | Exception],
    outcome: bytes | str,
    asked: int,
) -> None:
    storage.answers = answers
    if isinstance(outcome, bytes):
        assert fetch("s3://b/a.jpg", OPTIONS, MOST) == outcome
    else:
        assert code_of("s3://b/a.jpg") == outcome
    assert len(storage.asked) == asked
    assert len(pauses) == asked - 1


def test_no_more_is_asked_for_than_is_allowed(storage: Storage) -> None:
    fetch("s3://b/a.jpg", OPTIONS, 1000)
    assert storage.asked == [(0, 1001)]


def test_pauses_grow(storage: Storage, pauses: list[float]) -> None:
    storage.answers = [OSError("slow down")]
    code_of("s3://b/a.jpg")
    bounds = [(0.125 * 2**i, 0.375 * 2**i) for i in range(5)]
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True))


@pytest.mark.parametrize("uri", ["nosuch://a/b.jpg", "github://a/b.jpg"])
def test_a_listed_uri_of_an_unknown_kind_is_a_row(uri: str) -> None:
    assert code_of(uri) == "storage"


def test_an_endpoint_that_is_not_there(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore tries again by itself; here once is enough."""
    monkeypatch.setitem(storage_module._S3_RETRIES, "total_max_attempts", 1)
    options = StorageOptions(endpoint="http://127.0.0.1:9", anonymous=True)
    with pytest.raises(InputError, match=r"failed 2 times, last with: .*127.0.0.1:9") as caught:
        fetch("s3://bucket/a.jpg", options, MOST)
    assert caught.value.code == "storage"


def test_pictures_on_the_web(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"picture")
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        root = f"http://127.0.0.1:{server.server_port}"
        try:
            [item] = expand([f"{root}/a%20b.jpg?token=x"], OPTIONS, None, Passed())
            assert item.uri == f"{root}/a%20b.jpg?token=x"
            assert fetch(item.uri, OPTIONS, MOST) == b"picture"
            assert code_of(item.uri, 3) == "too_large"
            assert code_of(f"{root}/none.jpg") == "not_found"
        finally:
            server.shutdown()
            thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass
