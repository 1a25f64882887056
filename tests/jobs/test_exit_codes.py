"""What a job's end becomes: one line on standard error and an exit code that scripts rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from jobs.run import NOTHING_KEPT, run
from pipeline.errors import LockedError, PosemillError, UsageError
from pipeline.lock import Lock
from pipeline.settings import Settings
from pipeline.storage import Output, StorageOptions


class Job(Settings):
    """A job."""

    name: str = Field(..., json_schema_extra={"kind": "run"})
    count: int = Field(1, json_schema_extra={"kind": "run"}, ge=1)


class Ends:
    """A job that ends in a way, and remembers what it was given."""

    def __init__(self, end: object) -> None:
        self.end = end
        self.settings: list[Job] = []

    def __call__(self, settings: Job) -> int | None:
        self.settings.append(settings)
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        pytest.param(None, 0, "", id="finished"),
        pytest.param(0, 0, "", id="finished, and says so"),
        pytest.param(3, 3, "", id="nothing to do"),
        pytest.param(1, 1, "", id="some inputs failed, as a job may count"),
        pytest.param(PosemillError("disk full"), 1, "error: disk full\n", id="could not finish"),
        pytest.param(UsageError("no such file"), 2, "error: no such file\n", id="wrong settings"),
        pytest.param(LockedError("held by 7"), 4, "error: held by 7\n", id="another run"),
        pytest.param(
            KeyboardInterrupt(),
            130,
            "stopped; what is done is kept: run the same command again to continue\n",
            id="Ctrl-C",
        ),
    ],
)
def test_exit_codes(end: object, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, no traceback, nothing on standard output."""
    job = Ends(end)
    assert run("example", Job, job, ["--name", "a", "--count", "3"]) == code
    assert job.settings == [Job(name="a", count=3)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--name is needed"),
        (["--name", "a", "--count", "0"], "--count"),
        (["--name", "a", "--cuont", "2"], "did you mean --count?"),
    ],
)
def test_wrong_settings_end_it_before_the_job(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and the flag."""
    job = Ends(None)
    assert run("example", Job, job, arguments) == 2
    assert job.settings == []
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_ctrl_c_in_a_job_that_keeps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The line does not promise what is not so."""
    job = Ends(KeyboardInterrupt())
    assert run("example", Job, job, ["--name", "a"], NOTHING_KEPT) == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"


@pytest.mark.parametrize("name", ["annotate", "belief", "evaluate", "import_", "preview", "train"])
def test_a_job_runs_as_a_script(name: str, tmp_path: Path) -> None:
    """From a clone that is not installed, started in another folder."""
    script = Path(__file__).parents[2] / "jobs" / f"{name}.py"
    root = str(script.parents[1])
    # An installation in place is masked.
    code = (
        "import runpy, sys; script, root = sys.argv[1:]; "
        "sys.path[:] = [folder for folder in sys.path if folder != root]; "
        "sys.argv = [script, '--help']; runpy.run_path(script, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(script), root],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: posemill" in done.stdout


def test_other_errors_are_defects() -> None:
    """They keep their traceback."""
    with pytest.raises(ZeroDivisionError):
        run("example", Job, Ends(ZeroDivisionError()), ["--name", "a"])


def test_a_lock_that_is_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run on an output learns who works on it, and leaves the lock alone."""
    output = Output(str(tmp_path / "run"), StorageOptions())

    def job(settings: Job) -> None:
        with Lock(output, (0, 1), on_wait=lambda _: None):
            raise AssertionError("two runs at once")

    with Lock(output, (0, 1), on_wait=lambda _: None) as held:
        assert run("example", Job, job, ["--name", "a"]) == 4
        error = capsys.readouterr().err
        assert f"process {held.me['pid']} on {held.me['host']}" in error
        assert str(tmp_path / "run") in error
        held.check()
        assert output.read(held.name) is not None
    assert output.read(held.name) is None
