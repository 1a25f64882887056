"""One process, a thread per worker: each takes the next batch, decodes, crops and estimates it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

import cpm_core
from benchmarks.peers.task import BATCH, Recorder, crop, options, read_list, to_picture


def main() -> None:
    """Run."""
    args = options()
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)
    items = read_list(args.list)
    estimators = [cpm_core.load("cpm-lite") for _ in range(args.workers)]
    own = threading.local()
    recorder, lock = Recorder(), threading.Lock()

    def work(start: int) -> None:
        if not hasattr(own, "estimator"):
            own.estimator = estimators.pop()
        batch = items[start : start + BATCH]
        cropper = own.estimator.cropper
        crops, sizes = zip(*(crop(item, cropper) for item in batch), strict=True)
        keypoints = own.estimator.estimate_crops(np.concatenate(crops))
        boxes = np.array([item.box for item in batch])
        points = to_picture(keypoints, boxes, np.array(sizes), cropper)
        with lock:
            recorder.add(np.arange(start, start + len(batch)), points)

    with ThreadPoolExecutor(args.workers) as threads:
        list(threads.map(work, range(0, len(items), BATCH)))
    recorder.save(args.result)


if __name__ == "__main__":
    main()
