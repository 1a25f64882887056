"""Training on one worker and on two: samples per second, and how long steps wait for their samples.

    posemill import json FOLDER samples.parquet
    python -m benchmarks.train_scaling --samples samples.parquet [--workers 1 2] [--size 192]

Every worker has one thread (on a GPU, one GPU) and two loaders; the batch is the same for all, so
that two workers take half of it each. Rates and wait shares are medians of the run's second half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """One run after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--preset", default="cpm-lite")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--loaders", type=int, default=1, help="per worker")
    parser.add_argument("--seconds", type=float, default=120, help="of training, each")
    options = parser.parse_args()
    print("| workers | samples/s | scaling | waiting for samples |\n|---:|---:|---:|---:|")
    first = 0.0
    for workers in options.workers:
        rate, wait = measure(options, workers)
        first = first or rate / workers
        print(f"| {workers} | {rate:.1f} | {rate / workers / first:.2f} | {wait:.1%} |", flush=True)


def measure(options: argparse.Namespace, workers: int) -> tuple[float, float]:
    """Samples per second and wait share of a run that is stopped after a while."""
    with tempfile.TemporaryDirectory(prefix="posemill-scaling-") as folder:
        command = [sys.executable, "-m", "jobs.cli", "train", "--samples", str(options.samples)]
        command += ["--output", folder, "--name", "run", "--preset", options.preset]
        command += ["--phases", f"0:{options.size}", "--batch-size", str(options.batch_size)]
        command += ["--workers", str(workers), "--loaders", str(options.loaders)]
        command += ["--threads", "1", "--epochs", "1000"]
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        found: list[dict[str, Any]] = []
        while sum(record["seconds"] for record in found) < options.seconds:
            try:
                run.wait(2)
            except subprocess.TimeoutExpired:
                found = records(Path(folder) / "run" / "log.jsonl")
            else:
                sys.exit(f"the run ended: {' '.join(command)}")
        run.terminate()
        run.wait()
    later = found[len(found) // 2 :]
    names = ("samples_per_second", "wait_share")
    rate, wait = (statistics.median(record[name] for record in later) for name in names)
    return rate, wait


def records(log: Path) -> list[dict[str, Any]]:
    """What the run says of its progress, with the seconds that each record is about."""
    lines = log.read_text().splitlines() if log.exists() else []
    found = [r for line in lines if (r := json.loads(line))["kind"] == "progress"]
    step = 0
    for record in found:
        record["seconds"] = record["seconds_per_step"] * (record["step"] - step)
        step = record["step"]
    return found


if __name__ == "__main__":
    main()
