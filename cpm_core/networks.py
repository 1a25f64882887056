"""The quickest way to run a network of PyTorch on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cpm_core import cpu
from cpm_core.frequency import quicken

if TYPE_CHECKING:
    from cpm_core.compiled import CompiledNetwork

Network = Callable[[Tensor], list[Tensor]]
"""Images (N, 3, S, S) of uint8 -> the maps of every stage."""


def quickest(network: nn.Module, size: int, bf16: bool = False, batch: int = 1) -> Network:
    """A network in eval mode for images of one size, compiled where OpenVINO is installed.

    It uses as many threads as torch has at this moment. With a `batch` of several, each works on
    images of its own, so many at a time: threads that share an image of a light network wait for
    one another at every layer.
    """
    threads = torch.get_num_threads()
    if cpu.has_openvino():
        from cpm_core.compiled import CompiledNetwork
        from cpm_core.translate import translate

        models = {n: translate(network, n, size) for n in {1, batch}}
        return Compiled(CompiledNetwork(models, bf16, threads))
    quick = network if bf16 else quicken(network)
    return quick if 1 in (threads, batch) else SideBySide(quick, bf16, threads, batch)


class Compiled:
    """A compiled network that takes and returns tensors."""

    def __init__(self, network: CompiledNetwork) -> None:
        self._network = network

    def __call__(self, images: Tensor) -> list[Tensor]:
        # It takes (N, S, S, 3), as crops are: mostly no copy.
        crops = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        return [torch.from_numpy(maps) for maps in self._network(crops)]


class SideBySide:
    """A network in PyTorch of which each thread has images of its own; a lone image has all."""

    def __init__(self, network: Network, bf16: bool, threads: int, batch: int) -> None:
        self._network, self._bf16, self._batch = network, bf16, batch
        self._count = threads
        # In these threads, torch itself has one.
        self._threads = ThreadPoolExecutor(threads, "network", torch.set_num_threads, (1,))

    def __call__(self, images: Tensor) -> list[Tensor]:
        if len(images) == 1:
            return self._network(images)
        share = min(self._batch, -(-len(images) // self._count))
        parts = self._threads.map(self._run, torch.split(images, share))
        return [torch.cat(stage) for stage in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _run(self, images: Tensor) -> list[Tensor]:
        # What was switched on where it was called does not hold in other threads.
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            return self._network(images)
