"""Ray Data as its documentation shows batch inference: read_images, map_batches with a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

import cpm_core
from benchmarks.peers.task import BATCH, Recorder, options, read_list, to_picture


class Estimate:
    """The network in an actor."""

    def __init__(self, boxes: dict[str, tuple[int, tuple[float, ...]]], threads: int) -> None:
        torch.set_num_threads(threads)
        self.estimator = cpm_core.load("cpm-lite")
        self.boxes = boxes

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pictures and their paths -> keypoints."""
        cropper = self.estimator.cropper
        rows = [self.boxes[path] for path in batch["path"]]
        boxes = np.array([box for _, box in rows])
        pictures = [np.ascontiguousarray(p) for p in batch["image"]]
        crops = [cropper.cut(p, boxes[n : n + 1]) for n, p in enumerate(pictures)]
        keypoints = self.estimator.estimate_crops(np.concatenate(crops))
        sizes = np.array([(p.shape[1], p.shape[0]) for p in pictures])
        return {
            "index": np.array([index for index, _ in rows]),
            "keypoints": to_picture(keypoints, boxes, sizes, cropper),
        }


def main() -> None:
    """Run."""
    args = options()
    items = read_list(args.list)
    DataContext.get_current().enable_progress_bars = False
    recorder = Recorder()
    ray.init("local", include_dashboard=False)
    boxes = {item.uri: (n, item.box) for n, item in enumerate(items)}
    pictures = ray.data.read_images([item.uri for item in items], mode="RGB", include_paths=True)
    keypoints = pictures.map_batches(
        Estimate,
        fn_constructor_args=(boxes, args.threads),
        batch_size=BATCH,
        num_cpus=0.5,
        compute=ActorPoolStrategy(size=args.workers),
    )
    for batch in keypoints.iter_batches(batch_size=None):
        recorder.add(batch["index"], batch["keypoints"])
    recorder.save(args.result)


if __name__ == "__main__":
    main()
