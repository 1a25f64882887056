"""The ways to run a network that `benchmarks.gpu` measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.networks import (
    begin,
    error_of,
    exact_maps,
    flop_of,
    most_memory_mib,
    noise,
    seconds_per_call,
    weights_of,
)
from cpm_core.estimator import Estimator
from cpm_core.lite import fold_batch_norm
from cpm_core.model import Cpm
from cpm_core.person_net import PersonNetLocator

COMPILED = "compiled"
"""torch.compile, mode max-autotune."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "ours": ("cuda", "cpu"),
    "network": ("cuda", "cpu"),
    "graph": ("cuda",),
    "search": ("cuda",),
    "bf16-weights": ("cuda",),
    "contiguous": ("cuda",),
    "fp32": ("cuda",),
}
"""What can be measured, and where it is unless asked for otherwise.

network: the estimator's, called as it is. graph: replayed as a CUDA graph, without launches from
the host. search: with cuDNN trying its algorithms first. bf16-weights: those of
convolutions stored in bf16, which autocast need not convert. contiguous: weights and images not
channels-last. fp32: without autocast; PyTorch lets cuDNN compute in tf32.
"""

_PICTURES, _PICTURE_SHAPE = 32, (480, 640, 3)

Row = dict[str, Any]
Forward = Callable[[Tensor], Tensor]


def device_named(name: str) -> torch.device:
    """`auto` is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Bench:
    """Measures on one device, `seconds` for each figure. Memory is the network's own, too."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self._last: tuple[str, Any] = ("", None)

    def network(self, preset: str, variant: str, batch: int) -> Row:
        """Crops per second. Raises RuntimeError for what does not work here."""
        if variant == "ours":
            return self._ours(preset, batch)
        weights = weights_of(preset)
        size = weights.info.config.input_size
        forward: Forward = self._kept(
            f"{variant} {preset}", lambda: self._forward(weights.model(), variant)
        )
        begin(self.device, search=variant == "search")
        with torch.inference_mode():
            images = self._images(batch, size)
            if variant == "graph":
                forward = _graphed(forward, images)
            error = self._error(preset, forward(images)[:1])
            row = self._rated(lambda: forward(images), batch, weights.info.config)
        return row | {"error_of_maps": error}

    def compiled(self, preset: str, batch: int) -> Row:
        """As `network`, by torch.compile; with the seconds that it took to compile."""
        begin(self.device)
        weights = weights_of(preset)
        size = weights.info.config.input_size
        plain = self._forward(weights.model(), "network")
        forward: Forward = torch.compile(plain, mode="max-autotune")
        with torch.inference_mode():
            images = self._images(batch, size)
            started = time.perf_counter()
            error = self._error(preset, forward(images)[:1])
            spent = time.perf_counter() - started
            row = self._rated(lambda: forward(images), batch, weights.info.config)
        return row | {"error_of_maps": error, "compile_s": spent}

    def person_net(self) -> Row:
        """Pictures of 640 x 480 per second, letterboxing on the host included."""
        self.forget()
        begin(self.device)
        locator = PersonNetLocator(device=self.device.type)
        pictures = list(
            np.random.default_rng(0).integers(0, 256, (_PICTURES, *_PICTURE_SHAPE), np.uint8)
        )
        seconds = seconds_per_call(
            lambda: locator.locate_batch(pictures), self.seconds, self.device
        )
        return {"rate": _PICTURES / seconds, "memory_mib": most_memory_mib(self.device)}

    def forget(self) -> None:
        """Let go of the network that was measured last: the memory of others is told without it."""
        self._last = ("", None)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made under this name, if that was the last: a network for all of its batches."""
        if self._last[0] != name:
            self.forget()
            self._last = (name, make())
        return self._last[1]

    def _ours(self, preset: str, batch: int) -> Row:
        weights = weights_of(preset)
        estimator = self._kept(f"ours {preset}", lambda: Estimator(weights, self.device.type))
        estimator.largest_batch = batch
        begin(self.device)
        crops = noise(batch, weights.info.config.input_size)[:, None]
        row = self._rated(lambda: estimator.estimate_crops(crops), batch, weights.info.config)
        if estimator.largest_batch < batch:
            raise RuntimeError("out of memory")
        return row

    def _forward(self, model: Cpm, variant: str) -> Forward:
        """Images (B, 3, S, S) of uint8 -> maps of the last stage."""
        folded = fold_batch_norm(model).to(self.device)
        layout = torch.contiguous_format if variant == "contiguous" else torch.channels_last
        folded = folded.to(memory_format=layout)  # type: ignore[call-overload]
        casts = variant == "bf16-weights" or (self.device.type == "cuda" and variant != "fp32")
        if variant == "bf16-weights":
            for module in folded.modules():
                if isinstance(module, nn.Conv2d):
                    module.bfloat16()

        def forward(images: Tensor) -> Tensor:
            images = images.contiguous(memory_format=layout)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=casts):
                maps: Tensor = folded(images)[-1]
            return maps

        return forward

    def _images(self, batch: int, size: int) -> Tensor:
        """As the estimator has them: channels last as they stand, still uint8. The first is always
        the same."""
        return torch.from_numpy(noise(batch, size)).to(self.device).permute(0, 3, 1, 2)

    def _error(self, preset: str, maps: Tensor) -> float:
        """Of the maps of the first noise."""
        return error_of(maps.float().cpu().numpy(), _exact(preset))

    def _rated(self, call: Callable[[], object], batch: int, config: Any) -> Row:
        seconds = seconds_per_call(call, self.seconds, self.device)
        flop = flop_of(config) * batch / seconds
        return {
            "rate": batch / seconds,
            "tflops": flop / 1e12,
            "ms": 1e3 * seconds,
            "memory_mib": most_memory_mib(self.device),
        }


@cache
def _exact(preset: str) -> NDArray[np.float64]:
    """Takes seconds for the large ones, so it is done once."""
    weights = weights_of(preset)
    return exact_maps(weights, noise(1, weights.info.config.input_size))


def _graphed(forward: Forward, images: Tensor) -> Forward:
    """Replays of a CUDA graph, captured after a few calls on a stream of its own.

    It was captured on other images than those that it is replayed on, so that what was computed
    then cannot be taken for the answer.
    """
    given, images = images, images.flip(0).contiguous(memory_format=torch.channels_last) // 2
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = forward(images)
    images.copy_(given)

    def replayed(_: Tensor) -> Tensor:
        graph.replay()
        return maps

    return replayed
