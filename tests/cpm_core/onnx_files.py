"""ONNX files written by hand (the `onnx` package is not needed for a few bytes of protobuf)."""

import numpy as np

FLOAT, INT32 = 1, 6


def model(inputs, outputs):
    """Bytes of a model whose outputs are constants.

    `inputs` are (name, type, shape), a shape's entries numbers or names; `outputs` (name, array).
    """
    nodes = [
        _text(1, f"{name}_value") + _text(2, name) + _text(4, "Identity") for name, _ in outputs
    ]
    graph = b"".join(_bytes(1, node) for node in nodes)
    graph += _text(2, "graph")
    graph += b"".join(_bytes(5, _tensor(f"{name}_value", array)) for name, array in outputs)
    graph += b"".join(_bytes(11, _value(*declared)) for declared in inputs)
    graph += b"".join(_bytes(12, _value(name, FLOAT, a.shape)) for name, a in outputs)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, 13))


def _tensor(name, array):
    dims = b"".join(_number(1, n) for n in array.shape)
    raw = np.ascontiguousarray(array, np.float32).tobytes()
    return dims + _number(2, FLOAT) + _text(8, name) + _bytes(9, raw)


def _value(name, kind, shape):
    dims = b"".join(_bytes(1, _text(2, n) if isinstance(n, str) else _number(1, n)) for n in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, dims)))


def _text(field, text):
    return _bytes(field, text.encode())


def _bytes(field, data):
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
