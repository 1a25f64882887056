"""JSON lines and TensorBoard: what is kept, what a restart takes back, what reaches a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.training import logbook as module
from pipeline.training.logbook import EVENTS, LOG, Logbook
from tests.pipeline.conftest import Place


def start(step: int) -> dict[str, Any]:
    return {"kind": "start", "step": step, "epoch": step / 10, "workers": 1, "total_steps": 100}


def progress(step: int, **values: Any) -> dict[str, Any]:
    return {
        "kind": "progress",
        "step": step,
        "epoch": step / 10,
        "size": 128,
        "loss": [2.0 * step, 1.0 * step],
        "learning_rate": 0.001,
        "samples_per_second": 8.0,
        "seconds_per_step": 0.5,
        "wait_share": 0.02,
        **values,
    }


def epoch(step: int, *tune_pck: float) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "step": step,
        "epoch": step / 10,
        "size": 128,
        "tune_pck": list(tune_pck),
    }


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard would show."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def steps_of(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in records if "step" in record]


def test_records_are_kept_with_their_time(place: Place) -> None:
    """In order, and over starts."""
    with Logbook(place.output("run")) as book:
        book.rewind(0)
        book.write(start(0))
        book.write(progress(5))
        book.write({"kind": "bad_sample", "message": "sample ä: gone"})
    with Logbook(place.output("run")) as book:
        records = book.records()
        assert steps_of(records) == [("start", 0), ("progress", 5)]
        assert records[2]["message"] == "sample ä: gone"
        assert all(record.pop("time").endswith("+00:00") for record in records)
        assert records[1] == progress(5)
    assert [n for n in place.names() if n.endswith(LOG)] == [f"run/{LOG}"]


def test_a_new_run_has_no_records(store: Place) -> None:
    """Nor a file, before the first one."""
    with Logbook(store.output("run")) as book:
        assert book.records() == []
    assert store.names() == []


def test_scalars_reach_tensorboard(tmp_path: Path) -> None:
    """Losses and PCK by stage, rates, speed."""
    place = Place(str(tmp_path), str(tmp_path))
    with Logbook(place.output("run")) as book:
        book.rewind(0)
        taught = progress(9, hint_loss=0.5)
        for record in (start(0), progress(5), taught, epoch(10, 20.0, 40.0), epoch(20)):
            book.write(record)
    shown = events(tmp_path / "run" / EVENTS)
    assert sorted(shown.Tags()["scalars"]) == [
        "loss/hints",
        "loss/stage-1",
        "loss/stage-2",
        "train/learning_rate",
        "train/samples_per_second",
        "train/size",
        "train/wait_share",
        "tune-pck/stage-1",
        "tune-pck/stage-2",
    ]
    assert [(e.step, e.value) for e in shown.Scalars("loss/stage-1")] == [(5, 10.0), (9, 18.0)]
    assert [(e.step, e.value) for e in shown.Scalars("tune-pck/stage-2")] == [(10, 40.0)]


def test_pictures_reach_tensorboard_only(tmp_path: Path) -> None:
    """They are no JSON."""
    place = Place(str(tmp_path), str(tmp_path))
    with Logbook(place.output("run")) as book:
        book.rewind(0)
        picture = np.zeros((4, 6, 3), np.uint8)
        book.write({"kind": "picture", "tag": "belief/a", "step": 3, "picture": picture})
        assert book.records() == []
    (image,) = events(tmp_path / "run" / EVENTS).Images("belief/a")
    assert (image.step, image.width, image.height) == (3, 6, 4)


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (0, [("start", 0)]),
        (10, [("start", 0), ("progress", 5), ("progress", 10), ("epoch", 10)]),
        (99, [("start", 0), ("progress", 5), ("progress", 10), ("epoch", 10), ("progress", 15)]),
    ],
)
def test_a_restart_takes_back_what_came_after_its_checkpoint(
    store: Place, step: int, kept: list[tuple[str, int]]
) -> None:
    """By another driver, or by this one after a lost worker; what has no step stays."""
    records = [start(0), progress(5), progress(10), epoch(10, 50.0), progress(15)]
    with Logbook(store.output("run")) as book:
        book.rewind(0)
        for record in records:
            book.write(record)
        book.write({"kind": "lost_worker", "message": "worker 0"})
    with Logbook(store.output("run")) as book:
        for _ in range(2):
            book.rewind(step)
            assert steps_of(book.records()) == kept
            assert book.records()[-1]["kind"] == "lost_worker"


def test_tensorboard_forgets_with_it(tmp_path: Path) -> None:
    """The curve does not run back."""
    place = Place(str(tmp_path), str(tmp_path))
    with Logbook(place.output("run")) as book:
        book.rewind(0)
        for step in (5, 10, 15):
            book.write(progress(step))
        book.rewind(10)
        book.write(progress(14, loss=[-1.0, -1.0]))
    shown = events(tmp_path / "run" / EVENTS).Scalars("loss/stage-1")
    assert [(e.step, e.value) for e in shown] == [(5, 10.0), (10, 20.0), (14, -1.0)]


@pytest.mark.parametrize("cut", [1, 20, 2])
def test_a_line_that_a_kill_cut_short(store: Place, cut: int) -> None:
    """It is no record, and the next one does not stick to it."""
    output = store.output("run")
    lines = [json.dumps(record) + "\n" for record in (start(0), progress(5), progress(6))]
    output.replace(LOG, "".join(lines).encode()[:-cut])
    with Logbook(output) as book:
        whole = [("start", 0), ("progress", 5), *([("progress", 6)] if cut == 1 else [])]
        assert steps_of(book.records()) == whole
        book.rewind(6)
        book.write(start(6))
        assert steps_of(book.records()) == [*whole, ("start", 6)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Function: names of what was copied since the last call."""
    copied: list[str] = []
    real = module.Output.replace

    def replace(self: Any, name: str, data: bytes) -> None:
        copied.append(name)
        real(self, name, data)

    monkeypatch.setattr(module.Output, "replace", replace)

    def take() -> list[str]:
        taken, copied[:] = copied[:], []
        return taken

    return take


def test_a_bucket_is_kept_up_to_date(
    s3_place: Place, monkeypatch: pytest.MonkeyPatch, counted: Callable[[], list[str]]
) -> None:
    """Every five minutes by the clock, what changed; and everything at the end."""
    now = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    output = s3_place.output("run")
    with Logbook(output) as book:
        book.rewind(0)
        book.write(start(0))
        now = 299.0
        book.write(progress(1))
        assert counted() == [], "not yet"
        now = 300.0
        book.write(progress(2))
        first = counted()
        assert first[0] == LOG
        assert first[1].startswith(f"{EVENTS}/events.out.tfevents.")
        now = 599.0
        book.write(progress(3))
        book.write({"kind": "bad_sample", "message": "m"})
        assert counted() == [], "five minutes after the last time"
    assert counted() == first
    log = output.read(LOG)
    assert log is not None
    assert len(log.splitlines()) == 5
    assert sorted(s3_place.names()) == sorted(f"run/{name}" for name in first)


def test_what_did_not_change_is_not_copied(
    s3_place: Place, counted: Callable[[], list[str]]
) -> None:
    """A log of hours is large, and the end of a run comes right after an epoch's."""
    with Logbook(s3_place.output("run")) as book:
        book.write(start(0))
        book._sync()
        assert counted() == [LOG]
        book._sync()
        assert counted() == []
    assert counted() == []


def test_events_of_earlier_starts_stay_in_the_bucket(s3_place: Place, tmp_path: Path) -> None:
    """Each start has a file of its own; TensorBoard reads them as one."""
    output = s3_place.output("run")
    for begin, steps in ((0, (5, 10, 15)), (10, (12,))):
        with Logbook(output) as book:
            book.rewind(begin)
            for step in steps:
                book.write(progress(step, loss=[float(begin + step)]))
    files = output.list(EVENTS)
    assert len(files) == 2
    for name in files:
        data = output.read(f"{EVENTS}/{name}")
        assert data is not None
        (tmp_path / name).write_bytes(data)
    shown = events(tmp_path).Scalars("loss/stage-1")
    assert [(e.step, e.value) for e in shown] == [(5, 5.0), (10, 10.0), (12, 22.0)]
