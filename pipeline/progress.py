"""What a person sees of a run: progress with rate and ETA, then a summary."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.errors import redact
from pipeline.plan import Planned
from pipeline.summary import Summary

_LINE_EVERY_S = 10.0


class Reporter:
    """Writes to standard error; standard output stays free for results."""

    def __init__(self) -> None:
        # A copy of the descriptor: Ray's own noise on standard error is led elsewhere.
        self._stream = os.fdopen(os.dup(2), "w", buffering=1)
        self.console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._last_plan = time.monotonic()
        self._listed = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def say(self, text: str) -> None:
        """One line, without the secrets of URLs."""
        self.console.print(redact(text), markup=False)

    def listing(self, count: int) -> None:
        """So many more inputs are listed; now and then says how many. Several threads call it."""
        with self._lock:
            self._listed += count
            self._now_and_then(f"listing: {self._listed:,} inputs")

    def planning(self, planned: Planned) -> None:
        """Now and then, how far planning is."""
        self._now_and_then(f"planning: {planned.inputs:,} inputs, {planned.units:,} units")

    def steps(self, verb: str, things: str) -> Callable[[int, int], None]:
        """A callback that now and then says how many of how many are done, with rate and ETA."""
        started = time.monotonic()

        def step(done: int, total: int) -> None:
            rate = done / max(1e-9, time.monotonic() - started)
            left = duration((total - done) / rate)
            self._now_and_then(
                f"{verb} {done:,} of {total:,} {things}, {rate:,.0f} per second, {left} left"
            )

        return step

    def _now_and_then(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last_plan >= _LINE_EVERY_S:
            self._last_plan = now
            self.say(text)

    def annotating(self, total_units: int, done: int) -> Meter:
        """A meter for a run over `total_units`, of which so many were done before."""
        return Meter(self.console, total_units, done)


class Meter:
    """Progress of the units of this run: a bar on a terminal, a line every 10 s elsewhere."""

    def __init__(self, console: Console, total_units: int, done: int) -> None:
        self.console = console
        self.total = total_units
        self.before = done
        self.so_far = Summary()
        self.started = time.monotonic()
        self._last_line = self.started
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "annotating", total=total_units, completed=self.before, note=""
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the meter was made."""
        return time.monotonic() - self.started

    def add(self, summary: Summary) -> None:
        """Count a finished shard and show it."""
        self.so_far.add(summary)
        rate = self.so_far.frames / self.seconds
        people, failed = self.so_far.people, self.so_far.failed_units
        note = f"{rate:.1f} frames/s, {people:,} people, {failed:,} failed"
        self._bar.update(self._task, completed=self.before + self.so_far.units, note=note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self.console.print(f"{self._position()}, {note}, {self._left()} left", markup=False)

    def _position(self) -> str:
        done = self.before + self.so_far.units
        return f"{done:,} of {self.total:,} units ({100 * done / max(1, self.total):.0f} %)"

    def _left(self) -> str:
        left = self.total - self.before - self.so_far.units
        return duration(left * self.seconds / max(1, self.so_far.units))


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
