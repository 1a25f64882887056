"""Execution on Ray: connecting, the actors of the three stages, units that have to run alone."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from pipeline import cluster, schema
from pipeline.amend import commit, units_to_do
from pipeline.annotate import ExecutorInputs
from pipeline.errors import InputError, PosemillError
from pipeline.estimators import EstimatorSpec
from pipeline.flow import Flow, Pool, last_line
from pipeline.layout import Layout, Operator, layout
from pipeline.manifest import ShardRef, opened
from pipeline.poses import estimate_rows
from pipeline.progress import Reporter
from pipeline.rows import annotation_rows, crops_table, failure_rows
from pipeline.stages import CommitStage, EstimateStage, Outcome, Prepare, PrepareStage
from pipeline.stall import Note, Watchdog
from pipeline.storage import Output
from pipeline.summary import Summary
from pipeline.units import Unit

_UNIT_RETRIES = 2


class Executor:
    """Connects to Ray, checks that all stages fit, and runs shards."""

    def __init__(self, inputs: ExecutorInputs, reporter: Reporter) -> None:
        self.inputs = inputs
        self.reporter = reporter

    def __enter__(self) -> Self:
        """Connect; raises PosemillError if Ray cannot be reached or the stages do not fit."""
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
        self.is_light = self.inputs.weights.info.config.trunk == "lite"
        self.layout = cluster.cluster_layout(self.inputs.settings, self.is_light)
        self.reporter.say(f"layout: {self.layout.describe()}")
        num_keypoints = len(self.inputs.weights.info.skeleton)
        self._empty = schema.annotation_table(num_keypoints).empty_table()
        graph, net = self.inputs.compiler.networks()
        decoder, layout = self.inputs.decoder, self.layout
        self.decoder = ray.put(replace(decoder, people=replace(decoder.people, net=net)))
        spec = EstimatorSpec.of(
            self.inputs.weights, self.inputs.estimator, layout.device, layout.threads, graph
        )
        self.estimator = ray.put(spec)
        self._flow: Flow | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.keep_log = self.keep_log or isinstance(error, Exception)
        self._end_actors()
        self._stack.close()
        if self.keep_log:
            self.reporter.say(f"what Ray printed is in {self._log}")

    def run(self, shards: Sequence[ShardRef]) -> Iterator[Outcome]:
        """Run shards; yields each that came through.

        Shards of which most cannot be fetched are not committed yet. Ends early, with a warning,
        when Ray gives up; the caller looks at what is missing.
        """
        yield from self._run(shards, final=False)

    def run_again(self, shards: Sequence[ShardRef]) -> Iterator[Outcome]:
        """As `run`, and what still cannot be fetched gets its rows."""
        yield from self._run(shards, final=True)

    def _run(self, shards: Sequence[ShardRef], final: bool) -> Iterator[Outcome]:
        after = self.inputs.settings.stall_after
        try:
            self._flow = flow = self._flow or self._start_actors()
            with Watchdog(after, partial(_notes, flow), self.reporter.say) as watchdog:
                for outcome in flow.run(shards, final):
                    watchdog.moved()
                    if outcome.refused:
                        raise PosemillError(
                            f"{outcome.refused}; mend it, then run the same command again"
                        )
                    yield outcome
        except RayError as error:
            self.reporter.say(f"Ray gave up: {last_line(error)}")
            self._end_actors()

    def run_unit_by_unit(self, shards: Sequence[ShardRef]) -> Iterator[Outcome]:
        """Run every unit of the shards in a task of its own; one that fails becomes a row.

        People are located on the CPU, whatever happened to the device.
        """
        self._end_actors()
        operator = self.layout.estimate
        task = _annotate_unit.options(num_cpus=operator.cpus, num_gpus=operator.gpus)
        for ref in shards:
            with opened(self.inputs.output, ref.file) as file:
                units = units_to_do(self.inputs.output, ref, file)
            # A few at a time, as each has a decoder and a network of its own.
            under_way: deque[tuple[Unit, Any]] = deque()
            rows: list[pa.Table] = []
            failures: list[InputError] = []
            for unit in units:
                arguments = self.decoder, self.estimator, self.inputs.output
                under_way.append((unit, task.remote(*arguments, self.inputs.same_person, unit)))
                if len(under_way) >= self.layout.prepare.actors:
                    rows.append(self._rows_of(*under_way.popleft(), failures))
            rows += [self._rows_of(*pair, failures) for pair in under_way]
            check_failures(ref, len(units), failures)
            table = pa.concat_tables([self._empty, *rows])
            counts = Summary.of(table)
            summary = commit(self.inputs.output, ref, table, counts, self.inputs.metadata)
            yield Outcome(ref.shard, summary, True, ref.amend)

    def _rows_of(self, unit: Unit, result: Any, failures: list[InputError]) -> pa.Table:
        try:
            table: pa.Table = ray.get(result)
        except RayError as error:
            failures.append(failure_alone(unit, error))
            crops = crops_table(failure_rows([unit], failures[-1]))
            num_keypoints = len(self.inputs.weights.info.skeleton)
            nobody = np.empty((0, num_keypoints, 3), np.float32)
            return annotation_rows(crops, nobody, num_keypoints)
        return table

    def _start_actors(self) -> Flow:
        i, shares = self.inputs, self.layout
        estimate = make_pool(shares.estimate, EstimateStage, self.estimator, i.same_person)
        how = self.decoder, i.output, shares.decoders, shares.locator_device
        prepare = make_pool(shares.prepare, PrepareStage, *how)
        if shares.prepare.gpus:
            prepare.beside = estimate
        commits = make_pool(shares.commit, CommitStage, i.output, i.metadata)
        return Flow((prepare, estimate, commits), shares.shards_ahead, self._layout_now)

    def _layout_now(self) -> Layout:
        nodes = cluster.nodes_alive()
        return layout(self.inputs.settings, nodes, self.is_light, self.layout)

    def _end_actors(self) -> None:
        if self._flow is not None:
            self._flow.close()
        self._flow = None


def failure_alone(unit: Unit, error: RayError) -> InputError:
    """What a unit is told to be that failed in a task of its own.

    Raises PosemillError where that says nothing about the unit: its node was lost, or no decoder
    could be started.
    """
    is_its_own = isinstance(error, (RayTaskError, WorkerCrashedError, OutOfMemoryError))
    # Ray gives a task's error the class of its cause, too.
    if not is_its_own or isinstance(error, PosemillError):
        raise PosemillError(
            f"{unit.uri} could not be annotated, and nobody knows whether it can be: "
            f"{last_line(error)}; run the same command again, nothing is lost"
        ) from error
    return InputError("internal", f"failed alone, too: {last_line(error)}")


def check_failures(ref: ShardRef, units: int, failures: Sequence[InputError]) -> None:
    """Raise PosemillError where each of several units failed alone: what they share is the machine
    and the network."""
    if len(failures) == units > 1:
        raise PosemillError(
            f"all {units} units of shard {ref.shard} failed, each in a task of its own, which is "
            f"no fault of theirs; the last {failures[-1]}: mend it, then run the same command "
            "again, nothing is lost"
        )


def _notes(flow: Flow) -> list[Note]:
    try:
        return flow.notes()
    except RayError as error:
        return [Note("Ray", f"no answer ({last_line(error)})", 0.0)]


def make_pool(operator: Operator, stage: type, *arguments: Any) -> Pool:
    """The actors of a stage, over all nodes. References among the arguments arrive as values."""
    options: dict[str, Any] = {
        "num_cpus": operator.cpus,
        "num_gpus": operator.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": operator.at_once,
        "concurrency_groups": {"notes": 1, "life": 1},
        "scheduling_strategy": "SPREAD",
    }
    actor: Any = ray.remote(**options)(stage)
    make = partial(actor.remote, *arguments)
    return Pool(operator.name, operator.actors, make, operator.at_once)


@ray.remote(max_retries=_UNIT_RETRIES)
def _annotate_unit(
    decoder: Any, estimator: Any, output: Output, same_person: float | None, unit: Unit
) -> pa.Table:
    """A unit alone, in a process of its own."""
    with closing(Prepare(decoder, output, 1)) as prepare:
        crops = prepare.units([unit])
    return estimate_rows(estimator.build(), crops, same_person)
