"""Just enough of Ray for a training worker: what it calls, in this process, without a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.preemption import PreemptionInfo

from cpm_core.augment import Augmentation
from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.recipe import Phase, Recipe
from pipeline.samples import SampleTable
from pipeline.storage import StorageOptions
from pipeline.training import loop
from pipeline.training.loader import Crops, Loader, Step
from pipeline.training.loop import Loop, WorkerInputs

RECIPE = Recipe(
    epochs=2, batch_size=4, phases=(Phase(0, 32),), warmup_steps=0, freeze_blocks=0, bf16=False
)


class Board:
    """A board that is asked as a Ray actor is; the answer is there at once."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.stop_at_step: float = float("inf")
        self.post = SimpleNamespace(remote=self._post)

    def _post(self, record: dict[str, Any]) -> bool:
        self.records.append(record)
        return bool(record.get("step", 0) >= self.stop_at_step)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Records of one kind."""
        return [record for record in self.records if record["kind"] == kind]


@dataclass
class FakeRay:
    """A worker's surroundings. Every look at the clock takes `tick_s`."""

    folder: Path
    rank: int = 0
    world: int = 1
    tick_s: float = 10.0
    board: Board = field(default_factory=Board)
    preempted_nodes: Callable[[], list[str]] = list
    checkpoint: ray.train.Checkpoint | None = None
    reported_steps: list[int] = field(default_factory=list)
    data_steps: list[Step] = field(default_factory=list)
    _now: float = 0.0

    def install(self, patch: pytest.MonkeyPatch) -> Self:
        """Put it in Ray's place."""
        context = SimpleNamespace(
            get_world_rank=lambda: self.rank,
            get_world_size=lambda: self.world,
            get_local_world_size=lambda: self.world,
            get_storage=lambda: SimpleNamespace(persist_current_checkpoint=self._persist),
        )
        refuse_clusters(patch)
        patch.setattr(ray, "get", lambda value: value)
        node = SimpleNamespace(get_node_id=lambda: "here")
        patch.setattr(ray, "get_runtime_context", lambda: node)
        patch.setattr(ray, "remote", _in_this_process(self.data_steps))
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(ray.train, "get_checkpoint", lambda: self.checkpoint)
        patch.setattr(ray.train, "get_preemption_info", self._preemption)
        patch.setattr(ray.train, "report", self._report)
        patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        patch.setattr(ray.train.torch, "prepare_model", lambda model, move_to_device: model)
        patch.setattr(loop, "time", SimpleNamespace(monotonic=self._clock))
        return self

    def loop(self, samples: str, recipe: Recipe = RECIPE, checkpoint_s: float = 1e9) -> Loop:
        """A worker on a small net; the same first weights every time."""
        return Loop(self.inputs(samples, recipe, checkpoint_s))

    def inputs(
        self, samples: str, recipe: Recipe = RECIPE, checkpoint_s: float = 1e9, **values: Any
    ) -> WorkerInputs:
        """What the driver tells a worker."""
        joints = len(SampleTable(samples).skeleton)
        config = preset("cpm-lite", joints=joints, stages=2, input_size=32)
        torch.manual_seed(0)
        return WorkerInputs(
            samples=samples,
            options=StorageOptions(),
            config=config,
            recipe=recipe,
            initial=Cpm(config).state_dict(),
            board=self.board,
            threads=1,
            loaders=1,
            checkpoint_s=checkpoint_s,
            **values,
        )

    def _preemption(self) -> PreemptionInfo | None:
        nodes = self.preempted_nodes()
        return PreemptionInfo(None, {node: [0] for node in nodes}) if nodes else None

    def _clock(self) -> float:
        self._now += self.tick_s
        return self._now

    def _persist(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        return ray.train.Checkpoint.from_directory(
            shutil.copytree(checkpoint.path, self.folder / name)
        )

    def _report(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        checkpoint_upload_fn: Any = None,
        **_: Any,
    ) -> None:
        self.reported_steps.append(metrics["step"])
        if checkpoint is not None:
            name = f"checkpoint-{len(self.reported_steps)}"
            self.checkpoint = checkpoint_upload_fn(checkpoint, name)
            shutil.rmtree(checkpoint.path)


def _in_this_process(log: list[Step]) -> Callable[..., Any]:
    """In the place of `ray.remote`: loaders that work when they are asked."""

    def remote(**_: Any) -> Callable[[type[Loader]], Any]:
        def actor(kind: type[Loader]) -> Any:
            def make(*args: Any) -> Any:
                loader = kind(*args)

                def load(step: Step, augmentation: Augmentation) -> Crops:
                    log.append(step)
                    return loader.load(step, augmentation)

                return SimpleNamespace(load=SimpleNamespace(remote=load))

            return SimpleNamespace(remote=make)

        return actor

    return remote


def refuse_clusters(patch: pytest.MonkeyPatch) -> None:
    """Whatever is not faked fails: Ray would else join the cluster that runs on this machine."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a test without a cluster called Ray")

    patch.setattr(ray, "init", refuse)
