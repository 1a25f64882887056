"""Daft: decode and crop in a function, the network in a class (`daft.cls`), as its documentation
shows batch inference."""

from __future__ import annotations

import cv2
import daft
import numpy as np
import torch
from daft import DataType, Series

import cpm_core
from benchmarks.peers.task import BATCH, Recorder, options, read_list, to_picture


def main() -> None:
    """Run."""
    args = options()
    items = read_list(args.list)
    recorder = Recorder()

    @daft.cls(max_concurrency=args.workers, use_process=False)
    class Estimate:
        """The network, once per worker."""

        def __init__(self) -> None:
            cv2.setNumThreads(1)
            torch.set_num_threads(args.threads)
            self.estimator = cpm_core.load("cpm-lite")

        @daft.method.batch(return_dtype=DataType.tensor(DataType.float32()), batch_size=BATCH)
        def __call__(self, pictures: Series, boxes: Series) -> list[np.ndarray]:
            """Pictures and boxes -> keypoints."""
            cropper = self.estimator.cropper
            images = [np.ascontiguousarray(p) for p in pictures.to_pylist()]
            where = np.array(boxes.to_pylist(), np.float64)
            crops = [cropper.cut(p, where[n : n + 1]) for n, p in enumerate(images)]
            keypoints = self.estimator.estimate_crops(np.concatenate(crops))
            sizes = np.array([(p.shape[1], p.shape[0]) for p in images])
            return list(to_picture(keypoints, where, sizes, cropper))

    frame = daft.from_pydict(
        {
            "index": list(range(len(items))),
            "uri": [item.uri for item in items],
            "box": [list(item.box) for item in items],
        }
    )
    decoded = frame.with_column(
        "picture", daft.functions.decode_image(daft.functions.download(daft.col("uri")), mode="RGB")
    )
    done = decoded.select(
        "index", Estimate()(daft.col("picture"), daft.col("box")).alias("keypoints")
    )
    for part in done.to_arrow_iter():
        found = daft.from_arrow(part).to_pydict()
        recorder.add(np.array(found["index"]), np.stack(found["keypoints"]))
    recorder.save(args.result)


if __name__ == "__main__":
    main()
