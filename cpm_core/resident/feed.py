"""Batches for training and tuning, cut on the device."""

from __future__ import annotations

from collections.abc import Iterator

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
    """What is in a step depends on (seed, step) only, so a run can go on at any step.

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
        self._epoch = -1
        self._draws: Draws | None = None

    def train(self, step: int, size: int) -> Batch:
        """The batch of a step, counted over the whole run."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._draws is None or epoch != self._epoch:
            self._epoch, self._draws = epoch, self._drawn(epoch)
        first = within * self.recipe.batch_size
        chosen = self._draws.part(slice(first, first + self.recipe.batch_size))
        return cut(self.pictures, chosen, size)

    def tune(self, size: int) -> Iterator[Batch]:
        """Plain crops of the tuning split."""
        for rows in torch.split(self.tune_rows, self.recipe.batch_size):
            yield self.plain(rows, size)

    def plain(self, rows: Tensor, size: int) -> Batch:
        """Plain crops of some samples."""
        draws = self.samples.draw(rows, self.recipe.box_factor, NONE, generator(0))
        return cut(self.pictures, draws.to(self.device), size)

    def _drawn(self, epoch: int) -> Draws:
        dice = generator(self.recipe.seed, epoch)
        order = self.rows[torch.randperm(len(self.rows), generator=dice)]
        recipe = self.recipe
        return self.samples.draw(order, recipe.box_factor, recipe.augmentation, dice).to(
            self.device
        )
