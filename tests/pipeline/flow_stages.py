"""Stages of the flow's tests. This module imports little, since every actor is a process."""

from __future__ import annotations

import os
import threading
from typing import Any

import ray

from pipeline.manifest import ShardRef
from pipeline.stages import Outcome, Stage, StageReport
from pipeline.stall import Pulse
from pipeline.summary import Summary

DEADLY, BROKEN, RUDE_ONCE = 7, 11, 13


@ray.remote(num_cpus=0)
class Ledger:
    """What happened to whom."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def note(self, what: str, shard: int) -> int:
        """Write it down; how often it had happened before."""
        before = self.events.count((what, shard))
        self.events.append((what, shard))
        return before

    def read(self) -> list[tuple[str, int]]:
        """All of it."""
        return self.events

    def clear(self) -> None:
        """Begin anew."""
        self.events.clear()


class First(Stage):
    """Rows are the shard's number, as text."""

    def __init__(self, ledger: Any) -> None:
        super().__init__(Pulse("prepare"))
        self.ledger = ledger

    def shard(self, ref: ShardRef) -> tuple[str, StageReport]:
        """Dies, or fails, of certain shards."""
        ray.get(self.ledger.note.remote("first", ref.shard))
        if ref.shard == DEADLY:
            os._exit(1)
        if ref.shard == BROKEN:
            raise ValueError("broken")
        return f"rows {ref.shard}", StageReport(0.5)


class Second(First):
    """Dies once of one shard."""

    def shard(self, ref: ShardRef, rows: str) -> tuple[str, StageReport]:  # type: ignore[override]
        """The rows as they are."""
        assert rows == f"rows {ref.shard}"
        before = ray.get(self.ledger.note.remote("second", ref.shard))
        if ref.shard == RUDE_ONCE and not before:
            os._exit(1)
        return rows, StageReport(0.25)


class Last(First):
    """The outcome."""

    def shard(  # type: ignore[override]
        self, ref: ShardRef, rows: str, final: bool
    ) -> tuple[None, StageReport]:
        """What came of it."""
        assert rows == f"rows {ref.shard}"
        return None, StageReport(0.125, Outcome(ref.shard, Summary(shards=1), final))


class Unborn(First):
    """Cannot start."""

    def __init__(self, how: str) -> None:
        if how == "dies":
            os._exit(1)
        raise RuntimeError("no such device")


class BornOnce(First):
    """Only the first of its kind can start; it dies of the first shard."""

    def __init__(self, ledger: Any) -> None:
        super().__init__(ledger)
        if ray.get(ledger.note.remote("born", 0)):
            raise RuntimeError("the device fell off")

    def shard(self, ref: ShardRef) -> tuple[str, StageReport]:
        """Dies."""
        os._exit(1)


class Slow(BornOnce):
    """Works at a shard until another of its kind has tried to be born once more."""

    def shard(self, ref: ShardRef) -> tuple[str, StageReport]:
        """Never dies."""
        had = self._births()
        while self._births() == had:
            threading.Event().wait(0.01)
        return f"rows {ref.shard}", StageReport(0.5)

    def _births(self) -> int:
        return ray.get(self.ledger.read.remote()).count(("born", 0))


class Patient(First):
    """Waits in a shard until it is killed."""

    def shard(self, ref: ShardRef) -> tuple[str, StageReport]:
        """Never answers."""
        with self.pulse.at(f"shard {ref.shard}"):
            threading.Event().wait()
        raise AssertionError
