"""What is told when nothing moves."""

from __future__ import annotations

import threading
from queue import Queue

from pipeline.stall import Board, Note, Pulse, Watchdog

WAIT = 20.0


def test_what_takes_long_is_pinned_and_taken_down() -> None:
    """The longest of what its threads are at."""
    told: Queue[tuple[str, Note | None]] = Queue()
    pulse = Pulse("prepare", lambda key, note: told.put((key, note)), look_every_s=0.05)
    with pulse.at("unit 1"), pulse.at("unit 2"):
        key, note = told.get(timeout=WAIT)
        assert note is not None
        assert (note.stage, note.what) == ("prepare", "unit 1")
        assert note.seconds >= 0.05
    while note is not None:
        again, note = told.get(timeout=WAIT)
        assert again == key


def test_what_is_quick_is_not_sent() -> None:
    told: Queue[Note | None] = Queue()
    pulse = Pulse("commit", lambda key, note: told.put(note), look_every_s=0.05)
    seen = threading.Event()
    for _ in range(20):
        with pulse.at("shard 1"):
            pass
        seen.wait(0.01)
    assert told.empty()


def test_a_board_has_the_longest_first() -> None:
    board = Board()
    board.pin("a", Note("prepare", "unit 1", 5.0))
    board.pin("b", Note("estimate", "shard 2", 50.0))
    board.pin("c", Note("commit", "shard 3", 1.0))
    board.pin("c", None)
    assert [note.what for note in board.notes()] == ["shard 2", "unit 1"]
    assert board.notes()[0].seconds >= 50.0


def test_a_watchdog_barks_when_nothing_moves_and_less_and_less() -> None:
    told: Queue[str] = Queue()
    with Watchdog(0.2, lambda: [Note("prepare", "unit 7", 99.0)], told.put) as watchdog:
        first, second = told.get(timeout=WAIT), told.get(timeout=WAIT)
        assert "the longest at work: prepare: unit 7 for 99 s" in first
        assert watchdog._patience >= 0.8
        watchdog.moved()
        assert watchdog._patience == 0.2
    assert second.startswith("no shard has come through for")


def test_a_watchdog_knows_when_nobody_is_at_work() -> None:
    told: Queue[str] = Queue()
    with Watchdog(0.1, list, told.put):
        assert "no stage is at anything" in told.get(timeout=WAIT)
