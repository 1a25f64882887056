"""The pictures behind the labels: fetched and looked at by several threads, kept in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.fetch import fetch
from pipeline.importing.near_duplicates import Thumbnail, thumbnail
from pipeline.importing.record import Labelled
from pipeline.importing.settings import ImportSettings
from pipeline.pictures import decode_picture

_LARGEST = 256 << 20
_THREADS = min(8, 2 * (os.cpu_count() or 1))

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Looked:
    """A picture that was fetched, or the reason why it cannot be used."""

    data: bytes = b""
    thumbnail: Thumbnail | None = None
    problem: str | None = None


def look(labelled: Labelled, settings: ImportSettings) -> Looked:
    """Fetch and decode a picture and see whether its labels are for it."""
    fetched = fetch_only(labelled, settings)
    if fetched.problem:
        return fetched
    try:
        picture = decode_picture(fetched.data, settings.max_pixels)
    except InputError as error:
        return Looked(problem=f"{error.code}: {error}")
    height, width = picture.shape[:2]
    if labelled.size and labelled.size != (width, height):
        # Most often an EXIF orientation that the annotators' tool did not know of.
        was = "{} x {}".format(*labelled.size)
        return Looked(problem=f"it is {width} x {height}, but its labels are for {was} pixels")
    return Looked(fetched.data, thumbnail(picture))


def fetch_only(labelled: Labelled, settings: ImportSettings) -> Looked:
    """The encoded picture as it is."""
    if labelled.problem:
        return Looked(problem=labelled.problem)
    if labelled.data is not None:
        return Looked(labelled.data)
    try:
        return Looked(fetch(labelled.uri, settings.storage, _LARGEST))
    except InputError as error:
        return Looked(problem=f"{error.code}: {error}")


def in_threads(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[tuple[In, Out]]:
    """Each item with its result, in order; a few of them are under way at any time."""
    pending: deque[tuple[In, Future[Out]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > 2 * _THREADS:
                    item, future = pending.popleft()
                    yield item, future.result()
            while pending:
                item, future = pending.popleft()
                yield item, future.result()
        finally:
            for _, future in pending:
                future.cancel()
