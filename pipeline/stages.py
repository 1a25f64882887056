"""The three stages of the graph: prepare, estimate, commit.

A row of the Ray Data graph is a whole shard: its tables travel as Arrow IPC bytes in the column
`payload`, so that Ray can neither cut a shard in two nor merge two, and a batch of one row is one
shard on CPU and GPU alike.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.amend import commit, units_to_do
from pipeline.errors import InputError, RefusedError
from pipeline.fetch import fetch
from pipeline.guard import Decoder
from pipeline.manifest import ShardRef, open_file
from pipeline.messages import DecoderConfig
from pipeline.poses import estimate_rows
from pipeline.rows import UnitRows, crops_table, pack, unpack
from pipeline.stall import Pulse
from pipeline.storage import Output, protocol_of
from pipeline.summary import Summary
from pipeline.units import Unit

if TYPE_CHECKING:
    from cpm_core.estimator import Estimator

_FETCH_THREADS = 16
_ACCESS_CODES = ("forbidden", "storage")


class Prepare:
    """Fetch, decode, locate, crop: a shard's reference -> its rows with crops."""

    def __init__(
        self, config: DecoderConfig, output: Output, decoders: int, pulse: Pulse | None = None
    ) -> None:
        self.config = config
        self.pulse = pulse or Pulse("prepare")
        self.output = output
        self.pool = [Decoder(config) for _ in range(decoders)]
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

    def shard(self, ref: ShardRef) -> pa.Table:
        """Rows with crops of all units of a shard that are to do."""
        if self._manifest is None or self._manifest[0] != ref.file:
            if self._manifest is not None:
                self._manifest[1].close(force=True)
            self._manifest = ref.file, open_file(self.output, ref.file)
        return self.units(units_to_do(self.output, ref, self._manifest[1]))

    def units(self, units: Iterable[Unit]) -> pa.Table:
        """Rows with crops of the given units, in their order."""
        waiting: deque[Future[UnitRows]] = deque()
        done: list[UnitRows] = []
        for unit in units:
            waiting.append(self.workers.submit(self._unit, unit, self._fetched(unit)))
            if len(waiting) > self.ahead:
                done.append(waiting.popleft().result())
        done += [future.result() for future in waiting]
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


class PrepareStage:
    """`Prepare` as Ray Data calls it."""

    def __init__(self, config: Any, output: Output, decoders: int, board: Any) -> None:
        import ray

        self.prepare = Prepare(ray.get(config), output, decoders, Pulse.on("prepare", board))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """ref -> ref, payload, seconds."""
        started = time.monotonic()
        ref = ref_of(batch)
        table = self.prepare.shard(ref)
        return _row(ref, table, {"prepare": time.monotonic() - started})


class EstimateStage:
    """The network as Ray Data calls it."""

    def __init__(self, make: Any, threads: int, same_person: float | None, board: Any) -> None:
        import ray
        import torch

        self.pulse = Pulse.on("estimate", board)
        self.same_person = same_person
        torch.set_num_threads(threads)
        self.estimator: Estimator = ray.get(make).build()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """ref, payload with crops, seconds -> ref, payload with keypoints, seconds."""
        started = time.monotonic()
        ref, table, seconds = _unrow(batch)
        with self.pulse.at(f"shard {ref.shard}"):
            rows = estimate_rows(self.estimator, table, self.same_person)
        return _row(ref, rows, seconds | {"estimate": time.monotonic() - started})


class CommitStage:
    """The commit as Ray Data calls it."""

    def __init__(
        self, output: Output, metadata: dict[bytes, bytes], final: bool, board: Any
    ) -> None:
        self.pulse = Pulse.on("commit", board)
        self.output = output
        self.metadata = metadata
        self.final = final

    def __call__(self, batch: pa.Table) -> pa.Table:
        """ref, payload with keypoints, seconds -> ref, summary, committed, refused.

        `refused` says why the output does not take the part: that is for the driver to tell.
        """
        started = time.monotonic()
        ref, table, seconds = _unrow(batch)
        summary = Summary.of(table)
        committed = self.final or not out_of_reach(summary)
        refused = None
        if committed:
            try:
                with self.pulse.at(f"shard {ref.shard}"):
                    summary = commit(self.output, ref, table, summary, self.metadata)
            except RefusedError as error:
                refused = str(error)
        summary.seconds.update(seconds | {"commit": time.monotonic() - started})
        row = {"summary": [summary.to_json()], "committed": [committed]}
        return pa.table({"ref": batch["ref"], **row, "refused": pa.array([refused], pa.string())})


@dataclass(frozen=True)
class Outcome:
    """A shard that went through the graph, with the counts of what was done now.

    One that was not committed is still to do. One that was `amended` had a part before.
    """

    shard: int
    summary: Summary
    committed: bool
    amended: bool = False


def out_of_reach(summary: Summary) -> bool:
    """Whether most of a shard could not be fetched, which says more of the storage than of it."""
    return 2 * access_failures(summary).total() > summary.units


def access_failures(summary: Summary) -> Counter[str]:
    """Failures that are the storage's or the credentials', by code."""
    return Counter({code: summary.failed[code] for code in _ACCESS_CODES})


@dataclass(frozen=True)
class EstimatorSpec:
    """What an estimator is made of; travels to the actors once, through the object store."""

    weights: Any
    device: str | None
    precision: Any
    flip: bool
    scales: tuple[float, ...]
    refinement: Any
    box_factor: float | None

    def build(self) -> Estimator:
        """The estimator."""
        from cpm_core.estimator import Estimator

        return Estimator(**vars(self))


def refs_table(ref: ShardRef) -> pa.Table:
    """A row of the graph as it starts."""
    return pa.table({"ref": [json.dumps(asdict(ref))]})


def ref_of(batch: pa.Table) -> ShardRef:
    """The shard that a row of the graph is about."""
    assert batch.num_rows == 1, "a batch is one shard"
    return ref_from_json(batch["ref"][0].as_py())


def ref_from_json(text: str) -> ShardRef:
    """Undo what `refs_table` makes of a shard."""
    values = json.loads(text)
    redo = values["redo"] if values["redo"] is None else tuple(values["redo"])
    return ShardRef(**{**values, "retired": tuple(values["retired"]), "redo": redo})


def _row(ref: ShardRef, table: pa.Table, seconds: dict[str, float]) -> pa.Table:
    payload = pack(table)
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        1,
        [None, pa.py_buffer(_offsets(payload.size)), payload],
    )
    row = refs_table(ref).append_column("payload", column)
    return row.append_column("seconds", [[json.dumps(seconds)]])


def _unrow(batch: pa.Table) -> tuple[ShardRef, pa.Table, dict[str, float]]:
    payload = batch["payload"][0].as_buffer()
    return ref_of(batch), unpack(payload), json.loads(batch["seconds"][0].as_py())


def _offsets(size: int) -> bytes:
    return (0).to_bytes(8, "little") + size.to_bytes(8, "little")
