"""What a loader does: read samples, cut and augment their crops. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cpm_core.augment import Augmentation, Sample, training_crop
from cpm_core.skeleton import Skeleton
from pipeline.errors import UsageError
from pipeline.samples import RowReader, TableFiles, decode_sample


@dataclass(frozen=True)
class CropMaker:
    """Turns the row numbers of a step into training crops."""

    files: TableFiles
    skeleton: Skeleton
    box_factor: float
    augmentation: Augmentation
    seed: int

    def __call__(self, table: pa.Table) -> pa.Table:
        cv2.setNumThreads(1)
        (step,) = table.to_pylist()
        samples, failed = [], []
        for row in _reader(self.files).read(step["rows"]):
            crop, problem = self._crop(row, step["size"], step["epoch"])
            samples.append(crop)
            failed += [problem] if problem else []
        return _pack(samples, failed)

    def _crop(self, row: dict[str, Any], size: int, epoch: int) -> tuple[Sample, str | None]:
        """A sample that cannot be read becomes a grey crop without labels, and is named."""
        seed = (self.seed, epoch, int(row["sample_id"]))
        try:
            sample = decode_sample(row, self.files.options)
        except UsageError as error:
            return _blank(size, len(self.skeleton)), str(error)
        crop = training_crop(sample, self.skeleton, size, self.box_factor, self.augmentation, seed)
        return crop, None


class Loader:
    """A `CropMaker` as an actor of Ray Data."""

    def __init__(self, maker: CropMaker) -> None:
        self.maker = maker

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.maker(table)


@lru_cache(maxsize=1)
def _reader(files: TableFiles) -> RowReader:
    """One reader per process: loaders that follow each other find its row groups in memory."""
    return RowReader(files)


def _blank(size: int, joints: int) -> Sample:
    return Sample(
        np.full((size, size, 3), 128, np.uint8),
        np.array([0, 0, size, size], float),
        np.zeros((joints, 2)),
        np.zeros(joints, bool),
    )


def _pack(samples: list[Sample], failed: list[str]) -> pa.Table:
    """One row: arrays as bytes. The number of other people is the largest in the batch."""
    joints = samples[0].labelled.shape[0]
    people = max(len(s.others) for s in samples)
    others = np.zeros((len(samples), people, joints, 2), np.float32)
    others_labelled = np.zeros((len(samples), people, joints), bool)
    for i, sample in enumerate(samples):
        if count := len(sample.others):
            others[i, :count] = sample.others
            others_labelled[i, :count] = sample.others_labelled
    arrays: dict[str, NDArray[Any]] = {
        "crops": np.stack([s.image for s in samples]),
        "keypoints": np.stack([s.keypoints for s in samples]).astype(np.float32),
        "labelled": np.stack([s.labelled for s in samples]),
        "others": others,
        "others_labelled": others_labelled,
    }
    columns: dict[str, Any] = {
        name: pa.array([array.tobytes()], pa.large_binary()) for name, array in arrays.items()
    }
    columns |= {f"{name}_shape": [list(array.shape)] for name, array in arrays.items()}
    return pa.table({**columns, "failed": pa.array([failed], pa.list_(pa.string()))})
