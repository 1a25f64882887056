import math

import pytest
import torch
from torch.nn import functional as F

from cpm_core.errors import WeightsError
from cpm_core.lite import LiteTrunk
from cpm_core.pretrained import load_efficientnet_lite0

# EfficientNet-Lite0's blocks: kernel, expansion, inputs, outputs; STRIDED ones halve the grid.
BLOCKS = [
    (3, 1, 32, 16),
    (3, 6, 16, 24),
    (3, 6, 24, 24),
    (5, 6, 24, 40),
    (5, 6, 40, 40),
    (3, 6, 40, 80),
    (3, 6, 80, 80),
    (3, 6, 80, 80),
    (5, 6, 80, 112),
    (5, 6, 112, 112),
    (5, 6, 112, 112),
    (5, 6, 112, 192),
    (5, 6, 192, 192),
    (5, 6, 192, 192),
    (5, 6, 192, 192),
    (3, 6, 192, 320),
]
STRIDED = (1, 3, 5, 11)


@pytest.fixture(scope="module")
def published():
    """Tensors under the names and of the shapes of the published checkpoint."""
    state = {}

    def conv(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape) / math.prod(shape[1:]) ** 0.5

    def norm(name, channels):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{kind}"] = 0.5 + torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for i, (kernel, expansion, inputs, outputs) in enumerate(BLOCKS):
        hidden = expansion * inputs
        if expansion > 1:
            conv(f"_blocks.{i}._expand_conv", hidden, inputs, 1, 1)
            norm(f"_blocks.{i}._bn0", hidden)
        conv(f"_blocks.{i}._depthwise_conv", hidden, 1, kernel, kernel)
        norm(f"_blocks.{i}._bn1", hidden)
        conv(f"_blocks.{i}._project_conv", outputs, hidden, 1, 1)
        norm(f"_blocks.{i}._bn2", outputs)
    conv("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    state |= {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}
    return state


def test_published_tensors_arrive(published, tmp_path):
    path = tmp_path / "lite0.pth"
    torch.save(published, path)
    trunk = LiteTrunk()
    lateral = {name: value.clone() for name, value in trunk.lateral.state_dict().items()}
    load_efficientnet_lite0(trunk, path)
    assert torch.equal(trunk.stem[0].weight, published["_conv_stem.weight"])
    assert torch.equal(trunk.stem[1].running_var, published["_bn0.running_var"])
    # The first block has no expansion.
    first = trunk.blocks[0].layers
    assert torch.equal(first[0][0].weight, published["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(first[1][1].bias, published["_blocks.0._bn2.bias"])
    for i in (1, 14):
        expand, depthwise, project = trunk.blocks[i].layers
        assert torch.equal(expand[0].weight, published[f"_blocks.{i}._expand_conv.weight"])
        assert torch.equal(expand[1].running_mean, published[f"_blocks.{i}._bn0.running_mean"])
        assert torch.equal(depthwise[0].weight, published[f"_blocks.{i}._depthwise_conv.weight"])
        assert torch.equal(depthwise[1].weight, published[f"_blocks.{i}._bn1.weight"])
        assert torch.equal(project[0].weight, published[f"_blocks.{i}._project_conv.weight"])
        assert torch.equal(project[1].weight, published[f"_blocks.{i}._bn2.weight"])
    # Nothing but the lateral convolutions, which are our own, is left as it was.
    for name, value in trunk.state_dict().items():
        if not name.startswith("lateral."):
            assert any(torch.equal(value, other) for other in published.values()), name
    for name, value in trunk.lateral.state_dict().items():
        assert torch.equal(value, lateral[name])


def test_the_trunk_is_efficientnet_lite0(published, tmp_path):
    """Its features at strides 8, 16 and 32, computed from the published tensors one by one."""

    def conv_bn(x, conv, norm, stride=1, relu6=True):
        weight = published[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        kinds = ("running_mean", "running_var", "weight", "bias")
        y = F.batch_norm(y, *(published[f"{norm}.{kind}"] for kind in kinds), eps=1e-3)
        return F.relu6(y) if relu6 else y

    image = torch.randn(2, 3, 64, 64)
    x = conv_bn(image, "_conv_stem", "_bn0", stride=2)
    outputs = []
    for i, (_, expansion, inputs, channels) in enumerate(BLOCKS[:15]):
        stride, name = 1 + (i in STRIDED), f"_blocks.{i}"
        y = conv_bn(x, f"{name}._expand_conv", f"{name}._bn0") if expansion > 1 else x
        y = conv_bn(y, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        y = conv_bn(y, f"{name}._project_conv", f"{name}._bn2", relu6=False)
        x = x + y if stride == 1 and inputs == channels else y
        outputs.append(x)
    fine, middle, coarse = outputs[4], outputs[10], outputs[14]
    assert [y.shape[1:] for y in (fine, middle, coarse)] == [(40, 8, 8), (112, 4, 4), (192, 2, 2)]

    path = tmp_path / "lite0.pth"
    torch.save(published, path)
    trunk = LiteTrunk().eval()
    load_efficientnet_lite0(trunk, path)
    with torch.no_grad():
        sums = trunk.lateral[2](coarse)
        for lateral, features in ((trunk.lateral[1], middle), (trunk.lateral[0], fine)):
            sums = F.interpolate(sums, scale_factor=2, mode="bilinear") + lateral(features)
        torch.testing.assert_close(trunk(image), F.relu(sums), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_blocks.3._bn1.bias": None}, r"no tensor _blocks.3._bn1.bias of shape \(144,\)"),
        ({"_conv_stem.weight": torch.zeros(40, 3, 3, 3)}, r"_conv_stem.weight of shape \(32, 3"),
        ("not a state dict", "holds no state_dict"),
        (None, "cannot be read"),
    ],
    ids=["tensor missing", "other width", "text", "absent"],
)
def test_another_file_is_refused_and_changes_nothing(published, tmp_path, change, message):
    path = tmp_path / "other.pth"
    if isinstance(change, dict):
        torch.save({k: v for k, v in (published | change).items() if v is not None}, path)
    elif change:
        torch.save(change, path)
    trunk = LiteTrunk()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_efficientnet_lite0(trunk, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert all(torch.equal(before[name], value) for name, value in trunk.state_dict().items())
