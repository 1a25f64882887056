"""How a network is trained: sizes, rates and labels over the run, and the release's own recipes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from cpm_core.augment import Augmentation
from cpm_core.errors import ConfigError
from cpm_core.losses import LOSSES
from cpm_core.model import Cpm

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]

_PHASE = re.compile(r"(0|0?\.[0-9]+):[0-9]+")

_RELEASE_STEP = 136_106 / 600_000
"""Share of the run after which the release lowers its rates (genProto.py: stepsize / max_iter)."""

_RELEASE_BOX_FACTOR = 368 / 234
"""A person 234 px tall in a crop of 368 (scale 41/35 times 200 px, run_benchmark.m)."""


@dataclass(frozen=True)
class Phase:
    """From this share of the run on, crops have this size in pixels."""

    start: float
    size: int


def parse_phases(texts: Sequence[str]) -> tuple[Phase, ...]:
    """Phases from SHARE:PIXELS, in their order. Raises ConfigError."""
    if not all(_PHASE.fullmatch(text) for text in texts):
        raise ConfigError("expected SHARE:PIXELS such as 0:128 0.6:256")
    pairs = (text.split(":") for text in texts)
    phases = tuple(Phase(float(share), int(size)) for share, size in pairs)
    starts = [phase.start for phase in phases]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ConfigError("the first phase starts at 0, and each later than the one before")
    return phases


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    `batch_size` is the number of samples per step over all workers. Over the run, the labels' sigma
    goes from `first_sigma` to `last_sigma` times the network's own. `step_every` is the share of
    the run after which the schedule `step` multiplies the rates by `step_gamma`. `box_factor` is
    the side of the plain crop in units of the box's longer side. `clip_norm` and `ema_decay` 0 mean
    none. Without `intermediate` only the last stage has a loss, for comparison. `teacher_weight`
    is that of predicting a teacher's features. `bf16` None means on GPUs only.
    """

    epochs: int = 12
    batch_size: int = 32
    phases: tuple[Phase, ...] = (Phase(0.0, 128), Phase(0.6, 192), Phase(0.85, 256))
    loss: str = "peaked"
    intermediate: bool = True
    teacher_weight: float = 0.0
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-3
    trunk_learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    step_every: float = _RELEASE_STEP
    step_gamma: float = 0.333
    warmup_steps: int = 200
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    first_sigma: float = 2.0
    last_sigma: float = 1.0
    freeze_blocks: int = 3
    freeze_batch_norm: bool = False
    bf16: bool | None = None
    box_factor: float = 1.25
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"loss is {self.loss!r}; choose one of {', '.join(LOSSES)}")
        for name, allowed in (("optimizer", Optimizer), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {choices}")
        if not any(phase.start == 0 for phase in self.phases):
            raise ConfigError(f"phases are {self.phases}; one must start at 0")

    def size_at(self, progress: float) -> int:
        """Crop size for a share 0..1 of the run."""
        return max((p for p in self.phases if p.start <= progress), key=lambda p: p.start).size

    def sigma_at(self, progress: float) -> float:
        """Factor on the network's label sigma for a share 0..1 of the run."""
        return self.first_sigma + (self.last_sigma - self.first_sigma) * progress

    def rate_at(self, step: int, progress: float) -> float:
        """Factor on the learning rates: linear warm-up by steps, the schedule by the share 0..1 of
        the run."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        match self.schedule:
            case "cosine":
                return warm * 0.5 * (1 + math.cos(math.pi * progress))
            case "step":
                return warm * self.step_gamma ** int(progress / self.step_every)
            case "constant":
                return warm

    def uses_bf16(self, device: torch.device) -> bool:
        """Whether the network computes in bf16 on a device."""
        return device.type == "cuda" if self.bf16 is None else self.bf16

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


_RELEASE: dict[str, Any] = {
    "phases": (Phase(0.0, 368),),
    "batch_size": 16,
    "loss": "squared",
    "optimizer": "sgd",
    "learning_rate": 8e-5,
    "trunk_learning_rate": 8e-5,
    "weight_decay": 5e-4,
    "schedule": "step",
    "warmup_steps": 0,
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "first_sigma": 1.0,
    "freeze_blocks": 0,
    "box_factor": _RELEASE_BOX_FACTOR,
}

RECIPES = {"cpm": Recipe(**_RELEASE), "cpm-vgg": Recipe(**_RELEASE), "cpm-lite": Recipe()}
"""The default recipe of each preset: the release's for its two nets."""


def parameter_groups(model: Cpm, recipe: Recipe) -> list[dict[str, Any]]:
    """Every parameter once, with its rate and decay; biases and batch norm do not decay.

    AdamW has one rate for the trunk and one for the stages. SGD has the release's multipliers
    (lr_mult in its prototxts): stage 1 of the paper's net learns five times as fast as the rest,
    the refinement stages of the VGG net four times; biases twice as fast as weights.
    """
    groups: list[dict[str, Any]] = []
    bias_factor = 2.0 if recipe.optimizer == "sgd" else 1.0
    for modules, rate in _rates(model, recipe):
        parameters = [p for module in modules for p in module.parameters()]
        for decayed, factor in ((True, 1.0), (False, bias_factor)):
            chosen = [p for p in parameters if (p.ndim > 1) == decayed]
            if chosen:
                decay = recipe.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rate * factor, "weight_decay": decay})
    return groups


def _rates(model: Cpm, recipe: Recipe) -> list[tuple[Iterable[nn.Module], float]]:
    """Parts of the network and the rate of their weights."""
    rate = recipe.learning_rate
    first: list[nn.Module] = [] if model.first is None else [model.first]
    if recipe.optimizer == "sgd" and model.config.trunk == "original":
        return [([*first, model.stages[0]], 5 * rate), ([model.shared, *model.stages[1:]], rate)]
    if recipe.optimizer == "sgd" and model.config.trunk == "vgg":
        return [([model.shared, model.stages[0]], rate), (model.stages[1:], 4 * rate)]
    return [([*first, model.shared], recipe.trunk_learning_rate), (model.stages, rate)]
