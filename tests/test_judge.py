"""When a run stops because too much fails, and which shards stay to do."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.errors import PosemillError
from pipeline.judge import Judge
from pipeline.stages import Outcome, out_of_reach
from pipeline.summary import Summary


def shard(units: int, failed: int, code: str = "not_found") -> Summary:
    """Counts of a shard of which `failed` units failed."""
    return Summary(
        shards=1, units=units, failed_units=failed, failed=Counter({code: failed} if failed else {})
    )


def done(summary: Summary, committed: bool = True) -> Outcome:
    """The shard, as it came out of the stages."""
    return Outcome(0, summary, committed)


def test_small_runs_are_not_judged() -> None:
    """199 failures may be bad luck."""
    Judge(0.5).add(done(shard(199, 199)))


def test_too_many_failures_are_told_with_their_code() -> None:
    """At 200 units, more than half."""
    judge = Judge(0.5)
    judge.add(done(shard(100, 50)))
    with pytest.raises(PosemillError, match=r"150 of 200 units failed \(most: not_found, 150\)"):
        judge.add(done(shard(100, 100)))


def test_exactly_the_limit_is_allowed() -> None:
    """Over the limit means over it."""
    Judge(0.5).add(done(shard(400, 200)))


def test_a_folder_of_bad_pictures_does_not_stop_a_run() -> None:
    """Their share in the whole run is small."""
    judge = Judge(0.5)
    judge.add(done(shard(1000, 0)))
    for _ in range(5):
        judge.add(done(shard(100, 100, "corrupt")))


def test_credentials_that_expire_late_stop_a_run() -> None:
    """The latest units count, however many went well before; nothing of them was committed."""
    judge = Judge(0.5)
    for _ in range(1000):
        judge.add(done(shard(100, 0)))
    judge.add(done(shard(100, 100, "forbidden"), committed=False))
    with pytest.raises(PosemillError, match="forbidden, 200"):
        judge.add(done(shard(100, 100, "forbidden"), committed=False))


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


def test_failures_that_fail_again_do_not_stop_a_run() -> None:
    """`--retry-failed` of a thousand forbidden objects ends, and says so."""
    judge = Judge(0.5)
    for _ in range(10):
        judge.add(Outcome(0, shard(100, 100, "forbidden"), True, amended=True))
