"""Depthwise convolutions whose weight gradient is as fast as their forward pass on CPUs.

PyTorch hands the weight gradient of a depthwise convolution to oneDNN, which for kernels of 5x5 and
more takes many times as long as the forward pass, and longest in bf16.
The gradient is itself a depthwise convolution: of each sample's input with that sample's output
gradient as kernel. Written so, it is as fast as any other (`benchmarks/depthwise.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

_SMALLEST_KERNEL = 5
"""Below, the gradients of oneDNN are as fast."""


class DepthwiseConv2d(nn.Conv2d):
    """A "same" depthwise convolution without bias: (B, C, H, W) -> (B, C, H / stride, W / stride).

    `kernel` is odd. Parameters and results are those of `nn.Conv2d` with `groups=channels`.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        learns = self.training and torch.is_grad_enabled() and self.weight.requires_grad
        if learns and x.device.type == "cpu" and self.kernel_size[0] >= _SMALLEST_KERNEL:
            y: Tensor = _Depthwise.apply(x, self.weight, self.stride[0])  # type: ignore[no-untyped-call]
            return y
        return super().forward(x)


class _Depthwise(torch.autograd.Function):
    """x (B, C, H, W), weight (C, 1, k, k), stride -> y; all in fp32."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        by_input, by_weight, _ = ctx.needs_input_grad
        return (
            _input_gradient(gradients[0], x, weight, ctx.stride) if by_input else None,
            _weight_gradient(gradients[0], x, weight, ctx.stride) if by_weight else None,
            None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(C, 1, k, k): each plane of x convolved with its plane of the gradient, over the batch.

    A stride of the forward pass is a dilation here. An input whose side is no multiple of the
    stride gives rows beyond the kernel's, which are cut off.
    """
    batch, channels, height, width = x.shape
    kernel = weight.shape[-1]
    planes = batch * channels
    products = F.conv2d(
        x.reshape(1, planes, height, width),
        gradient.reshape(planes, 1, *gradient.shape[2:]),
        padding=kernel // 2,
        dilation=stride,
        groups=planes,
    )
    products = products[..., :kernel, :kernel]
    return products.reshape(batch, channels, kernel, kernel).sum(dim=0)[:, None]


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The shape of x: without a stride, the gradient convolved with the mirrored kernel."""
    padding = weight.shape[-1] // 2
    if stride == 1:
        return F.conv2d(gradient, weight.flip(2, 3), padding=padding, groups=len(weight))
    strided: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        x.shape, weight, gradient, stride=stride, padding=padding, groups=len(weight)
    )
    return strided
