"""What a worker does between its first and last step, with Ray's part played in this process."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cpm_core.recipe import Phase
from cpm_core.teacher import TeacherSpec
from pipeline.errors import PosemillError, UsageError
from pipeline.training import loop as module
from pipeline.training.loop import Loop, read_state, train_worker
from tests.pipeline.training.fake_ray import RECIPE, FakeRay
from tests.pipeline.training.labelled import row, write_table
from tests.teacher_files import write_teacher


@dataclass
class Measured:
    """What the loop reads of a `Pck`."""

    total: float
    counted: int


def state_of(fake_ray: FakeRay) -> dict[str, Any]:
    assert fake_ray.checkpoint is not None
    return read_state(fake_ray.checkpoint)


def test_a_run_from_start_to_end(fake_ray: FakeRay, samples: str) -> None:
    """Twelve samples in batches of four, twice: a validation and a checkpoint per epoch."""
    fake_ray.loop(samples).run()
    board = fake_ray.board
    (start,) = board.of("start")
    assert (start["workers"], start["total_steps"], start["step"]) == (1, 6, 0)
    assert [(r["step"], r["epoch"]) for r in board.of("epoch")] == [(3, 1.0), (6, 2.0)]
    assert fake_ray.reported_steps == [3, 6]
    assert [r["tag"] for r in board.of("picture")] == [
        f"belief/sample-{i}" for i in (1, 2, 3, 4)
    ] * 2
    state = state_of(fake_ray)
    assert set(state) == {"model", "ema", "optimizer", "step_number", "best"}
    assert state["step_number"] == 6
    figures = [r["tune_pck"] for r in board.of("epoch")]
    best = max(figures, key=lambda by_stage: by_stage[-1])
    assert state["best"]["by_stage"] == best
    assert state["best"]["epoch"] == 1 + figures.index(best)


def test_progress_says_what_happened(fake_ray: FakeRay, samples: str) -> None:
    """Four samples between two looks, and ten seconds of waiting for them."""
    fake_ray.loop(samples).run()
    progress = fake_ray.board.of("progress")
    assert [r["step"] for r in progress] == [1, 2, 3, 4, 5, 6]
    for record in progress:
        assert record["samples_per_second"] == pytest.approx(4 / record["seconds_per_step"])
        assert record["wait_share"] == pytest.approx(10 / record["seconds_per_step"])
        assert len(record["loss"]) == 2
        assert record["size"] == 32
    assert progress[0]["learning_rate"] == RECIPE.learning_rate


def test_a_teacher_is_learned_from_and_left_behind(
    fake_ray: FakeRay, samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss stands beside the stages'; a stop in between changes no bit; its layer is in the
    checkpoint and not in the weights."""
    recipe = replace(RECIPE, teacher_weight=1.0)
    teacher = write_teacher(tmp_path)
    Loop(fake_ray.inputs(samples, recipe, teacher=teacher)).run()
    progress = fake_ray.board.of("progress")
    assert all(len(record["loss"]) == 2 for record in progress)
    hints = [record["hint_loss"] for record in progress]
    assert hints[0] == pytest.approx(1.0, abs=0.05)
    assert hints[-1] < hints[0]
    # Steps to train on, not those that are measured.
    assert {(len(s.rows), s.rows[0] < 12) for s in fake_ray.data_steps if s.hinted} == {(4, True)}
    assert [s.rows for s in fake_ray.data_steps if not s.hinted] == [[12, 13, 14, 15]] * 2
    whole = state_of(fake_ray)
    assert whole["regressor"]["weight"].shape == (3, 128, 1, 1)
    assert not any("regressor" in name for name in whole["ema"])

    other = FakeRay(tmp_path / "stopped").install(monkeypatch)
    other.board.stop_at_step = 4
    inputs = other.inputs(samples, recipe, teacher=teacher)
    Loop(inputs).run()
    other.board.stop_at_step = float("inf")
    Loop(inputs).run()
    assert_same(state_of(other), whole)


def test_a_node_without_the_teacher_s_file(fake_ray: FakeRay, samples: str, tmp_path: Path) -> None:
    """Ends the run with a word, as trying again would not help."""
    recipe = replace(RECIPE, teacher_weight=1.0)
    inputs = fake_ray.inputs(samples, recipe, teacher=TeacherSpec(f"{tmp_path}/t.onnx", "means"))
    with pytest.raises(PosemillError, match=r"t\.onnx: there is no such file.* \(on node .*every"):
        train_worker({"inputs": inputs})
    (told,) = fake_ray.board.of("failed")
    assert "every node must have the teacher" in told["message"]


@pytest.mark.parametrize(
    ("tick_s", "steps"),
    [
        (10.0, [1, 2, 3, 4, 5, 6]),  # slow steps: after each
        (1e-4, [1, 3, 6]),  # fast ones: in blocks, which an epoch's end cuts short
    ],
)
def test_workers_talk_every_few_seconds(
    fake_ray: FakeRay, samples: str, tick_s: float, steps: list[int]
) -> None:
    """Not after every step: an exchange costs more than a small step."""
    fake_ray.tick_s = tick_s
    fake_ray.loop(samples).run()
    assert [r["step"] for r in fake_ray.board.of("progress")] == steps


def test_a_stop_and_another_start_end_at_the_same_bits(
    fake_ray: FakeRay, samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch; weights, averages, optimiser and the best so far."""
    # The first epoch is the best one, in the run that is not stopped and in the one that is.
    figures = iter([60.0, 20.0] * 2)
    monkeypatch.setattr(module, "stage_pck", lambda *_: [Measured(next(figures), 8)] * 2)
    fake_ray.loop(samples).run()
    whole = state_of(fake_ray)

    other = FakeRay(tmp_path / "stopped").install(monkeypatch)
    other.board.stop_at_step = 4
    other.loop(samples).run()
    assert other.reported_steps == [3, 4]
    assert state_of(other)["step_number"] == 4
    other.board.stop_at_step = float("inf")
    other.loop(samples).run()
    assert [r["step"] for r in other.board.of("start")] == [0, 4]
    assert other.reported_steps == [3, 4, 6]
    assert_same(state_of(other), whole)


def assert_same(one: Any, other: Any, place: str = "state") -> None:
    """Equal to the last bit, dictionaries and lists gone through."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}/{i}")
    else:
        assert one == other, place


def test_a_checkpoint_is_written_when_preemption_is_announced(
    fake_ray: FakeRay, samples: str
) -> None:
    """Once for each node, at the next exchange; training goes on: the node may yet stay."""
    announced = {1: [], 2: ["a"], 3: ["a"], 4: ["a"], 5: ["a", "b"], 6: []}
    fake_ray.preempted_nodes = lambda: announced[len(fake_ray.board.of("progress"))]
    fake_ray.loop(samples).run()
    # 3 and 6 are the ends of epochs.
    assert fake_ray.reported_steps == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("checkpoint_s", "steps"),
    [
        (1e9, [3, 6]),  # at the ends of epochs
        (1.0, [1, 2, 3, 4, 5, 6]),  # always due
    ],
)
def test_checkpoints_by_the_clock(
    fake_ray: FakeRay, samples: str, checkpoint_s: float, steps: list[int]
) -> None:
    """`--checkpoint-minutes`."""
    fake_ray.loop(samples, checkpoint_s=checkpoint_s).run()
    assert fake_ray.reported_steps == steps


@pytest.mark.parametrize(
    ("due", "busy", "stop", "checkpoint"),
    [
        (0.0, 0.0, 0.0, False),
        (1.0, 0.0, 0.0, True),
        (1.0, 1.0, 0.0, False),  # the one before is still on its way
        (0.0, 1.0, 1.0, True),  # the last one is waited for
    ],
)
def test_a_follower_does_what_the_leader_wants(
    fake_ray: FakeRay,
    samples: str,
    monkeypatch: pytest.MonkeyPatch,
    due: float,
    busy: float,
    stop: float,
    checkpoint: bool,
) -> None:
    """The sums over workers decide, not a worker's own clock, nor its own view of the board."""
    fake_ray.rank, fake_ray.world = 1, 2
    follower = fake_ray.loop(samples, checkpoint_s=1.0)
    sent = []

    def sums(values: torch.Tensor) -> torch.Tensor:
        sent.append(values.tolist())
        leaders = [due, busy, 7.0, 2.0, 0.1, 0.5, 0.5] if len(values) == 7 else [stop]
        return values + torch.tensor(leaders)

    monkeypatch.setattr(module, "_over_workers", sums)
    batch = next(follower.feed.train(0))
    assert len(batch.crops) == 2
    assert follower._step(batch) is bool(stop)
    assert sent[0][:4] == [0.0, 0.0, 0.0, 2.0], "only the leader wants checkpoints and counts steps"
    assert sent[1] == [0.0]
    assert follower._steps_left == 7
    assert fake_ray.reported_steps == ([1] if checkpoint else [])
    assert fake_ray.checkpoint is None, "only the leader writes"
    assert not fake_ray.board.records, "only the leader talks to the driver"


def test_a_loss_that_is_not_finite_ends_the_run(fake_ray: FakeRay, samples: str) -> None:
    """With the step and what to do; the driver hears it, and no checkpoint keeps the damage."""
    inputs = fake_ray.inputs(samples)
    inputs.initial["stages.1.layers.0.out.bias"][:] = torch.nan
    with pytest.raises(PosemillError) as stopped:
        train_worker({"inputs": inputs})
    message = str(stopped.value)
    assert re.search(r"the loss is \[.*nan.*\] at step 1\b", message)
    assert "--learning-rate" in message
    assert "--name" in message
    assert fake_ray.board.of("failed") == [{"kind": "failed", "message": message}]
    assert fake_ray.reported_steps == []


def test_the_best_weights_are_kept(
    fake_ray: FakeRay, samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second of three epochs; a later one that is as good does not take its place."""
    figures = iter([20.0, 60.0, 60.0])

    def measured(*_: Any) -> list[Any]:
        value = next(figures)
        return [Measured(value - 5, 8), Measured(value, 8)]

    monkeypatch.setattr(module, "stage_pck", measured)
    worker = fake_ray.loop(samples, replace(RECIPE, epochs=3))
    averages = []
    validate = worker._validate

    def remembered() -> None:
        validate()
        averages.append({k: v.clone() for k, v in worker.fit.ema.state_dict().items()})

    monkeypatch.setattr(worker, "_validate", remembered)
    worker.run()
    best = state_of(fake_ray)["best"]
    assert (best["pck"], best["epoch"], best["size"]) == (pytest.approx(60.0), 2, 32)
    assert best["by_stage"] == pytest.approx([55.0, 60.0])
    assert_same(best["weights"], averages[1])


def test_tuning_figures_are_pooled_over_workers(
    fake_ray: FakeRay, samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the number of joints that counted, not as a mean of percentages."""
    monkeypatch.setattr(module, "stage_pck", lambda *_: [Measured(50.0, 4), Measured(75.0, 4)])
    other_worker = torch.tensor([[0.0, 16.0], [5.0, 16.0]], dtype=torch.float64)
    monkeypatch.setattr(module, "_over_workers", lambda values: values + other_worker)
    worker = fake_ray.loop(samples)
    worker.fit.step_number = 3
    worker._validate()
    (record,) = fake_ray.board.of("epoch")
    assert record["tune_pck"] == pytest.approx([100 * 2 / 20, 100 * 8 / 20])


@pytest.mark.parametrize("tune", [0, 1])
def test_without_enough_to_tune_on(fake_ray: FakeRay, tmp_path: Path, tune: int) -> None:
    """No tuning split, or one whose only sample has no torso to measure by."""
    unlabelled = {"labelled": [False] * 14}
    rows = [row(i) for i in range(8)] + [row(8 + i, "tune", **unlabelled) for i in range(tune)]
    fake_ray.loop(write_table(tmp_path / "few.parquet", rows)).run()
    assert [r["tune_pck"] for r in fake_ray.board.of("epoch")] == [[], []]
    assert state_of(fake_ray)["best"] is None


def test_samples_that_cannot_be_read_are_named_and_left_out(
    fake_ray: FakeRay, tmp_path: Path
) -> None:
    """In training, in tuning, and among those that are drawn."""
    rows = [row(i) for i in range(8)] + [row(8 + i, "tune") for i in range(4)]
    rows[3]["image"] = b"no picture"
    rows[8]["image"] = None
    rows[8]["uri"] = str(tmp_path / "gone.png")
    rows[10]["box"] = [5.0, 5.0, 0.0, 0.0]
    fake_ray.loop(write_table(tmp_path / "bad.parquet", rows)).run()
    named = {r["message"].partition(":")[0] for r in fake_ray.board.of("bad_sample")}
    assert named == {"sample figure-3.png", "sample figure-8.png", "sample figure-10.png"}
    assert state_of(fake_ray)["step_number"] == 4


def test_too_many_bad_samples_end_the_run(fake_ray: FakeRay, tmp_path: Path) -> None:
    """A table whose pictures have moved is a mistake, not noise."""
    rows = [row(i, image=None, uri=str(tmp_path / f"gone-{i}.png")) for i in range(24)]
    worker = fake_ray.loop(write_table(tmp_path / "bad.parquet", rows))
    with pytest.raises(PosemillError, match=r"20 of 20 samples cannot be read.*gone-"):
        worker.run()


def test_a_table_too_small_for_a_batch(fake_ray: FakeRay, tmp_path: Path) -> None:
    """It is said, with the setting that helps."""
    few = write_table(tmp_path / "few.parquet", [row(0), row(1), *(row(i, "tune") for i in (2, 3))])
    with pytest.raises(UsageError, match=r"2 samples in the split 'train'.*--batch-size \(4\)"):
        fake_ray.loop(few)


def test_crop_sizes_follow_the_phases(fake_ray: FakeRay, samples: str) -> None:
    """A step's size is that of its share of the run, whoever asks; validation has the last one."""
    recipe = replace(RECIPE, phases=(Phase(0, 64), Phase(0.5, 32)))
    fake_ray.loop(samples, recipe).run()
    assert [r["size"] for r in fake_ray.board.of("progress")] == [64, 64, 64, 32, 32, 32]
    assert [r["size"] for r in fake_ray.board.of("epoch")] == [64, 32]
    cut = sorted((step.epoch, step.size) for step in fake_ray.data_steps)
    # Tuning crops, which have no epoch, count as the first one's.
    assert cut == [(0, 32), *[(0, 64)] * 4, *[(1, 32)] * 3]


def test_a_worker_frees_the_thread_that_reads_ahead(fake_ray: FakeRay, samples: str) -> None:
    """Also when a step fails: a replaced worker must be able to end."""
    worker: Loop = fake_ray.loop(samples)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    worker.fit.step = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory") as failed:
        worker.run()
    # Whoever keeps the error keeps the worker's frames, and with them all that they read from.
    assert failed.value.__traceback__ is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
