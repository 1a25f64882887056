"""The trunk: backbone and neck of YOLOX-Nano (Ge et al. 2021), fused to stride 8.

It has seen 118,000 everyday pictures with 80 kinds of objects, which a person-net would otherwise
have to learn from the few at hand. Batch norm is folded, as in the published ONNX file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpm_core.lite import conv_bn, fused_taps

WIDTH = 128
"""Channels of the fused features."""


class CspTrunk(nn.Module):
    """Image (B, 3, S, S), RGB, 0 to 255 -> features (B, 128, S / 8, S / 8), S a multiple of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.base = CspBase()
        self.lateral = nn.ModuleList(conv_bn(c, WIDTH, 1) for c in (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        # A base that does not learn needs no graph.
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and self.base.stem.weight.requires_grad
        ):
            taps = self.base(x)
        return fused_taps(*(layer(tap) for layer, tap in zip(self.lateral, taps, strict=True)))


class SiluConv(nn.Conv2d):
    """Convolution and SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class CspBase(nn.Module):
    """What comes from YOLOX-Nano: image -> maps of 64, 128, 256 channels at strides 8, 16, 32.

    The order of the calls is the order of the convolutions in the ONNX file.
    """

    def __init__(self) -> None:
        super().__init__()
        # The Focus layer (2 x 2 pixels to channels, then 3 x 3) as one convolution.
        self.stem = SiluConv(3, 16, 6, 2, 2)
        self.dark2 = nn.Sequential(Separable(16, 32, 2), CspLayer(32, 32, 1))
        self.dark3 = nn.Sequential(Separable(32, 64, 2), CspLayer(64, 64, 3))
        self.dark4 = nn.Sequential(Separable(64, 128, 2), CspLayer(128, 128, 3))
        self.dark5 = nn.Sequential(
            Separable(128, 256, 2), PyramidPool(256), CspLayer(256, 256, 1, residual=False)
        )
        self.down5 = SiluConv(256, 128, 1)
        self.top4 = CspLayer(256, 128, 1, residual=False)
        self.down4 = SiluConv(128, 64, 1)
        self.top3 = CspLayer(128, 64, 1, residual=False)
        self.up3 = Separable(64, 64, 2)
        self.out4 = CspLayer(128, 128, 1, residual=False)
        self.up4 = Separable(128, 128, 2)
        self.out5 = CspLayer(256, 256, 1, residual=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.dark3(self.dark2(self.stem(x)))
        c4 = self.dark4(c3)
        p5 = self.down5(self.dark5(c4))
        p4 = self.down4(self.top4(torch.cat([_repeat(p5), c4], dim=1)))
        n3 = self.top3(torch.cat([_repeat(p4), c3], dim=1))
        n4 = self.out4(torch.cat([self.up3(n3), p4], dim=1))
        n5 = self.out5(torch.cat([self.up4(n4), p5], dim=1))
        return n3, n4, n5


class Separable(nn.Module):
    """Depthwise 3x3 and 1x1, SiLU after each."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = SiluConv(inputs, inputs, 3, stride, 1, groups=inputs)
        self.pointwise = SiluConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class Bottleneck(nn.Module):
    """1x1 and a separable 3x3, with a residual or not."""

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.mix = SiluConv(width, width, 1)
        self.separable = Separable(width, width)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.separable(self.mix(x))
        return x + y if self.residual else y


class CspLayer(nn.Module):
    """Cross-stage partial layer: half of the channels goes through the bottlenecks."""

    def __init__(self, inputs: int, outputs: int, blocks: int, residual: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.through = SiluConv(inputs, half, 1)
        self.past = SiluConv(inputs, half, 1)
        self.blocks = nn.Sequential(*(Bottleneck(half, residual) for _ in range(blocks)))
        self.mix = SiluConv(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        through, past = self.through(x), self.past(x)
        y: Tensor = self.mix(torch.cat([self.blocks(through), past], dim=1))
        return y


class PyramidPool(nn.Module):
    """Maxima over 5, 9 and 13 cells beside the map itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = SiluConv(width, width // 2, 1)
        self.mix = SiluConv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        pools = [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
        y: Tensor = self.mix(torch.cat([x, *pools], dim=1))
        return y


def _repeat(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
