"""Failures, sorted: what ends a run, and what becomes a row of the table.

Codes are stable: they are written into tables, and users filter and retry by them.
"""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_SIGNED = re.compile(
    r"(?i)([?&;](?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig"
    r"|access_?token|token|api_?key|password)=)[^&;#\s'\"]+"
)


def redact(text: str) -> str:
    """A message without the secrets of the URLs in it: user and password, signatures, tokens."""
    return _SIGNED.sub(r"\1***", _USER.sub("***@", text))


class PosemillError(Exception):
    """The run cannot go on. The message is one line that says why and what to do.

    Secrets of URLs in it are made unreadable.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class UsageError(PosemillError):
    """A setting is wrong."""


class LockedError(PosemillError):
    """Another run works on the same output."""


class RefusedError(PosemillError):
    """The output will not take it, however often it is asked: no room, no right, no such bucket."""


class InputError(Exception):
    """One unit cannot be annotated; it becomes a row with this code.

    Secrets of URLs in the message are made unreadable.
    """

    def __init__(self, code: str, message: str) -> None:
        assert code in ERROR_CODES, code
        super().__init__(redact(message))
        self.code = code

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return InputError, (self.code, str(self))


ERROR_CODES = {
    "not_found": "the object is not there (any more)",
    "forbidden": "the storage refuses to hand the object out",
    "storage": "the storage kept failing after all retries",
    "bad_name": "the file's name is not UTF-8 and cannot stand in a table",
    "empty": "the object has no bytes",
    "too_large": "more bytes than --max-bytes",
    "too_many_pixels": "more pixels than --max-pixels",
    "too_many_frames": "a video of more frames than --max-frames",
    "unknown_format": "neither a picture nor a video in a format that is read",
    "corrupt": "the data is damaged or truncated",
    "no_video": "the container has no video stream that can be decoded",
    "bad_box": "no box is given, or one that is not finite, has no area, or misses the picture or "
    "the video",
    "timeout": "a picture or a frame took longer than --max-seconds",
    "out_of_memory": "decoding needed more memory than --max-memory",
    "worker_crashed": "the decoder process died on this unit",
    "internal": "the unit failed for a reason of PoseMill's own; see the message",
}

PASSING = frozenset(
    ["not_found", "forbidden", "storage", "timeout", "out_of_memory", "worker_crashed", "internal"]
)
"""Codes of what may be otherwise another time, with the very same bytes."""
