"""Training that is killed, doubled, resized: the same command goes on where it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from cpm_core.skeleton import load_skeleton
from cpm_core.weights import load_weights
from pipeline.storage import Output, StorageOptions
from tests.e2e.conftest import Job
from tests.e2e.labelled import write_samples
from tests.e2e.test_faults import running

QUICK = ("--phases", "0:64", "--threads", "1", "--batch-size", "8")
EXACT = ("--precision", "fp32", "--freeze-batch-norm", "--freeze-blocks", "0", "--stages", "2")


@pytest.fixture
def samples(tmp_path: Path) -> str:
    """Forty figures with the joints of `lsp14`, eight of them for tuning."""
    return write_samples(tmp_path / "samples.parquet", load_skeleton("lsp14"), 40, tune=8)


def records(run: Path, kind: str) -> list[dict[str, object]]:
    """Records of a kind in the run's log so far."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Block until something is so."""
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """The trained (not averaged) weights in the last checkpoint."""
    last = max(run.glob("checkpoint_2*"))
    state: dict[str, dict[str, torch.Tensor]] = torch.load(last / "state.pt", weights_only=True)
    return state["model"]


@pytest.mark.soak
def test_workers_and_seed_decide_nothing_else(tmp_path: Path, samples: str, posemill: Job) -> None:
    """The same seed gives the same weights on one worker, and nearly so on two with half a batch
    each."""
    runs = tmp_path / "runs"
    command = ["train", "--samples", samples, "--output", str(runs), *QUICK, *EXACT]
    for name, workers in (("one", "1"), ("again", "1"), ("two", "2")):
        result = posemill(*command, "--name", name, "--workers", workers, "--epochs", "2")
        assert result.returncode == 0, result.stderr[-3000:]
        (start,) = records(runs / name, "start")
        assert start["workers"] == int(workers)
    one, again, two = (final_weights(runs / name) for name in ("one", "again", "two"))
    start = 0.0
    for key, value in one.items():
        assert torch.equal(value, again[key]), key
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-3, msg=key)
        start += float((value.float() - two[key].float()).abs().sum())
    assert start > 0, "two workers add up in another order; equal bits would mean only one worked"


@pytest.fixture
def endless(tmp_path: Path, samples: str) -> list[str]:
    """A run that lasts longer than a test; the last word is the number of epochs."""
    command = ["train", "--samples", samples, "--output", str(tmp_path / "runs")]
    return [*command, "--name", "stopped", *QUICK, "--epochs", "60"]


@pytest.mark.soak
def test_a_killed_run_goes_on_with_other_workers(
    tmp_path: Path, endless: list[str], posemill_alone: Job
) -> None:
    """Its lock is recognised as stale; its last checkpoint may have been on its way."""
    run = tmp_path / "runs" / "stopped"
    with running([*endless, "--workers", "1-2"]) as process:
        wait_for(lambda: len(records(run, "epoch")) >= 2, process)
        process.kill()
        process.wait()
    done = int(str(records(run, "epoch")[-1]["step"])) // 4
    result = posemill_alone(*endless[:-1], str(done + 2))
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(str(records(run, "start")[-1]["step"])) >= 4 * (done - 1)
    steps = [r["step"] for r in records(run, "epoch")]
    assert steps == sorted(set(steps)), "epochs are recorded once, whatever was done twice"


@pytest.mark.soak
def test_a_killed_worker_is_replaced_on_s3(
    samples: str, bucket: str, posemill: Job, head: dict[str, str], tmp_path: Path
) -> None:
    """kill -9 of a training worker: the run goes on from the last checkpoint in the bucket."""
    command = ["train", "--samples", samples, "--output", f"{bucket}/runs", "--name", "killed"]
    command += [*QUICK, "--epochs", "8"]
    environment = head | {"RAY_ADDRESS": head["HEAD"]}
    others = training_workers()
    with running(command, environment) as process:
        output = Output(f"{bucket}/runs/killed", StorageOptions())
        wait_for(lambda: output.read("checkpoint_manager_snapshot.json"), process)
        (victim,) = training_workers() - others
        victim.kill()
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-3000:]
    assert "lost worker 0" in errors
    log = output.read("log.jsonl")
    assert log is not None
    lines = [json.loads(line) for line in log.decode().splitlines()]
    starts = [line["step"] for line in lines if line["kind"] == "start"]
    assert len(starts) == 2
    assert starts[1] > 0
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == list(range(1, 9))
    assert any(name.startswith("events") for name in output.list("tensorboard"))
    weights = tmp_path / "killed.safetensors"
    data = output.read("killed.safetensors")
    assert data is not None
    weights.write_bytes(data)
    assert load_weights(weights).info.name == "killed"


def training_workers() -> set[psutil.Process]:
    """Processes of this machine that train, for a test's run or for somebody else's."""
    return {
        process
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
    }
