"""What `--input` names: files, folders, globs and lists -> a stream of inputs."""

from __future__ import annotations

import fnmatch
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from posixpath import splitext
from typing import Any, NamedTuple

from pipeline.errors import UsageError
from pipeline.listing import FileInfo, describe, is_hidden, look, parts_of
from pipeline.lists import LIST_SUFFIXES, Boxes, read_list
from pipeline.storage import (
    STORAGE_ERRORS,
    StorageOptions,
    check_uri,
    open_filesystem,
    path_of,
    protocol_of,
    uri_of,
)
from pipeline.units import PICTURE_SUFFIXES, VIDEO_SUFFIXES, GivenBox

_MAGIC = "*?["
"""What makes a name a pattern."""
_MEDIA_SUFFIXES = PICTURE_SUFFIXES | VIDEO_SUFFIXES


class Input(NamedTuple):
    """One picture or video, before it is planned; a tuple, as millions are listed.

    With `bad_name`, the file's name is not UTF-8, and `uri` is a readable substitute.
    """

    uri: str
    kind: str
    size: int | None = None
    etag: str | None = None
    mtime: datetime | None = None
    boxes: tuple[GivenBox, ...] | None = None
    bad_name: bool = False


class Passed:
    """Files in folders that are neither pictures nor videos by their name; listed by threads."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def note(self, uri: str) -> None:
        """Count one. Examples are for a terminal: what would not show there is escaped."""
        with self._lock:
            self.count += 1
            if len(self.examples) < 3:
                self.examples = (*self.examples, uri if uri.isprintable() else ascii(uri))


@dataclass(frozen=True)
class Named:
    """What an `--input` names, in parts that may be listed side by side.

    `root` is its URI where it is a folder; whatever is planned under it should be in the listing.
    """

    parts: list[Callable[[], Iterator[Input]]]
    root: str | None = None


def named(name: str, options: StorageOptions, boxes: Boxes | None, passed: Passed) -> Named:
    """Look up an `--input`. Raises UsageError for one that does not exist or cannot be read.

    `boxes` are those of `--boxes`, by URI; they win over box columns of a list.
    """
    found = _Source(check_uri(name), options, passed).cut()
    if boxes is None:
        return found
    return Named([partial(_with_boxes, part, boxes) for part in found.parts], found.root)


def _with_boxes(part: Callable[[], Iterator[Input]], boxes: Boxes) -> Iterator[Input]:
    return (item._replace(boxes=boxes.get(item.uri, ())) for item in part())


class _Source:
    """One `--input`: a folder, a glob, a list or a file."""

    def __init__(self, name: str, options: StorageOptions, passed: Passed) -> None:
        self.name, self.options, self.passed = name, options, passed
        self.fs, self.protocol = open_filesystem(name, options), protocol_of(name)
        self.path = path_of(name)

    def cut(self) -> Named:
        with self._refusals():
            entry = _entry(self.fs, self.path)
            if entry is None and any(c in self.name for c in _MAGIC):
                return Named([self._part(partial(self._known, self._matches()))])
            if entry is None:
                raise UsageError(f"no such input: {self.name!r}")
            if entry["type"] == "directory":
                parts = parts_of(self.name, self.options)
                known = [self._part(partial(self._known, part)) for part in parts]
                return Named(known, uri_of(self.protocol, self.path))
            if self.name.lower().endswith(LIST_SUFFIXES):
                # What is wrong with a list shows at its head.
                next(read_list(self.name, self.options), None)
                return Named([self._part(self._listed)])
            return Named([lambda: iter([_input(describe(entry, self.protocol))])])

    def _part(self, make: Callable[[], Iterator[Input]]) -> Callable[[], Iterator[Input]]:
        def part() -> Iterator[Input]:
            with self._refusals():
                yield from make()

        return part

    def _matches(self) -> Callable[[], Iterator[FileInfo]]:
        found = self.fs.glob(self.path, detail=True)
        is_shown = _shown_by(self.path)
        files = [k for k in sorted(found) if found[k]["type"] != "directory" and is_shown(k)]
        if not files:
            raise UsageError(f"no file matches {self.name!r}")
        # fsspec says of a link when it was made, not what it leads to.
        entry = look if self.protocol == "file" else found.__getitem__
        return lambda: (describe(entry(key), self.protocol) for key in files)

    def _listed(self) -> Iterator[Input]:
        for uri, boxes in read_list(self.name, self.options):
            yield _listed(uri, boxes)

    def _known(self, listing: Callable[[], Iterator[FileInfo]]) -> Iterator[Input]:
        for file in listing():
            if suffix_of(file.uri) in _MEDIA_SUFFIXES:
                yield _input(file)
            else:
                self.passed.note(file.uri)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except STORAGE_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise UsageError(f"cannot list {self.name!r}: {reason}") from error


def _shown_by(pattern: str) -> Callable[[str], bool]:
    """Whether a match is as good as named by the pattern: not hidden, nor in a hidden folder.

    A part of the pattern with a dot in front names what is hidden, as in a shell.
    """
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in _MAGIC))
    dotted = [part for part in parts[fixed:] if part.startswith(".")]

    def is_shown(key: str) -> bool:
        hidden = filter(is_hidden, key.split("/")[fixed:])
        return all(any(fnmatch.fnmatchcase(name, part) for part in dotted) for name in hidden)

    return is_shown


def _entry(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        return fs.info(path)  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return None


def _input(file: FileInfo) -> Input:
    uri = file.uri.encode("utf-8", "backslashreplace").decode()
    return Input(uri, kind_of(uri), file.size, file.etag, file.mtime, bad_name=uri != file.uri)


def suffix_of(uri: str) -> str:
    """Lower-case suffix of a URI's path."""
    path = uri.partition("?")[0] if protocol_of(uri) in ("http", "https") else uri
    return splitext(path.rstrip("/"))[1].lower()


def kind_of(uri: str) -> str:
    """`video` by its suffix, else `image`; what it really is shows when it is decoded."""
    return "video" if suffix_of(uri) in VIDEO_SUFFIXES else "image"


def _listed(uri: str, boxes: tuple[GivenBox, ...] | None) -> Input:
    """A listed input. Only of a local file is it cheap to see what it is like."""
    if protocol_of(uri) != "file":
        return Input(uri, kind_of(uri), boxes=boxes)
    found = describe(look(uri), "file")
    return Input(uri, kind_of(uri), found.size, None, found.mtime, boxes)


@dataclass(frozen=True)
class Selection:
    """Which inputs are planned; see the settings of the same names."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sample: float | None = None

    def wants(self, uri: str) -> bool:
        """Whether an input is selected, by its URI alone."""
        if self.include and not any(fnmatch.fnmatchcase(uri, p) for p in self.include):
            return False
        if any(fnmatch.fnmatchcase(uri, p) for p in self.exclude):
            return False
        return self.sample is None or _share(uri) < self.sample


def _share(uri: str) -> float:
    digest = hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
