"""A PyTorch script: a DataLoader whose workers decode and crop, the network in the main process."""

from __future__ import annotations

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.task import (
    Crops,
    Item,
    Recorder,
    batches,
    cut,
    load_estimator,
    options,
    read_list,
    to_picture,
)
from cpm_core.crops import Cropper


class Batches(Dataset[Crops]):
    """Crops of a list's pictures or clips, a batch at a time."""

    def __init__(self, items: list[Item], cropper: Cropper) -> None:
        self.batches, self.cropper = batches(items), cropper

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Crops:
        return cut(self.batches[index], self.cropper)


def main() -> None:
    """Run."""
    args = options()
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)
    estimator = load_estimator()
    dataset = Batches(read_list(args.list), estimator.cropper)
    recorder = Recorder()
    for tensors in DataLoader(dataset, batch_size=None, num_workers=args.workers):
        found = Crops(*(tensor.numpy() for tensor in tensors))
        points = estimator.estimate_crops(found.crops)
        recorder.add(found.indices, to_picture(points, found.boxes, found.sizes, estimator.cropper))
    recorder.save(args.result)


if __name__ == "__main__":
    main()
