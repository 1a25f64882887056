"""Fixtures of the end-to-end tests: drawn people, tiny weights, storage of three kinds."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import WeightsInfo, save_weights

REPOSITORY = Path(__file__).resolve().parents[2]
Job = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random `cpm-lite` weights for 64-pixel crops: quick, and good enough to count rows."""
    torch.manual_seed(0)
    config = preset("cpm-lite", input_size=64, stages=1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, load_skeleton("lsp14")))
    return str(path)


def draw_figure(seed: int, width: int = 96, height: int = 128) -> np.ndarray:
    """A stick figure on noise (H, W, 3)."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 90, (height, width, 3), np.uint8)
    cv2.circle(picture, (width // 2, height // 5), height // 10, (220, 180, 150), -1)
    for x in (width // 4, width // 2, 3 * width // 4):
        cv2.line(picture, (width // 2, height // 3), (x, height - 8), (200, 60, 60), 4)
    return picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty drawn figures in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        assert cv2.imwrite(str(folder / f"figure-{i:03d}.jpg"), draw_figure(i))
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a moto S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket, and the environment that reaches it; yields the bucket's URI."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.mkdir(bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder URI of the kind that the test is parametrised with: local, file or s3."""
    kind = request.param
    if kind == "s3":
        return str(request.getfixturevalue("s3_environment"))
    return str(tmp_path / "place") if kind == "local" else f"file://{tmp_path}/place"


@pytest.fixture
def posemill() -> Job:
    """Run the command as a user does: `posemill("annotate", …)`; returns the finished process."""

    def run(*words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=REPOSITORY,
            env=job_environment(),
        )

    return run


def job_environment() -> dict[str, str]:
    """The environment of a user's shell: no pytest, no surrounding Ray."""
    drop = ("RAY_", "PYTEST_", "POSEMILL_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)}
