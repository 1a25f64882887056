"""Training on a GPU, as `benchmarks.gpu` measures it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from benchmarks.networks import begin, most_memory_mib
from cpm_core.resident import options as flags
from cpm_core.resident.clock import Stopwatch, synchronise
from cpm_core.resident.feed import Feed
from cpm_core.resident.pack import read_pack
from cpm_core.resident.plan import check_finite
from cpm_core.resident.train import first_network_of, made_fit
from cpm_core.training import Fit

_TRAINING_S = 3.0
_WARM_UP_STEPS = 5
_PROFILED_STEPS = 3
_TOP = 12
_ENDLESS = 10**9
"""Steps of a run in which those that are measured are the first ones."""

Row = dict[str, Any]


class Training:
    """Steps of `cpm_core.resident.train` on one device, on samples of a pack."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def training(self, pack: str, preset: str, size: int, batch: int, flag: str = "") -> Row:
        """Samples per second, and the share of the device's time spent cutting crops."""
        begin(self.device, search=True)
        feed, fit = self._trainer(pack, preset, size, batch, flag)
        cutting, steps, started = Stopwatch(self.device), 0, 0.0
        while steps < 2 * _WARM_UP_STEPS or time.perf_counter() - started < _TRAINING_S:
            if steps == _WARM_UP_STEPS:
                synchronise(self.device)
                cutting.take()
                started = time.perf_counter()
            with cutting.running():
                crops = feed.train(steps, size)
            losses = fit.step(crops)
            steps += 1
        synchronise(self.device)
        seconds = time.perf_counter() - started
        check_finite(losses.tolist(), steps)
        rate = (steps - _WARM_UP_STEPS) * batch / seconds
        share = cutting.take() / seconds
        return {"rate": rate, "cut_share": share, "memory_mib": most_memory_mib(self.device)}

    def profile(self, pack: str, preset: str, size: int, batch: int, flag: str = "") -> Row:
        """Where the time of a training step goes: the operations that take most of the device."""
        begin(self.device, search=True)
        feed, fit = self._trainer(pack, preset, size, batch, flag)
        for step in range(_WARM_UP_STEPS):
            fit.step(feed.train(step, size))
        with profile() as profiler:
            for step in range(_PROFILED_STEPS):
                fit.step(feed.train(step, size))
            synchronise(self.device)
        spent = _milliseconds(profiler.key_averages(), self.device)
        top = sorted(spent.items(), key=lambda item: -item[1])[:_TOP]
        return {
            "top": [[name, value / _PROFILED_STEPS] for name, value in top],
            "sum_ms": sum(spent.values()) / _PROFILED_STEPS,
        }

    def _trainer(
        self, pack: str, preset: str, size: int, batch: int, flag: str
    ) -> tuple[Feed, Fit]:
        given = [pack, "unused.safetensors", "--epochs", "1", "--preset", preset]
        given += ["--size", str(size), "--batch-size", str(batch), *flag.split()]
        options = flags.parser().parse_args(given)
        recipe, samples = flags.recipe(options), read_pack(pack)
        feed = Feed(samples, recipe, self.device, torch.get_num_threads())
        fit = made_fit(first_network_of(options, recipe, samples), options, feed)
        fit.total_steps = _ENDLESS
        return feed, fit


def _milliseconds(events: Iterable[Any], device: torch.device) -> dict[str, float]:
    """By operation. On a GPU kernels and copies only: operators of the CPU have the time of theirs,
    too, and annotations that of all that runs in them."""
    if device.type != "cuda":
        return {event.key: event.self_cpu_time_total / 1e3 for event in events}
    return {
        event.key: event.self_device_time_total / 1e3
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    }
