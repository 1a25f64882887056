"""Bytes of an object, with failures sorted into rows and retries.

Transient failures (throttling, resets, time-outs) are tried again with growing, jittered pauses; a
missing or forbidden object is not.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage import StorageOptions, open_filesystem, path_of, protocol_of

_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.25


def fetch(uri: str, options: StorageOptions, max_bytes: int) -> bytes:
    """The object's bytes. Raises InputError: not_found, forbidden, too_large, storage."""
    if protocol_of(uri) == "file":
        return _read_local(Path(path_of(uri)), max_bytes)
    fs, path = open_filesystem(uri, options), path_of(uri)
    pause = threading.Event()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            # One byte more than allowed tells a large object without a request for its size.
            data: bytes = fs.cat_file(path, start=0, end=max_bytes + 1)
        except FileNotFoundError as error:
            raise InputError("not_found", "there is no such object") from error
        except PermissionError as error:
            raise InputError("forbidden", f"the storage refuses it: {error}") from error
        except (OSError, TimeoutError) as error:
            if _is_empty(error):
                return b""
            if attempt == _ATTEMPTS:
                raise InputError(
                    "storage", f"failed {attempt} times, last with: {error}"
                ) from error
            pause.wait(random.uniform(0.5, 1.5) * _FIRST_PAUSE_S * 2 ** (attempt - 1))
            continue
        if len(data) > max_bytes:
            raise InputError("too_large", f"more than {max_bytes} bytes")
        return data
    raise AssertionError("unreachable")


def _read_local(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("not_found", "there is no such file") from error
    except PermissionError as error:
        raise InputError("forbidden", "no permission to read the file") from error
    except IsADirectoryError as error:
        raise InputError("unknown_format", "it is a folder") from error
    except OSError as error:
        raise InputError("storage", str(error)) from error
    if len(data) > max_bytes:
        raise InputError("too_large", f"more than {max_bytes} bytes")
    return data


def _is_empty(error: BaseException) -> bool:
    """S3 answers a range request for an empty object with 416."""
    return "416" in str(error) or "InvalidRange" in str(error)
