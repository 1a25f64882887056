"""A VGG16 read into the trunk of cpm-vgg, against the published layers applied one by one."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cpm_core.config import preset
from cpm_core.errors import WeightsError
from cpm_core.model import Cpm
from cpm_core.pretrained import VGG_MEAN, load_vgg16

# VGG16 up to conv4_2: name, inputs, outputs; a 2x2 pool is before the first of each block.
LAYERS = [
    ("1_1", 3, 64),
    ("1_2", 64, 64),
    ("2_1", 64, 128),
    ("2_2", 128, 128),
    ("3_1", 128, 256),
    ("3_2", 256, 256),
    ("3_3", 256, 256),
    ("4_1", 256, 512),
    ("4_2", 512, 512),
]
FEATURES = 10
"""The trunk's layers that VGG fills, the conv3_4 that VGG16 lacks among them."""


@pytest.fixture(scope="module")
def published():
    """Arrays under the names and of the shapes of the published file, for BGR less its mean."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, inputs, outputs in LAYERS:
        scale = (2 / (9 * inputs)) ** 0.5
        weight = scale * rng.standard_normal((outputs, inputs, 3, 3))
        arrays[f"conv{name}.weight"] = weight.astype(np.float16)
        arrays[f"conv{name}.bias"] = rng.standard_normal(outputs).astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def path(published, tmp_path_factory):
    target = tmp_path_factory.mktemp("vgg") / "vgg16.npz"
    np.savez(target, **published)
    return target


def vgg16(arrays, crops):
    """conv4_2 of RGB crops (B, 3, S, S), as Caffe's VGG16 computes it."""
    mean = torch.tensor([104.007, 116.669, 122.679]).view(1, 3, 1, 1)
    x = crops.flip(1).float() - mean
    for name, _, _ in LAYERS:
        if name in ("2_1", "3_1", "4_1"):
            x = F.max_pool2d(x, 2, 2)
        weight, bias = (torch.from_numpy(arrays[f"conv{name}.{k}"]) for k in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight.float(), bias.float(), padding=1))
    return x


def features(model, crops):
    """The same of our trunk."""
    x, convs = model.normalise(crops), 0
    for layer in model.shared:
        x = layer(x)
        convs += isinstance(layer, nn.ReLU)
        if convs == FEATURES:
            return x
    raise AssertionError("the trunk is too short")


def crops_of(size):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 3, size, size), generator=generator).byte()


def test_features_are_those_of_vgg16_up_to_the_border(published, path):
    model = Cpm(preset("cpm-vgg", stages=1, input_size=64, mean=VGG_MEAN))
    load_vgg16(model, path)
    with torch.no_grad():
        ours, theirs = features(model, crops_of(64)), vgg16(published, crops_of(64))
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "colors",
    [
        {},  # the release's normalisation
        {"color_order": "rgb", "mean": (110.0, 120.0, 130.0), "std": (58.4, 57.1, 57.4)},
    ],
    ids=["release", "rgb"],
)
def test_with_another_mean_they_are_so_inside(published, path, colors):
    """Padding is of another colour then; a cell of conv4_2 sees 46 px to each side."""
    model = Cpm(preset("cpm-vgg", stages=1, input_size=128, **colors))
    load_vgg16(model, path)
    with torch.no_grad():
        ours, theirs = features(model, crops_of(128)), vgg16(published, crops_of(128))
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=1e-4, atol=1e-2)
    assert (ours - theirs).abs().max() > 1


def test_cpm_keeps_its_own_layers(path):
    model = Cpm(preset("cpm-vgg", stages=2, input_size=64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_vgg16(model, path)
    kept = {n for n, value in model.state_dict().items() if torch.equal(before[n], value)}
    convs = [n for n, m in model.shared.named_modules() if isinstance(m, nn.Conv2d)]
    filled = {f"shared.{n}.{kind}" for n in convs[:FEATURES] for kind in ("weight", "bias")}
    # An identity's biases are zero, and so are those of the start.
    assert kept == before.keys() - filled | {f"shared.{convs[7]}.bias"}


def test_the_published_file(shared):
    """On a real crop of full size, bit for bit: 256 is a power of two."""
    file = shared("weights", "vgg16_conv1-4_hed_fp16.npz")
    picture = cv2.imread(str(shared("data", "lspet_val", "images", "im00002.jpg")))
    crop = cv2.cvtColor(cv2.resize(picture, (368, 368)), cv2.COLOR_BGR2RGB)
    crops = torch.from_numpy(crop).permute(2, 0, 1)[None]
    model = Cpm(preset("cpm-vgg", stages=1, mean=VGG_MEAN))
    load_vgg16(model, file)
    with np.load(file) as arrays, torch.no_grad():
        assert torch.equal(features(model, crops), vgg16(arrays, crops))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv3_2.bias": None}, r"no array conv3_2.bias of shape \(256,\)"),
        ({"conv1_1.weight": np.zeros((64, 3, 5, 5))}, r"conv1_1.weight of shape \(64, 3, 3, 3\)"),
        ({"conv2_1.bias": np.zeros(128, np.int64)}, "conv2_1.bias holds values that are not"),
        ({"conv4_2.bias": np.full(512, np.nan)}, "conv4_2.bias holds values that are not finite"),
        ({"conv1_2.bias": np.array([None] * 64)}, "cannot be read as an .npz"),
        (b"PK\x03\x04 no archive", "cannot be read as an .npz"),
        (b"text", "cannot be read as an .npz"),
        (None, "cannot be read as an .npz"),
    ],
    ids=["missing", "other width", "integers", "NaN", "pickle", "no zip", "text", "absent"],
)
def test_another_file_is_refused_and_changes_nothing(published, tmp_path, change, message):
    path = tmp_path / "other.npz"
    if isinstance(change, dict):
        np.savez(path, **{k: v for k, v in (published | change).items() if v is not None})
    elif change:
        path.write_bytes(change)
    model = Cpm(preset("cpm-vgg", stages=1, input_size=64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_vgg16(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(WeightsError, match="holds one array"):
        load_vgg16(Cpm(preset("cpm-vgg", stages=1, input_size=64)), tmp_path / "one.npy")


def test_other_trunks_are_refused(path):
    with pytest.raises(WeightsError, match="fits a vgg trunk, not 'original'"):
        load_vgg16(Cpm(preset("cpm", stages=1, input_size=64)), path)
