"""Which sample comes when, and who gets it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.order import epoch_order, share

GROUP_BYTES = 1000


def table(groups: int, rows_per_group: int) -> Any:
    """What `epoch_order` reads of a samples table."""
    starts = np.arange(groups + 1) * rows_per_group
    return SimpleNamespace(
        files=SimpleNamespace(starts=starts), group_bytes=np.full(groups, GROUP_BYTES)
    )


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 30),
    per_group=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    window=st.integers(1, 40 * GROUP_BYTES),
    data=st.data(),
)
def test_every_row_once(
    groups: int, per_group: int, seed: int, epoch: int, window: int, data: st.DataObject
) -> None:
    """Of those that are asked for: a split may be any part of the table."""
    total = groups * per_group
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1)))), np.int64)
    order = epoch_order(table(groups, per_group), chosen, seed, epoch, window)
    assert sorted(order.tolist()) == chosen.tolist()


def test_seed_and_epoch_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else does: no global random state, no earlier call."""
    rows = np.arange(60)
    first = {(s, e): epoch_order(table(6, 10), rows, s, e) for s in (0, 1) for e in (0, 1, 2)}
    np.random.seed(7)
    for (seed, epoch), order in reversed(first.items()):
        np.testing.assert_array_equal(epoch_order(table(6, 10), rows, seed, epoch), order)
    assert len({tuple(order.tolist()) for order in first.values()}) == 6


def test_a_small_table_is_shuffled_wholly() -> None:
    """Neighbours come from anywhere: row groups do not stay together."""
    order = epoch_order(table(10, 20), np.arange(200), seed=0, epoch=0)
    changes = np.count_nonzero(np.diff(order // 20))
    assert changes > 150


def test_a_large_table_is_read_in_pieces() -> None:
    """A reader that holds two windows reads each row group once, wherever the rows come."""
    groups, per_group, window = 40, 25, 5 * GROUP_BYTES
    order = epoch_order(table(groups, per_group), np.arange(groups * per_group), 3, 1, window)
    held: list[int] = []
    reads = 0
    for group in (order // per_group).tolist():
        if group in held:
            held.remove(group)
        else:
            reads += 1
        held = [*held, group][-2 * window // GROUP_BYTES :]
    assert reads == groups
    # Yet within a window they are mixed, and the windows are not those of the file.
    first = order[: 4 * per_group] // per_group
    assert len(set(first.tolist())) >= 4
    assert np.count_nonzero(np.diff(first)) > 50
    assert sorted(set(first.tolist())) != list(range(len(set(first.tolist()))))


def test_groups_without_a_row_of_the_split_do_not_matter() -> None:
    """They take no room in a window."""
    rows = np.arange(0, 1000, 100)  # one row in each tenth group of ten
    order = epoch_order(table(100, 10), rows, 0, 0, 10 * GROUP_BYTES)
    others = [epoch_order(table(100, 10), rows, 0, e, 10 * GROUP_BYTES) for e in range(20)]
    firsts = {int(o[0]) for o in (order, *others)}
    assert len(firsts) > 5


@settings(max_examples=100, deadline=None)
@given(
    world=st.integers(1, 5), spare=st.integers(0, 20), steps=st.integers(1, 8), rest=st.integers(0)
)
def test_shares_make_up_every_batch(world: int, spare: int, steps: int, rest: int) -> None:
    """Each row of a step on one worker, and the same rows however many workers there are."""
    batch = world + spare
    order = np.random.default_rng(0).permutation(steps * batch + rest % batch)
    for step in range(steps):
        shares = [share(order, step, batch, rank, world) for rank in range(world)]
        together = np.sort(np.concatenate(shares))
        np.testing.assert_array_equal(together, np.sort(share(order, step, batch, 0, 1)))
        sizes = [len(one) for one in shares]
        assert sum(sizes) == batch
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
    done = np.concatenate([share(order, step, batch, 0, 1) for step in range(steps)])
    np.testing.assert_array_equal(done, order[: steps * batch])
