"""The ways to run a network that `benchmarks.gpu` measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import profile

from benchmarks.networks import error_of, exact_maps, noise, seconds_per_call, weights_of
from cpm_core.analysis import multiply_adds
from cpm_core.estimator import Estimator
from cpm_core.lite import fold_batch_norm
from cpm_core.model import Cpm
from cpm_core.person_net import PersonNetLocator
from cpm_core.resident import options as flags
from cpm_core.resident.clock import Stopwatch, synchronise
from cpm_core.resident.feed import Feed
from cpm_core.resident.pack import read_pack
from cpm_core.resident.train import first_network_of, made_fit
from cpm_core.training import Fit

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
the host. search: with cuDNN trying its algorithms first. bf16-weights: weights stored in bf16, so
that autocast converts nothing. contiguous: not channels-last. fp32: without
autocast; PyTorch lets cuDNN compute in tf32.
"""

_PICTURES, _PICTURE_SHAPE = 32, (480, 640, 3)
_TRAINING_S = 3.0
_WARM_UP_STEPS = 5
_PROFILED_STEPS = 3
_TOP = 12

Row = dict[str, Any]
Forward = Callable[[Tensor], Tensor]


def device_named(name: str) -> torch.device:
    """`auto` is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Bench:
    """Measures on one device, `seconds` for each figure. Memory is the most that PyTorch held at a
    time, the network's own included; 0 on CPUs."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds

    def network(self, preset: str, variant: str, batch: int) -> Row:
        """Crops per second. Raises RuntimeError for what does not work here."""
        self._begin(search=variant == "search")
        if variant == "ours":
            return self._ours(preset, batch)
        weights = weights_of(preset)
        size = weights.info.config.input_size
        forward = self._forward(weights.model(), variant)
        with torch.inference_mode():
            images = self._images(batch, size)
            error = self._error(preset, forward(self._images(1, size)))
            call = _graphed(forward, images) if variant == "graph" else lambda: forward(images)
            return self._rated(call, batch, weights.info.config) | {"error_of_maps": error}

    def compiled(self, preset: str, batch: int) -> Row:
        """As `network`, by torch.compile; with the seconds that it took to compile."""
        self._begin()
        weights = weights_of(preset)
        size = weights.info.config.input_size
        plain = self._forward(weights.model(), "network")
        forward: Forward = torch.compile(plain, mode="max-autotune")
        with torch.inference_mode():
            images = self._images(batch, size)
            images[:1] = self._images(1, size)
            started = time.perf_counter()
            error = self._error(preset, forward(images)[:1])
            spent = time.perf_counter() - started
            row = self._rated(lambda: forward(images), batch, weights.info.config)
        return row | {"error_of_maps": error, "compile_s": spent}

    def person_net(self) -> Row:
        """Pictures of 640 x 480 per second, letterboxing on the host included."""
        self._begin()
        locator = PersonNetLocator(device=self.device.type)
        pictures = list(
            np.random.default_rng(0).integers(0, 256, (_PICTURES, *_PICTURE_SHAPE), np.uint8)
        )
        seconds = seconds_per_call(
            lambda: locator.locate_batch(pictures), self.seconds, self.device
        )
        return {"rate": _PICTURES / seconds, "memory_mib": self._memory()}

    def training(self, pack: str, preset: str, size: int, batch: int, flag: str = "") -> Row:
        """Samples per second of `cpm_core.resident.train`, and the share of time spent cutting."""
        self._begin(search=True)
        feed, fit = self._trainer(pack, preset, size, batch, flag)
        cutting, steps, started = Stopwatch(self.device), 0, 0.0
        while steps < 2 * _WARM_UP_STEPS or time.perf_counter() - started < _TRAINING_S:
            if steps == _WARM_UP_STEPS:
                synchronise(self.device)
                cutting.take()
                started = time.perf_counter()
            with cutting.running():
                crops = feed.train(steps, size)
            fit.step(crops)
            steps += 1
        synchronise(self.device)
        seconds = time.perf_counter() - started
        rate = (steps - _WARM_UP_STEPS) * batch / seconds
        share = cutting.take() / seconds
        return {"rate": rate, "wait_share": share, "memory_mib": self._memory()}

    def profile(self, pack: str, preset: str, size: int, batch: int, flag: str = "") -> Row:
        """Where the time of a training step goes: the operations that take most of the device."""
        self._begin(search=True)
        feed, fit = self._trainer(pack, preset, size, batch, flag)
        for step in range(_WARM_UP_STEPS):
            fit.step(feed.train(step, size))
        with profile() as profiler:
            for step in range(_PROFILED_STEPS):
                fit.step(feed.train(step, size))
            synchronise(self.device)
        on_gpu = self.device.type == "cuda"
        spent = {
            event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
            for event in profiler.key_averages()
        }
        top = sorted(spent.items(), key=lambda item: -item[1])[:_TOP]
        # Microseconds of all steps, as milliseconds of one.
        return {"top": [[name, value / 1e3 / _PROFILED_STEPS] for name, value in top]}

    def _trainer(
        self, pack: str, preset: str, size: int, batch: int, flag: str
    ) -> tuple[Feed, Fit]:
        given = [pack, "unused.safetensors", "--epochs", "1", "--preset", preset]
        given += ["--size", str(size), "--batch-size", str(batch), *flag.split()]
        options = flags.parser().parse_args(given)
        recipe, samples = flags.recipe(options), read_pack(pack)
        feed = Feed(samples, recipe, self.device, torch.get_num_threads())
        fit = made_fit(first_network_of(options, recipe, samples), options, feed)
        fit.total_steps = feed.steps_per_epoch
        return feed, fit

    def _ours(self, preset: str, batch: int) -> Row:
        weights = weights_of(preset)
        estimator = Estimator(weights, self.device.type)
        estimator.largest_batch = batch
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
        casts = self.device.type == "cuda" and variant not in ("fp32", "bf16-weights")
        if variant == "bf16-weights":
            folded = folded.bfloat16()

        def forward(images: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=casts):
                maps: Tensor = folded(images)[-1]
            return maps

        return forward

    def _images(self, batch: int, size: int) -> Tensor:
        """As the estimator has them: channels last as they stand, still uint8."""
        return torch.from_numpy(noise(batch, size)).to(self.device).permute(0, 3, 1, 2)

    def _error(self, preset: str, maps: Tensor) -> float:
        """Of the maps of the first noise."""
        return error_of(maps.float().cpu().numpy(), _exact(preset))

    def _rated(self, call: Callable[[], object], batch: int, config: Any) -> Row:
        seconds = seconds_per_call(call, self.seconds, self.device)
        flop = 2 * multiply_adds(Cpm(config)) * batch / seconds
        return {
            "rate": batch / seconds,
            "tflops": flop / 1e12,
            "ms": 1e3 * seconds,
            "memory_mib": self._memory(),
        }

    def _begin(self, search: bool = False) -> None:
        """Forget the peak of memory; let cuDNN search for algorithms or not."""
        torch.backends.cudnn.benchmark = search
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _memory(self) -> float:
        if self.device.type != "cuda":
            return 0.0
        return torch.cuda.max_memory_allocated(self.device) / 2**20


@cache
def _exact(preset: str) -> NDArray[np.float64]:
    """Takes seconds for the large ones, so it is done once."""
    weights = weights_of(preset)
    return exact_maps(weights, noise(1, weights.info.config.input_size))


def _graphed(forward: Forward, images: Tensor) -> Callable[[], object]:
    """Replays of a CUDA graph, captured after a few calls on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(images)
    return graph.replay
