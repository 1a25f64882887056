"""Weights as one `.safetensors` file whose JSON metadata says all that is needed to use them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load
from torch import Tensor

from cpm_core.errors import WeightsError
from cpm_core.header import file_sha256
from cpm_core.info import FORMAT, WeightsInfo, find_weights, parse_info
from cpm_core.model import Cpm
from cpm_core.tensor_file import read_tensors, write_tensors


@dataclass(frozen=True)
class Weights:
    """What a weights file holds; `sha256` of the file is the model's identity in tables."""

    info: WeightsInfo
    tensors: dict[str, Tensor]
    sha256: str

    @classmethod
    def of(cls, info: WeightsInfo, content: bytes, sha256: str) -> Self:
        """From the content of a file that `load_weights` has found good."""
        return cls(info, load(content), sha256)

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
        **FORMAT,
        "name": info.name,
        "config": dataclasses.asdict(info.config),
        "skeleton": json.loads(info.skeleton.to_json()),
        "box_factor": info.box_factor,
        "training_data": info.training_data,
        "licence": info.licence,
        "metrics": info.metrics,
    }
    write_tensors(path, model, metadata, dtype)


def load_weights(name_or_path: str | Path) -> Weights:
    """Read and check a weights file. Raises WeightsError that names the file and what is wrong."""
    path = find_weights(name_or_path)
    info, tensors = read_tensors(path, parse_info, lambda info: Cpm(info.config))
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
