"""What one training worker does: steps, validation, checkpoints, reports."""

from __future__ import annotations

import copy
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode
from torch import Tensor

from cpm_core.config import CpmConfig
from cpm_core.errors import ConfigError
from cpm_core.model import Cpm
from cpm_core.recipe import Recipe
from cpm_core.result import Best
from cpm_core.student import Student
from cpm_core.teacher import Teacher, TeacherSpec
from cpm_core.training import Batch, Fit, freeze, stage_pck
from pipeline.errors import PosemillError
from pipeline.samples import SampleTable
from pipeline.storage import StorageOptions
from pipeline.training.feed import Feed, Place
from pipeline.training.pictures import BeliefPictures
from pipeline.training.prefetch import prefetched

STATE = "state.pt"
_INTERVAL_S = 5.0
_MOST_STEPS_PER_INTERVAL = 200
_STEPS_READY = 2


@dataclass(frozen=True)
class WorkerInputs:
    """All that a worker needs. `initial` and `board` are references into the cluster."""

    samples: str
    options: StorageOptions
    config: CpmConfig
    recipe: Recipe
    initial: Any
    board: Any
    threads: int
    loaders: int
    checkpoint_s: float
    resume_from: ray.train.Checkpoint | None = None
    teacher: TeacherSpec | None = None


def train_worker(values: dict[str, WorkerInputs]) -> None:
    """Entry point of a worker of the `TorchTrainer`."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    inputs = values["inputs"]
    try:
        Loop(inputs).run()
    except PosemillError as error:
        # Trying again would not help; the driver ends the run with these words.
        ray.get(inputs.board.post.remote({"kind": "failed", "message": str(error)}))
        raise


class Loop:
    """Steps from the last checkpoint to the end of the run."""

    def __init__(self, inputs: WorkerInputs) -> None:
        context = ray.train.get_context()
        self.inputs, self.recipe = inputs, inputs.recipe
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        place = Place(self.rank, self.world, inputs.loaders)
        torch.set_num_threads(inputs.threads)
        self.device = ray.train.torch.get_device()
        table = SampleTable(inputs.samples, inputs.options)
        self.skeleton = table.skeleton
        self.feed = Feed(table, inputs.recipe, place, self._bad_sample, inputs.teacher)
        model = Cpm(inputs.config)
        model.load_state_dict(ray.get(inputs.initial))
        freeze(model, inputs.recipe)
        student = Student(model, _teacher_channels(inputs.teacher)) if inputs.teacher else None
        whole = model if student is None else student
        whole.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = ray.train.torch.prepare_model(whole, move_to_device=False)
        steps = self.feed.total_steps
        self.fit = Fit(model, inputs.recipe, steps, network, self.rank, self.world, student)
        self.best: Best | None = None
        self.pictures = BeliefPictures(table, inputs.recipe) if self.rank == 0 else None
        self._losses: list[Tensor] = []
        self._seen = 0
        self._waited = 0.0
        self._steps_left = 1
        self._preempted: set[str] = set()
        self._uploaded = threading.Event()
        self._uploaded.set()
        self._interval_started = self._checkpointed = time.monotonic()

    def run(self) -> None:
        """Train to the end, or until the driver asks to stop."""
        self._resume()
        self._post({"kind": "start", "workers": self.world, "total_steps": self.fit.total_steps})
        batches = prefetched(self.feed.train(self.fit.step_number), _STEPS_READY)
        with closing(batches):
            while (batch := self._next(batches)) is not None:
                if self._step(batch):
                    return

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; None after the last one."""
        started = time.monotonic()
        batch = next(batches, None)
        self._waited += time.monotonic() - started
        return batch

    def _step(self, batch: Batch) -> bool:
        """One step and what is due after it; whether the run shall stop."""
        losses = self.fit.step(batch.to(self.device), total=self.recipe.batch_size)
        self._losses.append(losses)
        self._seen += len(batch.crops)
        self._steps_left -= 1
        ends_epoch = self.fit.step_number % self.feed.steps_per_epoch == 0
        if not ends_epoch and self._steps_left > 0:
            return False
        wants = self._interval()
        if ends_epoch:
            self._validate()
        done = self.fit.step_number == self.fit.total_steps
        if wants.checkpoint or done or (ends_epoch and not wants.patience):
            self._checkpoint()
        return wants.stop

    def _interval(self) -> _Wants:
        """What all workers do together now and then: add up losses, agree on what comes next.

        Raises PosemillError when a loss is not finite.
        """
        seconds = max(time.monotonic() - self._interval_started, 1e-6)
        steps = len(self._losses)
        leader = self.rank == 0
        due = leader and time.monotonic() - self._checkpointed >= self.inputs.checkpoint_s
        per_interval = int(steps * _INTERVAL_S / seconds)
        # A storage that is slower than the epochs are short must not make checkpoints pile up.
        busy = leader and not self._uploaded.is_set()
        next_steps = leader * min(max(1, per_interval), _MOST_STEPS_PER_INTERVAL)
        mine = [due, busy, next_steps, self._seen, self._waited / seconds]
        numbers = torch.tensor(mine, dtype=torch.float32, device=self.device)
        sums = _over_workers(torch.cat([numbers, torch.stack(self._losses).mean(dim=0)]))
        due, busy, self._steps_left = bool(sums[0] > 0), bool(sums[1] > 0), int(sums[2])
        seen, wait_share, losses = float(sums[3]), float(sums[4]) / self.world, sums[5:].tolist()
        if not np.isfinite(losses).all():
            raise PosemillError(
                f"the loss is {losses} at step {self.fit.step_number}: training diverged; start "
                "again under another --name with a lower --learning-rate"
            )
        stages = self.inputs.config.stages
        hints = {"hint_loss": losses[stages]} if self.inputs.teacher else {}
        stop = self._post(
            hints
            | {
                "kind": "progress",
                "size": self._size,
                "loss": losses[:stages],
                "learning_rate": self.fit.optimizer.param_groups[-1]["lr"],
                "samples_per_second": seen / seconds,
                "seconds_per_step": seconds / steps,
                "wait_share": wait_share,
            }
        )
        stop = bool(_over_workers(torch.tensor([float(stop)], device=self.device))[0] > 0)
        leaves = self._newly_preempted()
        self._losses, self._seen, self._waited = [], 0, 0.0
        self._interval_started = time.monotonic()
        return _Wants((due and not busy) or stop or leaves, busy, stop)

    @property
    def _size(self) -> int:
        """Crop size of the step that was made last."""
        return self.recipe.size_at((self.fit.step_number - 1) / self.fit.total_steps)

    def _newly_preempted(self) -> bool:
        """Whether another node of the run is about to go; the same answer on all workers."""
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new = bool(nodes - self._preempted)
        self._preempted |= nodes
        return new

    def _validate(self) -> None:
        """PCK of the averaged weights on the tuning split; keeps the best ones."""
        epoch = self.fit.step_number // self.feed.steps_per_epoch
        batches = (batch.to(self.device) for batch in self.feed.tune(self._size))
        pcks = stage_pck(self.fit.ema, self.skeleton, batches, self.recipe.uses_bf16(self.device))
        stages = self.inputs.config.stages
        counts = [[p.total * p.counted / 100, p.counted] if p.counted else [0, 0] for p in pcks]
        sums = _over_workers(
            torch.tensor(counts or [[0.0, 0.0]] * stages, dtype=torch.float64, device=self.device)
        )
        by_stage = (100 * sums[:, 0] / sums[:, 1]).tolist() if sums[0, 1] else []
        if by_stage and (self.best is None or by_stage[-1] > self.best.pck):
            weights = _to_cpu(self.fit.ema.state_dict())
            self.best = Best(by_stage[-1], epoch, self._size, by_stage, weights)
        self._post({"kind": "epoch", "size": self._size, "tune_pck": by_stage})
        if self.pictures:
            for tag, picture in self.pictures.draw(self.fit.ema, self.device):
                self._post({"kind": "picture", "tag": tag, "picture": picture})
        self._interval_started = time.monotonic()
        self._waited = 0.0

    def _checkpoint(self) -> None:
        """Hand the state to a thread that writes it; steps go on meanwhile."""
        self._uploaded.wait()
        self._checkpointed = time.monotonic()
        metrics = {"step": self.fit.step_number}
        if self.rank:
            ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        state = _to_cpu({**self.fit.state_dict(), "best": vars(self.best) if self.best else None})
        storage = ray.train.get_context().get_storage()
        folder = tempfile.mkdtemp(prefix="posemill-checkpoint-")

        def write(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                torch.save(state, Path(checkpoint.path) / STATE)
                persisted: ray.train.Checkpoint
                persisted = storage.persist_current_checkpoint(checkpoint, name)
                return persisted
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            finally:
                self._uploaded.set()

        self._uploaded.clear()
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=True,
        )

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint() or self.inputs.resume_from
        if checkpoint is None:
            return
        state = read_state(checkpoint)
        self.fit.load_state_dict(state)
        self.best = Best(**state["best"]) if state["best"] else None

    def _post(self, record: dict[str, Any]) -> bool:
        """Tell the driver (the leader does); whether it wants the run to stop."""
        if self.rank:
            return False
        record["step"] = self.fit.step_number
        record["epoch"] = self.fit.step_number / self.feed.steps_per_epoch
        stop: bool = ray.get(self.inputs.board.post.remote(record))
        return stop

    def _bad_sample(self, problem: str) -> None:
        self.inputs.board.post.remote(
            {"kind": "bad_sample", "message": problem, "step": self.fit.step_number}
        )


@dataclass(frozen=True)
class _Wants:
    """A checkpoint is due; the one before is still on its way; the run shall stop."""

    checkpoint: bool
    patience: bool
    stop: bool


def _teacher_channels(spec: TeacherSpec) -> int:
    """How many features there are; raises PosemillError where this node cannot tell."""
    try:
        return Teacher(spec).channels
    except ConfigError as error:
        raise PosemillError(
            f"{error} (on node {socket.gethostname()}); every node must have the teacher"
        ) from error


def read_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """What `Loop` put into a checkpoint; only tensors and numbers are unpickled."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder) / STATE, weights_only=True, map_location="cpu"
        )
    return state


def _to_cpu(value: Any) -> Any:
    """A copy that later steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_cpu(one) for one in value)
    return copy.copy(value)


def _over_workers(values: Tensor) -> Tensor:
    """The sum over all workers."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
