"""What a worker trains on: its share of every batch, decoded and augmented by loaders.

Which samples are in a step depends on (seed, epoch, step) only: a run can go on at any step, with
any number of workers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
import torch

from cpm_core.augment import NONE, Augmentation
from cpm_core.recipe import Recipe
from cpm_core.teacher import TeacherSpec
from cpm_core.training import Batch
from pipeline import cluster
from pipeline.errors import PosemillError, UsageError
from pipeline.samples import SampleTable
from pipeline.training.loader import Crops, Loader, Step
from pipeline.training.order import epoch_order, share

_STEPS_PER_LOADER = 2
"""One that it works at, one that waits."""

_BAD_SHARE = 0.05
_BAD_AT_LEAST = 20
_TASK_RETRIES = 2


@dataclass(frozen=True)
class Place:
    """Which worker this is, and how many loaders it has."""

    rank: int
    world: int
    loaders: int


class Feed:
    """Batches of one worker; with a teacher, those to train on have its hints. `on_bad` is told of
    samples that cannot be read."""

    def __init__(
        self,
        table: SampleTable,
        recipe: Recipe,
        place: Place,
        on_bad: Callable[[str], None],
        teacher: TeacherSpec | None = None,
    ) -> None:
        self.table, self.recipe, self.place = table, recipe, place
        self.on_bad = on_bad
        self.teacher = teacher
        self.rows = table.rows("train")
        self.steps_per_epoch = steps_per_epoch(table, recipe)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self._seen = self._bad = 0

    def train(self, first_step: int) -> Iterator[Batch]:
        """The share of every step from `first_step` (counted over the whole run) to the end."""
        return self._load(self._steps(first_step), self.recipe.augmentation)

    def tune(self, size: int) -> Iterator[Batch]:
        """Plain crops of this worker's share of the tuning split."""
        rows = self.table.rows("tune")[self.place.rank :: self.place.world].tolist()
        count = max(1, self.recipe.batch_size // self.place.world)
        shares = (rows[i : i + count] for i in range(0, len(rows), count))
        return self._load((Step(share, 0, size) for share in shares), NONE)

    def _steps(self, first_step: int) -> Iterator[Step]:
        place, recipe = self.place, self.recipe
        order, order_of = self.rows, -1
        for step in range(first_step, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != order_of:
                order = epoch_order(self.table, self.rows, recipe.seed, epoch)
                order_of = epoch
            rows = share(order, within, recipe.batch_size, place.rank, place.world)
            size = recipe.size_at(step / self.total_steps)
            yield Step(rows.tolist(), epoch, size, hinted=self.teacher is not None)

    def _load(self, steps: Iterable[Step], augmentation: Augmentation) -> Iterator[Batch]:
        """In order, a few steps ahead of whoever reads.

        Plain actors and not Ray Data: its executor, which runs in the training process, polls
        without pause while the loaders are ahead, and takes a core and the interpreter lock from
        the training.
        """
        steps = iter(steps)
        turns = itertools.cycle(self._loaders)
        ahead = deque(
            next(turns).load.remote(step, augmentation)
            for step in itertools.islice(steps, _STEPS_PER_LOADER * len(self._loaders))
        )
        while ahead:
            crops: Crops = ray.get(ahead.popleft())
            for step in itertools.islice(steps, 1):
                ahead.append(next(turns).load.remote(step, augmentation))
            self._count(len(crops.crops), crops.failed)
            yield to_batch(crops)

    @cached_property
    def _loaders(self) -> list[Any]:
        """On the worker's own node and out of its CPUs, so that nothing else can starve them."""
        node = ray.get_runtime_context().get_node_id()
        actor = ray.remote(
            num_cpus=0,
            label_selector={cluster.NODE_LABEL: node},
            max_restarts=-1,
            max_task_retries=_TASK_RETRIES,
        )(Loader)
        recipe, table = self.recipe, self.table
        return [
            actor.remote(table.files, table.skeleton, recipe.box_factor, recipe.seed, self.teacher)
            for _ in range(self.place.loaders)
        ]

    def _count(self, seen: int, failed: list[str]) -> None:
        self._seen += seen
        self._bad += len(failed)
        for problem in failed:
            self.on_bad(problem)
        if self._bad >= _BAD_AT_LEAST and self._bad > _BAD_SHARE * self._seen:
            raise PosemillError(
                f"{self._bad} of {self._seen} samples cannot be read, last {failed[-1:]}; "
                "see that their pictures are where the table says"
            )


def steps_per_epoch(table: SampleTable, recipe: Recipe) -> int:
    """Whole batches in the split `train`. Raises UsageError if there is none."""
    samples = len(table.rows("train"))
    if samples < recipe.batch_size:
        raise UsageError(
            f"{table.uri}: {samples} samples in the split 'train' are too few for one batch; "
            f"lower --batch-size ({recipe.batch_size})"
        )
    return samples // recipe.batch_size


def to_batch(crops: Crops) -> Batch:
    """Tensors of their own: the arrays lie in the object store, which cannot be written to."""
    has_others = crops.others.shape[1] > 0
    return Batch(
        torch.from_numpy(crops.crops.copy()),
        torch.from_numpy(crops.keypoints.copy()),
        torch.from_numpy(crops.labelled.copy()),
        torch.from_numpy(crops.others.copy()) if has_others else None,
        torch.from_numpy(crops.others_labelled.copy()) if has_others else None,
        None if crops.hints is None else torch.from_numpy(crops.hints.copy()),
    )
