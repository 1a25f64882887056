"""Which sample comes when: a function of (seed, epoch), however many workers there are."""

from __future__ import annotations

import numpy as np

from pipeline.samples import Rows, SampleTable

_WINDOW_BYTES = 128 << 20
_ORDER = 1
"""Keeps the shuffle's random numbers apart from those of the augmentation."""


def epoch_order(
    table: SampleTable, rows: Rows, seed: int, epoch: int, window_bytes: int = _WINDOW_BYTES
) -> Rows:
    """The rows in the order of one epoch.

    Row groups are shuffled, then the rows within windows of row groups that fit into a reader's
    memory: pictures are read in a few large pieces, and a small table is shuffled wholly.
    """
    rng = np.random.default_rng((seed, _ORDER, epoch))
    group_of = np.searchsorted(table.files.starts, rows, "right") - 1
    groups = rng.permutation(np.unique(group_of))
    window_of_group = np.zeros(len(table.group_bytes), np.int64)
    window_of_group[groups] = np.cumsum(table.group_bytes[groups]) // window_bytes
    # One sort: by window, at random within it.
    return rows[np.lexsort((rng.random(len(rows)), window_of_group[group_of]))]


def share(order: Rows, step: int, batch_size: int, rank: int, world: int) -> Rows:
    """The rows of one worker in a step of the epoch."""
    return order[step * batch_size : (step + 1) * batch_size][rank::world]
