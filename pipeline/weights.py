"""Weights by name, path or URL."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cpm_core.errors import CpmError
from cpm_core.weights import Weights, load_weights
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.storage import StorageOptions

_MAX_BYTES = 1 << 32


def read_weights(name: str, options: StorageOptions) -> Weights:
    """Shipped weights, a `.safetensors` file, or one at any fsspec URL. Raises UsageError."""
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
