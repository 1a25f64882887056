"""What is in a folder or a bucket: sorted, and in parts that can be listed side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from pipeline.storage import (
    StorageOptions,
    leads_nowhere,
    objects,
    open_filesystem,
    pages,
    path_of,
    protocol_of,
    uri_of,
)

THREADS = 16
_PARTS = 64
"""So many parts are looked for."""
_MOST_PARTS = 256
"""More are put together: each makes a file."""
_LEVELS = 4
"""In so many levels of folders."""
_WIDE = 1000
"""A folder with more in it is not taken apart."""
_PAGES = 10
"""Nor is one of a bucket with so many pages of objects and folders right in it."""

Entry = dict[str, Any]


class FileInfo(NamedTuple):
    """One listed object."""

    uri: str
    size: int | None
    etag: str | None
    mtime: datetime | None


Part = Callable[[], Iterator[FileInfo]]


def walk(uri: str, options: StorageOptions) -> Iterator[FileInfo]:
    """All files under a folder, sorted by path, with a page's or a folder's listing in memory.

    Hidden files and folders (a leading dot) are passed over. Links to folders are followed.
    """
    tree, protocol = _tree(uri, options)
    return (describe(entry, protocol) for entry in tree.below(tree.root))


def parts_of(uri: str, options: StorageOptions) -> list[Part]:
    """`walk` cut into parts, in order, that do not depend on each other.

    A part is a folder of one of the first levels, or the files between two of them.
    """
    tree, protocol = _tree(uri, options)
    pieces: list[_Folder | Entry] = [tree.root]
    with ThreadPoolExecutor(THREADS, "list") as pool:
        for _ in range(_LEVELS):
            closed = [p for p in pieces if isinstance(p, _Folder) and not p.whole]
            if not closed or len(pieces) >= _PARTS:
                break
            opened = dict(zip(closed, pool.map(tree.open, closed), strict=True))
            pieces = [
                inner
                for piece in pieces
                for inner in (opened.get(piece, [piece]) if isinstance(piece, _Folder) else [piece])
            ]
    together: list[list[_Folder | Entry]] = []
    for piece in pieces:
        if not together or isinstance(piece, _Folder) or isinstance(together[-1][0], _Folder):
            together.append([piece])
        else:
            together[-1].append(piece)
    each = -(-len(together) // _MOST_PARTS)
    return [
        partial(_part, tree, list(chain(*together[i : i + each])), protocol)
        for i in range(0, len(together), each or 1)
    ]


def describe(entry: Entry, protocol: str) -> FileInfo:
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


@dataclass(frozen=True)
class _Folder:
    """A folder's path, the folders on the way to it with links resolved, and whether it is to stay
    whole."""

    path: str
    above: tuple[str, ...] = ()
    whole: bool = False


class _Tree(Protocol):
    """Folders of one kind of storage."""

    root: _Folder

    def open(self, folder: _Folder) -> list[_Folder | Entry]:
        """What is right in a folder, in the order of `below`; the folder itself, marked as whole,
        where that is too much to hold."""
        ...

    def below(self, folder: _Folder) -> Iterator[Entry]:
        """All files under a folder, sorted."""
        ...


def _tree(uri: str, options: StorageOptions) -> tuple[_Tree, str]:
    fs, protocol, root = open_filesystem(uri, options), protocol_of(uri), path_of(uri)
    if protocol == "s3":
        return _Bucket(fs, root), protocol
    return (_LocalFolders if protocol == "file" else _Folders)(fs, root), protocol


def _part(tree: _Tree, pieces: Sequence[_Folder | Entry], protocol: str) -> Iterator[FileInfo]:
    for piece in pieces:
        for entry in tree.below(piece) if isinstance(piece, _Folder) else (piece,):
            yield describe(entry, protocol)


class _Bucket:
    """S3: a folder is a prefix that ends with a slash, or the empty one."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.bucket, folder, _ = fs.split_path(root)
        self.root = _Folder(f"{folder}/" if folder else "")

    def open(self, folder: _Folder) -> list[_Folder | Entry]:
        found: dict[bytes, _Folder | Entry] = {}
        request = {"Bucket": self.bucket, "Prefix": folder.path, "Delimiter": "/"}
        for number, page in enumerate(pages(self.fs, **request)):
            if number == _PAGES:
                return [_Folder(folder.path, whole=True)]
            for entry in objects(page, self.bucket):
                if self._is_shown(entry):
                    found[entry["Key"].encode()] = entry
            for prefix in (common["Prefix"] for common in page.get("CommonPrefixes", ())):
                if not self._is_hidden(prefix):
                    found[prefix.encode()] = _Folder(prefix)
        # S3 sorts by the bytes of UTF-8.
        return [found[key] for key in sorted(found)]

    def below(self, folder: _Folder) -> Iterator[Entry]:
        for page in pages(self.fs, Bucket=self.bucket, Prefix=folder.path):
            yield from filter(self._is_shown, objects(page, self.bucket))

    def _is_shown(self, entry: Entry) -> bool:
        marks_folder = entry["Key"].endswith("/") and not entry["size"]
        return not marks_folder and not self._is_hidden(entry["Key"])

    def _is_hidden(self, key: str) -> bool:
        return any(map(is_hidden, key.removeprefix(self.root.path).split("/")))


def is_hidden(name: str) -> bool:
    """A file or a folder: `.cache` is; `..`, which may stand in a key of S3, is like any other."""
    return name.startswith(".") and not name.startswith("..") and name not in (".", "./")


class _Folders:
    """Any other file system, with folders of its own."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = _Folder(root)

    def open(self, folder: _Folder) -> list[_Folder | Entry]:
        inner = list(islice(self._inner(folder), _WIDE + 1))
        return inner if len(inner) <= _WIDE else [replace(folder, whole=True)]

    def below(self, folder: _Folder) -> Iterator[Entry]:
        for piece in self._inner(folder):
            if isinstance(piece, _Folder):
                yield from self.below(piece)
            else:
                yield piece

    def _inner(self, folder: _Folder) -> Iterator[_Folder | Entry]:
        """What is right in a folder, sorted as paths: a folder's has a slash at the end."""
        root = folder.path.rstrip("/")
        found = {str(entry["name"]).rstrip("/"): entry for entry in self.fs.ls(folder.path)}
        names = {f"{n}/" if e["type"] == "directory" else n: n for n, e in found.items()}
        for key, name in sorted(names.items()):
            if name == root or is_hidden(name.rpartition("/")[2]):
                continue
            yield found[name] if key == name else _Folder(name)


class _LocalFolders(_Folders):
    """Folders of this machine: links are followed, and a file is looked at when its turn comes."""

    def _inner(self, folder: _Folder) -> Iterator[_Folder | Entry]:
        above = (*folder.above, os.path.realpath(folder.path))
        try:
            with os.scandir(folder.path) as found:
                names = {f"{e.name}/" if _is_folder(e) else e.name: e.is_symlink() for e in found}
        except FileNotFoundError:
            # It is gone since the folder above was listed.
            return
        for name, is_link in sorted(names.items()):
            path = os.path.join(folder.path, name.rstrip("/"))
            if is_hidden(name):
                continue
            if not name.endswith("/"):
                yield look(path)
            # A link to a folder on the way here is a loop.
            elif not (is_link and os.path.realpath(path) in above):
                yield _Folder(path, above)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere, or only to itself, is a file, of which a row says what is wrong.

    What cannot be looked at for another reason may be a folder full of pictures.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if leads_nowhere(error):
            return False
        raise


def look(path: str) -> Entry:
    """A local file as an entry; whatever is wrong with it, its row will say."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return {"name": path}
    return {"name": path, "size": found.st_size, "mtime": found.st_mtime}
