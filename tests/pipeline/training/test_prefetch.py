"""Items made ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.training import prefetch as module
from pipeline.training.prefetch import prefetched

WAIT_S = 20.0


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_all_items_in_order(depth: int, count: int) -> None:
    """However many there are."""
    assert list(prefetched(iter(range(count)), depth)) == list(range(count))
    assert not readers()


@pytest.mark.parametrize("item", [None, 0, False, ()])
def test_items_that_look_like_an_end(item: object) -> None:
    """They are none."""
    assert list(prefetched(iter([item, item]), 2)) == [item, item]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_error_comes_in_its_place(place: int) -> None:
    """After the items before it."""

    def items() -> Iterator[int]:
        yield from range(place)
        raise ValueError("no more")

    got: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        got.extend(prefetched(items(), 2))
    assert got == list(range(place))
    assert not readers()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_it_works_ahead_but_not_too_far(depth: int) -> None:
    """While the consumer holds an item, the next `depth` are made, and no more."""
    made: list[int] = []
    progress = threading.Condition()

    def items() -> Iterator[int]:
        for i in range(20):
            with progress:
                made.append(i)
                progress.notify_all()
            yield i

    ahead = prefetched(items(), depth)
    for held in range(5):
        assert next(ahead) == held
        with progress:
            # It is made without anybody asking; and at no time is there one more.
            assert progress.wait_for(lambda: len(made) == held + 1 + depth, WAIT_S)  # noqa: B023
    ahead.close()
    assert len(made) == 5 + depth


def test_closing_early_does_not_wait_for_what_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """One item may be under way; the iterator is not asked again."""
    asked = []
    under_way, go_on = threading.Event(), threading.Event()

    class Pool(ThreadPoolExecutor):
        """Lets the item that is under way end only once the pool is being shut."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            go_on.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)

    def items() -> Iterator[int]:
        for i in range(10):
            asked.append(i)
            if i == 1:
                under_way.set()
                assert go_on.wait(WAIT_S)
            yield i

    ahead = prefetched(items(), 4)
    assert next(ahead) == 0
    assert under_way.wait(WAIT_S)
    ahead.close()
    assert asked == [0, 1]
    assert not readers()


def test_an_iterator_is_not_touched_before_it_is_needed() -> None:
    """And closing one that was never started is nothing."""
    asked = []

    def items() -> Iterator[int]:
        asked.append(1)
        yield 1

    ahead = prefetched(items(), 2)
    ahead.close()
    assert asked == []
    assert not readers()
