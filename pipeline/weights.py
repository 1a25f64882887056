"""Weights by name, path or URL.

PyTorch is imported where it is used: a command tells its settings, or what is wrong with them,
seconds sooner without.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpm_core.errors import CpmError
from cpm_core.info import find_weights, read_info
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
    """Shipped weights, a `.safetensors` file, or one at any fsspec URL, as what it says of itself:
    `info`, and its `sha256`. Whether its tensors are the network's is for a process that has
    PyTorch to see.

    Raises UsageError for a file that says nothing usable of itself.
    """

    def __init__(self, name: str, options: StorageOptions) -> None:
        self._name = name
        self._fetched: bytes | None = None
        try:
            if "://" in name:
                self._fetched = fetch(name, options, _MAX_BYTES)
            else:
                self._path = find_weights(name)
            with self.path() as path:
                self.info, self.sha256 = read_info(path)
        except (CpmError, InputError) as error:
            raise self.refused(error) from error

    @contextmanager
    def path(self) -> Iterator[Path]:
        """Where the file is; that of a URL is there while inside."""
        if self._fetched is None:
            yield self._path
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "weights.safetensors"
            copy.write_bytes(self._fetched)
            yield copy

    def content(self) -> bytes:
        """All of it. Raises UsageError where it has changed meanwhile."""
        content = self._path.read_bytes() if self._fetched is None else self._fetched
        self.check(hashlib.sha256(content).hexdigest())
        return content

    def check(self, sha256: str) -> None:
        """Raise UsageError for a SHA-256 that is no more the file's."""
        if sha256 != self.sha256:
            raise UsageError(f"{self._name} was changed meanwhile; run the same command again")

    def refused(self, error: CpmError | InputError) -> UsageError:
        """What to tell of an error that it causes."""
        return UsageError(f"{self._name}: {error}" if "://" in self._name else str(error))


def read_weights(name: str, options: StorageOptions) -> Weights:
    """The weights of a `WeightsFile`. Raises UsageError."""
    from cpm_core.weights import load_weights

    file = WeightsFile(name, options)
    with file.path() as path:
        try:
            return load_weights(path)
        except CpmError as error:
            raise file.refused(error) from error
