"""Batches for training and tuning, cut on the device."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from cpm_core.augment import NONE
from cpm_core.errors import ConfigError
from cpm_core.recipe import Recipe
from cpm_core.resident.cut import cut
from cpm_core.resident.draws import Draws, Samples, generator
from cpm_core.resident.pack import Pack
from cpm_core.resident.pictures import decoded
from cpm_core.training import Batch


class Feed:
    """What is in a step depends on pack, recipe and step only, so a run can go on at any step.

    The next epoch is drawn by a thread while the device trains on this one. `layout` is that of the
    crops (`cut`).

    Raises ConfigError where there is not one whole batch to train on, PackError for a picture that
    cannot be decoded.
    """

    def __init__(self, pack: Pack, recipe: Recipe, device: torch.device, threads: int = 1) -> None:
        self.recipe, self.device = recipe, device
        self.rows = torch.from_numpy(pack.rows("train"))
        self.tune_rows = torch.from_numpy(pack.rows("tune"))
        self.steps_per_epoch = len(self.rows) // recipe.batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"{len(self.rows)} samples to train on are too few for one batch; lower "
                f"--batch-size ({recipe.batch_size})"
            )
        self.samples = Samples(pack)
        self.pictures = decoded(pack, device, threads)
        self.layout = torch.channels_last
        self._drawer = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[tuple[Draws, list[int]]]] = {}
        self._epoch = -1
        self._draws: Draws | None = None
        self._people: list[int] = []

    def train(self, step: int, size: int) -> Batch:
        """The batch of a step, counted over the whole run."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._draws is None or epoch != self._epoch:
            self._turn_to(epoch)
        assert self._draws is not None
        first = within * self.recipe.batch_size
        rows = slice(first, first + self.recipe.batch_size)
        return cut(self.pictures, self._draws.part(rows, self._people[within]), size, self.layout)

    def tune(self, size: int) -> Iterator[Batch]:
        """Plain crops of the tuning split."""
        for rows in torch.split(self.tune_rows, self.recipe.batch_size):
            yield self.plain(rows, size)

    def plain(self, rows: Tensor, size: int) -> Batch:
        """Plain crops of some samples."""
        draws = self.samples.draw(rows, self.recipe.box_factor, NONE, generator(0))
        return cut(self.pictures, draws.to(self.device), size, self.layout)

    def _turn_to(self, epoch: int) -> None:
        drawn = self._coming.pop(epoch, None)
        draws, people = drawn.result() if drawn else self._drawn(epoch)
        self._epoch, self._draws, self._people = epoch, draws.to(self.device), people
        self._coming = {epoch + 1: self._drawer.submit(self._drawn, epoch + 1)}

    def _drawn(self, epoch: int) -> tuple[Draws, list[int]]:
        """Its draws, on the host, and the most other people that a sample of each step has."""
        recipe, dice = self.recipe, generator(self.recipe.seed, epoch)
        order = self.rows[torch.randperm(len(self.rows), generator=dice)]
        draws = self.samples.draw(order, recipe.box_factor, recipe.augmentation, dice)
        whole = order[: self.steps_per_epoch * recipe.batch_size]
        people = self.samples.others_count[whole].view(-1, recipe.batch_size).amax(dim=1)
        return draws, people.tolist()
