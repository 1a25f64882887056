"""Bytes of an object, with failures sorted into rows and retries.

Transient failures (throttling, resets, time-outs) are tried again with growing, jittered pauses; a
missing or forbidden object is not, nor what a web server will not give however often it is asked.
All attempts together have `_PATIENCE_S`: storage that hands out a byte now and then never times out
by itself.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
)
from fsspec.asyn import AsyncFileSystem, sync

from pipeline.errors import InputError, UsageError
from pipeline.storage import (
    StorageOptions,
    leads_nowhere,
    open_filesystem,
    path_of,
    protocol_of,
    s3_code,
)

_ATTEMPTS = 6
_ROUNDS = 2
"""Attempts where botocore has tried eight times already, within half a minute."""
_FIRST_PAUSE_S = 0.25
_PATIENCE_S = 300.0
_LATER, _GONE, _FORBIDDEN = (408, 425, 429), (404, 410), (401, 402, 403, 407, 451)
"""Status codes of HTTP."""


def fetch(uri: str, options: StorageOptions, max_bytes: int) -> bytes:
    """The object's bytes. Raises InputError: not_found, forbidden, too_large, storage."""
    if protocol_of(uri) == "file":
        data = _read_local(Path(path_of(uri)), max_bytes)
    else:
        data = _read_remote(uri, options, max_bytes)
    if len(data) > max_bytes:
        raise InputError("too_large", f"more than {max_bytes} bytes")
    return data


def _read_remote(uri: str, options: StorageOptions, max_bytes: int) -> bytes:
    """The object's first `max_bytes` + 1 bytes: one more than allowed tells a large one."""
    deadline = time.monotonic() + _PATIENCE_S
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            fs = open_filesystem(uri, options)
            return _read_until(deadline, fs, path_of(uri), max_bytes + 1)
        except FileNotFoundError as error:
            raise InputError("not_found", "there is no such object") from error
        except (PermissionError, NoCredentialsError) as error:
            raise InputError("forbidden", f"the storage refuses it: {error}") from error
        except UsageError as error:
            raise InputError("storage", str(error)) from error
        except Exception as error:  # file systems raise what comes
            if _is_empty(error):
                return b""
            if (refusal := _refusal(error)) is not None:
                raise refusal from error
            most = _ROUNDS if _was_retried(error) else _ATTEMPTS
            if attempt >= most or time.monotonic() >= deadline:
                reason = str(error) or type(error).__name__
                raise InputError(
                    "storage", f"failed {attempt} times, last with: {reason}"
                ) from error
            time.sleep(random.uniform(0.5, 1.5) * _FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _read_until(deadline: float, fs: Any, path: str, end: int) -> bytes:
    if not isinstance(fs, AsyncFileSystem):
        return fs.cat_file(path, start=0, end=end)  # type: ignore[no-any-return]
    left = max(1.0, deadline - time.monotonic())
    return sync(fs.loop, fs._cat_file, path, start=0, end=end, timeout=left)  # type: ignore[no-any-return]


def _read_local(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("not_found", "there is no such file") from error
    except PermissionError as error:
        raise InputError("forbidden", "no permission to read the file") from error
    except IsADirectoryError as error:
        raise InputError("unknown_format", "it is a folder") from error
    except (OSError, ValueError) as error:
        raise InputError("not_found" if leads_nowhere(error) else "storage", str(error)) from error


def _was_retried(error: Exception) -> bool:
    """Whether S3 could not be reached, or answered with an error: botocore has tried that again.

    What breaks off within a body, it has not.
    """
    return isinstance(error, EndpointConnectionError | ConnectTimeoutError) or bool(s3_code(error))


def _refusal(error: Exception) -> InputError | None:
    """What a web server's answer of 4xx means, unless it says to come again later."""
    status = getattr(error, "status", None)
    if not isinstance(status, int) or not 400 <= status < 500 or status in _LATER:
        return None
    if status in _GONE:
        return InputError("not_found", f"the server has it no longer (HTTP {status})")
    code = "forbidden" if status in _FORBIDDEN else "storage"
    return InputError(code, f"the server refuses it (HTTP {status})")


def _is_empty(error: Exception) -> bool:
    """Storage answers a range request for an empty object with 416."""
    status = getattr(error, "status", None)
    return status == 416 or s3_code(error) in ("InvalidRange", "416")
