"""Secrets stay where they are: planted ones are looked for in all that a run leaves behind."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from botocore.session import Session
from s3fs import S3FileSystem

from jobs.cli import main
from pipeline.annotate import Run
from pipeline.config import AnnotateSettings
from pipeline.progress import Reporter
from tests.e2e.conftest import job_environment, run_command

PASSWORD = "planted-password-0005"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID0001",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key-0002",
    "AWS_SESSION_TOKEN": "planted-session-token-0003",
    "RAY_AUTH_TOKEN": "planted-ray-auth-token-0004",
}


@pytest.fixture
def scene(s3_server: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder for all that runs write, Ray's own files included, and their environment.

    Its path is short: Ray puts sockets into it.
    """
    with tempfile.TemporaryDirectory(prefix="pm-") as folder:
        places = {"RAY_TMPDIR": folder, "TMPDIR": folder, "AWS_MAX_ATTEMPTS": "1"}
        server = {"AWS_ENDPOINT_URL": s3_server, "AWS_DEFAULT_REGION": "us-east-1"}
        yield (
            Path(folder),
            job_environment() | server | SECRETS | places | {"RAY_AUTH_MODE": "token"},
        )


def put_photos(server: str, photos: Path) -> str:
    """A new bucket with three of the pictures; its name."""
    client: Any = Session().create_client(
        "s3",
        endpoint_url=server,
        region_name="us-east-1",
        aws_access_key_id=SECRETS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
    )
    name = f"planted-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    for i in range(3):
        data = (photos / f"figure-{i:03d}.jpg").read_bytes()
        client.put_object(Bucket=name, Key=f"{i}.jpg", Body=data)
    return name


def left_behind(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file; of Parquet files also the values and the metadata."""
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if not path.is_file() or path.is_symlink():
                continue
            yield str(path), path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path, partitioning=None)
                text = f"{table.to_pylist()} {table.schema.metadata}"
                yield f"{path}, decoded", text.encode()


def assert_secret(out: str, err: str, folder: Path, *shown: str) -> None:
    """No secret is in the output or in a file; each of `shown` is found by the same search."""
    contents = [("stdout", out.encode()), ("stderr", err.encode())]
    contents += left_behind(folder)
    for secret in (*SECRETS.values(), PASSWORD):
        places = [name for name, content in contents if secret.encode() in content]
        assert places == [], secret
    for text in shown:
        assert any(text.encode() in content for _, content in contents), text


def test_credentials_of_a_run_reach_no_file(
    scene: tuple[Path, dict[str, str]], s3_server: str, photos: Path, tiny: tuple[str, ...]
) -> None:
    """A run on a Ray of its own, of which some inputs are in a bucket that is not there."""
    folder, environment = scene
    bucket = put_photos(s3_server, photos)
    uris = [*(f"s3://{bucket}/{i}.jpg" for i in range(3)), "s3://planted-nowhere/a.jpg"]
    (folder / "list.txt").write_text("\n".join(uris))
    command = ["annotate", f"{folder}/list.txt", f"{folder}/out", *tiny]
    result = run_command(command, environment, 240)
    assert result.returncode == 0, result.stderr
    assert "4 units, 1 failed" in result.stdout
    assert list((folder / "ray").glob("session_*/logs/*")), "Ray's logs are not looked at"
    assert_secret(result.stdout, result.stderr, folder, bucket, "planted-nowhere", "not_found")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        pytest.param(["s3://planted-nowhere/in"], "no such input", id="wrong bucket"),
        pytest.param(
            ["s3://planted/in", "--s3-endpoint", f"http://user:{PASSWORD}@127.0.0.1:9"],
            "error: cannot reach",
            id="endpoint that fails",
        ),
        pytest.param(
            ["a.jpg", "--s3-endpoint", f"http://user:{PASSWORD}@127.0.0.1:9", "--max-bytes", "x"],
            "--max-bytes 'x'",
            id="wrong setting beside it",
        ),
        pytest.param(
            [f"http://user:{PASSWORD}@127.0.0.1:9/a.jpg"], "http://***@127.0.0.1:9", id="input"
        ),
        pytest.param(
            ["a.jpg", "--boxes", f"http://user:{PASSWORD}@127.0.0.1:9/b.csv"], "error: ", id="boxes"
        ),
        pytest.param(
            ["a.jpg", "--weights", f"http://user:{PASSWORD}@127.0.0.1:9/w.safetensors"],
            "error: ",
            id="weights",
        ),
        pytest.param(["--output", f"ftp://user:{PASSWORD}@h/out"], "error: ", id="output"),
    ],
)
def test_messages_do_not_tell_secrets(
    words: list[str],
    shown: str,
    tmp_path: Path,
    s3_settings: dict[str, str],
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They end before Ray is started, so this process plays the command."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    output = () if "--output" in words else ("--output", f"{tmp_path}/out")
    weights = () if "--weights" in words else tiny[:2]
    given = ("--input", *words) if not words[0].startswith("-") else ("--input", "a.jpg", *words)
    assert main(["annotate", *given, *output, *weights]) in (1, 2)
    S3FileSystem.clear_instance_cache()
    told = capfd.readouterr()
    assert_secret(told.out, told.err, tmp_path, shown)


def test_decoders_know_the_limit_on_frames(tiny_weights: str, tmp_path: Path) -> None:
    values = {"input": ["a"], "output": f"{tmp_path}/out", "weights": tiny_weights, "max_frames": 7}
    with Reporter() as reporter:
        run = Run(AnnotateSettings.build(values), reporter)
    assert run.decoder.max_frames == 7
