"""Shards on their way through the stages: who works at what, what waits, what is tried again.

A stage is a pool of Ray actors. Crops go from actor to actor through the object store; the driver
holds references only. What dies is replaced, and what it was at is tried again, a few times: Ray's
own retries are off, as they would not tell the shard that kills its actor from its neighbours.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.cluster import Layout
from pipeline.errors import PosemillError
from pipeline.manifest import ShardRef
from pipeline.stages import Outcome, Report
from pipeline.stall import Note

log = logging.getLogger("posemill")

_TRIES = 3
"""Of a shard, before it is left to the driver."""

_DEATHS_IN_A_ROW = 5
_NOTES_S = 5.0
_LOOK_EVERY_S = 10.0
_WAIT_S = 1.0
_AT_START = "raised in its creation task"


class StartError(PosemillError):
    """Workers of a stage cannot start."""


@dataclass(eq=False)
class Shard:
    """A shard on its way. `data` refers to its rows as the last stage left them, on `node`."""

    ref: ShardRef
    stage: int = 0
    data: Any = None
    node: str | None = None
    failures: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Worker:
    """An actor and the calls under way, oldest first. Its `node` is known once it has started."""

    actor: Any
    started: Any
    node: str | None = None
    calls: dict[Any, Shard] = field(default_factory=dict)


class Pool:
    """The actors of one stage, and the shards that wait for one."""

    def __init__(self, name: str, size: int, make: Callable[[], Any], at_once: int = 1) -> None:
        self.name = name
        self._make = make
        # What an actor works at, and the next.
        self._depth = at_once + 1
        self._deaths = 0
        self.waiting: deque[Shard] = deque()
        self.workers: list[Worker] = []
        self.grow(size)

    def free(self, node: str | None) -> Worker | None:
        """The started worker with the fewest calls, rather one on `node`; None if all are full."""
        able = (w for w in self.workers if w.node is not None and len(w.calls) < self._depth)
        return min(able, key=lambda w: (len(w.calls), w.node != node), default=None)

    def grow(self, size: int) -> None:
        """Have at least so many workers."""
        while len(self.workers) < size:
            self._add()

    def worked(self) -> None:
        """One of the workers has done a shard."""
        self._deaths = 0

    def replace(self, worker: Worker, error: RayError) -> None:
        """Start another in its place; raises StartError where none has a future."""
        self.workers.remove(worker)
        self._deaths += 1
        reason = last_line(error)
        if worker.node is None and _AT_START in str(error):
            raise StartError(
                f"a worker could not start: {reason}; that is no fault of the inputs: mend it, "
                "then run the same command again"
            )
        if self._deaths >= _DEATHS_IN_A_ROW * max(1, len(self.workers)):
            raise StartError(
                f"{self._deaths} {self.name} workers in a row died before they had done anything, "
                f"the last with: {reason}; see what Ray printed, mend it, then run the same "
                "command again"
            )
        log.warning("a %s worker is replaced: %s", self.name, reason)
        kill(worker)
        self._add()

    def _add(self) -> None:
        actor = self._make()
        self.workers.append(Worker(actor, actor.node.remote()))


class Flow:
    """Moves shards through pools of actors, at most `ahead` at a time as far as their crops are
    held. `look` gives the layout for the nodes that are there: the pools grow with it."""

    def __init__(
        self, pools: Sequence[Pool], ahead: int, look: Callable[[], Layout] | None = None
    ) -> None:
        self.pools = pools
        self.ahead = ahead
        self._look = look
        self._looked = time.monotonic()
        self._calls: dict[Any, tuple[Pool, Worker]] = {}
        self._with_crops: set[Shard] = set()
        self._left = 0

    def run(self, refs: Sequence[ShardRef], final: bool) -> Iterator[Outcome]:
        """What came of each shard, as they come. One that fails for good is left out.

        Raises StartError, and RayError when Ray itself is gone.
        """
        self.pools[0].waiting.extend(Shard(ref) for ref in refs)
        self._left = len(refs)
        while self._left:
            self._grow()
            self._submit(final)
            for call in self._arrived():
                outcome = self._take(call)
                if outcome is not None:
                    self._left -= 1
                    yield outcome

    def notes(self) -> list[Note]:
        """What the workers are at, the longest first."""
        asked = {
            w.actor.notes.options(concurrency_group="notes").remote(): pool.name
            for pool in self.pools
            for w in list(pool.workers)
            if w.node is not None
        }
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_NOTES_S)
        found = [Note(asked[call], "an actor that does not answer", _NOTES_S) for call in silent]
        for call in answered:
            with contextlib.suppress(RayError):
                found += ray.get(call)
        return sorted(found, key=lambda note: -note.seconds)

    def close(self) -> None:
        """End all actors."""
        for pool in self.pools:
            for worker in pool.workers:
                kill(worker)

    def _grow(self) -> None:
        """Now and then, see whether nodes have joined."""
        if self._look is None or time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        layout = self._look()
        self.ahead = max(self.ahead, layout.shards_ahead)
        for pool, operator in zip(self.pools, layout.operators, strict=True):
            pool.grow(operator.actors)

    def _submit(self, final: bool) -> None:
        """Give waiting shards to free workers, late stages first."""
        for pool in reversed(self.pools):
            first, last = pool is self.pools[0], pool is self.pools[-1]
            while pool.waiting and not (first and len(self._with_crops) >= self.ahead):
                shard = pool.waiting[0]
                if (worker := pool.free(shard.node)) is None:
                    break
                pool.waiting.popleft()
                if first:
                    self._with_crops.add(shard)
                rows = () if first else (shard.data,)
                data, report = worker.actor.shard.options(num_returns=2).remote(
                    shard.ref, *rows, *((final,) if last else ())
                )
                shard.data = data
                worker.calls[report] = shard
                self._calls[report] = pool, worker

    def _arrived(self) -> list[Any]:
        """Calls that are over and workers that have started, once there is one or a second has
        passed; nothing is fetched."""
        for pool in self.pools:
            for worker in pool.workers:
                if worker.node is None:
                    self._calls[worker.started] = pool, worker
        waiting = list(self._calls)
        over, _ = ray.wait(waiting, timeout=_WAIT_S, fetch_local=False)
        if over:
            over, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        return over

    def _take(self, call: Any) -> Outcome | None:
        """Move a shard on; an outcome if it was its last stage."""
        if call not in self._calls:
            return None  # Its worker was lost with another call.
        pool, worker = self._calls.pop(call)
        try:
            answer: str | Report = ray.get(call)
        except RayActorError as error:
            self._lost(pool, worker, error)
            return None
        except RayError as error:
            self._failed(worker.calls.pop(call), error)
            return None
        if isinstance(answer, str):
            worker.node = answer
            return None
        pool.worked()
        return self._moved(worker.calls.pop(call), pool, worker, answer)

    def _moved(self, shard: Shard, pool: Pool, worker: Worker, report: Report) -> Outcome | None:
        shard.seconds[pool.name] = report.seconds
        if report.outcome is not None:
            report.outcome.summary.seconds.update(shard.seconds)
            return report.outcome
        shard.stage += 1
        shard.node = worker.node
        if shard.stage == len(self.pools) - 1:
            self._with_crops.discard(shard)
        self.pools[shard.stage].waiting.append(shard)
        return None

    def _lost(self, pool: Pool, worker: Worker, error: RayActorError) -> None:
        """An actor died: what it worked at has failed, what waited there lost its place only."""
        for call in (*worker.calls, worker.started):
            self._calls.pop(call, None)
        pool.replace(worker, error)
        for place, shard in enumerate(worker.calls.values()):
            if place == 0:
                self._failed(shard, error)
            else:
                self._restart(shard)

    def _failed(self, shard: Shard, error: RayError) -> None:
        shard.failures += 1
        log.warning("shard %d failed: %s", shard.ref.shard, error)
        if shard.failures < _TRIES:
            self._restart(shard)
        else:
            self._with_crops.discard(shard)
            self._left -= 1

    def _restart(self, shard: Shard) -> None:
        """From the beginning: its crops may be gone with a node."""
        self._with_crops.discard(shard)
        shard.stage, shard.data, shard.node = 0, None, None
        shard.seconds.clear()
        self.pools[0].waiting.appendleft(shard)


def kill(worker: Worker) -> None:
    """End an actor, if Ray is there to do it."""
    with contextlib.suppress(RayError):
        ray.kill(worker.actor)


def last_line(error: RayError) -> str:
    """What went wrong, without Ray's stacks."""
    return str(error).strip().splitlines()[-1]
