"""Memory of the driver and its workers over a run of 20,000 small pictures.

    python -m benchmarks.memory [--pictures 20000] [--plot docs/memory.png]

Samples the anonymous memory of each process (the object store, which is shared, has a size of its
own) and prints, by role, the median of the run's second quarter beside that of its last: of memory
that stays flat the ratio is 1. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import psutil

from benchmarks.processes import anonymous_mb, role_of

_EVERY_S = 2.0
Samples = dict[str, list[tuple[float, float]]]


def main() -> None:
    """Run, sample, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="posemill-memory-") as folder:
        boxes = make_pictures(Path(folder), options.pictures)
        command = [sys.executable, "-m", "jobs.cli", "annotate", str(boxes), f"{folder}/out"]
        started = time.monotonic()
        driver = subprocess.Popen(command)
        samples = sample(driver, started)
        if driver.wait():
            sys.exit("the run failed")
        seconds = time.monotonic() - started
    print(f"{options.pictures:,} pictures in {seconds:.0f} s; MB by role")
    print("| role | second quarter | last quarter | ratio |\n|---|---:|---:|---:|")
    for role, points in sorted(samples.items()):
        early, late = quarters(points, seconds)
        if early and late:
            print(f"| {role} | {early:.0f} | {late:.0f} | {late / early:.2f} |")
    if options.plot:
        plot(samples, options.plot)


def make_pictures(folder: Path, count: int) -> Path:
    """Small pictures of noise, and a list with a box in each."""
    pictures = folder / "in"
    pictures.mkdir()
    encoded = []
    for seed in range(50):
        noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)
        encoded.append(cv2.imencode(".jpg", noise)[1].tobytes())
    lines = ["uri,x,y,w,h"]
    for i in range(count):
        path = pictures / f"{i:06d}.jpg"
        path.write_bytes(encoded[i % len(encoded)])
        lines.append(f"{path},8,8,80,80")
    boxes = folder / "boxes.csv"
    boxes.write_text("\n".join(lines))
    return boxes


def sample(driver: subprocess.Popen[bytes], started: float) -> Samples:
    """(seconds, MB) by role, until the driver ends."""
    samples: Samples = defaultdict(list)
    root = psutil.Process(driver.pid)
    while driver.poll() is None:
        totals: dict[str, float] = defaultdict(float)
        for process in [root, *root.children(recursive=True)]:
            try:
                role = role_of(process, root)
                if role is not None:
                    totals[role] += anonymous_mb(process.pid)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
        now = time.monotonic() - started
        for role, megabytes in totals.items():
            samples[role].append((now, megabytes))
        try:
            driver.wait(_EVERY_S)
        except subprocess.TimeoutExpired:
            continue
    return samples


def quarters(points: list[tuple[float, float]], seconds: float) -> tuple[float, float]:
    """Medians of the second and of the last quarter of a run; 0 where there is nothing."""
    early = [mb for at, mb in points if seconds / 4 <= at < seconds / 2]
    late = [mb for at, mb in points if at >= 3 * seconds / 4]
    return tuple(statistics.median(part) if part else 0.0 for part in (early, late))  # type: ignore[return-value]


def plot(samples: Samples, path: Path) -> None:
    """Lines over time."""
    from matplotlib.figure import Figure

    figure = Figure((7, 3.5), layout="constrained")
    axes = figure.subplots()
    for role, points in sorted(samples.items()):
        axes.plot(*zip(*points, strict=True), label=role)
    axes.set(xlabel="seconds", ylabel="MB", ylim=(0, None))
    axes.legend(ncols=4, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.2))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
