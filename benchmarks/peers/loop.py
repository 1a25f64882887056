"""One process, a thread per worker: each takes the next batch, decodes, crops and estimates it."""

from __future__ import annotations

import cv2
import torch

import cpm_core
from benchmarks.peers.task import in_threads, options, read_list


def main() -> None:
    """Run."""
    args = options()
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)
    estimator = cpm_core.load("cpm-lite")
    items = read_list(args.list)
    in_threads(items, args.workers, estimator.cropper, estimator.estimate_crops).save(args.result)


if __name__ == "__main__":
    main()
