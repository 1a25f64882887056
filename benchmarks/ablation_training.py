"""Trains one net of the ablation and measures it. A plain loop in this process, without Ray."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cpm_core.augment import NONE, Augmentation, Sample, training_crop
from cpm_core.config import preset
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm
from cpm_core.pretrained import load_efficientnet_lite0
from cpm_core.recipe import RECIPES, Phase, Recipe
from cpm_core.skeleton import Skeleton
from cpm_core.training import Batch, Fit, stage_pck
from pipeline.errors import UsageError
from pipeline.samples import RowReader, Rows, SampleTable, decode_sample
from pipeline.training.order import epoch_order, share
from pipeline.training.prefetch import prefetched

PAPER_STAGES = 3
"""As in the paper's Fig. 5."""

_READY = 3
_LONGEST_WARMUP = 0.1

Gradients = list[tuple[str, float]]


@dataclass(frozen=True)
class Setting:
    """What all nets of an ablation have in common."""

    most_stages: int
    steps: int
    batch_size: int
    size: int
    seed: int
    trunk: Path | None

    def recipe(self, intermediate: bool) -> Recipe:
        """The one of cpm-lite, at one size. A CPU without bfloat16 is slower with it."""
        usual = RECIPES["cpm-lite"]
        return replace(
            usual,
            batch_size=self.batch_size,
            phases=(Phase(0.0, self.size),),
            warmup_steps=min(usual.warmup_steps, int(_LONGEST_WARMUP * self.steps)),
            intermediate=intermediate,
            bf16=False,
            seed=self.seed,
        )

    @property
    def later(self) -> int:
        """The step after which gradients are measured a second time."""
        return max(1, self.steps // 4)


class Steps(Protocol):
    """Is told of every step."""

    def step(self, number: int, total: int, losses: list[float]) -> None:
        """Step `number` of `total` is done; the losses by stage."""


class Crops:
    """Batches of the ablation: the same for every net."""

    def __init__(self, table: SampleTable, setting: Setting) -> None:
        self.table, self.setting = table, setting
        self.recipe = setting.recipe(True)
        self.reader = RowReader(table.files)
        self.train_rows, self.tune_rows = table.rows("train"), table.rows("tune")
        if len(self.train_rows) < setting.batch_size:
            raise UsageError(
                f"{table.uri}: {len(self.train_rows)} samples in the split 'train' are too few for "
                f"one batch; lower --batch-size ({setting.batch_size})"
            )
        if not len(self.tune_rows):
            raise UsageError(f"{table.uri}: no split 'tune' to measure on")

    @property
    def skeleton(self) -> Skeleton:
        """Of the table."""
        return self.table.skeleton

    def train(self) -> Iterator[Batch]:
        """One batch a step, augmented, in the order of `posemill train`."""
        count = self.setting.batch_size
        per_epoch = len(self.train_rows) // count
        for epoch in range(-(-self.setting.steps // per_epoch)):
            order = epoch_order(self.table, self.train_rows, self.setting.seed, epoch)
            for step in range(min(per_epoch, self.setting.steps - epoch * per_epoch)):
                rows = share(order, step, count, rank=0, world=1)
                yield self._batch(rows, self.recipe.augmentation, epoch)

    def tune(self) -> Iterator[Batch]:
        """Plain crops of the whole tuning split."""
        for i in range(0, len(self.tune_rows), self.setting.batch_size):
            yield self._batch(self.tune_rows[i : i + self.setting.batch_size], NONE, 0)

    def _batch(self, rows: Rows, augmentation: Augmentation, epoch: int) -> Batch:
        crops = []
        for row in self.reader.read(rows):
            seed = (self.setting.seed, epoch, int(row["sample_id"]))
            sample = decode_sample(row, self.table.options)
            crops.append(
                training_crop(
                    sample,
                    self.skeleton,
                    self.setting.size,
                    self.recipe.box_factor,
                    augmentation,
                    seed,
                )
            )
        return _stacked(crops)


def _stacked(crops: list[Sample]) -> Batch:
    """The number of other people is the largest in the batch."""
    people = max(len(crop.others) for crop in crops)
    joints = len(crops[0].labelled)
    others = torch.zeros(len(crops), people, joints, 2)
    others_labelled = torch.zeros(len(crops), people, joints, dtype=torch.bool)
    for i, crop in enumerate(crops):
        others[i, : len(crop.others)] = torch.from_numpy(crop.others)
        others_labelled[i, : len(crop.others)] = torch.from_numpy(crop.others_labelled)
    return Batch(
        torch.from_numpy(np.stack([crop.image for crop in crops])),
        torch.from_numpy(np.stack([crop.keypoints for crop in crops])).float(),
        torch.from_numpy(np.stack([crop.labelled for crop in crops])),
        others if people else None,
        others_labelled if people else None,
    )


def train(
    setting: Setting, crops: Crops, stages: int, intermediate: bool, progress: Steps
) -> dict[str, Any]:
    """PCK of the averaged weights after the run; gradients by layer for the deepest nets."""
    fit = Fit(_start(setting, crops, stages), setting.recipe(intermediate), setting.steps)
    fixed = next(crops.train())
    gradients: dict[str, Gradients] = {}
    with closing(prefetched(crops.train(), _READY)) as batches:
        for batch in batches:
            if stages == setting.most_stages and fit.step_number in (0, setting.later):
                gradients[str(fit.step_number)] = _gradients(fit, fixed)
            losses = fit.step(batch).tolist()
            progress.step(fit.step_number, setting.steps, losses)
    if stages == setting.most_stages:
        gradients[str(fit.step_number)] = _gradients(fit, fixed)
    return {"gradients": gradients, **_pck(fit.ema, crops)}


def _start(setting: Setting, crops: Crops, stages: int) -> Cpm:
    """A net whose weights are those of the deepest one, as far as it has them."""
    torch.manual_seed(setting.seed)
    config = preset("cpm-lite", joints=len(crops.skeleton), stages=setting.most_stages)
    config = config.at_size(setting.size)
    deepest = Cpm(config)
    if setting.trunk:
        assert isinstance(deepest.shared, LiteTrunk)
        load_efficientnet_lite0(deepest.shared, setting.trunk)
    model = Cpm(replace(config, stages=stages))
    known = deepest.state_dict()
    model.load_state_dict({name: known[name] for name in model.state_dict()})
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _gradients(fit: Fit, batch: Batch) -> Gradients:
    """Mean |gradient| of each convolution's weight, in order of definition; frozen ones left out.

    Works on a copy: a forward pass moves the statistics of batch norm.
    """
    probe = copy.deepcopy(fit)
    probe.gradients(batch)
    return [
        (name, float(f"{module.weight.grad.abs().mean():.3e}"))
        for name, module in probe.model.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.grad is not None
    ]


def _pck(model: Cpm, crops: Crops) -> dict[str, Any]:
    """Joints that counted and that were right at each stage, batch by batch of the tuning split.

    The batches are what the standard errors come from: the joints of a person depend on each other.
    """
    counted: list[int] = []
    correct: list[list[int]] = []
    with closing(prefetched(crops.tune(), _READY)) as batches:
        for batch in batches:
            stages = stage_pck(model, crops.skeleton, [batch], bf16=False)
            counted.append(stages[0].counted)
            correct.append([round(s.total * s.counted / 100) if s.counted else 0 for s in stages])
    by_stage = [list(stage) for stage in zip(*correct, strict=True)]
    return {"counted": counted, "correct_by_stage": by_stage}


def paper_gradients(setting: Setting, crops: Crops) -> dict[str, Gradients]:
    """Of the paper's own net at its start, with a loss at every stage ("all") and at the last only.

    It has no batch norm and starts from Gaussian weights: what intermediate losses were made for.
    """
    config = preset("cpm", joints=len(crops.skeleton), stages=PAPER_STAGES).at_size(setting.size)
    batch = next(crops.train())
    gradients = {}
    for name, intermediate in (("all", True), ("last", False)):
        torch.manual_seed(setting.seed)
        phases = (Phase(0.0, setting.size),)
        recipe = replace(
            RECIPES["cpm"], phases=phases, intermediate=intermediate, bf16=False, seed=setting.seed
        )
        gradients[name] = _gradients(Fit(Cpm(config), recipe, setting.steps), batch)
    return gradients
