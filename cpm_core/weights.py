"""Weights as one `.safetensors` file whose JSON metadata says all that is needed to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cpm_core.config import PRESETS, CpmConfig
from cpm_core.errors import CpmError, WeightsError
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton

FOLDER = Path(__file__).parent / "weights"
_KEY = "posemill"
_VERSION = 1
_BACKGROUND = "last"
_LONGEST_METADATA = 1 << 18
_LOCATORS = ("person-net",)
"""Weights in the same folder that find people; `cpm_core.person_net` reads them."""
_STORED_AS = {torch.float32: ("F32", "F16", "BF16"), torch.int64: ("I64",)}
"""What a file may hold for a tensor of the network."""


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
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: not written, as {name} is not finite as {dtype}")
    metadata = {
        "version": _VERSION,
        "name": info.name,
        "config": dataclasses.asdict(info.config),
        "skeleton": json.loads(info.skeleton.to_json()),
        "background": _BACKGROUND,
        "box_factor": info.box_factor,
        "training_data": info.training_data,
        "licence": info.licence,
        "metrics": info.metrics,
    }
    # safetensors' own `save_file` would make a file that only its owner can read.
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes(save(tensors, metadata={_KEY: json.dumps(metadata)}))
        partial.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error


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
    """Read and check a weights file. Raises WeightsError that names the file and what is wrong.

    Tensors are read only after the header shows that they are those of the network, so a hostile
    file cannot claim more memory than the network it describes.
    """
    path = find_weights(name_or_path)
    try:
        with safe_open(str(path), framework="pt") as file:
            info = _parse((file.metadata() or {}).get(_KEY), path)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
            check_tensors(found, lambda: Cpm(info.config), path)
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite")
    return Weights(info, tensors, file_sha256(path))


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _parse(text: str | None, path: Path) -> WeightsInfo:
    if text is None:
        raise WeightsError(f"{path}: has no {_KEY!r} metadata; it was not written by PoseMill")
    if len(text) > _LONGEST_METADATA:
        raise WeightsError(f"{path}: its metadata is longer than {_LONGEST_METADATA} characters")
    try:
        values: dict[str, Any] = json.loads(text)
        if values.get("kind", "pose") != "pose":
            raise WeightsError(
                f"{path}: holds a {values['kind']}, which finds people; this needs a pose network"
            )
        for key, expected in (("version", _VERSION), ("background", _BACKGROUND)):
            if values[key] != expected:
                raise WeightsError(
                    f"{path}: {key} is {values[key]!r} in its metadata; "
                    f"this release reads {expected!r}"
                )
        info = WeightsInfo(
            name=str(values["name"]),
            config=CpmConfig.from_dict(values["config"]),
            skeleton=Skeleton.from_json(json.dumps(values["skeleton"])),
            box_factor=float(values["box_factor"]),
            training_data=str(values["training_data"]),
            licence=str(values["licence"]),
            metrics={str(k): float(v) for k, v in values["metrics"].items()},
        )
    except WeightsError:
        raise
    except CpmError as error:
        raise WeightsError(f"{path}: unusable metadata: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: unusable metadata: {error!r}") from error
    except RecursionError as error:
        raise WeightsError(f"{path}: unusable metadata: nested too deeply") from error
    if info.config.joints != len(info.skeleton):
        raise WeightsError(
            f"{path}: {info.config.joints} joints, "
            f"but its skeleton has {len(info.skeleton)} keypoints"
        )
    if not 0.5 <= info.box_factor <= 10:
        raise WeightsError(f"{path}: box_factor {info.box_factor} is outside 0.5 to 10")
    return info


def check_tensors(
    found: dict[str, tuple[tuple[int, ...], str]], network: Callable[[], nn.Module], path: Path
) -> None:
    """Shapes and types of a file's tensors against a network's, before any is read.

    Raises WeightsError that names the first that does not fit.
    """
    with torch.device("meta"):
        expected = network().state_dict()
    for name in sorted(expected.keys() ^ found.keys()):
        problem = "is missing" if name in expected else "does not belong to this network"
        raise WeightsError(f"{path}: tensor {name} {problem}")
    for name, tensor in expected.items():
        shape, stored = found[name]
        if shape != tuple(tensor.shape) or stored not in _STORED_AS[tensor.dtype]:
            raise WeightsError(
                f"{path}: tensor {name} is {stored} {shape}, "
                f"the network needs {_STORED_AS[tensor.dtype][0]} {tuple(tensor.shape)}"
            )
