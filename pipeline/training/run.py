"""`posemill train`: the driver of a Ray Train run."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from fsspec.core import split_protocol

from cpm_core.config import CpmConfig, preset
from cpm_core.errors import CpmError
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm
from cpm_core.pretrained import load_efficientnet_lite0
from cpm_core.skeleton import Skeleton
from cpm_core.weights import WeightsInfo, load_weights, save_weights
from pipeline import cluster
from pipeline.errors import PosemillError, UsageError
from pipeline.lock import Lock
from pipeline.progress import Reporter
from pipeline.samples import SampleTable
from pipeline.storage import Output, StorageOptions
from pipeline.training.card import model_card
from pipeline.training.feed import steps_per_epoch
from pipeline.training.logbook import Board, Logbook
from pipeline.training.loop import WorkerInputs, read_state, train_worker
from pipeline.training.record import RunRecord, identity
from pipeline.training.settings import TrainSettings
from pipeline.training.show import Show
from pipeline.weights import read_weights

_POLL_S = 1.0
_MOST_LOADERS = 16


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
    config, initial = _start(settings, table.skeleton)
    output = Output(f"{settings.output.rstrip('/')}/{settings.name}", options)
    with Lock(output, (0, 1), reporter.say) as lock:
        record = RunRecord(output, identity(settings, config, table))
        weights = f"{settings.name}.safetensors"
        if record.finished.get("step", 0) >= total and output.read(weights) is not None:
            return Trained(f"{output.uri}/{weights}", new=False)
        record.start(settings)
        with Logbook(output) as logbook:
            run = _Run(settings, options, config, initial, Show(reporter, logbook, total), lock)
            state = run.result(output)
            _export(settings, table, config, state, logbook, output)
        record.finish(step=state["step_number"], weights=weights)
    return Trained(f"{output.uri}/{weights}", new=True)


def _start(
    settings: TrainSettings, skeleton: Skeleton
) -> tuple[CpmConfig, dict[str, torch.Tensor]]:
    """The network's configuration, for the size it will have at last, and its first weights."""
    try:
        config = preset(settings.preset, joints=len(skeleton), stages=settings.stage_count())
        config = config.at_size(settings.recipe().phases[-1].size)
        torch.manual_seed(settings.seed)
        model = Cpm(config)
        if settings.trunk is not None:
            if not isinstance(model.shared, LiteTrunk):
                raise UsageError("--trunk goes with --preset cpm-lite")
            load_efficientnet_lite0(model.shared, settings.trunk)
        if settings.start_from is not None:
            given = read_weights(settings.start_from, StorageOptions(settings.s3_endpoint))
            _copy_fitting(model, given.tensors)
    except CpmError as error:
        raise UsageError(str(error)) from error
    return config, model.state_dict()


def _copy_fitting(model: Cpm, tensors: dict[str, torch.Tensor]) -> None:
    """Take what fits by name and shape: with another skeleton all but the layers of the maps."""
    state = model.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in state and v.shape == state[k].shape}
    if not fitting:
        raise UsageError("--start-from holds nothing that fits this preset")
    model.load_state_dict(state | fitting)
    log = logging.getLogger("posemill")
    log.info("starting from %d of %d given tensors", len(fitting), len(tensors))


class _Run:
    """One start of the run on Ray."""

    def __init__(
        self,
        settings: TrainSettings,
        options: StorageOptions,
        config: CpmConfig,
        initial: dict[str, torch.Tensor],
        show: Show,
        lock: Lock,
    ) -> None:
        self.settings, self.options = settings, options
        self.config, self.initial = config, initial
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
            with _stop_signals() as stopping:
                thread.start()
                while thread.is_alive():
                    thread.join(_POLL_S)
                    self._look(board, stopping)
            self._look(board, stopping)
            state = self._state()
        if stopping.is_set():
            raise KeyboardInterrupt
        return state

    def _look(self, board: Any, stopping: threading.Event) -> None:
        self.lock.check()
        if stopping.is_set() and not self.show.stopping:
            self.show.stop()
            board.stop.remote()
        for record in ray.get(board.take.remote()):
            if record["kind"] == "failed":
                raise PosemillError(record["message"])
            self.show.record(record)

    def _state(self) -> dict[str, Any]:
        outcome = self._outcome
        name = self.settings.name
        if isinstance(outcome, Exception):
            reason = str(outcome).strip().splitlines()[-1]
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
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
            self._outcome = error

    def _trainer(self, board: Any, output: Output) -> ray.train.torch.TorchTrainer:
        settings = self.settings
        least, most = settings.worker_range
        cpus, loaders = _share_of_cpus(most, settings.loaders)
        device = _device(settings)
        inputs = WorkerInputs(
            samples=_absolute(settings.samples),
            options=self.options,
            config=self.config,
            recipe=settings.recipe(),
            initial=ray.put(self.initial),
            board=board,
            device=device,
            threads=settings.threads,
            loaders=loaders,
            checkpoint_s=60 * settings.checkpoint_minutes,
        )
        gpus = {"GPU": 1.0} if device == "cuda" else {}
        folder, _, name = output.root.rpartition("/")
        return ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"inputs": inputs},
            scaling_config=ray.train.ScalingConfig(
                num_workers=least if least == most else (least, most),  # type: ignore[arg-type]
                use_gpu=device == "cuda",
                resources_per_worker={"CPU": cpus, **gpus},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=folder,
                storage_filesystem=_filesystem(output),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
                callbacks=[_Failures(board)],  # type: ignore[list-item]
            ),
        )


def _board() -> Any:
    """A board on the driver's node, so that it lives as long as the driver."""
    here = ray.get_runtime_context().get_node_id()
    return Board.options(label_selector={"ray.io/node-id": here}).remote()  # type: ignore[attr-defined]


def _share_of_cpus(workers: int, loaders: int | None) -> tuple[float, int]:
    """CPUs that each worker reserves on its node, for itself and its loaders, and their number."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sizes = [node["Resources"].get("CPU", 0.0) for node in nodes]
    share = min(max(sizes), sum(sizes) / workers)
    loaders = loaders or max(1, min(_MOST_LOADERS, int(share) - 1))
    return max(0.1, round(min(0.9 * share, 1.0 + loaders), 2)), loaders


def _device(settings: TrainSettings) -> str:
    """`cpu` or `cuda`. Raises PosemillError for a cluster without the GPUs that were asked for."""
    if settings.device == "cpu":
        return "cpu"
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    least, _ = settings.worker_range
    if gpus >= least:
        return "cuda"
    if settings.device == "cuda":
        raise PosemillError(
            f"the cluster has {gpus:g} GPUs for --workers {settings.workers}; lower --workers, add "
            "nodes, or say --device cpu"
        )
    return "cpu"


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


def _absolute(uri: str) -> str:
    protocol, path = split_protocol(uri)
    return uri if protocol not in (None, "file") else str(Path(path).resolve())


def _filesystem(output: Output) -> pyarrow.fs.FileSystem | None:
    """How Ray Train reaches the run's folder: as we do. None for a local path."""
    if output.protocol == "file":
        return None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(output.fs))


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts."""
    stopping = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(
    settings: TrainSettings,
    table: SampleTable,
    config: CpmConfig,
    state: dict[str, Any],
    logbook: Logbook,
    output: Output,
) -> None:
    """Write the best averaged weights (the last ones without a tuning split) and their card."""
    best = state["best"]
    model = Cpm(config)
    model.load_state_dict(best["weights"] if best else state["ema"])
    size = best["size"] if best else config.input_size
    by_stage = best["by_stage"] if best else []
    info = WeightsInfo(
        name=settings.name,
        config=config.at_size(size),
        skeleton=table.skeleton,
        box_factor=settings.recipe().box_factor,
        training_data=f"{Path(settings.samples).name} ({table.digest})",
        licence=settings.licence,
        metrics={f"tune_pck_stage_{t + 1}": value for t, value in enumerate(by_stage)},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{settings.name}.safetensors"
        save_weights(path, model.eval(), info)
        card = model_card(settings, load_weights(path), table, logbook.records())
        output.replace(f"{settings.name}.md", card.encode())
        output.replace(path.name, path.read_bytes())
