"""Large convolutions in the frequency domain: the same answers, whichever way is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpm_core import cpu, frequency
from cpm_core.config import preset
from cpm_core.estimator import Estimator
from cpm_core.frequency import LargeConv, quicken, tile_side
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import Weights


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 5),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    kernel=st.sampled_from([7, 9, 11]),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_same_as_the_direct_convolution(
    batch: int, channels: int, outputs: int, height: int, width: int, kernel: int, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=bias).double()
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    with torch.inference_mode():
        expected, found = conv(x), LargeConv(conv).in_frequency(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fp32_differs_by_rounding_only(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 11, padding=5)
    x = torch.randn(2, 64, 46, 46).to(memory_format=memory_format)
    with torch.inference_mode():
        exact = nn.Conv2d.forward(conv.double(), x.double())
        found = LargeConv(conv.float()).in_frequency(x)
    assert float((found - exact).abs().max() / exact.abs().max()) < 5e-6


@pytest.mark.parametrize("quicker", [True, False])
def test_the_quicker_way_is_taken_and_remembered(
    quicker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def seconds(way: object, x: torch.Tensor) -> float:
        timed.append("direct" if isinstance(way, nn.Conv2d) else "frequency")
        return 1.0 if (timed[-1] == "frequency") == quicker else 2.0

    monkeypatch.setattr(frequency, "_seconds", seconds)
    monkeypatch.setattr(frequency, "_quicker", {})
    taken: list[int] = []
    layers = [LargeConv(nn.Conv2d(2, 2, 9, padding=4)) for _ in range(2)]
    for layer in layers:
        monkeypatch.setattr(
            layer, "in_frequency", lambda x, layer=layer: taken.append(1) or layer.conv(x)
        )
        layer(torch.zeros(1, 2, 20, 20))
        layer(torch.zeros(1, 2, 20, 20))
    assert timed == ["direct", "frequency"]
    assert len(taken) == (4 if quicker else 0)
    layers[0](torch.zeros(2, 2, 20, 20))
    assert len(timed) == 4


def test_only_large_plain_convolutions_are_replaced() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 2, 9, padding=4),
        nn.Sequential(nn.Conv2d(2, 2, 11, padding=5), nn.ReLU()),
        nn.Conv2d(2, 2, 5, padding=2),
        nn.Conv2d(2, 2, 9, padding=4, stride=2),
        nn.Conv2d(2, 2, 9, padding=4, groups=2),
        nn.Conv2d(2, 2, 9, padding=0),
        nn.Conv2d(2, 2, (9, 7), padding=(4, 3)),
    )
    found = [isinstance(m, LargeConv) for m in quicken(model)]
    assert found == [True, False, False, False, False, False, False]
    assert isinstance(model[1][0], LargeConv)


class Doubled(nn.Conv2d):
    """A convolution with something else in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice that of its base."""
        return 2 * super().forward(x)


def test_a_kind_of_convolution_with_its_own_forward_stays() -> None:
    model = nn.Sequential(Doubled(3, 4, 9, padding=4), nn.ReLU())
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(quicken(model)(x), expected)


@pytest.mark.parametrize(
    ("batch", "size", "kernel", "side"), [(1, 46, 11, 36), (4, 46, 11, 56), (4, 92, 9, 54)]
)
def test_tiles_as_measured(batch: int, size: int, kernel: int, side: int) -> None:
    """The quickest of those that were measured."""
    assert tile_side(batch, size, size, kernel) == side


@pytest.mark.parametrize("name", ["cpm", "cpm-vgg"])
def test_keypoints_do_not_depend_on_the_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within design's tolerance of 0.1 pixel, on a net whose maps have peaks."""
    torch.manual_seed(0)
    config = replace(preset(name), input_size=96, stages=2)
    model = Cpm(config).eval()
    info = WeightsInfo(name, config, load_skeleton("lsp14"))
    weights = Weights(info, dict(model.state_dict()), "")
    crops = np.random.default_rng(0).integers(0, 256, (2, 1, 96, 96, 3), np.uint8)
    found = []
    # Which would compute `cpm-vgg`.
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    for first in (1.0, 3.0):
        monkeypatch.setattr(frequency, "_quicker", {})
        monkeypatch.setattr(
            frequency, "_seconds", lambda way, x, t=first: t if isinstance(way, nn.Conv2d) else 2.0
        )
        found.append(Estimator(weights, "cpu", "fp32").estimate_crops(crops))
        assert set(frequency._quicker.values()) == {first > 2}
    assert np.abs(found[0][..., :2] - found[1][..., :2]).max() < 0.1
    assert np.abs(found[0][..., 2] - found[1][..., 2]).max() < 1e-4
