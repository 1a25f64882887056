"""A PyTorch script: a DataLoader whose workers decode and crop, the network in the main process."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import cpm_core
from benchmarks.peers.task import BATCH, Item, Recorder, crop, options, read_list, to_picture
from cpm_core.crops import Cropper


class Crops(Dataset[tuple[int, np.ndarray, np.ndarray]]):
    """Crops of a list's pictures."""

    def __init__(self, items: list[Item], cropper: Cropper) -> None:
        self.items, self.cropper = items, cropper

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        crops, size = crop(self.items[index], self.cropper)
        return index, crops[0], np.array(size)


def main() -> None:
    """Run."""
    args = options()
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)
    items = read_list(args.list)
    estimator = cpm_core.load("cpm-lite")
    boxes = np.array([item.box for item in items])
    loader = DataLoader(Crops(items, estimator.cropper), BATCH, num_workers=args.workers)
    recorder = Recorder()
    for indices, crops, sizes in loader:
        keypoints = estimator.estimate_crops(crops.numpy())
        i = indices.numpy()
        recorder.add(i, to_picture(keypoints, boxes[i], sizes.numpy(), estimator.cropper))
    recorder.save(args.result)


if __name__ == "__main__":
    main()
