"""Convert a checkpoint of the PyTorch port (`cpm_latest.pth.tar`) to `.safetensors`.

    python -m cpm_core.convert cpm_latest.pth.tar cpm.safetensors

The port pads its pools (so cell g lies at pixel 8 g), has BGR input, label sigma 3 cells, centre
sigma 3 px, and the background in front. Only tensors are unpickled.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from cpm_core.config import preset
from cpm_core.errors import CpmError, WeightsError
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton, load_skeleton
from cpm_core.weights import read_checkpoint, save_weights


def convert(source: Path, skeleton: Skeleton) -> tuple[Cpm, WeightsInfo]:
    """The port's checkpoint as our network. Raises WeightsError that says what does not fit."""
    tensors = {name.removeprefix("module."): v for name, v in read_checkpoint(source).items()}
    stages = 1 + sum(bool(re.fullmatch(r"Mconv5_stage\d+\.weight", name)) for name in tensors)
    joints = len(skeleton)
    config = preset(
        "cpm",
        joints=joints,
        stages=stages,
        label_sigma=24.0,
        centre_sigma=3.0,
        cell_offset=0.0,
        dropout=0.0,
    )
    model = Cpm(config)
    names, convs = _port_names(stages), [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    known = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if unknown := sorted(tensors.keys() - known):
        raise WeightsError(f"{source}: {unknown[0]} is not one of the port's tensors")
    for name, conv in zip(names, convs, strict=True):
        assert conv.bias is not None
        for kind, ours in (("weight", conv.weight), ("bias", conv.bias)):
            theirs = tensors.get(f"{name}.{kind}")
            if theirs is None:
                raise WeightsError(f"{source}: {name}.{kind} is missing")
            if theirs.shape != ours.shape or not theirs.is_floating_point():
                raise WeightsError(
                    f"{source}: {name}.{kind} is {theirs.dtype} {tuple(theirs.shape)}, "
                    f"{joints} joints need floats {tuple(ours.shape)}"
                )
            ours.data.copy_(_background_last(name, kind, theirs))
    info = WeightsInfo(
        source.name.split(".")[0], config, skeleton, training_data=f"converted from {source.name}"
    )
    return model.eval(), info


def _port_names(stages: int) -> list[str]:
    """The port's layer names in the order of our modules: first trunk, shared trunk, stages."""
    names = [f"conv{i}_stage1" for i in (1, 2, 3, 4)]
    names += [f"conv{i}_stage2" for i in (1, 2, 3)] if stages > 1 else []
    names += [f"conv{i}_stage1" for i in (5, 6, 7)]
    for stage in range(2, stages + 1):
        names.append("conv4_stage2" if stage == 2 else f"conv1_stage{stage}")
        names += [f"Mconv{i}_stage{stage}" for i in (1, 2, 3, 4, 5)]
    return names


def _background_last(name: str, kind: str, tensor: Tensor) -> Tensor:
    """Move the background from first to last: in a stage's output and where the next reads it."""
    if name == "conv7_stage1" or name.startswith("Mconv5_"):
        return tensor.roll(-1, dims=0)
    if name.startswith("Mconv1_") and kind == "weight":
        # Inputs are 32 features, the maps, the centre map.
        maps = tensor[:, 32:-1].roll(-1, dims=1)
        return torch.cat([tensor[:, :32], maps, tensor[:, -1:]], dim=1)
    return tensor


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cpm_core.convert", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", type=Path, help="the port's .pth.tar")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--skeleton", default="lsp14", help="name or YAML file (default: lsp14)")
    options = parser.parse_args(arguments)
    try:
        model, info = convert(options.source, load_skeleton(options.skeleton))
        save_weights(options.output, model, info, dtype=torch.float32)
    except CpmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = f"{info.config.stages} stages, {info.config.joints} joints ({info.skeleton.name})"
    print(f"{options.output}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
