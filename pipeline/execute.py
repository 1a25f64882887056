"""Execution on Ray: shards through prepare, estimate and commit.

Ray's retries are for infrastructure only and bounded; what it loses, the driver notices by the
missing part.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from pipeline import cluster, schema
from pipeline.amend import commit, units_to_do
from pipeline.annotate import ExecutorInputs
from pipeline.errors import InputError, PosemillError
from pipeline.manifest import ShardRef, opened
from pipeline.poses import estimate_rows
from pipeline.progress import Reporter
from pipeline.rows import annotation_rows, crops_table, failure_rows
from pipeline.stages import (
    CommitStage,
    EstimateStage,
    Outcome,
    Prepare,
    PrepareStage,
    ref_from_json,
    refs_table,
)
from pipeline.stall import Board, Note, Watchdog
from pipeline.storage import Output
from pipeline.summary import Summary
from pipeline.units import Unit

log = logging.getLogger("posemill")

_TASK_RETRIES = 2
_BOARD_S = 5.0
_AT_START = "raised in its creation task"


class Executor:
    """Connects to Ray, checks that the graph fits, and runs shards."""

    def __init__(self, inputs: ExecutorInputs, reporter: Reporter) -> None:
        self.inputs = inputs
        self.reporter = reporter

    def __enter__(self) -> Self:
        """Connect; raises PosemillError if Ray cannot be reached or the graph does not fit."""
        self._log = Path(tempfile.gettempdir()) / f"posemill-{os.getpid()}.log"
        self.keep_log = False
        with ExitStack() as stack:
            stack.callback(self._drop_log)
            stack.enter_context(cluster.native_stderr_to(self._log))
            stack.enter_context(cluster.connected(self.inputs.settings.address))
            self._set_up()
            self._stack = stack.pop_all()
        return self

    def _drop_log(self) -> None:
        if not self.keep_log:
            self._log.unlink(missing_ok=True)

    def _set_up(self) -> None:
        self.layout = cluster.cluster_layout(self.inputs.settings)
        self.reporter.say(f"layout: {self.layout.describe()}")
        _configure_ray_data()
        num_keypoints = len(self.inputs.estimator.weights.info.skeleton)
        self._empty = schema.annotation_table(num_keypoints).empty_table()
        # On this node: it should not go with one that is preempted.
        here = {cluster.NODE_LABEL: ray.get_runtime_context().get_node_id()}
        board = ray.remote(num_cpus=0, max_restarts=-1, label_selector=here)(Board)
        self.board: Any = board.remote()
        self.decoder = ray.put(self.inputs.decoder)
        self.estimator = ray.put(replace(self.inputs.estimator, device=self.layout.device))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.keep_log = self.keep_log or isinstance(error, Exception)
        self._stack.close()
        if self.keep_log:
            self.reporter.say(f"what Ray printed is in {self._log}")

    def run(self, shards: Sequence[ShardRef]) -> Iterator[Outcome]:
        """Run shards as one Ray Data graph; yields each that came through.

        Shards of which most cannot be fetched are not committed yet. Ends early, with a warning,
        when Ray gives up; the caller looks at what is missing.
        """
        yield from self._run(shards, final=False)

    def run_again(self, shards: Sequence[ShardRef]) -> Iterator[Outcome]:
        """As `run`, and what still cannot be fetched gets its rows."""
        yield from self._run(shards, final=True)

    def _run(self, shards: Sequence[ShardRef], final: bool) -> Iterator[Outcome]:
        graph = self._graph(shards, final)
        after = self.inputs.settings.stall_after
        watchdog = Watchdog(after, self._notes, self.reporter.say)
        try:
            with watchdog:
                yield from self._outcomes(graph, watchdog)
        except RayError as error:
            if _AT_START in str(error):
                raise PosemillError(
                    f"a worker could not start: {_last_line(error)}; that is no fault of the "
                    "inputs: mend it, then run the same command again"
                ) from error
            self.reporter.say(f"Ray gave up on a graph: {_last_line(error)}")

    def _notes(self) -> list[Note]:
        try:
            notes: list[Note] = ray.get(self.board.notes.remote(), timeout=_BOARD_S)
        except RayError as error:
            log.warning("the board does not answer: %s", _last_line(error))
            return []
        return notes

    def _outcomes(self, graph: ray.data.Dataset, watchdog: Watchdog) -> Iterator[Outcome]:
        for row in graph.iter_rows():
            watchdog.moved()
            if row["refused"]:
                raise PosemillError(f"{row['refused']}; mend it, then run the same command again")
            summary, ref = Summary.from_json(row["summary"]), ref_from_json(row["ref"])
            yield Outcome(ref.shard, summary, row["committed"], ref.amend)

    def run_unit_by_unit(self, shards: Sequence[ShardRef]) -> Iterator[Outcome]:
        """Run every unit of the shards in a task of its own; one that fails becomes a row."""
        operator = self.layout.estimate
        task = _annotate_unit.options(num_cpus=operator.cpus, num_gpus=operator.gpus)
        for ref in shards:
            with opened(self.inputs.output, ref.file) as file:
                units = units_to_do(self.inputs.output, ref, file)
            results = [
                task.remote(
                    *(self.decoder, self.estimator, self.inputs.output, self.inputs.same_person),
                    unit,
                )
                for unit in units
            ]
            pairs = zip(units, results, strict=True)
            rows = [self._rows_of(unit, result) for unit, result in pairs]
            table = pa.concat_tables([self._empty, *rows])
            counts = Summary.of(table)
            summary = commit(self.inputs.output, ref, table, counts, self.inputs.metadata)
            yield Outcome(ref.shard, summary, True, ref.amend)

    def _rows_of(self, unit: Unit, result: Any) -> pa.Table:
        try:
            table: pa.Table = ray.get(result)
        except RayError as error:
            failure = InputError("internal", f"failed alone, too: {_last_line(error)}")
            crops = crops_table(failure_rows([unit], failure))
            num_keypoints = len(self.inputs.estimator.weights.info.skeleton)
            nobody = np.empty((0, num_keypoints, 3), np.float32)
            return annotation_rows(crops, nobody, num_keypoints)
        return table

    def _graph(self, shards: Sequence[ShardRef], final: bool) -> ray.data.Dataset:
        i, layout = self.inputs, self.layout
        graph: ray.data.Dataset = ray.data.from_arrow([refs_table(ref) for ref in shards])
        graph = _stage(
            graph,
            PrepareStage,
            (self.decoder, i.output, layout.decoders, self.board),
            layout.prepare,
        )
        estimator = self.estimator, layout.threads, i.same_person, self.board
        graph = _stage(graph, EstimateStage, estimator, layout.estimate)
        return _stage(graph, CommitStage, (i.output, i.metadata, final, self.board), layout.commit)


def _last_line(error: RayError) -> str:
    """What went wrong, without Ray's stacks."""
    return str(error).strip().splitlines()[-1]


def _stage(
    graph: ray.data.Dataset, stage: type, arguments: tuple[Any, ...], operator: cluster.Operator
) -> ray.data.Dataset:
    """One operator: a pool of actors, a batch is one shard."""
    with warnings.catch_warnings():
        # `max_task_retries` has no named parameter yet; without it Ray retries poison for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return graph.map_batches(
            stage,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(min_size=1, max_size=operator.actors),
            num_cpus=operator.cpus,
            num_gpus=operator.gpus or None,
            max_task_retries=_TASK_RETRIES,
        )


def _configure_ray_data() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    # A lost block is a missing part; the driver runs it again.
    context.max_errored_blocks = -1
    # A shard of slow units may take long; units have their own deadlines.
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@ray.remote(max_retries=_TASK_RETRIES)
def _annotate_unit(
    decoder: Any, estimator: Any, output: Output, same_person: float | None, unit: Unit
) -> pa.Table:
    """A unit alone, in a process of its own."""
    with closing(Prepare(decoder, output, 1)) as prepare:
        crops = prepare.units([unit])
    return estimate_rows(estimator.build(), crops, same_person)
