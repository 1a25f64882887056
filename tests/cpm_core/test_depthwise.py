"""Our depthwise convolution against PyTorch's own: values, gradients, when it is fast."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from cpm_core import depthwise
from cpm_core.depthwise import DepthwiseConv2d
from cpm_core.lite import InvertedBottleneck, conv_bn, fold_batch_norm


def plain(ours: DepthwiseConv2d) -> nn.Conv2d:
    channels, kernel, stride = ours.in_channels, ours.kernel_size[0], ours.stride[0]
    theirs = nn.Conv2d(
        channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs


def gradients(module: nn.Module, x: Tensor, towards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (y * towards).sum().backward()
    assert x.grad is not None
    assert isinstance(module.weight, Tensor)
    assert module.weight.grad is not None
    return y.detach(), x.grad, module.weight.grad


@pytest.mark.parametrize("kernel", [3, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(3, 8, 16, 16), (2, 4, 7, 10), (1, 3, 4, 4), (2, 5, 9, 5)])
def test_gradients_are_pytorchs(kernel: int, stride: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    ours = DepthwiseConv2d(shape[1], kernel, stride)
    x = torch.randn(shape)
    towards = torch.randn(ours(x).shape)
    for got, expected in zip(
        gradients(ours, x, towards), gradients(plain(ours), x, towards), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_large_kernels_take_the_fast_path_only_while_they_learn() -> None:
    x = torch.randn(2, 4, 8, 8)
    with mock.patch.object(depthwise._Depthwise, "apply", wraps=depthwise._Depthwise.apply) as fast:
        module = DepthwiseConv2d(4, 9)
        module(x)
        assert fast.call_count == 1
        with torch.no_grad():
            module(x)
        module.eval()(x)
        frozen = DepthwiseConv2d(4, 9).requires_grad_(False)
        frozen(x)
        DepthwiseConv2d(4, 3)(x)
        assert fast.call_count == 1


def test_under_bf16_autocast_it_computes_in_fp32() -> None:
    torch.manual_seed(1)
    ours = DepthwiseConv2d(4, 9)
    x = torch.randn(2, 4, 8, 8)
    towards = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(ours, x, towards)
    for value, expected in zip(got, gradients(plain(ours), x, towards), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_no_gradient_for_an_input_that_needs_none() -> None:
    module = DepthwiseConv2d(4, 5)
    module(torch.randn(1, 4, 8, 8)).sum().backward()
    assert module.weight.grad is not None


def test_only_depthwise_layers_are_replaced_and_they_fold() -> None:
    torch.manual_seed(1)
    assert type(conv_bn(4, 8, 3)[0]) is nn.Conv2d
    assert type(conv_bn(4, 4, 1, groups=1)[0]) is nn.Conv2d
    block = InvertedBottleneck(8, 8, 5, 1, 2)
    kinds = [type(layer[0]) for layer in block.layers]  # type: ignore[index]
    assert kinds == [nn.Conv2d, DepthwiseConv2d, nn.Conv2d]
    x = torch.randn(4, 8, 6, 6)
    block(x)
    block.eval()
    with torch.no_grad():
        folded = fold_batch_norm(copy.deepcopy(block))(x)
        torch.testing.assert_close(folded, block(x), rtol=1e-4, atol=1e-5)
