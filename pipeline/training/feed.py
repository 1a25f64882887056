"""What a worker trains on: its share of every batch, decoded and augmented by Ray Data tasks.

A row of the Ray Data graph is one step's share: row numbers in, crops out. Which samples are in a
step depends on (seed, epoch, step) only: a run can go on at any step, with any number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import DataContext, TaskPoolStrategy

from cpm_core.augment import NONE, Augmentation
from cpm_core.recipe import Recipe
from cpm_core.training import Batch
from pipeline.errors import PosemillError, UsageError
from pipeline.samples import Rows, SampleTable
from pipeline.training.loader import CropMaker
from pipeline.training.order import epoch_order, share

_STEPS_PER_GRAPH = 1024
_PREFETCHED = 3
_BAD_SHARE = 0.05
_BAD_AT_LEAST = 20


def _unpack(table: pa.Table) -> Batch:
    def tensor(name: str, kind: Any) -> torch.Tensor:
        shape = table[f"{name}_shape"][0].as_py()
        data = table[name][0].as_buffer()
        # A copy: the block belongs to the object store and cannot be written to.
        return torch.from_numpy(np.frombuffer(data, kind).reshape(shape).copy())

    others = tensor("others", np.float32)
    return Batch(
        tensor("crops", np.uint8),
        tensor("keypoints", np.float32),
        tensor("labelled", bool),
        others if others.shape[1] else None,
        tensor("others_labelled", bool) if others.shape[1] else None,
    )


@dataclass(frozen=True)
class Place:
    """Which worker this is, and what its loaders may take."""

    rank: int
    world: int
    loaders: int
    cpus_per_loader: float


class Feed:
    """Batches of one worker. `on_bad` is told of samples that cannot be read."""

    def __init__(
        self, table: SampleTable, recipe: Recipe, place: Place, on_bad: Callable[[str], None]
    ) -> None:
        self.table, self.recipe, self.place = table, recipe, place
        self.on_bad = on_bad
        self.rows = table.rows("train")
        self.steps_per_epoch = steps_per_epoch(table, recipe)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self._seen = self._bad = 0
        _configure_ray_data()

    def train(self, first_step: int) -> Iterator[Batch]:
        """The share of every step from `first_step` (counted over the whole run) to the end."""
        step = first_step
        while step < self.total_steps:
            epoch, within = divmod(step, self.steps_per_epoch)
            order = epoch_order(self.table, self.rows, self.recipe.seed, epoch)
            stop = min(self.steps_per_epoch, within + _STEPS_PER_GRAPH)
            blocks = [self._step(order, epoch, s) for s in range(within, stop)]
            yield from self._run(blocks, self.recipe.augmentation)
            step += len(blocks)

    def _step(self, order: Rows, epoch: int, step: int) -> dict[str, Any]:
        place = self.place
        rows = share(order, step, self.recipe.batch_size, place.rank, place.world)
        progress = (epoch * self.steps_per_epoch + step) / self.total_steps
        return {"rows": rows.tolist(), "epoch": epoch, "size": self.recipe.size_at(progress)}

    def tune(self, size: int) -> Iterator[Batch]:
        """Plain crops of this worker's share of the tuning split."""
        rows = self.table.rows("tune")[self.place.rank :: self.place.world]
        count = max(1, self.recipe.batch_size // self.place.world)
        blocks = [
            {"rows": rows[i : i + count].tolist(), "epoch": 0, "size": size}
            for i in range(0, len(rows), count)
        ]
        return self._run(blocks, NONE)

    def _run(self, blocks: list[dict[str, Any]], augmentation: Augmentation) -> Iterator[Batch]:
        if not blocks:
            return
        maker = CropMaker(
            self.table.files,
            self.table.skeleton,
            self.recipe.box_factor,
            augmentation,
            self.recipe.seed,
        )
        steps = ray.data.from_arrow([pa.Table.from_pylist([block]) for block in blocks])
        graph = steps.map_batches(
            maker,
            batch_size=1,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=self.place.loaders),
            num_cpus=self.place.cpus_per_loader,
        )
        batches = graph.iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=_PREFETCHED
        )
        for table in batches:
            batch = _unpack(table)
            self._count(len(batch.crops), table["failed"][0].as_py())
            yield batch

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


def _configure_ray_data() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # A block is a step's share, whatever its size.
    context.target_max_block_size = None
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
