"""A network's tensors and a JSON document in one `.safetensors` file, of whatever kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cpm_core.errors import WeightsError
from cpm_core.header import KEY, Info, parsed

_STORED_AS = {torch.float32: ("F32", "F16", "BF16"), torch.int64: ("I64",)}
"""What a file may hold for a tensor of the network."""


def write_tensors(
    path: str | Path,
    model: nn.Module,
    metadata: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model's tensors, values as `dtype` and integers as they are, whole or not at all.

    Raises WeightsError if a value is not finite as `dtype`, or if the file cannot be written.
    """
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: not written, as {name} is not finite as {dtype}")
    # safetensors' own `save_file` would make a file that only its owner can read.
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes(save(tensors, metadata={KEY: json.dumps(metadata)}))
        partial.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error


def read_tensors(
    path: Path,
    parse: Callable[[dict[str, Any]], Info],
    network: Callable[[Info], nn.Module],
) -> tuple[Info, dict[str, Tensor]]:
    """What `parse` makes of the metadata, and the tensors of the `network` that it describes.

    Tensors are read only after the header shows that they are those of the network, so a hostile
    file cannot claim more memory than the network it describes. Raises WeightsError that names the
    file and what is wrong; so may `parse`, which need not name the file, and need not expect
    entries that are missing or of another type.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            info = parsed(file.metadata(), parse, path)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
            _check(found, lambda: network(info), path)
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite")
    return info, tensors


class _WithoutValues(TorchFunctionMode):
    """Tensors keep the values they are made with: on the meta device, which has none, PyTorch
    would import its compiler to fill them, which takes a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        fills = getattr(func, "__module__", None) == nn.init.__name__
        return given["tensor"] if fills else func(*args, **given)


def _check(
    found: dict[str, tuple[tuple[int, ...], str]], network: Callable[[], nn.Module], path: Path
) -> None:
    """Shapes and types of the file's tensors against the network's."""
    with torch.device("meta"), _WithoutValues():
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
