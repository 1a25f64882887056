"""Weights by name, path or URL.

PyTorch is imported where it is used: a command tells its settings, or what is wrong with them,
seconds sooner without.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cpm_core.errors import CpmError
from cpm_core.info import read_info
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


class WeightsFile:
    """Weights of which `info` and `sha256` are known at once, and the tensors only when they are
    used: a run that finds nothing to do needs no PyTorch.

    Raises UsageError for a file that says nothing usable of itself.
    """

    def __init__(self, name: str, options: StorageOptions) -> None:
        self._name, self._options = name, options
        self._weights: Weights | None = None
        if "://" in name:
            weights = self.load()
            self.info, self.sha256 = weights.info, weights.sha256
            return
        try:
            self.info, self.sha256 = read_info(name)
        except CpmError as error:
            raise UsageError(str(error)) from error

    def load(self) -> Weights:
        """The weights. Raises UsageError for a file with other tensors than it says, or that has
        changed meanwhile."""
        if self._weights is None:
            self._weights = read_weights(self._name, self._options)
            if "://" not in self._name and self._weights.sha256 != self.sha256:
                raise UsageError(f"{self._name} was changed meanwhile; run the same command again")
        return self._weights


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
