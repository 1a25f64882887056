"""Pictures in, people out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpm_core.batches import in_batches, padded
from cpm_core.errors import LocatorError
from cpm_core.lite import fold_batch_norm
from cpm_core.looks import Found, boxed, people
from cpm_core.networks import Network, quickest
from cpm_core.people import People, Picture
from cpm_core.person_net.info import KIND, checked_threshold
from cpm_core.person_net.peaks import peaks
from cpm_core.person_net.weights import PersonNetWeights, load_person_net

_CPU_BATCH = 8
_GPU_BATCHES = (32, 16, 8, 4, 2, 1)


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
        on_cpu = self.device.type == "cpu"
        self.largest_batch = _CPU_BATCH if on_cpu else _GPU_BATCHES[0]
        model = fold_batch_norm(loaded.model()).to(self.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: Network = quickest(model, self.size) if on_cpu else model

    def locate(self, picture: Picture) -> People:
        """People in an RGB picture (H, W, 3), overlaps suppressed, best first."""
        return self.locate_batch([picture])[0]

    def locate_batch(self, pictures: Sequence[Picture]) -> list[People]:
        """People in each of several RGB pictures (H, W, 3) of any size."""
        found: list[People] = []
        step = self.largest_batch
        for start in range(0, len(pictures), step):
            part = pictures[start : start + step]
            inputs = [boxed(picture, self.size) for picture in part]
            looks = self.look(np.stack([image for image, _ in inputs]))
            for picture, (_, ratio), look in zip(part, inputs, looks, strict=True):
                height, width = picture.shape[:2]
                found.append(people(look, ratio, width, height))
        return found

    def look(self, images: NDArray[np.uint8]) -> list[Found]:
        """What is found in each of several pictures (N, S, S, 3) that were `boxed`.

        On a GPU batches are padded to a few fixed sizes; when it runs out of memory, the batch is
        halved for good. Raises torch.cuda.OutOfMemoryError where one picture is too much.
        """
        return [found for batch in in_batches(self, images, self._peaks) for found in batch]

    @torch.inference_mode()
    def belief(self, picture: Picture) -> tuple[Picture, NDArray[np.float32]]:
        """The network's input (S, S, 3), and its belief in centres (T, S / 8, S / 8) by stage."""
        image, _ = boxed(picture, self.size)
        maps = self._maps(image[None])
        return image, torch.stack([m[0, 0].float().sigmoid() for m in maps]).cpu().numpy()

    @torch.inference_mode()
    def _peaks(self, images: NDArray[np.uint8]) -> list[Found]:
        maps = self._maps(images)[-1][: len(images)]
        return peaks(maps.float().cpu().numpy(), self.threshold)

    def _maps(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Maps of at least so many images."""
        on_gpu = self.device.type == "cuda"
        batch = torch.from_numpy(padded(images, _GPU_BATCHES) if on_gpu else images)
        if on_gpu:
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        # By default PyTorch's convolutions are TF32 on a GPU; a box is to be the same everywhere.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            # Permuted, an (N, H, W, 3) array is a channels-last tensor as it stands.
            maps: list[Tensor] = self.model(batch.permute(0, 3, 1, 2))
        return maps
