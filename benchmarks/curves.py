"""Runs of 10^3, 10^4 and 10^5 small pictures with an estimator that does nothing.

    python -m benchmarks.curves [--counts 1000 10000 100000]

What is left is fetching, decoding, moving, scheduling and committing. Prints units per second, the
driver's CPU time per shard and per unit, the largest memory (proportional set size) by role, and
the files that came of it. The pictures are 96 pixels of noise, of which every file is a hard link
to one of fifty.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from benchmarks.busy import WithStandIn
from benchmarks.processes import Watch
from pipeline.annotate import Run
from pipeline.config import AnnotateSettings
from pipeline.progress import Reporter

_DIFFERENT = 50
_ROLES = ("driver", "prepare", "decoders", "estimate", "commit", "raylet")


def main() -> None:
    """All counts in turn, or be the driver of one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10**3, 10**4, 10**5])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(drive(*options.one)))
        return
    print("| units | units/s | driver, ms per shard | µs per unit | parts | MB | peak MiB: total |")
    print("|---:|---:|---:|---:|---:|---:|---|")
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="posemill-curves-") as name:
            print(measure(count, Path(name)), flush=True)


def measure(count: int, folder: Path) -> str:
    """A row of the table: memory of one run, the rest of another."""
    pictures = write_pictures(folder, count)
    _, watch = drive_apart(pictures, folder / "watched", memory=True)
    found, _ = drive_apart(pictures, folder / "out")
    parts = list((folder / "out/annotations").rglob("*.parquet"))
    size = sum(part.stat().st_size for part in parts) / 1e6
    roles = ", ".join(f"{role} {watch.peaks.get(role, 0):.0f}" for role in _ROLES)
    return (
        f"| {count:,} | {found['units'] / found['seconds']:.0f} "
        f"| {1e3 * found['cpu'] / found['shards']:.1f} | {1e6 * found['cpu'] / found['units']:.0f} "
        f"| {len(parts)} | {size:.1f} "
        f"| {watch.peak_mib:.0f}: {roles} |"
    )


def drive_apart(
    pictures: Path, output: Path, memory: bool = False
) -> tuple[dict[str, float], Watch]:
    """A run in a process of its own: what its driver measured, and the watch of its processes."""
    command = [sys.executable, "-m", "benchmarks.curves", "--one", str(pictures), str(output)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE)
    with Watch(driver, memory=memory) as watch:
        assert driver.stdout is not None
        lines = driver.stdout.read().splitlines()
    if driver.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(lines[-1]), watch


def drive(pictures: str, output: str) -> dict[str, float]:
    """The driver: wall and CPU seconds from the first shard's end to the last one's, and what was
    done meanwhile."""
    values = {"input": [pictures], "output": output}
    process = psutil.Process(os.getpid())
    with Reporter() as reporter:
        run = Run(AnnotateSettings.build(values), reporter)
        manifest = run.planner.plan(run.planner.look_up(), write=True)
        with WithStandIn(run._executor_inputs(), reporter) as executor:
            outcomes = executor.run(list(manifest.shards(run.output)))
            next(outcomes)
            started = _clocks(process)
            later = [outcome.summary.units for outcome in outcomes]
            ended = _clocks(process)
    return {
        "seconds": ended[0] - started[0],
        "cpu": ended[1] - started[1],
        "units": sum(later),
        "shards": len(later),
    }


def _clocks(process: psutil.Process) -> tuple[float, float]:
    times = process.cpu_times()
    return time.time(), times.user + times.system


def write_pictures(folder: Path, count: int) -> Path:
    """So many files, and a list with a box in each."""
    rng = np.random.default_rng(0)
    originals = []
    for i in range(_DIFFERENT):
        path = folder / f"original-{i}.jpg"
        cv2.imwrite(str(path), rng.integers(0, 256, (96, 96, 3), np.uint8))
        originals.append(path)
    (folder / "in").mkdir()
    target = folder / "list.csv"
    with target.open("w") as file:
        file.write("uri,x,y,w,h\n")
        for i in range(count):
            link = folder / "in" / f"{i:07d}.jpg"
            os.link(originals[i % _DIFFERENT], link)
            file.write(f"{link},8,8,80,80\n")
    return target


if __name__ == "__main__":
    main()
