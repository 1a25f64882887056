"""On a cluster that is there already, and by `ray job submit`; both with token authentication."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.e2e.conftest import (
    RAY,
    REPOSITORY,
    UNITS,
    draw_figure,
    job_environment,
    run_command,
)
from tests.e2e.test_annotate import assert_accounted, assert_clean, read_table


def test_two_drivers_on_a_running_cluster(
    head: dict[str, str], tmp_path: Path, many: Path, tiny: tuple[str, ...]
) -> None:
    """One joins by `--address`, the other by RAY_ADDRESS; both ship their code. Each does half
    of one plan, and only the last one finds the table complete."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "16", "--partition"]
    first = run_command([*command, "1/2", "--address", head["HEAD"]], head, 240)
    assert first.returncode == 0, first.stderr
    assert 0 < read_table(str(out)).num_rows < UNITS
    assert not (out / "_SUCCESS").exists()
    second = run_command([*command, "2/2"], head | {"RAY_ADDRESS": head["HEAD"]}, 240)
    assert second.returncode == 0, second.stderr
    assert_accounted(read_table(str(out)), UNITS)
    assert (out / "_SUCCESS").exists()
    assert_clean(str(out))


def test_ray_job_submit(
    head: dict[str, str], tmp_path: Path, photos: Path, tiny: tuple[str, ...]
) -> None:
    """As the README says it."""
    out = str(tmp_path / "out")
    result = subprocess.run(
        [
            RAY,
            "job",
            "submit",
            f"--address={head['DASHBOARD']}",
            f"--working-dir={REPOSITORY}",
            "--",
            sys.executable,
            "jobs/annotate.py",
            str(photos),
            out,
            *tiny,
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
    head: dict[str, str], tmp_path: Path, photos: Path, tiny: tuple[str, ...]
) -> None:
    """One line that says what to check. (Ray tries twenty times, for twenty seconds.)"""
    (tmp_path / "token").write_text("b" * 64)
    words = ["annotate", str(photos), str(tmp_path / "out"), *tiny, "--address", head["HEAD"]]
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_NUM_REDIS_GET_RETRIES": "2"}
    result = run_command(words, head | wrong, 240)
    assert result.returncode == 1
    assert "token" in result.stderr.splitlines()[-1]


def test_one_cpu_is_enough(tmp_path: Path, photos: Path, tiny: tuple[str, ...]) -> None:
    """A Ray of one CPU runs all stages."""
    out = str(tmp_path / "out")
    annotate_with_ray("num_cpus=1", str(photos), out, *tiny)
    assert_accounted(read_table(out), 40)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_small_object_store_is_enough(tmp_path: Path, cpus: int) -> None:
    """200 MB, of which a shard's crops take up to 64: it goes on, and does not hang."""
    (tmp_path / "in").mkdir()
    for i in range(700):
        cv2.imwrite(str(tmp_path / "in" / f"{i:03d}.jpg"), draw_figure(i))
    out = str(tmp_path / "out")
    words = [str(tmp_path / "in"), out, "--people", "whole-image", "--stall-after", "60"]
    annotate_with_ray(f"num_cpus={cpus}, object_store_memory=200_000_000", *words, timeout=840)
    assert_accounted(read_table(out), 700)


def annotate_with_ray(settings: str, *words: str, timeout: float = 240) -> None:
    """`posemill annotate` on a local Ray that was started with these settings; it succeeds."""
    script = (
        "import ray, sys\n"
        "from jobs.cli import main\n"
        f"ray.init(address='local', include_dashboard=False, {settings})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "annotate", *words],
        env=job_environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
