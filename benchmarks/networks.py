"""What benchmarks of networks share: their weights, crops, the hardware's peak, rates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from cpm_core.analysis import multiply_adds
from cpm_core.config import CpmConfig, preset
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.resident.clock import synchronise
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import Weights, load_weights

_BLOCK_S = 0.05
_LEAST_BLOCKS = 3
CPU = torch.device("cpu")


@cache
def weights_of(name: str) -> Weights:
    """The shipped ones, or random ones of a preset that none are shipped of: always the same, in
    every process."""
    if name == "cpm-lite":
        return load_weights(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Cpm(preset(name)).eval()
    info = WeightsInfo(name, preset(name), load_skeleton("lsp14"))
    return Weights(info, dict(model.state_dict()), "")


@cache
def flop_of(config: CpmConfig) -> int:
    """Of one crop."""
    with torch.device("meta"):
        model = Cpm(config)
    return 2 * multiply_adds(model)


def begin(device: torch.device, search: bool = False) -> None:
    """Forget the peak of memory; let cuDNN search for algorithms or not."""
    torch.backends.cudnn.benchmark = search
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def most_memory_mib(device: torch.device) -> float:
    """The most that PyTorch held at a time since `begin`; 0 on CPUs."""
    if device.type != "cuda":
        return 0.0
    return torch.cuda.max_memory_allocated(device) / 2**20


def noise(count: int, size: int) -> NDArray[np.uint8]:
    """Crops (count, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def peak(precision: str, device: torch.device, side: int = 4096) -> float:
    """GFLOP/s of a product of two square matrices, the best of some."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = (torch.rand((side, side), device=device).to(kind) for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.mm(a, b)
    times = []
    for _ in range(5):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times) / 1e9


def exact_maps(weights: Weights, crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Maps (N, K + 1, H, W) of the last stage in fp64, on the CPU."""
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).double()
    with torch.inference_mode():
        maps: NDArray[np.float64] = weights.model().double()(images)[-1].numpy()
    return maps


def error_of(maps: NDArray[np.floating], exact: NDArray[np.float64]) -> float:
    """Largest distance of maps from the exact ones, as a part of their largest."""
    return float(np.abs(maps - exact).max() / np.abs(exact).max())


def seconds_per_call(
    call: Callable[[], object], seconds: float, device: torch.device = CPU
) -> float:
    """Median over blocks of calls, after two that do not count; `seconds` in all, or three blocks.

    A block takes a twentieth of a second, so that waiting for the device hardly counts.
    """
    call()
    calls = max(1, int(_BLOCK_S / _seconds(call, 1, device)))
    times: list[float] = []
    while len(times) < _LEAST_BLOCKS or sum(times) < seconds:
        times.append(_seconds(call, calls, device))
    return statistics.median(times) / calls


def _seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return time.perf_counter() - started
