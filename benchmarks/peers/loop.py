"""One process, a thread per worker: each takes the next batch, decodes, crops and estimates it."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.task import in_threads, load_estimator, options, read_list
from cpm_core.crops import Cropper
from cpm_core.weights import load_weights


def main() -> None:
    """Run."""
    args = options()
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)
    # An estimator serves one call after the other, and threads are to work side by side.
    own = threading.local()

    def estimate(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(own, "estimator"):
            torch.set_num_threads(args.threads)
            own.estimator = load_estimator()
        points: NDArray[np.float32] = own.estimator.estimate_crops(crops)
        return points

    info = load_weights("cpm-lite").info
    cropper = Cropper(info.config.input_size, info.box_factor)
    in_threads(read_list(args.list), args.workers, cropper, estimate).save(args.result)


if __name__ == "__main__":
    main()
