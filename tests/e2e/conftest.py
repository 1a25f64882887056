"""Fixtures of the end-to-end tests: drawn people, tiny weights, storage of three kinds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cpm_core.config import preset
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import save_weights

REPOSITORY = Path(__file__).resolve().parents[2]
Job = Callable[..., "subprocess.CompletedProcess[str]"]
UNITS = 160
"""Pictures in `many`."""
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random `cpm-lite` weights for 64-pixel crops: quick, and good enough to count rows."""
    torch.manual_seed(0)
    config = preset("cpm-lite", input_size=64, stages=1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, load_skeleton("lsp14")))
    return str(path)


@pytest.fixture(scope="session")
def tiny(tiny_weights: str) -> tuple[str, ...]:
    """The flags of a quick run: tiny weights, and no search for people."""
    return "--weights", tiny_weights, "--people", "whole-image"


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


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 160 drawn figures."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(UNITS):
        cv2.imwrite(str(folder / f"{i:04d}.jpg"), draw_figure(i))
    return folder


@contextmanager
def own_ray_folder() -> Iterator[str]:
    """Where a cluster notes that it is the current one: nobody else shall find that, and its own
    jobs, which Ray tells no address but that note, shall not find another's. Short, since sockets
    lie in it."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield path


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """`own_ray_folder`."""
    with own_ray_folder() as path:
        yield path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a moto S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_settings(s3_server: str) -> Iterator[dict[str, str]]:
    """The environment variables that reach the server, set for this process as well."""
    values = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield values


@pytest.fixture
def bucket(s3_settings: dict[str, str]) -> Iterator[str]:
    """URI of a fresh bucket."""
    import s3fs

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder URI of the kind that the test is parametrised with: local, file or s3."""
    kind = request.param
    if kind == "s3":
        return str(request.getfixturevalue("bucket"))
    return str(tmp_path / "place") if kind == "local" else f"file://{tmp_path}/place"


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="session")
def head(
    tmp_path_factory: pytest.TempPathFactory, s3_settings: dict[str, str]
) -> Iterator[dict[str, str]]:
    """A local head with token authentication; yields the environment that reaches it."""
    with own_ray_folder() as ray_files:
        yield from _head(tmp_path_factory.mktemp("head"), ray_files)


def _head(folder: Path, ray_files: str) -> Iterator[dict[str, str]]:
    (folder / "token").write_text("a" * 64)
    (folder / "token").chmod(0o600)
    environment = job_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    # Fixed agent ports would collide with another head's on this machine.
    dashboard, listen, grpc, metrics = free_ports(4)
    command = [RAY, "start", "--head", "--num-cpus=2", "--port=0", f"--temp-dir={ray_files}"]
    process = subprocess.Popen(
        [
            *command,
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={listen}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}",
            "--disable-usage-stats",
            "--block",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if "--address='" in line:
            address = line.split("--address='")[1].split("'")[0]
            break
    assert address, "ray start printed no address"
    yield environment | {"HEAD": address, "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
    # A terminated head drains for half a minute; its processes go with a killed one.
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def posemill(head: dict[str, str]) -> Job:
    """Run the command as a user does, on the head; returns the finished process.

    S3 credentials reach the cluster's workers as they would on a machine: the head is started with
    them (see `head`).
    """

    def run(*words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return run_command(words, head | {"RAY_ADDRESS": head["HEAD"]}, timeout)

    return run


@pytest.fixture
def posemill_alone() -> Job:
    """Run the command as a user does on a laptop, with a Ray of its own."""

    def run(*words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return run_command(words, job_environment(), timeout)

    return run


def run_command(
    words: Sequence[str], environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`posemill WORDS`, as a process."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        env=environment,
    )


def job_environment() -> dict[str, str]:
    """The environment of a user's shell: no pytest, no surrounding Ray."""
    drop = ("RAY_", "PYTEST_", "POSEMILL_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)}
