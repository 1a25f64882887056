"""The training step without a cluster: loss at every stage, optimiser, schedule, mean weights.

`pipeline.training` feeds it from Ray and moves its state to and from checkpoints; a plain loop can
do the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpm_core.config import STRIDE
from cpm_core.decode import decode
from cpm_core.geometry import inside
from cpm_core.lite import LiteTrunk
from cpm_core.losses import LOSSES
from cpm_core.metrics import Pck, limb_joints, pck_lspet
from cpm_core.model import Cpm
from cpm_core.recipe import Recipe, parameter_groups
from cpm_core.skeleton import Skeleton
from cpm_core.student import Student, hint_loss
from cpm_core.targets import belief_maps, map_weights

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Batch:
    """Crops (B, S, S, 3) uint8, keypoints (B, K, 2) in crop pixels, labelled (B, K).

    `others` (B, P, K, 2) and `others_labelled` (B, P, K) are other people in the crops, padded with
    people without labels; None where nobody else is annotated. `hints` (B, C, S / 8, S / 8) are a
    teacher's features.
    """

    crops: Tensor
    keypoints: Tensor
    labelled: Tensor
    others: Tensor | None = None
    others_labelled: Tensor | None = None
    hints: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {
            name: None if value is None else value.to(device, non_blocking=True)
            for name, value in vars(self).items()
        }
        return Batch(**moved)  # type: ignore[arg-type]


class Fit:
    """A model being trained, in one of `world` workers that each see their share of every batch.

    With a `student` around `model`, a teacher's hints are learned, too. `network` may be a wrapper
    of either (DistributedDataParallel), which averages gradients over the workers. Dropout depends
    on (seed, step, rank) only, so that a resumed run draws the same.
    """

    def __init__(
        self,
        model: Cpm,
        recipe: Recipe,
        total_steps: int,
        network: nn.Module | None = None,
        rank: int = 0,
        world: int = 1,
        student: Student | None = None,
    ) -> None:
        self.model, self.student = model, student
        whole = model if student is None else student
        self.network = whole if network is None else network
        self.recipe = recipe
        self.total_steps = total_steps
        self.rank, self.world = rank, world
        self.step_number = 0
        self._anchor = (0, 0.0)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = _optimizer(model, recipe, student)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1; it never falls."""
        step, done = self._anchor
        since = (1 - done) * (self.step_number - step)
        return min(1.0, done + since / max(1, self.total_steps - step))

    def replan(self, total_steps: int) -> None:
        """Another number of steps in all: what is left of the run is spread over those to come."""
        self._anchor = (self.step_number, self.progress)
        self.total_steps = total_steps

    def step(self, batch: Batch, total: int | None = None) -> Tensor:
        """One update; this worker's part (T,) of each stage's loss, and with a student (T + 1,).

        `total` is the number of samples of the step over all workers (default: this batch is all).
        The parts of all workers add up to the mean over those samples.
        """
        losses = self.gradients(batch, total)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.step_number += 1
        average(self.ema, self.model, self.recipe.ema_decay, self.step_number)
        return losses

    def gradients(self, batch: Batch, total: int | None = None) -> Tensor:
        """Set learning rates and gradients for the step to come; the losses as in `step`."""
        self.network.train()
        freeze(self.model, self.recipe)
        factor = self.recipe.rate_at(self.step_number, self.progress)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        if self.model.config.dropout:
            _seed_dropout(self.recipe.seed, self.step_number, self.rank)
        losses = self.losses(batch).sum(dim=1) / (total or len(batch.crops))
        stages = losses[: self.model.config.stages]
        objective = stages.sum() if self.recipe.intermediate else stages[-1]
        if self.student is not None:
            objective = objective + self.recipe.teacher_weight * losses[-1]
        self.optimizer.zero_grad(set_to_none=True)
        # The wrapper divides the sum of the workers' gradients by their number.
        (objective * self.world).backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def losses(self, batch: Batch) -> Tensor:
        """The loss (T, B) of each stage and sample, in the graph; that of the hints is one more.

        The first stage sees no centre map, so it cannot know who is meant: its labels are those of
        everybody in the crop, the later stages' those of the person in the middle (CPM paper,
        section 4.2).
        """
        images = batch.crops.permute(0, 3, 1, 2)
        bf16 = self.recipe.uses_bf16(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            answer = self.network(images)
        maps, predicted = (answer, None) if self.student is None else answer
        config, cells = self.model.config.at_size(images.shape[-1]), images.shape[-1] // STRIDE
        sigma = config.label_sigma * self.recipe.sigma_at(self.progress)
        target = belief_maps(batch.keypoints, batch.labelled, cells, sigma, config.cell_offset)
        everybody = target
        if batch.others is not None and batch.others_labelled is not None:
            points = torch.cat([batch.keypoints[:, None], batch.others], dim=1)
            seen = torch.cat([batch.labelled[:, None], batch.others_labelled], dim=1)
            everybody = belief_maps(points, seen, cells, sigma, config.cell_offset)
        weights = map_weights(batch.labelled)
        loss = LOSSES[self.recipe.loss]
        mass = 2 * math.pi * (sigma / STRIDE) ** 2
        targets = [everybody] + [target] * (len(maps) - 1)
        values = [loss(m.float(), t, weights, mass) for m, t in zip(maps, targets, strict=True)]
        if predicted is not None:
            assert batch.hints is not None
            values.append(hint_loss(predicted, batch.hints, batch.labelled))
        return torch.stack(values)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: weights, averages, optimiser, step, and where the number of
        steps was changed."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step_number": self.step_number,
        }
        if self._anchor[0]:
            state["anchor"] = self._anchor
        if self.student is not None:
            state["regressor"] = self.student.regressor.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(_as_here(state["optimizer"], self.optimizer))
        self.step_number = int(state["step_number"])
        step, done = state.get("anchor", (0, 0.0))
        self._anchor = (int(step), float(done))
        if self.student is not None:
            self.student.regressor.load_state_dict(state["regressor"])


def _optimizer(model: Cpm, recipe: Recipe, student: Student | None) -> torch.optim.Optimizer:
    groups = parameter_groups(model, recipe)
    if student is not None:
        regressor, rate = student.regressor.parameters(), recipe.learning_rate
        groups.insert(0, {"params": regressor, "lr": rate, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=_MOMENTUM)
    # One kernel for all parameters. On CPUs the plain one stays, and with it every bit.
    fused = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=fused or None)


def _as_here(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state, fused where this one is: that follows from the device, not the file."""
    groups = [
        {**group, "fused": mine["fused"]} if "fused" in mine else group
        for group, mine in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def freeze(model: Cpm, recipe: Recipe) -> None:
    """Hold the first blocks of a `lite` trunk (they cost most and learn least), and batch norm.

    A held batch norm keeps its statistics, too; `model.train()` lets go of that, so call this again
    after it.
    """
    if isinstance(model.shared, LiteTrunk) and recipe.freeze_blocks:
        for module in [model.shared.stem, *model.shared.blocks[: recipe.freeze_blocks]]:
            module.eval().requires_grad_(False)
    if recipe.freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights towards the model's after `step` steps; faster while a run is young."""
    decay = min(decay, (1 + step) / (10 + step))
    current, averaged = model.state_dict(), ema.state_dict()
    floats = [name for name, value in averaged.items() if value.is_floating_point()]
    counters = [name for name, value in averaged.items() if not value.is_floating_point()]
    # A few kernels for all tensors instead of one for each: a GPU would wait for the host.
    torch._foreach_lerp_(
        [averaged[name] for name in floats],
        [current[name].to(averaged[name].dtype) for name in floats],
        1 - decay,
    )
    if counters:
        torch._foreach_copy_(
            [averaged[name] for name in counters], [current[name] for name in counters]
        )


@torch.no_grad()
def stage_pck(
    model: Cpm, skeleton: Skeleton, batches: Iterable[Batch], bf16: bool = True
) -> list[Pck]:
    """PCK@0.2 after each stage, on plain crops: limb joints, or all where a skeleton has none.

    Joints outside their crop do not count. Leaves the model in eval mode.
    """
    predicted: list[list[np.ndarray]] = []
    labels, labelled = [], []
    model.eval()
    for batch in batches:
        images = batch.crops.permute(0, 3, 1, 2)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            maps = model(images)
        points = [decode(stage[:, :-1], model.config.cell_offset)[..., :2] for stage in maps]
        predicted.append(points)
        size = batch.crops.shape[1]
        labels.append(batch.keypoints.cpu().numpy())
        labelled.append(batch.labelled.cpu().numpy() & inside(labels[-1], size, size))
    if not labels:
        return []
    limbs = limb_joints(skeleton)
    joints = limbs if limbs.any() else None
    truth, seen = np.concatenate(labels), np.concatenate(labelled)
    stages = (np.concatenate([p[t] for p in predicted]) for t in range(len(predicted[0])))
    return [pck_lspet(points, truth, seen, skeleton, joints=joints) for points in stages]
