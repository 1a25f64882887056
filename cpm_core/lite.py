"""The parts of `cpm-lite`: EfficientNet-Lite0 fused to stride 8, and cheap large-kernel stages.

EfficientNet-Lite0 (Tan and Le 2019; Lite: TensorFlow TPU models, 2020) has no squeeze-and-excite
and ReLU6 throughout, so it is fast on CPUs and folds to plain convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpm_core.depthwise import DepthwiseConv2d

_BATCH_NORM_EPS = 1e-3

# kernel, stride, expansion, output channels, repeats
_LITE0 = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
)
# The blocks after which the grid has stride 8, 16 and 32, and their channels.
_TAPS = {4: 40, 10: 112, 14: 192}


class LiteTrunk(nn.Module):
    """Normalised image (B, 3, S, S) -> features (B, 128, S / 8, S / 8), S a multiple of 32."""

    WIDTH = 128

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3, stride=2, activation=nn.ReLU6(inplace=True))
        blocks: list[nn.Module] = []
        channels = 32
        for kernel, stride, expansion, outputs, repeats in _LITE0:
            for i in range(repeats):
                blocks.append(
                    InvertedBottleneck(
                        channels, outputs, kernel, stride if i == 0 else 1, expansion
                    )
                )
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.lateral = nn.ModuleList(conv_bn(c, self.WIDTH, 1) for c in _TAPS.values())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        taps: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in _TAPS:
                taps.append(self.lateral[len(taps)](x))
        return fused_taps(*taps)


class InvertedBottleneck(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise, 1x1 projection, residual if shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = (
            [conv_bn(inputs, hidden, 1, activation=nn.ReLU6(inplace=True))] if expansion > 1 else []
        )
        self.layers = nn.Sequential(
            *expand,
            conv_bn(
                hidden,
                hidden,
                kernel,
                stride=stride,
                groups=hidden,
                activation=nn.ReLU6(inplace=True),
            ),
            conv_bn(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class LiteStage(nn.Module):
    """1x1 to `width` channels, `blocks` depthwise 9x9 blocks, 1x1 to the maps.

    Each 9x9 block widens the receptive field by 64 px of the image, as a 9x9 layer of the paper.
    """

    def __init__(self, inputs: int, width: int, maps: int, blocks: int) -> None:
        super().__init__()
        self.mix = conv_bn(inputs, width, 1, activation=nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*(LargeKernelBlock(width, 9) for _ in range(blocks)))
        self.out = nn.Conv2d(width, maps, 1)
        # Small first maps: a peak-weighted loss otherwise starts by unlearning noise.
        nn.init.normal_(self.out.weight, std=1e-3)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.out(self.blocks(self.mix(x)))
        return maps


class LargeKernelBlock(nn.Module):
    """Depthwise k x k, then 1x1, with a residual."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = conv_bn(
            width, width, kernel, groups=width, activation=nn.ReLU(inplace=True)
        )
        self.pointwise = conv_bn(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.pointwise(self.depthwise(x)))


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation: `fold_batch_norm` makes it one layer."""
    conv = (
        DepthwiseConv2d(inputs, kernel, stride)
        if groups == inputs == outputs
        else nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
    )
    layers: list[nn.Module] = [
        conv,
        nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS, momentum=0.03),
    ]
    return nn.Sequential(*layers, activation) if activation else nn.Sequential(*layers)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold each convolution + batch norm of an eval-mode model into one convolution, in place."""
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[i] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                module[i + 1] = nn.Identity()
    return model


def fused_taps(fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    """Maps (B, C, H, W), (B, C, H / 2, W / 2), (B, C, H / 4, W / 4) -> their sum (B, C, H, W)."""
    return F.relu(fine + _double(middle + _double(coarse)))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
