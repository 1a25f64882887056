"""Networks compiled by OpenVINO, for inference on CPUs.

OpenVINO fuses layers and makes kernels for the processor at hand: it is quicker than PyTorch, and
most so where that has bf16 instructions (`benchmarks/forward.py`). To translate a network, its
`forward` is called with a node of OpenVINO's graph in the place of the images: what the layers do
with it builds the graph. That takes a twentieth of a second; OpenVINO's own converter takes two
seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cpm_core.vino import ops, ov


class CompiledNetwork:
    """A network in eval mode, compiled for images of one size.

    Called with images (N, 3, S, S) of uint8 it returns what the network does, float32 maps of every
    stage. `batch` of them, or one, go through the network at a time, `streams` such parts side by
    side with `threads` / `streams` CPU threads each. Where there is only one part, it has all
    threads. Several threads may call it.

    OpenVINO itself is called from threads of its own, or the main one, which is quicker for a lone
    image: in threads that Python has not made (Daft's, Ray's) it leaves Python with a wrong idea of
    them, and the process dies.
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
        models = {n: translate(network, n, size) for n in {1, batch}}
        self._batch = batch
        self._side_by_side = _Streams(models, bf16, threads, streams)
        self._together = self._side_by_side if streams == 1 else _Streams(models, bf16, threads, 1)

    def __call__(self, images: Tensor) -> list[Tensor]:
        # OpenVINO's inputs are (N, S, S, 3), as crops are: mostly no copy.
        crops = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        is_one = len(crops) in (1, self._batch)
        streams = self._together if is_one else self._side_by_side
        whole = len(crops) - len(crops) % (self._batch * streams.count)
        parts = streams.infer(
            [
                *(crops[n : n + self._batch] for n in range(0, whole, self._batch)),
                *(crops[n : n + 1] for n in range(whole, len(crops))),
            ]
        )
        return [torch.from_numpy(np.concatenate(stage)) for stage in zip(*parts, strict=True)]


class _Streams:
    """A network compiled for batches of some sizes, of which `count` are in the making at a
    time."""

    def __init__(self, models: dict[int, ov.Model], bf16: bool, threads: int, count: int) -> None:
        self.count = count
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": count,
            # Estimators on one machine know nothing of each other and would share a core.
            "ENABLE_CPU_PINNING": False,
        }
        core = ov.Core()
        self._compiled = {n: core.compile_model(m, "CPU", hints) for n, m in models.items()}
        self._threads = ThreadPoolExecutor(count, "openvino")
        self._own = threading.local()

    def infer(self, batches: Sequence[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.float32]]]:
        """The maps of every stage of each batch."""
        if len(batches) == 1 and threading.current_thread() is threading.main_thread():
            return map(self._infer, batches)
        return self._threads.map(self._infer, batches)

    def _infer(self, crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        # A request serves one call at a time: every thread has its own.
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
    crops = ops.parameter([batch, size, size, 3], np.uint8, name="crops")
    images = _Value(ops.transpose(ops.convert(crops, "f32"), [0, 3, 1, 2]))
    with torch.no_grad():
        maps: list[_Value] = network(images)
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
