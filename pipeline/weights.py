"""Weights by name, path or URL.

PyTorch is imported where it is used: a command tells its settings, or what is wrong with them,
seconds sooner without.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cpm_core.errors import CpmError
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.storage import StorageOptions

if TYPE_CHECKING:
    from cpm_core.estimator import Estimator
    from cpm_core.keypoints import Precision
    from cpm_core.weights import Weights

_MAX_BYTES = 1 << 32


def estimator(
    name: str,
    options: StorageOptions,
    device: str | None = None,
    precision: Precision = "auto",
    flip: bool = False,
    scales: tuple[float, ...] = (1.0,),
) -> Estimator:
    """An estimator with weights by name, path or URL. Raises UsageError."""
    import torch

    from cpm_core.estimator import Estimator

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no GPU that PyTorch can use here; leave it out")
    weights = read_weights(name, options)
    try:
        return Estimator(weights, device, precision, flip, scales)
    except CpmError as error:
        raise UsageError(str(error)) from error


def read_weights(name: str, options: StorageOptions) -> Weights:
    """Shipped weights, a `.safetensors` file, or one at any fsspec URL. Raises UsageError."""
    from cpm_core.weights import load_weights

    try:
        if "://" not in name:
            return load_weights(name)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "weights.safetensors"
            copy.write_bytes(fetch(name, options, _MAX_BYTES))
            return load_weights(copy)
    except InputError as error:
        raise UsageError(f"{name}: {error}") from error
    except CpmError as error:
        raise UsageError(f"{name}: {error}" if "://" in name else str(error)) from error
