"""Networks compiled by OpenVINO, for inference on CPUs.

OpenVINO fuses layers and makes kernels for the processor at hand; where that has bf16 instructions
it is several times as fast as PyTorch (`benchmarks/forward.py`). The network is translated from a
trace of its PyTorch module, which takes a tenth of a second; OpenVINO's own converter takes two
seconds.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cpm_core.model import Cpm

Value = Any
"""What a traced operation takes and gives: an output in OpenVINO's graph, or a constant tensor."""


def bf16_is_native() -> bool:
    """Whether this CPU has instructions for bf16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class CompiledNetwork:
    """A network in eval mode, compiled for images of one size.

    Called with images (N, 3, S, S) of uint8 it returns what the network does, float32 maps of every
    stage. Several threads may call it: up to `streams` are served side by side, with `threads` /
    `streams` CPU threads each. At most `batch` images go through the network at a time.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        bf16: bool,
        threads: int,
        streams: int = 1,
        batch: int = 1,
    ) -> None:
        self._batch = batch
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # Estimators on one machine know nothing of each other and would share a core.
            "ENABLE_CPU_PINNING": False,
        }
        core = ov.Core()
        self._compiled = {
            n: core.compile_model(translate(network, n, size), "CPU", hints) for n in {1, batch}
        }
        self._own = threading.local()

    def __call__(self, images: Tensor) -> list[Tensor]:
        # OpenVINO's inputs are (N, S, S, 3), as crops are: mostly no copy.
        crops = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        parts: list[list[NDArray[np.float32]]] = []
        start = 0
        while start < len(crops):
            count = self._batch if len(crops) - start >= self._batch else 1
            parts.append(self._infer(crops[start : start + count]))
            start += count
        return [torch.from_numpy(np.concatenate(stage)) for stage in zip(*parts, strict=True)]

    def _infer(self, crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        # One request serves one call at a time, so every thread has its own.
        if not hasattr(self._own, "requests"):
            self._own.requests = {
                n: model.create_infer_request() for n, model in self._compiled.items()
            }
        answers = self._own.requests[len(crops)].infer({0: crops}, share_inputs=True)
        return list(answers.values())


def translate(network: nn.Module, batch: int, size: int) -> ov.Model:
    """A network as an OpenVINO model: crops (batch, size, size, 3) of uint8 -> maps of each stage.

    Raises TypeError for an operation that has no translation here.
    """
    if isinstance(network, Cpm):
        network = _AtOwnSize(network, batch)
    crops = ops.parameter([batch, size, size, 3], np.uint8, name="crops")
    images = ops.transpose(ops.convert(crops, "f32"), [0, 3, 1, 2]).output(0)
    with torch.no_grad():
        traced = fx.GraphModule(network, _Tracer().trace(network))
        maps = _Translator(traced).run(images)
    return ov.Model(maps, [crops], "network")


class _AtOwnSize(nn.Module):
    """A CPM without the question whether crops have another size, which a trace cannot answer."""

    def __init__(self, cpm: Cpm, batch: int) -> None:
        super().__init__()
        self.cpm = cpm
        self.centre = cpm.centre.repeat(batch, 1, 1, 1) if cpm.config.centre_sigma else None

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.cpm.maps(self.cpm.normalise(images), self.centre)


class _Tracer(fx.Tracer):
    """Traces down to functions; a layer is a function of its weights."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class _Translator(fx.Interpreter):
    """Runs a trace on OpenVINO's values, which builds OpenVINO's graph."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        if target not in _OPERATIONS:
            raise TypeError(f"{target} has no translation to OpenVINO")
        node = _OPERATIONS[target](*args, **kwargs)
        return node.output(0) if isinstance(node, ov.Node) else node

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        return self.call_function(getattr(Tensor, target), args, kwargs)


def _binary(operation: Callable[[Value, Value], Value]) -> Callable[[Value, Value], Value]:
    return lambda a, b: operation(_node(a), _node(b))


def _node(value: Value) -> Value:
    if not isinstance(value, Tensor):
        return value
    return ops.constant(np.ascontiguousarray(value.detach().numpy())).output(0)


def _conv2d(
    x: Value,
    weight: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Value:
    geometry = list(stride), list(padding), list(padding), list(dilation)
    if groups == 1:
        y = ops.convolution(x, _node(weight), *geometry)
    else:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        y = ops.group_convolution(x, _node(by_group), *geometry)
    return ops.add(y, _node(bias.view(1, -1, 1, 1)))


def _max_pool2d(
    x: Value,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    assert not return_indices
    sides = [[n, n] for n in (stride, dilation, padding, padding, kernel_size)]
    return ops.max_pool(x, *sides, "ceil" if ceil_mode else "floor")


_RESIZING = {
    "nearest": ("nearest", "asymmetric", "floor"),
    "bilinear": ("linear_onnx", "half_pixel", "floor"),
}


def _interpolate(x: Value, scale_factor: float, mode: str, **_: Any) -> Value:
    scales = np.full(2, scale_factor, np.float32)
    kind, places, rounding = _RESIZING[mode]
    return ops.interpolate(
        x,
        scales,
        kind,
        "scales",
        axes=[2, 3],
        coordinate_transformation_mode=places,
        nearest_mode=rounding,
    )


def _sliced(x: Value, index: tuple[slice, ...]) -> Value:
    for axis, part in enumerate(index):
        start, stop, step = part.indices(x.shape[axis])
        x = ops.slice(x, [start], [stop], [step], [axis]).output(0)
    return x


def _flipped(x: Value, axis: int) -> Value:
    backwards = np.arange(x.shape[axis])[::-1].copy()
    return ops.gather(x, ops.constant(backwards), ops.constant(axis))


_OPERATIONS: dict[Any, Callable[..., Value]] = {
    operator.add: _binary(ops.add),
    operator.sub: _binary(ops.subtract),
    operator.truediv: _binary(ops.divide),
    operator.getitem: _sliced,
    getattr: lambda x, name: None,
    # OpenVINO decides on types by its precision hint.
    Tensor.to: lambda x, *_: x,
    Tensor.flip: _flipped,
    Tensor.sigmoid: ops.sigmoid,
    torch.cat: lambda values, dim: ops.concat([_node(value) for value in values], dim),
    torch.conv2d: _conv2d,
    F.relu: lambda x, inplace=False: ops.relu(x),
    F.hardtanh: lambda x, min_val, max_val, inplace: ops.clamp(x, min_val, max_val),
    F.silu: lambda x, inplace=False: ops.swish(x),
    F.dropout: lambda x, **_: x,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.interpolate: _interpolate,
}
