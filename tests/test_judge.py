"""When a run stops because too much fails, and which shards stay to do."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.annotate import Judge
from pipeline.errors import PosemillError
from pipeline.stages import Summary, out_of_reach


def shard(units: int, failed: int, code: str = "not_found") -> Summary:
    """Counts of a shard of which `failed` units failed."""
    return Summary(
        shards=1, units=units, failed_units=failed, failed=Counter({code: failed} if failed else {})
    )


def test_small_runs_are_not_judged() -> None:
    """199 failures may be bad luck."""
    Judge(0.5).add(shard(199, 199))


def test_too_many_failures_are_told_with_their_code() -> None:
    """At 200 units, more than half."""
    judge = Judge(0.5)
    judge.add(shard(100, 50))
    with pytest.raises(PosemillError, match=r"150 of the latest 200 units failed.*not_found, 150"):
        judge.add(shard(100, 100))


def test_exactly_the_limit_is_allowed() -> None:
    """Over the limit means over it."""
    Judge(0.5).add(shard(400, 200))


def test_a_good_beginning_does_not_hide_a_bad_end() -> None:
    """The latest units count, not all of them: credentials may expire after a million."""
    judge = Judge(0.5)
    for _ in range(1000):
        judge.add(shard(100, 0))
    judge.add(shard(100, 100))
    with pytest.raises(PosemillError, match="not_found"):
        judge.add(shard(100, 100))


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (shard(32, 32, "forbidden"), True),  # wrong credentials
        (shard(32, 17, "storage"), True),  # an outage
        (shard(32, 16, "storage"), False),  # half of it came through
        (shard(32, 32, "corrupt"), False),  # bad pictures are data
        (shard(1, 1, "forbidden"), True),
    ],
)
def test_shards_out_of_reach_are_not_committed(summary: Summary, expected: bool) -> None:
    """They stay to do, so that the same command does them once the storage answers."""
    assert out_of_reach(summary) is expected
