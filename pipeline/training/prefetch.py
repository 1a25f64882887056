"""A few items ahead of their consumer, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """The items, made up to `depth` ahead, also while the consumer does something else.

    What the iterator raises is raised to the consumer, in its place.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    end = object()
    try:
        ahead = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
