"""The processes of a run: who is who below a driver, and how to hit one of them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import psutil

Role = Literal["prepare", "estimate", "commit", "decoder", "compiler", "raylet"]
_MARKS: dict[Role, str] = {
    "prepare": "ray::PrepareStage",
    "estimate": "ray::EstimateStage",
    "commit": "ray::CommitStage",
    "decoder": "pipeline.decoder",
    "compiler": "pipeline.compiler",
}

T = TypeVar("T")


def family(pid: int) -> list[psutil.Process]:
    """All descendants of a process, its Ray among them; none if it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def with_role(role: Role, driver: int) -> list[psutil.Process]:
    """Living processes of a run that do this."""
    return [process for process in family(driver) if _is(role, process)]


def is_worker(process: psutil.Process) -> bool:
    """Whether it is alive and PoseMill's own: not a process of Ray's."""
    return any(_is(role, process) for role in _MARKS)


def _is(role: Role, process: psutil.Process) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if role == "raylet":
            return process.name() == "raylet"
        return _MARKS[role] in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def hit(process: psutil.Process, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal; False if the process was gone. psutil knows a recycled pid."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def wait_until(
    condition: Callable[[], T], run: subprocess.Popen[str], seconds: float = 120.0
) -> T | None:
    """The condition's value once it is true; None if the run ends before. AssertionError after
    `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if run.poll() is not None:
            return None
        assert time.monotonic() < deadline, f"nothing within {seconds:g} s"
        try:
            run.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    return value
