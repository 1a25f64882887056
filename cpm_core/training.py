"""The training step without a cluster: loss at every stage, optimiser, schedule, mean weights.

`pipeline.train` feeds it from Ray and moves its state to and from checkpoints; a plain loop can do
the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpm_core.augment import Augmentation
from cpm_core.config import STRIDE
from cpm_core.decode import decode
from cpm_core.errors import ConfigError
from cpm_core.lite import LiteTrunk
from cpm_core.losses import LOSSES
from cpm_core.metrics import limb_joints, pck_lspet
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton
from cpm_core.targets import belief_maps, map_weights


@dataclass(frozen=True)
class Phase:
    """From this share of the run on, crops have this size in pixels."""

    start: float
    size: int


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Over the run, the labels' sigma goes from `first_sigma` to `last_sigma` times the network's own.
    `box_factor` is the side of the plain crop in units of the box's longer side.
    """

    epochs: int = 12
    batch_size: int = 32
    phases: tuple[Phase, ...] = (Phase(0.0, 128), Phase(0.55, 192), Phase(0.8, 256))
    loss: str = "peaked"
    learning_rate: float = 2e-3
    trunk_learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    first_sigma: float = 2.0
    last_sigma: float = 1.0
    freeze_blocks: int = 3
    box_factor: float = 1.25
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"loss is {self.loss!r}; choose one of {', '.join(LOSSES)}")
        if not any(phase.start == 0 for phase in self.phases):
            raise ConfigError(f"phases are {self.phases}; one must start at 0")

    def size_at(self, progress: float) -> int:
        """Crop size for a share 0..1 of the run."""
        return max((p for p in self.phases if p.start <= progress), key=lambda p: p.start).size

    def sigma_at(self, progress: float) -> float:
        """Factor on the network's label sigma for a share 0..1 of the run."""
        return self.first_sigma + (self.last_sigma - self.first_sigma) * progress

    def rate_at(self, step: int, total: int) -> float:
        """Factor on the learning rates: linear warm-up, then a cosine down to 0."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


@dataclass(frozen=True)
class Batch:
    """Crops (B, S, S, 3) uint8, keypoints (B, K, 2) in crop pixels, labelled (B, K)."""

    crops: Tensor
    keypoints: Tensor
    labelled: Tensor


class Fit:
    """A model being trained. `network` may be a wrapper of `model` (DistributedDataParallel)."""

    def __init__(
        self, model: Cpm, recipe: Recipe, total_steps: int, network: nn.Module | None = None
    ) -> None:
        self.model = model
        self.network = network or model
        self.recipe = recipe
        self.total_steps = total_steps
        self.step_number = 0
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, recipe), betas=(0.9, 0.99))
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return self.step_number / max(1, self.total_steps)

    def step(self, batch: Batch) -> list[float]:
        """One update; the loss of each stage."""
        self.network.train()
        freeze(self.model, self.recipe.freeze_blocks)
        factor = self.recipe.rate_at(self.step_number, self.total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        losses = self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.step_number += 1
        self.average()
        return [float(loss.detach()) for loss in losses]

    def losses(self, batch: Batch) -> list[Tensor]:
        """The loss of each stage on a batch, in the graph."""
        images = batch.crops.permute(0, 3, 1, 2)
        with torch.autocast(images.device.type, torch.bfloat16):
            maps = self.network(images)
        target = belief_maps(
            batch.keypoints,
            batch.labelled,
            images.shape[-1] // STRIDE,
            self.model.config.label_sigma * self.recipe.sigma_at(self.progress),
            self.model.config.cell_offset,
        )
        weights = map_weights(batch.labelled)
        loss = LOSSES[self.recipe.loss]
        return [loss(stage.float(), target, weights) for stage in maps]

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged weights towards the current ones; faster while the run is young."""
        decay = min(self.recipe.ema_decay, (1 + self.step_number) / (10 + self.step_number))
        current = self.model.state_dict()
        for name, value in self.ema.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name].to(value.dtype), 1 - decay)
            else:
                value.copy_(current[name])

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: weights, averages, optimiser, step."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step_number": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = int(state["step_number"])


def parameter_groups(model: Cpm, recipe: Recipe) -> list[dict[str, Any]]:
    """Trunk and stages at their own rates; no weight decay on biases and batch norm."""
    groups: list[dict[str, Any]] = []
    trunk = {
        id(p) for part in (model.first, model.shared) if part is not None for p in part.parameters()
    }
    for in_trunk, rate in ((True, recipe.trunk_learning_rate), (False, recipe.learning_rate)):
        for decayed in (True, False):
            chosen = [
                p
                for p in model.parameters()
                if (id(p) in trunk) == in_trunk and (p.ndim > 1) == decayed
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "weight_decay": recipe.weight_decay if decayed else 0,
                    }
                )
    return groups


def freeze(model: Cpm, blocks: int) -> None:
    """Hold the stem and the first blocks of a `lite` trunk: they cost most and learn least.

    Their batch norm is held too; `model.train()` lets go of that, so call this again after it.
    """
    if not isinstance(model.shared, LiteTrunk) or not blocks:
        return
    for module in [model.shared.stem, *model.shared.blocks[:blocks]]:
        module.eval().requires_grad_(False)


@torch.no_grad()
def stage_pck(model: Cpm, skeleton: Skeleton, batches: Iterable[Batch]) -> list[float]:
    """PCK@0.2 after each stage, on plain crops: limb joints, or all where a skeleton has none.

    Leaves the model in eval mode.
    """
    predicted: list[list[np.ndarray]] = []
    labels, labelled = [], []
    model.eval()
    for batch in batches:
        images = batch.crops.permute(0, 3, 1, 2)
        with torch.autocast(images.device.type, torch.bfloat16):
            maps = model(images)
        points = [
            decode(stage[:, :-1], model.config.cell_offset)[..., :2].cpu().numpy() for stage in maps
        ]
        predicted.append(points)
        labels.append(batch.keypoints.cpu().numpy())
        labelled.append(batch.labelled.cpu().numpy())
    if not labels:
        return []
    limbs = limb_joints(skeleton)
    joints = limbs if limbs.any() else None
    truth, seen = np.concatenate(labels), np.concatenate(labelled)
    stages = (np.concatenate([p[t] for p in predicted]) for t in range(len(predicted[0])))
    return [pck_lspet(points, truth, seen, skeleton, joints=joints).total for points in stages]
