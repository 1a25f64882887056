"""Weights in, keypoints out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cpm_core.batches import in_batches, padded
from cpm_core.decode import Refinement, decode
from cpm_core.frequency import quicken
from cpm_core.keypoints import (
    CPU_BATCHES,
    THREAD_BATCHES,
    KeypointEstimator,
    Precision,
    as_boxes,
)
from cpm_core.lite import fold_batch_norm
from cpm_core.networks import Network, quickest
from cpm_core.views import flip_back, resample
from cpm_core.weights import Weights, load_weights

RELEASE_SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
"""The scales at which the original release looks at every person."""

_GPU_BATCHES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
_GPU_BATCH = 64


def load(
    name_or_path: str | Path = "cpm-lite",
    device: str | None = None,
    precision: Precision = "auto",
    flip: bool = False,
    scales: tuple[float, ...] = (1.0,),
    refinement: Refinement = "gaussian",
    box_factor: float | None = None,
) -> Estimator:
    """An estimator with weights that come with the package, or from a `.safetensors` file.

    `device` defaults to the GPU if there is one; `auto` precision is bf16 there and on CPUs that
    have instructions for it, else fp32. `flip` and `scales` average the belief maps over mirrored
    and over resized views (the release does the latter, with RELEASE_SCALES). `box_factor`
    overrides the one in the weights. Raises WeightsError, or ConfigError for an unusable option.
    """
    return Estimator(
        load_weights(name_or_path), device, precision, flip, scales, refinement, box_factor
    )


class Estimator(KeypointEstimator):
    """A CPM in PyTorch, or on a CPU in what is quicker there, with as many threads as torch has at
    this moment.

    Batches are cut and on a GPU padded to a few fixed sizes; when a GPU runs out of memory the
    batch is halved for good.
    """

    def __init__(
        self,
        weights: Weights,
        device: str | None = None,
        precision: Precision = "auto",
        flip: bool = False,
        scales: tuple[float, ...] = (1.0,),
        refinement: Refinement = "gaussian",
        box_factor: float | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        super().__init__(
            weights.info,
            weights.sha256,
            self.device.type,
            precision,
            tuple(scales),
            refinement,
            box_factor,
        )
        on_cpu, trunk = self.device.type == "cpu", self.info.config.trunk
        self.flip = flip
        self.flip_order = torch.from_numpy(self.info.skeleton.flip_order)
        self.largest_batch = CPU_BATCHES[trunk] if on_cpu else _GPU_BATCH
        model = fold_batch_norm(weights.model()).to(self.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: Network = model
        if on_cpu and trunk == "original" and not self.bf16:
            # Its kernels are so large that this is quicker than OpenVINO.
            self.model = quicken(model)
        elif on_cpu:
            self.model = quickest(model, self.cropper.size, self.bf16, THREAD_BATCHES[trunk])

    def estimate_stages(self, picture: NDArray[np.uint8], boxes: ArrayLike) -> NDArray[np.float32]:
        """As `estimate`, after every stage: (T, N, K, 3)."""
        boxes = as_boxes(boxes)
        crops = self.cropper.cut(picture, boxes)
        with self._lock:
            stages = self._in_batches(crops, every_stage=True)
        height, width = picture.shape[:2]
        return np.stack([self.cropper.to_picture(s, boxes, width, height) for s in stages])

    @torch.inference_mode()
    def belief(
        self, picture: NDArray[np.uint8], box: ArrayLike
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """What the network sees of one person, and its maps after every stage.

        The base crop (S, S, 3) for a box x, y, w, h of an RGB picture (H, W, 3), and maps (T,
        K + 1, S / 8, S / 8) on its grid, background last. Raises ValueError as `estimate`.
        """
        boxes = as_boxes(box)[None]
        base = replace(self.cropper, scales=(1.0,)).cut(picture, boxes)[0, 0]
        images = torch.from_numpy(self.cropper.cut(picture, boxes)).to(self.device)
        return base, self._belief(images, every_stage=True)[:, 0].cpu().numpy()

    def _keypoints(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        keypoints: NDArray[np.float32] = self._in_batches(crops, every_stage=False)[0]
        return keypoints

    def _in_batches(self, crops: NDArray[np.uint8], every_stage: bool) -> NDArray[np.float32]:
        """Keypoints (T, N, K, 3) after every stage, or only the last (T = 1)."""
        stages = self.info.config.stages if every_stage else 1
        nobody = np.empty((stages, 0, len(self.info.skeleton), 3), np.float32)
        found = in_batches(self, crops, lambda batch: self._run(batch, every_stage))
        return np.concatenate([nobody, *found], axis=1)

    @torch.inference_mode()
    def _run(self, crops: NDArray[np.uint8], every_stage: bool) -> NDArray[np.float32]:
        if self.device.type == "cuda":
            images = torch.from_numpy(padded(crops, _GPU_BATCHES))
            images = images.pin_memory().to(self.device, non_blocking=True)
        else:
            # Torch takes writable arrays only; those of an Arrow table are not.
            images = torch.from_numpy(np.require(crops, requirements=("C", "W")))
        maps = self._belief(images, every_stage)
        return decode(maps[:, : len(crops), :-1], self.info.config.cell_offset, self.refinement)

    def _belief(self, images: Tensor, every_stage: bool) -> Tensor:
        """Maps (T, N, K + 1, H, W) on the base crop's grid, averaged over views and mirroring."""
        offset = self.info.config.cell_offset
        views = []
        for view, scale in enumerate(self.cropper.scales):
            x = images[:, view].permute(0, 3, 1, 2)
            stages = self._stages(x, every_stage)
            if self.flip:
                mirrored = self._stages(x.flip(-1), every_stage)
                pairs = zip(stages, mirrored, strict=True)
                stages = [(a + flip_back(b, self.flip_order, offset)) / 2 for a, b in pairs]
            views.append(_stack([resample(maps, 1 / scale, offset) for maps in stages]))
        return views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)

    def _stages(self, images: Tensor, every_stage: bool) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            stages: list[Tensor] = self.model(images)
        return [maps.float() for maps in (stages if every_stage else stages[-1:])]


def _stack(stages: list[Tensor]) -> Tensor:
    """(T, ...) of T tensors; not even a copy of a lone one, for which torch would call its
    threads (see `decode`)."""
    return torch.stack(stages) if len(stages) > 1 else stages[0][None]
