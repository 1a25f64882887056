"""Pictures in, people out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpm_core.errors import LocatorError
from cpm_core.geometry import letterbox
from cpm_core.lite import fold_batch_norm
from cpm_core.networks import Network, quickest
from cpm_core.people import People, Picture, tidied
from cpm_core.person_net.targets import peaks
from cpm_core.person_net.weights import KIND, PersonNetWeights, load_person_net

_BATCH = 8
_MOST = 100
"""People per picture."""
_NMS_IOU = 0.55


class PersonNetLocator:
    """The shipped locator: a small CPM that finds people's centres and sizes.

    `weights` is "person-net" for those of the package, the path of a file, or loaded weights.
    `threshold` is the score (0 to 1) from which a peak is a person; it comes with the weights.
    `threads` is how many CPU threads torch may use, in this process as a whole; without it all
    stays as it is. Raises WeightsError for an unusable file, LocatorError for an unusable option.
    """

    def __init__(
        self,
        weights: str | Path | PersonNetWeights = KIND,
        threshold: float | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        loaded = weights if isinstance(weights, PersonNetWeights) else load_person_net(weights)
        self.info = loaded.info
        self.sha256 = loaded.sha256
        self.threshold = checked_threshold(self.info.threshold if threshold is None else threshold)
        if threads is not None and threads < 1:
            raise LocatorError(f"threads is {threads}; choose 1 or more")
        self.size = self.info.config.input_size
        self.device = torch.device(device)
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        model = fold_batch_norm(loaded.model()).to(self.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_cpu = self.device.type == "cpu"
        self.model: Network = quickest(model, self.size) if on_cpu else model

    def locate(self, picture: Picture) -> People:
        """People in an RGB picture (H, W, 3), overlaps suppressed, best first."""
        return self.locate_batch([picture])[0]

    def locate_batch(self, pictures: Sequence[Picture]) -> list[People]:
        """People in each of several RGB pictures (H, W, 3) of any size."""
        found: list[People] = []
        for start in range(0, len(pictures), _BATCH):
            part = pictures[start : start + _BATCH]
            inputs = [boxed(picture, self.size) for picture in part]
            boxes_and_scores = self._peaks(np.stack([image for image, _ in inputs]))
            for picture, (_, ratio), (boxes, scores) in zip(
                part, inputs, boxes_and_scores, strict=True
            ):
                height, width = picture.shape[:2]
                found.append(people(boxes, scores, ratio, width, height))
        return found

    @torch.inference_mode()
    def belief(self, picture: Picture) -> tuple[Picture, NDArray[np.float32]]:
        """The network's input (S, S, 3), and its belief in centres (T, S / 8, S / 8) by stage."""
        image, _ = boxed(picture, self.size)
        maps = self._maps(image[None])
        return image, torch.stack([m[0, 0].float().sigmoid() for m in maps]).cpu().numpy()

    @torch.inference_mode()
    def _peaks(
        self, images: NDArray[np.uint8]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        return peaks(self._maps(images)[-1], self.threshold, _MOST)

    def _maps(self, images: NDArray[np.uint8]) -> list[Tensor]:
        # Permuted, an (N, H, W, 3) array is a channels-last tensor as it stands.
        batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        maps: list[Tensor] = self.model(batch)
        return maps


def checked_threshold(threshold: float) -> float:
    """`threshold` if it can be one. Raises LocatorError."""
    if 0 < threshold < 1:
        return threshold
    raise LocatorError(f"threshold is {threshold}; choose a number between 0 and 1")


def boxed(picture: Picture, size: int) -> tuple[Picture, NDArray[np.float64]]:
    """`letterbox` of what is a picture. Raises ValueError for anything else."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(
            f"expected an RGB picture (H, W, 3) of uint8, got {picture.dtype} {picture.shape}"
        )
    return letterbox(picture, size)


def people(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    ratio: NDArray[np.float64],
    width: int,
    height: int,
) -> People:
    """Boxes (N, 4) and scores (N,) of a letterboxed picture as people of the picture.

    Boxes are cut to the picture; overlaps and what has no pixel in it are dropped.
    """
    scale = np.concatenate([ratio, ratio])
    found = People((boxes / scale).astype(np.float64), scores.astype(np.float64), KIND)
    return tidied(found, width, height, _NMS_IOU)
