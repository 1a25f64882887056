"""A person-net as one `.safetensors` file, in the way of `cpm_core.weights`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cpm_core.errors import ConfigError, WeightsError
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.net import PersonNet
from cpm_core.tensor_file import expect, file_sha256, read_tensors, write_tensors
from cpm_core.weights import FOLDER

KIND = "person-net"
_VERSION = 1


@dataclass(frozen=True)
class PersonNetInfo:
    """The metadata of a file; `threshold` is the score from which a peak is a person."""

    name: str
    config: PersonNetConfig
    threshold: float = 0.3
    training_data: str = "unknown"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}; choose a number between 0 and 1")


@dataclass(frozen=True)
class PersonNetWeights:
    """What a file holds; `sha256` of the file is the locator's identity."""

    info: PersonNetInfo
    tensors: dict[str, Tensor]
    sha256: str

    def model(self) -> PersonNet:
        """The network with these weights, in fp32 and eval mode."""
        model = PersonNet(self.info.config)
        model.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()})
        return model.eval()


def save_person_net(path: str | Path, model: PersonNet, info: PersonNetInfo) -> None:
    """Write weights as fp16 with metadata. Raises WeightsError for values that fp16 cannot hold."""
    metadata = {"version": _VERSION, "kind": KIND, **dataclasses.asdict(info)}
    write_tensors(path, model, metadata)


def load_person_net(name_or_path: str | Path = KIND) -> PersonNetWeights:
    """Read and check the shipped weights or a user's file. Raises WeightsError naming the file."""
    path = FOLDER / f"{KIND}.safetensors" if str(name_or_path) == KIND else Path(name_or_path)
    if not path.is_file():
        raise WeightsError(
            f"no person-net weights at {path}: give {KIND!r} for those of the package, or the path "
            "of a .safetensors file"
        )
    info, tensors = read_tensors(path, _parse, lambda info: PersonNet(info.config))
    return PersonNetWeights(info, tensors, file_sha256(path))


def _parse(values: dict[str, Any]) -> PersonNetInfo:
    kind = values.get("kind", "pose")
    if kind != KIND:
        raise WeightsError(f"holds a network of kind {kind!r}, not a {KIND}")
    expect(values, version=_VERSION)
    return PersonNetInfo(
        name=str(values["name"]),
        config=PersonNetConfig.from_dict(values["config"]),
        threshold=float(values["threshold"]),
        training_data=str(values["training_data"]),
        licence=str(values["licence"]),
        metrics={str(k): float(v) for k, v in values["metrics"].items()},
    )
