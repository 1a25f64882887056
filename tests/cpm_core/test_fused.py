"""Fused layers say what the plain ones say, and every layer of `cpm-lite` is fused."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn

from cpm_core import estimator, weights
from cpm_core.config import preset
from cpm_core.frequency import quicken
from cpm_core.fused import FusedConv, can_fuse, fuse
from cpm_core.lite import InvertedBottleneck, LargeKernelBlock, conv_bn, fold_batch_norm
from cpm_core.model import Cpm

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this PyTorch lacks the operation")


def folded(module: nn.Module) -> nn.Module:
    """In eval mode with batch norm statistics that are not 0 and 1, folded, channels last."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(part.bias, -1, 1)
    return fold_batch_norm(module.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@torch.inference_mode()
def same(module: nn.Module, x: torch.Tensor) -> None:
    expected = module(x)
    got = fuse(nn.Sequential(copy.deepcopy(module)))(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6()])
def test_a_layer_with_its_activation(activation: nn.Module | None) -> None:
    layer = conv_bn(6, 10, 3, stride=2, activation=activation)
    same(folded(layer), 4 * torch.randn(2, 6, 9, 9))


@pytest.mark.parametrize(
    "block",
    [
        lambda: InvertedBottleneck(8, 8, 5, 1, 2),
        lambda: InvertedBottleneck(8, 12, 3, 2, 6),
        lambda: InvertedBottleneck(8, 8, 3, 1, 1),
        lambda: LargeKernelBlock(8, 9),
    ],
    ids=["residual", "no residual", "no expansion", "large kernel"],
)
def test_a_block_with_its_residual(block: object) -> None:
    same(folded(block()), 2 * torch.randn(2, 8, 8, 8))  # type: ignore[operator]


def test_the_net_and_what_is_left_of_it() -> None:
    torch.manual_seed(1)
    model = folded(Cpm(preset("cpm-lite", stages=2)))
    for stage in model.stages:  # type: ignore[union-attr]
        nn.init.normal_((stage.out if hasattr(stage, "out") else stage.layers[0].out).weight, std=1)
    fused = fuse(copy.deepcopy(model))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        for got, expected in zip(fused(images), model(images), strict=True):
            scale = expected.abs().max()
            assert scale > 0
            torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-5)
    left = [name for name, part in fused.named_modules() if type(part) is nn.Conv2d]
    assert not left
    assert sum(isinstance(part, FusedConv) for part in fused.modules()) > 50


class Doubled(nn.Conv2d):
    """A convolution with something else in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice that of its base."""
        return 2 * super().forward(x)


@pytest.mark.parametrize("kernel", [1, 9])
def test_a_kind_of_convolution_with_its_own_forward_stays(kernel: int) -> None:
    model = nn.Sequential(Doubled(3, 4, kernel, padding=kernel // 2), nn.ReLU())
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(quicken(fuse(model))(x), expected)


def test_a_layer_with_something_else_in_it_stays() -> None:
    odd = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid())
    fused = fuse(nn.Sequential(odd))
    assert fused[0] is odd  # type: ignore[index]
    assert type(odd[0]) is nn.Conv2d
    unfolded = nn.Sequential(conv_bn(3, 4, 3))
    fuse(unfolded)
    assert isinstance(unfolded[0][1], nn.BatchNorm2d)  # type: ignore[index]


def test_the_estimator_fuses_in_fp32_on_a_cpu_where_it_can() -> None:
    loaded = weights.load_weights("cpm-lite")

    def fused_layers(precision: str) -> int:
        model = estimator.Estimator(loaded, "cpu", precision).model  # type: ignore[arg-type]
        return sum(isinstance(part, FusedConv) for part in model.modules())

    assert fused_layers("fp32") > 50
    assert fused_layers("bf16") == 0
    with mock.patch.object(estimator, "can_fuse", return_value=False):
        assert fused_layers("fp32") == 0
