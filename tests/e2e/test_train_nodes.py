"""Training over two nodes of which one is preempted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpm_core.skeleton import load_skeleton
from tests.e2e.conftest import REPOSITORY, free_ports, job_environment
from tests.e2e.labelled import write_samples

# In a process of its own: the cluster would take over this one's connection to Ray.
SCRIPT = """
import json, os, subprocess, sys
from ray.cluster_utils import Cluster

samples, runs, port = sys.argv[1:]
dashboard = {"include_dashboard": True, "dashboard_port": int(port)}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **dashboard})
spot = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
command = [sys.executable, "-m", "jobs.cli", "train", "--samples", samples, "--output", runs]
command += ["--name", "spot", "--workers", "1-2", "--epochs", "1", "--phases", "0:64"]
command += ["--batch-size", "2", "--stages", "1", "--threads", "1", "--checkpoint-minutes", "60"]
training = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address})

def records(kind):
    try:
        lines = open(f"{runs}/spot/log.jsonl").read().splitlines()
    except FileNotFoundError:
        return []
    return [r for line in lines if (r := json.loads(line))["kind"] == kind]

def wait_for(condition):
    while not condition():
        try:
            training.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError("training ended too soon")

wait_for(lambda: len(records("progress")) > 2)
ray = os.path.join(os.path.dirname(sys.executable), "ray")
drain = [ray, "drain-node", "--address", cluster.address, "--node-id", spot.node_id]
drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed"]
subprocess.run([*drain, "--deadline-remaining-seconds", "120"], check=True)
wait_for(lambda: any("checkpoint_2" in name for name in os.listdir(f"{runs}/spot")))
wait_for(lambda: os.path.exists(f"{runs}/spot/checkpoint_manager_snapshot.json"))
cluster.remove_node(spot, allow_graceful=False)
code = training.wait()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.soak
def test_a_preempted_node(tmp_path: Path, ray_folder: str) -> None:
    """Before it goes a checkpoint is written; one worker goes on from there, in mid-epoch."""
    samples = write_samples(tmp_path / "s.parquet", load_skeleton("lsp14"), 500)
    runs = tmp_path / "runs"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, samples, str(runs), str(free_ports(1)[0])],
        cwd=REPOSITORY,
        env=job_environment()
        | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": ray_folder,
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = (runs / "spot" / "log.jsonl").read_text().splitlines()
    starts = [record for line in lines if (record := json.loads(line))["kind"] == "start"]
    assert [start["workers"] for start in starts] == [2, 1]
    assert 0 < starts[1]["step"] < 250
    assert (runs / "spot" / "spot.safetensors").exists()
    assert os.path.exists(runs / "spot" / "spot.md")
