"""A YOLOX-Nano ONNX file as the start of the trunk. No package but NumPy is needed to read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cpm_core.errors import WeightsError
from cpm_core.person_net.trunk import CspBase

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_FLOAT = 1
"""Field numbers and a value of onnx.proto3 (Apache-2.0)."""
_FOCUS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Row and column of the pixel that each three channels of the Focus layer hold."""


def load_yolox_nano(base: CspBase, path: str | Path) -> None:
    """Fill the trunk from a published `yolox_nano.onnx` (Megvii, Apache-2.0).

    Its convolutions come in the order in which the network calls them; the head's, which come
    last, are not used. Raises WeightsError for another file.
    """
    try:
        pairs = convolutions(Path(path).read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    except (IndexError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: not an ONNX file with float weights ({error!r})") from error
    ours = _called(base)
    if len(pairs) < len(ours):
        raise WeightsError(f"{path}: {len(pairs)} convolutions; YOLOX-Nano has more")
    with torch.no_grad():
        for i, (conv, (weight, bias)) in enumerate(zip(ours, pairs, strict=False)):
            if conv is base.stem and weight.shape == (16, 12, 3, 3):
                weight = _unfocused(weight)
            if weight.shape != tuple(conv.weight.shape) or bias.shape != weight.shape[:1]:
                raise WeightsError(
                    f"{path}: convolution {i} has weights {weight.shape}, "
                    f"YOLOX-Nano's has {tuple(conv.weight.shape)}"
                )
            assert conv.bias is not None
            conv.weight.copy_(torch.from_numpy(weight))
            conv.bias.copy_(torch.from_numpy(bias))


def convolutions(content: bytes) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weight and bias of every convolution of an ONNX file, in its order."""
    (graph,) = (value for field, value in _fields(content) if field == _GRAPH)
    assert isinstance(graph, bytes)
    tensors: dict[bytes, NDArray[np.float32]] = {}
    nodes: list[list[bytes]] = []
    for field, value in _fields(graph):
        if field == _INITIALIZER and isinstance(value, bytes):
            name, tensor = _tensor(value)
            if tensor is not None:
                tensors[name] = tensor
        if field == _NODE and isinstance(value, bytes):
            parts = list(_fields(value))
            if (_NODE_OPERATOR, b"Conv") in parts:
                nodes.append([v for f, v in parts if f == _NODE_INPUT and isinstance(v, bytes)])
    return [(tensors[inputs[1]], tensors[inputs[2]]) for inputs in nodes]


def _tensor(content: bytes) -> tuple[bytes, NDArray[np.float32] | None]:
    """Name and values; None for one that is not of raw floats."""
    dims: list[int] = []
    name, raw, kind = b"", b"", 0
    for field, value in _fields(content):
        if field == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field == _TENSOR_NAME and isinstance(value, bytes):
            name = value
        elif field == _TENSOR_RAW and isinstance(value, bytes):
            raw = value
    if kind != _FLOAT or not raw:
        return name, None
    return name, np.frombuffer(raw, "<f4").reshape(dims).copy()


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message; 4 and 8 byte values as bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(content, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(content):
            raise ValueError("the file ends early")
        yield key >> 3, content[at : at + length]
        at += length


def _packed(content: bytes) -> list[int]:
    values, at = [], 0
    while at < len(content):
        value, at = _varint(content, at)
        values.append(value)
    return values


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _unfocused(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Focus and 3x3 (16, 12, 3, 3) on BGR as a 6x6 of stride 2 (16, 3, 6, 6) on RGB."""
    result = np.zeros((len(weight), 3, 6, 6), np.float32)
    for part, (row, column) in enumerate(_FOCUS):
        bgr = weight[:, 3 * part : 3 * part + 3]
        result[:, :, row::2, column::2] = bgr[:, ::-1]
    return result


def _called(base: CspBase) -> list[nn.Conv2d]:
    """The trunk's convolutions in the order in which a forward pass calls them."""
    order: list[nn.Conv2d] = []

    def note(module: nn.Module, *_: object) -> None:
        assert isinstance(module, nn.Conv2d)
        order.append(module)

    hooks = [
        module.register_forward_hook(note)
        for module in base.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        base(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return order
