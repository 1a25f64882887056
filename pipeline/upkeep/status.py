"""How far a run is, seen from outside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline import lock
from pipeline.commit import FOLDER, SUCCESS, part_summaries, shard_of
from pipeline.runfile import read_run_file
from pipeline.summary import Summary
from pipeline.upkeep.settings import StatusSettings


@dataclass
class Status:
    """Counts of an output, who works on it, and how fast (units per second; 0: not known)."""

    units: int
    done: Summary
    rate: float
    is_complete: bool
    runs: list[dict[str, Any]] = field(default_factory=list)
    holders: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Units without rows."""
        return self.units - self.done.units

    @property
    def failed(self) -> Counter[str]:
        """Rows of failures by code."""
        return self.done.failed


def status(settings: StatusSettings) -> Status:
    """Look at plan, parts and locks. Raises UsageError where nothing is planned."""
    output, plan = settings.planned()
    units = {ref.shard: ref.units for ref in plan.shards(output)}
    written = {
        shard: moment
        for name, moment in output.times(FOLDER).items()
        if (shard := shard_of(f"{FOLDER}/{name}")) in units and shard is not None
    }
    done = Summary()
    for summary in part_summaries(output, written):
        done.add(summary)
    holders = lock.holders(output)
    document = read_run_file(output) or {}
    return Status(
        sum(units.values()),
        done,
        _rate(units, written, holders),
        output.read(SUCCESS) is not None,
        document.get("runs", []),
        holders,
    )


def _rate(
    units: dict[int, int], written: dict[int, datetime], holders: list[dict[str, Any]]
) -> float:
    """Units per second that were written since the oldest run that is at work began."""
    alive = [holder["started"] for holder in holders if holder["alive"]]
    if not alive or "unknown" in alive:
        return 0.0
    since = min(map(datetime.fromisoformat, alive))
    seconds = (datetime.now(UTC) - since).total_seconds()
    count = sum(units[shard] for shard, moment in written.items() if moment >= since)
    return count / seconds if seconds > 0 else 0.0
