"""Daft: decode in its own function, crop and network in a class (`daft.cls`), as its documentation
shows batch inference. Clips, whose frames Daft gives in one size only, the class decodes itself."""

from __future__ import annotations

import cv2
import daft
import numpy as np
import torch
from daft import DataType, Series

from benchmarks.peers.task import (
    BATCH,
    Recorder,
    cut,
    load_estimator,
    options,
    read_list,
    to_picture,
)


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
            self.estimator = load_estimator()

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

        @daft.method.batch(return_dtype=DataType.tensor(DataType.float32()), batch_size=1)
        def clips(self, indices: Series) -> list[np.ndarray]:
            """Indices of clips -> keypoints of all their frames."""
            found = cut([items[index] for index in indices.to_pylist()], self.estimator.cropper)
            keypoints = self.estimator.estimate_crops(found.crops)
            return [to_picture(keypoints, found.boxes, found.sizes, self.estimator.cropper)]

    frame = daft.from_pydict(
        {
            "index": list(range(len(items))),
            "uri": [item.uri for item in items],
            "box": [list(item.box) for item in items],
        }
    )
    estimate = Estimate()
    if items[0].is_clip:
        keypoints = estimate.clips(daft.col("index"))
    else:
        data = daft.functions.download(daft.col("uri"))
        keypoints = estimate(daft.functions.decode_image(data, mode="RGB"), daft.col("box"))
    for part in frame.select("index", keypoints.alias("keypoints")).to_arrow_iter():
        found = daft.from_arrow(part).to_pydict()
        for index, points in zip(found["index"], found["keypoints"], strict=True):
            item = items[index]
            indices = np.arange(item.first, item.first + item.frames)
            recorder.add(indices, points.reshape(item.frames, *points.shape[-2:]))
    recorder.save(args.result)


if __name__ == "__main__":
    main()
