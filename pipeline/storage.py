"""Where files are: URIs, file systems, conditional creation.

Inputs may be anything that fsspec reads. Outputs are local or S3, where a file can be created only
if it is not there yet: the commit rests on that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError
from fsspec.core import strip_protocol

from pipeline.errors import PosemillError, UsageError

STORAGE_ERRORS = (OSError, BotoCoreError)
"""What local disks and S3 raise when they cannot be reached, or refuse."""

_CREATE_ATTEMPTS = 5

_S3_RETRIES = {"mode": "standard", "total_max_attempts": 8}
"""Growing pauses with jitter, half a minute in all. s3fs adds some of its own, but not where a HEAD
is throttled, whose answer has no body to say so. botocore's adaptive mode slows the whole client
down: 300 small reads of which a tenth was answered SlowDown took 56 s with it, and 4 s so."""


@dataclass(frozen=True)
class StorageOptions:
    """How to reach S3. Credentials are never in here: they come from the environment or the
    instance."""

    endpoint: str | None = None
    anonymous: bool = False
    requester_pays: bool = False

    def for_protocol(self, protocol: str) -> dict[str, Any]:
        """Keyword arguments of the fsspec file system."""
        if protocol != "s3":
            return {}
        options: dict[str, Any] = {
            "anon": self.anonymous,
            "use_listings_cache": False,
            "config_kwargs": {"retries": dict(_S3_RETRIES)},
        }
        if self.endpoint:
            options["endpoint_url"] = self.endpoint
        if self.requester_pays:
            options["requester_pays"] = True
        return options


@dataclass(frozen=True)
class FileInfo:
    """One listed object."""

    uri: str
    size: int | None
    etag: str | None
    mtime: datetime | None


def protocol_of(uri: str) -> str:
    """`file` for paths and file:// URIs, else the scheme (`s3a` and `s3n` count as `s3`)."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return "file"
    return "s3" if scheme in ("s3a", "s3n") else scheme


def open_filesystem(uri: str, options: StorageOptions) -> fsspec.AbstractFileSystem:
    """The file system of a URI. Raises UsageError for an unknown scheme or a missing package."""
    protocol = protocol_of(uri)
    try:
        return fsspec.filesystem(protocol, **options.for_protocol(protocol))
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UsageError(f"cannot read {uri!r}: {error}") from error


def path_of(uri: str) -> str:
    """The path within its file system: absolute for local files, bucket/key for S3.

    Nothing is unescaped: `file:///a%20b` is the file `/a%20b`.
    """
    match protocol_of(uri):
        case "file":
            return os.path.abspath(uri.removeprefix("file://"))
        case "s3":
            return uri.partition("://")[2].rstrip("/")
        case _:
            return str(strip_protocol(uri))


def absolute(uri: str) -> str:
    """The same place for a process with another working directory."""
    return path_of(uri) if protocol_of(uri) == "file" else uri


def uri_of(protocol: str, path: str) -> str:
    """How an input is named in tables: a plain absolute path, or scheme://path."""
    if protocol == "file" or path.startswith(f"{protocol}://"):
        return path
    return f"{protocol}://{path}"


def walk(uri: str, options: StorageOptions) -> Iterator[FileInfo]:
    """All files under a folder, sorted by path, with one page or folder's listing in memory.

    Hidden files and folders (a leading dot) are passed over. Links to folders are followed.
    """
    fs, protocol, root = open_filesystem(uri, options), protocol_of(uri), path_of(uri)
    found = _walk_bucket(fs, root) if protocol == "s3" else _walk_folder(fs, root, ())
    return (describe(entry, protocol) for entry in found)


def _walk_bucket(fs: Any, root: str) -> Iterator[dict[str, Any]]:
    for entry in list_bucket(fs, root):
        below = str(entry["name"]).removeprefix(root).split("/")
        marks_folder = not below[-1] and not entry["size"]
        if not marks_folder and not any(part.startswith(".") for part in below):
            yield entry


def list_bucket(fs: Any, root: str) -> Iterator[dict[str, Any]]:
    """All objects under bucket/folder, sorted by key, page by page.

    S3 has no folders: only a flat listing also finds keys such as `a//b.jpg`.
    """
    bucket, folder, _ = fs.split_path(root)
    request = {"Bucket": bucket, "Prefix": f"{folder}/" if folder else ""}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for entry in page.get("Contents", ()):
            yield {**entry, "name": f"{bucket}/{entry['Key']}", "size": entry["Size"]}
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _walk_folder(fs: Any, folder: str, above: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """`above` are the folders on the way here, links resolved: a link to one of them is a loop."""
    above = (*above, os.path.realpath(folder))
    entries = {_sort_key(entry): entry for entry in fs.ls(folder, detail=True)}
    for key, entry in sorted(entries.items()):
        name = key.rstrip("/")
        if os.path.basename(name).startswith(".") or name == folder.rstrip("/"):
            continue
        if not key.endswith("/"):
            yield entry
        elif not (entry.get("islink") and os.path.realpath(name) in above):
            yield from _walk_folder(fs, name, above)


def _sort_key(entry: dict[str, Any]) -> str:
    """The path, with a slash at the end for folders, so that the whole walk is sorted by path."""
    name = str(entry["name"]).rstrip("/")
    is_folder = entry["type"] == "directory" or (entry.get("islink") and os.path.isdir(name))
    return f"{name}/" if is_folder else name


def describe(entry: dict[str, Any], protocol: str) -> FileInfo:
    """A listing entry of any fsspec file system."""
    modified = entry.get("LastModified") or entry.get("mtime") or entry.get("last_modified")
    if isinstance(modified, int | float):
        modified = datetime.fromtimestamp(modified, UTC)
    etag = entry.get("ETag") or entry.get("etag")
    return FileInfo(
        uri=uri_of(protocol, str(entry["name"])),
        size=entry.get("size"),
        etag=str(etag).strip('"') if etag else None,
        mtime=modified if isinstance(modified, datetime) else None,
    )


class Output:
    """The output folder: whole files only, some created under the condition that they are new.

    Raises PosemillError where the storage refuses, or cannot be reached after its own retries.
    """

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self.protocol = protocol_of(uri)
        if self.protocol not in ("file", "s3"):
            raise UsageError(
                f"output {uri!r}: only local folders and s3:// are supported, because a part must "
                "be created under the condition that it is new"
            )
        self.options = options
        self.root = path_of(uri).rstrip("/") or "/"
        self.fs = open_filesystem(uri, options)

    @property
    def uri(self) -> str:
        """The root as users write it."""
        return uri_of(self.protocol, self.root)

    def arrow_filesystem(self) -> pyarrow.fs.FileSystem:
        """The same storage for what wants a file system of Arrow; paths are those of `path`."""
        if self.protocol == "file":
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    def path(self, name: str) -> str:
        """Path of a file in the output, as the file system takes it."""
        return f"{self.root}/{name}"

    def create(self, name: str, data: bytes) -> bool:
        """Create a file whole, or return False if it is already there; never a part of a file.

        The only step that makes work count as done: S3's If-None-Match, or a hard link to a file
        that has been written and flushed to the disk.
        """
        with self._refusals("write", name):
            if self.protocol == "file":
                return _put(self.path(name), data)
            return self._create_object(self.path(name), data)

    def _create_object(self, path: str, data: bytes) -> bool:
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                # One request up to 5 GB: a multipart upload would not carry the condition to each
                # part.
                self.fs.pipe_file(path, data, mode="create", chunksize=5 << 30)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                code = s3_code(error)
                # s3fs knows only the answer of AWS, which names the condition.
                if code in ("PreconditionFailed", "412"):
                    return False
                # Somebody else is writing it at this moment.
                if code not in ("ConditionalRequestConflict", "409"):
                    raise
                time.sleep(0.1 * 2**attempt)
        raise OSError(f"another writer was in the way {_CREATE_ATTEMPTS} times")

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole, over an older one."""
        with self._refusals("write", name):
            if self.protocol == "file":
                _put(self.path(name), data, replace=True)
            else:
                self.fs.pipe_file(self.path(name), data, chunksize=5 << 30)

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None if there is none."""
        with self._refusals("read", name):
            try:
                return self.fs.cat_file(self.path(name))  # type: ignore[no-any-return]
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._refusals("remove", name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def list(self, folder: str) -> list[str]:
        """Names, relative to `folder`, of all files under it, sorted."""
        root = self.path(folder)
        with self._refusals("list", folder):
            if self.protocol == "s3":
                found = [str(entry["name"]) for entry in list_bucket(self.fs, root)]
            else:
                found = self.fs.find(root)
        return sorted(name[len(root) + 1 :] for name in found)

    @contextlib.contextmanager
    def _refusals(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except STORAGE_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise PosemillError(f"cannot {verb} {self.uri}/{name}: {reason}") from error


def s3_code(error: Exception) -> str | None:
    """The error code of S3's answer behind an exception of s3fs."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return None if code is None else str(code)


def _put(path: str, data: bytes, replace: bool = False) -> bool:
    """Write beside the target, flush, publish under its name; False if the name is taken.

    The file has no name before it is complete, where the system can do that: a process that is
    killed as it writes leaves nothing.
    """
    place = Path(path).parent
    place.mkdir(parents=True, exist_ok=True)
    temporary = str(place / f".posemill-{uuid.uuid4().hex}")
    folder = os.open(place, os.O_RDONLY)
    try:
        nameless = _open_nameless(folder)
        named = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        handle = os.open(temporary, named) if nameless is None else nameless
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(handle, 0o644)
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
        return os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o644, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise
