"""Pictures per second of `posemill annotate` against one process that does the same work.

    python benchmarks/annotate.py [FOLDER] [--repeat N]

Both fetch, decode, crop and estimate every picture with the shipped weights, the whole picture as
the person's box. The plain loop has all CPU threads for the network. PoseMill's rate is taken
between its first and its last part; start-up is reported apart. Machines are noisy: look at the
ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import cpm_core
from pipeline.pictures import decode_picture

PICTURES = Path(__file__).resolve().parents[2] / "shared/data/bulk_unlabelled/people"
LIMIT = 10**8


def main() -> None:
    """Alternate the two, so that a slow spell of the machine hits both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=PICTURES)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder if options.folder.is_dir() else drawn(Path(temporary) / "drawn")
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        print(
            f"{len(paths)} pictures of {folder.name}; {os.cpu_count()} CPUs, {platform.machine()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}"
        )
        boxes = whole_pictures(paths, Path(temporary) / "boxes.csv")
        print("plain loop  posemill  ratio  start-up")
        ratios = []
        for _ in range(options.repeat):
            plain = plain_loop(paths)
            ours, start_up = posemill(boxes, Path(temporary) / "out")
            ratios.append(ours / plain)
            print(f"{plain:7.1f}/s {ours:7.1f}/s  {ratios[-1]:5.2f}  {start_up:5.1f} s")
        print(f"median ratio {statistics.median(ratios):.2f}")


def plain_loop(paths: list[Path]) -> float:
    """Pictures per second of a script, once the model is loaded."""
    torch.set_num_threads(os.cpu_count() or 1)
    estimator = cpm_core.load("cpm-lite")
    cropper = estimator.cropper
    started = time.perf_counter()
    for i in range(0, len(paths), 8):
        crops = []
        for path in paths[i : i + 8]:
            picture = decode_picture(path.read_bytes(), LIMIT)
            box = np.array([[0, 0, picture.shape[1], picture.shape[0]]], np.float64)
            crops.append(cropper.cut(picture, box))
        estimator.estimate_crops(np.concatenate(crops))
    return len(paths) / (time.perf_counter() - started)


def posemill(boxes: Path, output: Path) -> tuple[float, float]:
    """Pictures per second between the first and the last part, and seconds to the first part."""
    shutil.rmtree(output, ignore_errors=True)
    started = time.time()
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(boxes), str(output)]
    subprocess.run([*command, "--shard-size", "32"], check=True, capture_output=True)
    parts = sorted((output / "annotations").rglob("*.parquet"), key=lambda p: p.stat().st_mtime)
    first, last = parts[0].stat().st_mtime, parts[-1].stat().st_mtime
    import pyarrow.parquet as pq

    after_first = sum(pq.read_metadata(p).num_rows for p in parts[1:])
    return after_first / (last - first), first - started


def whole_pictures(paths: list[Path], target: Path) -> Path:
    """A list of the pictures, each with itself as the person's box."""
    lines = ["uri,x,y,w,h"]
    for path in paths:
        height, width = decode_picture(path.read_bytes(), LIMIT).shape[:2]
        lines.append(f"{path.absolute()},0,0,{width},{height}")
    target.write_text("\n".join(lines) + "\n")
    return target


def drawn(folder: Path) -> Path:
    """Pictures to work on where none are given."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(300):
        noise = rng.integers(0, 255, (30, 40, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), cv2.resize(noise, (640, 480)))
    return folder


if __name__ == "__main__":
    main()
