"""What a loader does: read samples, cut and augment their crops. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.augment import Augmentation, Sample, training_crop
from cpm_core.skeleton import Skeleton
from cpm_core.teacher import Teacher, TeacherSpec
from pipeline.errors import UsageError
from pipeline.samples import RowReader, TableFiles, decode_sample


@dataclass(frozen=True)
class Step:
    """One worker's share of a step: row numbers of the samples table, crops of `size` pixels,
    with a teacher's hints or without."""

    rows: list[int]
    epoch: int
    size: int
    hinted: bool = False


@dataclass(frozen=True)
class Crops:
    """The crops of a step, with the shapes of `cpm_core.training.Batch`, as they travel.

    P, the number of other people, is the largest in the step. `hints` are a teacher's, where there
    is one. `failed` says which samples could not be read.
    """

    crops: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    others: NDArray[np.float32]
    others_labelled: NDArray[np.bool_]
    failed: list[str]
    hints: NDArray[np.float16] | None = None


class Loader:
    """Turns steps into training crops, with a teacher's features where those are wanted."""

    def __init__(
        self,
        files: TableFiles,
        skeleton: Skeleton,
        box_factor: float,
        seed: int,
        teacher: TeacherSpec | None = None,
    ) -> None:
        self.files, self.skeleton = files, skeleton
        self.box_factor, self.seed = box_factor, seed
        self.teacher = Teacher(teacher) if teacher else None
        cv2.setNumThreads(1)

    def load(self, step: Step, augmentation: Augmentation) -> Crops:
        """The crops of a step, the same whoever makes them."""
        samples, failed = [], []
        for row in _reader(self.files).read(step.rows):
            crop, problem = self._crop(row, step, augmentation)
            samples.append(crop)
            failed += [problem] if problem else []
        crops = collate(samples, failed)
        if step.hinted:
            assert self.teacher is not None
            crops = replace(crops, hints=self.teacher.hints(crops.crops))
        return crops

    def _crop(
        self, row: dict[str, Any], step: Step, augmentation: Augmentation
    ) -> tuple[Sample, str | None]:
        """A sample that cannot be read becomes a grey crop without labels, and is named."""
        seed = (self.seed, step.epoch, int(row["sample_id"]))
        try:
            sample = decode_sample(row, self.files.options)
        except UsageError as error:
            return _blank(step.size, len(self.skeleton)), str(error)
        crop = training_crop(sample, self.skeleton, step.size, self.box_factor, augmentation, seed)
        return crop, None


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


def collate(samples: list[Sample], failed: list[str]) -> Crops:
    """Samples with crops of one size as arrays; fewer other people are filled up with nobody."""
    joints = samples[0].labelled.shape[0]
    people = max(len(s.others) for s in samples)
    others = np.zeros((len(samples), people, joints, 2), np.float32)
    others_labelled = np.zeros((len(samples), people, joints), bool)
    for i, sample in enumerate(samples):
        if count := len(sample.others):
            others[i, :count] = sample.others
            others_labelled[i, :count] = sample.others_labelled
    return Crops(
        np.stack([s.image for s in samples]),
        np.stack([s.keypoints for s in samples]).astype(np.float32),
        np.stack([s.labelled for s in samples]),
        others,
        others_labelled,
        failed,
    )
