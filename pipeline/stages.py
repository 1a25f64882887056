"""The three stages that a shard goes through: prepare, estimate, commit.

Each does a whole shard at a time, as an actor of Ray, and answers with rows for the next stage and
a `StageReport` for the driver.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.amend import commit, units_to_do
from pipeline.errors import InputError, RefusedError
from pipeline.fetch import fetch
from pipeline.guard import Decoder
from pipeline.lookout import Lookout, cannot_look
from pipeline.manifest import ShardRef, open_file
from pipeline.messages import DecoderConfig
from pipeline.poses import estimate_rows
from pipeline.rows import UnitRows, crops_table
from pipeline.stall import Note, Pulse
from pipeline.storage import Output, protocol_of
from pipeline.summary import Summary
from pipeline.units import Unit

if TYPE_CHECKING:
    from pipeline.estimators import EstimatorSpec

_FETCH_THREADS = 16
_ACCESS_CODES = ("forbidden", "storage")


class Prepare:
    """Fetch, decode, locate, crop: a shard's reference -> its rows with crops.

    With a `locator_device` of torch's, a person-net there locates people for all decoder processes;
    without, each does so itself, on the CPU.
    """

    def __init__(
        self,
        config: DecoderConfig,
        output: Output,
        decoders: int,
        pulse: Pulse | None = None,
        locator_device: str | None = None,
    ) -> None:
        self.config = config
        self.pulse = pulse or Pulse("prepare")
        self.output = output
        self.lookout: Lookout | None = None
        if locator_device is not None:
            try:
                net = config.people.build_net(locator_device)
            except RuntimeError as error:  # whatever a GPU refuses
                raise cannot_look(error) from error
            self.lookout = Lookout(net, self.pulse)
        self.pool = [Decoder(config, self.lookout) for _ in range(decoders)]
        self.free: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self.pool:
            self.free.put(decoder)
        self.workers = ThreadPoolExecutor(decoders, "decode")
        self.fetchers = ThreadPoolExecutor(_FETCH_THREADS, "fetch")
        self.ahead = 2 * decoders + _FETCH_THREADS
        self._manifest: tuple[str, pq.ParquetFile] | None = None

    def close(self) -> None:
        """End the decoder processes."""
        self.workers.shutdown()
        self.fetchers.shutdown()
        for decoder in self.pool:
            decoder.close()
        if self.lookout is not None:
            self.lookout.close()

    def shard(self, ref: ShardRef) -> pa.Table:
        """Rows with crops of all units of a shard that are to do."""
        with self.pulse.at(f"the plan of shard {ref.shard}"):
            if self._manifest is None or self._manifest[0] != ref.file:
                if self._manifest is not None:
                    self._manifest[1].close(force=True)
                self._manifest = ref.file, open_file(self.output, ref.file)
            units = units_to_do(self.output, ref, self._manifest[1])
        return self.units(units)

    def units(self, units: Iterable[Unit]) -> pa.Table:
        """Rows with crops of the given units, in their order. Raises LookoutError where people
        cannot be located, and PosemillError where no decoder can be started."""
        waiting: deque[Future[UnitRows]] = deque()
        done: list[UnitRows] = []
        try:
            for unit in units:
                waiting.append(self.workers.submit(self._unit, unit, self._fetched(unit)))
                if len(waiting) > self.ahead:
                    done.append(waiting.popleft().result())
            done += [future.result() for future in waiting]
        finally:
            # Where one has failed, nobody wants the others any more.
            for future in waiting:
                future.cancel()
        return crops_table(done)

    def _fetched(self, unit: Unit) -> Callable[[], bytes | None]:
        """Start to fetch a remote picture; local files and videos are read by the decoder."""
        if unit.kind == "video" or unit.error_code or protocol_of(unit.uri) == "file":
            return lambda: None
        future = self.fetchers.submit(fetch, unit.uri, self.config.storage, self.config.max_bytes)
        return future.result

    def _unit(self, unit: Unit, fetched: Callable[[], bytes | None]) -> UnitRows:
        rows = UnitRows(unit)
        decoder = self.free.get()
        try:
            if unit.error_code:
                raise InputError(unit.error_code, unit.error_message or "")
            with self.pulse.at(f"unit {unit.unit_id} ({unit.uri!a})"):
                for frame, crops in decoder.frames(unit, fetched()):
                    rows.add_frame(frame, crops)
        except InputError as error:
            rows.add_failure(error)
        finally:
            self.free.put(decoder)
        return rows


class Stage:
    """What an actor of any stage can be asked."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def node(self) -> str:
        """Where it runs; answered once it has started."""
        import ray

        place: str = ray.get_runtime_context().get_node_id()
        return place

    def notes(self) -> list[Note]:
        """What it is at."""
        return self.pulse.notes()

    def live(self) -> None:
        """Never ends: that the call fails tells the driver that the actor is gone."""
        threading.Event().wait()


class PrepareStage(Stage):
    """`Prepare` as an actor."""

    def __init__(
        self,
        config: DecoderConfig,
        output: Output,
        decoders: int,
        locator_device: str | None = None,
    ) -> None:
        super().__init__(Pulse("prepare"))
        self.prepare = Prepare(config, output, decoders, self.pulse, locator_device)

    def shard(self, ref: ShardRef) -> tuple[pa.Table, StageReport]:
        """Rows with crops."""
        started = time.monotonic()
        table = self.prepare.shard(ref)
        return table, StageReport(time.monotonic() - started)


class EstimateStage(Stage):
    """The network as an actor."""

    def __init__(self, spec: EstimatorSpec, same_person: float | None) -> None:
        super().__init__(Pulse("estimate"))
        self.same_person = same_person
        self.estimator = spec.build()

    def shard(self, ref: ShardRef, crops: pa.Table) -> tuple[pa.Table, StageReport]:
        """Rows with crops -> rows with keypoints."""
        started = time.monotonic()
        with self.pulse.at(f"shard {ref.shard}"):
            rows = estimate_rows(self.estimator, crops, self.same_person)
        return rows, StageReport(time.monotonic() - started)


class CommitStage(Stage):
    """The commit as an actor."""

    def __init__(self, output: Output, metadata: dict[bytes, bytes]) -> None:
        super().__init__(Pulse("commit"))
        self.output = output
        self.metadata = metadata

    def shard(self, ref: ShardRef, rows: pa.Table, final: bool) -> tuple[None, StageReport]:
        """Write the part. Of a shard that could mostly not be fetched only if this is `final`."""
        started = time.monotonic()
        summary = Summary.of(rows)
        committed = final or not out_of_reach(summary)
        refused = None
        if committed:
            try:
                with self.pulse.at(f"shard {ref.shard}"):
                    summary = commit(self.output, ref, rows, summary, self.metadata)
            except RefusedError as error:
                refused = str(error)
        outcome = Outcome(ref.shard, summary, committed, ref.amend, refused)
        return None, StageReport(time.monotonic() - started, outcome)


@dataclass(frozen=True)
class Outcome:
    """A shard that went through all stages, with the counts of what was done now.

    One that was not committed is still to do. One that was `amended` had a part before.
    """

    shard: int
    summary: Summary
    committed: bool
    amended: bool = False
    refused: str | None = None
    """Why the output does not take the part, if it does not: that is for the driver to tell."""


@dataclass(frozen=True)
class StageReport:
    """How long a stage took with a shard; the last one also says what came of it."""

    seconds: float
    outcome: Outcome | None = None


def out_of_reach(summary: Summary) -> bool:
    """Whether most of a shard could not be fetched, which says more of the storage than of it."""
    return 2 * access_failures(summary).total() > summary.units


def access_failures(summary: Summary) -> Counter[str]:
    """Failures that are the storage's or the credentials', by code."""
    return Counter({code: summary.failed[code] for code in _ACCESS_CODES})
