"""A person-net as one `.safetensors` file, in the way of `cpm_core.weights`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cpm_core.errors import ConfigError, WeightsError
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.net import PersonNet
from cpm_core.weights import FOLDER, check_tensors, file_sha256

KIND = "person-net"
_KEY = "posemill"
_VERSION = 1
_LONGEST_METADATA = 1 << 18


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
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: not written, as {name} is not finite as torch.float16")
    metadata = {"version": _VERSION, "kind": KIND, **dataclasses.asdict(info)}
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes(save(tensors, metadata={_KEY: json.dumps(metadata)}))
        partial.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error


def load_person_net(name_or_path: str | Path = KIND) -> PersonNetWeights:
    """Read and check the shipped weights or a user's file. Raises WeightsError naming the file.

    Nothing is read into memory before the header shows the network's own tensors.
    """
    path = FOLDER / f"{KIND}.safetensors" if str(name_or_path) == KIND else Path(name_or_path)
    if not path.is_file():
        raise WeightsError(
            f"no person-net weights at {path}: give {KIND!r} for those of the package, or the path "
            "of a .safetensors file"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            info = _parse((file.metadata() or {}).get(_KEY), path)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
            check_tensors(found, lambda: PersonNet(info.config), path)
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite")
    return PersonNetWeights(info, tensors, file_sha256(path))


def _parse(text: str | None, path: Path) -> PersonNetInfo:
    if text is None:
        raise WeightsError(f"{path}: has no {_KEY!r} metadata; it was not written by PoseMill")
    if len(text) > _LONGEST_METADATA:
        raise WeightsError(f"{path}: its metadata is longer than {_LONGEST_METADATA} characters")
    try:
        values: dict[str, Any] = json.loads(text)
        kind = values.get("kind", "pose")
        if kind != KIND:
            raise WeightsError(f"{path}: holds a network of kind {kind!r}, not a {KIND}")
        if values["version"] != _VERSION:
            raise WeightsError(
                f"{path}: version is {values['version']!r} in its metadata; "
                f"this release reads {_VERSION!r}"
            )
        return PersonNetInfo(
            name=str(values["name"]),
            config=PersonNetConfig.from_dict(values["config"]),
            threshold=float(values["threshold"]),
            training_data=str(values["training_data"]),
            licence=str(values["licence"]),
            metrics={str(k): float(v) for k, v in values["metrics"].items()},
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: unusable metadata: {error!r}") from error
    except ConfigError as error:
        raise WeightsError(f"{path}: unusable metadata: {error}") from error
    except RecursionError as error:
        raise WeightsError(f"{path}: unusable metadata: nested too deeply") from error
