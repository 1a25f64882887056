"""What a person-net's file says of itself, and where it is. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpm_core.errors import ConfigError, LocatorError, WeightsError
from cpm_core.header import expect, read_header
from cpm_core.info import FOLDER
from cpm_core.person_net.config import PersonNetConfig

KIND = "person-net"
VERSION = 1


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


def checked_threshold(threshold: float) -> float:
    """`threshold` if it can be one. Raises LocatorError."""
    if 0 < threshold < 1:
        return threshold
    raise LocatorError(f"threshold is {threshold}; choose a number between 0 and 1")


def find_person_net(name_or_path: str | Path = KIND) -> Path:
    """Path of the shipped weights or of a user's file. Raises WeightsError."""
    path = FOLDER / f"{KIND}.safetensors" if str(name_or_path) == KIND else Path(name_or_path)
    if not path.is_file():
        raise WeightsError(
            f"no person-net weights at {path}: give {KIND!r} for those of the package, or the path "
            "of a .safetensors file"
        )
    return path


def read_info(name_or_path: str | Path = KIND) -> tuple[PersonNetInfo, str]:
    """The metadata and the SHA-256 of a file; its tensors are not looked at. Raises WeightsError
    that names the file and what is wrong."""
    return read_header(find_person_net(name_or_path), parse_info)


def parse_info(values: dict[str, Any]) -> PersonNetInfo:
    """From a file's JSON document; see `header.read_header` for what it raises."""
    kind = values.get("kind", "pose")
    if kind != KIND:
        raise WeightsError(f"holds a network of kind {kind!r}, not a {KIND}")
    expect(values, version=VERSION)
    return PersonNetInfo(
        name=str(values["name"]),
        config=PersonNetConfig.from_dict(values["config"]),
        threshold=float(values["threshold"]),
        training_data=str(values["training_data"]),
        licence=str(values["licence"]),
        metrics={str(k): float(v) for k, v in values["metrics"].items()},
    )
