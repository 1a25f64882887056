"""What a run has to do: shards without a part, and parts that are to be amended."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self

import pyarrow.compute as pc

from pipeline.amend import failed_units
from pipeline.commit import READERS, done_shards, part_summaries, read_part
from pipeline.manifest import ShardRef
from pipeline.storage import Output
from pipeline.summary import Summary


@dataclass(frozen=True)
class Work:
    """Shards to do; `pending` units are among them, and parts of the shards `finished` stand."""

    shards: list[ShardRef] = field(default_factory=list)
    pending: int = 0
    finished: list[int] = field(default_factory=list)


def find_work(output: Output, planned: Sequence[ShardRef], redo: tuple[str, ...] | None) -> Work:
    """Compare planned shards with the parts that are there.

    With `redo` parts with failures of these codes (empty: of any code) are amended; parts that
    still hold units which count no more always are.
    """
    done = done_shards(output, (ref.shard for ref in planned))
    there = [ref for ref in planned if ref.shard in done]
    failures = _failures(output, there, redo) if redo is not None else {}
    stale = stale_shards(output, there)
    amended = [
        replace(ref, amend=True, redo=redo)
        for ref in there
        if failures.get(ref.shard) or ref.shard in stale
    ]
    fresh = [ref for ref in planned if ref.shard not in done]
    untouched = done - {ref.shard for ref in amended}
    pending = sum(ref.units for ref in fresh) + sum(failures.values())
    return Work(amended + fresh, pending, sorted(untouched))


def stale_shards(output: Output, refs: Iterable[ShardRef]) -> set[int]:
    """Which of the shards have a part with rows of units that count no more."""

    def is_stale(ref: ShardRef) -> bool:
        units = read_part(output, ref.shard, ["unit_id"])["unit_id"]
        return bool(set(ref.retired) & set(pc.unique(units).to_pylist()))

    affected = [ref for ref in refs if ref.retired]
    with ThreadPoolExecutor(READERS) as threads:
        found = threads.map(is_stale, affected)
        return {ref.shard for ref, stale in zip(affected, found, strict=True) if stale}


def _failures(output: Output, there: Sequence[ShardRef], codes: tuple[str, ...]) -> dict[int, int]:
    """How many units of each part that count failed with one of the codes, or with any."""
    shards = sorted(ref.shard for ref in there)
    found = {
        shard: sum(summary.failed[code] for code in codes or summary.failed)
        for shard, summary in zip(shards, part_summaries(output, shards), strict=True)
    }
    retired = {ref.shard: set(ref.retired) for ref in there if ref.retired and found[ref.shard]}
    for shard, gone in retired.items():
        found[shard] = len(failed_units(output, shard, codes) - gone)
    return found


class Totals:
    """Adds up the summaries of parts while other work goes on.

    A context; who leaves it early does not wait for the rest.
    """

    def __init__(self, output: Output, shards: Sequence[int]) -> None:
        self.output, self.shards = output, shards
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "totals")
        self._result: Future[Summary]

    def __enter__(self) -> Self:
        self._result = self._thread.submit(self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def wait(self) -> Summary:
        """The sum."""
        return self._result.result()

    def _read(self) -> Summary:
        total = Summary()
        for summary in part_summaries(self.output, self.shards):
            if self._stop.is_set():
                break
            total.add(summary)
        return total
