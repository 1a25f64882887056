"""The processes of a run: what each is for, its memory and its CPU time. Linux only."""

from __future__ import annotations

import contextlib
import math
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Self

import psutil

_ROLES = {
    "raylet/raylet ": "raylet",  # Its arguments name the worker's script, too.
    "default_worker.py": None,  # An actor has its name a little after it has started.
    "jobs.cli": "driver",
    "PrepareStage": "prepare",
    "EstimateStage": "estimate",
    "CommitStage": "commit",
    "pipeline.compiler": "compiler",
    "pipeline.decoder": "decoders",
    "gcs_server": "gcs",
    "Agent": "Ray's agents",
}


def role_of(process: psutil.Process, root: psutil.Process) -> str | None:
    """What a process of the run does; None of one that has no part in the work."""
    if process == root:
        return "driver"
    words = " ".join(process.cmdline())
    return next((role for mark, role in _ROLES.items() if mark in words), None)


def anonymous_mb(pid: int) -> float:
    """Memory of a process that is neither of files nor shared."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return next(kilobytes, 0) / 1e3


class Watch:
    """Looks at a process and all below it until it ends. A context: leaving it waits for the end.

    With `memory`, `peak_mib` is the largest sum of proportional set sizes: what is shared counts
    once, and `peaks` has the largest of each role; without, there are none. To ask for them takes
    milliseconds per process, of a CPU that the run may want: a run that is timed is not one of
    which memory is measured.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], *, memory: bool = False, every_s: float = 0.5
    ) -> None:
        self.process, self.memory, self.every_s = process, memory, every_s
        self.peak_mib = 0.0 if memory else math.nan
        self.peaks: dict[str, float] = {}
        self._cpu: list[tuple[float, dict[psutil.Process, float]]] = []
        self._roles: dict[psutil.Process, str] = {}
        self._thread = threading.Thread(target=self._look, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.wait()
        self._thread.join()

    def cpus(self, start: float, end: float) -> dict[str, float]:
        """CPUs that each role kept busy between two times of the wall clock."""
        inside = [(at, cpu) for at, cpu in self._cpu if start <= at <= end]
        if len(inside) < 2:
            return {}
        (began, before), (ended, after) = inside[0], inside[-1]
        busy: dict[str, float] = defaultdict(float)
        for process, seconds in after.items():
            spent = seconds - before.get(process, 0.0)
            busy[self._roles[process]] += spent / (ended - began)
        return dict(busy)

    def _look(self) -> None:
        root = psutil.Process(self.process.pid)
        roles = self._roles
        while self.process.poll() is None:
            cpu: dict[psutil.Process, float] = {}
            memory: dict[str, float] = defaultdict(float)
            try:
                members = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            for member in members:
                try:
                    held = member.memory_full_info().pss / 2**20 if self.memory else 0.0
                    times = member.cpu_times()
                    if member not in roles or roles[member] == "other":
                        roles[member] = role_of(member, root) or "other"
                except psutil.Error:
                    continue  # It ended in between.
                cpu[member] = times.user + times.system
                memory[roles[member]] += held
            self._cpu.append((time.time(), cpu))
            if self.memory:
                self.peak_mib = max(self.peak_mib, sum(memory.values()))
                for role, mib in memory.items():
                    self.peaks[role] = max(self.peaks.get(role, 0.0), mib)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.every_s)
