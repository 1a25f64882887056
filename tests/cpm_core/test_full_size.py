"""The two large nets at 368 px against constructions from the release's prototxts alone.

The constructions below are tables of layers and calls of `torch.nn.functional`; they make their own
weights, and the networks under test are filled from them, in the order of the tables. So sizes,
order, padding, pooling and what is concatenated are all checked, and parameters and multiply-adds
are those of the tables.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.recipe import RECIPES
from cpm_core.training import Batch, Fit

STAGES, SIZE, CELLS, MAPS = 6, 368, 46, 15


class Layers:
    """Convolutions by name, made when they are first called; counts what they cost."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)
        self.tensors, self.multiply_adds = {}, 0

    def __call__(self, name, x, outputs, kernel, relu=True):
        inputs = x.shape[1]
        fan_in = inputs * kernel**2
        if name not in self.tensors:
            weight = torch.randn(outputs, inputs, kernel, kernel, generator=self.generator)
            bias = 0.1 * torch.randn(outputs, generator=self.generator)
            self.tensors[name] = (weight * math.sqrt(2 / fan_in), bias)
        y = F.conv2d(x, *self.tensors[name], padding=(kernel - 1) // 2)
        self.multiply_adds += fan_in * y.numel()
        return F.relu(y) if relu else y


def net_input(crops):
    """RGB (1, 3, S, S) -> what the release feeds its nets: blue, green, red, x / 256 - 0.5."""
    red, green, blue = crops.double().split(1, dim=1)
    return (torch.cat([blue, green, red], dim=1) / 256 - 0.5).float()


def centre_input(padded):
    """Gaussian of 21 px around (184, 184), averaged over 9x9 windows every 8 px."""
    pixels = torch.arange(SIZE, dtype=torch.float64)
    square = (pixels[:, None] - 184) ** 2 + (pixels[None] - 184) ** 2
    full = torch.exp(-square / (2 * 21.0**2)).float()[None, None]
    if padded:
        return F.avg_pool2d(full, 9, 8, padding=1)
    return F.avg_pool2d(full, 9, 8, ceil_mode=True)


def cpm(conv, crops, padded):
    """`_trained_MPI/pose_deploy_centerMap`; pools as in the PyTorch port (padded) or in Caffe."""

    def pool(x):
        if padded:
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)

    image, centre = net_input(crops), centre_input(padded)
    x = pool(conv("conv1_stage1", image, 128, 9))
    x = pool(conv("conv2_stage1", x, 128, 9))
    x = pool(conv("conv3_stage1", x, 128, 9))
    x = conv("conv4_stage1", x, 32, 5)
    x = conv("conv5_stage1", x, 512, 9)
    x = conv("conv6_stage1", x, 512, 1)
    maps = [conv("conv7_stage1", x, MAPS, 1, relu=False)]

    x = pool(conv("conv1_stage2", image, 128, 9))
    x = pool(conv("conv2_stage2", x, 128, 9))
    pool3 = pool(conv("conv3_stage2", x, 128, 9))
    for stage in range(2, STAGES + 1):
        feature = conv("conv4_stage2" if stage == 2 else f"conv1_stage{stage}", pool3, 32, 5)
        x = torch.cat([feature, maps[-1], centre], dim=1)
        assert x.shape[1] == 48
        x = conv(f"Mconv1_stage{stage}", x, 128, 11)
        x = conv(f"Mconv2_stage{stage}", x, 128, 11)
        x = conv(f"Mconv3_stage{stage}", x, 128, 11)
        x = conv(f"Mconv4_stage{stage}", x, 128, 1)
        maps.append(conv(f"Mconv5_stage{stage}", x, MAPS, 1, relu=False))
    return maps


VGG = [
    *("conv1_1 64", "conv1_2 64", "pool"),
    *("conv2_1 128", "conv2_2 128", "pool"),
    *("conv3_1 256", "conv3_2 256", "conv3_3 256", "conv3_4 256", "pool"),
    *("conv4_1 512", "conv4_2 512", "conv4_3_CPM 256", "conv4_4_CPM 256"),
    *("conv4_5_CPM 256", "conv4_6_CPM 256", "conv4_7_CPM 128"),
]


def cpm_vgg(conv, crops, padded):
    """`_trained_MPI/pose_deploy_resize`."""
    x, centre = net_input(crops), centre_input(padded)
    for layer in VGG:
        name, _, outputs = layer.partition(" ")
        x = conv(name, x, int(outputs), 3) if outputs else F.max_pool2d(x, 2, 2)
    features = x
    x = conv("conv5_1_CPM", features, 512, 1)
    maps = [conv("conv5_2_CPM", x, MAPS, 1, relu=False)]
    for stage in range(2, STAGES + 1):
        x = torch.cat([maps[-1], features, centre], dim=1)
        assert x.shape[1] == 144
        for i in range(1, 6):
            x = conv(f"Mconv{i}_stage{stage}", x, 128, 7)
        x = conv(f"Mconv6_stage{stage}", x, 128, 1)
        maps.append(conv(f"Mconv7_stage{stage}", x, MAPS, 1, relu=False))
    return maps


PARAMETERS = {"cpm": 31_219_866, "cpm-vgg": 29_852_058}
GIGA_MULTIPLY_ADDS = {"cpm": 175.4, "cpm-vgg": 88.4}
BUILD = {"cpm": cpm, "cpm-vgg": cpm_vgg}


def some_crop():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 3, SIZE, SIZE), generator=generator).byte()


def in_order_of_use(model):
    """Weights and biases, layer by layer, as an image passes them: the order of the tables."""
    head, *refine = model.stages
    parts = [model.first, head, model.shared] if model.first is not None else [model.shared, head]
    return [p for part in (*parts, *refine) for p in part.parameters()]


def fill(model, conv):
    """Give a network the weights of a construction."""
    ours, theirs = in_order_of_use(model), [t for pair in conv.tensors.values() for t in pair]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.copy_(other)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("cpm", "padded"),
        pytest.param("cpm", "ceil", marks=pytest.mark.soak),
        ("cpm-vgg", "padded"),
    ],
)
def test_every_stage_equals_the_release_at_full_size(name, pooling):
    conv = Layers()
    with torch.inference_mode():
        expected = BUILD[name](conv, some_crop(), pooling == "padded")
        model = Cpm(preset(name, pooling=pooling)).eval()
        fill(model, conv)
        maps = model(some_crop())
    assert len(maps) == STAGES
    for mine, other in zip(maps, expected, strict=True):
        assert mine.shape == (1, MAPS, CELLS, CELLS)
        scale = float(other.std())
        assert 0.01 < scale < 100, "neither dead nor blown up"
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * scale)
    assert sum(t.numel() for pair in conv.tensors.values() for t in pair) == PARAMETERS[name]
    assert round(conv.multiply_adds / 1e9, 1) == GIGA_MULTIPLY_ADDS[name]


def labels(keypoints):
    """(1, 15, 46, 46): Gaussians of 7 px at 8 g + 3.5, cut at 1 %; background 1 - max."""
    centres = torch.arange(CELLS) * 8 + 3.5
    squares = [(centres[None] - x) ** 2 + (centres[:, None] - y) ** 2 for x, y in keypoints]
    exponents = torch.stack(squares) / (2 * 7.0**2)
    joints = torch.where(exponents > 4.6052, 0, torch.exp(-exponents))
    return torch.cat([joints, 1 - joints.amax(dim=0, keepdim=True)])[None]


def rate(name, layer):
    """lr_mult of the prototxts."""
    if name == "cpm":
        return 5 if layer.endswith("stage1") else 1
    return 4 if layer.startswith("Mconv") else 1


@pytest.mark.soak
@pytest.mark.parametrize("name", ["cpm", "cpm-vgg"])
def test_a_training_step_equals_the_release_at_full_size(name):
    """Loss, gradients and rates: every weight after one step. Dropout is left out: it is chance."""
    keypoints = 60 + 240 * torch.rand(14, 2, generator=torch.Generator().manual_seed(2))
    conv = Layers()
    with torch.no_grad():
        BUILD[name](conv, some_crop(), True)
    model = Cpm(preset(name, dropout=0.0))
    fill(model, conv)

    for pair in conv.tensors.values():
        for tensor in pair:
            tensor.requires_grad_()
    target = labels(keypoints.tolist())
    expected = [((m - target) ** 2).sum() / 2 for m in BUILD[name](conv, some_crop(), True)]
    sum(expected).backward()

    batch = Batch(some_crop().permute(0, 2, 3, 1), keypoints[None], torch.ones(1, 14).bool())
    losses = Fit(model, RECIPES[name], total_steps=100).step(batch)
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-4, atol=0)
    ours = iter(in_order_of_use(model))
    for layer, (weight, bias) in conv.tensors.items():
        lr = 8e-5 * rate(name, layer)
        steps = (lr * (weight.grad + 5e-4 * weight), 2 * lr * bias.grad)
        for before, step in zip((weight, bias), steps, strict=True):
            step, largest = step.detach(), float(step.detach().abs().max())
            assert largest > 1e-4, "more than fp32 loses in the difference"
            moved = before.detach() - next(ours).detach()
            torch.testing.assert_close(moved, step, rtol=1e-3, atol=1e-3 * largest)
