"""Places to test storage on: a local folder, the same as file://, and S3 (moto); tiny weights."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session
from s3fs import S3FileSystem

from pipeline.inputs import Input, Passed, named
from pipeline.lists import Boxes
from pipeline.storage import Output, StorageOptions

OPTIONS = StorageOptions()


@dataclass(frozen=True)
class Place:
    """A folder or a bucket: `uri` as a user writes it, `table_uri` as it stands in tables."""

    uri: str
    table_uri: str
    s3: Any = None

    def put(self, name: str, data: bytes) -> str:
        """Write an object without the code under test; returns its URI as it stands in tables."""
        if self.s3 is None:
            path = Path(self.table_uri, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            self.s3.put_object(Bucket=self.table_uri.removeprefix("s3://"), Key=name, Body=data)
        return f"{self.table_uri}/{name}"

    def names(self) -> list[str]:
        """Everything there is, listed without the code under test."""
        if self.s3 is None:
            found = (Path(root, f) for root, _, fs in os.walk(self.table_uri) for f in fs)
            return sorted(str(path.relative_to(self.table_uri)) for path in found)
        page = self.s3.list_objects_v2(Bucket=self.table_uri.removeprefix("s3://"))
        return sorted(entry["Key"] for entry in page.get("Contents", ()))

    def output(self, folder: str = "out") -> Output:
        """An output folder in this place."""
        return Output(f"{self.uri}/{folder}", OPTIONS)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    # Other test modules have servers of their own.
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A botocore client of the test server, which the environment points at, too."""
    for name, value in {
        "AWS_ENDPOINT_URL": moto_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return Session().create_client("s3")


@pytest.fixture(params=["path", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The same test on all kinds of storage."""
    if request.param == "s3":
        return bucket(request.getfixturevalue("s3"))
    prefix = "file://" if request.param == "file" else ""
    return Place(f"{prefix}{tmp_path}", str(tmp_path))


@pytest.fixture(params=["path", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where it does not matter how a local folder is written."""
    if request.param == "s3":
        return bucket(request.getfixturevalue("s3"))
    return Place(str(tmp_path), str(tmp_path))


@pytest.fixture
def s3_place(s3: Any) -> Place:
    """An empty bucket."""
    return bucket(s3)


def bucket(s3: Any) -> Place:
    """A new bucket as a place."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=name)
    return Place(f"s3://{name}", f"s3://{name}", s3)


def expand(
    names: Iterable[str], options: StorageOptions, boxes: Boxes | None, passed: Passed
) -> Iterator[Input]:
    """Every input that the names stand for, in order."""
    for name in names:
        for part in named(name, options, boxes, passed).parts:
            yield from part()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Weights of a tiny network."""
    # Few tests want them, and PyTorch takes long to import.
    from cpm_core.config import preset
    from cpm_core.info import WeightsInfo
    from cpm_core.model import Cpm
    from cpm_core.skeleton import load_skeleton
    from cpm_core.weights import save_weights

    config = preset("cpm-lite", input_size=64, stages=1)
    path = tmp_path / "good.safetensors"
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, load_skeleton("lsp14")))
    return path
