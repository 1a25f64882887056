import struct
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from cpm_core.errors import WeightsError
from cpm_core.person_net.trunk import CspBase, CspTrunk
from cpm_core.person_net.yolox import convolutions, load_yolox_nano

YOLOX = Path(__file__).resolve().parents[3] / "shared/weights/yolox_nano.onnx"
needs_file = pytest.mark.skipif(not YOLOX.is_file(), reason="needs ../shared/weights")

HEAD = 12
"""Convolutions of YOLOX's head per stride: 1 shared, 5 for the class, 5 for the box, 1."""


def test_features_of_every_stride_are_fused():
    base, images = CspBase(), torch.rand(2, 3, 64, 96)
    shapes = [tuple(maps.shape) for maps in base(images)]
    assert shapes == [(2, 64, 8, 12), (2, 128, 4, 6), (2, 256, 2, 3)]
    assert CspTrunk()(images).shape == (2, 128, 8, 12)


def layer(x, weights, activate=True):
    weight, bias = (torch.from_numpy(value) for value in weights)
    groups = x.shape[1] // weight.shape[1]
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)
    return F.silu(y) if activate else y


def head(maps, weights):
    """YOLOX's output (B, 85, cells) for one stride."""
    shared = layer(maps, weights[0])
    kind, box = shared, shared
    for i in range(1, 5):
        kind, box = layer(kind, weights[i]), layer(box, weights[5 + i])
    found = layer(box, weights[11], False).sigmoid()
    rows = [layer(box, weights[10], False), found, layer(kind, weights[5], False).sigmoid()]
    return torch.cat(rows, dim=1).flatten(2)


@needs_file
def test_the_trunk_is_that_of_yolox_nano():
    """With YOLOX's head on top of it, it says what onnxruntime says, colours in reverse."""
    base = CspBase()
    load_yolox_nano(base, YOLOX)
    rest = convolutions(YOLOX.read_bytes())[-3 * HEAD :]
    images = torch.randint(0, 256, (1, 3, 416, 416), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = base(images.float())
        ours = [head(f, rest[i * HEAD : (i + 1) * HEAD]) for i, f in enumerate(features)]
    session = ort.InferenceSession(str(YOLOX), providers=["CPUExecutionProvider"])
    bgr = images.flip(1).float().numpy()
    expected = session.run(None, {session.get_inputs()[0].name: bgr})[0]
    np.testing.assert_allclose(torch.cat(ours, dim=2).mT.numpy(), expected, atol=1e-3)


def message(*fields):
    """A protobuf message of (number, bytes or int)."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += bytes([number << 3, value])
        else:
            out += bytes([number << 3 | 2]) + varint(len(value)) + value
    return out


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def tensor(name, values):
    values = np.asarray(values, "<f4")
    dims = [(1, d) for d in values.shape]
    return message(*dims, (2, 1), (8, name), (9, values.tobytes()))


def conv(weight, bias):
    return message((1, b"x"), (1, weight), (1, bias), (2, b"y"), (4, b"Conv"))


def graph(*fields):
    return message((1, 8), (7, message(*fields)))


def test_convolutions_come_in_the_order_of_the_file():
    content = graph(
        (1, conv(b"w2", b"b")),
        (1, message((1, b"x"), (4, b"Relu"))),
        (1, conv(b"w1", b"b")),
        (5, tensor(b"w1", np.ones((2, 1, 3, 3)))),
        (5, tensor(b"b", [1, 2])),
        (5, tensor(b"w2", np.zeros((2, 3, 1, 1)))),
    )
    shapes = [(weight.shape, bias.tolist()) for weight, bias in convolutions(content)]
    assert shapes == [((2, 3, 1, 1), [1, 2]), ((2, 1, 3, 3), [1, 2])]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an ONNX file"),
        (b"something else", "not an ONNX file"),
        (b"\x3a\xff\xff\xff\xff\x0f", "not an ONNX file"),
        (struct.pack("<Q", 1 << 63), "not an ONNX file"),
        (graph((1, conv(b"w", b"b"))), "not an ONNX file.*b'w'"),
        (graph((1, b"")), "0 convolutions"),
        (
            graph(
                *[(1, conv(b"w", b"b"))] * 90,
                (5, tensor(b"w", np.zeros((2, 3, 1, 1)))),
                (5, tensor(b"b", [0, 0])),
            ),
            r"convolution 0 has weights \(2, 3, 1, 1\)",
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_other_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_yolox_nano(CspBase(), path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.onnx: cannot be read"):
        load_yolox_nano(CspBase(), tmp_path / "none.onnx")
