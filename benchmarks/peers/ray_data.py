"""Ray Data as its documentation shows batch inference: read_images or read_videos, map_batches with
a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from benchmarks.peers.task import (
    BATCH,
    Item,
    Recorder,
    load_estimator,
    options,
    read_list,
    to_picture,
)


class Estimate:
    """The network in an actor."""

    def __init__(self, items: list[Item], threads: int) -> None:
        torch.set_num_threads(threads)
        self.estimator = load_estimator()
        self.items = {item.uri: item for item in items}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pictures and their paths -> keypoints."""
        cropper = self.estimator.cropper
        items = [self.items[path] for path in batch["path"]]
        boxes = np.array([item.box for item in items])
        key = "frame" if "frame" in batch else "image"
        pictures = [np.ascontiguousarray(p) for p in batch[key]]
        frames = batch.get("frame_index", np.zeros(len(items), int))
        crops = [cropper.cut(p, boxes[n : n + 1]) for n, p in enumerate(pictures)]
        keypoints = self.estimator.estimate_crops(np.concatenate(crops))
        sizes = np.array([(p.shape[1], p.shape[0]) for p in pictures])
        return {
            "index": np.array([item.first for item in items]) + frames,
            "keypoints": to_picture(keypoints, boxes, sizes, cropper),
        }


def main() -> None:
    """Run."""
    args = options()
    items = read_list(args.list)
    DataContext.get_current().enable_progress_bars = False
    recorder = Recorder()
    ray.init("local", include_dashboard=False)
    paths = [item.uri for item in items]
    if items[0].is_clip:
        pictures = ray.data.read_videos(paths, include_paths=True)
    else:
        pictures = ray.data.read_images(paths, mode="RGB", include_paths=True)
    keypoints = pictures.map_batches(
        Estimate,
        fn_constructor_args=(items, args.threads),
        batch_size=BATCH,
        num_cpus=0.5,
        compute=ActorPoolStrategy(size=args.workers),
    )
    for batch in keypoints.iter_batches(batch_size=None):
        recorder.add(batch["index"], batch["keypoints"])
    recorder.save(args.result)


if __name__ == "__main__":
    main()
