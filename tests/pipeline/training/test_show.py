"""What a person is told of a training run."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.training.show import Show


class Heard:
    """A reporter and a log book that remember."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.written: list[dict[str, Any]] = []
        self.rewound: list[int] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def write(self, record: dict[str, Any]) -> None:
        self.written.append(record)

    def rewind(self, step: int) -> None:
        self.rewound.append(step)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def show(heard: Heard) -> Show:
    return Show(heard, heard, 1000)  # type: ignore[arg-type]


PROGRESS = {
    "kind": "progress",
    "step": 400,
    "size": 128,
    "loss": [1.23456, 0.5],
    "samples_per_second": 20.04,
    "seconds_per_step": 0.2,
    "wait_share": 0.04,
}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"kind": "start", "step": 0, "workers": 2},
            "2 workers, 1000 steps, from the start",
        ),
        (
            PROGRESS | {"hint_loss": 0.75},
            "step 400 of 1000 (128 px): loss by stage 1.235 0.500, of hints 0.750, "
            "20.0 samples/s, 2 min 0 s left",
        ),
        (
            {"kind": "start", "step": 40, "workers": 1},
            "1 worker, 1000 steps, from step 40",
        ),
        (
            PROGRESS,
            # 600 steps at 0.2 s are two minutes.
            "step 400 of 1000 (128 px): loss by stage 1.235 0.500, 20.0 samples/s, 2 min 0 s left",
        ),
        ({**PROGRESS, "step": 1000, "seconds_per_step": 9}, "0 min 0 s left"),
        (
            {**PROGRESS, "wait_share": 0.256},
            "20.0 samples/s, 26% of the time waiting for samples, 2 min 0 s left",
        ),
        (
            {"kind": "epoch", "step": 80, "epoch": 3.0, "tune_pck": [1.04, 62.35]},
            "epoch 3 done; PCK on the tuning split by stage 1.0 62.4 %",
        ),
        (
            {"kind": "epoch", "step": 80, "epoch": 3.0, "tune_pck": []},
            "epoch 3 done; no split 'tune' to measure on",
        ),
        (
            {"kind": "lost_worker", "message": "worker 1: gone"},
            "lost worker 1: gone",
        ),
        ({"kind": "bad_sample", "message": "sample a: b"}, "left out: sample a: b"),
    ],
)
def test_what_is_said(show: Show, heard: Heard, record: dict[str, Any], said: str) -> None:
    """One line, and the whole record goes to the log book."""
    show.record(record)
    (line,) = heard.said
    assert line.endswith(said)
    assert heard.written == [record]


def test_pictures_are_not_talked_about(show: Show, heard: Heard) -> None:
    """They go to the log book."""
    record = {"kind": "picture", "step": 1, "tag": "t", "picture": None}
    show.record(record)
    assert heard.said == []
    assert heard.written == [record]


def test_a_start_rewinds_the_log_book_first(show: Show, heard: Heard) -> None:
    """Else the start would be forgotten with what came after it the first time."""
    order: list[str] = []
    heard.rewind = lambda step: order.append(f"rewind to {step}")  # type: ignore[assignment,misc]
    heard.write = lambda record: order.append("write")  # type: ignore[assignment,misc]
    show.record({"kind": "start", "step": 7, "workers": 1})
    assert order == ["rewind to 7", "write"]


def test_a_few_bad_samples_are_named(show: Show, heard: Heard) -> None:
    """All of them are in the log."""
    for i in range(12):
        show.record({"kind": "bad_sample", "message": f"sample {i}"})
    assert heard.said == [f"left out: sample {i}" for i in range(5)]
    assert len(heard.written) == 12


def test_stopping(show: Show, heard: Heard) -> None:
    """It is said that it takes a moment, and how to do without."""
    assert not show.stopping
    show.stop()
    assert show.stopping
    (line,) = heard.said
    assert "checkpoint" in line
    assert "once more" in line
