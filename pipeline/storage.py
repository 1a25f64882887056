"""Where files are: URIs, file systems, conditional creation.

Inputs may be anything that fsspec reads. Outputs are local or S3, where a file can be created only
if it is not there yet: the commit rests on that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import fsspec
import fsspec.asyn
import pyarrow.fs
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError
from fsspec.core import strip_protocol

from pipeline.errors import PosemillError, RefusedError, UsageError
from pipeline.local_files import folder_lock, is_temporary, put, version_of

T = TypeVar("T")

STORAGE_ERRORS = (OSError, BotoCoreError, ClientError)
"""What local disks and S3 raise when they cannot be reached, or refuse."""

_NOWHERE = (errno.ELOOP, errno.ENOTDIR)

_CREATE_ATTEMPTS = 5
_READ_ATTEMPTS = 5
_CONFLICTS = ("ConditionalRequestConflict", "409")

_S3_RETRIES = {"mode": "standard", "total_max_attempts": 8}
"""Growing pauses with jitter, half a minute in all. s3fs adds some of its own, but not where a HEAD
is throttled, whose answer has no body to say so. botocore's adaptive mode slows the whole client
down: 300 small reads of which a tenth was answered SlowDown took 56 s with it, and 4 s so."""

_CONNECT_ATTEMPTS = 3
_CONNECT_S = 5.0


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


def endpoint_of_environment() -> str | None:
    """The S3 server that this process would talk to; a cluster's workers have other variables."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def check_endpoint(url: str) -> None:
    """Connect to the S3 server at `url` once, before its client tries each request for minutes.

    Raises UsageError for what is no URL of a server, PosemillError where nothing answers. Behind a
    proxy nothing is tried.
    """
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        host, port = parts.hostname, parts.port or usual
    except (KeyError, ValueError):
        host = None
    if not host:
        raise UsageError(f"the S3 endpoint {url} is no URL: give one as http://host:9000")
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    for attempt in range(_CONNECT_ATTEMPTS):
        time.sleep(attempt)
        try:
            socket.create_connection((host, port), _CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
        except UnicodeError as error:
            raise UsageError(f"the S3 endpoint {url} is no URL: {error}") from error
        else:
            return
    raise PosemillError(
        f"cannot reach the S3 server at {url}: {reason}; check the address and that it runs, then "
        "run the same again"
    )


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


def check_uri(uri: str) -> str:
    """`uri`, which will stand in tables and run files. Raises UsageError if it has a password."""
    user, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise UsageError(f"{uri} holds a password: give credentials in another way")
    return uri


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


def leads_nowhere(error: Exception) -> bool:
    """Whether a link on the way to a local file leads to itself, or through a file."""
    return isinstance(error, OSError) and error.errno in _NOWHERE


def absolute(uri: str) -> str:
    """The same place for a process with another working directory."""
    return path_of(uri) if protocol_of(uri) == "file" else uri


def uri_of(protocol: str, path: str) -> str:
    """How an input is named in tables: a plain absolute path, or scheme://path."""
    if protocol == "file" or path.startswith(f"{protocol}://"):
        return path
    return f"{protocol}://{path}"


def list_bucket(fs: Any, root: str) -> Iterator[dict[str, Any]]:
    """All objects under bucket/folder, sorted by key, page by page.

    S3 has no folders: only a flat listing also finds keys such as `a//b.jpg`.
    """
    bucket, folder, _ = fs.split_path(root)
    for page in pages(fs, Bucket=bucket, Prefix=f"{folder}/" if folder else ""):
        yield from objects(page, bucket)


def pages(fs: Any, **request: str) -> Iterator[dict[str, Any]]:
    """The answers of S3 to a listing."""
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        yield page
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def objects(page: dict[str, Any], bucket: str) -> Iterator[dict[str, Any]]:
    """A page's objects as entries of fsspec."""
    for entry in page.get("Contents", ()):
        yield {**entry, "name": f"{bucket}/{entry['Key']}", "size": entry["Size"]}


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
                return put(self.path(name), data)
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
                if code not in _CONFLICTS:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise OSError(f"another writer was in the way {_CREATE_ATTEMPTS} times")

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole, over an older one."""
        with self._refusals("write", name):
            if self.protocol == "file":
                put(self.path(name), data, replace=True)
            else:
                self.fs.pipe_file(self.path(name), data, chunksize=5 << 30)

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        """Write a file whole over the one that `read_version` found; False if that has changed.

        S3's If-Match; on a disk a lock on the folder, which all who write in this way take.
        """
        with self._refusals("write", name):
            if self.protocol == "s3":
                return self._replace_object(self.path(name), data, version)
            path = self.path(name)
            with folder_lock(os.path.dirname(path)):
                if version_of(path) != version:
                    return False
                return put(path, data, replace=True)

    def _replace_object(self, path: str, data: bytes, version: str) -> bool:
        bucket, key, _ = self.fs.split_path(path)
        try:
            self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=version)
        except OSError as error:
            if s3_code(error) in ("PreconditionFailed", "412", "NoSuchKey", "404", *_CONFLICTS):
                return False
            raise
        return True

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """The file's bytes and what tells them from later ones (ETag, or inode and time); None if
        there is no file."""
        with self._refusals("read", name), contextlib.suppress(FileNotFoundError):
            path = self.path(name)
            if self.protocol == "s3":
                return until_whole(lambda: self._read_object(path))
            with open(path, "rb") as file:
                return file.read(), version_of(file.fileno())
        return None

    def _read_object(self, path: str) -> tuple[bytes, str]:
        bucket, key, _ = self.fs.split_path(path)
        answer = self.fs.call_s3("get_object", Bucket=bucket, Key=key)
        return fsspec.asyn.sync(self.fs.loop, answer["Body"].read), answer["ETag"]

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None if there is none."""
        with self._refusals("read", name):
            try:
                data: bytes = until_whole(lambda: self.fs.cat_file(self.path(name)))
                return data
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._refusals("remove", name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def list(self, folder: str) -> Sequence[str]:
        """Names, relative to `folder`, of all files under it that are whole, sorted."""
        return [name for name, _ in self._entries(folder)]

    def temporaries(self) -> Sequence[str]:
        """Names of all files that a killed process was writing: only a disk has such."""
        if self.protocol == "s3":
            return []
        with self._refusals("list", ""):
            names = (str(name)[len(self.root) + 1 :] for name in self.fs.find(self.root))
            return sorted(filter(is_temporary, names))

    def times(self, folder: str) -> dict[str, datetime]:
        """As `list`, with the time when each file was written."""
        found = {}
        for name, entry in self._entries(folder):
            moment = entry.get("LastModified") or entry["mtime"]
            is_number = isinstance(moment, int | float)
            found[name] = datetime.fromtimestamp(moment, UTC) if is_number else moment
        return found

    def is_empty(self) -> bool:
        """Whether there is nothing at all in it."""
        with self._refusals("list", ""):
            if self.protocol == "s3":
                return next(list_bucket(self.fs, self.root), None) is None
            return not os.path.isdir(self.root) or not os.listdir(self.root)

    def _entries(self, folder: str) -> Sequence[tuple[str, dict[str, Any]]]:
        """Names and entries of fsspec; what is being written at this moment is not there yet."""
        root = self.path(folder)
        with self._refusals("list", folder):
            if self.protocol == "s3":
                listed = [*list_bucket(self.fs, root)]
            else:
                listed = [*self.fs.find(root, detail=True).values()]
        found = [(str(entry["name"])[len(root) + 1 :], entry) for entry in listed]
        return sorted((e for e in found if not is_temporary(e[0])), key=lambda e: e[0])

    @contextlib.contextmanager
    def _refusals(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except STORAGE_ERRORS as error:
            reason = str(error) or type(error).__name__
            kind = RefusedError if _is_final(error) else PosemillError
            raise kind(f"cannot {verb} {self.uri}/{name}: {reason}") from error


def _is_final(error: Exception) -> bool:
    """Whether to ask again is in vain, until somebody makes room or gives the right."""
    return isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError) or (
        getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    )


def until_whole(read: Callable[[], T]) -> T:
    """What `read` returns, tried again with growing pauses when a body of S3 breaks off.

    s3fs does so, too, but gives up within a second.
    """
    for attempt in range(_READ_ATTEMPTS):
        try:
            return read()
        except ClientError as error:
            last = error
        time.sleep(random.uniform(0.5, 1.5) * 0.2 * 2**attempt)
    raise OSError(f"broke off {_READ_ATTEMPTS} times, last with: {last!r}") from last


def s3_code(error: Exception) -> str | None:
    """The error code of S3's answer behind an exception of s3fs."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return None if code is None else str(code)
