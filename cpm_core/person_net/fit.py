"""The training loop's state: network, averages, optimiser; one update from one batch of scenes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpm_core.person_net.config import STRIDE
from cpm_core.person_net.losses import TargetMaps, stage_loss
from cpm_core.person_net.net import PersonNet
from cpm_core.person_net.scenes import Scene, SceneMaker
from cpm_core.person_net.targets import encode
from cpm_core.training import average

_CLIP_NORM = 10.0
_WARM_UP = 100


@dataclass(frozen=True)
class Plan:
    """How long, how fast and at which sizes a person-net is trained.

    `sizes` are (share of the run from which on, side of the scenes in pixels); batches of larger
    scenes have fewer of them, about as many pixels. With a `trunk_learning_rate` of 0 the base of
    the trunk stays as it is: it has seen more than the pictures at hand show.
    """

    steps: int = 3000
    batch_size: int = 32
    sizes: tuple[tuple[float, int], ...] = ((0.0, 192), (0.75, 320))
    learning_rate: float = 2e-3
    trunk_learning_rate: float = 0.0
    weight_decay: float = 1e-2
    ema_decay: float = 0.998
    seed: int = 0

    def size_at(self, step: int) -> int:
        """Side of the scenes of a step, in pixels."""
        started = [size for start, size in self.sizes if start * self.steps <= step]
        return started[-1] if started else self.sizes[0][1]

    def batch_at(self, step: int) -> int:
        """Scenes of a step."""
        return max(1, round(self.batch_size * (self.sizes[0][1] / self.size_at(step)) ** 2))

    def rate_at(self, step: int) -> float:
        """Factor on the learning rates: linear warm-up, then a half cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return min(1.0, (step + 1) / _WARM_UP) * cosine


class Fit:
    """A person-net being trained on scenes. The same state and plan give the same updates."""

    def __init__(self, model: PersonNet, plan: Plan) -> None:
        # A fifth faster on CPUs.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.plan = model, plan
        self.step_number = 0
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        base, fresh = model.trunk.base, [model.trunk.lateral, model.stages]
        base.requires_grad_(plan.trunk_learning_rate > 0)
        groups = []
        for module, rate in (
            (base, plan.trunk_learning_rate),
            *((m, plan.learning_rate) for m in fresh),
        ):
            for decays in (True, False):
                chosen = [p for p in module.parameters() if (p.ndim > 1) == decays]
                decay = plan.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, maker: SceneMaker) -> dict[str, float]:
        """One update; the losses of each stage."""
        plan, number = self.plan, self.step_number
        size, count = plan.size_at(number), plan.batch_at(number)
        scenes = [maker.scene(size, (plan.seed, number, i)) for i in range(count)]
        self.model.train()
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * plan.rate_at(number)
        images, target = batch(scenes)
        losses: dict[str, float] = {}
        total = torch.zeros(())
        for stage, maps in enumerate(self.model(images), 1):
            centre, box = stage_loss(maps, target)
            total = total + centre + box
            losses |= {f"centre{stage}": centre.item(), f"box{stage}": box.item()}
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self.optimizer.step()
        self.step_number += 1
        average(self.ema, self.model, plan.ema_decay, self.step_number)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
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


def batch(scenes: list[Scene]) -> tuple[Tensor, TargetMaps]:
    """Images (B, 3, S, S) uint8, channels last, and the targets of scenes of one size."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    cells = images.shape[-1] // STRIDE
    targets = [encode(scene.boxes, scene.ignore, cells) for scene in scenes]

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(target, name) for target in targets]))

    return images, TargetMaps(*(stacked(name) for name in ("centre", "known", "boxes", "core")))
