"""On a cluster that is there already, and by `ray job submit`; both with token authentication."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, job_environment
from tests.e2e.test_annotate import assert_accounted, read_table

RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A local head with token authentication; yields the environment that reaches it."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text("a" * 64)
    (folder / "token").chmod(0o600)
    environment = job_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    command = [RAY, "start", "--head", "--num-cpus=2", "--port=0", "--dashboard-port=8299"]
    process = subprocess.Popen(
        [*command, "--dashboard-host=127.0.0.1", "--disable-usage-stats", "--block"],
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
        if "Ray runtime started" in line or (address and "--block" in line):
            break
    assert address, "ray start printed no address"
    yield environment | {"HEAD": address}
    process.terminate()
    process.wait(timeout=60)
    process.stdout.close()


def test_running_cluster(
    head: dict[str, str], tmp_path: Path, photos: Path, tiny_weights: str
) -> None:
    """`--address` joins a cluster, and ships the code to it."""
    out = str(tmp_path / "out")
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(photos), out]
    result = subprocess.run(
        [*command, "--weights", tiny_weights, "--address", head["HEAD"]],
        env=head,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert_accounted(read_table(out), 40)


def test_ray_job_submit(
    head: dict[str, str], tmp_path: Path, photos: Path, tiny_weights: str
) -> None:
    """As the README says it."""
    out = str(tmp_path / "out")
    result = subprocess.run(
        [
            RAY,
            "job",
            "submit",
            "--address=http://127.0.0.1:8299",
            f"--working-dir={REPOSITORY}",
            "--",
            sys.executable,
            "jobs/annotate.py",
            str(photos),
            out,
            f"--weights={tiny_weights}",
        ],
        env=head,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "40 units" in result.stdout
    assert_accounted(read_table(out), 40)


def test_wrong_token_is_told(
    head: dict[str, str], tmp_path: Path, photos: Path, tiny_weights: str
) -> None:
    """One line that says what to check."""
    (tmp_path / "token").write_text("b" * 64)
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(photos), str(tmp_path / "out")]
    result = subprocess.run(
        [*command, "--weights", tiny_weights, "--address", head["HEAD"]],
        env=head | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 1
    assert "token" in result.stderr.splitlines()[-1]
