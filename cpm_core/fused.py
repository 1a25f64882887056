"""Layers in one oneDNN call each, for inference on CPUs in fp32.

PyTorch runs convolution, activation and residual addition one after the other, each through memory,
and on one thread computes 1x1 convolutions without oneDNN. oneDNN takes activation and addition as
part of the convolution; PyTorch offers that to its own compiler as
`mkldnn::_convolution_pointwise`, which needs no compiler to call. `benchmarks/quality.py` measures
the estimator with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpm_core.depthwise import DepthwiseConv2d
from cpm_core.lite import InvertedBottleneck, LargeKernelBlock, LiteTrunk

_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}

_EARLY_BLOCKS = 4
"""Blocks of the trunk up to the one that makes stride 8 of stride 4."""


def can_fuse() -> bool:
    """Whether this build of PyTorch has the operation."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def fuse(model: nn.Module) -> nn.Module:
    """Replace the folded layers (`fold_batch_norm`) of a model in place; the answers stay the same.

    Larger convolutions that are not followed by an activation of the table stay as they are.
    """
    for name, child in model.named_children():
        if isinstance(child, InvertedBottleneck):
            replaced: nn.Module = _FusedBottleneck(child)
        elif isinstance(child, LargeKernelBlock):
            replaced = _FusedLargeKernelBlock(child)
        elif isinstance(child, nn.Sequential) and _is_layer(child):
            replaced = FusedConv(child)
        elif _is_lone_pointwise(child):
            replaced = FusedConv(nn.Sequential(child))
        else:
            replaced = fuse(child)
        setattr(model, name, replaced)
    if isinstance(model, nn.Sequential):
        _fuse_pairs(model)
    if isinstance(model, LiteTrunk):
        _start_one_by_one(model)
    return model


def _fuse_pairs(layers: nn.Sequential) -> None:
    """Make one of each convolution and the activation after it, in place."""
    for i in range(len(layers) - 1):
        pair = nn.Sequential(layers[i], layers[i + 1])
        if type(layers[i + 1]) is nn.ReLU and _is_layer(pair):
            layers[i], layers[i + 1] = FusedConv(pair), nn.Identity()


def _start_one_by_one(trunk: LiteTrunk) -> None:
    """Let the layers at strides 2 and 4 see one crop after the other, in place.

    What they make of one crop fits into a CPU's cache, what they make of four does not: measured
    2.7 ms per crop so, and 5.2 ms with four at a time. Later layers want several crops.
    """
    early = [trunk.stem, *trunk.blocks[:_EARLY_BLOCKS]]
    trunk.stem = nn.Sequential(_OneByOne(*early))
    for i in range(_EARLY_BLOCKS):
        trunk.blocks[i] = nn.Identity()


class _OneByOne(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layers(one) for one in torch.split(x, 1)])


class FusedConv(nn.Module):
    """A folded convolution with its activation: relu(conv(x)), or relu(conv(x) + residual)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Sequential, then: type[nn.Module] | None = None) -> None:
        """`then` is the activation after the residual; the layer then has none of its own."""
        super().__init__()
        conv, *rest = layer
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        weight = conv.weight.detach().to(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", conv.bias.detach(), persistent=False)
        own = next((type(m) for m in rest if not isinstance(m, nn.Identity)), nn.Identity)
        self.activation = _ACTIVATIONS[then or own]
        self.shape = (conv.padding, conv.stride, conv.dilation, conv.groups)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        name, values = self.activation
        if residual is None:
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.shape, name, values, ""
            )
            return y
        after = None if name == "none" else name
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self.weight, self.bias, *self.shape, "add", 1.0, after, values, None
        )
        return y


class _FusedBottleneck(nn.Module):
    def __init__(self, block: InvertedBottleneck) -> None:
        super().__init__()
        *first, last = block.layers
        self.first = nn.Sequential(*(FusedConv(layer) for layer in first))  # type: ignore[arg-type]
        self.last = FusedConv(last)  # type: ignore[arg-type]
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x), x if self.residual else None)
        return y


class _FusedLargeKernelBlock(nn.Module):
    def __init__(self, block: LargeKernelBlock) -> None:
        super().__init__()
        self.depthwise = FusedConv(block.depthwise)
        self.pointwise = FusedConv(block.pointwise, then=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x), x)
        return y


def _is_lone_pointwise(module: nn.Module) -> bool:
    """A 1x1 convolution without an activation, as at the end of a stage."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and _is_layer(nn.Sequential(module))
    )


def _is_layer(module: nn.Sequential) -> bool:
    """A convolution with bias, a folded batch norm, perhaps an activation, and nothing else."""
    conv, *rest = module
    # Not of another subclass, which may have an activation within.
    return (
        type(conv) in (nn.Conv2d, DepthwiseConv2d)
        and conv.bias is not None
        and len([m for m in rest if not isinstance(m, nn.Identity)]) <= 1
        and all(type(m) in _ACTIVATIONS for m in rest)
    )
