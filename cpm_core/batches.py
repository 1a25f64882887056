"""As many at a time as a GPU's memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

log = logging.getLogger("posemill")

T = TypeVar("T")


class Batched(Protocol):
    """What takes at most `largest_batch` at a time."""

    largest_batch: int


def in_batches(
    owner: Batched, items: NDArray[Any], call: Callable[[NDArray[Any]], T]
) -> Iterator[T]:
    """`call` for one batch of items (N, ...) after the other.

    When a GPU runs out of memory, the batch of `owner` is halved for good. Raises
    torch.cuda.OutOfMemoryError where one item is too much.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + owner.largest_batch]
        try:
            done = call(batch)
        except torch.cuda.OutOfMemoryError:
            if owner.largest_batch == 1:
                raise
        else:
            start += len(batch)
            yield done
            continue
        # Out of the handler, as the exception holds what the batch has taken.
        owner.largest_batch //= 2
        torch.cuda.empty_cache()
        log.warning("GPU memory is short: going on with batches of %d", owner.largest_batch)


def padded(items: NDArray[np.uint8], sizes: tuple[int, ...]) -> NDArray[np.uint8]:
    """With the last item of (N, ...) repeated up to the next of the fixed batch sizes: few shapes,
    few plans."""
    target = min(size for size in sizes if size >= len(items))
    return np.concatenate([items, np.repeat(items[-1:], target - len(items), axis=0)])
