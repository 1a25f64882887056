"""The same few samples, epoch by epoch: how their belief maps come to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from cpm_core.augment import NONE, Sample, training_crop
from cpm_core.belief import stages_figure
from cpm_core.metrics import limb_joints
from cpm_core.model import Cpm
from cpm_core.recipe import Recipe
from pipeline.errors import UsageError
from pipeline.samples import RowReader, SampleTable, decode_sample

_SAMPLES = 4
_JOINTS = 3


class BeliefPictures:
    """Belief maps of a few fixed samples of the tuning split, or of the training split without one.

    Those that cannot be read are left out: the loaders name them.
    """

    def __init__(self, table: SampleTable, recipe: Recipe) -> None:
        rows = table.rows("tune")
        rows = rows if len(rows) else table.rows("train")
        places = np.unique(np.linspace(0, len(rows) - 1, _SAMPLES).round().astype(int))
        self.skeleton, self.recipe = table.skeleton, recipe
        self.samples = []
        for row in RowReader(table.files).read(rows[places]):
            with suppress(UsageError):
                self.samples.append(decode_sample(row, table.options))
        limbs = np.flatnonzero(limb_joints(self.skeleton))
        hardest = limbs if len(limbs) else np.arange(len(self.skeleton))
        spread = np.unique(np.linspace(0, len(hardest) - 1, _JOINTS).round().astype(int))
        self.joints = [self.skeleton.keypoints[i] for i in hardest[spread]]

    @torch.no_grad()
    def draw(self, model: Cpm, device: torch.device) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """A name and a picture (H, W, 3) per sample; the model is in eval mode afterwards."""
        model.eval()
        for i, sample in enumerate(self.samples):
            crop = self._crop(sample, model.config.input_size)
            image = torch.from_numpy(crop.image).to(device).permute(2, 0, 1)[None]
            with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.uses_bf16(device)):
                maps = model(image)
            stages = torch.cat(maps).float().cpu().numpy()
            offset = model.config.cell_offset
            picture = stages_figure(crop.image, stages, self.skeleton, self.joints, offset)
            yield f"belief/sample-{i + 1}", picture

    def _crop(self, sample: Sample, size: int) -> Sample:
        return training_crop(sample, self.skeleton, size, self.recipe.box_factor, NONE, (0,))
