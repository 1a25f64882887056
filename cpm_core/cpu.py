"""The quickest way to run a network on a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cpm_core.frequency import quicken

Network = Callable[[Tensor], list[Tensor]]
"""Images (N, 3, S, S) of uint8 -> the maps of every stage."""


def quickest(
    network: nn.Module, size: int, bf16: bool = False, streams: int = 1, batch: int = 1
) -> Network:
    """A network in eval mode for images of one size, compiled where OpenVINO is installed.

    It uses as many threads as torch has at this moment; the rest is that of `CompiledNetwork`.
    """
    if not _has_openvino():
        return network if bf16 else quicken(network)
    from cpm_core.compiled import CompiledNetwork

    return CompiledNetwork(network, size, bf16, torch.get_num_threads(), streams, batch)


def has_bf16() -> bool:
    """Whether bf16 is quick here: instructions of the CPU, and OpenVINO, which uses them well."""
    if not _has_openvino():
        return False
    from cpm_core.vino import bf16_is_native

    return bf16_is_native()


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None
