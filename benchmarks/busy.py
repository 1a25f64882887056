"""How busy a GPU would be: a stand-in that takes a GPU's time per batch, and no CPU.

    python -m benchmarks.busy [--megapixels 0.3 2 12] [--pictures 2400]

For each size of JPEG: how many pictures a second the preparers alone can do (the stand-in takes no
time), then the share of time that a stand-in is busy which could do 80 % and 95 % of that. The
pictures are photographs, enlarged; each is a person's box. Busy is counted from the third shard's
start to the last one's end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray

from pipeline.annotate import Run
from pipeline.config import AnnotateSettings
from pipeline.execute import Executor, make_pool
from pipeline.flow import Flow
from pipeline.manifest import ShardRef
from pipeline.progress import Reporter
from pipeline.rows import annotation_rows, people_of
from pipeline.stages import CommitStage, PrepareStage, Stage, StageReport
from pipeline.stall import Pulse

PHOTOS = Path(__file__).resolve().parents[2] / "shared/data/coco_people/images"
_BATCH = 64
_KEYPOINTS = 14
_SHARDS = 20


class StandIn(Stage):
    """Sleeps as long as a GPU would need, and finds every joint in the corner."""

    def __init__(self, seconds_per_picture: float, clock: Any) -> None:
        super().__init__(Pulse("estimate"))
        self.seconds, self.clock = seconds_per_picture, clock
        self.device = threading.Lock()

    def shard(self, ref: ShardRef, crops: pa.Table) -> tuple[pa.Table, StageReport]:
        """Rows with crops -> rows with keypoints."""
        started = time.time()
        people = people_of(crops).num_rows
        with self.device:
            at_work = time.time()
            for first in range(0, people, _BATCH):
                time.sleep(self.seconds * min(_BATCH, people - first))
            self.clock.note.remote(at_work, time.time(), people)
        keypoints = np.zeros((people, _KEYPOINTS, 3), np.float32)
        rows = annotation_rows(crops, keypoints, _KEYPOINTS)
        return rows, StageReport(time.time() - started)


class Clock:
    """When the stand-in was at work."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float, int]] = []

    def note(self, start: float, end: float, people: int) -> None:
        """A shard."""
        self.spans.append((start, end, people))

    def read(self) -> list[tuple[float, float, int]]:
        """All shards."""
        return self.spans


class WithStandIn(Executor):
    """Has the stand-in in the estimator's place, which leaves all CPUs to the preparers."""

    seconds = 0.0
    clock: Any = None

    def _start_actors(self) -> Flow:
        i, layout = self.inputs, self.layout
        self.clock = ray.remote(num_cpus=0)(Clock).remote()
        prepare = make_pool(
            layout.prepare, PrepareStage, self.decoder, i.output, os.cpu_count() or 1
        )
        estimate = make_pool(layout.estimate, StandIn, self.seconds, self.clock)
        commits = make_pool(layout.commit, CommitStage, i.output, i.metadata)
        return Flow((prepare, estimate, commits), layout.shards_ahead)


@dataclass(frozen=True)
class Figures:
    """Pictures per second, and the share of the time that the stand-in was busy."""

    rate: float
    busy: float


def main() -> None:
    """All sizes in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.3, 2.0, 12.0])
    parser.add_argument("--pictures", type=int, default=2400)
    options = parser.parse_args()
    cpus = os.cpu_count() or 1
    print("| JPEG | prepared, pictures/s | per core | stand-in's own rate | done | busy |")
    print("|---|---:|---:|---:|---:|---:|")
    for megapixels in options.megapixels:
        # Large pictures take longer: as many as take about as long.
        count = max(_SHARDS * 16, int(options.pictures / max(1.0, megapixels)))
        with tempfile.TemporaryDirectory(prefix="posemill-busy-") as folder:
            pictures = write_pictures(options.photos, Path(folder), megapixels, count)
            alone = measure(pictures, Path(folder) / "alone", 0.0)
            head = f"| {megapixels:g} MP | {alone.rate:.0f} | {alone.rate / cpus:.0f} |"
            for share in (0.8, 0.95):
                asked = share * alone.rate
                found = measure(pictures, Path(folder) / f"out{share}", 1 / asked)
                print(f"{head} {asked:.0f} | {found.rate:.0f} | {found.busy:.2f} |", flush=True)
                head = "| | | |"


def write_pictures(photos: Path, folder: Path, megapixels: float, count: int) -> Path:
    """JPEGs of that size, and a list in which each is a person's box."""
    found = sorted(photos.glob("*.jpg"))
    if not found:
        sys.exit(f"no photographs in {photos}: name a folder with --photos")
    encoded = list(_enlarged(found[:32], megapixels))
    lines = ["uri,x,y,w,h"]
    for i in range(count):
        data, width, height = encoded[i % len(encoded)]
        path = folder / f"{i:05d}.jpg"
        path.write_bytes(data)
        lines.append(f"{path},0,0,{width},{height}")
    target = folder / "list.csv"
    target.write_text("\n".join(lines) + "\n")
    return target


def _enlarged(paths: list[Path], megapixels: float) -> Iterator[tuple[bytes, int, int]]:
    for path in paths:
        photo = cv2.imread(str(path))
        height, width = photo.shape[:2]
        scale = (megapixels * 1e6 / (height * width)) ** 0.5
        size = round(width * scale), round(height * scale)
        resized = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)
        done, data = cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert done
        yield data.tobytes(), *size


def measure(pictures: Path, output: Path, seconds: float) -> Figures:
    """Annotate with a stand-in that takes so many seconds per picture."""
    with pictures.open() as file:
        count = sum(1 for _ in file) - 1
    values = {"input": [str(pictures)], "output": str(output), "estimators": 1}
    values["shard_size"] = count // _SHARDS
    with Reporter() as reporter:
        run = Run(AnnotateSettings.build(values), reporter)
        manifest = run.planner.plan(run.planner.look_up(), write=True)
        with WithStandIn(run._executor_inputs(), reporter) as executor:
            executor.seconds = seconds
            shards = list(manifest.shards(run.output))
            done = sum(outcome.summary.people for outcome in executor.run(shards))
            spans = sorted(ray.get(executor.clock.read.remote()))
    if done != sum(people for *_, people in spans):
        sys.exit(f"{done} people came through")
    # The first shards wait for the decoders to start.
    later = spans[2:]
    start, end = later[0][0], max(end for _, end, _ in spans)
    busy = sum(end - start for start, end, _ in later) / (end - start)
    return Figures(sum(people for *_, people in later) / (end - start), busy)


if __name__ == "__main__":
    main()
