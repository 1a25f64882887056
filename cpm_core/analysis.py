"""What a network costs and how far it sees, computed by walking its layers.

Nothing is taken from a table.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cpm_core.config import STRIDE
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm, RefineStage


def parameters(model: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: Cpm, input_size: int | None = None) -> int:
    """Multiply-adds of all convolutions for one crop; biases, pools and activations not counted.

    Runs a twin of the network without values, so it takes no time at any input size.
    """
    with torch.device("meta"):
        twin = Cpm(model.config).eval()
    total = 0

    def count(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += conv.weight[0].numel() * output.numel()

    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    size = input_size or model.config.input_size
    twin(torch.zeros(1, 3, size, size, device="meta"))
    return total


def receptive_fields(model: Cpm) -> list[int]:
    """Side in pixels of what each stage sees around a cell, along the path that sees furthest.

    The bilinear enlargement inside a `lite` trunk is not counted.
    """
    first = model.first if model.first is not None else model.shared
    field = _grow(1, 1, _layers(first))
    fields = [_grow(field, STRIDE, _layers(model.stages[0]))]
    shared = _grow(1, 1, _layers(model.shared))
    for stage in model.stages[1:]:
        assert isinstance(stage, RefineStage)
        features = _grow(shared, STRIDE, _layers(stage.feature))
        fields.append(_grow(max(features, fields[-1]), STRIDE, _layers(stage.layers)))
    return fields


def _layers(module: nn.Module) -> Iterable[nn.Module]:
    """Convolutions and pools on the path through a module that sees furthest, in order."""
    if isinstance(module, LiteTrunk):
        module = nn.Sequential(module.stem, *module.blocks)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            yield layer


def _grow(field: int, jump: int, layers: Iterable[nn.Module]) -> int:
    """The field in pixels after some layers; `jump` is the stride in pixels before them."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.MaxPool2d)
        kernel = layer.kernel_size[0] if isinstance(layer.kernel_size, tuple) else layer.kernel_size
        stride = layer.stride[0] if isinstance(layer.stride, tuple) else layer.stride
        field += (kernel - 1) * jump
        jump *= stride
    return field
