"""Convolutional Pose Machines (Wei et al., CVPR 2016): one family of networks, three trunks.

Stage 1 sees image features only; stage t >= 2 sees image features, the belief maps of stage t - 1
and, where the net has one, the centre map that says which person is meant. Every stage gives J + 1
belief maps, background last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpm_core.config import STRIDE, CpmConfig
from cpm_core.lite import LiteStage, LiteTrunk

_VGG_BLOCKS = (
    (64, 64),
    (128, 128),
    (256, 256, 256, 256),
    (512, 512, 256, 256, 256, 256, 128),
)
"""Channels of the 3x3 convolutions: VGG-19 up to conv4_2, then CPM's own; pools in between."""


class _Parts(NamedTuple):
    """What a trunk contributes; `first` is stage 1's own trunk where it has one, else None.

    The features that the last stage sees have `feature_channels`.
    """

    first: nn.Module | None
    shared: nn.Module
    stages: list[nn.Module]
    feature_channels: int


class Cpm(nn.Module):
    """A network built from a `CpmConfig`.

    `forward(images)` takes crops (B, 3, S, S), RGB, 0 to 255, uint8 or float, S a multiple of 8 (32
    for `lite`), and returns a list of T belief maps (B, J + 1, S / 8, S / 8). It normalises and
    reorders the colours itself.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor

    def __init__(self, config: CpmConfig) -> None:
        super().__init__()
        self.config = config
        parts = {"original": _original, "vgg": _vgg, "lite": _lite}[config.trunk](config)
        self.first = parts.first
        self.shared = parts.shared
        self.stages = nn.ModuleList(parts.stages)
        self.feature_channels = parts.feature_channels
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        if config.centre_sigma:
            self.register_buffer("centre", centre_map(config, config.input_size), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features_and_maps(images)[1]

    def features_and_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features (B, `feature_channels`, S / 8, S / 8) that the last stage sees, and what
        `forward` returns."""
        x = self.normalise(images)
        features = self.shared(x) if self.first is None else self.first(x)
        maps = [self.stages[0](features)]
        if self.first is not None and len(self.stages) > 1:
            features = self.shared(x)
        centre = self.centre_for(x)
        for stage in self.stages[1:]:
            maps.append(stage(features, maps[-1], centre))
        return features, maps

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..255 -> the colour order, mean and scale that the trunk was made for."""
        x = images.flip(1) if self.config.color_order == "bgr" else images
        # A difference of uint8 and float is float: one pass over the pixels less than a conversion.
        return (x - self.mean) / self.std

    def centre_for(self, x: Tensor) -> Tensor | None:
        """(B, 1, H, W) centre map for a batch, or None; made anew, on the device, for an unusual
        input size."""
        if not self.config.centre_sigma:
            return None
        size, centre = x.shape[-1], self.centre
        if size != self.config.input_size:
            centre = centre_map(self.config.at_size(size), size, x.device)
        return centre.to(x).expand(x.shape[0], -1, -1, -1)


def centre_map(config: CpmConfig, size: int, device: torch.device | None = None) -> Tensor:
    """(1, 1, size / 8, size / 8) Gaussian around pixel size / 2, averaged over cells, as released.

    Half a pixel off the crop's middle; trained weights expect it there.
    """
    position = torch.arange(size, dtype=torch.float32, device=device) - size / 2
    line = torch.exp(-(position**2) / (2 * config.centre_sigma**2))
    full = (line[:, None] * line[None, :])[None, None]
    ceil = config.pooling == "ceil"
    return nn.functional.avg_pool2d(full, 9, STRIDE, padding=0 if ceil else 1, ceil_mode=ceil)


class HeadStage(nn.Module):
    """Stage 1: features -> belief maps."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        maps: Tensor = self.layers(features)
        return maps


class RefineStage(nn.Module):
    """Stage t >= 2: image features, the previous stage's maps and the centre map -> better maps.

    `order` is the order of concatenation, which the weights of earlier ports depend on.
    """

    def __init__(self, feature: nn.Module, order: str, *layers: nn.Module) -> None:
        super().__init__()
        self.feature = feature
        self.order = order
        self.layers = nn.Sequential(*layers)

    def forward(self, shared: Tensor, previous: Tensor, centre: Tensor | None) -> Tensor:
        feature = self.feature(shared)
        inputs = [feature, previous] if self.order == "features-maps" else [previous, feature]
        if centre is not None:
            inputs.append(centre.to(feature.dtype))
        maps: Tensor = self.layers(torch.cat(inputs, dim=1))
        return maps


def _conv(inputs: int, outputs: int, kernel: int, relu: bool = True) -> list[nn.Module]:
    """A "same" convolution, initialised as in the release: Gaussian of deviation 0.01, bias 0."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return [conv, nn.ReLU(inplace=True)] if relu else [conv]


def _original(config: CpmConfig) -> _Parts:
    """The paper's net: 9x9 trunks for stage 1 and for all later stages, 11x11 refinement."""
    maps, centre = config.joints + 1, int(config.centre_sigma > 0)

    def trunk() -> list[nn.Module]:
        ceil = config.pooling == "ceil"
        layers: list[nn.Module] = []
        for channels in (3, 128, 128):
            layers += [
                *_conv(channels, 128, 9),
                nn.MaxPool2d(3, 2, padding=0 if ceil else 1, ceil_mode=ceil),
            ]
        return layers

    head = HeadStage(
        *_conv(32, 512, 9),
        nn.Dropout(config.dropout),
        *_conv(512, 512, 1),
        nn.Dropout(config.dropout),
        *_conv(512, maps, 1, relu=False),
    )
    refine = [
        RefineStage(
            nn.Sequential(*_conv(128, 32, 5)),
            "features-maps",
            *_conv(32 + maps + centre, 128, 11),
            *_conv(128, 128, 11),
            *_conv(128, 128, 11),
            *_conv(128, 128, 1),
            *_conv(128, maps, 1, relu=False),
        )
        for _ in range(config.stages - 1)
    ]
    shared = nn.Sequential(*trunk()) if refine else nn.Identity()
    first = nn.Sequential(*trunk(), *_conv(128, 32, 5))
    return _Parts(first, shared, [head, *refine], 128 if refine else 32)


def _vgg(config: CpmConfig) -> _Parts:
    """The authors' later net: one VGG-19 trunk for all stages, 7x7 refinement."""
    maps, centre = config.joints + 1, int(config.centre_sigma > 0)
    layers: list[nn.Module] = []
    channels = 3
    for i, block in enumerate(_VGG_BLOCKS):
        if i:
            layers.append(nn.MaxPool2d(2, 2))
        for outputs in block:
            layers += _conv(channels, outputs, 3)
            channels = outputs
    head = HeadStage(*_conv(128, 512, 1), *_conv(512, maps, 1, relu=False))
    refine = [
        RefineStage(
            nn.Identity(),
            "maps-features",
            *_conv(128 + maps + centre, 128, 7),
            *(layer for _ in range(4) for layer in _conv(128, 128, 7)),
            *_conv(128, 128, 1),
            *_conv(128, maps, 1, relu=False),
        )
        for _ in range(config.stages - 1)
    ]
    return _Parts(None, nn.Sequential(*layers), [head, *refine], channels)


def _lite(config: CpmConfig) -> _Parts:
    """The small net: an EfficientNet-Lite0 trunk, depthwise 9x9 refinement."""
    maps, width = config.joints + 1, LiteTrunk.WIDTH
    head = LiteStage(width, width, maps, blocks=1)
    inputs = width + maps + int(config.centre_sigma > 0)
    refine = [
        RefineStage(nn.Identity(), "features-maps", LiteStage(inputs, width, maps, blocks=3))
        for _ in range(config.stages - 1)
    ]
    return _Parts(None, LiteTrunk(), [head, *refine], width)
