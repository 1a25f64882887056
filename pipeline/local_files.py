"""Files of a local disk, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

TEMPORARY = ".posemill-"
"""How the names of local files begin that are not whole yet."""


def is_temporary(name: str) -> bool:
    """Whether a name is of a file that is not whole yet, or never will be."""
    return name.rpartition("/")[2].startswith(TEMPORARY)


def put(path: str, data: bytes, replace: bool = False) -> bool:
    """Write beside the target, flush, publish under its name; False if the name is taken.

    The file has no name before it is complete, where the system can do that: a process that is
    killed as it writes leaves nothing.
    """
    place = Path(path).parent
    place.mkdir(parents=True, exist_ok=True)
    temporary = str(place / f"{TEMPORARY}{uuid.uuid4().hex}")
    folder = os.open(place, os.O_RDONLY)
    try:
        nameless = _open_nameless(folder)
        named = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        handle = os.open(temporary, named, 0o666) if nameless is None else nameless
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
            # Only with a folder given does Python have a link in /proc followed to the open file.
            link = partial(os.link, src_dir_fd=folder)
            written = temporary if nameless is None else f"/proc/self/fd/{handle}"
            if replace:
                if nameless is not None:
                    link(written, temporary)
                os.replace(temporary, path)
            else:
                link(written, path)
        os.fsync(folder)
        return True
    except FileExistsError:
        return False
    finally:
        os.close(folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _open_nameless(folder: int) -> int | None:
    """A file in a folder that is gone when closed; None where there is no such thing (NFS)."""
    if sys.platform != "linux":
        return None
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def version_of(file: str | int) -> str:
    """Tells a file, by path or descriptor, from one that replaces it; empty if there is none.

    It is another inode or, where a freed one is used again, another time.
    """
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return ""
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Nobody else who asks is in here at the same time. On NFS as good as the server's locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
