"""What a weights file says of itself, and where it is. No torch in here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpm_core.config import PRESETS, CpmConfig
from cpm_core.errors import WeightsError
from cpm_core.header import expect, read_header
from cpm_core.skeleton import Skeleton

FOLDER = Path(__file__).parent / "weights"
FORMAT = {"version": 1, "background": "last"}
_LOCATORS = ("person-net",)
"""Weights in the same folder that find people; `cpm_core.person_net` reads them."""


@dataclass(frozen=True)
class WeightsInfo:
    """The metadata of a weights file.

    `box_factor` is the side of the crop in units of the box's longer side.
    """

    name: str
    config: CpmConfig
    skeleton: Skeleton
    box_factor: float = 1.25
    training_data: str = "unknown"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)


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


def read_info(name_or_path: str | Path) -> tuple[WeightsInfo, str]:
    """The metadata and the SHA-256 of a weights file; its tensors are not looked at.

    Raises WeightsError that names the file and what is wrong.
    """
    return read_header(find_weights(name_or_path), parse_info)


def parse_info(values: dict[str, Any]) -> WeightsInfo:
    """From a file's JSON document; see `header.read_header` for what it raises."""
    if values.get("kind", "pose") != "pose":
        raise WeightsError(
            f"holds a {values['kind']}, which finds people; this needs a pose network"
        )
    expect(values, **FORMAT)
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
