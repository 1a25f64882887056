"""Networks of PyTorch as OpenVINO graphs.

A network stays written once: its `forward` is called with a node of OpenVINO's graph in the place
of the images, and what the layers do with it builds the graph. That takes a twentieth of a second;
OpenVINO's own converter takes two seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpm_core.compiled import Graph
from cpm_core.lite import fold_batch_norm
from cpm_core.vino import ops, ov

if TYPE_CHECKING:
    from cpm_core.person_net.weights import PersonNetWeights
    from cpm_core.weights import Weights


def graph_of(weights: Weights | PersonNetWeights, batch: int = 1) -> Graph:
    """The last stage of a network, for one image and for so many at a time, to be compiled where
    there is no PyTorch."""
    network, size = fold_batch_norm(weights.model()), weights.info.config.input_size
    by_batch = {}
    with tempfile.TemporaryDirectory(prefix="posemill-graph-") as folder:
        topology, values = Path(folder, "network.xml"), Path(folder, "network.bin")
        for count in {1, batch}:
            model = translate(network, count, size, last_only=True)
            ov.serialize(model, str(topology), str(values))
            by_batch[count] = topology.read_bytes(), values.read_bytes()
    return Graph(by_batch)


def translate(network: nn.Module, batch: int, size: int, last_only: bool = False) -> ov.Model:
    """A network as an OpenVINO model: crops (batch, size, size, 3) of uint8 -> maps of each stage,
    or of the last one.

    Raises TypeError for an operation that has no translation here.
    """
    crops = ops.parameter([batch, size, size, 3], np.uint8, name="crops")
    images = _Value(ops.transpose(ops.convert(crops, "f32"), [0, 3, 1, 2]))
    with torch.no_grad():
        maps: list[_Value] = network(images)[-1 if last_only else 0 :]
    return ov.Model([value.node for value in maps], [crops], "network")


@dataclass(frozen=True)
class _Value:
    """A node of OpenVINO's graph that layers take for a tensor: PyTorch hands its functions over
    (`__torch_function__`)."""

    node: ov.Node | ov.Output
    dtype = torch.float32
    """In PyTorch's eyes; OpenVINO computes as its precision hint says."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> _Value | Tensor:
        if func not in _FUNCTIONS:
            raise TypeError(f"{func} has no translation to OpenVINO")
        return _FUNCTIONS[func](*args, **(kwargs or {}))

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch, channels, height, width."""
        return tuple(self.node.shape)

    def to(self, dtype: torch.dtype) -> _Value:
        """Itself."""
        return self

    def __add__(self, other: _Value | Tensor) -> _Value:
        return _Value(ops.add(self.node, _node(other)))

    def __sub__(self, other: _Value | Tensor) -> _Value:
        return _Value(ops.subtract(self.node, _node(other)))

    def __truediv__(self, other: _Value | Tensor) -> _Value:
        return _Value(ops.divide(self.node, _node(other)))

    def __getitem__(self, index: tuple[slice, ...]) -> _Value:
        node = self.node
        for axis, part in enumerate(index):
            start, stop, step = part.indices(self.shape[axis])
            node = ops.slice(node, [start], [stop], [step], [axis])
        return _Value(node)

    def flip(self, axis: int) -> _Value:
        """The other way round along an axis."""
        backwards = np.arange(self.shape[axis])[::-1].copy()
        return _Value(ops.gather(self.node, ops.constant(backwards), ops.constant(axis)))

    def sigmoid(self) -> _Value:
        """1 / (1 + exp(-x))."""
        return _Value(ops.sigmoid(self.node))


def _node(value: _Value | Tensor) -> ov.Node | ov.Output:
    if isinstance(value, _Value):
        return value.node
    return ops.constant(np.ascontiguousarray(value.detach().numpy()))


def _conv2d(
    x: _Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> _Value:
    geometry = list(stride), list(padding), list(padding), list(dilation)
    if groups == 1:
        node = ops.convolution(x.node, _node(weight), *geometry)
    else:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        node = ops.group_convolution(x.node, _node(by_group), *geometry)
    return _Value(node) if bias is None else _Value(node) + bias.view(1, -1, 1, 1)


def _max_pool2d(
    x: _Value,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Value:
    assert not return_indices
    sides = [[n, n] for n in (stride, dilation, padding, padding, kernel_size)]
    node = ops.max_pool(x.node, *sides, "ceil" if ceil_mode else "floor")
    return _Value(node.output(0))  # The second says where the largest values were.


_RESIZING = {
    "nearest": ("nearest", "asymmetric", "floor"),
    "bilinear": ("linear_onnx", "half_pixel", "floor"),
}


def _interpolate(
    x: _Value, scale_factor: float, mode: str, align_corners: bool | None = None, **others: Any
) -> _Value:
    if mode not in _RESIZING or align_corners or any(others.values()):
        raise TypeError(f"interpolation {mode} with {others} has no translation to OpenVINO")
    kind, places, rounding = _RESIZING[mode]
    node = ops.interpolate(
        x.node,
        np.full(2, scale_factor, np.float32),
        kind,
        "scales",
        axes=[2, 3],
        coordinate_transformation_mode=places,
        nearest_mode=rounding,
    )
    return _Value(node)


def _dropout(x: _Value, p: float, training: bool, inplace: bool) -> _Value:
    if training:
        raise TypeError("a network that is training has no translation to OpenVINO")
    return x


def _cat(values: Sequence[_Value | Tensor], dim: int) -> _Value:
    return _Value(ops.concat([_node(value) for value in values], dim))


def _hardtanh(x: _Value, min_val: float, max_val: float, inplace: bool) -> _Value:
    return _Value(ops.clamp(x.node, min_val, max_val))


_FUNCTIONS: dict[Any, Callable[..., _Value | Tensor]] = {
    torch.cat: _cat,
    torch.conv2d: _conv2d,
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
    F.interpolate: _interpolate,
    F.hardtanh: _hardtanh,
    F.relu: lambda x, inplace=False: _Value(ops.relu(x.node)),
    F.silu: lambda x, inplace=False: _Value(ops.swish(x.node)),
    F.dropout: _dropout,
    Tensor.to: lambda constant, _: constant,
}
