"""Where files are: URIs, file systems, conditional creation.

Inputs may be anything that fsspec reads. Outputs are local or S3, where a file can be created only
if it is not there yet: the commit rests on that.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import strip_protocol

from pipeline.errors import UsageError


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
        options: dict[str, Any] = {"anon": self.anonymous, "use_listings_cache": False}
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
    except (ValueError, ImportError) as error:
        raise UsageError(f"cannot read {uri!r}: {error}") from error


def path_of(uri: str) -> str:
    """The path within its file system: absolute for local files, bucket/key for S3."""
    if protocol_of(uri) == "file":
        return os.path.abspath(uri.removeprefix("file://"))
    return str(strip_protocol(uri))


def uri_of(protocol: str, path: str) -> str:
    """How an input is named in tables: a plain absolute path, or scheme://path."""
    return path if protocol == "file" else f"{protocol}://{path}"


def walk(uri: str, options: StorageOptions) -> Iterator[FileInfo]:
    """All files under a folder, sorted by path within each folder, one folder's listing in memory
    at a time.

    Hidden files and folders (a leading dot) are passed over.
    """
    fs = open_filesystem(uri, options)
    protocol = protocol_of(uri)

    def visit(folder: str) -> Iterator[FileInfo]:
        entries = fs.ls(folder, detail=True, **({"refresh": True} if protocol == "s3" else {}))
        for entry in sorted(entries, key=lambda e: str(e["name"])):
            name = str(entry["name"]).rstrip("/")
            if os.path.basename(name).startswith(".") or name == folder.rstrip("/"):
                continue
            if entry["type"] == "directory":
                yield from visit(name)
            else:
                yield describe(entry, protocol)

    yield from visit(path_of(uri))


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
    """The output folder: whole files only, some created under the condition that they are new."""

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

    def path(self, name: str) -> str:
        """Path of a file in the output, as the file system takes it."""
        return f"{self.root}/{name}"

    def create(self, name: str, data: bytes) -> bool:
        """Create a file whole, or return False if it is already there; never a part of a file.

        The only step that makes work count as done: S3's If-None-Match, or a hard link to a file
        that has been written and flushed to the disk.
        """
        if self.protocol == "file":
            return _put(self.path(name), data, os.link)
        try:
            # One request up to 5 GB: a multipart upload would not carry the condition to each part.
            self.fs.pipe_file(self.path(name), data, mode="create", chunksize=5 << 30)
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole, over an older one."""
        if self.protocol == "file":
            _put(self.path(name), data, os.replace)
        else:
            self.fs.pipe_file(self.path(name), data, chunksize=5 << 30)

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None if there is none."""
        try:
            return self.fs.cat_file(self.path(name))  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def list(self, folder: str) -> list[str]:
        """Names, relative to `folder`, of all files under it."""
        root = self.path(folder)
        found = self.fs.find(root, **({"refresh": True} if self.protocol == "s3" else {}))
        return sorted(str(name)[len(root) + 1 :] for name in found)


def _put(path: str, data: bytes, publish: Callable[[str, str], None]) -> bool:
    """Write beside the target, flush, publish under its name; False if the name is taken."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".posemill-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        try:
            publish(temporary, path)
        except FileExistsError:
            return False
        _flush_folder(folder)
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
