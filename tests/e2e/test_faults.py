"""Kills in mid-run: the same command finishes, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import REPOSITORY, UNITS, Job, job_environment
from tests.e2e.test_annotate import assert_accounted, assert_clean, read_table


@contextmanager
def running(
    command: list[str], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, with a Ray of its own unless told otherwise.

    It takes Ctrl-C even where these tests run in a shell's background, which ignores it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *command],
        cwd=REPOSITORY,
        env=environment or job_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Block until so many parts are there."""
    while len(list((output / "annotations").rglob("part-*.parquet"))) < count:
        assert process.poll() is None, "the run ended before it could be disturbed"
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue


def test_driver_killed_in_mid_run(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """kill -9 of the driver: rows == unique == planned after the same command."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "4"]
    with running(command) as process:
        wait_for_parts(out, 3, process)
        process.kill()
        process.wait()
    survived = len(list((out / "annotations").rglob("part-*.parquet")))
    assert 3 <= survived < UNITS // 4
    assert not (out / "_SUCCESS").exists()
    result = posemill_alone(*command)
    assert result.returncode == 0, result.stderr
    table = read_table(str(out))
    assert_accounted(table, UNITS)
    assert table.num_rows == UNITS
    assert_clean(str(out))


def test_ctrl_c_says_how_to_continue(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """SIGINT to the process group, as a terminal sends it: a clean stop, then the rest."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "4"]
    with running(command) as process:
        wait_for_parts(out, 2, process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert not (out / "_locks" / "1-of-1").exists()
    assert posemill_alone(*command).returncode == 0
    assert_accounted(read_table(str(out)), UNITS)


def test_two_runs_on_one_output(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """The second one stops and names the first."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "4"]
    with running(command) as process:
        wait_for_parts(out, 1, process)
        # Held still, so that it cannot finish before the second one looks.
        process.send_signal(signal.SIGSTOP)
        second = posemill_alone(*command)
        assert second.returncode == 4
        assert f"process {process.pid}" in second.stderr


def test_partitions_share_one_plan(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """Two drivers do half each; only the last one finds the table complete."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "16"]
    assert posemill_alone(*command, "--partition", "1/2").returncode == 0
    assert 0 < read_table(str(out)).num_rows < UNITS
    assert not (out / "_SUCCESS").exists()
    assert posemill_alone(*command, "--partition", "2/2").returncode == 0
    assert_accounted(read_table(str(out)), UNITS)
    assert_clean(str(out))


def test_what_does_not_move_is_named(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """A pipe that nobody writes to: named while it holds up its shard, then a row."""
    os.mkfifo(many / "slow.jpg")
    out = tmp_path / "out"
    limits = ["--max-seconds", "12", "--stall-after", "2"]
    result = posemill_alone("annotate", str(many), str(out), *tiny, *limits)
    assert result.returncode == 0, result.stderr
    assert "no shard has come through for" in result.stderr
    assert f"prepare: unit {UNITS} ('{many}/slow.jpg') for " in result.stderr
    table = read_table(str(out))
    assert_accounted(table, UNITS + 1)
    assert table.filter(table["unit_id"].to_numpy() == UNITS)["error_code"].to_pylist() == [
        "timeout"
    ]


def test_units_of_a_lost_shard_run_alone(tmp_path: Path, many: Path, tiny: tuple[str, ...]) -> None:
    """The last resort after Ray lost a shard twice: every unit in a task of its own."""
    (many / "0001.jpg").write_bytes(b"not a picture")
    out = tmp_path / "out"
    script = (
        "import sys\n"
        "from pipeline.annotate import Run\n"
        "from pipeline.config import AnnotateSettings\n"
        "from pipeline.execute import Executor\n"
        "from pipeline.progress import Reporter\n"
        "reporter = Reporter()\n"
        "run = Run(AnnotateSettings.parse(sys.argv[1:], 'test'), reporter)\n"
        "shards = list(run.planner.plan(run.planner.look_up(), write=True).shards(run.output))\n"
        "with Executor(run._executor_inputs(), reporter) as executor:\n"
        "    outcomes = list(executor.run_unit_by_unit(shards))\n"
        "assert [o.committed for o in outcomes] == [True], outcomes\n"
    )
    command = [str(many), str(out), *tiny, "--limit", "4"]
    result = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=REPOSITORY,
        env=job_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    table = read_table(str(out))
    assert_accounted(table, 4)
    assert table["status"].to_pylist() == ["ok", "failed", "ok", "ok"]
