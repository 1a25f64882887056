"""Kills in mid-run: the same command finishes, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, UNITS, Job, job_environment
from tests.e2e.test_annotate import assert_accounted, assert_clean, read_table
from tests.faults.processes import hit, wait_until, with_role


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


def count_parts(output: Path) -> int:
    """How many parts are there."""
    return len(list((output / "annotations").rglob("part-*.parquet")))


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Block until so many parts are there."""
    while count_parts(output) < count:
        assert process.poll() is None, "the run ended before it could be disturbed"
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue


def test_refused_killed_interrupted_and_continued(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """One output: a second driver is refused and names the first; kill -9 of that; SIGINT to the
    process group, as a terminal sends it, stops the next one cleanly; the same command finishes."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "4"]
    with running(command) as process:
        wait_for_parts(out, 3, process)
        # Held still, so that it cannot finish before the second one looks.
        process.send_signal(signal.SIGSTOP)
        second = posemill_alone(*command)
        assert second.returncode == 4
        assert f"process {process.pid}" in second.stderr
        process.kill()
        process.wait()
    survived = count_parts(out)
    assert 3 <= survived < UNITS // 4
    assert not (out / "_SUCCESS").exists()

    with running(command) as process:
        wait_for_parts(out, survived + 2, process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert not (out / "_locks" / "1-of-1").exists()
    assert not (out / "_SUCCESS").exists()

    result = posemill_alone(*command)
    assert result.returncode == 0, result.stderr
    table = read_table(str(out))
    assert_accounted(table, UNITS)
    assert table.num_rows == UNITS
    assert_clean(str(out))


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "stopped; what is done is kept: run the same command again"),
        (signal.SIGKILL, 1, "error: the process that makes the networks ready was killed"),
    ],
)
def test_while_networks_are_made_ready(
    number: signal.Signals, code: int, told: str, tmp_path: Path, many: Path, tiny: tuple[str, ...]
) -> None:
    """Ctrl-C as a terminal sends it; kill -9 of the child, as when memory is short. One line, and
    nothing is left behind."""
    (tmp_path / "temporary").mkdir()
    environment = job_environment() | {"TMPDIR": str(tmp_path / "temporary")}
    with running(["annotate", str(many), str(tmp_path / "out"), *tiny], environment) as process:
        compilers = wait_until(lambda: with_role("compiler", process.pid), process)
        assert compilers, "nobody makes networks ready"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            assert hit(compilers[0], number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.startswith(told)
    assert errors.count("\n") == 1
    assert not compilers[0].is_running()
    assert not list((tmp_path / "temporary").iterdir())
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_what_does_not_move_is_named(
    tmp_path: Path, photos: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """A pipe that nobody writes to: named while it holds up its shard, then a row."""
    os.mkfifo(photos / "slow.jpg")
    out = tmp_path / "out"
    limits = ["--max-seconds", "6", "--stall-after", "1", "--shard-size", "16"]
    result = posemill("annotate", str(photos), str(out), *tiny, *limits)
    assert result.returncode == 0, result.stderr
    assert "no shard has come through for" in result.stderr
    assert f"prepare: unit 40 ('{photos}/slow.jpg') for " in result.stderr
    table = read_table(str(out))
    assert_accounted(table, 41)
    assert table.filter(table["unit_id"].to_numpy() == 40)["error_code"].to_pylist() == ["timeout"]


def test_units_of_a_lost_shard_run_alone(
    head: dict[str, str], tmp_path: Path, photos: Path, tiny: tuple[str, ...]
) -> None:
    """The last resort after Ray lost a shard twice: every unit in a task of its own."""
    (photos / "figure-001.jpg").write_bytes(b"not a picture")
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
    command = [str(photos), str(out), *tiny, "--limit", "4"]
    result = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=REPOSITORY,
        env=head | {"RAY_ADDRESS": head["HEAD"]},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    table = read_table(str(out))
    assert_accounted(table, 4)
    assert table["status"].to_pylist() == ["ok", "failed", "ok", "ok"]
