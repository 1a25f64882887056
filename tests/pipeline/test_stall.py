"""What is told when nothing moves."""

from __future__ import annotations

from queue import Queue

from pipeline.stall import Note, Pulse, Watchdog

WAIT = 20.0


def test_a_pulse_knows_what_all_threads_are_at() -> None:
    pulse = Pulse("prepare")
    with pulse.at("unit 1"):
        with pulse.at("unit 2"):
            notes = pulse.notes()
        assert [note.what for note in pulse.notes()] == ["unit 1"]
    assert [(note.stage, note.what) for note in notes] == [
        ("prepare", "unit 1"),
        ("prepare", "unit 2"),
    ]
    assert notes[0].seconds >= notes[1].seconds >= 0
    assert pulse.notes() == []


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
