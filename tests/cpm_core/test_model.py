"""The networks against independent constructions from the layer tables of the release."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cpm_core.config import preset
from cpm_core.lite import fold_batch_norm
from cpm_core.losses import LOSSES
from cpm_core.model import Cpm, centre_map
from cpm_core.targets import belief_maps, map_weights


def port_convs(model):
    """The convolutions of an `original` network under the PyTorch port's names."""
    names, stages = {}, len(model.stages)

    def convs(module):
        return [m for m in module.modules() if isinstance(m, nn.Conv2d)]

    first, head = convs(model.first), convs(model.stages[0])
    names |= {f"conv{i + 1}_stage1": conv for i, conv in enumerate(first + head)}
    names |= {f"conv{i + 1}_stage2": conv for i, conv in enumerate(convs(model.shared))}
    for stage in range(2, stages + 1):
        feature, *layers = convs(model.stages[stage - 1])
        names["conv4_stage2" if stage == 2 else f"conv1_stage{stage}"] = feature
        names |= {f"Mconv{i + 1}_stage{stage}": conv for i, conv in enumerate(layers)}
    return names


def original(convs, image, centre, stages, ceil):
    """Stages of the release's `pose_deploy_centerMap`, layer by layer."""

    def conv(name, x, padding, relu=True):
        y = F.conv2d(x, convs[name].weight, convs[name].bias, padding=padding)
        return F.relu(y) if relu else y

    def pool(x):
        return F.max_pool2d(x, 3, 2, padding=0 if ceil else 1, ceil_mode=ceil)

    def trunk(stage):
        x = image
        for i in (1, 2, 3):
            x = pool(conv(f"conv{i}_stage{stage}", x, 4))
        return x

    x = conv("conv4_stage1", trunk(1), 2)
    x = conv("conv5_stage1", x, 4)
    x = conv("conv6_stage1", x, 0)
    maps = [conv("conv7_stage1", x, 0, relu=False)]
    pool3 = trunk(2)
    small = F.avg_pool2d(centre, 9, 8, padding=0 if ceil else 1, ceil_mode=ceil)
    for stage in range(2, stages + 1):
        feature = conv("conv4_stage2" if stage == 2 else f"conv1_stage{stage}", pool3, 2)
        x = torch.cat([feature, maps[-1], small.expand(len(image), -1, -1, -1)], dim=1)
        for i in (1, 2, 3):
            x = conv(f"Mconv{i}_stage{stage}", x, 5)
        x = conv(f"Mconv4_stage{stage}", x, 0)
        maps.append(conv(f"Mconv5_stage{stage}", x, 0, relu=False))
    return maps


def gaussian(size, sigma):
    """(1, 1, size, size) centre map before pooling, computed pixel by pixel in both directions."""
    y, x = torch.meshgrid(*2 * [torch.arange(size, dtype=torch.float64)], indexing="ij")
    middle = size / 2
    return torch.exp(-((x - middle) ** 2 + (y - middle) ** 2) / (2 * sigma**2)).float()[None, None]


@pytest.fixture(scope="module")
def crops():
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).byte()


def bgr(crops):
    return (crops.flip(1).float() - 128) / 256


@pytest.mark.parametrize("pooling", ["padded", "ceil"])
def test_cpm_equals_the_release(lively, crops, pooling):
    model = lively(preset("cpm", stages=3, input_size=64, centre_sigma=10.0, pooling=pooling))
    centre = gaussian(64, 10.0)
    with torch.no_grad():
        expected = original(port_convs(model), bgr(crops), centre, 3, pooling == "ceil")
        for ours, theirs in zip(model(crops), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_vgg_equals_the_release(lively, crops):
    model = lively(preset("cpm-vgg", stages=3, input_size=64, centre_sigma=10.0))
    shared, head, *later = (
        [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        for part in (model.shared, *model.stages)
    )
    with torch.no_grad():
        x = bgr(crops)
        for i, conv in enumerate(shared):
            # conv1_1, conv1_2 | conv2_1, conv2_2 | conv3_1 .. conv3_4 | conv4_1 .. conv4_7_CPM
            if i in (2, 4, 8):
                x = F.max_pool2d(x, 2, 2)
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
        assert x.shape == (2, 128, 8, 8)
        hidden = F.relu(F.conv2d(x, head[0].weight, head[0].bias))
        expected = [F.conv2d(hidden, head[1].weight, head[1].bias)]
        small = F.avg_pool2d(gaussian(64, 10.0), 9, 8, padding=1).expand(2, -1, -1, -1)
        for convs in later:
            y = torch.cat([expected[-1], x, small], dim=1)
            for conv, padding in zip(convs[:-1], (3, 3, 3, 3, 3, 0), strict=True):
                y = F.relu(F.conv2d(y, conv.weight, conv.bias, padding=padding))
            expected.append(F.conv2d(y, convs[-1].weight, convs[-1].bias))
        assert len(shared) == 15
        for ours, theirs in zip(model(crops), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_vgg_channels():
    model = Cpm(preset("cpm-vgg", stages=1, input_size=64))
    modules = [m for m in model.shared if not isinstance(m, nn.ReLU)]
    layers = [m.out_channels if isinstance(m, nn.Conv2d) else "pool" for m in modules]
    vgg19 = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512]
    assert layers == [*vgg19, 256, 256, 256, 256, 128]


@pytest.mark.parametrize(
    ("sigma", "highest", "cells"), [(21.0, 0.965, 100), (3.0, 0.33, 4)], ids=["release", "port"]
)
def test_centre_map(sigma, highest, cells):
    centre = centre_map(preset("cpm", centre_sigma=sigma), 368)
    assert centre.shape == (1, 1, 46, 46)
    assert float(centre.max()) == pytest.approx(highest, abs=0.002)
    assert int((centre > 0.1).sum()) == cells


def test_centre_map_of_caffe_is_symmetric():
    centre = centre_map(preset("cpm", pooling="ceil"), 368)
    assert centre.shape == (1, 1, 46, 46)
    # But for the outermost cells, whose windows end at the crop's border.
    torch.testing.assert_close(centre[..., 1:-1, 1:-1], centre.flip(-1, -2)[..., 1:-1, 1:-1])


def test_centre_map_enters_from_stage_2_on(lively, crops):
    model = lively(preset("cpm", stages=4, input_size=64))
    with torch.no_grad():
        before = model(crops)
        model.centre += 1
        after = model(crops)
    assert torch.equal(before[0], after[0])
    assert not any(torch.allclose(a, b) for a, b in zip(before[1:], after[1:], strict=True))


def test_centre_map_follows_the_input_size(lively):
    model = lively(preset("cpm-vgg", stages=2))
    for size in (64, 368):
        centre = model.centre_for(torch.zeros(2, 3, size, size))
        assert centre.shape == (2, 1, size // 8, size // 8)
        expected = centre_map(
            preset("cpm-vgg", input_size=size, centre_sigma=21 * size / 368), size
        )
        torch.testing.assert_close(centre[1:], expected)


def test_lite_has_no_centre_map():
    model = Cpm(preset("cpm-lite", joints=3))
    assert model.centre_for(torch.zeros(1, 3, 64, 64)) is None


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_colours_are_normalised_inside(order):
    config = preset("cpm-lite", joints=1, stages=1, color_order=order, mean=(1.0, 2.0, 3.0))
    x = Cpm(config).normalise(torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1))
    values = [10, 20, 30] if order == "rgb" else [30, 20, 10]
    expected = [
        (v - m) / s for v, m, s in zip(values, (1, 2, 3), (58.395, 57.12, 57.375), strict=True)
    ]
    torch.testing.assert_close(x.flatten(), torch.tensor(expected))


@pytest.mark.parametrize(
    ("name", "size", "own_trunk", "loss"),
    [
        ("cpm", 16, True, "squared"),
        ("cpm-vgg", 16, False, "squared"),
        ("cpm-lite", 64, False, "squared"),
        ("cpm-lite", 64, False, "peaked"),
    ],
)
def test_every_stage_teaches_the_trunk(lively, name, size, own_trunk, loss):
    """Each stage's loss alone; the paper's answer to vanishing gradients (section 3.3)."""
    model = lively(preset(name, joints=2, stages=3, input_size=size)).double()
    keypoints = torch.tensor([[[3.0, 4.0], [9.0, 12.0]]], dtype=torch.float64)
    labelled = torch.ones(1, 2, dtype=torch.bool)
    target = belief_maps(keypoints, labelled, size // 8, 8.0)
    maps = model(torch.randint(0, 256, (1, 3, size, size)))
    shared = next(model.shared.parameters())
    layers = [next(model.first.parameters()), shared] if own_trunk else [shared]
    for stage, belief in enumerate(maps, start=1):
        value = LOSSES[loss](belief, target, map_weights(labelled), 2 * math.pi).sum()
        gradients = torch.autograd.grad(value, layers, retain_graph=True, allow_unused=True)
        reached = [g is not None and bool(g.abs().max() > 0) for g in gradients]
        # Stage 1 of `cpm` has a trunk of its own and knows nothing of the shared one.
        assert reached == ([True, False] if own_trunk and stage == 1 else [True] * len(layers))


def test_no_stage_but_the_first_without_a_shared_trunk():
    model = Cpm(preset("cpm", stages=1, input_size=16))
    assert not list(model.shared.parameters())
    assert [tuple(m.shape) for m in model(torch.zeros(1, 3, 16, 16))] == [(1, 15, 2, 2)]


def test_folded_network_gives_the_same_maps(lively, crops):
    model = lively(preset("cpm-lite", joints=3))
    with torch.no_grad():
        expected = model(crops)
        folded = fold_batch_norm(model)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        for ours, theirs in zip(folded(crops), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
