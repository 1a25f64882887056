"""What a worker trains on: its share of every batch, decoded and augmented by Ray Data.

A row of the Ray Data graph is one step's share: row numbers in, crops out. Which samples are in a
step depends on (seed, epoch, step) only: a run can go on at any step, with any number of workers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from cpm_core.augment import NONE, Augmentation
from cpm_core.recipe import Recipe
from cpm_core.training import Batch
from pipeline import cluster
from pipeline.errors import PosemillError, UsageError
from pipeline.samples import SampleTable
from pipeline.training.loader import CropMaker, Loader
from pipeline.training.order import epoch_order, share

_STEPS_PER_GRAPH = 1024
_PREFETCHED = 3
_BAD_SHARE = 0.05
_BAD_AT_LEAST = 20
_TASK_RETRIES = 2


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
    """Which worker this is, and how many loaders it has."""

    rank: int
    world: int
    loaders: int


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
        for start in range(first_step, self.total_steps, _STEPS_PER_GRAPH):
            stop = min(self.total_steps, start + _STEPS_PER_GRAPH)
            yield from self._run(self._steps(start, stop), self.recipe.augmentation, lasting=True)

    def _steps(self, start: int, stop: int) -> list[dict[str, Any]]:
        steps, place, recipe = [], self.place, self.recipe
        order, order_of = self.rows, -1
        for step in range(start, stop):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != order_of:
                order = epoch_order(self.table, self.rows, recipe.seed, epoch)
                order_of = epoch
            rows = share(order, within, recipe.batch_size, place.rank, place.world)
            size = recipe.size_at(step / self.total_steps)
            steps.append({"rows": rows.tolist(), "epoch": epoch, "size": size})
        return steps

    def tune(self, size: int) -> Iterator[Batch]:
        """Plain crops of this worker's share of the tuning split."""
        rows = self.table.rows("tune")[self.place.rank :: self.place.world]
        count = max(1, self.recipe.batch_size // self.place.world)
        blocks = [
            {"rows": rows[i : i + count].tolist(), "epoch": 0, "size": size}
            for i in range(0, len(rows), count)
        ]
        return self._run(blocks, NONE, lasting=False)

    def _run(
        self, blocks: list[dict[str, Any]], augmentation: Augmentation, lasting: bool
    ) -> Iterator[Batch]:
        if not blocks:
            return
        maker = CropMaker(
            self.table.files,
            self.table.skeleton,
            self.recipe.box_factor,
            augmentation,
            self.recipe.seed,
        )
        # Unlike `from_arrow`, this needs no free CPU on the cluster.
        steps = ray.data.from_items(blocks, override_num_blocks=len(blocks))
        graph = self._by_actors(steps, maker) if lasting else self._by_tasks(steps, maker)
        batches = graph.iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=_PREFETCHED
        )
        for table in batches:
            batch = _unpack(table)
            self._count(len(batch.crops), table["failed"][0].as_py())
            yield batch

    def _by_actors(self, steps: ray.data.Dataset, maker: CropMaker) -> ray.data.Dataset:
        """For a long graph: actors go on with their work on a node that is being preempted."""
        with warnings.catch_warnings():
            # `max_task_retries` has no named parameter yet; without it Ray retries poison for ever.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return steps.map_batches(
                Loader,
                fn_constructor_args=(maker,),
                compute=ActorPoolStrategy(size=self.place.loaders),
                max_task_retries=_TASK_RETRIES,
                **self._options(),
            )

    def _by_tasks(self, steps: ray.data.Dataset, maker: CropMaker) -> ray.data.Dataset:
        """For a short graph: tasks start sooner."""
        return steps.map_batches(
            maker, compute=TaskPoolStrategy(size=self.place.loaders), **self._options()
        )

    def _options(self) -> dict[str, Any]:
        """A batch is a step. On the worker's own node and out of its own CPUs, so that nothing else
        can starve it."""
        node = ray.get_runtime_context().get_node_id()
        return {
            "batch_size": 1,
            "batch_format": "pyarrow",
            "num_cpus": 0,
            "label_selector": {cluster.NODE_LABEL: node},
        }

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
