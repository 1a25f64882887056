"""One run per output: who holds the lock, who may take it over, and who notices."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import lock as module
from pipeline.errors import PosemillError
from pipeline.lock import Lock
from pipeline.storage import Output
from tests.pipeline.conftest import OPTIONS, Place

NAME = "_locks/1-of-1"


def make(output: Output, heartbeat_s: float = 30.0, stale_s: float = 0.6, **values: Any) -> Lock:
    waits: list[str] = values.pop("waits", [])
    partition = values.pop("partition", (0, 1))
    return Lock(output, partition, waits.append, heartbeat_s, stale_s, poll_s=0.05)


def document(output: Output) -> dict[str, Any]:
    data = output.read(NAME)
    assert data is not None
    return json.loads(data)  # type: ignore[no-any-return]


def plant(output: Output, **values: Any) -> None:
    """A lock of another run, by default on another machine."""
    foreign = {
        "run": "other",
        "host": "far-away",
        "boot": "another boot",
        "pid": 12,
        "process_start": "34",
        "started": "2026-01-01T00:00:00+00:00",
        "beats": 0,
    }
    output.replace(NAME, json.dumps(foreign | values).encode())


def dead_process() -> dict[str, Any]:
    """A process of this machine that is gone."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    here = {
        "boot": module._boot_id(),
        "pid": child.pid,
        "process_start": module._process_start(child.pid),
    }
    child.stdin.close()
    child.wait()
    assert here["process_start"] is not None
    return here


def test_a_second_run_is_refused_with_the_name_of_the_first(store: Place) -> None:
    with make(store.output()), pytest.raises(PosemillError) as caught, make(store.output()):
        pass
    assert f"process {os.getpid()} on" in str(caught.value)
    assert store.table_uri in str(caught.value)
    assert "give another --output" in str(caught.value)


def test_a_lock_is_gone_after_the_run(store: Place) -> None:
    with make(store.output()):
        assert store.names() == [f"out/{NAME}"]
    assert store.names() == []


def test_a_lock_is_gone_after_a_run_that_failed(store: Place) -> None:
    with pytest.raises(ZeroDivisionError), make(store.output()):
        _ = 1 / 0
    assert store.names() == []


def test_partitions_have_locks_of_their_own(store: Place) -> None:
    output = store.output()
    with make(output, partition=(0, 2)), make(output, partition=(1, 2)):
        assert store.names() == ["out/_locks/1-of-2", "out/_locks/2-of-2"]
        with pytest.raises(PosemillError, match="in use"), make(output, partition=(1, 2)):
            pass


@pytest.mark.parametrize("other", [(0, 1), (2, 3)])
def test_another_number_of_partitions_is_refused(store: Place, other: tuple[int, int]) -> None:
    """Shards 0 and 2 are those of 1/2, and shard 2 is also that of 3/3."""
    output = store.output()
    with make(output, partition=(0, 2)):
        with pytest.raises(PosemillError, match="in use"), make(output, partition=other):
            pass
        assert store.names() == ["out/_locks/1-of-2"]
    with make(output, partition=other):
        pass


def test_a_dead_run_of_another_number_of_partitions_is_cleared(store: Place) -> None:
    output = store.output()
    plant(output, **dead_process())
    with make(output, partition=(1, 2)):
        assert store.names() == ["out/_locks/2-of-2"]


def test_the_heart_beats_while_another_partitions_lock_is_watched(store: Place) -> None:
    """It looked dead meanwhile, and a third run took it over."""
    output = store.output()
    plant(output)

    def watch(_: str) -> None:
        deadline = time.monotonic() + 20
        while json.loads(output.read("_locks/2-of-2") or b"{}")["beats"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        output.remove(NAME)

    with Lock(output, (1, 2), watch, heartbeat_s=0.05, stale_s=60.0, poll_s=0.05) as lock:
        lock.check()


def test_who_took_over_meanwhile_keeps_the_lock(store: Place) -> None:
    output = store.output()
    plant(output)
    taken = json.dumps({"run": "third"}).encode()

    def watch(_: str) -> None:
        output.replace("_locks/2-of-2", taken)
        plant(output, beats=1)

    with pytest.raises(PosemillError, match="in use"), Lock(output, (1, 2), watch, poll_s=0.05):
        pass
    assert output.read("_locks/2-of-2") == taken


def test_a_heartbeat_never_overwrites_who_took_over(store: Place) -> None:
    """Between looking and writing somebody may take it over."""
    output = store.output()
    read = output.read_version

    def taken_over(name: str) -> tuple[bytes, str] | None:
        found = read(name)
        if found is not None and json.loads(found[0])["run"] != "other":
            plant(output)
        return found

    with make(output, heartbeat_s=0.05, stale_s=30.0) as lock:
        output.read_version = taken_over  # type: ignore[method-assign]
        deadline = time.monotonic() + 20
        while not lock.lost:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert document(output)["run"] == "other"


def test_a_dead_process_of_this_machine_is_taken_over_at_once(store: Place) -> None:
    output = store.output()
    plant(output, **dead_process())
    waits: list[str] = []
    with make(output, stale_s=3600.0, waits=waits) as lock:
        assert document(output)["run"] == lock.me["run"]
    assert waits == []


def test_a_process_with_the_same_number_is_not_the_same(store: Place) -> None:
    """Numbers are used again; the time of the start tells."""
    output = store.output()
    plant(output, boot=module._boot_id(), pid=os.getpid(), process_start="1")
    with make(output, stale_s=3600.0):
        pass


def test_a_zombie_is_gone() -> None:
    """A killed driver whose parent does not care held its lock for ever."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.close()
    deadline = time.monotonic() + 20
    while module._process_start(child.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert os.path.exists(f"/proc/{child.pid}")
    child.wait()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="another machine"),
        pytest.param({"boot": module._boot_id(), "process_start": None}, id="no way to tell"),
    ],
)
def test_a_foreign_lock_is_taken_over_once_it_has_been_still(
    store: Place, values: dict[str, Any]
) -> None:
    output = store.output()
    plant(output, **values)
    waits: list[str] = []
    started = time.monotonic()
    with make(output, stale_s=0.4, waits=waits) as lock:
        assert time.monotonic() - started >= 0.4
        assert document(output)["run"] == lock.me["run"]
    assert len(waits) == 1
    assert "locked by process 12 on far-away; watching it for up to 0.4 s" in waits[0]


def test_a_foreign_lock_that_beats_is_respected(store: Place) -> None:
    output = store.output()
    plant(output)

    def beat(_: str) -> None:
        plant(output, beats=1)

    lock = Lock(output, (0, 1), beat, stale_s=60.0, poll_s=0.05)
    with pytest.raises(PosemillError, match="process 12 on far-away"), lock:
        pass
    assert document(output)["beats"] == 1


def test_a_foreign_lock_that_is_released_is_not_waited_for(store: Place) -> None:
    output = store.output()
    plant(output)
    with Lock(output, (0, 1), lambda _: output.remove(NAME), stale_s=60.0, poll_s=0.05) as lock:
        assert document(output)["run"] == lock.me["run"]


@pytest.mark.parametrize("data", [b"", b"not json", b"[1]", b"{}"])
def test_a_damaged_lock_is_watched_as_a_foreign_one(store: Place, data: bytes) -> None:
    output = store.output()
    output.replace(NAME, data)
    waits: list[str] = []
    with make(output, stale_s=0.2, waits=waits):
        pass
    assert "process unknown on unknown" in waits[0]


def test_of_two_that_take_over_at_once_one_stays(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the dead one, and the later removes what the earlier has just created."""
    monkeypatch.setattr(module, "_SETTLE_S", 2.0)
    plant(store.output(), **dead_process())
    earlier = Lock(store.output(), (0, 1), print, poll_s=2.0)
    later = make(store.output())
    outcome: list[str] = []

    def start_earlier() -> None:
        try:
            with earlier:
                outcome.append("holds it")
        except PosemillError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=start_earlier)
    remove = later.output.remove

    def remove_after_the_earlier_has_created(name: str) -> None:
        if not thread.ident:
            thread.start()
            deadline = time.monotonic() + 20
            while (data := earlier.output.read(NAME)) is None or (
                json.loads(data)["run"] != earlier.me["run"]
            ):
                assert time.monotonic() < deadline
        remove(name)

    later.output.remove = remove_after_the_earlier_has_created  # type: ignore[method-assign]
    with later:
        thread.join()
        assert document(later.output)["run"] == later.me["run"]
    assert "in use by another run" in outcome[0]


def test_the_heart_beats(store: Place) -> None:
    output = store.output()
    with make(output, heartbeat_s=0.05, stale_s=30.0) as lock:
        deadline = time.monotonic() + 20
        while document(output)["beats"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lock.check()


def test_a_run_notices_that_it_lost_its_lock(store: Place) -> None:
    """It was suspended for longer than the lock lives, say."""
    output = store.output()
    with make(output, heartbeat_s=0.05, stale_s=30.0) as lock:
        lock.check()
        plant(output)
        deadline = time.monotonic() + 20
        while not lock.lost:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(PosemillError, match="another run took over"):
            lock.check()
    assert document(output)["run"] == "other"


def test_a_run_survives_storage_that_is_away_for_a_while(store: Place) -> None:
    """An exception in the heartbeat ended it for good, and the lock went stale under the run."""
    output = store.output()
    read = output.read_version

    def away(name: str) -> tuple[bytes, str] | None:
        raise PosemillError("cannot read: no route to host")

    with make(output, heartbeat_s=0.02, stale_s=30.0) as lock:
        output.read_version = away  # type: ignore[method-assign]
        time.sleep(0.2)
        output.read_version = read  # type: ignore[method-assign]
        beats = document(output)["beats"]
        deadline = time.monotonic() + 20
        while document(output)["beats"] <= beats:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lock.check()


def test_a_run_stops_once_its_lock_may_be_stale(store: Place) -> None:
    output = store.output()
    with make(output, heartbeat_s=0.02, stale_s=0.1) as lock:

        def away(name: str) -> tuple[bytes, str] | None:
            raise PosemillError("cannot read: no route to host")

        output.read_version = away  # type: ignore[method-assign]
        time.sleep(0.3)
        with pytest.raises(PosemillError, match=r"could not be reached for 0\.1 s"):
            lock.check()


def test_a_creation_whose_answer_was_lost_holds_the_lock(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is sent again, and finds the file that it made."""
    output = store.output()
    create = output.create

    def sent_twice(name: str, data: bytes) -> bool:
        create(name, data)
        return create(name, data)

    monkeypatch.setattr(output, "create", sent_twice)
    with make(output) as lock:
        assert document(output)["run"] == lock.me["run"]


def test_a_file_that_is_being_written_is_no_lock(tmp_path: Path) -> None:
    """The heartbeat of a partition beside this one has another name for an instant."""
    output = Output(f"{tmp_path}/out", OPTIONS)
    output.replace("_locks/.posemill-abc", b"{}")
    with make(output, partition=(1, 2)):
        pass


def test_the_last_of_several_partitions_knows_it(store: Place) -> None:
    output = store.output()
    with make(output, partition=(0, 2)) as one:
        assert one.is_last()
        with make(output, partition=(1, 2)) as two:
            assert not one.is_last()
            # The first one is at its end, and said so.
            assert two.is_last()
            assert one.is_last()


def test_who_died_is_not_waited_for(store: Place) -> None:
    output = store.output()
    with make(output, partition=(1, 2)) as lock:
        plant(output, **dead_process(), host="here")
        output.replace("_locks/1-of-2", output.read(NAME) or b"")
        output.remove(NAME)
        assert lock.is_last()
