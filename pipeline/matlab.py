"""MATLAB files, and the two layouts of `joints` in them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.storage import StorageOptions

Layout = Literal["lsp", "lspet"]
LAYOUTS: dict[Layout, tuple[int, int]] = {"lsp": (3, 14), "lspet": (14, 3)}
"""LSP's `joints` is (3, 14, N), LSPET's (14, 3, N), and their flags mean the opposite."""

_LARGEST = 4 << 30
_AS_IT_COMES = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What scipy raises, too, on a file that is damaged."""


def read_mat(
    uri: str,
    options: StorageOptions,
    names: Sequence[str] | None = None,
    squeeze: bool = False,
    fix: str = "",
) -> dict[str, Any]:
    """The variables (some, or all) of a .mat file, local or any fsspec URL, structs as objects.

    `squeeze` drops dimensions of length 1. Raises UsageError with the file's name and the `fix`.
    """
    end = f"; {fix}" if fix else ""
    loadmat, unreadable = _scipy(uri)
    try:
        data = fetch(uri, options, _LARGEST)
    except InputError as error:
        raise UsageError(f"cannot read {uri}: {error}{end}") from error
    try:
        how = {"variable_names": names, "squeeze_me": squeeze, "struct_as_record": False}
        return loadmat(io.BytesIO(data), **how)
    except NotImplementedError as error:
        raise UsageError(f"{uri}: MATLAB 7.3 files are not read; save it with -v7{end}") from error
    except (unreadable, zlib.error, MemoryError, OSError, *_AS_IT_COMES) as error:
        raise UsageError(f"{uri}: not a readable .mat file ({error}){end}") from error


def _scipy(uri: str) -> tuple[Callable[..., dict[str, Any]], type[Exception]]:
    """The reader, and its own exception; an installation without the extra does without."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise UsageError(f"{uri}: .mat files need scipy: pip install 'posemill[train]'") from error
    return loadmat, MatReadError


def pages(array: NDArray[Any]) -> NDArray[Any]:
    """With three axes: MATLAB drops the last one of a single page."""
    return array[..., None] if array.ndim == 2 else array


def layout_of(joints: NDArray[Any]) -> Layout | None:
    """Whose `joints` these are, told by their shape; None for neither's."""
    shape = joints.shape[:2] if joints.ndim == 3 else None
    return next((name for name, expected in LAYOUTS.items() if shape == expected), None)


def points_and_flags(
    joints: NDArray[Any], layout: Layout
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Points (N, 14, 2), as they stand there, and flags (N, 14) of `joints`.

    A flag of LSP says occluded, one of LSPET labelled. As floats, since some copies are of unsigned
    bytes, whose differences wrap around.
    """
    order = (2, 1, 0) if layout == "lsp" else (2, 0, 1)
    values = joints.transpose(order).astype(np.float64)
    return values[..., :2], np.asarray(values[..., 2] > 0.5, bool)
