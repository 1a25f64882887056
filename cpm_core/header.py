"""The JSON document in a `.safetensors` file, read without its tensors. No torch in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from cpm_core.errors import CpmError, WeightsError

KEY = "posemill"
"""The document's place in the file's metadata."""

_LONGEST_METADATA = 1 << 18

Info = TypeVar("Info")


def read_header(path: Path, parse: Callable[[dict[str, Any]], Info]) -> tuple[Info, str]:
    """What `parse` makes of the document, and the file's SHA-256; its tensors are not looked at.

    Raises WeightsError that names the file and what is wrong; so may `parse`, as for
    `tensor_file.read_tensors`.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            return parsed(file.metadata(), parse, path), file_sha256(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error


def expect(values: dict[str, Any], **expected: object) -> None:
    """Raise WeightsError for the first entry of the metadata that has another value."""
    for key, value in expected.items():
        if values[key] != value:
            raise WeightsError(
                f"{key} is {values[key]!r} in its metadata; this release reads {value!r}"
            )


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parsed(
    metadata: dict[str, str] | None, parse: Callable[[dict[str, Any]], Info], path: Path
) -> Info:
    """What `parse` makes of a file's metadata. Raises WeightsError that names the file."""
    text = (metadata or {}).get(KEY)
    if text is None:
        raise WeightsError(f"{path}: has no {KEY!r} metadata; it was not written by PoseMill")
    if len(text) > _LONGEST_METADATA:
        raise WeightsError(f"{path}: its metadata is longer than {_LONGEST_METADATA} characters")
    try:
        return parse(json.loads(text))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except CpmError as error:
        raise WeightsError(f"{path}: unusable metadata: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: unusable metadata: {error!r}") from error
    except RecursionError as error:
        raise WeightsError(f"{path}: unusable metadata: nested too deeply") from error
