"""Processes of a run that die, one kind after the other: the run, or the same command, finishes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from tests.e2e.conftest import REPOSITORY, UNITS, Job, job_environment
from tests.e2e.test_annotate import assert_accounted, assert_clean, read_table
from tests.e2e.test_faults import running, wait_for_parts
from tests.faults.output import part_files
from tests.faults.processes import family, hit, wait_until, with_role

PACKAGES = Path(__file__).parents[1] / "pipeline"


def parts(out: Path) -> int:
    """How many parts are there."""
    return len(part_files(pyarrow.fs.LocalFileSystem(), str(out)))


def failures(table: pa.Table) -> dict[str, str]:
    """Error codes by file name."""
    columns = (table[name].to_pylist() for name in ("uri", "error_code"))
    return {Path(uri).stem: code for uri, code in zip(*columns, strict=True) if code}


def test_actors_and_decoders_killed_in_mid_run(
    tmp_path: Path, many: Path, tiny: tuple[str, ...]
) -> None:
    """kill -9 of each kind of worker in turn: the run goes on and finishes by itself. At most the
    unit that the decoder was at has a row that says so."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "4"]
    killed = []
    with running(command) as process:
        for role in ("decoder", "prepare", "estimate", "commit"):
            before = parts(out)
            assert wait_until(lambda n=before: parts(out) > n, process), f"killed: {killed}"
            victims = wait_until(lambda r=role: with_role(r, process.pid), process)
            assert victims, f"killed: {killed}"
            assert hit(victims[0])
            killed.append(role)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    table = read_table(str(out))
    assert_accounted(table, UNITS)
    assert table.num_rows == UNITS
    assert list(failures(table).values()) in ([], ["out_of_memory"])
    assert_clean(str(out))


@pytest.mark.soak
def test_driver_terminated(
    tmp_path: Path, many: Path, posemill_alone: Job, tiny: tuple[str, ...]
) -> None:
    """SIGTERM, as Kubernetes and spot machines send it: it ends soon, its processes go, and the
    same command finishes."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "4"]
    with running(command) as process:
        wait_for_parts(out, 2, process)
        children = family(process.pid)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert not (out / "_locks" / "1-of-1").exists()
    assert not (out / "_SUCCESS").exists()
    assert posemill_alone(*command).returncode == 0
    table = read_table(str(out))
    assert_accounted(table, UNITS)
    assert table.num_rows == UNITS
    assert_clean(str(out))
    assert not [child for child in children if child.is_running()]


def test_inputs_that_kill_their_worker(tmp_path: Path, many: Path, tiny: tuple[str, ...]) -> None:
    """A crash in native code, memory without end, decodes that never end: a row each, and
    neighbours in the same shards lose nothing."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text((PACKAGES / "hostile.py").read_text())
    hostile = {
        "ABORT": "worker_crashed",
        "EXIT": "worker_crashed",
        "KILL": "out_of_memory",
        "HUNGRY": "out_of_memory",
        "HANG": "timeout",
        "STUCK": "timeout",
    }
    for i, word in enumerate(hostile):
        (many / f"{20 * i:04d}-{word}.jpg").write_text(f"{word} ")
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "40"]
    environment = job_environment() | {"PYTHONPATH": f"{hook}:{REPOSITORY}"}
    started = time.monotonic()
    limits = ["--max-seconds", "3", "--max-memory", "600"]
    with running([*command, *limits], environment) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert time.monotonic() - started < 60
    table = read_table(str(out))
    assert_accounted(table, UNITS + len(hostile))
    found = {name[5:]: code for name, code in failures(table).items()}
    assert found == hostile


# In a process of its own: the cluster would take over this one's connection to Ray.
NODES = """
import os, subprocess, sys
from pathlib import Path
import pyarrow.fs
import ray
from ray.cluster_utils import Cluster
from tests.faults.output import part_files
from tests.faults.processes import wait_until, with_role

out, plan, *command = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
workers = [cluster.add_node(num_cpus=1)] if plan == "lost" else []
cluster.wait_for_nodes()
run = subprocess.Popen(
    [sys.executable, "-m", "jobs.cli", *command], env={**os.environ, "RAY_ADDRESS": cluster.address}
)

def parts():
    return len(part_files(pyarrow.fs.LocalFileSystem(), out))

def actors_on(node, *roles):
    (raylet,) = node.all_processes["raylet"]
    return [p for r in roles or ("prepare", "estimate") for p in with_role(r, raylet.process.pid)]

assert wait_until(lambda: parts() > 2, run), "the run ended before it could be disturbed"
if plan == "lost":
    assert wait_until(lambda: actors_on(workers[0]), run), "nobody works on the second node"
    cluster.remove_node(workers[0], allow_graceful=False)
held = actors_on(cluster.head_node, "estimate")
for actor in held:
    actor.suspend()  # So that there is work left for the late node.
late = cluster.add_node(num_cpus=1)
used = bool(wait_until(lambda: actors_on(late), run))
for actor in held:
    actor.resume()
code = run.wait()
print("late node used:", used)
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.soak
@pytest.mark.parametrize("plan", ["lost", "joined"])
def test_nodes_come_and_go(
    plan: str, tmp_path: Path, many: Path, tiny: tuple[str, ...], ray_folder: str
) -> None:
    """kill -9 of a worker node's raylet, and a node that joins late: it takes the lost one's place,
    or is used besides."""
    out = tmp_path / "out"
    command = ["annotate", str(many), str(out), *tiny, "--shard-size", "2"]
    result = subprocess.run(
        [sys.executable, "-c", NODES, str(out), plan, *command],
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
    table = read_table(str(out))
    assert_accounted(table, UNITS)
    assert table.num_rows == UNITS
    assert "late node used: True" in result.stdout


def soak(table: Path, timeout: int, *options: str) -> str:
    """The table that `benchmarks/soak.py` writes, if nothing went wrong."""
    result = subprocess.run(
        [sys.executable, "benchmarks/soak.py", *options, "--write", str(table)],
        cwd=REPOSITORY,
        env=job_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return table.read_text()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_driver_killed_at_ten_moments_of_one_run(tmp_path: Path) -> None:
    """kill -9, from the first import to the last part; the same command each time."""
    options = ["--faults", "10", "--units", "800", "--only", "kill driver"]
    table = soak(tmp_path / "soak.md", 800, *options)
    assert "| kill driver | 10 | 0 | 10 |" in table
    assert "1 outputs, 800 units: 0 lost, 0 doubled, 0 otherwise wrong" in table


def test_the_soak_itself(tmp_path: Path) -> None:
    """A short one: two faults, and nothing lost or doubled."""
    table = soak(tmp_path / "soak.md", 280, "--faults", "2", "--units", "60")
    assert "0 lost, 0 doubled, 0 otherwise wrong" in table
