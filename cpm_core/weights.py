"""Weights as one `.safetensors` file whose JSON metadata says all that is needed to use them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpm_core.config import PRESETS, CpmConfig
from cpm_core.errors import WeightsError
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton
from cpm_core.tensor_file import expect, file_sha256, read_tensors, write_tensors

FOLDER = Path(__file__).parent / "weights"
_FORMAT = {"version": 1, "background": "last"}
_LOCATORS = ("person-net",)
"""Weights in the same folder that find people; `cpm_core.person_net` reads them."""


@dataclass(frozen=True)
class Weights:
    """What a weights file holds; `sha256` of the file is the model's identity in tables."""

    info: WeightsInfo
    tensors: dict[str, Tensor]
    sha256: str

    def model(self) -> Cpm:
        """The network with these weights, in fp32 and eval mode."""
        model = Cpm(self.info.config)
        model.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()})
        return model.eval()


def save_weights(
    path: str | Path, model: Cpm, info: WeightsInfo, dtype: torch.dtype = torch.float16
) -> None:
    """Write a model's weights and metadata. Values are stored as `dtype`, integers as they are.

    Raises WeightsError if a value is not finite as `dtype`, or if the file cannot be written.
    """
    metadata = {
        **_FORMAT,
        "name": info.name,
        "config": dataclasses.asdict(info.config),
        "skeleton": json.loads(info.skeleton.to_json()),
        "box_factor": info.box_factor,
        "training_data": info.training_data,
        "licence": info.licence,
        "metrics": info.metrics,
    }
    write_tensors(path, model, metadata, dtype)


def find_weights(name_or_path: str | Path) -> Path:
    """Path of weights that come with the package, or of a user's own file. Raises WeightsError."""
    name = str(name_or_path)
    if name in _LOCATORS:
        raise WeightsError(
            f"{name!r} finds people, it does not estimate poses: choose it with --people {name}, "
            "and a pose network for the weights"
        )
    files = sorted(FOLDER.glob("*.safetensors"))
    shipped = {path.stem: path for path in files if path.stem not in _LOCATORS}
    path = shipped.get(name, Path(name))
    if path.is_file():
        return path
    names = ", ".join(shipped) or "none"
    if name in PRESETS:
        raise WeightsError(
            f"no weights for {name!r} come with the package (shipped: {names}); train them with "
            f"`posemill train --preset {name}`, or convert a PyTorch port's checkpoint with "
            "`python -m cpm_core.convert`, then give the path of the .safetensors file"
        )
    raise WeightsError(
        f"no weights {name!r}: give the path of a .safetensors file, or the name of "
        f"weights that come with the package ({names})"
    )


def load_weights(name_or_path: str | Path) -> Weights:
    """Read and check a weights file. Raises WeightsError that names the file and what is wrong."""
    path = find_weights(name_or_path)
    info, tensors = read_tensors(path, _parse, lambda info: Cpm(info.config))
    return Weights(info, tensors, file_sha256(path))


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint, or of its `state_dict`. Never runs code from the file.

    Raises WeightsError for a file that holds anything else.
    """
    try:
        document = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise WeightsError(
            f"{path}: cannot be read as tensors only, and nothing else is read ({error})"
        ) from error
    state = document.get("state_dict", document) if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(f"{path}: holds no state_dict of tensors")
    return state


def _parse(values: dict[str, Any]) -> WeightsInfo:
    if values.get("kind", "pose") != "pose":
        raise WeightsError(
            f"holds a {values['kind']}, which finds people; this needs a pose network"
        )
    expect(values, **_FORMAT)
    info = WeightsInfo(
        name=str(values["name"]),
        config=CpmConfig.from_dict(values["config"]),
        skeleton=Skeleton.from_json(json.dumps(values["skeleton"])),
        box_factor=float(values["box_factor"]),
        training_data=str(values["training_data"]),
        licence=str(values["licence"]),
        metrics={str(k): float(v) for k, v in values["metrics"].items()},
    )
    if info.config.joints != len(info.skeleton):
        raise WeightsError(
            f"{info.config.joints} joints, but its skeleton has {len(info.skeleton)} keypoints"
        )
    if not 0.5 <= info.box_factor <= 10:
        raise WeightsError(f"box_factor {info.box_factor} is outside 0.5 to 10")
    return info
