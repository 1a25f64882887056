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
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from pipeline.errors import PosemillError
from pipeline.layout import Layout
from pipeline.manifest import ShardRef
from pipeline.stages import Outcome, StageReport
from pipeline.stall import Note

log = logging.getLogger("posemill")

_TRIES = 3
"""Of a shard, before it is left to the driver."""

_LOSSES = 20
"""Of a shard's crops, which nodes that go take with them."""

_FAILED_STARTS_IN_A_ROW = 5
_FAILURES_IN_A_ROW = 3
"""Of one actor, which may be the reason: on its node there may be no room on the disk."""

_ROWS_WAITING = 8
"""Shards per commit actor that may wait for it before estimators wait, too."""

_NOTES_S = 5.0
_LOOK_EVERY_S = 10.0
_PATIENCE_S = 60.0
_WAIT_S = 1.0
_LAST_WORDS_S = 10.0
"""For the answers of an actor that is dead; the other calls end with it."""

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
    losses: int = 0
    submitted: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Member:
    """An actor of a pool and the calls under way, oldest first. Its `node` is known once it has
    started. The call `life` never ends, but when the actor dies."""

    actor: Any
    started: Any
    life: Any
    node: str | None = None
    calls: dict[Any, Shard] = field(default_factory=dict)
    failures_in_a_row: int = 0


class Pool:
    """The actors of one stage, `size` of them, and the shards that wait for one.

    An actor works at so many shards `at_once`, and has one more waiting. With another pool
    `beside`, there are only as many, in proportion, as that one has started; all, once it has
    started none for a minute, as there is then no place for more.
    """

    def __init__(self, name: str, size: int, make: Callable[[], Any], at_once: int = 1) -> None:
        self.name = name
        self.size = size
        self.at_once = at_once
        self.beside: Pool | None = None
        self._beside_since = 0, time.monotonic()
        self.waiting: deque[Shard] = deque()
        self.members: list[Member] = []
        self._make = make
        self._failed_starts = 0
        self._has_started = False

    def free(self, node: str | None) -> Member | None:
        """The started member with the fewest calls, rather one on `node`; None if all are full."""
        able = (m for m in self.members if m.node is not None and len(m.calls) <= self.at_once)
        return min(able, key=lambda m: (len(m.calls), m.node != node), default=None)

    def wanted(self) -> int:
        """How many members there should be now."""
        if self.beside is None:
            return self.size
        # Ray puts small shares of GPUs where the least is left. Before the large ones have their
        # places, that is all on one GPU, of which then no large share is left.
        there = sum(member.node is not None for member in self.beside.members)
        before, since = self._beside_since
        if there != before:
            self._beside_since = there, time.monotonic()
        elif there and time.monotonic() - since >= _PATIENCE_S:
            return self.size
        return max(1, self.size * there // self.beside.size)

    def grow(self, size: int) -> list[Member]:
        """Have at least so many members; those that are new."""
        new = [self._new() for _ in range(size - len(self.members))]
        self.members += new
        return new

    def started(self, member: Member, node: str) -> None:
        """A member is ready to work."""
        member.node = node
        self._has_started = True
        self._failed_starts = 0

    def lose(self, member: Member, error: RayError) -> bool:
        """A member died; whether another shall take its place at once.

        One that could not start is tried again later only, once any has: where others work, its
        node may be to blame. Raises StartError where none works and none can start.
        """
        self.members.remove(member)
        kill(member)
        reason = last_line(error)
        log.warning("a %s worker is gone: %s", self.name, reason)
        if member.node is not None:
            return True
        if any(other.node is not None for other in self.members):
            self._failed_starts = 0
            return False
        self._failed_starts += 1
        if _AT_START in str(error) and not self._has_started:
            raise StartError(
                f"a worker could not start: {reason}; that is no fault of the inputs: mend it, "
                "then run the same command again"
            )
        if self._failed_starts >= _FAILED_STARTS_IN_A_ROW * self.size:
            raise StartError(
                f"{self._failed_starts} {self.name} workers in a row died before they had started, "
                f"the last with: {reason}; see what Ray printed, mend it, then run the same "
                "command again"
            )
        return not self._has_started

    def _new(self) -> Member:
        actor = self._make()
        life = actor.live.options(concurrency_group="life").remote()
        return Member(actor, actor.node.remote(), life)


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
        self._calls: dict[Any, tuple[Pool, Member]] = {}
        self._with_crops: set[Shard] = set()
        self._left = 0
        # One of each first: where room is short, none of a kind would be worse than few of another.
        for pool in pools:
            self._grow(pool, 1)
        for pool in reversed(pools):
            self._grow(pool, pool.wanted())

    def run(self, refs: Sequence[ShardRef], final: bool) -> Iterator[Outcome]:
        """What came of each shard, as they come. One that fails for good is left out.

        Raises StartError, and RayError when Ray itself is gone.
        """
        self.pools[0].waiting.extend(Shard(ref) for ref in refs)
        self._left = len(refs)
        while self._left:
            self._look_around()
            self._submit(final)
            for call in self._arrived():
                outcome = self._take(call)
                if outcome is not None:
                    self._left -= 1
                    yield outcome

    def notes(self) -> list[Note]:
        """What the workers are at, the longest first; raises RayError."""
        asked = {
            m.actor.notes.options(concurrency_group="notes").remote(): (pool.name, m)
            for pool in self.pools
            for m in list(pool.members)
            if m.node is not None
        }
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_NOTES_S)
        now = time.monotonic()
        found: list[Note] = []
        for name, member in (asked[call] for call in silent):
            oldest = min((s.submitted for s in list(member.calls.values())), default=now)
            found.append(Note(name, "an actor that does not answer", now - oldest))
        for call in answered:
            with contextlib.suppress(RayError):
                found += ray.get(call)
        return sorted(found, key=lambda note: -note.seconds)

    def close(self) -> None:
        """End all actors."""
        for pool in self.pools:
            for member in pool.members:
                kill(member)

    def _grow(self, pool: Pool, size: int) -> None:
        for member in pool.grow(size):
            for call in (member.started, member.life):
                self._calls[call] = pool, member

    def _look_around(self) -> None:
        """Now and then, see whether nodes have joined, and replace what could not start."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        if self._look is not None:
            layout = self._look()
            self.ahead = layout.shards_ahead
            for pool, operator in zip(self.pools, layout.operators, strict=True):
                pool.size = max(pool.size, operator.actors)
        for pool in reversed(self.pools):
            self._grow(pool, pool.wanted())

    def _submit(self, final: bool) -> None:
        """Give waiting shards to free workers, late stages first."""
        for pool in reversed(self.pools):
            while pool.waiting and not self._is_held_back(pool):
                shard = pool.waiting[0]
                if (member := pool.free(shard.node)) is None:
                    break
                pool.waiting.popleft()
                self._call(pool, member, shard, final)

    def _is_held_back(self, pool: Pool) -> bool:
        """Whether what comes after a stage is too far behind."""
        if pool is self.pools[0]:
            return len(self._with_crops) >= self.ahead
        last = self.pools[-1]
        return pool is not last and len(last.waiting) >= _ROWS_WAITING * last.size

    def _call(self, pool: Pool, member: Member, shard: Shard, final: bool) -> None:
        first, last = pool is self.pools[0], pool is self.pools[-1]
        if first:
            self._with_crops.add(shard)
        rows = () if first else (shard.data,)
        shard.data, report = member.actor.shard.options(num_returns=2).remote(
            shard.ref, *rows, *((final,) if last else ())
        )
        shard.submitted = time.monotonic()
        member.calls[report] = shard
        self._calls[report] = pool, member

    def _arrived(self) -> list[Any]:
        """Calls that are over, once there is one or a second has passed; nothing is fetched."""
        waiting = list(self._calls)
        over, _ = ray.wait(waiting, timeout=_WAIT_S, fetch_local=False)
        if over:
            over, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        # A worker's death comes last, after all that it was asked: an answer may arrive later than
        # that news, and who has one is not to be taken for its victim, nor for its cause.
        deaths = [call for call in over if call == self._calls[call][1].life]
        asked = [call for death in deaths for call in self._calls[death][1].calls]
        if asked:
            asked, _ = ray.wait(
                asked, num_returns=len(asked), timeout=_LAST_WORDS_S, fetch_local=False
            )
        others = (call for call in over if call not in deaths)
        return list(dict.fromkeys([*others, *asked, *deaths]))

    def _take(self, call: Any) -> Outcome | None:
        """Move a shard on; an outcome if it was its last stage."""
        if call not in self._calls:
            return None  # Its worker was lost with another call.
        pool, member = self._calls.pop(call)
        try:
            answer: str | StageReport = ray.get(call)
        except (RayTaskError, ObjectLostError) as error:
            if call not in member.calls:
                raise  # No shard's: what has failed is Ray.
            self._failed(member.calls.pop(call), error)
            member.failures_in_a_row += 1
            if member.failures_in_a_row >= _FAILURES_IN_A_ROW:
                self._lost(pool, member, error)
            return None
        except RayError as error:
            # Whatever else Ray says, the actor is gone, also that it was killed for its memory; or
            # it shall be, as when it cannot be reached.
            if call == member.life:
                self._lost(pool, member, error)
            else:
                kill(member)
            return None
        if isinstance(answer, str):
            pool.started(member, answer)
            for other in self.pools:
                if other.beside is pool:
                    self._grow(other, other.wanted())
            return None
        member.failures_in_a_row = 0
        return self._moved(member.calls.pop(call), pool, member, answer)

    def _moved(
        self, shard: Shard, pool: Pool, member: Member, report: StageReport
    ) -> Outcome | None:
        shard.seconds[pool.name] = report.seconds
        if report.outcome is not None:
            report.outcome.summary.seconds.update(shard.seconds)
            return report.outcome
        shard.stage += 1
        shard.node = member.node
        if shard.stage == len(self.pools) - 1:
            self._with_crops.discard(shard)
        self.pools[shard.stage].waiting.append(shard)
        return None

    def _lost(self, pool: Pool, member: Member, error: RayError) -> None:
        """An actor died: what it worked at has failed, what waited there lost its place only."""
        for call in (*member.calls, member.started, member.life):
            self._calls.pop(call, None)
        shards = list(member.calls.values())
        for shard in reversed(shards[pool.at_once :]):
            self._restart(shard)
        for shard in shards[: pool.at_once]:
            self._failed(shard, error)
        if pool.lose(member, error):
            self._grow(pool, pool.wanted())

    def _failed(self, shard: Shard, error: RayError) -> None:
        """It is tried again later, as the worker may be to blame. That its crops were lost with a
        node is no fault of its own."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ObjectLostError):
            shard.losses += 1
        else:
            shard.failures += 1
        log.warning("shard %d failed: %s", shard.ref.shard, error)
        if shard.failures < _TRIES and shard.losses < _LOSSES:
            self._restart(shard, last=True)
        else:
            self._with_crops.discard(shard)
            self._left -= 1

    def _restart(self, shard: Shard, last: bool = False) -> None:
        """From the beginning: its crops may be gone with a node."""
        self._with_crops.discard(shard)
        shard.stage, shard.data, shard.node = 0, None, None
        shard.seconds.clear()
        if last:
            self.pools[0].waiting.append(shard)
        else:
            self.pools[0].waiting.appendleft(shard)


def kill(member: Member) -> None:
    """End an actor, if Ray is there to do it."""
    with contextlib.suppress(RayError):
        ray.kill(member.actor)


def last_line(error: RayError) -> str:
    """What went wrong, without Ray's stacks."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
