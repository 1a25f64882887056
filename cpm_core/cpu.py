"""The quickest way to run a network on a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cpm_core.frequency import quicken

if TYPE_CHECKING:
    from types import ModuleType

Network = Callable[[Tensor], list[Tensor]]
"""Images (N, 3, S, S) of uint8 -> the maps of every stage."""


def quickest(
    network: nn.Module, size: int, bf16: bool = False, streams: int = 1, batch: int = 1
) -> Network:
    """A network in eval mode for images of one size, compiled where OpenVINO is installed.

    It uses as many threads as torch has at this moment; the rest is that of `CompiledNetwork`.
    """
    if (openvino := _openvino()) is None:
        return network if bf16 else quicken(network)
    threads = torch.get_num_threads()
    made: Network = openvino.CompiledNetwork(network, size, bf16, threads, streams, batch)
    return made


def has_bf16() -> bool:
    """Whether bf16 is quick here: instructions of the CPU, and OpenVINO, which uses them well."""
    openvino = _openvino()
    return openvino is not None and openvino.bf16_is_native()


def _openvino() -> ModuleType | None:
    if importlib.util.find_spec("openvino") is None:
        return None
    from cpm_core import compiled

    return compiled
