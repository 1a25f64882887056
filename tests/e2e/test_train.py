"""Train, stop, continue, evaluate, annotate: all the way from labelled pictures to a table."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cpm_core.skeleton import load_skeleton
from cpm_core.weights import load_weights
from tests.e2e.conftest import Job, draw_figure
from tests.e2e.labelled import PLACES, SKELETON_FILE
from tests.e2e.test_annotate import read_table
from tests.e2e.test_faults import running
from tests.e2e.test_train_faults import EXACT, QUICK, final_weights, records, wait_for
from tests.teacher_files import write_teacher

PEOPLE = 48


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder of labelled figures in the JSON form that `posemill import` reads."""
    folder = tmp_path / "labelled"
    (folder / "images").mkdir(parents=True)
    skeleton = load_skeleton("lsp14")
    rng = np.random.default_rng(0)
    images = []
    for i in range(PEOPLE):
        cv2.imwrite(str(folder / "images" / f"{i}.jpg"), draw_figure(i))
        points = np.column_stack([rng.uniform([5, 5], [90, 120], (14, 2)), np.ones(14)])
        images.append({"file": f"{i}.jpg", "keypoints": points.tolist()})
    document = {"split": "train", "joint_names": list(skeleton.keypoints), "images": images}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


@pytest.mark.timeout(600)
def test_from_labels_to_table(
    tmp_path: Path, labelled: Path, photos: Path, posemill: Job, posemill_alone: Job
) -> None:
    """Ctrl-C writes a checkpoint; a second start meanwhile is told who holds the run; the same
    command continues, and again to more epochs; evaluate and annotate read what comes out."""
    samples, run = tmp_path / "samples.parquet", tmp_path / "runs" / "tiny"
    imported = posemill("import", "json", str(labelled), str(samples), "--tune-share", "0.2")
    assert imported.returncode == 0, imported.stderr
    assert f"{PEOPLE} samples" in imported.stdout

    command = ["train", "--samples", str(samples), "--output", str(run.parent), "--name", "tiny"]
    command += [*QUICK, "--licence", "mine", "--epochs"]
    with running([*command, "60"]) as process:
        wait_for(lambda: records(run, "epoch"), process)
        second = posemill_alone(*command, "60")
        assert second.returncode == 4
        assert f"process {process.pid}" in second.stderr
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    per_epoch = int(str(records(run, "epoch")[0]["step"]))
    stopped_at = max(int(str(r["step"])) for r in records(run, "progress"))
    assert per_epoch <= stopped_at < 60 * per_epoch
    assert not (run / "tiny.safetensors").exists()

    # With another number of workers, and not to the end of 60 epochs.
    epochs = stopped_at // per_epoch + 2
    result = posemill_alone(*command, str(epochs), "--workers", "1-2")
    assert result.returncode == 0, result.stderr[-3000:]
    assert records(run, "start")[-1]["step"] == stopped_at
    weights = str(run / "tiny.safetensors")
    assert load_weights(weights).info.metrics["tune_pck_stage_1"] >= 0
    assert "## Recipe" in (run / "tiny.md").read_text()

    # What is finished goes on, too; and on a cluster.
    once = final_weights(run)
    last = [*command, str(epochs + 1)]
    result = posemill(*last)
    assert result.returncode == 0, result.stderr[-3000:]
    assert records(run, "start")[-1]["step"] == epochs * per_epoch
    assert any(not torch.equal(value, once[key]) for key, value in final_weights(run).items())
    given = load_weights(weights)
    assert given.info.licence == "mine"
    assert len(list(run.glob("checkpoint_2*"))) == 2
    steps = [r["step"] for r in records(run, "epoch")]
    assert steps == sorted(set(steps)), "epochs are recorded once, whatever was done twice"

    idle = posemill_alone(*last)
    assert (idle.returncode, "nothing to do" in idle.stdout) == (3, True)
    other = posemill_alone(*last, "--learning-rate", "0.5")
    assert other.returncode == 2
    assert "--learning-rate" in other.stderr

    measured = posemill("evaluate", "--samples", str(samples), "--weights", weights)
    assert measured.returncode == 0, measured.stderr
    assert f"PCK over {PEOPLE} people" in measured.stdout
    annotated = posemill(
        *("annotate", str(photos), str(tmp_path / "out"), "--weights", weights, "--limit", "5"),
        *("--people", "whole-image"),
    )
    assert annotated.returncode == 0, annotated.stderr
    metadata = json.loads(read_table(str(tmp_path / "out")).schema.metadata[b"posemill"])
    assert metadata["model"] == {"name": "tiny", "weights_sha256": given.sha256}


@pytest.mark.soak
def test_two_workers_with_a_teacher(tmp_path: Path, labelled: Path, posemill: Job) -> None:
    """Learn the same as one, nearly; and what comes out has no trace of it."""
    spec = write_teacher(tmp_path)
    samples, runs = str(tmp_path / "samples.parquet"), tmp_path / "runs"
    assert posemill("import", "json", str(labelled), samples).returncode == 0
    command = ["train", "--samples", samples, "--output", str(runs), *QUICK, *EXACT]
    command += ["--epochs", "3", "--teacher", spec.path, "--teacher-tensor", spec.tensor]
    for name, workers in (("one", "1"), ("two", "2")):
        result = posemill(*command, "--name", name, "--workers", workers)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "of hints" in result.stderr
    one, two = (final_weights(runs / name) for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-3, msg=key)
    assert load_weights(runs / "two" / "two.safetensors").tensors.keys() <= one.keys()


@pytest.mark.soak
def test_own_skeleton_from_given_weights(tmp_path: Path, photos: Path, posemill: Job) -> None:
    """Five joints of one's own, a few pictures labelled by hand, the weights in the box: the loss
    falls, the figures are recognised, and annotate writes that skeleton."""
    (tmp_path / "five.yaml").write_text(SKELETON_FILE)
    folder = tmp_path / "labelled"
    (folder / "images").mkdir(parents=True)
    points = [[x, y, 1] for x, y in PLACES.values()]
    for i in range(96):
        cv2.imwrite(str(folder / "images" / f"{i}.jpg"), draw_figure(i))
    images = [{"file": f"{i}.jpg", "keypoints": points} for i in range(96)]
    document = {"split": "train", "joint_names": list(PLACES), "images": images}
    (folder / "annotations.json").write_text(json.dumps(document))

    samples, run = str(tmp_path / "five.parquet"), tmp_path / "runs" / "five"
    given = ["--skeleton", str(tmp_path / "five.yaml"), "--tune-share", "0.1"]
    imported = posemill("import", "json", str(folder), samples, *given)
    assert imported.returncode == 0, imported.stderr
    trained = posemill(
        *("train", "--samples", samples, "--output", str(run.parent), "--name", "five"),
        *("--start-from", "cpm-lite", "--stages", "2", "--epochs", "10", "--batch-size", "8"),
        *("--phases", "0:64", "--threads", "1", "--warmup-steps", "10", "--ema-decay", "0.9"),
    )
    assert trained.returncode == 0, trained.stderr[-3000:]
    losses = [sum(record["loss"]) for record in records(run, "progress")]
    assert losses[-1] < 0.8 * losses[0]
    assert max(record["tune_pck"][-1] for record in records(run, "epoch")) > 60

    out = str(tmp_path / "out")
    weights = str(run / "five.safetensors")
    annotated = posemill(
        *("annotate", str(photos), out, "--weights", weights, "--limit", "5"),
        *("--people", "whole-image"),
    )
    assert annotated.returncode == 0, annotated.stderr
    table = read_table(out)
    metadata = json.loads(table.schema.metadata[b"posemill"])
    assert metadata["skeleton"]["name"] == "five"
    assert metadata["skeleton"]["keypoints"] == list(PLACES)
    assert len(table.column("x")[0].as_py()) == 5


def test_unusable_samples_are_told(tmp_path: Path, photos: Path, posemill: Job) -> None:
    """One line that says what is missing."""
    result = posemill("import", "json", str(photos), str(tmp_path / "samples.parquet"))
    assert result.returncode == 2
    assert "annotations.json" in result.stderr
    result = posemill("evaluate", "--samples", str(tmp_path / "none.parquet"))
    assert result.returncode == 2
    assert "posemill import" in result.stderr
