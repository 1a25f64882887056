"""Shards move through actors that die, fail and cannot start; none but the guilty is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayError, RuntimeEnvSetupError

from pipeline import flow as flow_module
from pipeline.errors import PosemillError
from pipeline.flow import Flow, Pool, StartError
from pipeline.layout import Layout, Operator
from pipeline.manifest import ShardRef
from pipeline.stall import Note
from tests.pipeline.flow_stages import (
    BROKEN,
    DEADLY,
    RUDE_ONCE,
    BornOnce,
    First,
    Last,
    Ledger,
    Patient,
    Second,
    Slow,
    Unborn,
)


@pytest.fixture(scope="module")
def connection() -> Iterator[None]:
    """A Ray of its own."""
    ray.init("local", num_cpus=2, num_gpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def refs(count: int) -> list[ShardRef]:
    return [ShardRef(shard, "f", 0, 1) for shard in range(count)]


def pool(stage: type, *arguments: Any, size: int = 1, at_once: int = 1, gpus: float = 0.0) -> Pool:
    """Actors as the executor makes them."""
    options: dict[str, Any] = {
        "num_cpus": 0.1,
        "num_gpus": gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": at_once,
        "concurrency_groups": {"notes": 1, "life": 1},
    }
    actor: Any = ray.remote(**options)(stage)
    return Pool(stage.__name__.lower(), size, partial(actor.remote, *arguments), at_once)


@pytest.fixture
def flow(connection: None) -> Iterator[Callable[..., Flow]]:
    """Makes flows, and ends their actors."""
    made: list[Flow] = []

    def make(*pools: Pool, ahead: int = 4) -> Flow:
        made.append(Flow(pools, ahead))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def workers(connection: None) -> Iterator[tuple[Flow, Any]]:
    """A flow with an actor a stage, and its ledger."""
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = Flow((pool(First, ledger), pool(Second, ledger), pool(Last, ledger)), 4)
    assert len(list(going.run(refs(1), True))) == 1
    yield going, ledger
    going.close()


@pytest.fixture
def one_each(workers: tuple[Flow, Any]) -> tuple[Flow, Any]:
    """`workers`, at rest, with an empty ledger: to start actors takes longer than the tests."""
    going, ledger = workers
    going.ahead = 4
    assert not any(member.calls for pool in going.pools for member in pool.members)
    assert not any(pool.waiting for pool in going.pools)
    ray.get(ledger.clear.remote())
    return workers


def test_only_guilty_shards_are_left_out(flow: Callable[..., Flow]) -> None:
    """One that kills its actor and one that fails are tried three times each; what waited beside
    them comes through, and what was lost by a death that does not happen again, too."""
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    pools = pool(First, ledger, size=2), pool(Second, ledger, size=2), pool(Last, ledger)
    going = flow(*pools)
    outcomes = list(going.run(refs(20), final=True))
    shards = sorted(outcome.shard for outcome in outcomes)
    assert shards == sorted(set(range(20)) - {DEADLY, BROKEN})
    events = ray.get(ledger.read.remote())
    assert events.count(("first", DEADLY)) == events.count(("first", BROKEN)) == 3
    assert events.count(("second", RUDE_ONCE)) == 2
    assert all(outcome.committed for outcome in outcomes)
    seconds = {"first": 0.5, "second": 0.25, "last": 0.125}
    assert all(outcome.summary.seconds == seconds for outcome in outcomes)
    # The same actors take the next lot.
    assert [o.committed for o in going.run(refs(3), final=False)] == [False] * 3


@pytest.mark.parametrize("news_first", [False, True])
def test_what_was_answered_before_a_death_is_seen_before_it(
    news_first: bool, one_each: tuple[Flow, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the deadly one looks as if it had only waited, and kills once more. The answer may also
    arrive after the news of the death."""
    going, ledger = one_each
    arrived, wait = going._arrived, ray.wait

    def late() -> list[Any]:
        for member in going.pools[0].members:
            if any(shard.ref.shard == DEADLY for shard in member.calls.values()):
                ray.wait([member.life])
        return arrived()

    def only_news(calls: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        over, under_way = wait(calls, **options)
        lives = {member.life for pool in going.pools for member in pool.members}
        deaths = [call for call in over if call in lives]
        return deaths or over, under_way

    monkeypatch.setattr(going, "_arrived", late)
    if news_first:
        monkeypatch.setattr(flow_module.ray, "wait", only_news)
    assert list(going.run([refs(20)[BROKEN], refs(20)[DEADLY]], final=True)) == []
    events = ray.get(ledger.read.remote())
    assert events.count(("first", DEADLY)) == events.count(("first", BROKEN)) == 3


def test_crops_are_held_of_so_many_shards_at_most(one_each: tuple[Flow, Any]) -> None:
    going, ledger = one_each
    going.ahead = 2
    held = [len(going._with_crops) for _ in going.run(refs(DEADLY), final=True)]
    assert len(held) == DEADLY
    assert max(held) <= 2
    events = ray.get(ledger.read.remote())
    ahead = 0
    for what, _shard in events:
        ahead += 1 if what == "first" else -1
        assert ahead <= 2 + 1  # One may have left the second stage before that is known.


def test_deadly_shards_alone_and_side_by_side_end_no_run(one_each: tuple[Flow, Any]) -> None:
    """One actor, several passes: it is replaced as often as it takes."""
    going, _ = one_each
    deadly = refs(DEADLY + 1)[-1]
    for lot, final in (([deadly, deadly], False), ([deadly], True)):
        assert list(going.run(lot, final)) == []
    assert [outcome.shard for outcome in going.run(refs(2), True)] == [0, 1]


def test_a_worker_that_dies_idle_costs_nobody(flow: Callable[..., Flow]) -> None:
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(First, ledger, size=2), pool(Second, ledger), pool(Last, ledger))
    before = list(going.pools[0].members)
    ray.get([member.started for member in before])  # One that had not would be replaced later only.
    assert len(list(going.run(refs(3), True))) == 3
    ray.kill(before[0].actor)
    ray.wait([before[0].life])
    assert len(list(going.run(refs(6), True))) == 6
    assert before[0] not in going.pools[0].members
    assert len(going.pools[0].members) == 2
    counts = [ray.get(ledger.read.remote()).count(("first", shard)) for shard in range(6)]
    assert counts == [2, 2, 2, 1, 1, 1]


def test_all_that_an_actor_works_at_are_charged(flow: Callable[..., Flow]) -> None:
    """With two at once nobody can tell which of them it died of; what waited is not charged."""
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(First, ledger, at_once=2), pool(Second, ledger), pool(Last, ledger))
    numbers = [shard for shard in range(DEADLY + 1) if shard != BROKEN]
    found = {outcome.shard for outcome in going.run([refs(20)[n] for n in numbers], True)}
    assert DEADLY not in found
    events = ray.get(ledger.read.remote())
    assert events.count(("first", DEADLY)) == 3


def test_a_worker_that_always_fails_is_replaced(one_each: tuple[Flow, Any]) -> None:
    going, _ = one_each
    before = list(going.pools[0].members)
    assert list(going.run([refs(20)[BROKEN]], True)) == []
    assert not set(before) & set(going.pools[0].members)
    assert len(list(going.run(refs(3), True))) == 3


@pytest.mark.parametrize("kind", [OutOfMemoryError, RuntimeEnvSetupError])
def test_a_death_by_any_name_is_a_death(
    kind: type[RayError], flow: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray has errors of their own for an actor killed for its memory, and for one without its
    environment."""
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(First, ledger), pool(Second, ledger), pool(Last, ledger))
    victim, get = going.pools[1].members[0], ray.get

    def failing(call: Any, **options: Any) -> Any:
        if call in (victim.started, *victim.calls):
            raise kind("as Ray says")
        return get(call, **options)

    monkeypatch.setattr(ray, "get", failing)
    assert len(list(going.run(refs(3), True))) == 3
    assert victim not in going.pools[1].members


@pytest.mark.parametrize(("times", "comes"), [(5, True), (1000, False)])
def test_crops_that_are_lost_with_a_node_are_made_again(
    times: int, comes: bool, one_each: tuple[Flow, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no failure of the shard's; but there is an end to it."""
    going, _ = one_each
    lost, get = [0], ray.get

    def failing(call: Any, **options: Any) -> Any:
        shards = [m.calls.get(call) for m in going.pools[1].members]
        if lost[0] < times and any(shard and shard.ref.shard == 1 for shard in shards):
            lost[0] += 1
            raise ObjectLostError("ff", "", "")
        return get(call, **options)

    monkeypatch.setattr(ray, "get", failing)
    found = {outcome.shard for outcome in going.run(refs(3), True)}
    assert found == ({0, 1, 2} if comes else {0, 2})
    assert lost[0] == min(times, 20)


def test_pools_grow_with_the_layout(
    flow: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "_LOOK_EVERY_S", 0.0)
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(First, ledger), pool(Second, ledger), pool(Last, ledger))
    operators = (Operator("p", 2, 0.1), Operator("e", 1, 0.1), Operator("c", 1, 0.1))
    going._look = lambda: Layout(*operators, 1, 1, "cpu", shards_ahead=3)
    assert len(list(going.run(refs(4), True))) == 4
    assert [len(pool.members) for pool in going.pools] == [2, 1, 1]
    assert going.ahead == 3


def test_small_shares_of_gpus_wait_for_the_large_ones(
    flow: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node joins: the preparers of all its GPUs went to one, where no estimator found room."""
    monkeypatch.setattr(flow_module, "_LOOK_EVERY_S", 0.0)
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    small, large = pool(First, ledger, gpus=0.25), pool(Second, ledger, gpus=0.75)
    small.beside = large
    going = flow(small, large, pool(Last, ledger))
    assert len(list(going.run(refs(2), True))) == 2
    operators = (Operator("p", 3, 0.1, 0.25), Operator("e", 3, 0.1, 0.75), Operator("c", 1, 0.1))
    going._look = lambda: Layout(*operators, 1, 1, "cuda", shards_ahead=3)
    while any(p.size < 3 or sum(m.node is not None for m in p.members) < 3 for p in (small, large)):
        assert len(list(going.run(refs(1), True))) == 1
        assert len(small.members) <= max(1, sum(m.node is not None for m in large.members))
    assert [len(p.members) for p in going.pools] == [3, 3, 1]


def test_small_shares_do_not_wait_for_what_never_comes(
    flow: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three estimators one finds a place: after a while, all preparers are made."""
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    small, large = pool(First, ledger), pool(Second, ledger)
    small.beside, small.size, large.size = large, 4, 2
    going = flow(small, large, pool(Last, ledger))
    missing = large.members[1]
    missing.node = None
    assert len(list(going.run(refs(2), True))) == 2
    missing.node = None
    large.members[0].node = "here"
    assert small.wanted() == 2
    monkeypatch.setattr(flow_module, "_PATIENCE_S", 0.0)
    assert small.wanted() == 4
    large.members[0].node = None
    assert small.wanted() == 1


@pytest.mark.parametrize(("how", "told"), [("raises", "no such device"), ("dies", "in a row")])
def test_workers_that_cannot_start_end_the_run(
    how: str, told: str, flow: Callable[..., Flow]
) -> None:
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(First, ledger), pool(Unborn, how), pool(Last, ledger))
    with pytest.raises(StartError, match=told) as error:
        list(going.run(refs(3), final=True))
    assert "run the same command again" in str(error.value)
    assert isinstance(error.value, PosemillError)


def test_a_run_whose_last_worker_cannot_come_back_ends(
    flow: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "_LOOK_EVERY_S", 0.0)
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(BornOnce, ledger), pool(Second, ledger), pool(Last, ledger))
    with pytest.raises(StartError, match="in a row"):
        list(going.run(refs(3), final=True))


def test_one_that_cannot_start_does_not_end_a_run_where_others_work(
    flow: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(flow_module, "_FAILED_STARTS_IN_A_ROW", 1)
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(Slow, ledger), pool(Second, ledger), pool(Last, ledger))
    ray.get(going.pools[0].members[0].started)
    going.pools[0].size = 2  # The second one is never born.
    assert len(list(going.run(refs(6), final=True))) == 6
    born = ray.get(ledger.read.remote()).count(("born", 0))
    assert born > 2


def test_notes_say_what_the_workers_are_at(flow: Callable[..., Flow]) -> None:
    ledger = Ledger.remote()  # type: ignore[attr-defined]
    going = flow(pool(Patient, ledger), pool(Second, ledger), pool(Last, ledger))
    notes: list[Note] = []
    going.pools[0].members[0].actor.shard.remote(refs(1)[0])
    for _ in range(600):
        going._take(going.pools[0].members[0].started) if going._calls else None
        if notes := going.notes():
            break
        threading.Event().wait(0.05)
    assert [(note.stage, note.what) for note in notes] == [("prepare", "shard 0")]
