"""`posemill train`: the driver of a Ray Train run."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError

from cpm_core.stopping import stop_signals
from pipeline import cluster
from pipeline.errors import PosemillError
from pipeline.lock import Lock
from pipeline.progress import Reporter
from pipeline.samples import SampleTable
from pipeline.storage import Output, StorageOptions, absolute
from pipeline.training.feed import steps_per_epoch
from pipeline.training.logbook import Board, Logbook
from pipeline.training.loop import WorkerInputs, read_state, train_worker
from pipeline.training.record import RunRecord, identity
from pipeline.training.resources import Resources, plan
from pipeline.training.result import export
from pipeline.training.settings import TrainSettings
from pipeline.training.show import Show
from pipeline.training.start import Start, make_start
from pipeline.training.tidy import tidy

_POLL_S = 1.0
_RAY_TIMEOUT_S = 120.0

_LOOK_EVERY_S = 0.5
"""Ray Train's controller takes one report of each worker whenever it looks, by itself every two
seconds: checkpoints in quick succession, and the end of a run, would wait for that."""


@dataclass(frozen=True)
class Trained:
    """`weights` is where the result is; `new` whether this call had anything to do."""

    weights: str
    new: bool


def train(settings: TrainSettings, reporter: Reporter) -> Trained:
    """Train, or continue, the run of this name.

    Raises UsageError for unusable files or settings that are not the run's, LockedError if it is
    running elsewhere, PosemillError when training fails, KeyboardInterrupt after a checkpoint.
    """
    options = StorageOptions(settings.s3_endpoint)
    table = SampleTable(settings.samples, options)
    total = settings.epochs * steps_per_epoch(table, settings.recipe())
    start = make_start(settings, table.skeleton)
    output = Output(f"{settings.output.rstrip('/')}/{settings.name}", options)
    with Lock(output, (0, 1), reporter.say) as lock:
        record = RunRecord(output, identity(settings, start, table))
        weights = f"{settings.name}.safetensors"
        if record.finished.get("step", 0) >= total and output.read(weights) is not None:
            return Trained(f"{output.uri}/{weights}", new=False)
        record.start(settings)
        resume_from = tidy(output, reporter)
        with Logbook(output) as logbook:
            show = Show(reporter, logbook, total)
            state = _Run(settings, options, start, show, lock, resume_from).result(output)
            export(settings, table, start.config, state, logbook, output, lock)
        record.finish(step=state["step_number"], weights=weights)
    return Trained(f"{output.uri}/{weights}", new=True)


class _Run:
    """One start of the run on Ray."""

    def __init__(
        self,
        settings: TrainSettings,
        options: StorageOptions,
        start: Start,
        show: Show,
        lock: Lock,
        resume_from: ray.train.Checkpoint | None,
    ) -> None:
        self.settings, self.options = settings, options
        self.start, self.resume_from = start, resume_from
        self.show, self.lock = show, lock
        self._outcome: ray.train.Result | Exception | None = None

    def result(self, output: Output) -> dict[str, Any]:
        """Run to the end; the state of the last checkpoint.

        On Ctrl-C or SIGTERM the workers write a checkpoint first; a second one stops at once.
        """
        with cluster.connected(self.settings.address, dashboard=True):
            board = _board()
            trainer = self._trainer(board, output)
            thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
            with stop_signals() as stopping:
                thread.start()
                while thread.is_alive():
                    thread.join(_POLL_S)
                    self._look(board, stopping)
            self._look(board, stopping)
            state = self._state()
        if stopping.is_set() and state["step_number"] < self.show.total_steps:
            raise KeyboardInterrupt
        return state

    def _look(self, board: Any, stopping: threading.Event) -> None:
        self.lock.check()
        if stopping.is_set() and not self.show.stopping:
            self.show.stop()
            board.stop.remote()
        try:
            records = ray.get(board.take.remote(), timeout=_RAY_TIMEOUT_S)
        except RayError as error:
            raise PosemillError(
                f"Ray is gone ({type(error).__name__}); the same command continues from the last "
                "checkpoint"
            ) from error
        for record in records:
            if record["kind"] == "failed":
                raise PosemillError(record["message"])
            self.show.record(record)
        self.show.waiting()

    def _state(self) -> dict[str, Any]:
        outcome = self._outcome
        name = self.settings.name
        if isinstance(outcome, Exception):
            reason = (str(outcome).strip() or type(outcome).__name__).splitlines()[-1]
            raise PosemillError(
                f"training {name} failed: {reason}; the same command continues from the last "
                "checkpoint"
            ) from outcome
        if outcome is None or outcome.checkpoint is None:
            raise PosemillError(f"training {name} ended without a checkpoint")
        return read_state(outcome.checkpoint)

    def _fit(self, trainer: ray.train.torch.TorchTrainer) -> None:
        """In a thread of its own: Ray Train takes over Ctrl-C in the main one."""
        try:
            self._outcome = trainer.fit()
        except Exception as error:  # noqa: BLE001  (raised again by the thread that waits)
            self._outcome = error

    def _trainer(self, board: Any, output: Output) -> ray.train.torch.TorchTrainer:
        settings = self.settings
        least, most = settings.worker_range
        resources = self._resources()
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_LOOK_EVERY_S))
        inputs = WorkerInputs(
            samples=absolute(settings.samples),
            options=self.options,
            config=self.start.config,
            recipe=settings.recipe(),
            initial=ray.put(self.start.weights),
            board=board,
            threads=resources.threads,
            loaders=resources.loaders,
            checkpoint_s=60 * settings.checkpoint_minutes,
            resume_from=self.resume_from,
            teacher=settings.teacher_spec,
        )
        folder, _, name = output.root.rpartition("/")
        return ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"inputs": inputs},
            scaling_config=ray.train.ScalingConfig(
                num_workers=least if least == most else (least, most),  # type: ignore[arg-type]
                use_gpu=resources.device == "cuda",
                resources_per_worker=resources.for_ray(),
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=folder,
                storage_filesystem=output.arrow_filesystem(),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
                callbacks=[_Failures(board)],  # type: ignore[list-item]
            ),
        )

    def _resources(self) -> Resources:
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        address = self.settings.address or os.environ.get("RAY_ADDRESS", "local")
        resources = plan(self.settings, nodes, may_grow=address != "local")
        self.show.resources(resources)
        return resources


def _board() -> Any:
    """A board on the driver's node, so that it lives as long as the driver."""
    here = ray.get_runtime_context().get_node_id()
    return Board.options(label_selector={cluster.NODE_LABEL: here}).remote()  # type: ignore[attr-defined]


class _Failures(ray.train.UserCallback):
    """Tells the driver, from within Ray Train's controller, that workers are replaced."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called with the exception of each worker that failed."""
        for rank, error in sorted(worker_exceptions.items()):
            message = str(error).strip().splitlines()[-1:]
            text = f"worker {rank}: {message[0] if message else type(error).__name__}"
            self.board.post.remote({"kind": "lost_worker", "message": text})
